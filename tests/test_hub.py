"""Data sets of the hub, of files and of folders, from the command line to the sample; and all that may be wrong."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import tiny
from fakehub import hub
from hubdata import mnist, real, sketches, stories, tokenizer
from retain.config import DataConfig, load_config, save_config
from retain.data import load_data
from retain.presets import PRESETS
from retain.run import build

HUB_PRESETS = [name for name in PRESETS if PRESETS[name]().data.name in ("documents", "images")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Local copies of the three data sets, for tests that only read them."""
    root = tmp_path_factory.mktemp("sources")
    stories(root / "stories")
    mnist(root / "mnist")
    sketches(root / "sketches")
    return root


def source_of(preset, sources):
    return sources / ("stories" if "stories" in preset else "sketches" if preset == "sketchy" else "mnist")


@pytest.mark.parametrize("preset", HUB_PRESETS)
def test_presets_build_on_a_local_copy(preset, sources):
    config = PRESETS[preset]()
    changes = {"path": str(source_of(preset, sources)), "split": (0.6, 0.2, 0.2)}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
    data = load_data(config.data)
    assert config.data.path != "" and data.batch(0, 0, 0, 2)["tokens"].shape == (2, config.data.seq_len)
    rnn, teacher = build(config, data.vocab_size)
    logits, _ = rnn.step(torch.tensor([0, 1]), rnn.init_memory(2))
    assert logits.shape == (2, data.vocab_size)
    assert teacher.empty_memory().shape == (config.memory.tokens, config.memory.width)


@pytest.mark.parametrize("preset", ["tinystories-paper", "mnist-paper"])
def test_the_papers_settings(preset):
    """method.md, section 6."""
    c = PRESETS[preset]()
    assert [str(b) for b in c.budgets()] == ["150000steps", "1500steps"]
    assert (c.smt.batch_size, c.smt.seq_len, c.dmt.batch_size, c.dmt.seq_len) == (128, 320, 32, 576)
    assert (c.teacher.context_len, c.teacher.future_len, c.dmt.horizon, c.dmt.horizon_end) == (256, 64, 256, 256)
    assert (c.smt.lr, c.smt.schedule, c.smt.warmup, c.dmt.lr, c.dmt.schedule) == (
        3e-4,
        "constant",
        0.01,
        3e-5,
        "cosine",
    )
    assert (c.smt.lambda_dec, c.smt.lambda_dyn, c.smt.lambda_unif) == (1, 0.1, 0.001)
    assert (c.dmt.lambda_dyn, c.dmt.lambda_readout, c.dmt.label_every) == (10, 1, 16)
    assert (c.memory.tokens, c.memory.width, c.memory.norm, c.teacher.encoder) == (16, 256, "rms", "window")
    assert (c.teacher.width, c.teacher.heads, c.teacher.layers, c.teacher.decoder_layers) == (256, 8, 8, 4)
    assert (c.cell.kind, c.cell.width, c.cell.heads, c.cell.layers) == ("transformer", 256, 8, 8)
    for phase in (c.smt, c.dmt):
        assert (phase.weight_decay, phase.beta1, phase.beta2, phase.clip) == (0.01, 0.9, 0.95, 1.0)
    assert c.precision == "bf16"
    assert c.data.path == {"t": "hf:roneneldan/TinyStories", "m": "hf:ylecun/mnist"}[preset[0]]


SMALL = ["--budget", "4steps", "--validation-sequences", "8", "--tracker", "None", "--device", "cpu", "--quiet"]
SMALL += ["--teacher.width", "16", "--teacher.layers", "1", "--memory.width", "16", "--cell.width", "16"]
SMALL += ["--smt.batch-size", "2", "--dmt.batch-size", "2", "--precision", "fp32"]
PARTS = ["--data.split", "0.6", "0.2", "0.2"]


