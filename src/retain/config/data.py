"""Settings of the data: which sequences to learn. Each kind of data has a class of its own."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self

from retain.config.checks import LONGEST, Length, settings
from retain.errors import UserError

TASK_DATA = (
    *("retrieval", "copy", "stack", "keys_values", "modular"),
    *("parity", "s3", "s5", "dyck", "mqar", "selective_copy"),
)
TASK_SIZES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("parity", "s3", "s5"), ()),
    **dict.fromkeys(("retrieval", "modular"), ("symbols",)),
    **dict.fromkeys(("stack", "dyck"), ("symbols", "depth")),
    "copy": ("symbols", "copy_len", "reverse"),
    "selective_copy": ("symbols", "copy_len"),
    "keys_values": ("symbols", "pairs", "string_len"),
    "mqar": ("symbols", "pairs"),
}
"""The sizes that each memory task reads."""
EMBEDDED_DATA = ("stdlib", "digits", *TASK_DATA)
IGNORE = -100
"""The target where there is none: it never counts in a loss or a score."""
LARGEST_VOCABULARY = 2**24


@settings
class DataConfig:
    """Which sequences to learn."""

    NAMES: ClassVar[tuple[str, ...]] = ("stdlib", "digits")
    """What `name` can be in this class."""

    name: str = "stdlib"
    """stdlib, digits, a memory task (see retain tasks), text, npy, documents, images or series."""
    seq_len: Length = 64
    """T, tokens read per training sequence; targets are T + 1."""

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise UserError(f"data.name: {self.name!r} is none of {', '.join(self.NAMES)}")

    def at_length(self, length: int) -> Self:
        """The same to be scored in sequences of this length."""
        return dataclasses.replace(self, seq_len=length)


@settings
class TaskDataConfig(DataConfig):
    """A memory task. What is None is the task's own."""

    NAMES: ClassVar[tuple[str, ...]] = TASK_DATA

    name: str = "retrieval"
    min_seq_len: Length | None = None
    """Each training batch has T or T halved again and again, down to this, at random, and what there is to remember
    (copy_len, pairs) is halved with it. Evaluation is of T. None trains at T alone."""
    symbols: Annotated[int, Field(gt=0)] | None = None
    """All tasks but parity, s3, s5: number of symbols; of brackets in dyck; the modulus in modular."""
    copy_len: Length | None = None
    """copy, selective_copy: symbols to copy."""
    reverse: bool = False
    """copy: say the string from its end."""
    depth: Length | None = None
    """stack, dyck: the stack holds at most so many symbols."""
    pairs: Length | None = None
    """keys_values, mqar: number of keys, each with its value."""
    string_len: Length | None = None
    """keys_values: symbols in a key, and in a value."""
    label_noise: float = 0.0
    """Fraction of the training targets replaced by random answers; evaluation stays clean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise: {self.label_noise} must lie in 0 … 1, below 1")
        if self.min_seq_len is not None and self.min_seq_len > self.seq_len:
            raise UserError(f"data.min_seq_len: {self.min_seq_len} is above data.seq_len {self.seq_len}; lower it, too")
        for name in {size for sizes in TASK_SIZES.values() for size in sizes} - set(TASK_SIZES[self.name]):
            if value := getattr(self, name):
                raise UserError(f"data.{name}: {value} is not read by {self.name}; leave it out")

    def at_length(self, length: int) -> Self:
        """The same to be scored in sequences of this length, whatever the lengths of training batches."""
        return dataclasses.replace(self, seq_len=length, min_seq_len=None)


@settings
class FileDataConfig(DataConfig):
    """What all data from files has."""

    NAMES: ClassVar[tuple[str, ...]] = ("text", "npy", "documents", "images", "series")

    path: str = ""
    """What to read (--data PATH)."""
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Fractions of train, validation and test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError(f"data.path: {self.name} needs a file; give --data PATH")
        if min(self.split) <= 0 or not abs(sum(self.split) - 1) < 1e-6:
            raise UserError(f"data.split: {self.split} must be three positive fractions that sum to 1")


@settings
class TextDataConfig(FileDataConfig):
    """A text in UTF-8, read as bytes. Compressed files are unpacked."""

    NAMES: ClassVar[tuple[str, ...]] = ("text",)

    name: str = "text"


@settings
class ArrayDataConfig(FileDataConfig):
    """A 1-D or 2-D array of integers (.npy), or a folder of them."""

    NAMES: ClassVar[tuple[str, ...]] = ("npy",)

    name: str = "npy"
    vocab_size: Annotated[int, Field(gt=0, le=LARGEST_VOCABULARY)] | None = None
    """Tokens must lie below it. None: one more than the largest in the file."""
    ignore: int | None = None
    """Rows: the number that fills up short ones at their end, as -1. It is no token and counts in no loss."""


@settings
class DatasetDataConfig(FileDataConfig):
    """What documents and images have: a dataset of the hub, a parquet, JSON, CSV or Arrow file, or a folder.

    Of the hub it is hf:NAME[:CONFIG][@REVISION]: a commit, tag or branch, else the newest when it is first prepared.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("documents", "images")

    column: str | None = None
    """The column to read; None is text or image."""
    stream: bool = False
    """Train straight from the source; nothing is prepared on disk."""
    reset: bool = False
    """Memory starts at m_0 with each document, instead of being carried over from the one before. What fills up a
    shorter one counts in no loss."""


