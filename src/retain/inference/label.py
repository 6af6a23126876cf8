"""`retain label`: the pass of a frozen trunk over a data set, kept for any number of runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from tqdm import tqdm

from retain.config import RunConfig
from retain.config.json import to_dict
from retain.data import load_data
from retain.data.batches import Data, Split
from retain.data.labels import LABELLED, VERSION, check_can_label, encode_label, formats
from retain.devices import check_device, fast_bf16, fastest
from retain.errors import UserError
from retain.files import replace_file, sync_folder, write_file
from retain.model.frozen import FrozenTrunk, compress
from retain.runs.lock import LOCK, alone
from retain.runs.trunk import TABLES, for_teacher, open_trunk

log = logging.getLogger("retain")

SAVE_SECONDS = 5.0
"""A kill may cost this many seconds of work."""


def make_labels(config: RunConfig, out: Path, batch_size: int = 16, progress_bar: bool = True) -> dict[str, Any]:
    """Run the model that config.teacher.from_ names over config.data; keep what training needs in the folder `out`.

    Labels of the training and validation splits are written into OUT.partial, which becomes `out` when all are there.
    Killed at any moment, the same call goes on from there.

    Returns:
        The manifest.

    Raises:
        UserError: `out` exists, the disk has no room, or what was begun there is of another model, data or settings.
    """
    if config.teacher.from_ is None:
        raise UserError("teacher.from: name the model that labels the data")
    if out.exists():
        raise UserError(f"out: {out} already exists; name another folder, or delete it")
    data = for_teacher(config, load_data(config.data))
    check_can_label(data)
    trunk = open_trunk(config, data)
    assert trunk is not None
    device = torch.device(fastest() if config.device == "auto" else config.device)
    check_device(str(device))
    job = _Labelling(config, data, trunk.to(device), out, device)
    with alone(job.partial):
        job.begin()
        for split in LABELLED:
            job.label(split, batch_size, progress_bar)
        return job.finish()


class _Labelling:
    """Writes the labels of one data set, from the beginning or from where another process was stopped."""

    def __init__(self, config: RunConfig, data: Data, trunk: FrozenTrunk, out: Path, device: torch.device):
        self.data, self.trunk, self.out, self.device = data, trunk, out, device
        self.partial = out.with_name(out.name + ".partial")
        self.top_k = config.teacher.top_k
        self.formats = formats(data.seq_len, trunk.width, data.vocab_size, self.top_k)
        bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.done = dict.fromkeys(LABELLED, 0)
        self.counts = {split: data.count(split) for split in LABELLED}
        self.head: dict[str, Any] = {
            "version": VERSION,
            "trunk": trunk.identity,
            "width": trunk.width,
            "vocab_size": data.vocab_size,
            "seq_len": data.seq_len,
            "top_k": self.top_k,
            "precision": "bf16" if bf16 else "fp32",
            "data": data.info,
            "config": to_dict(config.data),
            "splits": self.counts,
        }

    def row_bytes(self, name: str) -> int:
        dtype, shape = self.formats[name]
        return int(dtype.itemsize * torch.Size(shape).numel())

    def begin(self) -> None:
        """Take up what an earlier process left; say how large the labels get, and refuse if the disk has no room."""
        progress = self.partial / "progress.json"
        if progress.exists():
            try:
                saved = json.loads(progress.read_text(encoding="utf-8"))
                head, done = saved["head"], saved["done"]
            except (ValueError, KeyError, TypeError):
                head, done = None, self.done
            if differs := _difference(head, json.loads(json.dumps(self.head))):
                raise UserError(
                    f"out: {self.partial} was begun with another {differs}; delete it, or name another folder"
                )
            self.done = done
        for split in LABELLED:
            for name in self.formats:
                with (self.partial / f"{split}.{name}").open("ab") as file:
                    file.truncate(self.done[split] * self.row_bytes(name))
        sequences = sum(self.counts.values())
        left = sequences - sum(self.done.values())
        row, free = sum(map(self.row_bytes, self.formats)), shutil.disk_usage(self.partial).free
        log.warning(
            "%s: %s sequences of %d tokens make %s of labels; %s on the disk are free",
            *(self.out, f"{sequences:,}", self.data.seq_len + 1, _size(sequences * row), _size(free)),
        )
        if left * row > free:
            raise UserError(f"out: {_size(left * row)} of labels are to come and {_size(free)} are free; make room")

    @torch.no_grad()
    def label(self, split: Split, batch_size: int, progress_bar: bool) -> None:
        """Label what is left of a split."""
        count, saved = self.counts[split], time.monotonic()
        files = {name: (self.partial / f"{split}.{name}").open("ab") for name in self.formats}
        hidden = None if progress_bar else True  # None: shown where stderr is a terminal
        bar = tqdm(total=count, initial=self.done[split], unit="sequences", desc=f"labels of {split}", disable=hidden)
        try:
            while self.done[split] < count:
                first = self.done[split]
                index = np.arange(first, min(first + batch_size, count))
                tokens = self.data.sequences(split, index)["tokens"].to(self.device)
                with self.autocast:
                    states, logits = self.trunk(tokens, True)
                assert logits is not None
                for name, values in compress(states, logits, self.top_k).items():
                    files[name].write(encode_label(name, values, self.formats[name][0]))
                self.done[split] += len(index)
                bar.update(len(index))
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save(files)
                    saved = time.monotonic()
            self.save(files)
        finally:
            bar.close()
            for file in files.values():
                file.close()

    def save(self, files: Mapping[str, BinaryIO]) -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        progress = {"head": self.head, "done": self.done}
        replace_file(self.partial / "progress.json", json.dumps(progress).encode())

    def finish(self) -> dict[str, Any]:
        """Write what is kept of the model itself, and put the folder in place."""
        nothing = torch.zeros(1, 0, dtype=torch.long, device=self.device)
        with self.autocast:
            start = self.trunk(nothing, False)[0][0, 0].to(torch.bfloat16)
        embeddings, head = self.trunk.embeddings()
        tables = {"start": start, "embeddings": embeddings, "head": head}
        tables = {name: table.detach().cpu().clone() for name, table in tables.items()}
        write_file(self.partial / TABLES, safetensors.torch.save(tables))
        if self.data.tokenizer is not None:
            write_file(self.partial / "tokenizer.json", self.data.tokenizer.encode())
        sizes = {path.name: path.stat().st_size for path in sorted(self.partial.iterdir())}
        files = {name: size for name, size in sizes.items() if name not in (LOCK, "progress.json", "manifest.json")}
        manifest = self.head | {"files": files}
        replace_file(self.partial / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")
        (self.partial / "progress.json").unlink(missing_ok=True)
        os.rename(self.partial, self.out)
        (self.out / LOCK).unlink(missing_ok=True)
        sync_folder(self.out.parent)
        return manifest


def _difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """Name the first thing that differs, in a user's words; None if nothing does. Files may have moved."""
    words = {"version": "version of retain", "trunk": "model or layer", "top_k": "teacher.top_k"}
    for key in [key for key in now if key != "config"] if before else []:
        then, here = (_without_places(values.get(key)) for values in (before or {}, now))
        if then != here:
            return words.get(key, key)
    return None if before else "version of retain"


def _without_places(value: Any) -> Any:
    """Leave out of what describes a model or data where it lies."""
    places = ("from", "path", "prepared", "revision", "read")
    return {k: v for k, v in value.items() if k not in places} if isinstance(value, dict) else value


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