def test_stories_from_a_folder_to_a_sample(retain, sources, tmp_path):
    out = tmp_path / "run"
    options = [*SMALL, "--data.reset", "--data.seq-len", "32"]
    code, said, complaint = retain("train", "tinystories", "--data", sources / "stories", "--out", out, *options)
    assert code == 0, complaint
    config = load_config(out / "config.json")
    assert (config.data.name, config.data.path, config.data.reset) == ("documents", str(sources / "stories"), True)
    code, said, complaint = retain("eval", out, "--split", "validation", "--json")
    assert (code, complaint) == (0, "")
    result = json.loads(said)
    assert result["whole_documents"]["documents"] == real(40)
    assert result["tokens"] == sum(
        json.loads((out / "data.json").read_text())["splits"]["validation"][k] for k in ["tokens"]
    )
    assert "over 34 whole documents" in retain("eval", out, "--split", "validation")[1]
    code, said, complaint = retain("generate", out, "--prompt", "Once ü", "--length", "30")
    assert (code, complaint) == (0, "")
    assert said.startswith("Once ü")
    sampled = json.loads((out / "samples.json").read_text())["tokens"]
    assert 255 not in sampled  # the end symbol ends a document


def test_the_likelihood_of_whole_documents_is_that_of_one_pass(sources):
    """Chunks, batches and padding change nothing: each document is read from m_0 to its end symbol."""
    from retain import likelihood

    data = load_data(DataConfig(name="documents", path=str(sources / "stories"), seq_len=20, reset=True))
    rnn, _ = build(tiny(), data.vocab_size)
    rnn.eval()
    nats = count = 0
    with torch.no_grad():
        for i in range(data.documents("validation")):
            tokens = torch.from_numpy(data.document("validation", i))[None]
            logits, _ = rnn(tokens[:, :-1])
            logits = torch.cat([rnn.readout(rnn.init_memory(1))[:, None], logits], 1)
            nats += torch.nn.functional.cross_entropy(logits[0], tokens[0], reduction="sum").item()
            count += tokens.numel()
    chunk, likelihood.CHUNK = likelihood.CHUNK, 7
    try:
        found = likelihood.document_likelihood(rnn, data, "validation", batch_size=5)
    finally:
        likelihood.CHUNK = chunk
    assert found["documents"] == real(40)
    assert found["bits_per_token"] == pytest.approx(nats / count / math.log(2), rel=1e-5)
    assert found["bits_per_document"] == pytest.approx(nats / real(40) / math.log(2), rel=1e-5)


def test_images_are_completed_below_what_is_given(retain, sources, tmp_path):
    out = tmp_path / "run"
    code, _, complaint = retain("train", "mnist", "--data", sources / "mnist", "--out", out, *SMALL, *PARTS)
    assert code == 0, complaint
    assert load_config(out / "config.json").data.threshold == 128
    code, said, complaint = retain("generate", out, "--complete", "5")
    assert (code, complaint) == (0, "")
    assert said == f"5 images in {out / 'completed.png'}: given, completed, truth\n"
    samples = json.loads((out / "samples.json").read_text())
    given, completed, truth = (np.array(samples[k]) for k in ("given", "completed", "truth"))
    assert given.shape == completed.shape == truth.shape == (5, 196)
    assert (given[:, :98] == truth[:, :98]).all() and (completed[:, :98] == truth[:, :98]).all()
    assert (given[:, 98:] == -1).all() and set(np.unique(completed)) <= {0, 1}
    with Image.open(out / "completed.png") as image:
        grid = np.asarray(image)
    cell = 14 * 3 + 4
    assert grid.shape == (5 * cell + 4, 3 * cell + 4)
    for row in range(5):
        for column, pixels in enumerate((given, completed, truth)):
            drawn = grid[4 + row * cell :, 4 + column * cell :][: 14 * 3 : 3, : 14 * 3 : 3]
            wanted = np.where(pixels[row] < 0, 64, pixels[row] * 255).reshape(14, 14)
            assert (drawn == wanted).all()


def test_a_users_own_images_are_completed(retain, sources, tmp_path):
    out = tmp_path / "run"
    code, _, complaint = retain("train", "sketchy", "--data", sources / "sketches", "--out", out, *SMALL)
    assert code == 0, complaint
    config = load_config(out / "config.json").data
    files = [sources / "sketches" / name for name in ("cat/0.png", "dog/1.png", "cat/2.png")]  # RGB, L, RGBA
    code, _, complaint = retain("generate", out, "--images", *files, "--out", tmp_path / "grid.png")
    assert (code, complaint) == (0, "")
    truth = np.array(json.loads((out / "samples.json").read_text())["truth"])
    assert truth.shape == (3, config.image_size**2)
    assert (0.02 < truth.mean(1)).all() and (truth.mean(1) < 0.3).all()  # white lines on black, whatever the file was
    assert (tmp_path / "grid.png").exists()


