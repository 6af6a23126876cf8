"""The record of the data in a run folder, and the tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from retain.config import DataConfig, DocumentDataConfig
from retain.config.json import flatten
from retain.data.batches import Data
from retain.errors import UserError
from retain.files import replace_file
from retain.runs.checkpoint import find_run


def keep_data(out: Path, data: Data) -> None:
    """Write a description of the run's data into its folder, and a copy of the tokenizer."""
    replace_file(out / "data.json", json.dumps(data.info, indent=2).encode() + b"\n")
    if tokenizer := getattr(data, "tokenizer", None):
        replace_file(out / "tokenizer.json", tokenizer.encode())


def refuse_other_data(out: Path, data: Data) -> None:
    """Raise UserError if a run is resumed with other data than it began with. The message names what differs."""
    try:
        before = json.loads((out / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # a damaged record tells nothing
    if difference := data_changed(before, data.info):
        raise UserError(f"resume: {difference}; bring it back, or train into a new --out")


def data_changed(before: dict[str, Any], info: dict[str, Any]) -> str | None:
    """Describe the difference between the data that a run began with and the data now; None if there is none."""
    then, now = flatten(before), flatten(json.loads(json.dumps(info)))
    both = then.keys() & now.keys()
    if any(key.startswith("sha256") for key in both):
        both -= {"path", "prepared", "revision"}  # it may have moved
    for key in sorted(both):
        if then[key] != now[key]:
            return f"the data has changed: its {key} was {then[key]!r} and is {now[key]!r} now"
    return None


def same_checksum(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two files have the same content, by the checksums in `Data.info`."""
    return any(key.startswith("sha256") and one[key] == other.get(key) for key in one)


def own_tokenizer(config: DataConfig, path: Path) -> DataConfig:
    """Use the tokenizer in the run folder, as the file that the run began with may have changed or be gone."""
    copy = find_run(path) / "tokenizer.json"
    if isinstance(config, DocumentDataConfig) and config.tokenizer is not None and copy.exists():
        return dataclasses.replace(config, tokenizer=str(copy.resolve()), prune_vocab=False)  # it is pruned
    return config


def read_tokenizer(path: Path) -> Any:
    """Read the tokenizer that a run was trained with; None if its tokens are bytes or numbers. Raises UserError."""
    path = find_run(path)
    if not (path / "tokenizer.json").exists():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("tokenizer: this run needs tokenizers; run pip install 'retain[hub]'") from None
    try:
        return Tokenizer.from_str((path / "tokenizer.json").read_text(encoding="utf-8"))
    except Exception as error:
        if type(error) not in (Exception, UnicodeDecodeError):  # the library raises no other
            raise
        raise UserError(f"{path / 'tokenizer.json'}: is damaged ({error}); copy the one of --data.tokenizer") from None
