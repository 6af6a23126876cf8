"""Labels made once: a run that reads them is one whose model is there, and a kill costs some seconds of work."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

import language_models as made  # noqa: E402
from conftest import tiny, train_tiny  # noqa: E402
from forks import Forked  # noqa: E402
from retain.config import DocumentDataConfig  # noqa: E402
from retain.model.language_model import GivenLanguageModel  # noqa: E402
from retain.runs.trunk import with_labels_of, with_source  # noqa: E402
from retain.training import label  # noqa: E402
from retain.training.label import make_labels  # noqa: E402
from retain.training.loop import train  # noqa: E402

BOTH = {"smt__lambda_distill": 0.5, "dmt__lambda_distill": 0.5, "validate_every": "6steps"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "book.txt").write_text(made.text(120))
    made.llama(folder / "llama")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def config(world, model="llama", **data):
    data = DocumentDataConfig(path=str(world / "book.txt"), tokenizer="that of the model", seq_len=made.SEQ_LEN, **data)
    return with_source(tiny(data=data, **BOTH), str(world / model))


def losses(folder):
    """What each step and validation say, but for the clocks and for how many layers a step waits for."""
    left_out = ("seconds", "tokens_per_second", "validation_seconds", "data_wait", "sequential_steps", "phase", "lr")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in left_out} for line in lines]


def with_pruned_data(c):
    return dataclasses.replace(c, data=dataclasses.replace(c.data, prune_vocab=True))


@pytest.mark.parametrize("kind", ["model", "pruned", "documents", "run", "context", "documents and context"])
def test_a_run_with_labels_is_one_with_the_model_to_rounding(world, tmp_path, kind, monkeypatch):
    """The model is gone by then."""
    if kind == "run":
        c = with_source(tiny(data=text_data(world), **BOTH), str(train_tiny(tmp_path / "gone", data=text_data(world))))
    else:
        shutil.copytree(world / "llama", tmp_path / "gone")
        c = config(world, **({"reset": True} if "documents" in kind else {}))
        if "context" in kind:  # of two sequences a block; what lies before them matters in each phase
            teacher = dataclasses.replace(c.teacher, context_before=30, temperature=2.0)
            bptt = dataclasses.replace(c.bptt, lambda_distill=0.5)
            c = dataclasses.replace(c, teacher=teacher, bptt=bptt, phases=("smt", "dmt", "bptt"), budget="18steps")
        c = with_source(with_pruned_data(c) if kind == "pruned" else c, str(tmp_path / "gone"))
    train(c, tmp_path / "live", progress_bar=False)
    manifest = make_labels(c, tmp_path / "labels", progress_bar=False)
    shutil.rmtree(tmp_path / "gone")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    given = c.teacher
    plain = dataclasses.replace(given, from_=None, context_before=0, temperature=1.0)
    kept = with_labels_of(dataclasses.replace(c, teacher=plain, bptt=tiny().bptt), tmp_path / "labels", None)
    assert kept.teacher.context_before == given.context_before
    kept = dataclasses.replace(kept, bptt=c.bptt)
    kept = dataclasses.replace(kept, teacher=dataclasses.replace(kept.teacher, temperature=given.temperature))
    assert kept.data.seq_len == c.data.seq_len and kept.teacher.from_ == str(tmp_path / "gone")
    train(kept, tmp_path / "kept", progress_bar=False)
    live, now = losses(tmp_path / "live"), losses(tmp_path / "kept")
    assert len(live) == len(now) > 12 and any("validation_relative_drift" in line for line in now)
    for before, after in zip(live, now, strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key] == pytest.approx(value, rel=0.02, abs=0.01), (key, before["step"])
    assert live != now, "nothing was rounded, so it was not labels that were read"
    assert manifest["splits"]["train"] * (made.SEQ_LEN + 1) * 16 * 2 == manifest["files"]["train.states"]


def text_data(world):
    from retain.config import TextDataConfig

    return TextDataConfig(path=str(world / "book.txt"), seq_len=made.SEQ_LEN)


KILLED = """
import os, signal, sys
from pathlib import Path
from retain.config.json import load_config
from retain.training import label
from retain.model.given import GivenTrunk

