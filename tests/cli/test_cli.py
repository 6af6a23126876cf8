"""The command line and the API, as a user meets them. RETAIN_UPDATE_SNAPSHOTS=1 rewrites the help texts."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import tiny, train_tiny
from retain.cli.train import list_unread, train_config
from retain.cli.train_help import list_options
from retain.config.json import load_config, save_config
from retain.config.presets import PRESETS
from runs import OWN_CELL, losses

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
HELPS = {
    "retain": ["--help"],
    "train": ["train", "--help"],
    "train-text": ["train", "text", "--help"],
    "train-series": ["train", "series", "--help"],
    "eval": ["eval", "--help"],
    "generate": ["generate", "RUN", "--help"],
    "forecast": ["forecast", "RUN", "--help"],
    "score": ["score", "RUN", "--help"],
    "export": ["export", "--help"],
    "serve": ["serve", "RUN", "--help"],
    "label": ["label", "--help"],
    "info": ["info", "-h"],
    "tasks": ["tasks", "--help"],
    "compare": ["compare", "--help"],
    "sweep": ["sweep", "--help"],
    "report": ["report", "RUN", "--help"],
    "plot": ["plot", "--help"],
}


def python(code, *arguments, **env):
    """Run code in a Python of its own, warnings as errors."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **env}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


HELP = """
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
try:
    from retain.cli import main
    main()
finally:
    sys.setprofile(None)
    assert not {"torch", "numpy", "accelerate"} & set(sys.modules)
    assert 100_000 < calls < 2_000_000, calls
"""
"""Calls are as many on every machine, seconds are not: 0.8 million at most, a quarter of a second on a slow core."""


@pytest.mark.parametrize("name", HELPS)
def test_help_texts_are_as_they_were_and_need_no_torch_and_little_work(name):
    """Also of another width in the terminal's environment: what is shown must come from COLUMNS alone."""
    done = python(HELP, *HELPS[name], LINES="7", TERM="dumb", NO_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("RETAIN_UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(done.stdout)
    assert done.stdout == path.read_text(), (
        "if the change is meant: RETAIN_UPDATE_SNAPSHOTS=1 pytest tests/cli/test_cli.py"
    )


def test_no_arguments_show_the_help_and_version_the_version(retain):
    import retain as package

    assert retain()[:2] == (0, (SNAPSHOTS / "retain.txt").read_text())
    assert retain("--version")[:2] == (0, f"retain {package.__version__}\n")


def test_train_eval_generate_info(retain, tmp_path, monkeypatch):
    (tmp_path / "small.txt").write_text("a small text, é. " * 100)
    out, file = tmp_path / "run", tmp_path / "tiny.json"
    save_config(tiny(), file)
    options = ["--data.seq-len", "8", "--phases", "smt", "bptt", "--quiet"]
    code, said, complaints = retain("train", "--config", file, "--data", tmp_path / "small.txt", "--out", out, *options)
    assert (code, complaints) == (0, "")
    assert f"{out}: 12 steps, 384 tokens" in said
    assert f"retain eval {out}" in said
    config = load_config(out / "config.json")
    assert (config.data.name, config.data.path, config.phases) == ("text", str(tmp_path / "small.txt"), ("smt", "bptt"))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["vocab_size"], summary["kind"]) == (12, 256, "text")
    assert json.loads((out / "data.json").read_text())["name"] == "text"

    code, said, complaints = retain("eval", out, "--json")
    assert (code, complaints) == (0, "")
    result = json.loads(said)
    keys = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "drift", "relative_drift")
    for key in (*keys, "tokens", "seconds", "tokens_per_second", "sequences", "parameters", "training_seconds"):
        assert isinstance(result[key], (int, float)), key
    assert result["tokens"] == 90  # 5 % of 1,800 bytes, each predicted once
    assert result["split"] == "test"
    assert json.loads((out / "eval-test.json").read_text()) == result
    code, said, _ = retain("eval", out, "--split", "validation", "--limit", "3")
    assert code == 0
    assert f"{out} on validation: 3 sequences, 27 targets" in said
    bits = json.loads((out / "eval-validation-limit3.json").read_text())["bits_by_position"]
    assert f"  by position     {bits[0]:.3f} at t = 0, {bits[4]:.3f} at t = 4, {bits[8]:.3f} at t = 8 (" in said
    assert json.loads((out / "eval-validation-limit3.json").read_text())["tokens"] == 27
    (tmp_path / "book.txt").write_text("another text. " * 100)
    assert retain("eval", out, "--data", tmp_path / "book.txt")[0] == 0
    book = json.loads(next(out.glob("eval-all-book-????????.json")).read_text())
    assert book["data"]["path"] == str(tmp_path / "book.txt") and book["tokens"] == 1400, "all of what is only scored"
    assert json.loads((out / "eval-test.json").read_text()) == result

    code, said, complaints = retain("generate", out, "--prompt", "ab", "--length", "20", "--seed", "3")
    assert (code, complaints) == (0, "")
    settings = json.loads((out / "samples.json").read_text())["settings"]
    assert (settings["seed"], settings["prompt"]) == (3, "ab")
    (sample,) = json.loads((out / "samples.json").read_text())["samples"]
    assert said == f"ab{sample['text']}\n"
    assert len(sample["tokens"]) == 20
    decoded = bytes(sample["tokens"]).decode(errors="replace")
    assert sample["text"] in (decoded, decoded[:-1]), "an unfinished character is not printed"
    with monkeypatch.context() as patch:
        patch.setattr("retain.cli.generate.KEPT", 8)
        assert retain("generate", out, "--prompt", "ab", "--length", "20", "--seed", "3")[1] == said
    (end,) = json.loads((out / "samples.json").read_text())["samples"]
    assert (end["count"], end["tokens"]) == (20, sample["tokens"][-8:]), "memory does not grow with the length"

    code, said, complaints = retain("info", out, "--json")
    assert (code, complaints) == (0, "")
    info = json.loads(said)
    assert info["results"]["eval-test"] == result | {"current": True}
    assert info["finished"] is True
    assert info["memory"] == [2, 8]
    code, said, _ = retain("info", out)
    assert code == 0
    for fragment in ("smt then bptt, finished", "vocabulary 256", "2 x 8, batch", "eval-test"):
        assert fragment in said


