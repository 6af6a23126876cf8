"""The report's parts: curves, analyses, words. Pages of runs in any state are in test_report_states."""

import dataclasses
import importlib.util
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import tiny, train_tiny
from naive import VOCAB, assert_close, models
from oracles import oracle
from retain.cli.report import write_command
from retain.config import IGNORE, data_config
from retain.config.json import load_config
from retain.data import load_data
from retain.inference.evaluate import LEFT, evaluate
from retain.objectives.losses import predictive_loss
from retain.report import analyses, history
from retain.report.analyses import find_settling, measure_bptt_gradient, measure_smt_gradient, measure_spread
from retain.report.charts import chart_history, find_colourings
from retain.report.gather import gather
from retain.report.samples import sample_continuations, stream_teacher
from retain.report.verdict import _describe_drift, _describe_quality, describe_run, find_differences
from retain.runs.checkpoint import load_files
from retain.runs.run import load_run
from retain.training.loop import train
from runs import Changed, write_report

MISSING = [name for name in ("plotly", "matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
if MISSING and not os.environ.get("RETAIN_REQUIRE_BROWSER"):
    pytest.skip(f"no {', '.join(MISSING)} here: pip install 'retain[report]'", allow_module_level=True)


def test_thinning_keeps_every_extreme_and_both_ends():
    values = np.random.default_rng(0).normal(size=10_007)
    values[[17, 5003]] = 50, -50
    kept = history.thin(values, 200)
    assert len(kept) <= 202 and (np.diff(kept) > 0).all()
    assert {0, 17, 5003, 10_006} <= set(kept.tolist())
    for bucket in np.array_split(np.arange(10_007), 50):
        inside = kept[np.isin(kept, bucket)]
        # A bucket of the thinning may end inside this one: its extremes are then those of a neighbour.
        assert len(inside) >= 2
    assert history.thin(values[:50], 200).tolist() == list(range(50))


def test_history_has_every_good_line_and_counts_the_others(tmp_path):
    lines = [
        {"step": 1, "phase": "smt", "seconds": 0.5, "tokens": 32, "loss": 2.0, "loss_dec": "nan"},
        {"step": 2, "phase": "smt", "seconds": 1.0, "tokens": 64, "validation_accuracy": 0.5, "validation_seconds": 1},
        {"step": 3, "phase": "dmt", "seconds": 1.5, "tokens": 96, "loss": 1.0, "loss_dec": 3.0, "note": "x"},
    ]
    text = [json.dumps(line) for line in lines]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([text[0], "{ this is no JSON", text[1], "[1]", text[2], '{"step": 4, "lo']))
    found = history.read_history(path)
    assert (found["lines"], found["bad"], found["first_bad"], found["cut"]) == (6, 3, 2, True)
    assert found["curves"] == {
        "loss": {"step": [1, 3], "seconds": [0.5, 1.5], "tokens": [32, 96], "value": [2, 1]},
        "loss_dec": {"step": [3], "seconds": [1.5], "tokens": [96], "value": [3]},
        "validation_accuracy": {"step": [2], "seconds": [1], "tokens": [64], "value": [0.5]},
    }
    assert [(p["phase"], p["step"]) for p in found["phases"]] == [("smt", 1), ("dmt", 3)]
    assert found["last"] == lines[-1]


def test_sequential_steps_are_an_axis_where_they_are_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": "smt", "sequential_steps": 7, "loss": 2.0}\n')
    assert history.read_history(path)["curves"]["loss"] == {"step": [1], "sequential_steps": [7], "value": [2]}


def test_each_phase_leaves_its_model(retrieval_run):
    after = [load_run(retrieval_run, teacher=True, phase=i) for i in (0, 1)]
    assert [run.state["progress"]["step"] for run in after] == [6, 12]
    weights = [run.rnn.embed.weight for run in after]
    assert not torch.equal(*weights)
    # DMT freezes the teacher.
    assert_close(*(run.teacher.state_dict() for run in after), tolerance=0)
    tensors, _ = load_files(retrieval_run / "checkpoints/step-00000012")
    assert_close(after[1].rnn.state_dict(), tensors["model"], tolerance=0)


def scored(drift, variance=1.0):
    """As evaluate() gives it: t = 0 has no relative drift."""
    return {"drift_by_position": [0.0, *drift], "relative_drift_by_position": [None, *(d / variance for d in drift)]}


def test_settles():
    flat = find_settling(scored([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], variance=2.0))
    assert flat["levels_off"] and math.isclose(flat["last_quarter"], 0.15)
    rising = find_settling(scored([0.1 * t for t in range(1, 17)]))
    assert not rising["levels_off"]
    assert_close([rising["third_quarter"], rising["last_quarter"]], [1.05, 1.45])
    assert find_settling(scored([0.1] * 5)) is None
    assert find_settling({"drift_by_position": None, "relative_drift_by_position": None}) is None


@pytest.mark.parametrize("cell", ["mlp", "gru"])
def test_bptt_gradient_is_that_of_what_comes_after(cell):
    """At one t the loss of the targets from t on, as a function of m_t alone, has that gradient."""
    _, rnn = models(cell=cell)
    tokens, targets = torch.randint(7, (3, 6)), torch.randint(7, (3, 7))
    targets[:, 2] = IGNORE
    found = measure_bptt_gradient(rnn, {"tokens": tokens, "targets": targets})
    last = measure_bptt_gradient(rnn, {"tokens": tokens, "targets": targets}, last=True)
    counted = int((targets != IGNORE).sum())
    memories = torch.cat([rnn.init_memory(3)[:, None], rnn.rollout(tokens, rnn.init_memory(3))], 1)
    for t in range(7):
        m_t = memories[:, t].detach().requires_grad_()
        after = torch.cat([m_t[:, None], rnn.rollout(tokens[:, t:], m_t)], 1)
        loss = predictive_loss(rnn.readout(after), targets[:, t:])
        scale = float((targets[:, t:] != IGNORE).sum()) / counted
        (gradient,) = torch.autograd.grad(loss * scale, m_t)
        assert_close(found[t], float((gradient * 3).flatten(1).norm(dim=1).mean()), 1e-6)
        end = torch.cat([m_t[:, None], rnn.rollout(tokens[:, t:], m_t)], 1)[:, -1]
        (gradient,) = torch.autograd.grad(predictive_loss(rnn.readout(end), targets[:, -1]), m_t)
        assert_close(last[t], float((gradient * 3).flatten(1).norm(dim=1).mean()), 1e-6)


def test_smt_gradient_is_that_of_each_memory_alone():
    """With loss_dec only, each m_t has the gradient of its own decoding; and nothing is left on the models."""
    teacher, rnn = models(norm="rms", future_len=2)
    only = {"lambda_dec": 1.0, "lambda_dyn": 0.0, "lambda_unif": 0.0, "lambda_trunk": 0.0, "lambda_readout": 0.0}
    config = tiny()
    config = dataclasses.replace(
        config,
        smt=dataclasses.replace(config.smt, **only),
        teacher=dataclasses.replace(config.teacher, future_len=2),
    )
    tokens = torch.randint(7, (2, 5))
    before = {k: v.clone() for m in (teacher, rnn) for k, v in m.state_dict().items()}
    found = measure_smt_gradient(rnn, teacher, config, {"tokens": tokens, "targets": torch.randint(7, (2, 6))}, 1.0)
    assert len(found) == 6 and all(v > 0 for v in found)
    assert_close({k: v for m in (teacher, rnn) for k, v in m.state_dict().items()}, before, 0)
    double = dataclasses.replace(config, smt=dataclasses.replace(config.smt, lambda_dec=2.0))
    targets = torch.full((2, 6), IGNORE)
    targets[:, 3] = 1
    batch = {"tokens": tokens, "targets": targets}
    once, twice = (measure_smt_gradient(rnn, teacher, c, batch, 1.0) for c in (config, double))
    # y_3 is asked of m_1, m_2 and m_3, which see at most two tokens ahead.
    assert [v > 0 for v in once] == [False, True, True, True, False, False]
    assert_close([2 * v for v in once], twice, 1e-6)


def spread_of(memories):
    return measure_spread(memories, torch.ones(memories.shape[:2], dtype=torch.bool))


def test_spread_sees_a_collapse_and_only_a_collapse():
    torch.manual_seed(0)
    good = torch.randn(64, 20, 2, 8)
    assert spread_of(good)["collapsed"] == []
    assert 14 < spread_of(good)["effective_rank"] <= 16
    assert spread_of(good)["between_sequences"] > 0.9
    flat = torch.randn(64, 20, 1, 3) @ torch.randn(3, 16)
    assert 2.5 < spread_of(flat)["effective_rank"] < 3.01
    line = torch.randn(64, 20, 1, 1) * torch.randn(16)
    assert "effective rank 1.0" in spread_of(line)["collapsed"][0]
    point = 1 + 1e-3 * good
    assert any("same way" in reason for reason in spread_of(point)["collapsed"])
    clock = torch.randn(1, 20, 2, 8).expand(64, -1, -1, -1)
    assert any("hardly depends on the input" in reason for reason in spread_of(clock)["collapsed"])
    assert len(spread_of(torch.ones(8, 6, 1, 4))["collapsed"]) == 3
    alone = spread_of(good[:1])  # of one sequence nothing can be said
    assert alone["collapsed"] == [] and alone["between_sequences"] is None


def test_geometry_of_a_run(retrieval_run):
    run = load_run(retrieval_run, teacher=True)
    data = load_data(run.config.data)
    found = analyses.find_geometry(run, data, plotted=100)
    points = found["points"]
    assert {len(points[k]) for k in ("position", "last_token", "hidden")} == {100}
    assert [len(column) for column in points["rnn"]] == [100] * 3
    assert list(find_colourings(found)) == ["needle", "position", "last token"]
    assert 0.5 < sum(found["explained"]) <= 1.001
    # Components are in the order of their variance, which their coordinates have.
    variances = [np.var(column) for column in points["rnn"]]
    assert variances == sorted(variances, reverse=True)


def test_memories_of_padding_are_left_out(text_run):
    run = load_run(text_run, teacher=True)
    data = load_data(run.config.data)

    class Padded(Changed):
        def sequences(self, split, index):
            batch = self.inner.sequences(split, index)
            real = torch.arange(batch["tokens"].shape[1]) < torch.arange(len(index))[:, None] % 4 + 1
            return batch | {"tokens": batch["tokens"].where(real, self.padding), "real": real}

    found = []
    for padding in (0, 1):
        changed = Padded(run.config)
        changed.padding = torch.tensor(padding)
        found.append(analyses.find_geometry(run, changed))
    assert found[0] == found[1] and set(found[0]["points"]["position"]) == {1, 2, 3, 4}
    assert found[0]["rnn"] != analyses.find_geometry(run, data)["rnn"]


def test_the_needle_is_known_from_when_it_comes():
    data = load_data(data_config(name="retrieval", seq_len=6, symbols=2))
    name, words = data.task.hidden(np.array([[0, 3, 1, 0, 1, 4], [2, 0, 0, 0, 0, 4]]))
    assert name == "needle"
    assert words.tolist() == [["not yet", "1", "1", "1", "1", "1"], ["0"] * 6]


def test_phases_that_begin_together_share_a_mark(retrieval_run, text_run, bptt_run):
    runs = [gather(path, ()) for path in (retrieval_run, text_run, bptt_run)]
    for run, name in zip(runs, "abc", strict=True):
        run["name"] = name
    chart = chart_history(runs)[0]
    at = runs[0]["history"]["phases"][1]["step"]
    assert chart.marks["step"] == [(at, "a: dmt<br>b: dmt")]
    assert [word for _, word in chart_history(runs[:1])[0].marks["step"]] == ["smt", "dmt"]


def test_memories_of_a_stack_are_coloured_by_its_depth():
    data = load_data(data_config(name="stack", seq_len=4, depth=2, symbols=3))
    tokens = torch.tensor([[0, 1, 3, 3], [2, 3, 0, 1]])
    assert analyses.find_hidden_state(data, tokens, np.array([0, 1])) == (
        "stack depth",
        [["1", "2", "1", "0"], ["1", "0", "1", "2"]],
    )


def test_the_digit_class_is_that_of_the_image(digits_run):
    from sklearn import datasets

    data = load_data(data_config(name="digits", seq_len=63))
    index = np.array([3, 40])
    batch = data.sequences("validation", index)
    _, words = analyses.find_hidden_state(data, batch["tokens"], index)
    images, labels = datasets.load_digits(return_X_y=True)
    for row, pixels in zip(words, batch["targets"].numpy(), strict=True):
        assert row == [str(labels[(images == pixels).all(1).argmax()])] * 63


def test_words(retrieval_run, text_run, bptt_run):
    task, text, alone = (gather(path, ("positions",)) for path in (retrieval_run, text_run, bptt_run))
    assert "right, its teacher" in describe_run(task) and "chance is 25.0%" in describe_run(task)
    final = text["positions"]["final"] = dict(text["positions"]["final"])
    final |= {"bits_per_token": 2.0, "teacher_bits_per_token": 1.88}
    text["positions"] |= {"settles": {"levels_off": True, "third_quarter": 0.03, "last_quarter": 0.03}}
    text["positions"].pop("settles_beyond", None)
    assert describe_run(text) == (
        "The RNN is 0.12 bits above its teacher (2.00 to 1.88); relative drift levels off at 0.03."
    )
    text["geometry"] = {"rnn": {"collapsed": ["one"]}}
    assert "HAS COLLAPSED" in describe_run(text)
    curves = text["history"]["curves"]
    curves |= {"loss_dec": {"value": [2.0] * 10 + [0.8, 0.6] * 5}, "loss_trunk": {"value": [0.01] * 20}}
    assert "does NOT hold the future" in describe_run(text) and "loss_dec 0.70" in describe_run(text)
    curves["loss_trunk"] = {"value": [0.36] * 20}
    assert "hold the future" not in describe_run(text)
    assert "no trained teacher" in describe_run(alone)


def test_ablation_tells_what_differs_and_what_counts(retrieval_run, bptt_run):
    runs = [gather(path, ()) for path in (retrieval_run, bptt_run)]
    found = find_differences(runs)
    assert {"phases", "budget"} <= set(found["fields"])
    assert "data.seq_len" not in found["fields"]
    assert found["values"][1][found["fields"].index("phases")] == ["bptt"]


def test_the_command_gives_the_same_config(text_run, retrieval_run, tmp_path):
    import shlex

    from retain.cli.train import train_config

    for run in (text_run, retrieval_run):
        command = gather(run, (), write_command)["command"]
        assert command.startswith(f"retain train {load_config(run / 'config.json').preset} --out NEW")
        assert train_config(shlex.split(command)[2:])[0] == load_config(run / "config.json")
    own = train_tiny(tmp_path / "own", preset="own", budget="1steps")
    assert f"--config {own}/config.json" in gather(own, (), write_command)["command"]


def test_a_healthy_run_has_nothing_to_note(retrieval_run, digits_run, text_run, bptt_run):
    for path in (retrieval_run, digits_run, text_run, bptt_run):
        found = gather(path)
        assert (found["status"], found["notes"]) == ("finished", [])
        assert all(found[part] is not None for part in ("positions", "gradient", "geometry", "samples"))
        assert [p["phase"] for p in found["positions"]["phases"]] == found["config"]["phases"]
    assert found["gradient"]["trained"]["smt"] is None and found["positions"]["settles"] is None


def test_samples_of_a_task_are_in_its_words(retrieval_run):
    from retain.data.tasks import build_task

    config = load_config(retrieval_run / "config.json")
    task = build_task(config.data)
    for row in gather(retrieval_run)["samples"]["rows"]:
        read = [task.words.index(word) for word in row["prompt"].split()]
        answers = oracle(task, np.array([read + [0] * (task.seq_len - len(read))]))[0]
        assert row["data"] == task.answers[answers[len(read)]]
        assert {row[who].split()[0] for who in ("rnn", "teacher")} <= {*task.answers, *map(str, range(task.vocab_size))}


def test_a_memory_of_one_number_has_a_page(tmp_path):
    config = tiny(memory__tokens=1, memory__width=1, memory__norm="batch", budget="4steps")
    train(config, tmp_path / "run", progress_bar=False)
    found = write_report([tmp_path / "run"], tmp_path / "page.html")
    assert (tmp_path / "page.html").exists(), found
    geometry = json.loads((tmp_path / "page.json").read_text())["runs"][0]["geometry"]
    assert geometry["explained"][1:] == [0, 0]


def test_short_documents_are_gone_on_from_their_middle(retrieval_run):
    run = load_run(retrieval_run, teacher=True)
    tokens = torch.full((4, 9), IGNORE)
    tokens[:, :4] = 1
    data = SimpleNamespace(
        seq_len=8, windows=lambda *_: iter([{"targets": tokens}]), decode=lambda t: list(t), kind="tokens"
    )
    for row in sample_continuations(run, data)["rows"]:
        assert row["prompt"] == [1, 1] and set(row["data"]) == {1}


def test_the_json_has_every_number(text_run, tmp_path):
    out = tmp_path / "page.html"
    write_report([text_run], out)
    report = json.loads((tmp_path / "page.json").read_text(), parse_constant=pytest.fail)
    run = report["runs"][0]
    assert report["results"][0]["bits_per_token"] == run["positions"]["final"]["bits_per_token"]
    assert f"<td>{report['results'][0]['bits_per_token']:.3f}</td>" in out.read_text()
    assert run["positions"]["longer"]["bits_by_position"][32] is not None
    assert len(run["gradient"]["initial"]["bptt"]) == 9
    assert run["data"]["sha256"] in out.read_text()


def test_a_collapse_is_warned_of(retrieval_run, tmp_path):
    """A cell that always returns one memory: seen on the page, not only in a figure."""
    from safetensors.torch import load_file

    from retain.runs.checkpoint import export

    run = shutil.copytree(retrieval_run, tmp_path / "flat")
    tensors = {name: load_file(run / f"{name}.safetensors") for name in ("model", "teacher")}
    rnn = load_run(run).rnn
    for name in dict(rnn.cell.named_parameters()):
        tensors["model"][f"cell.{name}"].zero_()  # residual: the memory stays m_0 for ever
    export(run, tensors, json.loads((run / "state.json").read_text()))
    report = write_report([run], tmp_path / "page.html")
    assert "HAS COLLAPSED" in report["verdicts"][0]
    assert "<b>Memory has collapsed.</b>" in (tmp_path / "page.html").read_text()
    write_report([retrieval_run], tmp_path / "page.html")
    assert "has collapsed" not in (tmp_path / "page.html").read_text()


def test_each_length_is_scored_at_that_length(retrieval_run):
    run = load_run(retrieval_run, teacher=True)
    found = analyses.score_lengths(run, 64)
    assert [row["length"] for row in found] == [4, 8, 16, 32]
    for row in found:
        data = load_data(dataclasses.replace(run.config.data, seq_len=row["length"]))
        again = evaluate(run.rnn, run.teacher, data.windows("validation", 128, 64))
        assert {key: again[key] for key in row if key != "length"} | {"length": row["length"]} == row


@pytest.mark.parametrize("kind", ["state", "register", "window"])
def test_the_teacher_goes_on_from_its_memory_of_the_last_tokens(kind):
    teacher = models(kind)[0].eval()
    tokens = prompt = torch.randint(VOCAB, (2, 3), generator=torch.Generator().manual_seed(0))
    for _ in range(6):
        likeliest = teacher.decoder(teacher.encode(tokens[:, -4:])[:, -1]).argmax(-1)
        tokens = torch.cat([tokens, likeliest[:, None]], 1)
    assert torch.equal(torch.stack(list(stream_teacher(teacher, prompt, 6, 4, 0.0, 0)), 1), tokens[:, 3:])


@pytest.mark.parametrize(
    "here, beyond, words",
    [
        ((False, 0.2, 0.4), None, "relative drift still grows at the end of the sequence, 0.20 to 0.40"),
        ((True, 0.3, 0.3), (True, 0.5, 0.5), "levels off at 0.30 (0.50 far beyond the training length)"),
        ((True, 0.3, 0.3), (False, 9, 250), "levels off at 0.30, but grows to 250 beyond the training length"),
        ((True, 0.95, 0.95), None, "at 0.95, as far off as a memory that knows nothing of its sequence"),
    ],
)
def test_words_of_drift(here, beyond, words):
    keys = ("levels_off", "third_quarter", "last_quarter")
    said = [None if x is None else dict(zip(keys, x, strict=True)) for x in (here, beyond)]
    assert _describe_drift(*said, left=False).endswith(words)
    told = _describe_drift(*said, left=True)
    assert "knows nothing" not in told and f"; {LEFT}, so judge it by its bits" in told


def test_words_of_quality():
    for own, words in ((1.5, "0.38 bits below its teacher (1.50 to 1.88)"), (1.882, "equals its teacher at 1.88")):
        assert words in _describe_quality({"bits_per_token": own, "teacher_bits_per_token": 1.88}, False, None)
