"""The folder that transformers loads: config, weights, tokenizer, the file for remote code, and a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

from retain.errors import UserError
from retain.files import new_folder
from retain.hf.card import write_card
from retain.hf.config import RetainConfig
from retain.hf.model import RetainForCausalLM
from retain.hf.tokenizer import make_tokenizer
from retain.runs.run import Run


def make_model(run: Run) -> RetainForCausalLM:
    """Return the model of a run. Raises UserError for a cell that was given in Python, which no config can name."""
    if own := run.state.get("own_cell"):
        raise UserError(f"run: its cell, {own}, was given in Python; train with --cell.kind module:Class to export it")
    config, readout = run.config, ("width", "heads", "decoder_layers")
    model = RetainForCausalLM(
        RetainConfig(
            vocab_size=run.state["vocab_size"] + 1,
            memory=dataclasses.asdict(config.memory),
            readout={name: getattr(config.teacher, name) for name in readout},
            cell=dataclasses.asdict(config.cell),
            eos_token_id=run.state.get("end"),
        )
    )
    model.rnn.load_state_dict(run.rnn.state_dict())
    model.eval()
    return model


def export_hf(run: Run, directory: str | Path, *, command: str | None = None) -> None:
    """Write a run as a folder for transformers.

    Args:
        run: The return value of `retain.load_run`.
        directory: A new folder.
        command: The command that trained the run, for the model card.

    Raises:
        UserError: The folder exists and is not empty, or the run cannot be exported.
        OSError: The folder cannot be written. Nothing is left of it then.
    """
    model, tokenizer = make_model(run), make_tokenizer(run)
    card = write_card(run, Path(directory).name, has_tokenizer=tokenizer is not None, command=command)
    with new_folder(Path(directory)) as folder, _quiet():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars inside the `with` block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
