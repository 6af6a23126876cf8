"""Datasets of the Hugging Face hub, and datasets saved by the `datasets` library, read as Arrow tables.

Only the table being read is held in memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from retain.config import DatasetDataConfig
from retain.data.batches import SPLITS, Split
from retain.data.paths import expand_path
from retain.data.rows import SHUFFLED, Piece, Rows, Source
from retain.data.scan import SPLIT_NAMES
from retain.data.tables import ROWS, make_column_error, to_images, to_texts
from retain.errors import UserError

LOCAL = "give a local copy of it with --data PATH: a parquet, JSON, CSV or Arrow file, or a folder of them"


@dataclass(frozen=True)
class Stored:
    """A split stored as Arrow files by the library, which does not open them: it would map them into memory."""

    files: list[Path]
    num_rows: int


def import_datasets() -> Any:
    """Import the `datasets` library and silence it. Raises UserError if it is not installed."""
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise UserError("data: this needs Hugging Face datasets; run pip install 'retain[hub]'") from None
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets


def open_hub(config: DatasetDataConfig) -> Source:
    """Open the dataset that data.path names. Raises a one-line UserError for whatever is wrong with it.

    Unless data.stream is set, a dataset of the hub is first downloaded into the library's own cache. So an interrupted
    download can be continued, and HF_HUB_OFFLINE=1 works afterwards. A saved dataset is read where it is.
    """
    path, revision = config.path, ""
    datasets = import_datasets()
    with one_line(path):
        if path.startswith("hf:"):
            builder, revision = _find_builder(datasets, path)
            found = builder.as_streaming_dataset() if config.stream else _download(builder)
        else:
            found = _saved(datasets.load_from_disk(str(expand_path(path))), config.stream)
    # If several names stand for one split, the first is used.
    splits: dict[Split, Any] = {
        SPLIT_NAMES[name]: split for name, split in reversed(found.items()) if name in SPLIT_NAMES
    }
    if "train" not in splits:
        if len(found) != 1:
            raise UserError(f"data.path: {path!r} has no split train, only {', '.join(found)}; rename one of them")
        splits = {"train": next(iter(found.values()))}
    missing = frozenset(SPLITS) - splits.keys()
    pieces = tuple(
        _piece(split, splits[split], missing if split == "train" else frozenset(), config)
        for split in SPLITS
        if split in splits
    )
    return Source(pieces, _revision(splits["train"]) or revision or None)


def read_frame(path: str) -> Any:
    """Read the split train of a dataset of the hub, hf:NAME[:CONFIG][@REVISION], as a frame of pandas.

    Raises UserError in one line for all that may be wrong with it.
    """
    datasets = import_datasets()
    with one_line(path):
        builder, _ = _find_builder(datasets, path)
        builder.download_and_prepare()
        if "train" not in builder.info.splits:
            raise UserError(
                f"data.path: {path!r} has no split train, only {', '.join(builder.info.splits)}; download the one that "
                "you want, and give its file"
            )
        return builder.as_dataset(split="train").to_pandas()


def _find_builder(datasets: Any, path: str) -> tuple[Any, str]:
    """Find a dataset of the hub, and the revision that its path names."""
    named, _, revision = path[3:].partition("@")
    name, _, subset = named.partition(":")
    if not name:
        raise UserError(f"data.path: {path!r} names no dataset; write hf:NAME or hf:NAME:CONFIG")
    if Path(name).is_dir():  # the library would read this folder instead
        raise UserError(
            f"data.path: {path!r}: there is a folder {name!r} here; give --data ./{name} for that, or run in "
            "another folder for the hub's"
        )
    return _frugal(datasets.load_dataset_builder(name, subset or None, revision=revision or None)), revision


def _piece(split: Split, dataset: Any, cut: frozenset[Split], config: DatasetDataConfig) -> Piece:
    def shuffled(seed: int) -> Rows:
        return read_rows(dataset.shuffle(seed=seed, buffer_size=SHUFFLED), config)

    return Piece(split, split, cut, lambda: read_rows(dataset, config), shuffled, _count(dataset))


def _count(split: Any) -> int | None:
    """Count the rows of a split, or return None if reading it is the only way to know."""
    known = getattr(split, "num_rows", None)
    if known is None and split.info.splits and split.split in split.info.splits:
        known = split.info.splits[split.split].num_examples
    return known or None


def _frugal(builder: Any) -> Any:
    """Make a builder read parquet in small batches.

    The library's own reader decodes a whole row group at once, which may be a whole file. No option prevents that.
    """
    if type(builder).__module__ == "datasets.packaged_modules.parquet.parquet":
        builder._generate_tables = partial(_parquet_tables, builder)
    return builder


def _parquet_tables(builder: Any, files: list[str], row_groups_list: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield keys and tables of up to ROWS rows from local or streamed files, as the library's method of this name."""
    import pyarrow as pa
    from datasets import builder as builders
    from datasets.utils.file_utils import xopen
    from pyarrow.parquet import ParquetFile

    key = getattr(builders, "Key", lambda *parts: parts)
    # Older versions pass a list of iterables.
    paths = [path for entry in files for path in ([entry] if isinstance(entry, str) else entry)]
    for number, file in enumerate(paths):
        groups = row_groups_list[number] if row_groups_list else None
        with xopen(file, "rb") as opened, ParquetFile(opened, buffer_size=2**20, pre_buffer=False) as parquet:
            for i, batch in enumerate(parquet.iter_batches(ROWS, row_groups=groups)):
                yield key(number, i), builder._cast_table(pa.Table.from_batches([batch]))


