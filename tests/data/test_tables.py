"""Texts in tables arrive exactly as written, in order, whatever the format; the rest is refused by its place."""

import csv
import gzip
import io
import json
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retain.config import data_config
from retain.data import SPLITS, load_data
from retain.data.tables import read_column
from retain.errors import UserError

LOOK_LIKE_OTHERS = [
    "",
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e5",
    "2024-01-31",
    "true",
    "-",
    " x ",
    "a,b",
    "a\tb",
    '"',
    "'",
]
LOOK_LIKE_OTHERS += [
    "a\nb",
    "a\r\nb",
    "\r",
    "\\",
    "\ufeff",
    "\x00",
    "[1]",
    '{"text": 1}',
    "日本🙂",
    "\u2028",
    "\x1a",
    "#",
]
TEXTS = st.lists(st.one_of(st.sampled_from(LOOK_LIKE_OTHERS), st.text(max_size=20)), max_size=12)


def as_csv(path, texts, delimiter=",", **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, **options)
        writer.writerow(["n", "text", "more"])
        writer.writerows([i, text, "x,y"] for i, text in enumerate(texts))


def one_column(path, texts):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def by_pandas(path, texts):
    pd.DataFrame({"text": texts}, dtype=object).to_csv(path, index=False, quoting=csv.QUOTE_ALL)


def as_lines(path, texts, ascii=True):
    lines = [json.dumps({"n": 1, "text": text}, ensure_ascii=ascii) for text in texts]
    path.write_bytes("\n".join(lines).encode())


def as_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def frame(texts):
    return pd.DataFrame({"n": range(len(texts)), "text": pd.Series(texts, dtype=object)})


def arrow(path, texts, kind, writer=pa.ipc.new_stream):
    table = pa.table({"text": pa.array(texts, pa.string()).cast(kind)})
    with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as written:
        written.write_table(table, max_chunksize=5)


WAYS = {
    "csv": as_csv,
    "csv of unix": lambda p, t: as_csv(p, t, lineterminator="\n", quoting=csv.QUOTE_ALL),
    "csv all quoted": lambda p, t: as_csv(p, t, quoting=csv.QUOTE_ALL),
    "csv of one column": one_column,
    "csv by pandas": by_pandas,
    "tsv": lambda p, t: as_csv(p, t, "\t"),
    "jsonl": as_lines,
    "jsonl of utf-8": lambda p, t: as_lines(p, t, ascii=False),
    "json lines in .json": as_lines,
    "json": lambda p, t: as_json(p, [{"text": text, "n": None} for text in t]),
    "json indented": lambda p, t: p.write_text(json.dumps([{"text": text} for text in t], indent=1)),
    "json of texts": as_json,
    "json of columns": lambda p, t: as_json(p, {"n": list(range(len(t))), "text": t}),
    "json by pandas": lambda p, t: frame(t).to_json(p),
    "json by pandas, by row": lambda p, t: frame(t).to_json(p, orient="index"),
    "json by pandas, records": lambda p, t: frame(t).to_json(p, orient="records", lines=True),
    "parquet": lambda p, t: pq.write_table(pa.table({"text": pa.array(t, pa.string())}), p, row_group_size=4),
    "parquet of large strings": lambda p, t: pq.write_table(pa.table({"text": pa.array(t, pa.large_string())}), p),
    "parquet of categories": lambda p, t: pq.write_table(
        pa.table({"text": pa.array(t, pa.string()).dictionary_encode()}), p
    ),
    "arrow": lambda p, t: arrow(p, t, pa.string()),
    "arrow of views": lambda p, t: arrow(p, t, pa.string_view()),
    "arrow of large strings": lambda p, t: arrow(p, t, pa.large_string(), pa.ipc.new_file),
    "feather": lambda p, t: pyarrow.feather.write_feather(pa.table({"text": pa.array(t, pa.string())}), str(p)),
}


def ending(way):
    return next(
        f".{kind}" for kind in ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "feather") if way.startswith(kind)
    )


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=LOOK_LIKE_OTHERS)
@example(texts=[])
@given(texts=TEXTS)
def test_what_is_read_is_the_list_that_was_written(way, texts, tmp_path):
    path = tmp_path / ("json.json" if way == "json lines in .json" else f"a{ending(way)}")
    WAYS[way](path, texts)
    assert [text for rows in read_column(path, None) for text in rows] == texts
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [text for rows in read_column(packed, "text") for text in rows] == texts


