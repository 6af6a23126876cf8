"""Data sets of the hub, of files and of folders, from the command line to the sample; and all that may be wrong."""

import dataclasses
import json
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
from hubdata import PARTS, SMALL, real, stories, tokenizer
from retain.config import data_config
from retain.config.json import load_config, save_config
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.data.subwords import read_prompt
from retain.runs.run import build, load, load_run
from retain.runs.save import save as retain_save
from retain.training.loop import train
from retain.training.phases import BETAS

HUB_PRESETS = [name for name in PRESETS if PRESETS[name]().data.name in ("documents", "images")]


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
    """What the paper reports of its main runs."""
    c = PRESETS[preset]()
    assert [str(b) for b in c.budgets()] == ["150000steps", "1500steps"]
    assert [str(b) for b in dataclasses.replace(c, budget="202steps").budgets()] == ["200steps", "2steps"]
    assert (c.smt.batch_size, c.smt.seq_len, c.dmt.batch_size, c.dmt.seq_len) == (128, 320, 32, 576)
    assert (c.teacher.context_len, c.teacher.future_len, c.dmt.horizon, c.dmt.horizon_growth) == (256, 64, 256, 0.0)
    assert (c.smt.lr, c.smt.lr_schedule, c.optimizer.warmup, c.dmt.lr) == (3e-4, "constant", 0.01, 3e-5)
    assert (c.smt.lambda_dec, c.smt.lambda_dyn, c.smt.lambda_unif) == (1, 0.1, 0.001)
    assert (c.dmt.lambda_dyn, c.dmt.lambda_readout, c.dmt.label_every) == (10, 1, 16)
    assert (c.memory.tokens, c.memory.width, c.memory.norm, c.teacher.encoder) == (16, 256, "rms", "window")
    assert (c.teacher.width, c.teacher.heads, c.teacher.layers, c.teacher.decoder_layers) == (256, 8, 8, 4)
    assert (c.cell.kind, c.cell.width, c.cell.heads, c.cell.layers) == ("transformer", 256, 8, 8)
    assert (c.optimizer.weight_decay, BETAS, c.optimizer.max_grad_norm) == (0.01, (0.9, 0.95), 1.0)
    assert c.precision == "bf16"
    assert c.data.path == {"t": "hf:roneneldan/TinyStories", "m": "hf:ylecun/mnist"}[preset[0]]


def test_stories_from_a_folder_to_a_sample(retain, sources, tmp_path, monkeypatch):
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
    assert "over 37 whole documents" in retain("eval", out, "--split", "validation")[1]
    code, said, complaint = retain("generate", out, "--prompt", "Once ü", "--length", "30")
    assert (code, complaint) == (0, "")
    assert said.startswith("Once ü")
    (sample,) = json.loads((out / "samples.json").read_text())["samples"]
    assert 255 not in sample["tokens"]  # the end symbol ends a document
    drawn = [torch.tensor([token]) for token in (65, 255, 66)]
    monkeypatch.setattr("retain.inference.text.generate", lambda *a, **k: iter(drawn))
    assert retain("generate", out, "--prompt", "Once ")[1] == "Once A\n"
    assert json.loads((out / "samples.json").read_text())["samples"][0]["tokens"] == [65]


def test_images_are_completed_below_what_is_given(retain, sources, tmp_path):
    out = tmp_path / "run"
    code, _, complaint = retain("train", "mnist", "--data", sources / "mnist", "--out", out, *SMALL, *PARTS)
    assert code == 0, complaint
    assert load_config(out / "config.json").data.thresholds == (128,)
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
    code, _, complaint = retain("train", "sketchy", "--data", sources / "sketches", "--out", out, *SMALL, *PARTS)
    assert code == 0, complaint
    config = load_config(out / "config.json").data
    files = [sources / "sketches" / name for name in ("cat/0.png", "dog/1.png", "cat/2.png")]  # RGB, L, RGBA
    code, _, complaint = retain("generate", out, "--images", *files, "--out", tmp_path / "grid.png")
    assert (code, complaint) == (0, "")
    truth = np.array(json.loads((out / "samples.json").read_text())["truth"])
    assert truth.shape == (3, config.image_size**2)
    assert (0.02 < truth.mean(1)).all() and (truth.mean(1) < 0.3).all()  # white lines on black, whatever the file was
    assert (tmp_path / "grid.png").exists()
    (tmp_path / "note.png").write_text("no image")
    for name, words in (("no.png", "does not exist"), ("note.png", "is not an image that can be read")):
        code, said, complaint = retain("generate", out, "--images", tmp_path / name)
        assert (code, said, complaint.count("\n")) == (2, "", 1)
        assert f"images: '{tmp_path / name}' {words}" in complaint


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
    config = json.loads((out / "config.json").read_text())
    config["data"]["reset"] = False
    (out / "config.json").write_text(json.dumps(config))
    code, said, complaint = retain("generate", out, "--complete", "1")
    assert (code, said, complaint.count("\n")) == (2, "", 1) and "give --images FILE" in complaint


def test_built_in_digits_are_completed_too(retain, digits_run, tmp_path):
    code, _, complaint = retain("generate", digits_run, "--complete", "2", "--out", tmp_path / "a.png")
    assert (code, complaint) == (0, "")
    assert (tmp_path / "a.png").exists()


