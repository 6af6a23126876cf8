"""Training as processes: killed at any moment, interrupted, and two that equal one."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import tiny
from forks import Forked
from retain.config import data_config
from retain.config.json import load_config, save_config
from retain.model.memory_norm import MemoryNorm
from retain.runs.checkpoint import latest_checkpoint, load_files
from retain.runs.progress import STOPS
from retain.training import accelerator as devices
from retain.training.accelerator import agree, open_accelerator, start_trackers
from retain.training.loop import train
from runs import LOSSES, PHASES, Changed, Padded, assert_same_run, lines, run, wait_for

RETAIN = "from retain.cli import main; main()"


@pytest.mark.slow
def test_killed_at_random_moments_it_still_finishes_and_loses_little(tmp_path):
    config = tiny(phases=PHASES, budget="60steps", validate_every="10steps")
    save_config(config, tmp_path / "tiny.json")
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(config, whole)
    metrics, rng = out / "metrics.jsonl", random.Random(0)
    arguments = ["--config", tmp_path / "tiny.json", "--out", out]
    for step in (12, 18, 26, 37, 44, 55):  # a step is of some 1,000 calls, a checkpoint of as many
        dying = f"from runs import die_at, watched; watched(die_at({step}, {rng.randrange(1, 4000)})).start()\n"
        process = Forked(dying + RETAIN, "train", *arguments, "--quiet")
        said, complaints = process.communicate()
        assert process.returncode == -signal.SIGKILL, said + complaints
        steps = []
        for line in metrics.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last may be cut
                steps.append(json.loads(line)["step"])
        kept = load_files(latest_checkpoint(out))[1]["progress"]["step"]
        assert step <= max(steps) and max(steps) - 10 <= kept <= max(steps)
        arguments = ["--out", out, "--resume"]
    process = Forked(RETAIN, "train", *arguments, "--quiet")
    printed, complaints = process.communicate()
    assert process.returncode == 0, complaints
    assert "60 steps" in printed
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, number):
    config = tiny(phases=PHASES, budget="36steps")
    save_config(config, tmp_path / "tiny.json")
    out = tmp_path / "run"
    held = f"from runs import hold_at, watched; watched(hold_at(20, {str(tmp_path)!r})).start()\n"
    line = [held + RETAIN, "train", "--config", str(tmp_path / "tiny.json"), "--out", str(out), "--quiet"]
    if number == signal.SIGINT:  # once in a Python that does nothing else
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    else:
        process = Forked(*line)
    wait_for(lambda: (tmp_path / "here").exists() or process.poll() is not None)
    process.send_signal(number)
    (tmp_path / "go").touch()
    printed, complaints = process.communicate()
    assert process.returncode == 130, complaints
    assert printed == ""
    assert len(complaints.splitlines()) == 1
    stopped = max(line["step"] for line in lines(out))
    assert stopped == 21, "the step that it was in is done"
    assert f"stopped at step {stopped} and saved; go on with: retain train --out {out} --resume" in complaints
    assert latest_checkpoint(out).name == f"step-{stopped:08d}"
    if number != signal.SIGINT:
        run(config, out, resume=True)
    else:
        process = Forked(RETAIN, "train", "--out", out, "--resume", "--quiet")
        printed, complaints = process.communicate()
        assert process.returncode == 0, complaints
        assert complaints == ""
    steps = [line["step"] for line in lines(out) if "loss" in line]
    assert steps == list(range(1, 37))
    run(config, tmp_path / "whole")
    assert_same_run(out, tmp_path / "whole")


WORKER = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import torch
torch.set_num_threads(1)
from retain.config.json import load_config
from retain.training.loop import train
config = load_config(Path(sys.argv[1]))
data = None
if "padded" in sys.argv:
    from runs import Padded
    data = Padded(config)
train(config, sys.argv[2], data=data, progress_bar=False)
"""


SLOW_CLOCK = """
import os
from retain.runs.progress import Every
if os.environ["RANK"] == "1":
    Every.is_due = lambda self, progress: False
"""
"""For the second process it is never time to validate or save."""


def two_workers(config, out, before="", padded=False):
    """`train` in two processes that are one run; each runs what is to be run `before`. `padded`: on sequences that end
    early."""
    return two_processes(before + WORKER, config, out, Path(__file__).parents[1], *["padded"] * padded)


