"""Rows of one column of a CSV, TSV, JSON, JSON Lines, parquet or Arrow file, exactly as they are written.

Nothing is converted: a text that looks like a number, a date or a missing value stays text. A value that is not text
is refused with an error that names its row or line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from retain.data.files import BROKEN, TABLES, find_ending, make_read_error, open_binary, unpack
from retain.errors import UserError

ROWS = 1000
"""Rows that are read at once. Arrow files usually have batches of the same size."""


def read_column(path: Path, column: str | None, images: bool = False) -> Iterator[list[Any]]:
    """Read the values of a column, up to ROWS at a time: str, or None for a row without a value.

    `column` None is "text". With `images` it is "image", and values are as `datasets` stores them: {"bytes": …,
    "path": …}. Raises UserError naming the file, the row or line, and the problem.
    """
    column = column or ("image" if images else "text")
    with _one_line(path):
        kind = TABLES[find_ending(path.name)]
        if kind in ("parquet", "arrow"):
            for array in (_parquet if kind == "parquet" else _arrow)(path, column, images):
                yield (to_images if images else to_texts)(array, column, str(path))
            return
        if images:
            raise UserError(
                f"data.column: a {kind} file holds no images, {str(path)!r} is one; give a folder of images, or parquet"
            )
        texts = _csv(path, column) if kind == "csv" else _json(path, column)
        while some := list(islice(texts, ROWS)):
            yield some


def count_rows(path: Path) -> int | None:
    """Count the rows of a file; None if only reading it would tell."""
    if TABLES[find_ending(path.name)] != "parquet":
        return None
    with _one_line(path), _opened_parquet(path) as parquet:
        return int(parquet.metadata.num_rows)


def has_column(path: Path, column: str | None) -> bool:
    """Return whether a table has the column (None is "text"). A file that is not valid in its format has not.

    Parquet and Arrow files always count as having it, since they cannot be read as texts. Reading them raises the
    error for a missing column.
    """
    if TABLES[find_ending(path.name)] in ("parquet", "arrow"):
        return True
    try:
        next(read_column(path, column), None)
    except UserError:
        return False
    return True


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn an error of the operating system, an unpacker or pyarrow into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"data.path: {str(path)!r} holds text that is not UTF-8; write it as UTF-8") from None
    except Exception as error:
        if not (isinstance(error, BROKEN) or type(error).__module__.startswith("pyarrow")):
            raise
        if isinstance(error, OSError) and error.strerror and not type(error).__module__.startswith("pyarrow"):
            raise make_read_error(path, error) from None
        said = " ".join(str(error).split())[:300].rstrip(". ")
        raise UserError(f"data.path: {str(path)!r} cannot be read: {said}; check the file, or write it again") from None


def make_column_error(column: str, path: Path | str, columns: list[str], images: bool = False) -> UserError:
    """Make the error for a column that a table lacks."""
    option = "--image-column" if images else "--text-column"
    return UserError(
        f"data.column: {column!r} is not in {str(path)!r}, which has {', '.join(columns)}; name one of them with "
        f"{option}"
    )


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    r"""Yield the rows of a CSV or TSV file, header first, each with the number of its first line.

    Only \n or \r\n ends a line. A single \r in an unquoted text is an error, not a new row.
    """
    delimiter = "\t" if find_ending(path.name) == ".tsv" else ","
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the csv module's default is 128 KiB
    with open_binary(path) as file:
        lines = (line.decode("utf-8" if number else "utf-8-sig") for number, line in enumerate(file))
        reader, first = csv.reader(lines, delimiter=delimiter, strict=True), 1
        try:
            for row in reader:
                if row:  # a blank line is no row
                    yield first, row
                first = reader.line_num + 1
        except UnicodeDecodeError:
            where = f"line {reader.line_num + 1}"
            raise UserError(f"data.path: {str(path)!r} is not UTF-8 in {where}; convert it with iconv") from None
        except csv.Error as error:
            raise UserError(
                f"data.path: {str(path)!r} cannot be parsed from line {first} on ({error}); quote texts that hold "
                "quotes or line ends"
            ) from None


def _csv(path: Path, column: str) -> Iterator[str]:
    rows = _fields(path)
    header = next(rows, (0, []))[1]
    if column not in header:
        raise make_column_error(column, path, header)
    if header.count(column) > 1:
        raise UserError(f"data.column: {str(path)!r} has {header.count(column)} columns {column!r}; rename all but one")
    at = header.index(column)
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"data.path: line {line} of {str(path)!r} has {len(row)} fields and the header has {len(header)}; "
                "quote texts that hold the separator"
            )
        yield row[at]


def _records(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Yield the records of a JSON file, each with a name for its place.

    A file is JSON Lines if its first line is valid JSON and more lines follow. Any other file is one value: a list of
    records or texts, one record, or a format of pandas: {"column": [value, …]}, {"column": {"0": value, …}} or
    {"0": record, …}.
    """
    with open_binary(path) as file:
        first = next((line for line in file if line.strip()), b"")
        lines = _is_json(first) and any(line.strip() for line in file)
    with open_binary(path) as file:
        if lines:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _parsed(line, path, f"line {number} of ")
            return
        content = file.read()
    whole = (_parsed(content, path) if content.strip() else []) or []
    if isinstance(whole, dict):
        values = whole.get(column, whole)
        inside = list(values.values()) if isinstance(values, dict) else values
        named = column in whole or all(isinstance(record, dict) and column in record for record in inside)
        whole = inside if named and isinstance(inside, list) else [whole]
    if not isinstance(whole, list):
        raise UserError(f"data.path: {str(path)!r} holds one {type(whole).__name__}, no records; write a list of them")
    yield from ((f"row {number}", row) for number, row in enumerate(whole, 1))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(content: bytes, path: Path, place: str = "") -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.path: {place}{str(path)!r} cannot be read as JSON ({error}); write it again") from None