def test_events_are_completed(retain, sources, tmp_path):
    out = tmp_path / "run"
    options = [*SMALL, *PARTS, "--data.events", "--data.reset", "--data.seq-len", "40"]
    code, _, complaint = retain("train", "mnist", "--data", sources / "mnist", "--out", out, *options)
    assert code == 0, complaint
    assert load_data(load_config(out / "config.json").data).vocab_size == 14 * 14 + 1
    code, _, complaint = retain("generate", out, "--complete", "2")
    assert (code, complaint) == (0, "")
    samples = json.loads((out / "samples.json").read_text())
    given, completed, truth = (np.array(samples[k]) for k in ("given", "completed", "truth"))
    assert (completed[:, :98] == truth[:, :98]).all() and truth[:, :98].any() and (given[:, 98:] == -1).all()


def test_built_in_digits_are_completed_too(retain, digits_run, tmp_path):
    code, _, complaint = retain("generate", digits_run, "--complete", "2", "--out", tmp_path / "a.png")
    assert (code, complaint) == (0, "")
    assert (tmp_path / "a.png").exists()


def test_subwords_to_a_sample(retain, sources, tmp_path):
    path = tokenizer(tmp_path / "tokenizer.json", ["Once there was the cat no. It slept."])
    out = tmp_path / "run"
    options = [*SMALL, "--data.tokenizer", path, "--data.seq-len", "16"]
    code, _, complaint = retain("train", "tinystories", "--data", sources / "stories", "--out", out, *options)
    assert code == 0, complaint
    path.unlink()  # the run keeps its own
    code, said, complaint = retain("generate", out, "--prompt", "Once ü", "--length", "5")
    assert (code, complaint) == (0, "")
    assert said.startswith("Once ü")
    assert json.loads((out / "samples.json").read_text())["settings"]["prompt"] == "Once ü"


@pytest.fixture
def no_sleep(monkeypatch):
    """The library sleeps for five seconds whenever it closes a shuffled stream."""
    from datasets import config

    if hasattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN"):
        monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def test_training_on_a_stream(retain, sources, tmp_path, cache, no_sleep):
    for preset, folder in (("tinystories", "stories"), ("mnist", "mnist")):
        out = tmp_path / preset
        options = [*SMALL, *PARTS, "--stream"]
        code, _, complaint = retain("train", preset, "--data", sources / folder, "--out", out, *options)
        assert code == 0, complaint
        assert json.loads((out / "data.json").read_text())["streamed"] is True
        assert retain("eval", out)[0] == 0
    assert not cache.exists()


@pytest.mark.parametrize("reset", [True, False])
def test_a_stream_holds_the_documents_of_its_split_alone(sources, reset, no_sleep):
    config = DataConfig(name="documents", path=str(sources / "stories"), seq_len=99, reset=reset, stream=True)
    streamed = load_data(config)
    prepared = load_data(dataclasses.replace(config, stream=False, reset=True))

    def whole(targets):
        pieces = [bytes(row[row >= 0].tolist()) for row in targets.numpy()]
        return {p for text in (pieces if reset else [b"".join(pieces)]) for p in text.split(b"\xff")[1 - reset : -1]}

    train = {bytes(prepared.document("train", i).tolist())[:-1] for i in range(prepared.documents("train"))}
    first = streamed.batch(0, 0, 0, 200)["targets"]
    seen = whole(first)
    for step in range(1, 8):  # more than one epoch
        seen |= whole(streamed.batch(0, step, 0, 200)["targets"])
    if reset:
        assert seen == train
    else:  # a document that two batches share is not whole in either
        assert len(seen & train) > 0.9 * len(train)
    other = load_data(config)
    assert torch.equal(other.batch(0, 0, 0, 200)["targets"], first)
    assert not torch.equal(other.batch(1, 0, 0, 200)["targets"], first)
    assert not torch.equal(other.batch(0, 0, 1, 200)["targets"], first)
    held = streamed.sequences("test", np.arange(streamed.count("test")))["targets"]
    test = {bytes(prepared.document("test", i).tolist())[:-1] for i in range(prepared.documents("test"))}
    assert whole(held) <= test and (not reset or whole(held) == test)


FORMATS = ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.arrow", "folder", "saved"]