@settings
class DocumentDataConfig(DatasetDataConfig):
    """Texts, one after another."""

    NAMES: ClassVar[tuple[str, ...]] = ("documents",)

    name: str = "documents"
    tokenizer: str | None = None
    """A tokenizer.json of Hugging Face tokenizers; None reads UTF-8 bytes."""
    end: str | None = None
    """The tokenizer's symbol that ends a document; None adds one of its own."""
    prune_vocab: bool = False
    """Keep only those symbols of the tokenizer that the training split needs, and single characters and bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("end", "prune_vocab"):
            if self.tokenizer is None and (value := getattr(self, name)):
                raise UserError(f"data.{name}: {value} says something of data.tokenizer; give it, or leave it out")


@settings
class ImageDataConfig(DatasetDataConfig):
    """Images, pixel by pixel in raster order. They are read whole: seq_len follows from image_size, but for events."""

    NAMES: ClassVar[tuple[str, ...]] = ("images",)

    name: str = "images"
    image_size: Annotated[int, Field(gt=0, le=math.isqrt(LONGEST))] = 28
    """Height and width that images are brought to, in pixels."""
    thresholds: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()
    """Gray values (1 … 255, ascending) at which the next level begins: one makes black and white. None: 256 levels."""
    invert: bool = False
    """Black becomes white, for dark lines on paper; thin ones stay when the image is made smaller."""
    events: bool = False
    """Only pixels that are not 0, as events: the position, then the value where there are several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(later <= earlier for earlier, later in pairwise(self.thresholds)):
            raise UserError(f"data.thresholds: {self.thresholds} must ascend")
        if not self.events:
            object.__setattr__(self, "seq_len", self.image_size**2 - 1)

    @property
    def levels(self) -> int:
        """How many gray levels a pixel can have."""
        return len(self.thresholds) + 1 if self.thresholds else 256

    def at_length(self, length: int) -> Self:
        """The same, as images are read whole. Raises UserError for another length."""
        if not self.events and length != self.seq_len:
            raise UserError(
                f"data.seq_len: {length} does not fit images of {self.seq_len + 1} pixels; set it to {self.seq_len}"
            )
        return super().at_length(length)


@settings
class SeriesDataConfig(FileDataConfig):
    """Streams of numbers: a CSV, parquet or JSON table, or a .npy of floats (N, C) or (S, N, C). docs/series.md."""

    NAMES: ClassVar[tuple[str, ...]] = ("series",)

    name: str = "series"
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of the time that train, validation and test take, one after the other."""
    time: str | None = None
    """The column of times, dates or step numbers; start, where a row is a series. None: steps are only counted."""
    series: str | None = None
    """The column that names the series of a row. None: all rows are one series."""
    target: tuple[str, ...] = ()
    """The columns that are read and predicted. None: the one column of numbers that nothing else names."""
    covariates: tuple[str, ...] = ()
    """Columns of numbers or categories that are known in advance, for the step that is predicted too."""
    freq: str | None = None
    """The time of a step, as h, 15min, D, B, W, M, Q or Y; None finds it in the times."""
    head: Literal[
        "student", "gaussian", "logistics", "quantiles", "lowrank", "negative_binomial", "bernoulli", "categorical"
    ] = "student"
    """What the next values are distributed as. lowrank is one Gaussian of all values of a step; in all others they are
    independent. negative_binomial is for counts, bernoulli for 0 and 1, categorical for 0 … V - 1."""
    scale: Literal["running", "fixed"] | None = None
    """Whether values are measured by a level and scale that run along with each series, or by those of all training
    data. None: fixed where all series have one level and scale and keep them, else running."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [*self.target, *(column for column in (self.time, self.series) if column)]
        if twice := next((column for column in named if named.count(column) > 1), None):
            raise UserError(f"data.target: {twice!r} is named twice among time, series and target; name it once")
        if self.freq is not None and self.time is None:
            raise UserError(f"data.freq: {self.freq} is the step of times; name their column with data.time")
        if self.scale == "running" and self.head in ("bernoulli", "categorical"):
            raise UserError(f"data.scale: running does not go with the head {self.head}; leave it out")
        if both := next((column for column in self.covariates if column in (*self.target, self.time)), None):
            raise UserError(f"data.covariates: {both!r} is time or target; leave it out, the past of targets is read")


DATA_CLASSES = (
    *(DataConfig, TaskDataConfig, TextDataConfig, ArrayDataConfig, DocumentDataConfig, ImageDataConfig),
    SeriesDataConfig,
)
CLASS_OF: dict[str, type[DataConfig]] = {name: cls for cls in DATA_CLASSES for name in cls.NAMES}
"""The class of settings for each `name` of data."""


def data_config(name: str = "stdlib", **fields: Any) -> DataConfig:
    """The settings of the data called `name`: stdlib, digits, a memory task, text, npy, documents, images or series.

    Raises UserError for a name or a field that is none, or a wrong value.
    """
    if name not in CLASS_OF:
        raise UserError(f"data.name: {name!r} is none of {', '.join(CLASS_OF)}")
    cls = CLASS_OF[name]
    known = {f.name for f in dataclasses.fields(cls)}
    for field, value in fields.items():
        if field not in known and (readers := find_readers(field)):
            raise UserError(f"data.{field}: {value!r} is for {readers}, not {name}; leave it out")
        if field not in known:
            raise UserError(f"data.{field}: unknown field; data.{name} has {', '.join(sorted(known))}")
    return cls(name=name, **fields)


def find_readers(field: str) -> str:
    """The data that reads this setting, in words; empty if none does."""
    names = [name for name, cls in CLASS_OF.items() if field in {f.name for f in dataclasses.fields(cls)}]
    return "memory tasks" if names and names[0] in TASK_DATA else ", ".join(names)