def test_a_saved_config_gives_the_same_run(retain, tiny_file, tmp_path):
    for source, out in ((tiny_file, tmp_path / "a"), (tmp_path / "a" / "config.json", tmp_path / "b")):
        assert retain("train", "--config", source, "--out", out, "--quiet")[0] == 0
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert retain("train", "--config", tiny_file, "--seed", "9", "--out", tmp_path / "c", "--quiet")[0] == 0
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_options_override_the_config_and_are_saved(retain, tiny_file, tmp_path):
    out = tmp_path / "run"
    options = ["--smt.lr", "0.5", "--budget", "3steps", "--phases", "smt", "--memory.norm", "rms"]
    assert retain("train", "--config", tiny_file, "--out", out, "--quiet", *options)[0] == 0
    assert load_config(out / "config.json") == tiny(smt__lr=0.5, budget="3steps", phases=("smt",), memory__norm="rms")


@pytest.mark.parametrize(
    "line, words",
    [
        ("--phases bptt --dmt.lr 1", "--dmt.lr: not read, dmt is none of this run's phases (bptt)"),
        (
            "--phases bptt --teacher.future-len 9",
            "--teacher.future-len: not read, there is no teacher in a run of bptt",
        ),
        ("--cell.kind gru --cell.width 9", "--cell.width: not read, a gru cell has none"),
        ("--cell.kind gru --cell.no-residual", "--cell.no-residual: not read, a gru cell has none"),
        (
            "--teacher.encoder window --smt.lambda-trunk 2",
            "--smt.lambda-trunk: not read, a window encoder has no trunk",
        ),
        (
            "--smt.bptt-window None --smt.on-policy 1",
            "--smt.on-policy: not read, f runs over the whole sequence (smt.bptt_window)",
        ),
        (
            "--dmt.bptt-window 64 --dmt.horizon 3",
            "--dmt.horizon: not read, f runs over the whole sequence (dmt.bptt_window)",
        ),
        ("--phases bptt --teacher.decoder-layers 2 --bptt.lr 1", ""),
    ],
)
def test_options_that_a_run_does_not_read_are_told_of(line, words):
    argv = ["retrieval", *line.split()]
    assert "".join(list_unread(argv, train_config(argv)[0])) == words


@pytest.mark.parametrize(
    "line, words",
    [
        ("mnist --data.seq-len 9", "--data.seq-len: not read, images are read whole (data.image_size)"),
        ("mnist --data.reset", "--data.reset: not read, every image starts from m_0"),
        ("mnist --data.events --data.reset --data.seq-len 9", ""),
        (
            "mnist-paper --smt.num-chunks 2",
            "--smt.num-chunks: not read, f is trained on one step of a sequence (smt.steps_per_sequence)",
        ),
    ],
)
def test_options_that_do_nothing_for_images_are_told_of(line, words):
    assert "".join(list_unread(line.split(), train_config(line.split())[0])) == words


