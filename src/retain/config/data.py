"""Settings of the data. Each kind of data has its own class."""

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
"""The size settings that each memory task reads."""
EMBEDDED_DATA = ("stdlib", "digits", *TASK_DATA)
IGNORE = -100
"""Target of a position that has none. It never counts in a loss or a score."""
LARGEST_VOCABULARY = 2**24


@settings
class DataConfig:
    """The data to learn from."""

    NAMES: ClassVar[tuple[str, ...]] = ("stdlib", "digits")
    """Values of `name` that this class is for."""

    name: str = "stdlib"
    """stdlib, digits, a memory task (see retain tasks), text, npy, documents, images or series."""
    seq_len: Length = 64
    """T, tokens read per training sequence. There are T + 1 targets."""

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise UserError(f"data.name: {self.name!r} is none of {', '.join(self.NAMES)}")

    def at_length(self, length: int) -> Self:
        """Return the same data in sequences of this length, for scoring."""
        return dataclasses.replace(self, seq_len=length)


@settings
class TaskDataConfig(DataConfig):
    """A memory task. None is the task's default."""

    NAMES: ClassVar[tuple[str, ...]] = TASK_DATA

    name: str = "retrieval"
    min_seq_len: Length | None = None
    """Shortest training length. The length of each training batch is drawn at random from T, T/2, T/4 … down to this;
    copy_len and pairs are halved with it. Evaluation is always at length T. None trains at T alone."""
    symbols: Annotated[int, Field(gt=0)] | None = None
    """All tasks but parity, s3, s5: number of symbols (dyck: of brackets; modular: the modulus)."""
    copy_len: Length | None = None
    """copy, selective_copy: number of symbols to copy."""
    reverse: bool = False
    """copy: the answer is the string in reverse."""
    depth: Length | None = None
    """stack, dyck: largest number of symbols on the stack."""
    pairs: Length | None = None
    """keys_values, mqar: number of keys. Each key has one value."""
    string_len: Length | None = None
    """keys_values: number of symbols in each key and each value."""
    label_noise: float = 0.0
    """Fraction of the training targets replaced by random answers. Evaluation has no noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise: {self.label_noise} must be at least 0 and below 1")
        if self.min_seq_len is not None and self.min_seq_len > self.seq_len:
            raise UserError(f"data.min_seq_len: {self.min_seq_len} is above data.seq_len {self.seq_len}; lower it, too")
        for name in {size for sizes in TASK_SIZES.values() for size in sizes} - set(TASK_SIZES[self.name]):
            if value := getattr(self, name):
                raise UserError(f"data.{name}: {value} is not read by {self.name}; leave it out")

    def at_length(self, length: int) -> Self:
        """Return the same task at this length alone, for scoring."""
        return dataclasses.replace(self, seq_len=length, min_seq_len=None)


@settings
class FileDataConfig(DataConfig):
    """Settings that all data from files share."""

    NAMES: ClassVar[tuple[str, ...]] = ("text", "npy", "documents", "images", "series")

    path: str = ""
    """The file, folder or dataset to read (--data PATH)."""
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
    """A UTF-8 text, read as bytes. Compressed files are unpacked."""

    NAMES: ClassVar[tuple[str, ...]] = ("text",)

    name: str = "text"


@settings
class ArrayDataConfig(FileDataConfig):
    """A 1-D or 2-D array of integers (.npy), or a folder of them."""

    NAMES: ClassVar[tuple[str, ...]] = ("npy",)

    name: str = "npy"
    vocab_size: Annotated[int, Field(gt=0, le=LARGEST_VOCABULARY)] | None = None
    """Vocabulary size: every token must be below it. None: one more than the largest token in the file."""
    ignore: int | None = None
    """2-D arrays: the number that pads short rows at the end, e.g. -1. It is not a token and counts in no loss."""


@settings
class DatasetDataConfig(FileDataConfig):
    """Documents or images from a dataset of the hub, a parquet, JSON, CSV or Arrow file, or a folder.

    A dataset of the hub is hf:NAME[:CONFIG][@REVISION]. The revision is a commit, tag or branch. Without one it is the
    newest at the time when the data is first prepared.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("documents", "images")

    column: str | None = None
    """The column to read. None: text or image."""
    stream: bool = False
    """Read the source while training, without preparing data on disk first."""
    reset: bool = False
    """Reset memory to m_0 at each document instead of carrying it over from the document before. The padding of a
    short document counts in no loss."""


