"""Batches and the interface of every data set; streams and rows, which most data sets are."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from retain.config import IGNORE
from retain.data.file_array import FileArray
from retain.errors import UserError

Batch = dict[str, torch.Tensor]
"""`tokens` (B, T) int64 and `targets` (B, T + 1) int64. Where sequences may be filled up also `real` (B, T) bool: which
tokens are not padding. What pads is token 0 with the target IGNORE, and counts in no loss."""

Split = Literal["train", "validation", "test", "all"]
"""all: of a file that is not cut, for it is only scored."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Kind = Literal["text", "image", "tokens"]

Ints = npt.NDArray[np.int64]
Stream = npt.NDArray[Any] | FileArray


class Data(ABC):
    """Sequences to learn, in three splits.

    `chance` is the accuracy of guessing where targets are answers, `answers` whether accuracy is a meaningful
    headline, `info` what the data is (plain JSON values: name, sizes per split, checksum).
    """

    vocab_size: int
    seq_len: int
    """T, tokens per sequence; targets are T + 1."""
    kind: Kind = "tokens"
    image_shape: tuple[int, int] | None = None
    """Height and width where the T + 1 targets are the pixels of an image in raster order."""
    chance: float | None = None
    answers: bool = False
    end: int | None = None
    """The token that ends a document, where there is one."""
    tokenizer: str | None = None
    """The tokenizer.json that made the tokens, where there is one."""
    bytes_per_token: dict[Split, float] | None = None
    """Bytes of text that a token stands for, in the mean over each split, where tokens are subwords."""
    info: dict[str, Any]

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """B random training sequences; the same arguments give the same batch."""
        return self.sequences("train", generator(seed, rank, step).integers(0, self.count("train"), batch_size))

    @abstractmethod
    def count(self, split: Split) -> int:
        """Number of sequences in a split."""

    @abstractmethod
    def sequences(self, split: Split, index: Ints) -> Batch:
        """The sequences of a split with these numbers, in this order."""

    def windows(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """A whole split in order, the last batch smaller; or `limit` of its sequences, evenly spaced over it."""
        index = evenly_spaced(self.count(split), limit)
        for start in range(0, len(index), batch_size):
            yield self.sequences(split, index[start : start + batch_size])

    def encode(self, text: str) -> list[int]:
        """A prompt as tokens, those of a tokenizer its subwords. Raises UserError; see `encode`."""
        if self.tokenizer is None:
            return encode(text, self.kind, self.vocab_size)
        from tokenizers import Tokenizer

        from retain.data.subwords import read_prompt

        return read_prompt(Tokenizer.from_str(self.tokenizer), text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens as text; see `decode`. Those of a tokenizer are its subwords."""
        if self.tokenizer is None:
            return decode(tokens, self.kind)
        from tokenizers import Tokenizer

        text: str = Tokenizer.from_str(self.tokenizer).decode([int(t) for t in tokens], skip_special_tokens=False)
        return text


def encode(text: str, kind: Kind, vocab_size: int) -> list[int]:
    """A prompt as tokens: the UTF-8 bytes of a text, else whitespace-separated integers.

    Raises UserError naming what is not among the tokens.
    """
    if kind == "text":
        # A shell argument that is not UTF-8 arrives as surrogates; give its bytes back unchanged.
        return list(text.encode("utf-8", errors="surrogateescape"))
    tokens = []
    for word in text.split():
        token = int(word) if word.isascii() and word.isdigit() else -1
        if not 0 <= token < vocab_size:
            raise UserError(f"prompt: {word!r} is not among the tokens 0 … {vocab_size - 1}")
        tokens.append(token)
    return tokens


def decode(tokens: Iterable[int], kind: Kind) -> str:
    """Tokens as text; bytes that are not UTF-8 become U+FFFD. Other kinds: integers with spaces between."""
    values = [int(token) for token in tokens]
    if kind == "text":
        return bytes(values).decode("utf-8", errors="replace")
    return " ".join(map(str, values))


def unasked(tokens: Ints) -> Ints:
    """Targets (B, T + 1) beside tokens (B, T), of which none is asked yet."""
    return np.full((len(tokens), tokens.shape[1] + 1), IGNORE)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers for this seed and key, independent of those of every other.

    Only the last part of the key may exceed 32 bits: the others must fill one word each for keys to stay apart.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def evenly_spaced(count: int, limit: int | None) -> Ints:
    """0 … count - 1, or `limit` of them evenly spaced."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def release(array: npt.NDArray[Any]) -> None:
    """Let go of the pages of a memory-mapped array that were read; the system keeps them, but not as our memory."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def to_batch(windows: Ints, real: npt.NDArray[np.bool_] | None = None) -> Batch:
    """Next-token batch of windows (B, T + 1): y_t = x_t, and the last is only predicted, never read.

    `real` (B, T + 1) is False where a window is padding.
    """
    if real is None:
        return {"tokens": torch.from_numpy(windows[:, :-1].copy()), "targets": torch.from_numpy(windows)}
    read = real[:, :-1]
    return {
        "tokens": torch.from_numpy(np.where(read, windows[:, :-1], 0)),
        "targets": torch.from_numpy(np.where(real, windows, IGNORE)),
        "real": torch.from_numpy(read.copy()),
    }


def windows_of(stream: Stream, starts: Ints, length: int) -> Ints:
    """`length` tokens of a stream from each of the `starts` (B,) on, (B, length); beyond its end any token."""
    if isinstance(stream, FileArray):
        return stream.windows(starts, length).astype(np.int64)
    places = np.minimum(starts[:, None] + np.arange(length), len(stream) - 1)
    found = np.asarray(stream[places], dtype=np.int64)
    release(stream)
    return found


class StreamData(Data):
    """One long sequence of integers per split: 1-D arrays in memory or in a file.

    Training windows start anywhere. Evaluation windows follow each other without overlap, so that every token of
    the split is predicted exactly once; the last is padded with token 0 and target IGNORE.
    Raises UserError if a split is shorter than one window.
    """

    def __init__(
        self, splits: Mapping[Split, Stream], *, vocab_size: int, seq_len: int, kind: Kind, info: dict[str, Any]
    ) -> None:
        for split, stream in splits.items():
            if len(stream) <= seq_len:
                where = "the file" if split == "all" else split
                raise UserError(
                    f"data.seq_len: {seq_len} needs {seq_len + 1} tokens, but {where} has only {len(stream)}; "
                    "use more data or a shorter seq_len"
                )
        self.splits = splits
        self.vocab_size, self.seq_len, self.kind, self.info = vocab_size, seq_len, kind, info

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        stream = self.splits["train"]
        offsets = generator(seed, rank, step).integers(0, len(stream) - self.seq_len, (batch_size, 1))
        return to_batch(windows_of(stream, offsets[:, 0], self.seq_len + 1))

    def count(self, split: Split) -> int:
        return -(-len(self.splits[split]) // (self.seq_len + 1))

    def sequences(self, split: Split, index: Ints) -> Batch:
        stream, length = self.splits[split], self.seq_len + 1
        windows = windows_of(stream, index * length, length)
        return to_batch(windows, index[:, None] * length + np.arange(length) < len(stream))


class RowsData(Data):
    """One sequence of L integers per row of a 2-D array (N, L), split by row (fractions None: all of them); T = L - 1.

    `ignore` is the number that fills up short rows and is no token. `what` names a row in errors.
    Raises UserError if seq_len is not L - 1 or a split is left without a row.
    """

    def __init__(
        self,
        rows: Stream,
        *,
        fractions: tuple[float, float, float] | None,
        vocab_size: int,
        seq_len: int,
        kind: Kind,
        info: dict[str, Any],
        image_shape: tuple[int, int] | None = None,
        what: str = "rows of {} tokens",
        ignore: int | None = None,
    ) -> None:
        count, length = rows.shape
        if length < 2:
            raise UserError(f"data.path: {what.format(length)} leave nothing to predict; give at least 2 in a row")
        if seq_len != length - 1:
            raise UserError(f"data.seq_len: {seq_len} does not fit {what.format(length)}; set it to {length - 1}")
        self.rows, self.ignore = rows, ignore
        self.vocab_size, self.seq_len, self.kind, self.image_shape = vocab_size, seq_len, kind, image_shape
        self.index: dict[Split, Ints] = {}
        if fractions is None:
            self.index["all"] = np.arange(count)
            self.info = info | {"sequences": {"all": count}}
            return
        # Raw Philox words, unlike Generator.permutation, are promised to be the same in every NumPy.
        shuffled = np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable")
        parts = np.split(shuffled, cuts(count, fractions))
        for split, part in zip(SPLITS, parts, strict=True):
            if not len(part):
                raise UserError(f"data.split: {fractions} leaves {split} none of {count} rows; give it a larger part")
            self.index[split] = np.sort(part)
        self.info = info | {"sequences": {split: len(self.index[split]) for split in SPLITS}}

    def count(self, split: Split) -> int:
        return len(self.index[split])

    def sequences(self, split: Split, index: Ints) -> Batch:
        chosen = self.index[split][index]
        if isinstance(self.rows, FileArray):
            rows = self.rows.rows(chosen).astype(np.int64)
        else:
            rows = np.asarray(self.rows[chosen], dtype=np.int64)
            release(self.rows)
        return to_batch(rows, None if self.ignore is None else rows != self.ignore)


def cuts(count: int, fractions: tuple[float, float, float]) -> list[int]:
    """The two places where `count` things are cut into train, validation and test."""
    return [round(count * fractions[0]), round(count * (fractions[0] + fractions[1]))]