def test_images_may_have_all_levels_or_some():
    for line, levels in (("mnist", 2), ("mnist --data.thresholds", 256), ("mnist --data.thresholds 64 128 192", 4)):
        assert train_config(line.split())[0].data.levels == levels


@pytest.mark.parametrize(
    ("line", "windows", "weight"),
    [
        ("stdlib", (16, 32), 0.02),
        ("stdlib --recipe one-step", (1, 1), 1.0),
        ("stdlib --cell.kind transformer", (1, 1), 1.0),
        ("stdlib --cell.kind=transformer --dmt.lambda-dyn 0.3", (1, 1), 0.3),
        ("stdlib --cell.kind transformer --recipe hybrid", (16, 32), 0.02),
        ("stdlib --recipe one-step --smt.bptt-window 4", (4, 1), 1.0),
        ("tinystories-paper", (1, 1), 10.0),
    ],
)
def test_a_recipe_is_the_cells_own_unless_one_is_named_and_options_go_before_it(line, windows, weight):
    config = train_config(line.split())[0]
    assert (config.smt.bptt_window, config.dmt.bptt_window) == windows and config.dmt.lambda_dyn == weight


def test_a_run_that_goes_on_keeps_its_recipe(retain, tmp_path):
    out = tmp_path / "run"
    assert retain("train", "retrieval", "--recipe", "one-step", "--budget", "2steps", "--out", out, "--quiet")[0] == 0
    assert json.loads((out / "summary.json").read_text())["longest_gradient_path"] == 1
    assert "through at most 1 step of time" in retain("info", out)[1]
    code, _, complaint = retain("train", "--out", out, "--resume", "--recipe", "hybrid")
    assert code == 2 and "recipe: a resumed run keeps its own" in complaint
    code, _, complaint = retain("train", "retrieval", "--recipe", "two-step")
    assert code == 2 and "recipe: 'two-step' is none of one-step, hybrid" in complaint


def test_help_shows_what_the_run_reads(retain):
    def options(*words):
        said = retain("train", *words)[1]
        return {word.rstrip(",") for word in said.split() if word.startswith("--") and "." in word}

    short, every = options("stdlib", "--help"), options("stdlib", "--help-all")
    assert short < every and 15 < len(short) < 35
    assert "--smt.on-policy" in every and "--bptt.lr" not in every and "--cell.heads" not in every
    bptt = options("stdlib", "--phases", "bptt", "--cell.kind", "transformer", "--help-all")
    assert {"--bptt.lr", "--cell.heads"} <= bptt and not any(word.startswith(("--smt", "--dmt")) for word in bptt)
    of_model = options("tinystories", "--teacher.from", "model", "--help")
    assert {"--teacher.layer", "--teacher.top-k", "--teacher.init-embeddings", "--data.prune-vocab"} <= of_model
    assert "--teacher.layers" not in of_model and "--teacher.layer" not in every
    assert "--data.depth" in options("stack", "--help-all") and "--data.depth" not in options("parity", "--help-all")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_at_most_60_options(name):
    config = PRESETS[name]()
    assert len(list_options(config)) <= 60
    if config.teacher.encoder == "state" and name != "series":  # which no model of tokens teaches
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, from_="model"))
        assert len(list_options(config)) <= 60


def test_the_progress_bar_goes_to_stderr_and_quiet_silences_it(retain, tiny_file, tmp_path):
    code, said, complaints = retain("train", "--config", tiny_file, "--out", tmp_path / "run")
    assert code == 0
    assert "smt" in complaints and "dmt" in complaints and "ETA" in complaints
    assert "12/12 steps" in complaints and "/6 steps" not in complaints, "what is left is left of the whole run"
    assert "ETA" not in said


def test_digits_are_written_as_a_png(retain, digits_run, tmp_path):
    from PIL import Image

    for name in ("a.png", "b.png"):
        code, said, complaints = retain("generate", digits_run, "--count", "9", "--out", tmp_path / name)
        assert (code, complaints) == (0, "")
        assert said == f"9 images in {tmp_path / name}\n"
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (8 * 52 + 4, 2 * 52 + 4)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    samples = json.loads((digits_run / "samples.json").read_text())["images"]
    assert [len(s) for s in samples] == [64] * 9
    code, _, _ = retain("generate", digits_run, "--prompt", "0 5 16", "--count", "2")
    assert code == 0
    assert (digits_run / "samples.png").exists()
    samples = json.loads((digits_run / "samples.json").read_text())["images"]
    assert [s[:3] for s in samples] == [[0, 5, 16]] * 2