@pytest.mark.parametrize("name", FORMATS)
def test_any_file_with_any_column(name, tmp_path):
    import datasets

    rows = {"story": [f"a täle, no. {i}" for i in range(200)], "n": list(range(200))}
    table, path = pa.table(rows), tmp_path / name
    data = datasets.Dataset.from_dict(rows)
    if name == "a.parquet":
        pq.write_table(table, path)
    elif name.startswith("a.json"):
        data.to_json(path)
    elif name == "a.arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif name == "folder":
        (path / "sub").mkdir(parents=True)
        data.to_json(path / "sub" / "train.jsonl")
    elif name == "saved":
        data.save_to_disk(path)
    else:
        data.to_csv(path, sep="\t" if name == "a.tsv" else ",", index=False)
    data = load_data(DataConfig(name="documents", path=str(path), column="story", seq_len=20, reset=True))
    found = {bytes(data.document(s, i).tolist())[:-1].decode() for s in data.ends for i in range(data.documents(s))}
    assert found == set(rows["story"])


def test_data_of_any_preset_can_be_a_dataset(retain, sources, tmp_path):
    save_config(tiny(), tmp_path / "tiny.json")
    common = ["train", "--config", tmp_path / "tiny.json", "--quiet"]
    out = tmp_path / "a"
    assert retain(*common, "--data", sources / "stories", "--out", out)[0] == 0
    assert load_config(out / "config.json").data.name == "documents"
    out = tmp_path / "b"
    options = ["--image-column", "image", "--budget", "2steps", "--data.split", "0.6", "0.2", "0.2"]
    options += ["--smt.batch-size", "2", "--dmt.batch-size", "2"]
    code, _, complaint = retain(*common, *options, "--data", sources / "mnist", "--out", out)
    assert code == 0, complaint
    data = load_config(out / "config.json").data
    assert (data.name, data.column, data.seq_len) == ("images", "image", 783)


def test_a_dry_run_tells_sizes_and_writes_nothing(retain, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", "tinystories", "--data", sources / "stories", *SMALL, "--dry-run"]
    code, said, complaint = retain(*line, "--json")
    assert code == 0, complaint
    found = json.loads(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]
    config = dataclasses.replace(
        PRESETS["tinystories"](), memory=dataclasses.replace(PRESETS["tinystories"]().memory, width=16)
    )
    config = dataclasses.replace(
        config,
        cell=dataclasses.replace(config.cell, width=16),
        teacher=dataclasses.replace(config.teacher, width=16, layers=1),
    )
    rnn, teacher = build(config, 256)
    assert found["parameters"] == {
        "rnn": sum(p.numel() for p in rnn.parameters()),
        "teacher": sum(p.numel() for p in teacher.parameters()),
    }
    assert (found["phases"]["smt"]["steps"], found["phases"]["dmt"]["steps"]) == (3, 1)  # of 4, shared 7 to 3
    for phase in found["phases"].values():
        assert phase["seconds"] == pytest.approx(phase["steps"] * phase["seconds_per_step"])
        assert phase["tokens_per_step"] == 2 * 64
        assert phase["flops_per_step"] > 6 * phase["tokens_per_step"] * 16 * 16
    code, said, _ = retain(*line)
    assert code == 0 and "parameters" in said and "altogether" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]


def test_flops_and_activations_of_a_dry_run_grow_as_they_should(retain, sources, tmp_path):
    def phases(*options):
        line = ["train", "tinystories", "--data", sources / "stories", *SMALL, *options, "--dry-run", "--json"]
        return json.loads(retain(*line)[1])["phases"]

    once, twice = phases(), phases("--smt.batch-size", "4", "--dmt.accumulate", "2")
    assert twice["smt"]["flops_per_step"] == 2 * once["smt"]["flops_per_step"]
    # Up to a few small tensors that happen to come to lie where one has just been freed.
    assert twice["smt"]["activation_bytes"] == pytest.approx(2 * once["smt"]["activation_bytes"], rel=1e-3)
    assert twice["dmt"]["flops_per_step"] == 2 * once["dmt"]["flops_per_step"]
    assert twice["dmt"]["activation_bytes"] == pytest.approx(once["dmt"]["activation_bytes"], rel=1e-3)


# The hub itself: in processes of their own, because the library reads its environment only once.