def test_subwords_to_a_sample(retain, sources, tmp_path, monkeypatch):
    path = tokenizer(tmp_path / "tokenizer.json", ["Once there was the cat no. It slept."])
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--data.tokenizer", "tokenizer.json", "--data.seq-len", "16"]
    code, _, complaint = retain("train", "tinystories", "--data", sources / "stories", "--out", out, *options)
    assert code == 0, complaint
    code, said, complaint = retain("eval", out, "--split", "validation", "--json")
    assert code == 0, complaint
    result = json.loads(said)
    counts = result["data"]["splits"]["validation"]
    assert result["tokens"] == counts["tokens"]
    bits = result["bits_per_token"] * counts["tokens"] / counts["text_bytes"]
    assert result["bits_per_byte"] == pytest.approx(bits)
    assert bits < result["bits_per_token"]
    assert f"bits per byte     {bits:.3f}" in retain("eval", out, "--split", "validation")[1]
    assert load_config(out / "config.json").data.tokenizer == str(path)
    # The run keeps its own, whatever the file has become.
    tokenizer(path, ["Another text altogether, quite other words."])
    code, again, complaint = retain("eval", out, "--split", "validation", "--json")
    assert (code, complaint) == (0, "") and json.loads(again)["bits_per_token"] == result["bits_per_token"]
    (out / "manifest.json").unlink()  # as if it had been killed before it was exported
    assert retain("train", "--out", out, "--resume", "--quiet")[0] == 0
    code, said, complaint = retain("generate", out, "--prompt", "Once ü", "--length", "5")
    assert (code, complaint) == (0, "")
    assert said.startswith("Once ü")
    assert json.loads((out / "samples.json").read_text())["settings"]["prompt"] == "Once ü"
    path.unlink()
    config = load_run(out).config
    data = load_data(config.data)
    assert data.decode(data.encode("Once there was")).split() == ["Once", "there", "was"]
    assert train(config, out, resume=True, progress_bar=False) is not None  # the copy is the run's own
    retain_save(load(out), config, tmp_path / "mine", data=data)
    code, said, complaint = retain("generate", tmp_path / "mine", "--prompt", "Once", "--length", "5")
    assert (code, complaint) == (0, "") and said.startswith("Once")
    (out / "tokenizer.json").write_text('{"version": ')
    code, said, complaint = retain("generate", out, "--prompt", "Once", "--length", "5")
    assert (code, said) == (2, "") and complaint.count("\n") == 1 and "tokenizer.json: is damaged" in complaint


@pytest.mark.parametrize("kind", ["BPE", "WordLevel"])
def test_a_prompt_outside_a_tokenizers_vocabulary_is_refused(kind):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"a": 0, "b": 1, "ab": 2}
    made = Tokenizer(models.BPE(words, [("a", "b")]) if kind == "BPE" else models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read_prompt(made, "ab a") == [2, 0]
    assert read_prompt(made, "") == []
    with pytest.raises(ValueError, match="prompt: .*日.* is not in the tokenizer's vocabulary"):
        read_prompt(made, "ab 日")


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
    data = load_data(data_config(name="documents", path=str(path), column="story", seq_len=20, reset=True))
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


# The hub itself: in processes of their own, because the library reads its environment only once.

LOAD = """
import json, os, sys
import numpy as np
from retain.config import data_config
from retain.data import load_data
for prepared, changes in json.loads(sys.argv[1]):
    os.environ["RETAIN_CACHE"] = prepared
    fields = {"name": "documents", "path": "hf:roneneldan/TinyStories", "seq_len": 20, "reset": True}
    try:
        data = load_data(data_config(**(changes if changes.get("name") == "series" else fields | changes)))
    except ValueError as error:
        print(json.dumps(str(error)))
        continue
    if data.channels is not None:
        print(json.dumps([(s.name, str(s.first), s.values[:, 0].tolist()) for s in data.table.series]))
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
        pin = {"path": f"hf:roneneldan/TinyStories@{commits[0]}"}
        newest, pinned, streamed, nowhere, unknown = ask(
            ("a", {}),
            ("a", pin),
            ("a", pin | {"stream": True}),
            ("a", {"path": "hf:roneneldan/TinyStories@nowhere"}),
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
    for part in (
        "data.path",
        "'hf:roneneldan/TinyStories@nowhere'",
        "'nowhere'",
        address,
        "give a local copy",
        "--data PATH",
    ):
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


def test_series_of_the_hub(ask, tmp_path):
    """As monash_tsf has them: a row for each series."""
    values = [[float(i * j % 7) for i in range(60)] for j in (1, 2)]
    path = tmp_path / "bank" / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    starts = pa.array([np.datetime64("1996-03-18", "s")] * 2)
    pq.write_table(
        pa.table({"start": starts, "target": values, "feat_static_cat": [[0], [1]], "item_id": list("ab")}), path
    )
    series = {"name": "series", "path": "hf:Monash-University/monash_tsf", "seq_len": 8, "freq": "D", "time": "start"}
    with hub("Monash-University/monash_tsf", [tmp_path / "bank"]) as (address, _, _):
        read, unknown = ask(
            ("a", series), ("a", series | {"path": "hf:Monash-University/monash_tsf@nowhere"}), HF_ENDPOINT=address
        )
    assert read == [["a", "1996-03-18 00:00:00", values[0]], ["b", "1996-03-18 00:00:00", values[1]]]
    assert "'hf:Monash-University/monash_tsf@nowhere' could not be loaded" in unknown
    assert ask(("a", series), HF_HUB_OFFLINE="1") == [read]
