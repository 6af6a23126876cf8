"""A batch of streams, which can join and leave at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retain.data.subwords import Subwords
from retain.inference.text import Text
from retain.model.rnn import RNN
from retain.serve.codec import Bytes
from retain.serve.sampling import Sampling, sample_each

AHEAD = 64
"""Tokens of a long prompt that are read at once. `rollout` is faster per token than a step. The other streams wait for
this many at most."""


@dataclass(eq=False)
class Stream:
    """A text that is being generated. Its memory has a constant size, whatever was read."""

    tokens: list[int]
    """The prompt, then each sampled token. The tokens from `at` on are unread."""
    length: int
    """The number of tokens that may still be sampled."""
    sampling: Sampling
    reader: Bytes | Subwords
    text: Text
    memory: Tensor | None = None
    """(K, D), the memory at the start; None is m_0. At the end, if `kept`, the memory after all tokens."""
    kept: bool = False
    """Whether the last token is also read, because a session continues from there."""
    at: int = 0
    sampled: int = 0
    finish: str | None = None
    """Why it ended: "stop", "length" or "error"."""
    cancelled: bool = False

    @property
    def unread(self) -> int:
        """The number of unread tokens."""
        return len(self.tokens) - self.at

    def take(self, count: int) -> list[int]:
        """Return the next `count` unread tokens, which then count as read."""
        self.at += count
        return self.tokens[self.at - count : self.at]

    def add(self, token: int) -> str:
        """Add a sampled token, and return the text that is now certain."""
        said = self.text.read(token).text
        self.length -= 1
        self.sampled += 1
        # The end symbol is not part of the text, so a session's memory does not read it.
        self.tokens, self.at = [token], int(token == self.text.end)
        if self.length == 0 or self.text.ended:
            said += self.text.rest()
            self.finish = "stop" if self.text.ended else "length"
        return said


class News(NamedTuple):
    """The result of a step for one stream."""

    stream: Stream
    text: str
    ended: bool


class Batch:
    """Streams that step together, with their memories (B, K, D)."""

    def __init__(self, rnn: RNN):
        self.rnn = rnn
        self.streams: list[Stream] = []
        self.memory = rnn.init_memory(0)
        self.steps = 0

    @torch.inference_mode()
    def add(self, streams: Iterable[Stream]) -> None:
        """Add streams."""
        for stream in streams:
            start = self.rnn.m_0 if stream.memory is None else stream.memory.to(self.rnn.m_0.device)
            self.memory = torch.cat([self.memory, start[None]])
            self.streams.append(stream)

    @torch.inference_mode()
    def drop(self, has_left: Callable[[Stream], bool]) -> None:
        """Remove the streams for which `has_left` is true."""
        stay = [i for i, stream in enumerate(self.streams) if not has_left(stream)]
        if len(stay) < len(self.streams):
            self.memory = self.memory[stay]
            self.streams = [self.streams[i] for i in stay]

    @torch.inference_mode()
    def step(self) -> list[News]:
        """Read a token of every stream, sample one for each that has read its prompt, and remove those that ended."""
        self._read()
        said = self._sample()
        for row, stream in enumerate(self.streams):
            if stream.length == 0 and stream.finish is None:
                stream.finish = "length"  # max_tokens was 0
            if stream.kept and stream.finish and not stream.unread:
                stream.memory = self.memory[row].clone()
        ended = {s for s in self.streams if s.finish and (s.finish == "error" or not (s.kept and s.unread))}
        news = [News(s, said.get(s, ""), s in ended) for s in self.streams if s in ended or said.get(s)]
        self.drop(ended.__contains__)
        self.steps += 1
        return news

    def _read(self) -> None:
        long = [row for row, stream in enumerate(self.streams) if stream.unread > AHEAD]
        if long:  # one of them per step, in turn
            row = long[self.steps % len(long)]
            part = torch.tensor([self.streams[row].take(AHEAD)], device=self.memory.device)
            self.memory[row] = self.rnn.rollout(part, self.memory[row : row + 1])[0, -1]
        rows = [row for row, stream in enumerate(self.streams) if stream.unread]
        if not rows:
            return
        tokens = torch.tensor([self.streams[row].take(1)[0] for row in rows], device=self.memory.device)
        if len(rows) == len(self.streams):
            self.memory = self.rnn.update(self.memory, tokens)
        else:
            self.memory[rows] = self.rnn.update(self.memory[rows], tokens)

    def _sample(self) -> dict[Stream, str]:
        """Sample a token for each stream that has read its prompt, and return the new texts."""
        rows = [i for i, stream in enumerate(self.streams) if not stream.unread and stream.length and not stream.finish]
        if not rows:
            return {}
        streams = [self.streams[row] for row in rows]
        logits = self.rnn.readout(self.memory if len(rows) == len(self.streams) else self.memory[rows])
        for stream, largest in zip(streams, logits.amax(-1).tolist(), strict=True):
            if not math.isfinite(largest):
                stream.finish = "error"
        # Tokens drawn from logits that are not finite are discarded.
        tokens = sample_each(logits.nan_to_num(), [stream.sampling for stream in streams])
        return {s: s.add(token) for s, token in zip(streams, tokens, strict=True) if s.finish is None}