@pytest.mark.parametrize("way", ["csv", "jsonl", "parquet"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_what_training_reads_is_that_list(way, texts, tmp_path):
    """As documents, each in one split, in the order of the list."""
    path = tmp_path / f"a.{way}"
    filler = [f"text number {i}" for i in range(100)]  # so that no split is empty
    WAYS[way](path, [*filler, *texts])
    config = data_config(name="documents", path=str(path), seq_len=20, reset=True, split=(0.5, 0.25, 0.25))
    data = load_data(config)
    found = {
        split: [bytes(data.document(split, i).tolist())[:-1].decode() for i in range(data.documents(split))]
        for split in SPLITS
    }
    where = {text: split for split, some in found.items() for text in some}
    wanted = {split: [text for text in [*filler, *texts] if where[text] == split] for split in SPLITS}
    assert found == wanted and sum(map(len, found.values())) == 100 + len(texts)
    whole = load_data(config, whole=True)
    assert [bytes(whole.document("all", i).tolist())[:-1].decode() for i in range(whole.documents("all"))] == [
        *filler,
        *texts,
    ]


def test_a_long_list_is_read_in_parts_and_a_null_is_none(tmp_path):
    texts = [None if i % 5 == 0 else f"{i}" for i in range(2500)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name in ("a.parquet", "a.jsonl"):
        parts = list(read_column(tmp_path / name, "text"))
        assert [len(part) for part in parts] == [1000, 1000, 500] and [text for part in parts for text in part] == texts


def test_a_very_long_field_is_read(tmp_path):
    as_csv(tmp_path / "a.csv", ["x" * 300_000])
    assert next(read_column(tmp_path / "a.csv", None)) == ["x" * 300_000]


HEAD = "n,text\n1,fine\n"
BAD = {
    "unquoted commas.csv": (HEAD + "2,one, two\n", ["line 3", "3 fields and the header has 2"]),
    "every row.csv": ("text\nso, it goes\nand, on\n", ["line 2", "2 fields and the header has 1"]),
    "short row.csv": (HEAD + "2\n", ["line 3", "1 fields"]),
    "after a long text.csv": (HEAD + '2,"a\nb"\n3,a,b\n', ["line 5", "3 fields"]),
    "open quote.csv": (HEAD + '2,"never closed\n', ["line 3", "quote"]),
    "stray quote.csv": (HEAD + '2,"a"b\n', ["line 3", "quote"]),
    "carriage return.csv": (HEAD + "2,a\rb\n", ["line 3", "quote"]),
    "no column.csv": ("n,story\n1,a\n", ["data.column", "'text'", "n, story", "--text-column"]),
    "no header.csv": ("Once upon a time\nthere was\n", ["data.column", "Once upon a time"]),
    "twice.csv": ("text,text\na,b\n", ["2 columns 'text'"]),
    "latin-1.csv": (HEAD.encode() + "2,café\n".encode("latin-1"), ["line 3", "not UTF-8"]),
    "tabs.tsv": ("text\nso\tit goes\n", ["line 2", "2 fields"]),
    "number.jsonl": ('{"text": "a"}\n{"text": 2019}\n', ["'text' holds 2019, not text", "line 2"]),
    "list.jsonl": ('{"text": "a"}\n\n{"text": ["b"]}\n', ["['b']", "line 3"]),
    "no object.jsonl": ('{"text": "a"}\n7\n', ["7", "line 2"]),
    "broken.jsonl": ('{"text": "a"}\n{"text": \n', ["line 2", "cannot be read as JSON"]),
    "surrogate.jsonl": ('{"text": "a"}\n{"text": "\\ud800"}\n', ["surrogate", "line 2"]),
    "other.jsonl": ('{"story": "a"}\n', ["data.column", "which has story"]),
    "number.json": ('[{"text": "a"}, {"text": 1.5}]', ["1.5", "row 2"]),
    "broken.json": ('[{"text": "a"}', ["cannot be read as JSON"]),
    "word.json": ("7", ["one int"]),
    "not.parquet": ("PAR1", ["cannot be read"]),
    "not.arrow": ("nothing", ["cannot be read"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_of_texts_is_refused_by_its_place(name, tmp_path):
    content, fragments = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        list(read_column(path, None))
    message = str(error.value)
    assert message.startswith(("data.path: ", "data.column: ")) and name in message and "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2]),
        pa.array([datetime(2024, 1, 1)]),
        pa.array([b"a"], pa.binary()),
        pa.array([["a"]]),
        pa.array([True]),
        pa.array([1, 2]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_of_other_types_are_named_by_their_type(values, ending, tmp_path):
    path, table = tmp_path / f"a.{ending}", pa.table({"text": values})
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match="data.column: 'text' of .* holds .*, not text"):
        list(read_column(path, None))


def test_one_number_among_three_hundred_texts_is_named_by_its_row(tmp_path):
    rows = [{"text": f"row {i}"} for i in range(300)]
    rows[217]["text"] = 12
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"'text' holds 12, not text, in row 218 of .*a\.json"):
        list(read_column(tmp_path / "a.json", None))


def test_a_defect_of_ours_is_not_dressed_up(tmp_path, monkeypatch):
    as_lines(tmp_path / "a.jsonl", ["a"])
    monkeypatch.setattr("retain.data.tables._parsed", lambda *args: {}[0])
    with pytest.raises(KeyError):
        list(read_column(tmp_path / "a.jsonl", None))


def test_utf_16_json_is_read(tmp_path):
    written = io.BytesIO()
    written.write(json.dumps([{"text": "日本"}], ensure_ascii=False).encode("utf-16"))
    (tmp_path / "a.json").write_bytes(written.getvalue())
    assert list(read_column(tmp_path / "a.json", None)) == [["日本"]]
