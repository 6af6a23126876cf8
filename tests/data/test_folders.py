"""A folder is read whole: every file once, a file is a document, and what is not read is named with the reason."""

import bz2
import gzip
import json
import lzma
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hubdata import SMALL
from retain.config import IGNORE, data_config
from retain.data import SPLITS, load_data
from retain.data.paths import with_path
from retain.data.scan import share_out, split_by_names, told
from retain.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A folder for data alone: tmp_path holds the cache, too."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def loaded(path, whole=False, **fields):
    config = with_path(data_config(name="stdlib", seq_len=8), str(path), None, None)
    reset = {"reset": True} if config.name == "documents" else {}
    return load_data(data_config(**vars(config) | reset | fields), whole)


def documents(data):
    return {
        split: [bytes(data.document(split, i).tolist())[:-1].decode() for i in range(data.documents(split))]
        for split in data.ends
    }


def everything(data):
    return sorted(text for some in documents(data).values() for text in some)


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACK = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zst}
TEXT_NAMES = [*(f"{i}.txt" for i in range(8)), "a.md", "b.py", "c.log", "d.rst", "e.html", "LICENSE", "f", "g.TXT"]


@pytest.fixture
def mixed(tmp_path):
    """Twenty files that are texts and nine other things."""
    root = tmp_path / "mixed é x"
    (root / "sub" / "deep").mkdir(parents=True)
    texts = {name: f"This is {name}.\n\nIts second part.\r\n  é 日本\n" for name in TEXT_NAMES}
    for number, (name, text) in enumerate(texts.items()):
        folder = root / ("", "sub", "sub/deep")[number % 3]
        (folder / name).write_bytes(text.encode())
    for ending, pack in PACK.items():
        texts[f"packed.txt.{ending}"] = f"unpacked from {ending}\n"
        (root / f"packed.txt.{ending}").write_bytes(pack(texts[f"packed.txt.{ending}"].encode()))
    (root / "notes.pdf").write_bytes(b"%PDF-1.7 \xe2\xe3")
    (root / "binary.dat").write_bytes(b"a\0b")
    (root / "old.txt").write_bytes("café noir".encode("latin-1"))
    (root / "windows.txt").write_bytes("hello".encode("utf-16"))
    (root / "empty.txt").touch()
    (root / "photo.png").write_bytes(b"\x89PNG")
    (root / "tokens.npy").write_bytes(b"\x93NUMPY")
    (root / ".DS_Store").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("not read")
    (root / "all.zip").write_bytes(b"PK\x03\x04")
    (root / "gone.txt").symlink_to(root / "nowhere")
    (root / "again").symlink_to(root, target_is_directory=True)
    return root, texts


SKIPPED = {
    "notes.pdf": "a PDF",
    "binary.dat": "not text",
    "old.txt": "not UTF-8 at byte 3",
    "windows.txt": "UTF-16",
    "empty.txt": "empty",
    "photo.png": "an image",
    "tokens.npy": "an array",
    ".DS_Store": "hidden",
    ".git": "hidden",
    "all.zip": "an archive",
    "gone.txt": "a broken link",
    "again": "a link to a folder",
}


def test_every_file_is_read_once_and_the_rest_is_named(mixed):
    root, texts = mixed
    data = loaded(root)
    assert everything(data) == sorted(texts.values())
    assert all(documents(data).values()), "no split is empty"
    read = data.info["read"]
    assert read["files"] == read["documents"] == 20 and not read["split_by_name"]
    assert read["skipped"].keys() == SKIPPED.keys()
    for name, why in SKIPPED.items():
        assert why in read["skipped"][name]
    assert told(read).startswith("read 20 files, 20 documents; skipped: ") and "notes.pdf (a PDF" in told(read)
    assert documents(loaded(root, whole=True)).keys() == {"all"}
    assert everything(loaded(root, whole=True)) == sorted(texts.values())


def test_training_says_what_it_read(mixed, retain, tmp_path, caplog):
    root, _ = mixed
    for name in os.listdir(root):  # what a run this small can learn from
        if name.endswith(".txt") and (root / name).is_file() and name not in SKIPPED:
            with (root / name).open("a") as file:
                file.write("and more of it " * 20)
    out = tmp_path / "run"
    code, _, complaint = retain("train", "text", "--data", root, "--out", out, "--data.seq-len", "8", *SMALL)
    assert code == 0, complaint
    assert "read 20 files, 20 documents; skipped: " in caplog.text
    assert json.loads((out / "data.json").read_text())["read"]["skipped"].keys() == SKIPPED.keys()
    code, _, complaint = retain("eval", out, "--data", root, "--split", "all", "--json")
    assert code == 0 and "most of" in complaint