label.SAVE_SECONDS = 0.0
forward, calls = GivenTrunk.forward, 0

def count(self, tokens, *args, **kwargs):
    global calls
    calls += len(tokens) == 4
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, tokens, *args, **kwargs)

GivenTrunk.forward = count
label.make_labels(load_config(Path(sys.argv[1])), Path(sys.argv[2]), 4, False)
"""


@pytest.mark.parametrize("reset", [False, True])
def test_labels_know_what_lies_before_a_window(world, tmp_path, reset):
    """The slow twin: transformers reads each window after all that its pass has before it."""
    from retain.data import load_data
    from retain.data.contexts import find_passes
    from retain.data.labels import with_labels

    c = config(world, reset=reset)
    c = dataclasses.replace(c, teacher=dataclasses.replace(c.teacher, context_before=30))
    make_labels(c, tmp_path / "labels", 6, progress_bar=False)
    data = load_data(c.data)
    labelled = with_labels(data, tmp_path / "labels")
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "llama").eval()
    number = data.count("train")
    chosen = np.array([0, 1, 2, 3, 4, 7, number - 2, number - 1])
    stream, first, offset = find_passes(data, "train", chosen, 30)
    assert max(offset) > 30
    for index, start, before in zip(chosen, first, offset, strict=True):
        batch = labelled.sequences("train", np.array([index]))
        count = int((batch["targets"] != -100).sum())
        ids = [0, *np.asarray(stream[start : start + before]).tolist(), *batch["tokens"][0, : count - 1].tolist()]
        with torch.no_grad():
            found = model(torch.tensor([ids]), output_hidden_states=True)
        want = found.hidden_states[-1][0, -count:]
        torch.testing.assert_close(batch["states"][0, :count].float(), want, atol=0.02, rtol=0.02)
        likeliest = found.logits[0, -count:, : data.vocab_size].argmax(-1)
        assert torch.equal(batch["top_tokens"][0, :count, 0], likeliest)


SHARED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from retain.config.json import load_config
from retain.training import label
label.make_labels(load_config(Path(sys.argv[1])), Path(sys.argv[2]), 4, False)
"""
DYING = """
import os, signal
from retain.model.given import GivenTrunk
forward, calls = GivenTrunk.forward, 0
def count(self, tokens, *args, **kwargs):
    global calls
    calls += len(tokens) == 4
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, tokens, *args, **kwargs)
GivenTrunk.forward = count
from retain.training import label
label.SAVE_SECONDS = 0.0
"""


@pytest.mark.slow
def test_labels_of_two_processes_are_those_of_one_and_go_on_with_any_number(world, tmp_path):
    from test_train_processes import two_processes

    from retain.config.json import save_config

    c = config(world)
    save_config(c, tmp_path / "config.json")
    whole = make_labels(c, tmp_path / "one", 4, False)
    for name, dies in (("two", False), ("killed", True)):
        workers = two_processes(DYING * dies + SHARED, tmp_path / "config.json", tmp_path / name)
        for worker in workers:
            said, _ = worker.communicate()
            assert worker.returncode == (-signal.SIGKILL if dies else 0), said
    assert not (tmp_path / "killed").exists()
    done = np.fromfile(tmp_path / "killed.partial" / "train.done", np.uint8)
    assert done[:6].all() and not done.all(), "each of the two had done some batches, and saved them"
    assert make_labels(c, tmp_path / "killed", 4, False) == whole
    for folder in ("two", "killed"):
        assert {p.name for p in (tmp_path / folder).iterdir()} == {*whole["files"], "manifest.json"}
        for name in whole["files"]:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.parametrize("calls", [1, 9])