@settings
class DocumentDataConfig(DatasetDataConfig):
    """Text documents, one after another."""

    NAMES: ClassVar[tuple[str, ...]] = ("documents",)

    name: str = "documents"
    tokenizer: str | None = None
    """A tokenizer.json of Hugging Face tokenizers. None reads UTF-8 bytes."""
    end: str | None = None
    """The token of the tokenizer that ends a document. None adds a new one."""
    prune_vocab: bool = False
    """Keep only those tokens of the tokenizer that the training split needs, and single characters and bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("end", "prune_vocab"):
            if self.tokenizer is None and (value := getattr(self, name)):
                raise UserError(f"data.{name}: {value} needs data.tokenizer; give a tokenizer, or leave this out")


@settings
class ImageDataConfig(DatasetDataConfig):
    """Images, pixel by pixel in raster order. They are read whole, so image_size sets seq_len, except with events."""

    NAMES: ClassVar[tuple[str, ...]] = ("images",)

    name: str = "images"
    image_size: Annotated[int, Field(gt=0, le=math.isqrt(LONGEST))] = 28
    """Height and width in pixels to which images are resized."""
    thresholds: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()
    """Gray values (1 … 255, ascending) at which the next level begins. One value makes black and white. The option
    without a value: 256 levels."""
    invert: bool = False
    """Swap black and white, for dark lines on paper. Thin lines survive when the image is made smaller."""
    events: bool = False
    """Read only the pixels that are not 0, as events: the position, then the value if there are several values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(later <= earlier for earlier, later in pairwise(self.thresholds)):
            raise UserError(f"data.thresholds: {self.thresholds} must ascend")
        if not self.events:
            object.__setattr__(self, "seq_len", self.image_size**2 - 1)

    @property
    def levels(self) -> int:
        """Number of gray levels of a pixel."""
        return len(self.thresholds) + 1 if self.thresholds else 256

    def at_length(self, length: int) -> Self:
        """Return the same data. Only events can have another length. Raises UserError for one of whole images."""
        if not self.events and length != self.seq_len:
            raise UserError(
                f"data.seq_len: {length} does not fit images of {self.seq_len + 1} pixels; set it to {self.seq_len}"
            )
        return super().at_length(length)


@settings
class SeriesDataConfig(FileDataConfig):
    """Series of numbers: a CSV, parquet or JSON table, or a .npy of floats (N, C) or (S, N, C). See docs/series.md."""

    NAMES: ClassVar[tuple[str, ...]] = ("series",)

    name: str = "series"
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of the time span for train, validation and test, in this order."""
    time: str | None = None
    """The column of times, dates or step numbers; `start` if each row is a whole series. None: steps are only
    counted."""
    series: str | None = None
    """The column that names the series of a row. None: all rows are one series."""
    target: tuple[str, ...] = ()
    """The columns to read and predict. If none is named: the only numeric column that no other setting names."""
    covariates: tuple[str, ...] = ()
    """Columns of numbers or categories that are known in advance, also for the step that is predicted."""
    freq: str | None = None
    """Time between steps: h, 15min, D, B, W, M, Q or Y. None infers it from the times."""
    head: Literal[
        "student", "gaussian", "logistics", "quantiles", "lowrank", "negative_binomial", "bernoulli", "categorical"
    ] = "student"
    """Distribution of the next values. lowrank is one Gaussian over all values of a step. In all others the values are
    independent. negative_binomial is for counts, bernoulli for 0 and 1, categorical for 0 … V - 1."""
    scale: Literal["running", "fixed"] | None = None
    """How values are normalised. running: by a running level and scale of each series. fixed: by one level and scale of
    all training data. None: fixed if all series share one level and scale over time, otherwise running."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [*self.target, *(column for column in (self.time, self.series) if column)]
        if twice := next((column for column in named if named.count(column) > 1), None):
            raise UserError(f"data.target: {twice!r} is named twice among time, series and target; name it once")
        if self.freq is not None and self.time is None:
            raise UserError(f"data.freq: {self.freq} needs a column of times; name it with data.time")
        if self.scale == "running" and self.head in ("bernoulli", "categorical"):
            raise UserError(f"data.scale: running does not go with the head {self.head}; leave it out")
        if both := next((column for column in self.covariates if column in (*self.target, self.time)), None):
            raise UserError(f"data.covariates: {both!r} is also time or target; leave it out (past targets are read)")


DATA_CLASSES = (
    *(DataConfig, TaskDataConfig, TextDataConfig, ArrayDataConfig, DocumentDataConfig, ImageDataConfig),
    SeriesDataConfig,
)
CLASS_OF: dict[str, type[DataConfig]] = {name: cls for cls in DATA_CLASSES for name in cls.NAMES}
"""The class of settings for each `name` of data."""


def data_config(name: str = "stdlib", **fields: Any) -> DataConfig:
    """Build the settings of the data `name`: stdlib, digits, a memory task, text, npy, documents, images or series.

    Raises UserError for an unknown name or field, or a wrong value.
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
    """Return the kinds of data that read this setting, in words; empty if none does."""
    names = [name for name, cls in CLASS_OF.items() if field in {f.name for f in dataclasses.fields(cls)}]
    return "memory tasks" if names and names[0] in TASK_DATA else ", ".join(names)
