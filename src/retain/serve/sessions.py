"""Memories of constant size that are kept between calls, and between one start of the server and the next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retain.errors import UserError
from retain.files import tidy
from retain.model.rnn import RNN
from retain.runs.checkpoint import load_files, save_files
from retain.runs.lock import alone
from retain.serve.codec import Tail
from retain.serve.refusal import Refusal

MOST = 10_000
"""The most sessions that are kept."""
SAVED = "saved"


@dataclass
class Session:
    """A stream between two calls."""

    memory: Tensor | None = None
    """(K, D); None before the first call has ended."""
    tail: Tail | None = None
    busy: bool = False


class Sessions:
    """The sessions of a server, by name."""

    def __init__(self) -> None:
        self.kept: dict[str, Session] = {}

    def take(self, name: str) -> Session:
        """Reserve a session for one call, beginning it if it is new; the caller gives it back. Raises Refusal."""
        session = self.kept.get(name)
        if session is not None and session.busy:
            raise Refusal(409, f"session: {name!r} is in use by another call; wait until that ends", "session")
        if session is None and len(self.kept) >= MOST:
            message = f"session: {MOST} are kept already; send DELETE /v1/sessions/NAME for those that ended"
            raise Refusal(429, message, "session", "too_many_sessions")
        session = self.kept.setdefault(name, Session())
        session.busy = True
        return session

    def give_back(self, name: str) -> None:
        """Release a session for other calls. Delete it if its first call failed."""
        session = self.kept[name]
        session.busy = False
        if session.memory is None:
            del self.kept[name]

    def delete(self, name: str) -> None:
        """Delete a session. Raises Refusal if there is none, or if it is in use."""
        if name not in self.kept:
            raise Refusal(404, f"session: there is no {name!r}", "session")
        self.take(name)
        del self.kept[name]

    def save(self, folder: Path, model: str) -> int:
        """Write all sessions into `folder`, all or none, and return their number. Raises CheckpointError."""
        kept = {name: session for name, session in self.kept.items() if session.memory is not None}
        if kept or (folder / SAVED).exists():
            memories = [session.memory.cpu() for session in kept.values() if session.memory is not None]
            names = [{"name": name, "tail": session.tail} for name, session in kept.items()]
            tensors = {"sessions": {"memory": torch.stack(memories)} if memories else {}}
            save_files(folder / SAVED, tensors, {"model": model, "sessions": names})
        return len(kept)

    def load(self, folder: Path, model: str) -> int:
        """Load the sessions that `save` wrote, and return their number. Raises UserError or CheckpointError."""
        tidy(folder, SAVED)
        if not (folder / SAVED).exists():
            return 0
        tensors, state = load_files(folder / SAVED)
        if state["model"] != model:
            raise UserError(
                f"sessions: {folder / SAVED} is of another RNN, maybe of this run before more training; "
                "move it away, or give --sessions DIR"
            )
        for number, named in enumerate(state["sessions"]):
            self.kept[named["name"]] = Session(tensors["sessions"]["memory"][number].clone(), named["tail"])
        return len(self.kept)


def model_digest(rnn: RNN) -> str:
    """Return a hash of the RNN's weights, because a memory is of use only to the RNN that made it."""
    digest = hashlib.sha256()
    for name, value in rnn.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def kept_in(folder: Path, rnn: RNN) -> Iterator[Sessions]:
    """Load the sessions in `folder`, and save them there at the end, also after an error.

    Raises:
        UserError: The folder cannot be written, another process uses it, or its sessions are of another RNN.
        CheckpointError: Its sessions are damaged, or cannot be written.
    """
    model, sessions = model_digest(rnn), Sessions()
    with ExitStack() as held:
        try:
            held.enter_context(alone(folder))
        except OSError as error:
            raise UserError(f"sessions: {folder} cannot be written, {error.strerror}; give --sessions DIR") from error
        except UserError:
            message = f"sessions: another server uses {folder}; stop it, or give another --sessions DIR"
            raise UserError(message) from None
        sessions.load(folder, model)
        held.callback(sessions.save, folder, model)
        yield sessions
