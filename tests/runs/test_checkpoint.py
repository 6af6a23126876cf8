"""Checkpoints survive kills, full disks and damage; what cannot be trusted is refused with one clear line."""

import errno
import hashlib
import json
import logging
import math
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retain.runs import checkpoint
from retain.runs.checkpoint import (
    CheckpointError,
    best_checkpoint,
    export,
    latest_checkpoint,
    load_files,
    load_model,
    save_checkpoint,
    save_files,
)
from retain.runs.metrics import append_line, truncate_after
from retain.runs.optimizer_state import dump_optimizer, load_optimizer


def some(value=0.0):
    return {"model": {"w": torch.full((4, 3), value)}, "teacher": {"w": torch.arange(5)}}


def steps(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


def test_round_trip_is_bitwise(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    group = {
        "f32": base, "tied": base, "view": base[2:], "transposed": base.t(), "odd": torch.tensor([math.nan, -0.0]),
        "bf16": torch.randn(3).bfloat16(), "i64": torch.arange(4), "bool": torch.tensor([True, False]),
        "u8": torch.get_rng_state(), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 2),
        "grad": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    state = {"step": 7, "rate": 0.1 + 0.2, "best": math.inf, "text": "é", "none": None, "list": [1, 2.5]}
    save_files(tmp_path / "a", {"model": group, "nothing": {}}, state)
    tensors, read = load_files(tmp_path / "a")
    assert read == state and tensors["nothing"] == {} and tensors["model"].keys() == group.keys()
    for key, value in group.items():
        got = tensors["model"][key]
        assert got.shape == value.shape and got.dtype == value.dtype
        assert torch.equal(bits(got), bits(value.detach())), key
    tensors["model"]["f32"].add_(1)
    assert list(load_files(tmp_path / "a", ["nothing"])[0]) == ["nothing"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError):
        save_files(tmp_path / "a", {}, {"tensor": torch.ones(1)})
    for wrong in ({"step": -1}, {"step": 1, "keep": 0}, {"step": 1, "best": 2}):
        with pytest.raises(AssertionError):
            save_checkpoint(tmp_path, tensors={}, state={}, **wrong)
    assert not list(tmp_path.iterdir())


def edit(name, change):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def manifest(**changes):
    return edit("manifest.json", lambda data: json.dumps(json.loads(data) | changes).encode())


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGE = {
    "truncated": (edit("model.safetensors", lambda d: d[:-4]), r"model.safetensors: truncated, \d+ bytes where \d+ w"),
    "emptied": (edit("model.safetensors", lambda d: b""), "model.safetensors: truncated, 0 bytes where"),
    "longer": (edit("model.safetensors", lambda d: d + b"x"), "model.safetensors: too long"),
    "flipped": (edit("model.safetensors", flip), "model.safetensors: its checksum differs"),
    "missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: is missing"),
    "folder": (lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
               "model.safetensors: cannot be read"),
    "state": (edit("state.json", flip), "state.json: its checksum differs"),
    "no state": (lambda folder: (folder / "state.json").unlink(), "state.json: is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: is missing"),
    "half manifest": (edit("manifest.json", lambda d: d[:30]), "manifest.json: is not readable JSON"),
    "binary manifest": (edit("manifest.json", lambda d: b"\xff\x00"), "manifest.json: is not readable JSON"),
    "list manifest": (edit("manifest.json", lambda d: b"[]"), "manifest.json: is not readable JSON"),
    "version": (manifest(version=3), "was written by format 3, this retain reads 1"),
    "no files": (manifest(files=None), "manifest.json: its list of files"),
    "bad entry": (manifest(files={"model.safetensors": 3}), "manifest.json: its list of files"),
    "outside": (manifest(files={"../model.safetensors": {"bytes": 1, "sha256": ""}}), "its list of files"),
    "state unlisted": (manifest(files={}), "state.json: is not in the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_passed_over(tmp_path, kind, caplog):
    damage, message = DAMAGE[kind]
    for step in (1, 2):
        save_checkpoint(tmp_path, step, some(step), {"step": step})
    newest = latest_checkpoint(tmp_path)
    damage(newest)
    with pytest.raises(CheckpointError, match=message) as error:
        load_files(newest)
    assert "\n" not in str(error.value) and str(newest) in str(error.value)
    with caplog.at_level(logging.WARNING, "retain"):
        good = latest_checkpoint(tmp_path)
    assert load_files(good)[1]["step"] == 1
    assert len(caplog.records) == 1 and str(newest) in caplog.text
    damage(good)
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged \(2 of 2\)"):
        latest_checkpoint(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_files(tmp_path / "a")
    with pytest.raises(CheckpointError, match="no checkpoints; train first"):
        latest_checkpoint(tmp_path)
    save_files(tmp_path / "a", some(), {})
    with pytest.raises(CheckpointError, match="holds no 'optimizer', only model, teacher"):
        load_files(tmp_path / "a", ["optimizer"])


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("listed", [False, True])
def test_pickles_are_refused_unrun(tmp_path, listed):
    save_files(tmp_path / "a", some(), {})
    data, path = pickle.dumps(Payload(tmp_path / "ran")), tmp_path / "a" / "manifest.json"
    (tmp_path / "a" / "model.safetensors").write_bytes(data)
    if listed:
        content = json.loads(path.read_bytes())
        content["files"]["model.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not a safetensors file" if listed else "truncated|too long|checksum"):
        load_files(tmp_path / "a")
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the payload would have shown itself"


# One process that has paid for importing torch forks the writers that are killed.
KILLS = """
import os, random, signal, sys
from pathlib import Path
import torch
from retain.runs.checkpoint import CheckpointError, export, latest_checkpoint, load_files, load_model, save_checkpoint
run, mode = Path(sys.argv[1]), sys.argv[2]
def tensors(step): return {"model": {"w": torch.full((20_000,), float(step))}}
def check(at_least):
    found, state = load_files(latest_checkpoint(run))
    assert state["step"] >= at_least, (state, at_least)
    assert torch.equal(found["model"]["w"], tensors(state["step"])["model"]["w"])
    return state["step"]
def dying(left):  # at the call of that number that touches the disk
    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
        def deadly(*args, real=getattr(os, name), **kwargs):
            nonlocal left
            left -= 1
            if left == 0: os._exit(9)
            return real(*args, **kwargs)
        setattr(os, name, deadly)
save_checkpoint(run, 0, tensors(0), {"step": 0})
step, random = 0, random.Random(0)
if mode == "random":
    for _ in range(25):
        left = random.randrange(1, 4000)
        if (pid := os.fork()) == 0:
            def count(frame, event, argument):  # a moment that is the same on every machine
                global left
                left -= 1
                if left == 0: os.kill(os.getpid(), signal.SIGKILL)
            sys.setprofile(count)
            while True:
                step += 1
                for _ in range(2):  # the second replaces the first
                    save_checkpoint(run, step, tensors(step), {"step": step}, keep=2)
        os.waitpid(pid, 0)
        step = check(step)
    assert step > 3, step
elif mode == "export":  # whole, of one step, or told of
    export(run, tensors(0), {"step": 0})
    told = 0
    for n in range(1, 100):
        if (pid := os.fork()) == 0:
            dying(n)
            export(run, tensors(n), {"step": n})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            found, state = load_model(run)
            assert torch.equal(found["model"]["w"], tensors(state["step"])["model"]["w"])
        except CheckpointError as error:
            told += 1
            assert "manifest" in str(error), error
        if code == 0: break
    assert n > 5 and code == 0 and state["step"] == n and told, (n, code, told)
    assert not [p for p in run.iterdir() if p.name.startswith(".tmp")]
else:  # die at the nth call that touches the disk, for every n
    for again in (False, True):
        for n in range(1, 100):
            step += 0 if again else 1
            if (pid := os.fork()) == 0:
                dying(n)
                save_checkpoint(run, step, tensors(step), {"step": step}, keep=1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            step = check(step if again or code == 0 else step - 1)
            if code == 0: break
        assert n > 8 and code == 0, (n, code)
save_checkpoint(run, step + 1, tensors(step + 1), {"step": step + 1}, keep=2)
left = sorted(p.name for p in (run / "checkpoints").iterdir())
assert len(left) <= 2 and all(p.startswith("step-") for p in left), left
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers")
@pytest.mark.parametrize("mode", ["random", "every call", "export"])
def test_killed_at_any_moment_something_loads(tmp_path, mode):
    paths = os.pathsep.join([str(Path(checkpoint.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, mode],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("call", range(1, 6))
def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, call):
    save_checkpoint(tmp_path, 1, some(1), {"step": 1})
    export(tmp_path, some(1), {"step": 1})
    before = sorted(tmp_path.rglob("*"))
    real = os.fsync
    attempts = [
        lambda: save_checkpoint(tmp_path, 2, some(2), {"step": 2}),
        lambda: save_checkpoint(tmp_path, 1, some(2), {"step": 2}),
        lambda: export(tmp_path, some(2), {"step": 2}),
    ]
    # Four files, then the temporary folder, which an export does not have.
    for attempt in attempts[: 3 if call <= 4 else 2]:
        left = call

        def full(descriptor):
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot be written, No space left on device; .* is still good$"):
            attempt()
        monkeypatch.undo()
        assert sorted(tmp_path.rglob("*")) == before
        for tensors, state in (load_files(latest_checkpoint(tmp_path)), load_files(tmp_path)):
            assert state == {"step": 1} and torch.equal(tensors["model"]["w"], some(1)["model"]["w"])


def test_a_limit_of_the_system_itself(tmp_path):
    save_checkpoint(tmp_path, 1, some(1), {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written, File too large; .*step-00000001 is still good"):
            save_checkpoint(tmp_path, 2, {"model": {"w": torch.zeros(100_000)}}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_failed_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    save_files(tmp_path / "a", some(1), {"step": 1})
    real = os.rename

    def refuse(source, target):
        if Path(source).name.startswith(".tmp-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_files(tmp_path / "a", some(2), {"step": 2})
    assert load_files(tmp_path / "a")[1] == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_dead_runs_go_and_neighbours_stay(tmp_path):
    for name in (".tmp-a-123", ".tmp-a-b-123", ".tmp-other-9"):
        (tmp_path / name).mkdir()
    save_files(tmp_path / "a", some(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-a-b-123", ".tmp-other-9", "a"]
    (tmp_path / "a").rename(tmp_path / ".old-a")
    assert load_files(tmp_path / "a")[1] == {}


def test_rotation_keeps_the_last_two_and_the_best(tmp_path, caplog):
    for step, best in ((1, None), (2, 2), (3, 2), (4, None), (5, None)):
        path = save_checkpoint(tmp_path, step, some(step), {"step": step}, best=best)
        assert path == latest_checkpoint(tmp_path)
    assert steps(tmp_path) == [2, 4, 5]
    assert load_files(best_checkpoint(tmp_path))[1] == {"step": 2}
    save_checkpoint(tmp_path, 6, some(6), {"step": 6}, best=6)
    assert steps(tmp_path) == [5, 6] and best_checkpoint(tmp_path) == latest_checkpoint(tmp_path)
    edit("model.safetensors", flip)(best_checkpoint(tmp_path))
    assert load_files(best_checkpoint(tmp_path))[1] == {"step": 5}, "the best of step 5's time, 2, is gone"
    assert "using" in caplog.text


def test_going_back_deletes_the_abandoned_future(tmp_path, caplog):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, some(step), {"step": step}, best=step, keep=3)
    save_checkpoint(tmp_path, 12, some(12), {"step": 12})
    assert steps(tmp_path) == [10, 12] and "step-00000030 is from after step 12" in caplog.text
    assert load_files(latest_checkpoint(tmp_path))[1] == {"step": 12}
    assert load_files(best_checkpoint(tmp_path))[1] == {"step": 10}


def test_export_and_load_model(tmp_path):
    with pytest.raises(CheckpointError, match="no such run folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither an exported model nor a checkpoint"):
        load_model(tmp_path)
    for step, best in ((1, 1), (2, None), (3, None)):
        save_checkpoint(tmp_path, step, some(step), {"step": step}, best=best)
    assert load_model(tmp_path, ["model"])[1] == {"step": 1}, "no export: the best"
    export(tmp_path, some(9), {"step": 9})
    tensors, state = load_model(tmp_path, iter(["model"]))
    assert state == {"step": 9} and list(tensors) == ["model"]
    with pytest.raises(CheckpointError, match="holds no 'optimizer', only model, teacher$"):
        load_model(tmp_path, ["optimizer"])
    edit("model.safetensors", flip)(tmp_path)
    with pytest.raises(CheckpointError, match=r"checksum differs.* or delete .*manifest.json .*step-00000003 is good"):
        load_model(tmp_path, ["model"])
    (tmp_path / "manifest.json").unlink()
    assert load_model(tmp_path, ["model"])[1] == {"step": 1}


def test_export_killed_between_renames_says_so(tmp_path, monkeypatch):
    export(tmp_path, some(1), {"step": 1})
    real, done = os.replace, []

    def die(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(real(source, target))

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, some(2), {"step": 2})
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match="model.safetensors: its checksum differs.*cut short.*write it again"):
        load_model(tmp_path)


def build(optimizer_class, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2), torch.nn.Linear(1, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[1:].parameters()}]
    return model, optimizer_class(groups, lr=0.02, **options)


def train(model, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model[1](model[0](x).tanh()).square().mean().backward()
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize(
    "optimizer_class, options",
    [(torch.optim.AdamW, {"betas": (0.9, 0.95), "amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}),
     (torch.optim.AdamW, {"fused": True})],
)  # fmt: skip
def test_optimizer_resumes_bitwise(tmp_path, optimizer_class, options):
    straight, optimizer = build(optimizer_class, **options)
    train(straight, optimizer, 0, 8)
    first, optimizer = build(optimizer_class, **options)
    train(first, optimizer, 0, 4)
    tensors, described = dump_optimizer(optimizer, first.named_parameters())
    save_checkpoint(tmp_path, 4, {"model": first.state_dict(), "optimizer": tensors}, {"optimizer": described})
    second, resumed = build(optimizer_class, **options)
    train(second, resumed, 0, 1)
    read, state = load_files(latest_checkpoint(tmp_path))
    second.load_state_dict(read["model"])
    load_optimizer(resumed, second.named_parameters(), read["optimizer"], state["optimizer"])
    assert resumed.param_groups[0]["lr"] == 0.01 / 4 and set(read["optimizer"]) == set(tensors)
    train(second, resumed, 4, 8)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    again = dump_optimizer(resumed, second.named_parameters())[0]
    assert again.keys() == tensors.keys() and all(torch.equal(v, tensors[k]) for k, v in read["optimizer"].items())


def test_optimizer_of_another_model_is_refused():
    model, optimizer = build(torch.optim.AdamW)
    tensors, described = dump_optimizer(optimizer, model.named_parameters())
    other = torch.nn.Linear(4, 3)
    with pytest.raises(CheckpointError, match="parameters differ from the checkpoint's"):
        load_optimizer(torch.optim.AdamW(other.parameters()), other.named_parameters(), tensors, described)
    with pytest.raises(CheckpointError, match="ghost/exp_avg belongs to no parameter"):
        load_optimizer(optimizer, model.named_parameters(), {"ghost/exp_avg": torch.ones(1)}, described)
    with pytest.raises(ValueError, match="lacks some of the optimizer's parameters"):
        dump_optimizer(optimizer, other.named_parameters())


def test_metrics_are_strict_json_and_truncate(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_after(path, 3) == 0 and not path.exists()
    append_line(path, {"event": "start"})
    for step in range(1, 6):
        append_line(path, {"step": step, "loss": torch.tensor(0.5), "bad": [math.nan, -math.inf]})
    with open(path, "ab") as file:
        file.write(b'{"step": 6, "lo')
    append_line(path, {"step": 7})
    assert path.read_bytes().endswith(b'{"step": 6, "lo\n{"step": 7}\n')
    with open(path, "ab") as file:
        file.write(b'{"step": 8, "text": "\xc3')
    assert truncate_after(path, 3) == 5
    refuse = pytest.fail
    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 1, 2, 3]
    assert lines[1] == {"step": 1, "loss": 0.5, "bad": ["nan", "-inf"]} and math.isnan(float(lines[1]["bad"][0]))
    assert truncate_after(path, 3) == 0 and [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    append_line(path, {"step": 3, "validation_seconds": 1.0})
    assert (truncate_after(path, 3), truncate_after(path, 3, validated=False)) == (0, 1)
    with pytest.raises(CheckpointError, match="cannot be written, No such file"):
        append_line(tmp_path / "no" / "metrics.jsonl", {})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_metrics_on_a_full_disk():
    with pytest.raises(CheckpointError, match="/dev/full: cannot be written, No space left on device"):
        append_line("/dev/full", {"step": 1})
