"""`retain label`: run a given trunk over a data set once and keep its outputs for any number of runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from tqdm import tqdm

from retain.config import RunConfig
from retain.config.json import to_dict
from retain.data import load_data
from retain.data.batches import Data, Ints, Split
from retain.data.contexts import block_len, check_continues, list_blocks, read_blocks
from retain.data.labels import LABELLED, VERSION, check_can_label, encode_label, formats
from retain.devices import fast_bf16
from retain.errors import UserError
from retain.files import replace_file, sync_folder, write_file
from retain.model.given import READ, GivenTrunk, compress
from retain.runs.lock import LOCK, alone
from retain.runs.trunk import TABLES, open_trunk
from retain.training.accelerator import open_accelerator, together

log = logging.getLogger("retain")

SAVE_SECONDS = 5.0
"""The most seconds of work that a kill may lose."""


def make_labels(config: RunConfig, out: Path, batch_size: int = 16, progress_bar: bool = True) -> dict[str, Any]:
    """Run the model `config.teacher.from_` over config.data and write the outputs that training needs into `out`.

    Labels of the training and validation splits are written into OUT.partial, which is renamed to `out` when they are
    complete. After a kill at any moment, the same call resumes. As with `train`, several processes may run it, and
    another number of processes may resume it. Each labels its share of the batches, and the files are the same.

    Returns:
        The manifest; empty in other processes than the main one.

    Raises:
        UserError: `out` exists, the disk has no room, or OUT.partial is of another model, data or settings.
    """
    if config.teacher.from_ is None:
        raise UserError("teacher.from: name the model that labels the data")
    with open_accelerator(config) as accelerator, ExitStack() as held:

        def refuse() -> None:
            if out.exists():
                raise UserError(f"out: {out} already exists; name another folder, or delete it")

        together(accelerator, refuse)
        data = load_data(config.data)
        check_can_label(data)
        if config.teacher.context_before:
            check_continues(data, config.teacher.context_before)
        trunk = open_trunk(config, data)
        assert trunk is not None
        job = _Labelling(config, data, trunk.to(accelerator.device), out, batch_size, accelerator)

        def begin() -> None:
            held.enter_context(alone(job.partial))
            job.begin()

        together(accelerator, begin)
        for split in LABELLED:
            job.label(split, progress_bar and accelerator.is_main_process)
        accelerator.wait_for_everyone()
        return job.finish() if accelerator.is_main_process else {}


class _Labelling:
    """A writer of the labels of one data set, from the beginning or from where other processes stopped.

    The files have their full size from the beginning. For each split, SPLIT.done has one byte for each batch, which is
    1 if the labels of the batch are on the disk.
    """

    def __init__(
        self, config: RunConfig, data: Data, trunk: GivenTrunk, out: Path, batch_size: int, accelerator: Accelerator
    ):
        self.data, self.trunk, self.out, self.device = data, trunk, out, accelerator.device
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.partial = out.with_name(out.name + ".partial")
        self.top_k, self.before = config.teacher.top_k, config.teacher.context_before
        self.formats = formats(data.seq_len, trunk.width, data.vocab_size, self.top_k)
        bf16 = config.precision == "bf16" or (config.precision == "auto" and fast_bf16(self.device))
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.counts = {split: data.count(split) for split in LABELLED}
        self.blocks = {split: list_blocks(data, split, self.before) for split in LABELLED}
        self.per_batch = max(1, batch_size // block_len(data.seq_len, self.before))
        self.head: dict[str, Any] = {
            "version": VERSION,
            "trunk": trunk.identity,
            "width": trunk.width,
            "vocab_size": data.vocab_size,
            "seq_len": data.seq_len,
            "top_k": self.top_k,
            "context_before": self.before,
            "batch_size": batch_size,
            "precision": "bf16" if bf16 else "fp32",
            "data": data.info,
            "config": to_dict(config.data),
            "splits": self.counts,
        }

    def row_bytes(self, name: str) -> int:
        dtype, shape = self.formats[name]
        return int(dtype.itemsize * torch.Size(shape).numel())

    def batches(self, split: Split) -> list[Ints]:
        """List the blocks of each batch by their first sequences, followed by the first sequence after the batch."""
        blocks = self.blocks[split]
        return [blocks[i : i + self.per_batch + 1] for i in range(0, len(blocks) - 1, self.per_batch)]

    def done(self, split: Split) -> Ints:
        """Read which batches are done, 1 or 0 for each, (N,)."""
        return np.fromfile(self.partial / f"{split}.done", np.uint8).astype(np.int64)

    def begin(self) -> None:
        """Create the files or continue existing ones; log the size of the labels. Refuse if the disk has no room."""
        progress = self.partial / "progress.json"
        if progress.exists():
            try:
                head = json.loads(progress.read_text(encoding="utf-8"))["head"]
            except (ValueError, KeyError, TypeError):
                head = None
            if differs := _difference(head, json.loads(json.dumps(self.head))):
                raise UserError(
                    f"out: {self.partial} was begun with another {differs}; delete it, or name another folder"
                )
        left = 0
        for split in LABELLED:
            batches = self.batches(split)
            sizes = {f"{split}.{name}": self.counts[split] * self.row_bytes(name) for name in self.formats}
            for name, size in (sizes | {f"{split}.done": len(batches)}).items():
                with (self.partial / name).open("ab") as file:
                    file.truncate(size)
            done = self.done(split)
            left += sum(int(part[-1] - part[0]) for part, is_done in zip(batches, done, strict=True) if not is_done)
        replace_file(progress, json.dumps({"head": self.head}).encode())
        sequences = sum(self.counts.values())
        row, free = sum(map(self.row_bytes, self.formats)), shutil.disk_usage(self.partial).free
        log.warning(
            "%s: %s sequences of %d tokens make %s of labels; %s on the disk are free",
            *(self.out, f"{sequences:,}", self.data.seq_len + 1, _size(sequences * row), _size(free)),
        )
        if left * row > free:
            raise UserError(f"out: {_size(left * row)} of labels are missing and {_size(free)} are free; make room")

    @torch.no_grad()
    def label(self, split: Split, progress_bar: bool) -> None:
        """Label this process's share of the remaining batches of a split."""
        batches, saved = self.batches(split), time.monotonic()
        mine = np.flatnonzero(self.done(split) == 0)[self.rank :: self.processes]
        files = {name: (self.partial / f"{split}.{name}").open("r+b") for name in (*self.formats, "done")}
        hidden = None if progress_bar else True  # None: shown if stderr is a terminal
        total = sum(int(batches[number][-1] - batches[number][0]) for number in mine)
        bar = tqdm(total=total, unit="sequences", desc=f"labels of {split}", disable=hidden)
        written: list[int] = []
        try:
            for number in mine.tolist():
                blocks = batches[number]
                for name, values in self.read(split, blocks).items():
                    files[name].seek(int(blocks[0]) * self.row_bytes(name))
                    files[name].write(encode_label(name, values, self.formats[name][0]))
                written.append(number)
                bar.update(int(blocks[-1] - blocks[0]))
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save(files, written)
                    saved = time.monotonic()
            self.save(files, written)
        finally:
            bar.close()
            for file in files.values():
                file.close()

    def read(self, split: Split, blocks: Ints) -> dict[str, torch.Tensor]:
        """Read the blocks of a batch, as `batches` lists them, and return their labels."""
        batch = {k: v.to(self.device) for k, v in read_blocks(self.data, split, blocks[:-1], self.before).items()}
        given = {name: batch[name] for name in READ} if self.before else None
        with self.autocast:
            states, logits = self.trunk(batch["tokens"], True, given)
        assert logits is not None
        length, counts = self.data.seq_len + 1, torch.from_numpy(np.diff(blocks))
        there = (torch.arange(states.shape[1] // length) < counts[:, None]).to(self.device)  # (R, sequences of a block)
        kept = {"states": states, **vars(compress(logits, self.top_k))}
        return {name: values.unflatten(1, (-1, length))[there] for name, values in kept.items()}

    def save(self, files: Mapping[str, BinaryIO], written: list[int]) -> None:
        """Flush the written labels to the disk, then mark their batches as done."""
        marks = files["done"]
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        for number in written:
            os.pwrite(marks.fileno(), b"\1", number)
        os.fsync(marks.fileno())
        written.clear()

    def finish(self) -> dict[str, Any]:
        """Write the model's start state, embeddings and head, the tokenizer and the manifest; rename the folder."""
        nothing = torch.zeros(1, 0, dtype=torch.long, device=self.device)
        with self.autocast, torch.no_grad():
            start = self.trunk(nothing, False)[0][0, 0].to(torch.bfloat16)
        embeddings, head = self.trunk.embeddings()
        tables = {"start": start, "embeddings": embeddings, "head": head}
        tables = {name: table.detach().cpu().clone() for name, table in tables.items()}
        write_file(self.partial / TABLES, safetensors.torch.save(tables))
        if self.data.tokenizer is not None:
            write_file(self.partial / "tokenizer.json", self.data.tokenizer.encode())
        of_work = {LOCK, "progress.json", "manifest.json", *(f"{split}.done" for split in LABELLED)}
        sizes = {path.name: path.stat().st_size for path in sorted(self.partial.iterdir())}
        manifest = self.head | {"files": {name: size for name, size in sizes.items() if name not in of_work}}
        replace_file(self.partial / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")
        for name in of_work - {LOCK, "manifest.json"}:
            (self.partial / name).unlink(missing_ok=True)
        os.rename(self.partial, self.out)
        (self.out / LOCK).unlink(missing_ok=True)
        sync_folder(self.out.parent)
        return manifest


def _difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """Name the first difference in the words of the user; None if there is none. Files may have moved."""
    words = {"version": "version of retain", "trunk": "model or layer", "top_k": "teacher.top_k"}
    words |= {"context_before": "teacher.context_before", "batch_size": "--batch-size"}
    for key in [key for key in now if key != "config"] if before else []:
        then, here = (_without_places(values.get(key)) for values in (before or {}, now))
        if then != here:
            return words.get(key, key)
    return None if before else "version of retain"


def _without_places(value: Any) -> Any:
    """Drop the locations from the description of a model or of data."""
    places = ("from", "path", "prepared", "revision", "read")
    return {k: v for k, v in value.items() if k not in places} if isinstance(value, dict) else value


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