def _saved(saved: Any, stream: bool) -> dict[str, Any]:
    """Return the splits that the library's save_to_disk wrote."""
    splits = saved if isinstance(saved, dict) else {"train": saved}
    if stream:
        return {name: split.to_iterable_dataset() for name, split in splits.items()}
    return {
        name: Stored([Path(file["filename"]) for file in split.cache_files], split.num_rows)
        for name, split in splits.items()
    }


def _download(builder: Any) -> dict[str, Stored]:
    """Return every split of a hub dataset, downloading the dataset unless it is in the library's cache."""
    builder.download_and_prepare()
    names = sorted(os.listdir(builder.cache_dir))
    found = {}
    for split, described in builder.info.splits.items():
        pattern = rf"{re.escape(builder.dataset_name)}-{re.escape(split)}(-\d+-of-\d+)?\.arrow"
        files = [Path(builder.cache_dir, name) for name in names if re.fullmatch(pattern, name)]
        found[split] = Stored(files, described.num_examples)
    return found


def _revision(split: Any) -> str | None:
    """Return the commit of a downloaded split, by which the library names its folder."""
    commit = split.files[0].parent.name if isinstance(split, Stored) and split.files else ""
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


@contextmanager
def one_line(path: str) -> Iterator[None]:
    """Turn every error of the libraries about a source into a one-line UserError that says what to do."""
    import huggingface_hub
    import pyarrow

    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        said = " ".join(str(cause).split())[:300].rstrip(". ")
        if path.startswith("hf:"):
            if (isinstance(error, ValueError) and "BuilderConfig" in said) or "Config name is missing" in said:
                raise UserError(f"data.path: {path!r}: {said}; write hf:NAME:CONFIG") from None
            import datasets

            offline = " (HF_HUB_OFFLINE is set)" if huggingface_hub.constants.HF_HUB_OFFLINE else ""
            raise UserError(
                f"data.path: {path!r} could not be loaded; tried {huggingface_hub.constants.ENDPOINT}{offline} and the "
                f"cache {datasets.config.HF_DATASETS_CACHE}: {said}; {LOCAL}"
            ) from None
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, pyarrow.ArrowException):
            said = f"{cause.filename or path}: {cause.strerror}"
        raise UserError(f"data.path: {path!r} cannot be read: {said}; check the file, or write it again") from None


def read_rows(split: Any, config: DatasetDataConfig) -> Rows:
    """Read a split's column, up to ROWS rows at a time. Images keep their stored form."""
    datasets = import_datasets()
    images = config.name == "images"
    path, column = config.path, config.column or ("image" if images else "text")
    with one_line(path):
        if isinstance(split, Stored):
            iterator = _read_arrow(split.files)
        else:
            if split.features and isinstance(split.features.get(column), datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
            iterator = split.with_format("arrow").iter(ROWS)
    import pyarrow

    while True:
        with one_line(path):
            table = next(iterator, None)
        # Arrow keeps freed memory, more of it with every file.
        pyarrow.default_memory_pool().release_unused()
        if table is None:
            return
        if column not in table.column_names:
            raise make_column_error(column, path, table.column_names, images)
        yield (to_images if images else to_texts)(table.column(column).combine_chunks(), column, path)


def _read_arrow(files: list[Path]) -> Iterator[Any]:
    import pyarrow as pa

    for file in files:
        with pa.OSFile(str(file)) as opened:
            for batch in pa.ipc.open_stream(opened):
                yield pa.Table.from_batches([batch])
