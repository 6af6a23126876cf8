"""Pages and plots of runs in any state, and mistakes: what is missing is told of, nothing of the user's is lost."""

import importlib.util
import json
import os
import shutil
import time

import pytest

MISSING = [name for name in ("plotly", "matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
if MISSING and not os.environ.get("RETAIN_REQUIRE_BROWSER"):
    pytest.skip(f"no {', '.join(MISSING)} here: pip install 'retain[report]'", allow_module_level=True)


def old(path):
    os.utime(path / "metrics.jsonl", (time.time() - 9999,) * 2)


def drop_summary(path):
    (path / "summary.json").unlink()


def running(path):
    drop_summary(path)
    os.utime(path / "metrics.jsonl")


def stopped(path):
    drop_summary(path)
    old(path)


def no_dmt(path):
    stopped(path)
    lines = (path / "metrics.jsonl").read_text().splitlines(True)
    (path / "metrics.jsonl").write_text("".join(line for line in lines if '"dmt"' not in line))
    shutil.rmtree(path / "phases/2-dmt")
    old(path)


def corrupt_line(path):
    lines = (path / "metrics.jsonl").read_text().splitlines(True)
    (path / "metrics.jsonl").write_text("".join([lines[0], "\0\0 garbage\n", *lines[1:]]))


def cut_line(path):
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[:-20])


def just_begun(path):
    for name in ("checkpoints", "phases"):
        shutil.rmtree(path / name)
    for name in ("metrics.jsonl", "summary.json", "manifest.json", "model.safetensors", "state.json"):
        (path / name).unlink()


def state(name, damage, words, has_figures):
    return pytest.param(damage, words, has_figures, id=name)


STATES = [
    state("running", running, ["still being written"], True),
    state("stopped", stopped, ["stopped before its end; go on with"], True),
    state("no dmt", no_dmt, ["phase dmt of smt then dmt has not begun"], True),
    state("corrupt line", corrupt_line, ["metrics.jsonl: 1 of 15 lines cannot be read; the first is line 2"], True),
    state("cut line", cut_line, ["its last line is cut short"], True),
    state("just begun", just_begun, ["nothing is logged yet", "the model: ", "neither an exported model nor"], False),
    state("weights", lambda p: (p / "model.safetensors").write_bytes(b"x"), ["the model: ", "truncated"], False),
    state(
        "phase", lambda p: (p / "phases/1-smt/model.safetensors").unlink(), ["model after smt: ", "is missing"], True
    ),
    state("phases", lambda p: shutil.rmtree(p / "phases"), ["the model after smt is not in"], True),
    state("eval", lambda p: (p / "eval-test.json").write_text("{"), ["eval-test.json: "], True),
    state("data", lambda p: (p / "data.json").write_bytes(b"\xff"), ["data.json: "], True),
]


@pytest.mark.parametrize("damage, words, has_figures", STATES)
def test_a_run_in_any_state_gives_a_page_that_says_so(broken, damage, words, has_figures, monkeypatch, retain):
    monkeypatch.delenv("RETAIN_DEBUG", raising=False)
    damage(broken)
    code, said, complaints = retain("report", broken)
    assert (code, complaints) == (0, "")
    page, report = (broken / "report.html").read_text(), json.loads((broken / "report.json").read_text())
    notes = " ".join(report["runs"][0]["notes"])
    for word in words:
        assert word in notes and word in said
    assert "What is missing" in page
    assert (report["runs"][0]["positions"] is not None) == has_figures
    assert ("No figures: the model or its data could not be loaded" in page) != has_figures


def test_a_run_whose_text_is_gone(text_run, tmp_path, retain):
    copy = shutil.copytree(text_run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["path"] = "/nowhere.txt"
    (copy / "config.json").write_text(json.dumps(config))
    code, said, _ = retain("report", copy)
    assert code == 0 and "the data: data.path: '/nowhere.txt' does not exist" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "retain report: name a run folder first"),
        (["report", "/nowhere"], "run: /nowhere is not a folder"),
        (["report", "RUN", "/tmp"], "run: /tmp holds no config.json"),
        (["report", "RUN", "--out", "page.pdf"], "out: page.pdf must be an .html"),
        (["report", "RUN", "--out", "RUN/config.html"], "config.json belongs next to config.html"),
        (
            ["report", "RUN", "--out", "foreign.html"],
            "foreign.html is not a report: it has no foreign.json next to it",
        ),
        (["report", "RUN", "--nonsense"], "--nonsense"),
        (["plot", "RUN"], "retain plot: name a run folder and a plot"),
        (["plot", "RUN", "nonsense"], "name: 'nonsense' is not a plot of"),
        (["plot", "RUN", "drift", "--out", "x.gif"], "out: x.gif must be one of .png, .svg, .pdf"),
        (["plot", "RUN", "memory", "--colour", "nose"], "colour: 'nose' is none of needle, position, last token"),
        (["plot", "BPTT", "memory-teacher"], "it never trained a teacher"),
    ],
)
def test_mistakes(retain, retrieval_run, bptt_run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.html").write_text("another page")
    folders = {"RUN": retrieval_run, "BPTT": bptt_run}
    before = (retrieval_run / "config.json").read_bytes()
    code, said, complaints = retain(*(folders.get(a, a.replace("RUN/", f"{retrieval_run}/")) for a in arguments))
    assert (retrieval_run / "config.json").read_bytes() == before
    assert (code, said) == (2, "") and len(complaints.splitlines()) == 1
    assert message in complaints
    assert (tmp_path / "foreign.html").read_text() == "another page"


def test_an_axis_that_was_not_logged_is_refused(retain, broken, tmp_path):
    read = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "sequential_steps"} for line in read]
    (broken / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    code, said, complaint = retain("plot", broken, "loss", "--x", "sequential_steps", "--out", tmp_path / "x.png")
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert "x: 'sequential_steps' was not logged by this run; use step, seconds, tokens" in complaint


def test_a_curve_asks_for_neither_model_nor_data(retain, broken, tmp_path, monkeypatch):
    monkeypatch.setattr("retain.report.gather.load_data", lambda config: pytest.fail("it may have to be downloaded"))
    (broken / "model.safetensors").unlink()
    assert retain("plot", broken, "loss", "--out", tmp_path / "loss.png") == (0, f"{tmp_path / 'loss.png'}\n", "")


@pytest.mark.parametrize(
    ("name", "suffix"), [("loss", "svg"), ("drift", "png"), ("gradient-trained", "pdf"), ("memory-3d", "png")]
)
def test_a_single_plot(retain, retrieval_run, tmp_path, name, suffix):
    out = tmp_path / f"plot.{suffix}"
    assert retain("plot", retrieval_run, name, "--out", out, "--x", "seconds") == (0, f"{out}\n", "")
    content = out.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "png":
        from PIL import Image

        with Image.open(out) as image:
            assert image.width > 800 and len(image.convert("RGB").getcolors(2**24)) > 20