NAMES = st.lists(st.text("abcdé .-_", min_size=1, max_size=8), min_size=3, max_size=12, unique_by=str.casefold)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, content=st.lists(st.text(min_size=1, max_size=30), min_size=12, max_size=12))
def test_any_folder_of_texts_arrives_whole(names, content, tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    wanted, hidden = [], []
    for name, text in zip(names, content, strict=False):
        if name in (".", ".."):
            continue
        (root / name).write_bytes(text.encode())
        if name.startswith("."):
            hidden.append(name)
        elif "\0" not in text:
            wanted.append(text)
    if len(wanted) < 3:
        return
    data = loaded(root, whole=True)
    assert everything(data) == sorted(wanted)
    assert set(hidden) <= data.info["read"]["skipped"].keys()
    assert data.info["read"]["files"] + len(data.info["read"]["skipped"]) == len(list(root.iterdir()))


# Splits


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a.txt", "test/b.txt"], ["train", "test"]),
        (["train.jsonl", "validation.jsonl"], ["train", "validation"]),
        (["data/train-00000-of-00002.parquet", "data/valid-0.parquet"], ["train", "validation"]),
        (["my_train.csv.gz", "my_dev.csv.gz"], ["train", "validation"]),
        (["TRAIN/x", "Test/x"], ["train", "test"]),
        (["train_one.txt", *(f"{i}.txt" for i in range(19))], None),
        (["test_a.py", "test_b.py"], None),
        (["train/test.txt", "train/a.txt"], ["train", "train"]),
        (["trainer.txt", "testament.txt"], None),
        (["train_test.txt", "train.txt"], None),
    ],
)
def test_names_are_splits_only_where_all_are(names, splits):
    assert split_by_names(names) == splits


def test_one_file_that_is_named_train_hides_no_other(folder):
    for name in ["train_journey.txt", *(f"{i}.txt" for i in range(19))]:
        (folder / name).write_text(f"text of {name}")
    data = loaded(folder)
    assert len(everything(data)) == 20 and not data.info["read"]["split_by_name"]


def test_split_folders_are_used_and_said(folder):
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        for i in range(3):
            (folder / split / f"{i}.md").write_text(f"{split} {i}")
    data = loaded(folder)
    assert documents(data) == {split: [f"{split} {i}" for i in range(3)] for split in SPLITS}
    assert "split by their names" in told(data.info["read"])


def test_a_split_that_is_not_there_is_taken_from_train(folder):
    for split, count in (("train", 10), ("test", 2)):
        (folder / split).mkdir()
        for i in range(count):
            (folder / split / f"{i}.txt").write_text(f"{split} {i}")
    found = documents(loaded(folder))
    assert found["test"] == ["test 0", "test 1"] and len(found["validation"]) == 1 and len(found["train"]) == 9


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.integers(1, 10**6), min_size=3, max_size=40))
def test_files_are_shared_out_by_size(weights):
    files = [(f"{i:04}", weight) for i, weight in enumerate(weights)]
    splits = share_out(files, {"validation": 0.1, "test": 0.1})
    assert set(splits) == set(SPLITS)
    assert splits == share_out(files, {"test": 0.1, "validation": 0.1})
    for split in ("validation", "test"):
        size = sum(w for w, s in zip(weights, splits, strict=True) if s == split)
        assert size <= max(0.2 * sum(weights), sorted(weights)[-2]), "the largest is for training"


def test_files_that_are_alike_are_in_one_split(folder):
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"text {i % 6}")
    found = documents(loaded(folder))
    assert not set(found["train"]) & set(found["test"]) and not set(found["train"]) & set(found["validation"])


# Tables and texts together


def test_tables_and_texts_side_by_side(folder):
    (folder / "a.csv").write_text("n,text\n1,from a table\n2,from it too\n")
    (folder / "b.json").write_text('{"name": "a package"}')
    (folder / "README.md").write_text("what this is")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"text {i}")
    data = loaded(folder, whole=True)
    assert everything(data) == sorted(
        ["from a table", "from it too", '{"name": "a package"}', *(f"text {i}" for i in range(4))]
    )
    assert data.info["read"]["skipped"] == {"README.md": "describes the data"}
    assert data.info["read"]["as_text"] == ["b.json"]
    assert "tables without the column, read as texts: b.json" in told(data.info["read"])
    cut = loaded(folder)
    assert everything(cut) == everything(data)


def test_a_folder_of_tables_has_the_column_in_each(folder):
    (folder / "a.csv").write_text("text\none\n")
    (folder / "b.csv").write_text("story\ntwo\n")
    with pytest.raises(UserError, match=r"data.column: 'text' is not in .*b\.csv.*, which has story"):
        loaded(folder, whole=True)