LOAD = """
import json, os, sys
import numpy as np
from retain.config import DataConfig
from retain.data import load_data
for prepared, changes in json.loads(sys.argv[1]):
    os.environ["RETAIN_CACHE"] = prepared
    fields = {"name": "documents", "path": "hf:roneneldan/TinyStories", "seq_len": 20, "reset": True}
    try:
        data = load_data(DataConfig(**fields | changes))
    except ValueError as error:
        print(json.dumps(str(error)))
        continue
    first = bytes(data.sequences("validation", np.arange(1))["targets"][0].tolist()[:20]).decode()
    print(json.dumps(data.info | {"first": first}))
"""


@pytest.fixture
def ask(tmp_path):
    """Load a data set of the hub, (name of the cache, changes) by (…): the info of each, or what was wrong with it."""

    def call(*requests, **env):
        asked = [(str(tmp_path / prepared), changes) for prepared, changes in requests]
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
        command = [sys.executable, "-c", LOAD, json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def test_the_hub_pinned_revisions_and_offline(ask, tmp_path):
    old, new = stories(tmp_path / "old", what="the old"), stories(tmp_path / "new", what="the new")
    with hub("roneneldan/TinyStories", [old, new]) as (address, commits, asked):
        pin = {"revision": commits[0]}
        newest, pinned, streamed, nowhere, unknown = ask(
            ("a", {}),
            ("a", pin),
            ("a", pin | {"stream": True}),
            ("a", {"revision": "nowhere"}),
            ("a", {"path": "hf:roneneldan/TinyStories:french"}),
            HF_ENDPOINT=address,
        )
        assert asked
        asked.clear()
        assert ask(("a", {}), ("a", pin), HF_ENDPOINT=address) == [newest, pinned]
        assert asked == []  # what is prepared needs no hub
    assert (newest["revision"], newest["first"]) == (commits[1], "Once there was the n")
    assert newest["splits"]["validation"]["documents"] == real(40)
    assert (pinned["revision"], pinned["first"]) == (commits[0], "Once there was the o")
    assert (streamed["streamed"], streamed["revision"], streamed["first"]) == (True, commits[0], pinned["first"])
    for part in ("data.path", "'hf:roneneldan/TinyStories'", "'nowhere'", address, "give a local copy", "--data PATH"):
        assert part in nowhere
    for part in ("french", "default", "hf:NAME:CONFIG"):
        assert part in unknown
    # Without a hub: what is prepared, and what the library has in its own cache.
    prepared, again = ask(("a", {}), ("b", pin), HF_HUB_OFFLINE="1")
    assert prepared == newest
    assert (again["revision"], again["sha256"]) == (commits[0], pinned["sha256"])
    shutil.rmtree(tmp_path / "hf")
    [complaint] = ask(("c", {}), HF_HUB_OFFLINE="1")
    for part in ("could not be loaded", "HF_HUB_OFFLINE is set", str(tmp_path / "hf"), "--data PATH"):
        assert part in complaint
    assert "\n" not in complaint


BAD = [
    ("--data corrupt.parquet", ["data.path", "corrupt.parquet", "Parquet magic bytes"]),
    ("--data cut.parquet", ["data.path", "cut.parquet", "cannot be read"]),
    ("--data empty.parquet", ["data.path", "empty.parquet"]),
    ("--data broken.jsonl", ["data.path", "broken.jsonl", "cannot be read"]),
    ("--data blank.parquet", ["data.path", "blank.parquet", "nothing to learn", "4 rows", "4 of them empty"]),
    ("--data stories --text-column story", ["data.column", "'story'", "text", "--text-column"]),
    ("--data numbers.parquet --text-column n", ["data.column", "'n'", "int64", "not text"]),
    ("--data mnist --image-column label", ["data.column", "'label'", "int64", "not images"]),
    ("--data mnist --image-column picture", ["data.column", "'picture'", "image, label", "--image-column"]),
    ("--data mnist --text-column image", ["data.column", "'image'", "not text"]),
    ("--data notimages --image-column image", ["notimages", "not an image", "1.png"]),
    ("--data nothing", ["data.path", "nothing", "data files"]),
    ("--data nowhere.parquet", ["data.path", "nowhere.parquet", "does not exist"]),
    ("--data odd", ["data.path", "odd", "no split train", "first, second"]),
    ("--data hf:", ["data.path", "'hf:'", "hf:NAME"]),
    ("--data few.parquet --data.reset", ["data.split", "none of the documents"]),
    ("--data few.parquet", ["data.seq_len", "shorter seq_len"]),
    ("--data stories --data.revision abc", ["data.revision", "abc", "hf:NAME"]),
    ("--data stories --data.tokenizer nowhere.json", ["data.tokenizer", "nowhere.json", "No such file"]),
    ("--data stories --data.tokenizer broken.jsonl", ["data.tokenizer", "broken.jsonl", "tokenizer.json"]),
    ("--data mnist --image-column image --data.seq-len 100", ["data.seq_len", "100", "784 pixels", "783"]),
    ("--data mnist --image-column image --data.levels 1", ["data.levels", "1", "2 … 256"]),
    ("--data mnist --image-column image --data.threshold 0", ["data.threshold", "0", "1 … 255"]),
    ("--data stories --text-column text --image-column image", ["--text-column", "--image-column", "one of them"]),
    ("--data small.txt --text-column text", ["--text-column", "small.txt", "no dataset"]),
    ("--text-column text", ["--text-column", "--data"]),
    ("--stream", ["data.stream", "retrieval"]),
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
    pq.write_table(pa.table({"text": ["", None, "", None]}), root / "blank.parquet")
    pq.write_table(pa.table({"n": list(range(50))}), root / "numbers.parquet")
    pq.write_table(pa.table({"text": ["one", "two"]}), root / "few.parquet")
    (root / "notimages").mkdir()
    for i in range(3):
        (root / "notimages" / f"{i}.png").write_text("not an image")
    Image.new("L", (4, 4)).save(root / "notimages" / "0.png")
    (root / "nothing").mkdir()
    (root / "odd").mkdir()
    (root / "odd" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: first\n    path: a.jsonl\n"
        "  - split: second\n    path: b.jsonl\n---\n"
    )
    for name in "ab":
        (root / "odd" / f"{name}.jsonl").write_text('{"text": "a"}\n')
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


@pytest.mark.parametrize("every", [2, 3])
def test_dmt_with_few_labels_trains_what_it_labels(every):
    """The paper's labels every n-th step: the loss is that of a plain loop over the labelled steps."""
    from retain.config import DMTConfig
    from retain.objectives import DMT

    config = tiny(dmt=DMTConfig(label_every=every, horizon=6, horizon_end=6, lambda_dyn=2.0, predictive=False))
    rnn, teacher = build(config, 9)
    objective = DMT(teacher, rnn, config.dmt)
    tokens = torch.randint(9, (3, 6))
    losses = objective({"tokens": tokens, "targets": torch.cat([tokens, tokens[:, :1]], 1), "progress": 1.0})
    teacher.eval()
    labels, memory, squared = teacher.encode(tokens), None, []
    memory = labels[:, 0]
    for t in range(6):
        predicted = rnn.update(memory.detach(), tokens[:, t])
        if (t + 1) % every == 0:
            squared.append((predicted - labels[:, t + 1].detach()).square().mean())
        memory = predicted
    expected = torch.stack(squared).mean()
    torch.testing.assert_close(losses["loss_dyn"], expected)
    parameters = list(rnn.cell.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for mine, theirs in zip(torch.autograd.grad(losses["loss_dyn"], parameters), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_phase_may_read_a_part_of_each_sequence(tmp_path):
    from retain.train import part_of

    batch = {"tokens": torch.arange(40).view(4, 10), "targets": torch.arange(44).view(4, 11)}
    seen = set()
    for _ in range(60):
        part = part_of(batch, 4)
        start = int(part["tokens"][0, 0])
        assert torch.equal(part["tokens"], batch["tokens"][:, start : start + 4])
        assert torch.equal(part["targets"], batch["targets"][:, start : start + 5])
        seen.add(start)
    assert seen == set(range(7))
    assert part_of(batch, None) is batch
    with pytest.raises(ValueError, match="smt.seq_len: 9 is longer than data.seq_len 8"):
        tiny(smt__seq_len=9)
    from conftest import train_tiny

    out = train_tiny(tmp_path / "run", smt__seq_len=4, budget="2steps")
    assert json.loads((out / "summary.json").read_text())["tokens"] == 4 * 4 + 4 * 8