def _json(path: Path, column: str) -> Iterator[str | None]:
    for number, (place, record) in enumerate(_records(path, column)):
        value: Any = record
        if isinstance(record, dict):
            if number == 0 and column not in record:
                raise make_column_error(column, path, list(record))
            value = record.get(column)
        if not isinstance(value, str | None):
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
            raise UserError(
                f"data.column: {column!r} holds {shown}, not text, in {place} of {str(path)!r}; write it as a string, "
                "or name another column with --text-column"
            )
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise UserError(
                f"data.column: {column!r} holds half of a surrogate pair, which is no character, in {place} of "
                f"{str(path)!r}; take it out"
            ) from None
        yield value


def _arrow_library() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("data: parquet and Arrow files need pyarrow; run pip install 'retain[hub]'") from None
    return pyarrow


@contextmanager
def _opened_parquet(path: Path) -> Iterator[Any]:
    pa = _arrow_library()
    # One row group may be the whole file, so the file is read in small pieces and not mapped.
    with unpack(path).open("rb") as file, pa.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as opened:
        yield opened


def _parquet(path: Path, column: str, images: bool) -> Iterator[Any]:
    with _opened_parquet(path) as parquet:
        names = parquet.schema_arrow.names
        if column not in names:
            raise make_column_error(column, path, names, images)
        for batch in parquet.iter_batches(ROWS, columns=[column]):
            yield batch.column(0)


def _arrow(path: Path, column: str, images: bool) -> Iterator[Any]:
    pa = _arrow_library()
    with pa.OSFile(str(unpack(path))) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        opened = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        if column not in opened.schema.names:
            raise make_column_error(column, path, opened.schema.names, images)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else opened
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.column(batch.schema.get_field_index(column)).slice(start, ROWS)


def to_texts(array: Any, column: str, path: str) -> list[str | None]:
    """Turn an Arrow array of any text type into Python strings. Raises UserError for another type."""
    import pyarrow as pa

    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if str(kind) not in ("string", "large_string", "string_view", "null"):
        raise UserError(
            f"data.column: {column!r} of {path!r} holds {kind}, not text; write it as strings, or name another column "
            "with --text-column"
        )
    found: list[str | None] = array.to_pylist()
    return found


def to_images(array: Any, column: str, path: str) -> list[Any]:
    """Read an Arrow array of images as `datasets` stores them, or of their bytes. Raises UserError for another type."""
    import pyarrow as pa

    kind = array.type
    if str(kind) in ("binary", "large_binary", "binary_view"):
        return [None if row is None else {"bytes": row} for row in array.to_pylist()]
    if not (pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}):
        raise UserError(
            f"data.column: {column!r} of {path!r} holds {kind}, not images; name a column of images with --image-column"
        )
    found: list[Any] = array.to_pylist()
    return found
