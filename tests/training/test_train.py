"""The training loop: its budgets, batches and metrics, what stops it, and the model that it leaves."""

import dataclasses
import json
import math
import signal
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from conftest import tiny
from retain.config import OptimizerConfig, data_config
from retain.config.budget import parse_budget
from retain.data import load_data
from retain.errors import TrainingError
from retain.inference.evaluate import evaluate
from retain.model.cells import build_cell
from retain.objectives import BPTT
from retain.runs.checkpoint import best_checkpoint, latest_checkpoint, load_files
from retain.runs.progress import stop_signals
from retain.runs.run import build, load, load_run
from retain.training.accelerator import open_accelerator
from retain.training.loop import train
from retain.training.losses_log import LossesLog
from retain.training.phases import cut_part, learning_rate
from runs import KEYS, LOSSES, PHASES, Changed, Crash, crash_at, lines, losses, run


def test_budgets_in_tokens_and_seconds_end_where_they_should(tmp_path, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("retain.runs.progress.time.perf_counter", lambda: seconds[0])

    def pass_time(number):
        seconds[0] += 0.125

    for budget, steps in (("200tokens", 4 + 3), ("1.2s", 5 + 5)):  # phases end with the step that reaches their share
        out = tmp_path / budget
        summary = run(tiny(budget=budget), out, pass_time)
        # 4 batches of 4 x 8 tokens are the first to reach 100, and 3 more the first to reach the 72 that are left.
        assert summary["steps"] == steps and summary["tokens"] == steps * 32
        assert summary["seconds"] == steps * 0.125
        assert next(r["step"] for r in lines(out) if r["phase"] == "dmt") == (steps + 1) // 2 + 1


def test_the_same_seed_gives_the_same_losses_and_another_one_others(tmp_path):
    names = {"a": 1, "b": 1, "c": 2}
    for name, seed in names.items():
        run(tiny(phases=PHASES, budget="6steps", seed=seed), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(x != y for x, y in zip(losses(tmp_path / "a"), losses(tmp_path / "c"), strict=True))


def test_every_step_has_its_own_batch_even_after_a_new_phase(tmp_path):
    seen = []
    run(
        tiny(
            phases=PHASES,
            budget="12steps",
            optimizer__gradient_accumulation_steps=2,
        ),
        tmp_path / "run",
        seen.append,
    )
    assert len(set(seen)) == len(seen) == 4 * (2 + 2 + 2)


def test_a_run_is_the_plain_loop_over_its_batches(tmp_path):
    optimizer = OptimizerConfig(warmup=0.4, weight_decay=0.3, max_grad_norm=0.01)
    config = tiny(phases=("bptt",), budget="5steps", optimizer=optimizer, bptt__lr=0.02, bptt__bptt_window=None)
    run(config, tmp_path / "run")
    data = load_data(config.data)
    torch.manual_seed(config.seed)
    rnn, slow = build(config, data.vocab_size)[0], []
    objective = BPTT(rnn, config.bptt.bptt_window)
    optimizer = torch.optim.AdamW(objective.parameters(), betas=(0.9, 0.95), weight_decay=0.3, fused=True)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = learning_rate(config.bptt, 0.4, step / 5)
        loss = objective(data.batch(config.seed, step, 0, 4))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 0.01)
        optimizer.step()
        slow.append(loss.item())
    assert losses(tmp_path / "run") == pytest.approx(slow, rel=1e-5)
    weights = load_files(latest_checkpoint(tmp_path / "run"))[0]["model"]
    for name, value in rnn.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


def test_validations_are_of_the_rnn_alone_on_the_validation_split(never_stopped):
    config, out = never_stopped()
    data = load_data(config.data)
    logged = {line["step"]: line for line in lines(out) if "validation_accuracy" in line}
    for index, step in enumerate((4, 8, 12)):
        left = load_run(out, teacher=True, phase=index)
        found = evaluate(left.rnn, left.teacher, data.windows("validation", 7, config.validation_sequences))
        for key in ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift"):
            assert logged[step][f"validation_{key}"] == pytest.approx(found[key], rel=1e-5), (step, key)


class Halves(Changed):
    """Micro-batch i of a step, for runs with accumulate = 2; with `whole` both at once for runs with accumulate = 1."""

    def __init__(self, config, whole):
        super().__init__(config)
        self.whole = whole

    def batch(self, seed, step, rank, batch_size):
        if not self.whole:
            return self.inner.batch(seed, step, rank, batch_size)
        parts = [self.inner.batch(seed, 2 * step + i, rank, batch_size // 2) for i in (0, 1)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def test_accumulating_two_micro_batches_equals_one_of_twice_the_size(tmp_path):
    """In BPTT, whose loss is a plain mean over the batch and has nothing random."""
    whole = {"phases": ("bptt",), "budget": "5steps", "bptt__bptt_window": None}
    config = tiny(**whole, optimizer__gradient_accumulation_steps=2, bptt__batch_size=4)
    train(config, tmp_path / "two", data=Halves(config, False), progress_bar=False)
    config = tiny(**whole, optimizer__gradient_accumulation_steps=1, bptt__batch_size=8)
    train(config, tmp_path / "one", data=Halves(config, True), progress_bar=False)
    two, one = lines(tmp_path / "two"), lines(tmp_path / "one")
    for name in ("gradient_norm", "loss", "loss_readout"):  # what is logged is the mean over both, not the last
        figures = [[line[name] for line in read if "loss" in line] for read in (two, one)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    assert two[-1]["tokens"] == one[-1]["tokens"] == 5 * 8 * 8
    weights = [load_files(latest_checkpoint(tmp_path / name))[0]["model"] for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=1e-5)


def test_metrics_have_every_loss_and_figure(never_stopped):
    config, out = never_stopped()
    read = [json.loads(line, parse_constant=pytest.fail) for line in (out / "metrics.jsonl").read_text().splitlines()]
    common = {"step", "phase", "seconds", "tokens", "sequential_steps"}
    training = [line for line in read if "loss" in line]
    validation = [line for line in read if "loss" not in line]
    assert [line["step"] for line in training] == list(range(1, 13))
    for line in training:
        speed = {"tokens_per_second", "data_wait"}
        models = ("rnn", "teacher") if line["phase"] == "smt" else ("rnn",)
        norms = {f"gradient_norm_{model}" for model in models}
        assert line.keys() == common | {"lr", "gradient_norm"} | norms | speed | LOSSES[line["phase"]]
        assert line["tokens"] == 32 * line["step"]
        assert line["gradient_norm"] > 0
        assert math.hypot(*(line[norm] for norm in norms)) == pytest.approx(line["gradient_norm"], rel=1e-4)
    for before, line in pairwise(training):
        took = line["seconds"] - before["seconds"]  # both to a millisecond, the reading of the clock beside it
        assert 32 / line["tokens_per_second"] == pytest.approx(took, rel=0.01, abs=0.002), "since the line before"
    assert [line["phase"] for line in training] == ["smt"] * 4 + ["dmt"] * 4 + ["bptt"] * 4
    assert [line["seconds"] for line in read] == sorted(line["seconds"] for line in read)
    assert {line["step"] for line in validation} == {4, 5, 8, 10, 12}
    for line in validation:
        assert line.keys() >= common | {"validation_bits_per_token", "validation_accuracy"}
    assert [line["horizon"] for line in training if line["phase"] == "dmt"] == [1, 2, 4, 8]
    for phase in PHASES:
        rates, warmup = [line["lr"] for line in training if line["phase"] == phase], config.optimizer.warmup
        assert rates == pytest.approx([learning_rate(getattr(config, phase), warmup, i / 4) for i in range(4)])


def test_each_of_the_first_steps_is_logged_then_every_so_many_whatever_the_phase(tmp_path):
    run(tiny(budget="150steps", smt__share=1, dmt__share=5), tmp_path / "run")
    logged = [line["step"] for line in lines(tmp_path / "run") if "loss" in line]
    assert logged == [*range(1, 101), 101, 121, 141]


def test_the_learning_rate_warms_up_and_falls():
    config = tiny(smt__lr=2.0, smt__lr_schedule="cosine").smt
    assert learning_rate(config, 0.25, 0.0) < 0.01
    assert learning_rate(config, 0.25, 0.125) == pytest.approx(1.0)
    assert learning_rate(config, 0.25, 0.25) == pytest.approx(2.0)
    assert learning_rate(config, 0.25, 1.0) == pytest.approx(0.02)
    assert learning_rate(tiny(smt__lr=2.0, smt__lr_schedule="constant").smt, 0.25, 0.9) == 2.0


def test_the_exported_model_is_the_best_validated(tmp_path):
    """BPTT at an absurd rate makes the model worse: the one from before it must come out."""
    config = tiny(phases=("smt", "bptt"), budget="36steps", smt__share=5, bptt__lr=3.0, optimizer__warmup=0.0)
    out = tmp_path / "run"
    summary = run(config, out)
    scores = {r["step"]: r["validation_bits_per_token"] for r in lines(out) if "validation_bits_per_token" in r}
    assert scores.keys() == {30, 36}
    assert scores[30] < scores[36]
    assert summary["best_step"] == 30
    assert summary["validation_bits_per_token"] == scores[30]
    exported, best = load_files(out)[0], load_files(out / "checkpoints" / "step-00000030")[0]
    last = load_files(out / "checkpoints" / "step-00000036")[0]
    assert all(torch.equal(v, best["model"][k]) for k, v in exported["model"].items())
    assert all(torch.equal(v, best["teacher"][k]) for k, v in exported["teacher"].items())
    assert any(not torch.equal(v, last["model"][k]) for k, v in exported["model"].items())
    assert load_files(out)[1]["progress"]["step"] == 30


@pytest.mark.parametrize("every", ["1steps", "4steps", "12steps", "1000steps"])
def test_the_best_is_known_where_a_checkpoint_came_just_before_the_validation(tmp_path, every, monkeypatch):
    """Scores that always fall: the last step is the best, and its checkpoint must say so."""
    from retain.training import validation as module

    scores, real = iter(range(100, 0, -1)), module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a: real(*a) | {"bits_per_token": float(next(scores))})
    out = tmp_path / "run"
    monkeypatch.setattr("retain.training.checkpointing.EVERY", parse_budget(every))
    summary = run(tiny(budget="12steps", validate_every="5steps"), out)
    assert summary["best_step"] == 12
    assert best_checkpoint(out).name == "step-00000012"
    assert load_files(out)[1]["progress"]["step"] == 12


class Poisoned(nn.Module):
    """A cell of the user's own that can be made to return NaN."""

    def __init__(self):
        super().__init__()
        self.linear, self.poison = nn.Linear(8, 8), 0.0

    def forward(self, memory, inputs):
        return memory + self.linear(inputs)[:, None] + self.poison


@pytest.mark.parametrize(
    ("at", "phase", "loss", "good"),
    [
        (1, "smt", "loss_dyn", None),
        (3, "smt", "loss_dyn", 2),
        (5, "dmt", "loss_dyn", 4),
        (9, "bptt", "loss_readout", 8),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("each", [0, 100])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, at, phase, loss, good, waits, each, monkeypatch):
    """At once; or, where to look at it `waits` for a device, when a step is logged and before anything is saved."""
    monkeypatch.setattr(LossesLog, "waits", waits)
    monkeypatch.setattr("retain.training.losses_log.EACH", each)
    monkeypatch.setattr("retain.training.checkpointing.EVERY", parse_budget("2steps"))
    config = tiny(phases=PHASES, budget="12steps")
    cell, out = Poisoned(), tmp_path / "run"

    def poison(step):
        cell.poison = math.nan if step >= at else 0.0

    with pytest.raises(TrainingError) as caught:
        run(config, out, poison, cell=cell)
    message = str(caught.value)
    assert f"became nan at step {at} in phase {phase}; " in message
    assert message.startswith(f"{loss} became")
    assert f"try a lower {phase}.lr" in message
    if good is None:
        assert "there is no checkpoint yet" in message
    else:
        assert f"the last good checkpoint is {out / 'checkpoints' / f'step-{good:08d}'};" in message
        tensors, _ = load_files(latest_checkpoint(out))
        assert all(v.isfinite().all() for group in tensors.values() for v in group.values())
    assert all(math.isfinite(line["loss"]) for line in lines(out) if "loss" in line)
    if good is not None:  # with the cause mended, it goes on
        assert run(config, out, lambda step: setattr(cell, "poison", 0.0), cell=cell, resume=True)["steps"] == 12


@pytest.mark.parametrize("every", ["1steps", "3steps", "1000steps"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_learning_rate_that_blows_up_leaves_no_weights_that_are_not_finite(tmp_path, waits, every, monkeypatch):
    monkeypatch.setattr(LossesLog, "waits", waits)
    monkeypatch.setattr("retain.training.losses_log.EACH", 0)
    config = tiny(smt__lr=1e30, optimizer__warmup=0.0, budget="20steps", validate_every=every)
    with pytest.raises(TrainingError, match=r"^\w+ became (nan|inf) at step \d+ in phase smt; .*try a lower smt\.lr"):
        run(config, tmp_path / "run")
    for folder in (tmp_path / "run").glob("checkpoints/*"):
        tensors, _ = load_files(folder)
        assert all(v.isfinite().all() for group in tensors.values() for v in group.values())


@pytest.mark.parametrize("waits", [False, True])
def test_losses_are_looked_at_when_they_are_logged_or_validated(tmp_path, waits, monkeypatch):
    """And at the first step of a phase, for the progress bar, or when there are very many."""
    fetched, fetch = [], LossesLog.fetch

    def watched(losses):
        fetched.append(len(losses.pending))
        fetch(losses)

    monkeypatch.setattr(LossesLog, "waits", waits)
    monkeypatch.setattr(LossesLog, "fetch", watched)
    monkeypatch.setattr("retain.training.losses_log.PENDING", 6)
    monkeypatch.setattr("retain.training.losses_log.EACH", 0)
    monkeypatch.setattr("retain.training.losses_log.THEN", 12)
    config = tiny(budget="40steps", smt__share=0.45, dmt__share=0.55, validate_every="34steps")
    run(config, tmp_path / "run")
    # Phases begin at steps 0 and 18, steps 0, 12, 24 and 36 are logged, and after 18, 34 and 40 there is a validation.
    wanted = [1, 6, 6, 5, 1, 6, 6, 3, 3, 3] if waits else [1] * 40
    assert [n for n in fetched if n] == wanted
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 13, 25, 37]


def test_runs_of_one_process_each_have_their_precision(tmp_path):
    found = {p: train(tiny(budget="2steps", precision=p), tmp_path / p, progress_bar=False) for p in ("bf16", "fp32")}
    assert {p: summary["precision"] for p, summary in found.items()} == {"bf16": "bf16", "fp32": "fp32"}


def test_a_run_with_a_cell_given_in_python_says_so_when_it_is_loaded(tmp_path):
    config = tiny(budget="2steps", phases=("bptt",))
    cell = build_cell(config.memory, dataclasses.replace(config.cell, width=24))
    train(config, tmp_path / "run", cell=cell, progress_bar=False)
    with pytest.raises(ValueError, match=r"trained with a cell of your own, \w+; give it, as in load\(RUN, cell=…\)"):
        load(tmp_path / "run")
    again = build_cell(config.memory, dataclasses.replace(config.cell, width=24))
    rnn = load(tmp_path / "run", cell=again)
    assert torch.equal(rnn.cell.out.weight, cell.out.weight)


def test_a_loaded_rnn_streams_without_a_graph(never_stopped):
    rnn = load(never_stopped()[1])
    memory = rnn.init_memory(2)
    memory.add_(1)  # the caller's own
    assert not torch.equal(memory[0], rnn.m_0) and torch.equal(rnn.init_memory(2)[0], rnn.m_0)
    logits, after = rnn.step(torch.tensor([1, 2]), memory)
    assert not logits.requires_grad and not after.requires_grad
    assert after.numpy().shape == memory.shape


@pytest.mark.parametrize("amount, unit", [(1000, "tokens"), (1234, "sequential")])
def test_what_a_phase_takes_beyond_its_share_is_not_given_twice(tmp_path, amount, unit):
    """Phases end between steps; all of them together take their shares and less than the last step more."""
    config = tiny(budget=f"{amount}{unit}", phases=("smt", "dmt", "bptt"))
    summary, shares = train(config, tmp_path / "run", progress_bar=False), sum(b.amount for b in config.budgets())
    taken = [line[KEYS[unit]] for line in lines(tmp_path / "run")]
    last_step = [b - a for a, b in pairwise(taken) if b > a][-1]
    assert shares <= summary[KEYS[unit]] < shares + last_step


def test_what_ends_a_phase_counts(tmp_path, monkeypatch):
    clock = iter(range(1_000_000))
    monkeypatch.setattr("retain.runs.progress.time.perf_counter", lambda: float(next(clock)))
    summary = train(tiny(budget="20s", validate_every="20s"), tmp_path / "run", progress_bar=False)
    read = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    phases = [line["seconds"] for line in read if "validation_bits_per_token" in line]
    assert summary["seconds"] > phases[-1], "the last validation and what is saved after it, too"


def test_a_second_run_may_have_another_device(monkeypatch):
    """Accelerate keeps one state per process; what is asked of the second run must not be answered by the first's."""
    with open_accelerator(tiny(device="cpu")) as made, monkeypatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr("accelerate.state.is_mps_available", lambda *a, **k: True)
        with open_accelerator(tiny(device="auto")) as second:
            assert second.device.type == "mps"
            with open_accelerator(tiny(device="cpu")) as third:
                assert third.device.type == "cpu"
        assert made.device.type == PartialState().device.type == "cpu"


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_an_accelerator_of_the_callers_own_is_left_alone(tmp_path, ends):
    """What Accelerate knows of the process is the same after a run as before it."""
    with open_accelerator(tiny(precision="bf16")) as own:
        with pytest.raises(Crash) if ends == "badly" else nullcontext():
            run(tiny(precision="fp32", budget="2steps"), tmp_path / "run", crash_at(1 if ends == "badly" else -1))
        assert AcceleratorState().mixed_precision == own.mixed_precision == "bf16"


def test_a_phase_of_smaller_batches_reads_on_from_where_the_last_one_was(tmp_path):
    """Batch n is the n-th of its size: a stream would have to begin anew for a lower one."""
    numbers = []
    config = tiny(phases=("smt", "dmt", "bptt"), budget="9steps", dmt__batch_size=2, bptt__batch_size=8)
    run(config, tmp_path / "run", at=numbers.append)
    assert numbers == [0, 1, 2, 6, 7, 8, 9, 10, 11]


def test_accumulated_batches_count_as_the_longest_of_them(tmp_path):
    class Mixed(Changed):
        def batch(self, seed, step, rank, size):
            batch = self.inner.batch(seed, step, rank, size)
            return batch if step % 2 == 0 else {"tokens": batch["tokens"][:, :3], "targets": batch["targets"][:, :4]}

    config = tiny(phases=("bptt",), budget="2steps", optimizer__gradient_accumulation_steps=2, bptt__bptt_window=None)
    summary = run(config, tmp_path / "run", data=Mixed(config))
    assert summary["sequential_steps"] == 2 * (8 + 1 + 1 + 8)


def test_a_second_ctrl_c_is_the_ordinary_one():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it from the start
    try:
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_phase_may_read_a_part_of_each_sequence(tmp_path):
    batch = {"tokens": torch.arange(40).view(4, 10), "targets": torch.arange(44).view(4, 11)}
    seen = set()
    for _ in range(200):
        part = cut_part(batch, 4)
        start = int(part["tokens"][0, 0])
        assert torch.equal(part["tokens"], batch["tokens"][:, start : start + 4])
        assert torch.equal(part["targets"], batch["targets"][:, start : start + 5])
        seen.add(start)
    assert seen == set(range(7))
    assert cut_part(batch, None) is batch
    with pytest.raises(ValueError, match="smt.seq_len: 4 is a part of a sequence, and tasks are read whole"):
        tiny(smt__seq_len=4)
    text = data_config(name="stdlib", seq_len=8)
    with pytest.raises(ValueError, match="smt.seq_len: 9 is longer than data.seq_len 8"):
        tiny(smt__seq_len=9, data=text)
    summary = run(tiny(smt__seq_len=4, budget="2steps", data=text), tmp_path / "run")
    assert summary["tokens"] == 4 * 4 + 4 * 8