def test_generating_is_reproducible(retain, text_run, retrieval_run):
    for path in (text_run, retrieval_run):
        first, again, other = (retain("generate", path, "--length", "50", "--seed", s)[1] for s in (1, 1, 2))
        assert first == again != other
        greedy = [retain("generate", path, "--length", "50", "--temperature", "0", "--seed", s)[1] for s in (1, 2)]
        assert greedy[0] == greedy[1]


def test_tokens_are_printed_with_spaces(retain, retrieval_run):
    code, said, _ = retain("generate", retrieval_run, "--prompt", "0 3 8", "--length", "4")
    assert code == 0
    assert said.startswith("0 3 8 ")
    (sample,) = json.loads((retrieval_run / "samples.json").read_text())["samples"]
    assert said == f"0 3 8{sample['text']}\n" and said.split()[3:] == [str(token) for token in sample["tokens"]]


def test_a_teacher_that_nothing_trained_is_not_scored(retain, tmp_path):
    out = train_tiny(tmp_path / "run", phases=("bptt",), budget="2steps")
    assert "teacher" not in (out / "metrics.jsonl").read_text()
    found = json.loads(retain("eval", out, "--json")[1])
    assert found["teacher_accuracy"] is found["teacher_bits_per_token"] is found["drift"] is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_nobody_could_read_is_kept_all_the_same(retrieval_run, tmp_path):
    out = shutil.copytree(retrieval_run, tmp_path / "run")
    with open("/dev/full", "w") as full:
        code = "import sys; from retain.cli import main; main(['eval', sys.argv[1], '--json'])"
        done = subprocess.run([sys.executable, "-c", code, str(out)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "retain: disk: No space left on device\n"
    assert json.loads((out / "eval-test.json").read_text())["split"] == "test"


def test_a_users_own_cell_is_found_where_the_command_runs(retain, tiny_file, tmp_path, monkeypatch):
    (tmp_path / "mycell.py").write_text(OWN_CELL)
    monkeypatch.chdir(tmp_path)
    try:
        options = ["--cell.kind", "mycell:Cell", "--budget", "4steps", "--out", "run", "--quiet"]
        code, _, complaints = retain("train", "--config", tiny_file, *options)
        assert (code, complaints) == (0, "")
        assert retain("eval", "run")[0] == 0
    finally:
        sys.modules.pop("mycell", None)


def test_the_api_reads_a_stream(text_run):
    """In a Python of its own, as the README shows it."""
    code = (
        "import sys, torch, retain\n"
        "rnn = retain.load(sys.argv[1])\n"
        "memory = rnn.init_memory(1)\n"
        "for byte in b'to be':\n"
        "    logits, memory = rnn.step(torch.tensor([byte]), memory)\n"
        "print(tuple(logits.shape), tuple(memory.shape), memory.dtype)\n"
    )
    done = python(code, text_run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(1, 256) (1, 2, 8) torch.float32\n"


def test_memory_can_be_saved_and_restored(text_run, tmp_path):
    import retain as package

    rnn = package.load(text_run)
    tokens = torch.tensor([list(b"to be or not to be")])
    with torch.no_grad():
        logits, last = rnn(tokens)
        first, memory = rnn(tokens[:, :7])
        torch.save(memory, tmp_path / "memory.pt")
        restored = torch.load(tmp_path / "memory.pt", weights_only=True)
        second, end = rnn(tokens[:, 7:], restored)
        torch.testing.assert_close(torch.cat([first, second], 1), logits)
        torch.testing.assert_close(end, last)
        stepped, _ = rnn.step(tokens[:, 7], restored)
        torch.testing.assert_close(stepped, logits[:, 7])
    assert not rnn.training


def test_every_public_name_is_there_whatever_was_imported_before():
    """Each in a process that has not imported retain, forked from one that has imported what takes long."""
    names = "import retain; names = {name: getattr(retain, name) for name in retain.__all__}; "
    names += "assert callable(names['load']) and callable(names['train'])"
    modules = "from retain import evaluate, generate; assert callable(evaluate) and callable(generate)"
    before = "import retain.training.loop, retain.inference.evaluate, retain.inference.generate; "
    code = (
        "import os, sys, torch, accelerate\n"
        "for code in sys.argv[1:]:\n"
        "    assert 'retain' not in sys.modules\n"
        "    if (child := os.fork()) == 0:\n"
        "        exec(code)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0, code\n"
    )
    done = python(code, names, modules, before + names, before + modules)
    assert done.returncode == 0, done.stderr
    import retain as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = package.nothing_like_it