def test_labels_go_on_after_a_kill_and_are_the_same(world, tmp_path, calls, monkeypatch, caplog):
    from retain.config.json import save_config

    c = config(world)
    save_config(c, tmp_path / "config.json")
    with Forked(KILLED, tmp_path / "config.json", tmp_path / "labels", calls) as process:
        said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (tmp_path / "labels").exists() and (tmp_path / "labels.partial").is_dir()
    with pytest.raises(ValueError, match="half written; run `retain label` again"):
        with_labels_of(c, tmp_path / "labels", None)
    with (tmp_path / "labels.partial" / "train.states").open("ab") as file:
        file.write(b"torn")  # as a kill within a write leaves it
    read, forward = [], GivenLanguageModel.read
    monkeypatch.setattr(GivenLanguageModel, "read", lambda self, *args: read.append(1) or forward(self, *args))
    after = make_labels(c, tmp_path / "labels", 4, False)
    asked = len(read)
    whole = make_labels(c, tmp_path / "straight", 4, False)
    assert asked == len(read) - asked - max(0, calls - 1), "what was done is not done again"
    assert after == whole and not (tmp_path / "labels.partial").exists()
    names = {path.name for path in (tmp_path / "labels").iterdir()}
    assert names == {*whole["files"], "manifest.json"}
    for name in names:
        assert (tmp_path / "labels" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert "sequences of 13 tokens make" in caplog.text and "on the disk are free" in caplog.text


def test_the_command_labels_and_the_run_takes_all_else_from_the_labels(world, tmp_path, retain, caplog):
    small = ("--data.seq-len", made.SEQ_LEN, "--precision", "fp32", "--quiet", "--data.prune-vocab")
    labels, book = tmp_path / "labels", world / "book.txt"
    code, said, _ = retain("label", book, "--teacher.from", world / "llama", "--out", labels, *small)
    assert code == 0 and "sequences of train" in said and "of labels" in caplog.text
    assert f"retain train PRESET --labels {labels}" in said
    own = ("--budget", "2steps", "--tracker", "None", "--memory.width", "16", "--smt.batch-size", "4", "--quiet")
    windows = ("--smt.bptt-window", "4", "--dmt.bptt-window", "4")
    train = ("train", "text", "--labels", labels, "--out", tmp_path / "run", *own, *windows)
    assert retain(*train)[0] == 0
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    assert values["teacher"]["from_"] == str(world / "llama") and values["teacher"]["labels"] == str(labels)
    assert values["data"]["seq_len"] == made.SEQ_LEN and values["data"]["path"] == str(book)
    # As in the run, so in the labels: nothing is left of the pruning but its tokenizer.
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (labels / "tokenizer.json").read_bytes()
    code, said, _ = retain("eval", tmp_path / "run")
    assert code == 0 and "bits per byte" in said


BAD_LABELS = [
    (["--labels", "nowhere"], ["labels", "nowhere does not exist", "run `retain label` first"]),
    (["--labels", "begun"], ["labels", "half written", "`retain label` again"]),
    (["--labels", "cut"], ["labels", "train.states has", "bytes instead of", "anew"]),
    (["--labels", "torn"], ["labels", "torn", "no complete labels", "anew"]),
    (["--labels", "good", "--data", "other.txt"], ["labels", "of other data", "sha256"]),
    (["--labels", "good", "--teacher.from", "other"], ["labels", "another model than", "other", "leave out one"]),
    (["--labels", "good", "--data.seq-len", "9"], ["labels", "seq_len 12", "this data has 9"]),
    (["--labels", "good", "--teacher.layer", "1"], ["teacher.layer", "1 is not that of", "None", "leave it out"]),
    (["--labels", "good", "--teacher.top-k", "3"], ["teacher.top_k", "3 is not that of", "32", "leave it out"]),
    (
        ["--labels", "good", "--teacher.context-before", "9"],
        ["context_before", "9 is not that of", "0", "leave it out"],
    ),
    (["--labels", "good", "--teacher.trunk-lr", "0.1"], ["teacher.trunk_lr", "0.1 trains the model", "leave out"]),
    (["--labels", "good", "--smt.seq-len", "9"], ["smt.seq_len", "9", "labels have whole ones", "leave it out"]),
]


@pytest.fixture(scope="module")
def bad_world(world, tmp_path_factory):
    os.environ["RETAIN_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    folder = tmp_path_factory.mktemp("bad")
    make_labels(config(world), folder / "good", progress_bar=False)
    for name in ("cut", "torn"):
        shutil.copytree(folder / "good", folder / name)
    with (folder / "cut" / "train.states").open("ab") as file:
        file.truncate(100)
    (folder / "torn" / "manifest.json").write_text('{"version": 1')
    (folder / "begun.partial").mkdir()
    (folder / "other.txt").write_text(made.text(120, seed=1))
    made.llama(folder / "other", seed=1)
    return folder


@pytest.mark.parametrize(("options", "fragments"), BAD_LABELS)
def test_labels_that_do_not_fit_are_refused_in_one_line(bad_world, options, fragments, retain, monkeypatch):
    monkeypatch.chdir(bad_world)
    windows = ("--smt.bptt-window", "4", "--dmt.bptt-window", "4", "--quiet")
    code, _, complaint = retain("train", "text", *options, *windows, "--out", "run", "--tracker", "None")
    last = [line for line in complaint.splitlines() if not line.startswith("read ")]
    assert code == 2 and len(last) == 1 and all(fragment in last[0] for fragment in fragments), complaint
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layer": 1}, "model or layer"),
        ({"top_k": 4}, "teacher.top_k"),
        ({"context_before": 20}, "teacher.context_before"),
        ({}, "data"),
        (None, "version of retain"),
    ],
)
def test_labels_that_were_begun_with_other_settings_are_not_gone_on_with(world, tmp_path, monkeypatch, change, what):
    class Stop(Exception):
        pass

    def stop(*args):
        if calls.pop() == 0:
            raise Stop
        return compress(*args)

    calls, make, compress = [0, 1, 2], config(world), label.compress
    monkeypatch.setattr(label, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(label, "compress", stop)
        with pytest.raises(Stop):
            make_labels(make, tmp_path / "labels", progress_bar=False)
    other = dataclasses.replace(make, teacher=dataclasses.replace(make.teacher, **(change or {})))
    if change is None:
        (tmp_path / "labels.partial" / "progress.json").write_text("{")
    elif not change:
        (tmp_path / "other.txt").write_text(made.text(120, seed=1))
        other = dataclasses.replace(make, data=dataclasses.replace(make.data, path=str(tmp_path / "other.txt")))
    with pytest.raises(ValueError, match=rf"labels.partial was begun with another {what}; delete it, or name another"):
        make_labels(other, tmp_path / "labels", progress_bar=False)


def test_labels_are_not_begun_without_room_or_over_others(world, tmp_path, monkeypatch):
    make = config(world)
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(label.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match=r"kB of labels are missing and 1.0 kB are free; make room"):
        make_labels(make, tmp_path / "others", progress_bar=False)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        make_labels(make, tmp_path / "there", progress_bar=False)
    with pytest.raises(ValueError, match="retrieval is drawn anew"):
        make_labels(with_source(tiny(), str(train_tiny(tmp_path / "run"))), tmp_path / "tasks", progress_bar=False)


def test_kept_labels_are_read_from_the_disk_as_they_are(world, tmp_path):
    """States in bfloat16, log-probabilities in float16; the first position is that of no tokens."""
    from retain.data import load_data
    from retain.data.labels import with_labels
    from retain.runs.trunk import for_teacher, open_trunk

    c = config(world)
    make_labels(c, tmp_path / "labels", progress_bar=False)
    data = with_labels(for_teacher(c, load_data(c.data)), tmp_path / "labels")
    batch, trunk = data.batch(0, 0, 0, 3), open_trunk(c, data)
    states, _ = trunk(batch["tokens"], False)
    assert batch["states"].dtype == torch.bfloat16 and torch.equal(batch["states"], states.bfloat16())
    assert torch.equal(batch["states"][0, 0], batch["states"][1, 0])
    kept = with_labels_of(c, tmp_path / "labels", None)
    assert torch.equal(open_trunk(kept, data)(batch["tokens"][:, :0], False)[0][:, 0], batch["states"][:, 0].float())