def two_processes(program, *arguments):
    """A program in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(program, *arguments, merged=True, RANK=rank, LOCAL_RANK=rank, **places) for rank in range(2)]


class Ranks(Changed):
    """In one process, the batches of ranks 0 and 1 as one."""

    def __init__(self, config, padded=False):
        super().__init__(config)
        self.inner = Padded(config) if padded else self.inner

    def batch(self, seed, step, rank, batch_size):
        parts = [self.inner.batch(seed, step, r, batch_size // 2) for r in (0, 1)]
        if any("real" in part for part in parts):  # one need not have it
            parts = [{"real": torch.ones_like(part["tokens"], dtype=torch.bool)} | part for part in parts]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm, on_policy, chunks, padded",
    [
        ("rms", 0.5, 1, False),
        ("batch", 0.5, 1, False),
        ("batch", 0.0, 2, False),
        ("batch", 0.0, 2, True),
        ("batch", 0.5, 1, True),
    ],
)
def test_two_processes_equal_one_with_both_their_batches(tmp_path, norm, on_policy, chunks, padded):
    """Uniformity is left out, a loss over pairs within a process; on-policy memories are drawn anew in each chunk."""

    def config(size, **changes):
        sizes = {f"{phase}__batch_size": size for phase in PHASES}
        return tiny(
            # On a machine without a GPU, auto is the CPU: processes must know of each other there, too.
            phases=PHASES, budget="12steps", memory__norm=norm, smt__lambda_unif=0.0, smt__on_policy=on_policy,
            device="auto", **sizes, **changes,
        )  # fmt: skip

    # Chunks and what is computed again change nothing either.
    save_config(config(4, smt__num_chunks=chunks), tmp_path / "two.json")
    workers = two_workers(tmp_path / "two.json", tmp_path / "two", padded=padded)
    train(config(8), tmp_path / "one", data=Ranks(config(8), padded), progress_bar=False)
    for worker in workers:
        said, _ = worker.communicate()
        assert worker.returncode == 0, said
    one, two = ([line for line in lines(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert [line["step"] for line in two] == list(range(1, 13))
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"] == a["step"] * 64
        for name in {"gradient_norm", *LOSSES[a["phase"]]} - {"loss_unif", "relative_drift"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (a["step"], name)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


NORM = """
import sys
import torch
import torch.distributed as dist
from retain.model.memory_norm import MemoryNorm
dist.init_process_group("gloo")
rank, (memory, weights) = dist.get_rank(), torch.load(sys.argv[1])
memory, norm = memory[rank].requires_grad_(), MemoryNorm("batch", 2, 4)
normed = norm(memory)
(normed * weights[rank]).sum().backward()
torch.save([normed.detach(), memory.grad, norm.mean, norm.variance], f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_memory_norm_of_two_processes_is_that_of_both_their_batches(tmp_path):
    """Far from 0, where each has a mean of its own; the gradient, too."""
    far = 30 + 0.1 * torch.arange(2).view(2, 1, 1, 1, 1)
    memory, weights = far + 0.1 * torch.randn(2, 8, 5, 2, 4), torch.randn(2, 8, 5, 2, 4)
    torch.save([memory, weights], tmp_path / "both.pt")
    for worker in two_processes(NORM, tmp_path / "both.pt", tmp_path):
        said, _ = worker.communicate()
        assert worker.returncode == 0, said
    exact = memory.double().flatten(0, 1).requires_grad_()
    norm = MemoryNorm("batch", 2, 4).double()
    normed = norm(exact)
    (normed * weights.double().flatten(0, 1)).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for i, whole in enumerate([normed.detach(), exact.grad]):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]).double(), whole, rtol=1e-4, atol=1e-4)
    for i, whole in enumerate([norm.mean, norm.variance], 2):
        for part in parts:
            torch.testing.assert_close(part[i].double(), whole, rtol=1e-5, atol=1e-5)


def test_processes_agree_to_the_last_digit(monkeypatch):
    """DMT's horizon doubles at exact shares of its phase: 0.35 rounded to float32 is less than 0.35."""
    monkeypatch.setattr("retain.training.accelerator.broadcast", lambda values: values)
    main = SimpleNamespace(num_processes=2, device="cpu")
    assert agree(main, 7 / 20, 1 / 3, 0) == [7 / 20, 1 / 3, 0.0]


