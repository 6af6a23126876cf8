"""Settings of the data: which sequences to learn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from retain.config.checks import LONGEST, at_most, positive, typed
from retain.errors import UserError

TASK_DATA = (
    *("retrieval", "copy", "stack", "keys_values", "modular"),
    *("parity", "s3", "s5", "dyck", "mqar", "selective_copy"),
)
EMBEDDED_DATA = ("stdlib", "digits", *TASK_DATA)
TASK_FIELDS = ("symbols", "copy_len", "reverse", "depth", "pairs", "string_len")
"""What a DataConfig sets for memory tasks: None is the task's own."""
FILE_DATA = ("text", "npy", "documents", "images")
DATASETS = ("documents", "images")
READ_BY = {
    **dict.fromkeys((*TASK_FIELDS, "min_seq_len", "label_noise"), TASK_DATA),
    "split": FILE_DATA,
    "tokenizer": ("documents",),
    "ignore": ("npy",),
    **dict.fromkeys(("column", "revision", "reset", "stream"), DATASETS),
    **dict.fromkeys(("image_size", "levels", "threshold", "invert", "events"), ("images",)),
}
"""Fields of a DataConfig that some data alone reads. For other data they must stay as they are."""
IGNORE = -100
"""The target where there is none: it never counts in a loss or a score."""
LARGEST_VOCABULARY = 2**24


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sequences to learn."""

    name: str = "stdlib"
    """stdlib, digits, a memory task (see retain tasks), or text / npy / documents / images with a path."""
    path: str | None = None
    """A text (UTF-8, read as bytes) or a 1-D or 2-D integer .npy; for documents and images hf:NAME[:CONFIG], a
    parquet, JSON, CSV or Arrow file, or a folder of texts, of such files or of images. Compressed files are
    unpacked."""
    seq_len: int = 64
    """T, tokens read per training sequence; targets are T + 1."""
    min_seq_len: int | None = None
    """Memory tasks: each training batch has T or T halved again and again, down to this, at random, and what there is
    to remember (copy_len, pairs) is halved with it. Evaluation is of T. None trains at T alone."""
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Fractions of train, validation and test, for a file."""
    vocab_size: int | None = None
    """For a .npy: tokens must lie below it. None: one more than the largest in the file."""
    ignore: int | None = None
    """For a .npy of rows: the number that fills up short rows at their end, as -1. It is no token and counts in no
    loss."""
    symbols: int | None = None
    """Memory tasks but parity, s3, s5: number of symbols; of brackets in dyck; the modulus in modular."""
    copy_len: int | None = None
    """copy, selective_copy: symbols to copy."""
    reverse: bool = False
    """copy: say the string from its end."""
    depth: int | None = None
    """stack, dyck: the stack holds at most so many symbols."""
    pairs: int | None = None
    """keys_values, mqar: number of keys, each with its value."""
    string_len: int | None = None
    """keys_values: symbols in a key, and in a value."""
    label_noise: float = 0.0
    """Memory tasks: fraction of the training targets replaced by random answers; evaluation stays clean."""
    column: str | None = None
    """documents, images: the column to read; None is text or image."""
    revision: str | None = None
    """hf: only: a commit, tag or branch; None is the newest when it is first prepared."""
    tokenizer: str | None = None
    """documents: a tokenizer.json of Hugging Face tokenizers; None reads UTF-8 bytes."""
    reset: bool = False
    """documents: memory starts at m_0 with each document, instead of being carried over from the one before.
    What fills up a shorter one counts in no loss."""
    stream: bool = False
    """documents, images: train straight from the source, nothing is prepared on disk."""
    image_size: int = 28
    """images: height and width that they are brought to, in pixels."""
    levels: int = 256
    """images: gray levels that pixels are quantised to."""
    threshold: int | None = None
    """images: pixels of at least this much (1 … 255) become 1, all others 0, instead of levels."""
    invert: bool = False
    """images: black becomes white, for dark lines on paper; thin ones stay when the image is made smaller."""
    events: bool = False
    """images: only pixels that are not 0, as events: the position, then the value where there are several."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "seq_len", "min_seq_len", "vocab_size", "image_size")
        positive(self, "symbols", "copy_len", "depth", "pairs", "string_len")
        at_most(LONGEST, self, "seq_len", "min_seq_len", "copy_len", "depth", "pairs", "string_len")
        at_most(LARGEST_VOCABULARY, self, "vocab_size")
        at_most(math.isqrt(LONGEST), self, "image_size")
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise: {self.label_noise} must lie in 0 … 1, below 1")
        if self.name not in (*EMBEDDED_DATA, *FILE_DATA):
            raise UserError(f"data.name: {self.name!r} is none of {', '.join((*EMBEDDED_DATA, *FILE_DATA))}")
        if self.name in FILE_DATA and not self.path:
            raise UserError(f"data.path: {self.name} needs a file; give --data PATH")
        if not 2 <= self.levels <= 256:
            raise UserError(f"data.levels: {self.levels} must lie in 2 … 256")
        if self.threshold is not None and not 1 <= self.threshold <= 255:
            raise UserError(f"data.threshold: {self.threshold} must lie in 1 … 255")
        if len(self.split) != 3 or min(self.split) <= 0 or not abs(sum(self.split) - 1) < 1e-6:
            raise UserError(f"data.split: {self.split} must be three positive fractions that sum to 1")
        # Sizes of tasks stand in older run folders whatever the data is; the command line asks of them, too.
        self.check_read([name for name in READ_BY if name not in TASK_FIELDS])
        if self.revision is not None and not str(self.path).startswith("hf:"):
            raise UserError(f"data.revision: {self.revision!r} is for a dataset of the hub, hf:NAME; leave it out")

    def at_length(self, length: int) -> DataConfig:
        """The same to be scored in sequences of this length. Those of training batches are no matter then."""
        return replace(self, seq_len=length, min_seq_len=None)

    def check_read(self, names: Iterable[str] = READ_BY) -> None:
        """Raises UserError where one of these fields is set and this data does not read it."""
        for name, value in self.unread(self.name).items():
            if name in names:
                readers = "memory tasks" if READ_BY[name] is TASK_DATA else ", ".join(READ_BY[name])
                raise UserError(f"data.{name}: {value!r} is for {readers}, not {self.name}; leave it out")

    def unread(self, data: str) -> dict[str, Any]:
        """The fields that are set here and that data of this name does not read, with their values."""
        set_here = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: value for name, value in set_here.items() if data not in READ_BY.get(name, (data,))}
