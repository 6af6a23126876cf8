"""Prepared arrays hold what the source holds; they survive kills, two processes and damage; memory stays small."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hubdata import mnist, real, stories, tokenizer
from retain.config import IGNORE, data_config
from retain.data import SPLITS, file_array, load_data, prepare
from retain.data.documents import DocumentsData
from retain.data.file_array import FileArray
from retain.data.images import events_vocabulary, from_events, to_events

TEXT = "Once there was the cat no. {} of {}, ünï→{}. It slept."


def documents(path, **changes):
    return data_config(**{"name": "documents", "path": str(path), "seq_len": 20, **changes})


def texts(data, split):
    return [
        bytes(data.document(split, i).tolist()).removesuffix(b"\xff").decode() for i in range(data.documents(split))
    ]


def test_documents_are_those_of_the_source_without_what_is_missing(tmp_path):
    data = load_data(documents(stories(tmp_path / "s"), reset=True))

    def rows(split, count):  # a seventh of them is empty, or null and left out
        return [TEXT.format(i, split, i % 10) if i % 7 else "" for i in range(count) if i % 14]

    assert texts(data, "validation") == rows("validation", 40)
    train = rows("train", 300)
    assert sorted(texts(data, "train") + texts(data, "test")) == sorted(train)  # the source has no test split
    assert 0 < data.documents("test") < 40
    assert data.info["empty_rows"] == 300 + 40 - real(300) - real(40)
    assert (data.vocab_size, data.kind, data.end) == (256, "text", 255)


def test_a_document_of_several_sequences_is_covered_once(tmp_path):
    data = load_data(documents(stories(tmp_path / "s"), reset=True))
    assert isinstance(data, DocumentsData)
    joined = []
    for batch in data.windows("validation", 7):
        targets = batch["targets"].numpy()
        joined.append(targets[targets != IGNORE])
    whole = [data.document("validation", i) for i in range(data.documents("validation"))]
    assert np.array_equal(np.concatenate(joined), np.concatenate(whole))
    # Every document begins a sequence: memory is m_0 there.
    firsts = data.sequences("validation", data.first["validation"][:-1])["targets"].numpy()
    assert [row[0] for row in firsts] == [document[0] for document in whole]


def test_carried_over_documents_are_one_stream_with_end_symbols(tmp_path):
    source = stories(tmp_path / "s")
    alone, carried = load_data(documents(source, reset=True)), load_data(documents(source))
    stream = bytes(carried.splits["validation"].tolist())
    assert stream.count(b"\xff") == alone.documents("validation")
    assert [part.decode() for part in stream.split(b"\xff")[:-1]] == texts(alone, "validation")
    assert alone.info["prepared"] == carried.info["prepared"]  # one preparation serves both


@pytest.mark.parametrize("kind", ["documents", "stream", "images"])
def test_a_large_preparation_stays_in_its_files(kind, tmp_path, monkeypatch):
    images = kind == "images"
    config = documents(mnist(tmp_path / "s") if images else stories(tmp_path / "s"), reset=kind == "documents")
    config = data_config("images", path=config.path, seq_len=783) if images else config
    held = load_data(config)
    monkeypatch.setattr(file_array, "HELD", 0)
    read = load_data(config)
    arrays = {"documents": "tokens", "stream": "splits", "images": "rows"}[kind]
    assert isinstance(getattr(held, arrays)["train"], np.ndarray)
    assert isinstance(getattr(read, arrays)["train"], FileArray)
    for split in SPLITS:
        for a, b in zip(held.windows(split, 7), read.windows(split, 7), strict=True):
            assert all((a[name] == b[name]).all() for name in a)
    assert (held.batch(1, 2, 0, 5)["targets"] == read.batch(1, 2, 0, 5)["targets"]).all()
    if kind == "documents":
        for i in range(held.documents("test")):
            assert np.array_equal(held.document("test", i), read.document("test", i))


def test_splits_do_not_depend_on_the_order_of_rows(tmp_path):
    def where(order):
        path = tmp_path / f"{order}.parquet"
        rows = [f"document number {i}" for i in range(400)][::order]
        pq.write_table(pa.table({"text": [*rows, *rows[:50]]}), path)
        data = load_data(documents(path, reset=True))
        return {split: set(texts(data, split)) for split in SPLITS}

    first, second = where(1), where(-1)
    assert first == second
    assert not first["train"] & first["test"] and not first["train"] & first["validation"]
    assert 300 < len(first["train"]) < 395


def test_the_manifest_tells_what_was_prepared(tmp_path, cache):
    import hashlib

    data = load_data(documents(stories(tmp_path / "s")))
    [folder] = [f for f in cache.iterdir() if f.is_dir()]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["path"] == str(tmp_path / "s")
    assert manifest["source_rows"] == {"train": 300, "validation": 40}
    assert manifest["splits"]["validation"]["documents"] == real(40)
    for name, file in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    assert sum(part["documents"] for part in manifest["splits"].values()) == real(300) + real(40)
    assert data.info["sha256"] == manifest["files"]["train.tokens"]["sha256"]


def test_a_prepared_source_is_not_read_again_and_a_changed_one_is(tmp_path, monkeypatch):
    source = stories(tmp_path / "s")
    first = load_data(documents(source)).info
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "open_source", None)
        assert load_data(documents(source, seq_len=9)).info == first
    stories(source, train=310)
    assert load_data(documents(source)).info["prepared"] != first["prepared"]


def test_a_damaged_preparation_is_refused(tmp_path, cache):
    config = documents(stories(tmp_path / "s"))
    folder = cache / load_data(config).info["prepared"].rpartition("/")[2]
    with (folder / "train.tokens").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"prepared .* is damaged \(train.tokens has .*delete it"):
        load_data(config)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survives", [0, 1, 2, 4])
def test_what_was_stopped_midway_goes_on_and_comes_out_the_same(tmp_path, cache, monkeypatch, survives):
    """Stopped after so many tables: what is done by then is kept, and the bytes are those of a run without a stop."""
    rows = [f"row {i} " * (i % 9) if i % 9 else None for i in range(5000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    config, saved = documents(tmp_path / "a.parquet"), []
    real_write, real_save = prepare._Preparation.write, prepare._Preparation.save
    monkeypatch.setattr(prepare, "SAVE_SECONDS", 0)

    def write(self, *arguments):
        if len(saved) == survives:
            self.state.rows["train"] += 77  # as if it had begun: nothing of this may last
            real_write(self, arguments[0][:77], *arguments[1:])
            raise Killed
        real_write(self, *arguments)

    def save(self, files):
        real_save(self, files)
        saved.append(self.state.rows["train"])

    with monkeypatch.context() as patch:
        patch.setattr(prepare._Preparation, "write", write)
        patch.setattr(prepare._Preparation, "save", save)
        with pytest.raises(Killed):
            load_data(config)
        assert not [f for f in cache.iterdir() if f.is_dir() and f.suffix != ".partial"]
    encoded = []
    real_codec = prepare.choose_codec(config)
    codec = dataclasses.replace(real_codec, encode=lambda r: encoded.append(len(r)) or real_codec.encode(r))
    monkeypatch.setattr(prepare, "choose_codec", lambda config: codec)
    after = load_data(config).info
    assert sum(encoded) == 5000 - (saved[-1] if saved else 0)
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "other"))
    without = load_data(config).info
    assert after["sha256"] == without["sha256"] and after["splits"] == without["splits"]
    assert after["empty_rows"] == without["empty_rows"] == 556


LOAD = """
import sys
from retain.config import data_config
from retain.data import load_data
print(load_data(data_config(name="documents", path=sys.argv[1], seq_len=20)).info["sha256"])
"""
SLOWLY = "import time\nfrom retain.data import prepare\nprepare.SAVE_SECONDS = 0\nreal = prepare._Preparation.save\n"
SLOWLY += "def save(*a):\n    real(*a)\n    print('saved', flush=True)\n    time.sleep(0.4)\n"
SLOWLY += "prepare._Preparation.save = save\n" + LOAD


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_two_processes_at_once_and_one_that_is_killed(tmp_path, cache):
    pq.write_table(pa.table({"text": [f"row number {i}" for i in range(6000)]}), tmp_path / "a.parquet")
    first = start(SLOWLY, tmp_path / "a.parquet")
    assert first.stdout.readline() == "saved\n"
    second = start(LOAD, tmp_path / "a.parquet")
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(LOAD, tmp_path / "a.parquet")
    sums = set()
    for process in (second, third):
        said, complaint = process.communicate(timeout=100)
        assert process.returncode == 0, complaint
        sums.add(said.strip().splitlines()[-1])
    assert len(sums) == 1
    assert sorted(f.suffix for f in cache.iterdir()) == ["", ".lock"]


# Sampled, because the kernel's own peak counts what the parent of a process had.
WATCHED = "import threading, time, psutil, datasets, pyarrow\n" + LOAD.replace(
    "print(",
    "rss = lambda: psutil.Process().memory_info().rss\n"
    "seen = [rss()]\n"
    "def watch():\n    while True:\n        seen.append(rss())\n        time.sleep(0.005)\n"
    "threading.Thread(target=watch, daemon=True).start()\nprint(",
)
WATCHED += "print(max(seen), max(seen) - seen[0], len(seen))\n"


def test_memory_does_not_grow_with_the_source(tmp_path):
    """A file of 100 MB and one of 60, the latter one row group, of which a process may hold no more than a part."""
    folder = tmp_path / "large"
    folder.mkdir()
    for shard, (size, group) in enumerate(((50_000, 1000), (30_000, 30_000))):
        # Text that does not become smaller by compression.
        rows = [np.random.default_rng(i).bytes(1000).hex() for i in range(size)]
        pq.write_table(pa.table({"text": rows}), folder / f"train-{shard:05}-of-00002.parquet", row_group_size=group)
    assert (folder / "train-00000-of-00002.parquet").stat().st_size > 90e6
    process = start(WATCHED, folder)
    said, complaint = process.communicate(timeout=100)
    assert process.returncode == 0, complaint
    peak, grown, samples = map(int, said.splitlines()[-1].split())
    assert samples > 20
    assert peak < 500e6, f"{peak / 1e6:.0f} MB at the peak"
    assert grown < 100e6, f"grew by {grown / 1e6:.0f} MB"


def test_subwords(tmp_path):
    source = stories(tmp_path / "s")
    path = tokenizer(tmp_path / "tokenizer.json", [TEXT.format(i, "train", i % 10) for i in range(50)])
    data = load_data(documents(source, reset=True, tokenizer=str(path)))
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(path))
    assert data.vocab_size == made.get_vocab_size() + 1
    document = data.document("validation", 0).tolist()
    assert document[-1] == data.end == data.vocab_size - 1
    assert made.decode(document[:-1]) == TEXT.format(1, "validation", 1)
    assert len(document) < len(TEXT)
    assert json.loads(data.tokenizer) == json.loads(path.read_text())
    for split, part in data.info["splits"].items():  # as many bytes as there are tokens where bytes are the tokens
        plain = load_data(documents(source)).info["splits"][split]
        assert part["text_bytes"] == plain["tokens"] and part["documents"] == plain["documents"]
        assert data.bytes_per_token[split] == part["text_bytes"] / part["tokens"] > 1.5
    other = tokenizer(tmp_path / "tokenizer.json", ["zzzz"])  # the same path, another content: prepared anew
    again = load_data(documents(source, reset=True, tokenizer=str(other)))
    assert again.info["prepared"] != data.info["prepared"]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_their_pixels(tmp_path, mode):
    config = data_config(name="images", path=str(mnist(tmp_path / "m", mode=mode)), seq_len=783)
    data = load_data(config)
    assert (data.vocab_size, data.kind, data.image_shape) == (256, "image", (28, 28))
    assert data.count("test") == 12
    assert data.count("train") + data.count("validation") == 60  # the source has no validation split
    image = data.sequences("test", np.array([3]))["targets"].numpy().reshape(28, 28)
    assert set(np.unique(image)) == {0, 150, 200}
    assert (image[4:24, 8:13] == 200).all() and image[4:24, :8].sum() == 0
    small = load_data(dataclasses.replace(config, image_size=14, thresholds=(100,)))
    image = small.sequences("test", np.array([3]))["targets"].numpy().reshape(14, 14)
    assert small.vocab_size == 2 and set(np.unique(image)) == {0, 1}
    assert (image[3:11, 4:6] == 1).all()
    quantised = load_data(dataclasses.replace(config, thresholds=(64, 128, 192)))
    assert quantised.vocab_size == 4
    assert set(np.unique(quantised.rows["test"])) == {0, 2, 3}


@pytest.mark.parametrize("thresholds", [(), (64, 128, 192), (100,)])
def test_events_say_all_that_the_pixels_say(tmp_path, thresholds):
    source = str(mnist(tmp_path / "m"))
    config = data_config(name="images", path=source, seq_len=783, thresholds=thresholds)
    pixels = load_data(config)
    events_config = dataclasses.replace(config, events=True, reset=True, seq_len=64)
    events = load_data(events_config)
    assert events.vocab_size == events_vocabulary(events_config)
    assert events.documents("test") == pixels.count("test")
    for i in range(12):
        image = pixels.rows["test"][i].reshape(28, 28)
        tokens = events.document("test", i)
        assert tokens[-1] == events.end == events.vocab_size - 1
        assert len(tokens) == (1 if len(thresholds) == 1 else 2) * np.count_nonzero(image) + 1
        assert np.array_equal(from_events(tokens, events_config), image)
        assert np.array_equal(to_events(image, events_config), tokens)


def test_a_tokenizer_in_the_home_folder_prepares_its_own(tmp_path, monkeypatch):
    """Without it in the key, its tokens would be read as bytes by the next run that has none."""
    source = stories(tmp_path / "s")
    tokenizer(tmp_path / "tok.json", [TEXT.format(i, "train", i % 10) for i in range(50)])
    monkeypatch.setenv("HOME", str(tmp_path))
    subwords = load_data(documents(source, tokenizer="~/tok.json"))
    plain = load_data(documents(source))
    assert subwords.info["prepared"] != plain.info["prepared"]
    assert (subwords.kind, plain.kind, plain.vocab_size) == ("tokens", "text", 256)


@pytest.mark.parametrize("row", [{"bytes": None, "path": None}, {"bytes": b"", "path": ""}, b"", None])
def test_an_empty_image_is_passed_over(tmp_path, row):
    rows = [row]
    for i in range(60):
        written = io.BytesIO()
        Image.fromarray(np.full((4, 4), 4 * i, np.uint8)).save(written, "PNG")
        whole = written.getvalue()
        rows.append(whole if isinstance(row, bytes) else {"bytes": whole, "path": "a.png"})
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    config = data_config(name="images", path=str(tmp_path / "a.parquet"), column="image", image_size=4, seq_len=15)
    assert sum(load_data(config).count(split) for split in SPLITS) == 60