@pytest.mark.slow
def test_two_processes_validate_at_the_same_steps_and_go_on_as_two(tmp_path):
    """Each has a clock of its own: what is due by the main one's all must do, or they wait for each other for ever."""
    save_config(tiny(device="auto", validate_every="0.0001s"), tmp_path / "tiny.json")
    out = tmp_path / "run"
    workers = two_workers(tmp_path / "tiny.json", out, SLOW_CLOCK)
    try:
        for worker in workers:
            said, _ = worker.communicate()
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
    assert sum("validation_bits_per_token" in line for line in lines(out)) == 12
    with pytest.raises(ValueError, match="was trained by 2 processes and is resumed by 1;"):
        train(load_config(out / "config.json"), out, resume=True, progress_bar=False)


@pytest.mark.slow
def test_two_processes_refuse_a_folder_together(tmp_path):
    """The main process alone looks, before it makes what the other would take for another run's."""
    save_config(tiny(device="auto"), tmp_path / "tiny.json")
    out = tmp_path / "run"
    out.mkdir()
    (out / "other").touch()
    for worker in two_workers(tmp_path / "tiny.json", out):
        said, _ = worker.communicate()
        assert worker.returncode == 1 and "UserError: out: " in said and "already exists" in said, said
    assert [p.name for p in out.iterdir()] == ["other"]


BROKEN = """
import retain.training.loop
def broken(*arguments): return {}["a defect"]
retain.training.loop.prepare_folder = broken
"""


@pytest.mark.slow
def test_a_defect_of_the_main_process_ends_all(tmp_path):
    save_config(tiny(device="auto"), tmp_path / "tiny.json")
    main, other = two_workers(tmp_path / "tiny.json", tmp_path / "run", BROKEN)
    try:
        said = [worker.communicate()[0] for worker in (main, other)]
    finally:
        main.kill()
        other.kill()
    assert main.returncode == other.returncode == 1
    assert "KeyError: 'a defect'" in said[0]
    assert """RuntimeError: the main process failed: KeyError('a defect')""" in said[1]


@pytest.mark.slow
def test_torchrun_trains_one_run(tmp_path):
    config = tiny(device="auto", data=data_config(name="stdlib", seq_len=8))
    save_config(config, tmp_path / "two.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    line = ["-m", "retain", "train", "--config", str(tmp_path / "two.json"), "--out", str(tmp_path / "run")]
    done = subprocess.run([*launcher, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: retain eval") == 1, "the main process alone says what it did"
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["processes"] == 2 and summary["tokens"] == 12 * 2 * 4 * 8


@pytest.mark.slow
def test_tensorboard_is_told_of_every_loss(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny(tracker="auto", budget="2steps", phases=("smt",)), tmp_path / "run", progress_bar=False)
    written = {file.parent for file in (tmp_path / "run").rglob("events.out.tfevents*")}
    read = [accumulator.EventAccumulator(str(folder)).Reload() for folder in written]
    (found,) = (events for events in read if "loss" in events.Tags()["scalars"])  # another has the settings
    assert {*LOSSES["smt"], "lr", "validation_bits_per_token"} <= set(found.Tags()["scalars"])
    written = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(written, rel=1e-6)


@pytest.mark.parametrize("tracker, project", [("tensorboard", "trackers"), ("wandb", "retain"), ("trackio", "retain")])
def test_trackers_know_project_and_run_by_name(tracker, project, tmp_path):
    told = []
    fake = SimpleNamespace(log_with=[tracker], init_trackers=lambda *args, **settings: told.append((*args, settings)))
    start_trackers(fake, tiny(), tmp_path / "mine")
    ((name, settings),) = told
    assert name == project and settings["config"]["seed"] == str(tiny().seed)
    assert settings["init_kwargs"].get(tracker, {}) == ({} if tracker == "tensorboard" else {"name": "mine"})


def test_processes_that_were_started_but_do_not_join_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("retain.training.accelerator.Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    with (
        pytest.raises(ValueError, match="device: cpu cannot connect the 2 processes"),
        open_accelerator(tiny(), tmp_path),
    ):
        pass


def test_a_folder_of_its_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not devices.installed("wandb") and not devices.installed("no such thing") and devices.installed("json")
