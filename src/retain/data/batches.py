"""Batches, the interface of every data set, and its two commonest forms: streams and rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from retain.config import IGNORE, Channels, Symbols
from retain.data.file_array import FileArray, Stream
from retain.errors import UserError

Batch = dict[str, torch.Tensor]
"""`tokens` (B, T) int64 and `targets` (B, T + 1) int64. If sequences may be padded, also `real` (B, T) bool, False at
padding. Padding is token 0 with the target IGNORE. No loss counts it.

If steps are numbers, `tokens` (B, T, F) and `targets` (B, T + 1, 2 · C) are float32, and padding has the target NaN."""

Split = Literal["train", "validation", "test", "all"]
""""all" is the one split of a file that is only scored."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Kind = Literal["text", "image", "tokens", "numbers"]

Ints = npt.NDArray[np.int64]


@dataclass(eq=False, repr=False, kw_only=True)
class Data(ABC):
    """Sequences to learn, in three splits."""

    vocab_size: int
    seq_len: int
    """T, tokens per sequence; targets are T + 1."""
    kind: Kind = "tokens"
    info: dict[str, Any]
    """A description of the data in JSON values: name, sizes per split, checksum."""
    image_shape: tuple[int, int] | None = None
    """Height and width if the T + 1 targets are the pixels of an image in raster order."""
    chance: float | None = None
    """The accuracy of guessing if targets are answers."""
    answers: bool = False
    """Whether accuracy is a meaningful headline."""
    end: int | None = None
    """The token that ends a document, if there is one."""
    tokenizer: str | None = None
    """The tokenizer.json that made the tokens, if there is one."""
    channels: Channels | None = None
    """The channels of a step if steps are numbers. `vocab_size` then counts the parameters of a prediction."""
    bytes_per_token: dict[Split, float] | None = None
    """Mean bytes of text per token of each split, if tokens are subwords."""

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Draw B training sequences; the same arguments give the same batch."""
        return self.sequences("train", self.draw(seed, step, rank, batch_size))

    def draw(self, seed: int, step: int, rank: int, batch_size: int) -> Ints:
        """Draw the numbers (B,) of the training sequences of a batch."""
        return make_generator(seed, rank, step).integers(0, self.count("train"), batch_size)

    @abstractmethod
    def count(self, split: Split) -> int:
        """Count the sequences of a split."""

    @abstractmethod
    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the sequences of a split with these numbers (B,), in this order."""

    def bytes_in_token(self, split: Split) -> float | None:
        """Return the mean bytes of text per token of the split; None if the data is not text."""
        return 1.0 if self.kind == "text" else (self.bytes_per_token or {}).get(split)

    def windows(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield a whole split in order, or `limit` evenly spaced sequences of it. The last batch may be smaller."""
        index = evenly_spaced(self.count(split), limit)
        for start in range(0, len(index), batch_size):
            yield self.sequences(split, index[start : start + batch_size])

    def encode(self, text: str) -> list[int]:
        """Turn a prompt into subwords if there is a tokenizer, else as the function `encode`. Raises UserError."""
        if self.tokenizer is None:
            return encode(text, self.kind, self.vocab_size)
        from tokenizers import Tokenizer

        from retain.data.subwords import read_prompt

        return read_prompt(Tokenizer.from_str(self.tokenizer), text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text: by the tokenizer if there is one, else as the function `decode`."""
        if self.tokenizer is None:
            return decode(tokens, self.kind)
        from tokenizers import Tokenizer

        text: str = Tokenizer.from_str(self.tokenizer).decode([int(t) for t in tokens], skip_special_tokens=False)
        return text


def find_symbols(data: Data) -> Symbols:
    """Return the vocabulary size or the channels that a model of this data is built for.

    A user's own data need not have the attribute `channels`.
    """
    channels: Channels | None = getattr(data, "channels", None)
    return data.vocab_size if channels is None else channels


def encode(text: str, kind: Kind, vocab_size: int) -> list[int]:
    """Turn a prompt into tokens: the UTF-8 bytes of a text, else whitespace-separated integers.

    Raises UserError naming a word that is not a token.
    """
    if kind == "text":
        # A shell argument that is not UTF-8 arrives as surrogates: restore its bytes.
        return list(text.encode("utf-8", errors="surrogateescape"))
    tokens = []
    for word in text.split():
        token = int(word) if word.isascii() and word.isdigit() else -1
        if not 0 <= token < vocab_size:
            raise UserError(f"prompt: {word!r} is not among the tokens 0 … {vocab_size - 1}")
        tokens.append(token)
    return tokens


def decode(tokens: Iterable[int], kind: Kind) -> str:
    """Turn tokens into text, invalid UTF-8 into U+FFFD. Tokens of other kinds become integers separated by spaces."""
    values = [int(token) for token in tokens]
    if kind == "text":
        return bytes(values).decode("utf-8", errors="replace")
    return " ".join(map(str, values))


def make_generator(seed: int, *key: int) -> np.random.Generator:
    """Make a random generator for this seed and key, independent of the generator of every other key.

    Only the last part of the key may exceed 32 bits. The others must fill one word each, or two keys could coincide.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def evenly_spaced(count: int, limit: int | None) -> Ints:
    """Return 0 … count - 1, or `limit` of them evenly spaced."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def to_batch(windows: Ints, real: npt.NDArray[np.bool_] | None = None) -> Batch:
    """Make a batch of windows (B, T + 1) with y_t = x_t. The last token is predicted but never read.

    `real` (B, T + 1) is False at padding.
    """
    if real is None:
        return {"tokens": torch.from_numpy(windows[:, :-1].copy()), "targets": torch.from_numpy(windows)}
    read = real[:, :-1]
    return {
        "tokens": torch.from_numpy(np.where(read, windows[:, :-1], 0)),
        "targets": torch.from_numpy(np.where(real, windows, IGNORE)),
        "real": torch.from_numpy(read.copy()),
    }


def read_windows(stream: Stream, starts: Ints, length: int) -> Ints:
    """Return `length` tokens of a stream from each of the `starts` (B,), (B, length), arbitrary ones beyond its end."""
    if isinstance(stream, FileArray):
        return stream.windows(starts, length).astype(np.int64)
    places = np.minimum(starts[:, None] + np.arange(length), len(stream) - 1)
    return np.asarray(stream[places], dtype=np.int64)


@dataclass(eq=False, repr=False)
class StreamData(Data):
    """One long sequence of integers per split: 1-D arrays in memory or in a file.

    Training windows start anywhere, or at the starts of evaluation windows if `aligned`. Evaluation windows follow each
    other without overlap, so every token of the split is predicted exactly once. The last one is padded with token 0
    and target IGNORE.
    Raises UserError if a split is shorter than one window.
    """

    splits: Mapping[Split, Stream]
    _: KW_ONLY
    aligned: bool = False

    def __post_init__(self) -> None:
        for split, stream in self.splits.items():
            if len(stream) <= self.seq_len:
                where = "the file" if split == "all" else split
                raise UserError(
                    f"data.seq_len: {self.seq_len} needs {self.seq_len + 1} tokens, but {where} has only "
                    f"{len(stream)}; use more data or a shorter seq_len"
                )

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Draw B windows of the training split; the same arguments give the same batch."""
        stream = self.splits["train"]
        if self.aligned:
            starts = self.draw(seed, step, rank, batch_size) * (self.seq_len + 1)
        else:
            starts = make_generator(seed, rank, step).integers(0, len(stream) - self.seq_len, batch_size)
        return to_batch(read_windows(stream, starts, self.seq_len + 1))

    def draw(self, seed: int, step: int, rank: int, batch_size: int) -> Ints:
        """Draw the numbers (B,) of whole windows of the training split."""
        return make_generator(seed, rank, step).integers(0, len(self.splits["train"]) // (self.seq_len + 1), batch_size)

    def count(self, split: Split) -> int:
        """Count the evaluation windows of a split."""
        return -(-len(self.splits[split]) // (self.seq_len + 1))

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the evaluation windows of a split with these numbers (B,)."""
        stream, length = self.splits[split], self.seq_len + 1
        windows = read_windows(stream, index * length, length)
        return to_batch(windows, index[:, None] * length + np.arange(length) < len(stream))

    def places(self, split: Split, index: Ints) -> tuple[Stream, Ints, Ints]:
        """Return a split's stream, where the text of each sequence (B,) begins in it, and where the sequence does."""
        return self.splits[split], np.zeros_like(index), index * (self.seq_len + 1)


@dataclass(eq=False, repr=False)
class RowsData(Data):
    """One sequence of L = T + 1 integers per row of a 2-D array (N, L), split by row.

    Raises UserError if seq_len is not L - 1 or a split has no row.
    """

    rows: Stream
    _: KW_ONLY
    fractions: tuple[float, float, float] | None
    """Shares of train, validation and test. If None, all rows are in the split "all"."""
    what: str = "rows of {} tokens"
    """What errors call the rows."""
    ignore: int | None = None
    """The number that pads short rows. It is not a token."""

    def __post_init__(self) -> None:
        count, length = self.rows.shape
        if length < 2:
            raise UserError(f"data.path: {self.what.format(length)} leave nothing to predict; give at least 2 in a row")
        if self.seq_len != length - 1:
            what = self.what.format(length)
            raise UserError(f"data.seq_len: {self.seq_len} does not fit {what}; set it to {length - 1}")
        if self.fractions is None:
            self.index: dict[Split, Ints] = {"all": np.arange(count)}
        else:
            # NumPy promises the same raw Philox words in every version, but not the same Generator.permutation.
            shuffled = np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")
            parts = np.split(shuffled, find_cut_points(count, self.fractions))
            self.index = {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}
        for split, index in self.index.items():
            if not len(index):
                raise UserError(
                    f"data.split: {self.fractions} leaves {split} none of {count} rows; give it a larger share"
                )
        self.info = self.info | {"sequences": {split: len(index) for split, index in self.index.items()}}

    def count(self, split: Split) -> int:
        """Count the rows of a split."""
        return len(self.index[split])

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the rows of a split with these numbers (B,)."""
        rows = np.asarray(self.rows.take(self.index[split][index], axis=0), dtype=np.int64)
        return to_batch(rows, None if self.ignore is None else rows != self.ignore)


def find_cut_points(count: int, fractions: tuple[float, float, float]) -> list[int]:
    """Return the two places that divide `count` items into train, validation and test."""
    return [round(count * fractions[0]), round(count * (fractions[0] + fractions[1]))]