@pytest.mark.parametrize(
    "beside", [{}, {"notes.pdf": b"%PDF-1.4"}, {"README.md": b"about it"}, {"a.zip": b"PK\x03\x04"}]
)
def test_a_table_is_no_text_where_no_text_is_beside_it(beside, folder):
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    (folder / "b.csv").write_text("story,n\ntwo,2\n")
    with pytest.raises(UserError, match=r"data.column: 'text' is not in .*b\.csv.*, which has story, n"):
        loaded(folder, whole=True)


def test_texts_and_rows_come_in_the_order_of_the_names(folder):
    for split in ("train", "test"):
        (folder / split).mkdir()
        for i in range(3):
            (folder / split / f"{i}.txt").write_text(f"text {i}")
            (folder / split / f"{i}.csv").write_text(f"text\nrow {i}\n")
    assert documents(loaded(folder))["test"] == [f"{what} {i}" for i in range(3) for what in ("row", "text")]


def test_a_column_that_no_table_has_is_refused(folder):
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"text {i}")
    with pytest.raises(UserError, match="no table with 'story'"):
        loaded(folder, column="story")


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.txt", "a.npy"])
def test_a_compressed_file_alone(name, ending, tmp_path):
    plain = tmp_path / name
    if name == "a.npy":
        np.save(plain, np.arange(1000) % 7)
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": [f"text {i}" for i in range(200)]}), plain)
    else:
        lines = [json.dumps({"text": f"text {i}"}) if name == "a.jsonl" else f"text {i}" for i in range(200)]
        plain.write_text("\n".join(["text", *lines] if name == "a.csv" else lines))
    packed = tmp_path / f"{name}.{ending}"
    packed.write_bytes(PACK[ending](plain.read_bytes()))
    one, other = loaded(plain), loaded(packed)
    for split in SPLITS:
        first = [list(data.windows(split, 64)) for data in (one, other)]
        assert all(torch.equal(a["targets"], b["targets"]) for a, b in zip(*first, strict=True))


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_compressed_file_is_refused(ending, tmp_path):
    whole = PACK[ending](os.urandom(5000).hex().encode())
    for name, content in {"a.txt": whole[: len(whole) // 2], "b.jsonl": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.{ending}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"data.path: .* cannot be (read|unpacked)"):
            loaded(path)


def test_the_name_does_not_decide_what_is_compressed(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"some text " * 300))
    (tmp_path / "b.txt.gz").write_bytes(b"some text " * 300)
    one, other = loaded(tmp_path / "a.txt"), loaded(tmp_path / "b.txt.gz")
    assert torch.equal(one.batch(0, 0, 0, 4)["tokens"], other.batch(0, 0, 0, 4)["tokens"])


# Arrays


def test_a_folder_of_arrays_is_one_stream(folder):
    for i in range(3):
        np.save(folder / f"part{i}.NPY", np.arange(100) + 100 * i)
        (folder / f"part{i}.NPY.npy").rename(folder / f"part{i}.NPY")
    (folder / "notes.txt").write_text("about them")
    data = loaded(folder)
    tokens = [b["targets"].flatten() for split in SPLITS for b in data.windows(split, 8)]
    tokens = torch.cat(tokens)
    assert tokens[tokens != IGNORE].tolist() == list(range(300)) and data.vocab_size == 300
    assert data.info["read"]["skipped"] == {"notes.txt": "no .npy file"}
    np.save(folder / "rows.npy", np.zeros((3, 4), int))
    with pytest.raises(UserError, match="arrays of several shapes"):
        loaded(folder)


def test_arrays_named_after_splits(folder):
    for number, split in enumerate(SPLITS):
        np.save(folder / f"{split}.npy", np.full(50, number))
    data = loaded(folder)
    assert all((data.sequences(s, np.arange(2))["tokens"] == n).all() for n, s in enumerate(SPLITS))


@pytest.mark.parametrize(
    ("name", "write", "fragments"),
    [
        (
            "train.bin",
            lambda p: np.arange(500, dtype=np.uint16).tofile(p),
            ["numpy.fromfile", "'uint16'", "tokens.npy"],
        ),
        ("a.npz", lambda p: np.savez(p, np.arange(5)), ["numpy.load", "numpy.save", "--data tokens.npy"]),
        ("a.txt", lambda p: p.write_bytes("hello".encode("utf-16")), ["iconv -f UTF-16"]),
        ("a.pdf", lambda p: p.write_bytes(b"%PDF-1.4\0"), ["a PDF; extract its text"]),
        ("a.dat", lambda p: p.write_bytes(b"\x93NUMPY\x01\0"), ["name it .npy"]),
        ("a.txt", lambda p: p.write_bytes("café".encode("latin-1") * 50), ["iconv -f latin1"]),
    ],
)
def test_files_of_other_kinds_are_refused_with_what_to_do(name, write, fragments, tmp_path):
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        loaded(tmp_path / name)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "binary"])
def test_a_folder_without_anything_to_read_says_what_is_in_it(name, folder):
    (folder / name).write_bytes(b"PK\x03\x04\0")
    with pytest.raises(UserError, match=rf"holds no data files \({name}: "):
        loaded(folder)


