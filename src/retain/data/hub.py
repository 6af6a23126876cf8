"""Datasets of the Hugging Face hub or of local files, read by the `datasets` library as Arrow tables.

Nothing of a source is held in memory but the table being read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.config import DataConfig
from retain.data.batches import Split
from retain.data.paths import BUILDERS

ROWS = 1000
"""Rows of a table; also as many as Arrow's own files have in one."""
NAMES: dict[str, Split] = {
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "train": "train",
    "test": "test",
}
LOCAL = "give a local copy of it with --data PATH: a parquet, JSON, CSV or Arrow file, or a folder of them"


@dataclass(frozen=True)
class Source:
    """An opened source: a dataset of the `datasets` library per split, and the revision it has on the hub."""

    splits: dict[Split, Any]
    revision: str | None


def fingerprint(path: str) -> list[Any]:
    """What tells a local source from a changed one: each file's relative path, size and time of change.

    Of the hub: the name alone. Raises ValueError for a path that does not exist.
    """
    if path.startswith("hf:"):
        return [path]
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path: {path!r} does not exist; give a dataset file, a folder, or hf:NAME")
    if root.is_file():
        files = [root]
    else:
        files = sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return [str(root.resolve()), *([str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def library() -> Any:
    """The `datasets` library, quiet. Raises ValueError where it is not installed."""
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        raise ValueError("data: this needs Hugging Face datasets; run pip install 'retain[hub]'") from None
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(huggingface_hub.logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets


def open_source(config: DataConfig) -> Source:
    """Open the dataset that data.path names. Raises ValueError in one line for all that may be wrong with it.

    A dataset of the hub is downloaded into the library's own cache first, unless data.stream: so a download that
    was cut short goes on, and HF_HUB_OFFLINE=1 works afterwards. Local files are read where they are.
    """
    path = config.path or ""
    datasets = library()
    with one_line(path):
        if path.startswith("hf:"):
            name, _, subset = path[3:].partition(":")
            if not name:
                raise ValueError(f"data.path: {path!r} names no dataset; write hf:NAME or hf:NAME:CONFIG")
            found = datasets.load_dataset(name, subset or None, revision=config.revision, streaming=config.stream)
        else:
            found = _open_local(datasets, Path(path).expanduser())
    splits: dict[Split, Any] = {}
    for name, dataset in found.items():
        if name in NAMES and NAMES[name] not in splits:
            splits[NAMES[name]] = dataset
    if "train" not in splits:
        if len(found) != 1:
            raise ValueError(f"data.path: {path!r} has no split train, only {', '.join(found)}; rename one of them")
        splits = {"train": next(iter(found.values()))}
    return Source(splits, _revision(splits["train"]) or config.revision)


def _open_local(datasets: Any, path: Path) -> Any:
    if path.is_file():
        builder = BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise ValueError(f"data.path: {str(path)!r} is none of {', '.join(BUILDERS)}, nor a folder of them")
        options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
        return datasets.load_dataset(builder, data_files={"train": [str(path)]}, streaming=True, **options)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():  # written by save_to_disk
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, dict) else {"train": saved}
    return datasets.load_dataset(str(path), streaming=True)


def _revision(dataset: Any) -> str | None:
    """The commit that a downloaded dataset of the hub is of: the library names its folder by it."""
    for file in getattr(dataset, "cache_files", None) or []:
        if re.fullmatch("[0-9a-f]{40}", commit := Path(file["filename"]).parent.name):
            return commit
    return None


@contextmanager
def one_line(path: str) -> Iterator[None]:
    """Turn whatever the libraries raise about a source into a ValueError of one line that says what to do."""
    import huggingface_hub
    import pyarrow

    try:
        yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(("data.", "data:")):
            raise
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        said = " ".join(str(cause).split())[:300].rstrip(". ")
        if path.startswith("hf:"):
            if (isinstance(error, ValueError) and "BuilderConfig" in said) or "Config name is missing" in said:
                raise ValueError(f"data.path: {path!r}: {said}; write hf:NAME:CONFIG") from None
            import datasets

            offline = " (HF_HUB_OFFLINE is set)" if huggingface_hub.constants.HF_HUB_OFFLINE else ""
            raise ValueError(
                f"data.path: {path!r} could not be loaded; tried {huggingface_hub.constants.ENDPOINT}{offline} and the "
                f"cache {datasets.config.HF_DATASETS_CACHE}: {said}; {LOCAL}"
            ) from None
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, pyarrow.ArrowException):
            said = f"{cause.filename or path}: {cause.strerror}"
        raise ValueError(f"data.path: {path!r} cannot be read: {said}; check the file, or write it again") from None


def column_of(config: DataConfig) -> str:
    return config.column or ("image" if config.name == "images" else "text")


def tables(dataset: Any, config: DataConfig) -> Iterator[Any]:
    """A split's column as Arrow arrays of up to ROWS rows; images stay as they are stored.

    A downloaded dataset is read through plain files, not mapped, so that its pages do not count as our memory.
    """
    datasets = library()
    path, column = config.path or "", column_of(config)
    with one_line(path):
        features = dataset.features
        if features and isinstance(features.get(column), datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        files = getattr(dataset, "cache_files", None)
        iterator = _read_arrow(files) if files else dataset.with_format("arrow").iter(ROWS)
    while True:
        with one_line(path):
            table = next(iterator, None)
        if table is None:
            return
        if column not in table.column_names:
            raise ValueError(
                f"data.column: {column!r} is not in {path!r}, which has {', '.join(table.column_names)}; name one of "
                f"them with {'--image-column' if config.name == 'images' else '--text-column'}"
            )
        yield table.column(column).combine_chunks()


def _read_arrow(files: list[dict[str, str]]) -> Iterator[Any]:
    import pyarrow as pa

    for file in files:
        with pa.OSFile(file["filename"]) as opened:
            for batch in pa.ipc.open_stream(opened):
                yield pa.Table.from_batches([batch])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum.update(block)
    return checksum.hexdigest()
