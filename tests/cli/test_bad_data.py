"""All that may be wrong with a data set or a completion: one clear line, exit 2, nothing lost."""

import os
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import tiny
from retain.config.json import load_config, save_config

BAD = [
    ("--data corrupt.parquet", ["data.path", "corrupt.parquet", "Parquet magic bytes"]),
    ("--data cut.parquet", ["data.path", "cut.parquet", "cannot be read"]),
    ("--data empty.parquet", ["data.path", "empty.parquet"]),
    ("--data broken.jsonl", ["data.path", "broken.jsonl", "cannot be read"]),
    ("--data blank.parquet", ["data.path", "blank.parquet", "nothing to learn", "4 rows", "4 of them without a value"]),
    ("--data stories --text-column story", ["data.column", "'story'", "text", "--text-column"]),
    ("--data numbers.parquet --text-column n", ["data.column", "'n'", "int64", "not text"]),
    ("--data mnist --image-column label", ["data.column", "'label'", "int64", "not images"]),
    ("--data mnist --image-column picture", ["data.column", "'picture'", "image, label", "--image-column"]),
    ("--data mnist --text-column image", ["data.column", "'image'", "not text"]),
    ("--data notimages --image-column image", ["notimages", "not an image", "1.png"]),
    ("--data nothing", ["data.path", "nothing", "data files"]),
    ("--data nowhere.parquet", ["data.path", "nowhere.parquet", "does not exist"]),
    ("--data hf:", ["data.path", "'hf:'", "hf:NAME"]),
    ("--data hf:stories", ["data.path", "there is a folder 'stories' here", "--data ./stories"]),
    ("--data few.parquet --data.reset", ["data.split", "has no documents"]),
    ("--data few.parquet", ["data.seq_len", "shorter seq_len"]),
    ("--data stories --data.tokenizer nowhere.json", ["data.tokenizer", "nowhere.json", "No such file"]),
    ("--data stories --data.tokenizer broken.jsonl", ["data.tokenizer", "broken.jsonl", "tokenizer.json"]),
    ("--data mnist --image-column image --data.thresholds 9 9", ["data.thresholds", "(9, 9)", "ascend"]),
    ("--data mnist --image-column image --data.thresholds 256", ["data.thresholds", "256", "at most 255"]),
    ("--data stories --text-column text --image-column image", ["--text-column", "--image-column", "one of them"]),
    ("--data small.txt --text-column text", ["--text-column", "small.txt", "no dataset"]),
    ("--text-column text", ["--text-column", "--data"]),
    ("--data.stream", ["data.stream", "retrieval", "documents, images"]),
    ("--json", ["--json", "--dry-run"]),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, sources):
    root = tmp_path_factory.mktemp("pristine")
    for name in ("stories", "mnist"):
        shutil.copytree(sources / name, root / name)
    (root / "corrupt.parquet").write_bytes(b"PAR1" + b"nonsense" * 20)
    pq.write_table(pa.table({"text": [f"story {i}" * 50 for i in range(3000)]}), root / "whole.parquet")
    data = bytearray((root / "whole.parquet").read_bytes())
    data[len(data) // 5 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 5)  # the footer is still there
    (root / "cut.parquet").write_bytes(data)
    (root / "whole.parquet").unlink()
    (root / "empty.parquet").touch()
    (root / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    pq.write_table(pa.table({"text": pa.array([None] * 4, pa.string())}), root / "blank.parquet")
    pq.write_table(pa.table({"n": list(range(50))}), root / "numbers.parquet")
    pq.write_table(pa.table({"text": ["one", "two"]}), root / "few.parquet")
    (root / "notimages").mkdir()
    for i in range(3):
        (root / "notimages" / f"{i}.png").write_text("not an image")
    Image.new("L", (4, 4)).save(root / "notimages" / "0.png")
    (root / "nothing").mkdir()
    (root / "small.txt").write_text("a small text. " * 100)
    save_config(tiny(), root / "tiny.json")
    return root


@pytest.mark.parametrize(("line", "fragments"), BAD, ids=[line for line, _ in BAD])
def test_bad_data_gets_one_clear_line(line, fragments, retain, pristine, monkeypatch, tmp_path):
    monkeypatch.chdir(pristine)
    before = sorted(pristine.rglob("*"))
    code, said, complaint = retain(
        "train", "--config", "tiny.json", "--out", tmp_path / "new", "--quiet", *line.split()
    )
    complaint = complaint[complaint.index("retain: ") :]  # a progress bar may stand before it
    assert (code, said, complaint.count("\n")) == (2, "", 1), complaint
    for fragment in fragments:
        assert fragment in complaint, (fragment, complaint)
    assert sorted(pristine.rglob("*")) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("run", "line", "fragments"),
    [
        ("text_run", "--complete 3", ["complete", "text", "images", "--prompt"]),
        ("digits_run", "--complete 0", ["complete", "0", "at least 1"]),
        ("digits_run", "--complete 2 --prompt 3", ["prompt", "leave them out"]),
        ("digits_run", "--images a.png", ["images", "digits", "--complete N"]),
        ("digits_run", "--complete 2 --images a.png", ["complete, images", "one of them"]),
        ("digits_run", "--complete 2 --temperature -1", ["temperature", "-1"]),
    ],
)
def test_bad_completions_get_one_clear_line(run, line, fragments, retain, request):
    code, said, complaint = retain("generate", request.getfixturevalue(run), *line.split())
    assert (code, said, complaint.count("\n")) == (2, "", 1), complaint
    for fragment in fragments:
        assert fragment in complaint, (fragment, complaint)


@pytest.mark.parametrize("line", ["--data stories", "--data mnist --image-column image"])
def test_without_the_librarys_extra_it_says_what_to_install(line, retain, pristine, monkeypatch, tmp_path):
    monkeypatch.chdir(pristine)
    for name in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    code, said, complaint = retain(
        "train", "--config", "tiny.json", "--out", tmp_path / "new", "--quiet", *line.split()
    )
    assert (code, said) == (2, "")
    assert complaint == "retain: data: parquet and Arrow files need pyarrow; run pip install 'retain[hub]'\n"


def test_the_home_folder_may_be_written_short(retain, pristine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(pristine))
    line = ["train", "--config", pristine / "tiny.json", "--out", "new", "--quiet", "--budget", "2steps"]
    code, _, complaint = retain(*line, "--data=~/stories")
    assert code == 0, complaint
    assert load_config(tmp_path / "new/config.json").data.path == str(pristine / "stories")
