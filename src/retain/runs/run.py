"""A run: its models, built from its config or loaded from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain.config import CellConfig, Channels, RunConfig, Symbols
from retain.config.json import flatten, from_dict, load_config, to_dict
from retain.devices import check_device, fastest
from retain.errors import UserError
from retain.model.cells import CELLS
from retain.model.given import GivenTrunk
from retain.model.rnn import RNN
from retain.model.series_rnn import SeriesRNN
from retain.model.teacher import Teacher
from retain.runs.checkpoint import find_run, load_files, load_model
from retain.runs.data import own_tokenizer
from retain.runs.folder import phase_folder


def build(
    config: RunConfig, symbols: Symbols, cell: nn.Module | None = None, trunk: GivenTrunk | None = None
) -> tuple[RNN, Teacher]:
    """Build the RNN and the teacher of a run, freshly initialised, for a vocabulary or a stream of numbers.

    `cell` replaces the cell that the config names. `trunk` is the loaded trunk of config.teacher.from_.
    """
    rnn = RNN(symbols, config.memory, config.teacher, config.cell, cell)
    return rnn, Teacher(symbols, config.memory, config.teacher, config.smt.num_chunks > 1, trunk)


@contextmanager
def weightless(cell: CellConfig) -> Iterator[None]:
    """Build models without weights, for counting or checks, and without using random numbers.

    A custom cell has weights, as it may look at values.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if cell.kind in CELLS else "cpu"):
        yield


@dataclass(frozen=True)
class Run:
    """The content of a run folder: config, state (vocabulary, data, progress), RNN and, if loaded, teacher."""

    path: Path
    config: RunConfig
    state: dict[str, Any]
    rnn: RNN
    teacher: Teacher | None


def load_run(
    path: str | Path,
    *,
    teacher: bool = False,
    device: str | torch.device = "cpu",
    cell: nn.Module | None = None,
    phase: int | None = None,
) -> Run:
    """Load the run at `path` in evaluation mode: the best model, or the best so far if training is not over.

    With `teacher` the teacher is loaded, too. With `phase` (0, 1, …) the models are those after that phase. All else is
    as in `load`.
    """
    check_device(str(device))
    device = fastest() if str(device) == "auto" else device
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"run: {path} is not a folder; give the folder that `retain train` wrote")
    written = read_config(path)
    config = dataclasses.replace(written, data=own_tokenizer(written.data, path))
    names = ["model", "teacher"] if teacher else ["model"]
    if phase is not None and not 0 <= phase < len(config.phases):
        raise UserError(f"phase: {phase} must lie in 0 … {len(config.phases) - 1}, for {', '.join(config.phases)}")
    if phase is None:
        tensors, state = load_model(path, names, device)
    else:
        tensors, state = load_files(phase_folder(path, config, phase), names, device)
    refuse_other_model(written, state, path)
    if cell is None and (own := state.get("own_cell")):
        raise UserError(f"run: {path} was trained with a cell of your own, {own}; give it, as in load(RUN, cell=…)")
    guide = None
    if teacher:
        rnn, guide = build(config, symbols_of(state), cell)
        load_weights(guide, tensors["teacher"], path)
        guide = guide.to(device).eval()
    else:
        rnn = RNN(symbols_of(state), config.memory, config.teacher, config.cell, cell)
    load_weights(rnn, tensors["model"], path)
    return Run(path, config, state, rnn.to(device).eval(), guide)


def symbols_of(state: dict[str, Any]) -> Symbols:
    """Return what the model with this state reads: the size of its vocabulary, or channels of numbers."""
    channels = state.get("channels")
    return int(state["vocab_size"]) if channels is None else Channels.from_dict(channels)


def read_config(path: Path) -> RunConfig:
    """Read the config of a run, or of one of its checkpoints. Raises UserError if there is none."""
    if (path / "config.json").exists():
        return load_config(path / "config.json", drop=True)
    saved = load_files(path, [])[1].get("config") if find_run(path) != path else None
    if saved is None:
        raise UserError(f"run: {path} holds no config.json; give the folder that `retain train` wrote")
    return from_dict(saved, drop=True)


def refuse_other_model(config: RunConfig, state: dict[str, Any], path: Path) -> None:
    """Raise UserError if config.json was changed in a way that makes another RNN of the same weights."""
    if "config" not in state:
        return  # of an earlier version
    then, now = flatten(to_dict(from_dict(state["config"], drop=True))), flatten(to_dict(config))
    for key in sorted(now):
        if key.startswith(("memory.", "teacher.", "cell.")) and then.get(key) != now[key]:
            raise UserError(
                f"run: {path / 'config.json'} was changed: {key} was {then.get(key)!r} when these weights were trained "
                f"and is {now[key]!r} now; put it back"
            )


def has_teacher(path: Path) -> bool:
    """Whether the run has a trained teacher. An RNN may have been copied without its teacher, for deployment."""
    alone = (path / "manifest.json").exists() and not (path / "teacher.safetensors").exists()
    return not alone and path.is_dir() and read_config(path).has_teacher


def guided(path: Path) -> bool:
    """Whether the run has a teacher that can be loaded with it, as its trunk is its own."""
    return has_teacher(path) and read_config(path).teacher.from_ is None


def load(path: str | Path, *, device: str | torch.device = "cpu", cell: nn.Module | None = None) -> RNN:
    """Load the RNN of a run folder, ready to read.

    `memory = rnn.init_memory(batch)`, then `logits, memory = rnn.step(token, memory)` for every token. No parameter
    requires a gradient, so that a stream keeps no history; `rnn.train().requires_grad_()` prepares further training.
    The weights stay float32; `torch.autocast` or `fast_step` compute in bfloat16.

    Args:
        path: The run folder.
        device: The device of the RNN; "auto" is the fastest available.
        cell: The custom cell, if the run was trained with one that its config cannot name.

    Raises:
        UserError: There is no run.
        CheckpointError: The weights are damaged.
    """
    return load_run(path, device=device, cell=cell).rnn.requires_grad_(False)


def load_series(path: str | Path, *, device: str | torch.device = "cpu", cell: nn.Module | None = None) -> SeriesRNN:
    """Load the RNN of a run of series, ready to read rows of numbers.

    `memory = rnn.init_memory(batch)`, then `distribution, memory = rnn.step(x, memory)` for every row x (B, C + Q).
    All else is as in `load`. Raises UserError for a run that reads tokens.
    """
    return SeriesRNN(load(path, device=device, cell=cell)).requires_grad_(False).eval()


def refuse_numbers(run: Run, what: str) -> None:
    """Raise UserError if the run reads numbers, which the command `what` does not support."""
    if run.rnn.channels is not None:
        raise UserError(
            f"run: {run.path} reads series of numbers, and retain {what} tokens; use retain forecast, retain score or "
            "retain.load_series"
        )


def load_weights(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path, whose: str = "run") -> None:
    """Load weights into a module. Raises UserError if their names or shapes are not those of the module."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        what = {
            "run": f"the weights in {path} do not fit its config.json",
            "init_from": f"the weights in {path} do not fit this run (--config {path} takes its sizes over)",
            "config": "it is not that of the RNN",
        }
        raise UserError(f"{whose}: {what[whose]}: {detail}") from None
