"""The description of a model in its folder, and saving an RNN that was trained in a custom loop."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain import __version__
from retain.config import RunConfig
from retain.config.json import save_config, to_dict
from retain.data.batches import Data
from retain.errors import UserError
from retain.model.cells import CELLS, build_cell
from retain.model.modes import evaluating
from retain.model.rnn import RNN
from retain.runs.checkpoint import explain_failure, export
from retain.runs.data import keep_data
from retain.runs.folder import prepare_folder
from retain.runs.progress import Progress
from retain.runs.run import load_weights


def save(rnn: RNN, config: RunConfig, path: str | Path, *, data: Data | None = None) -> None:
    """Write an RNN that was trained in a custom loop as a run folder, for `load`, generate and eval.

    Args:
        rnn: The trained RNN.
        config: The memory, teacher (its width, heads and decoder_layers are the readout's) and cell that the RNN was
            made from. A custom cell that the config cannot name must be given to `load` again.
        path: The run folder, empty or absent.
        data: The loaded data of `config.data`, if the RNN was trained on it. Without it tokens are numbers, and eval
            needs a file.

    Raises:
        UserError: The folder is not empty, or the config is not that of the RNN.
        CheckpointError: The disk refuses.
    """
    path = Path(path)
    prepare_folder(config, path, resume=False)
    named = type(build_cell(config.memory, config.cell))
    own = type(rnn.cell) is not named
    if own and type(rnn.cell) in CELLS.values():
        raise UserError(f"config: its cell is a {named.__name__}, the RNN's a {type(rnn.cell).__name__}")
    like = RNN(rnn.symbols, config.memory, config.teacher, config.cell, rnn.cell if own else None)
    if own:  # the caller's cell must not be changed
        like.cell = nn.Identity()
    like.to(rnn.m_0)
    if own:
        like.cell = rnn.cell
    load_weights(like, rnn.state_dict(), path, "config")
    device = rnn.m_0.device
    token = torch.zeros(1, dtype=torch.long, device=device)
    if rnn.channels is not None:
        token = torch.zeros(1, rnn.channels.token, device=device)
    with torch.no_grad(), evaluating(rnn, like):  # settings such as norm, heads, residual have no weights
        pairs = zip(rnn.step(token, rnn.init_memory(1)), like.step(token, rnn.init_memory(1)), strict=True)
        if not all(torch.allclose(mine, its, rtol=1e-3, atol=1e-4, equal_nan=True) for mine, its in pairs):
            raise UserError(
                "config: with these weights it is another RNN; give the memory, teacher and cell of this one"
            )
    state = build_state(config, rnn, data, Progress(), own_cell=type(rnn.cell).__qualname__ if own else None)
    export(path, {"model": rnn.state_dict()}, state)
    with explain_failure(path):
        if data is not None:
            keep_data(path, data)
        save_config(config, path / "config.json")


def build_state(
    config: RunConfig, rnn: RNN, data: Data | None, progress: Progress, *, own_cell: str | None
) -> dict[str, Any]:
    """Build the content of state.json: what a loader needs besides the weights, and where the weights come from.

    `data` is None if the RNN was trained in the caller's own loop. `own_cell` is the class of a cell given in Python.
    """
    return {
        "config": to_dict(config),
        "vocab_size": rnn.vocab_size,
        **({} if rnn.channels is None else {"channels": rnn.channels.to_dict()}),
        "kind": "tokens" if data is None else data.kind,
        "image_shape": list(data.image_shape) if data is not None and data.image_shape else None,
        "end": getattr(data, "end", None),
        "own_cell": own_cell,
        "own_data": data is None,
        "data": {} if data is None else data.info,
        "progress": dataclasses.asdict(progress),
        "versions": {"retain": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(rnn.m_0.device),
        "precision": "fp32",
        "processes": 1,
        "threads": torch.get_num_threads(),
    }


def of_this_model(record: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether a result of `retain eval` is of the model with this state, not of one before training was resumed."""
    return bool(record.get("training_tokens", state["progress"]["tokens"]) == state["progress"]["tokens"])
