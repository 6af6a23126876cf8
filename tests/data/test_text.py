"""The standard library split by file, and text files that are mapped, sampled and refused."""

import hashlib
import sysconfig
import tracemalloc
from pathlib import Path

import pytest
import torch

from retain.config import data_config
from retain.data import IGNORE, SPLITS, load_data
from retain.data.file_array import FileArray
from retain.data.text import BLOCK, LEFT_OUT, SAMPLES, WHOLE, choose_split, list_sample_offsets, list_stdlib_files

ROOT = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def stdlib():
    return load_data(data_config(name="stdlib", seq_len=64))


def test_stdlib_is_split_by_file(stdlib):
    files = list_stdlib_files(ROOT)
    assert files == sorted(set(files)) and "argparse.py" in files and "json/decoder.py" in files
    assert not any(LEFT_OUT & set(Path(f).parts[:-1]) for f in files)
    assert stdlib.info["files"] == {s: sum(choose_split(f) == s for f in files) for s in SPLITS}
    for split in SPLITS:
        content = b"".join((ROOT / f).read_bytes() for f in files if choose_split(f) == split)
        assert stdlib.splits[split].tobytes() == content
        assert stdlib.info["bytes"][split] == len(content)


def test_stdlib_is_large_and_about_90_5_5(stdlib):
    assert sum(stdlib.info["files"].values()) > 300 and sum(stdlib.info["bytes"].values()) > 5e6
    for sizes in (stdlib.info["files"], stdlib.info["bytes"]):
        shares = [sizes[s] / sum(sizes.values()) for s in SPLITS]
        assert 0.85 < shares[0] < 0.95 and 0.01 < shares[1] < 0.1 and 0.01 < shares[2] < 0.1


def test_stdlib_is_the_same_when_loaded_again(stdlib):
    again = load_data(data_config(name="stdlib", seq_len=32))
    assert again.info == stdlib.info and len(again.info["sha256"]) == 64
    assert stdlib.kind == "text" and stdlib.vocab_size == 256 and not stdlib.answers


PINNED = {"argparse.py": "train", "json/decoder.py": "train", "functools.py": "validation", "pickle.py": "test"}


def test_split_of_a_file_is_pinned():
    """Changing these would mix training files of published runs into the test split."""
    assert {f: choose_split(f) for f in PINNED} == PINNED
    splits = [choose_split(f"{i}.py") for i in range(10_000)]
    assert [round(splits.count(s) / 10_000, 2) for s in SPLITS] == [0.9, 0.05, 0.05]


def text_config(path, **fields):
    return data_config(name="text", path=str(path), **fields)


def test_text_is_held_and_cut_in_order(tmp_path):
    content = "déjà vu, 日本 🙂\n".encode() * 500
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    data = load_data(text_config(path, seq_len=16, split=(0.8, 0.1, 0.1)))
    assert b"".join(data.splits[s].tobytes() for s in SPLITS) == content
    assert data.info["bytes"] == {"train": round(len(content) * 0.8), **dict.fromkeys(SPLITS[1:], len(content) // 10)}
    assert data.info["sha256"] == hashlib.sha256(content).hexdigest()
    targets = torch.cat([b["targets"].flatten() for b in data.windows("test", 8)])
    assert bytes(targets[targets != IGNORE].tolist()) == data.splits["test"].tobytes()
    assert data.batch(0, 0, 0, 4)["tokens"].shape == (4, 16)


@pytest.mark.parametrize("shift", range(4))
def test_characters_may_straddle_blocks(tmp_path, shift):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * shift + "🙂".encode() * (BLOCK // 2))
    assert load_data(text_config(path)).kind == "text"


def test_sampled_blocks_cover_small_files_and_span_large_ones():
    for size in (1, BLOCK, BLOCK + 1, WHOLE):
        offsets = list_sample_offsets(size)
        assert offsets == list(range(0, size, BLOCK)) and offsets[-1] + BLOCK >= size
    offsets = list_sample_offsets(5 * 10**9)
    assert len(offsets) == SAMPLES and offsets[0] == 0 and offsets[-1] + BLOCK == 5 * 10**9
    assert all(
        b - a >= BLOCK for a, b in zip(list_sample_offsets(WHOLE + 1), list_sample_offsets(WHOLE + 1)[1:], strict=False)
    )


@pytest.fixture
def sparse(tmp_path):
    """A text of 5 GB of which only the blocks that are looked at exist."""
    path = tmp_path / "large.txt"
    size = 5 * 10**9
    with path.open("wb") as file:
        file.truncate(size)
        for offset in list_sample_offsets(size):
            file.seek(offset)
            file.write(("é" * BLOCK).encode()[:BLOCK])
    return path


def test_a_large_text_is_not_read_into_memory(sparse):
    tracemalloc.start()
    try:
        data = load_data(text_config(sparse))
        for step in range(3):
            data.batch(0, step, 0, 8)
        batches = list(data.windows("test", 8, limit=16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6 and len(batches) == 2
    assert isinstance(data.splits["train"], FileArray) and sum(data.info["bytes"].values()) == 5 * 10**9
    assert "sha256" not in data.info and len(data.info["sha256_of_samples"]) == 64


def test_a_large_text_is_checked_in_its_samples(sparse):
    before = load_data(text_config(sparse)).info["sha256_of_samples"]
    place = list_sample_offsets(5 * 10**9)[100] + 10
    with sparse.open("r+b") as file:
        file.seek(place)
        file.write(b"ab")
    assert load_data(text_config(sparse)).info["sha256_of_samples"] != before
    with sparse.open("r+b") as file:
        file.seek(place)
        file.write(b"\0")
    with pytest.raises(ValueError, match=f"holds a NUL byte at {place}, it is not text"):
        load_data(text_config(sparse))


LINES = b"some text\n" * 1000
BAD_TEXTS = {
    "missing": (lambda p: None, "data.path", "does not exist; give a UTF-8 text file"),
    "directory": (lambda p: p.mkdir(), "data.path", "is a directory; give a UTF-8 text file"),
    "empty": (lambda p: p.touch(), "data.path", "is empty; give a UTF-8 text file"),
    "short": (lambda p: p.write_bytes(LINES[:1000]), "data.seq_len", "64 needs 65 tokens, but validation has only 50"),
    "tiny": (lambda p: p.write_bytes(b"hi"), "data.seq_len", "64 needs 65 tokens, but train has only 2"),
    "NUL": (lambda p: p.write_bytes(LINES + b"\0" + LINES), "data.path", "holds a NUL byte at 10000, it is not text"),
    "latin-1": (lambda p: p.write_bytes(LINES + b"caf\xe9 noir"), "data.path", "is not UTF-8 at byte 10003"),
    "start": (lambda p: p.write_bytes(b"\x80" + LINES), "data.path", "is not UTF-8 at byte 0"),
    "end": (lambda p: p.write_bytes(LINES + b"\xc3"), "data.path", "is not UTF-8 at byte 10000"),
    "continuation": (lambda p: p.write_bytes(b"x" * BLOCK + b"\x80" * 4 + LINES), "data.path", f"byte {BLOCK + 3}"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts(tmp_path, case):
    write, field, fragment = BAD_TEXTS[case]
    path = tmp_path / "a.txt"
    write(path)
    with pytest.raises(ValueError) as error:
        load_data(text_config(path))
    message = str(error.value)
    assert message.startswith(f"{field}: ") and fragment in message and "\n" not in message