# Images


def pictures(folder, count, ending="png"):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i}.{ending}")


def shades(data):
    found = [data.sequences(split, np.arange(data.count(split)))["targets"][:, 0] for split in SPLITS]
    return sorted(torch.cat(found).tolist())


def image_data(path):
    config = with_path(data_config(name="stdlib"), str(path), None, None)
    assert config.name == "images"
    return load_data(data_config(name="images", path=config.path, image_size=4, seq_len=15))


@pytest.mark.parametrize("ending", ["png", "pgm", "bmp", "tif"])
def test_captions_and_metadata_hide_no_image(ending, folder):
    pictures(folder / "a", 40, ending)
    for i in range(40):
        (folder / "a" / f"{i}.txt").write_text(f"a picture of {i}")
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,it\n" for i in range(10)))
    data = image_data(folder)
    assert shades(data) == list(range(40))
    skipped = data.info["read"]["skipped"]
    assert len(skipped) == 41 and skipped["a/3.txt"] == "a caption" and skipped["metadata.csv"] == "not an image"


def test_one_image_named_train_hides_no_other(folder):
    pictures(folder, 30)
    (folder / "0.png").rename(folder / "train_0.png")
    assert shades(image_data(folder)) == list(range(30))


# Short rows


def test_rows_are_filled_up_by_a_number_that_is_no_token(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 9, (40, 12))
    lengths = rng.integers(1, 13, 40)
    rows[np.arange(12) >= lengths[:, None]] = -1
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(UserError, match="token -1.*--data.ignore -1"):
        loaded(tmp_path / "a.npy", seq_len=11)
    data = loaded(tmp_path / "a.npy", seq_len=11, ignore=-1)
    assert data.vocab_size == 9
    for split in SPLITS:
        batch = data.sequences(split, np.arange(data.count(split)))
        original = rows[data.index[split]]
        assert np.array_equal(batch["targets"], np.where(original < 0, IGNORE, original))
        assert np.array_equal(batch["tokens"], np.where(original < 0, 0, original)[:, :-1])
        assert np.array_equal(batch["real"], original[:, :-1] >= 0)
    rows[5, 0] = -1
    rows[5, 1] = 3
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(UserError, match="data.ignore: row 5 .* before a token; pad rows at their end"):
        loaded(tmp_path / "a.npy", seq_len=11, ignore=-1)
    np.save(tmp_path / "b.npy", rows.ravel())
    with pytest.raises(UserError, match="data.ignore: -1 pads rows"):
        loaded(tmp_path / "b.npy", ignore=-1)


def test_texts_need_no_extra(mixed, monkeypatch):
    """A folder of texts is read with what `pip install retain` brings."""
    root, texts = mixed
    for name in ("datasets", "pyarrow", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="is zst, which needs pyarrow; run pip install"):
        loaded(root)
    (root / "packed.txt.zst").unlink()
    assert everything(loaded(root)) == sorted(text for name, text in texts.items() if not name.endswith("zst"))


@pytest.mark.parametrize("reset", [True, False])
def test_a_folder_is_streamed_as_it_is_prepared(mixed, reset):
    """Every document of training comes once in an epoch, in an order that follows from the seed."""
    root, _ = mixed
    prepared, streamed = loaded(root), loaded(root, reset=reset, stream=True)
    train = sorted(text.encode() + b"\xff" for text in documents(prepared)["train"])
    size = sum(map(len, train))

    def epoch(seed):
        read = []
        for step in range(size):  # in pieces of at most nine tokens, of whole documents or of the stream
            targets = streamed.batch(seed, step, 0, 1)["targets"]
            read.append(bytes(targets[targets != IGNORE].tolist()))
            if sum(map(len, read)) >= size:
                return b"".join(read)[:size]

    first = epoch(0)
    assert sorted(part + b"\xff" for part in first.split(b"\xff")[:-1]) == train
    assert epoch(0) == first != epoch(1)
    assert streamed.info["read"]["files"] == 20 and streamed.info["read"]["skipped"].keys() == SKIPPED.keys()
