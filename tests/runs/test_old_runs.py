"""Run folders of earlier versions load, are scored and go on; version-1 is one that was stopped at step 8."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import tiny
from retain.config import CellConfig, MemoryConfig
from retain.config.json import from_dict, load_config, to_dict
from retain.config.migrate import VERSION
from retain.errors import UserError
from retain.runs.run import load
from retain.training.loop import train
from runs import losses

OLD = Path(__file__).with_name("version-1")


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_an_old_run_is_read_and_scored(old, retain):
    rnn = load(old)
    logits, memory = rnn.step(torch.tensor([1]), rnn.init_memory(1))
    assert logits.shape == (1, 9) and memory.shape == (1, 1, 8)
    assert retain("eval", old)[0] == 0 and retain("generate", old, "--length", "4")[0] == 0
    assert retain("report", old, "--out", old / "page.html")[0] == 0


def test_an_old_run_goes_on_as_if_it_had_never_stopped(old, retain):
    code, _, complaint = retain("train", "--out", old, "--resume", "--quiet")
    assert code == 0, complaint
    expected = json.loads((OLD / "losses.json").read_text())
    assert losses(old) == pytest.approx(expected, rel=1e-3)
    assert json.loads((old / "config.json").read_text())["version"] == VERSION
    assert load_config(old / "config.json") == load_config(OLD / "config.json")


def test_an_old_delta_cell_keeps_its_addresses(tmp_path):
    cell, memory = CellConfig(kind="delta", width=8, addresses="memory"), MemoryConfig(tokens=3, width=16)
    train(tiny(cell=cell, memory=memory), tmp_path / "run", progress_bar=False)
    tokens = torch.arange(4)[None]
    with torch.no_grad():
        expected = load(tmp_path / "run")(tokens)[0]
        path = tmp_path / "run" / "config.json"
        config = json.loads(path.read_text()) | {"version": 4}
        del config["cell"]["addresses"]
        path.write_text(json.dumps(config))
        torch.testing.assert_close(load(tmp_path / "run")(tokens)[0], expected)


CHANGES = [
    # a field of the first version, and what it is now
    ({"smt": {"unroll": 16}}, "smt.bptt_window", 16),
    ({"bptt": {"truncate": 4}}, "bptt.bptt_window", 4),
    ({"smt": {"pieces": 8}}, "smt.num_chunks", 8),
    ({"smt": {"schedule": "constant"}}, "smt.lr_schedule", "constant"),
    ({"teacher": {"recompute": True, "width": 64}}, "teacher.width", 64),
    ({"smt": {"clip": 2.0}, "dmt": {"clip": 2.0}}, "optimizer.max_grad_norm", 2.0),
    ({"phases": ["bptt"], "dmt": {"lr_schedule": "constant"}, "version": 3}, "dmt.lr", 1e-3),
    ({"smt": {"accumulate": 2}, "dmt": {"accumulate": 2}}, "optimizer.gradient_accumulation_steps", 2),
    ({"phases": ["smt"], "smt": {"clip": 1.0, "warmup": 0.5}}, "optimizer.warmup", 0.5),
    ({"dmt": {"horizon": 1, "horizon_end": 16}}, "dmt.horizon", 16),
    ({"dmt": {"horizon": 16, "horizon_end": 16}}, "dmt.horizon_growth", 0.0),
    ({"dmt": {"horizon": 1, "horizon_end": 999}}, "dmt.horizon", None),
    ({"dmt": {"horizon": 999, "horizon_end": None}}, "dmt.horizon_growth", 0.0),
    ({"smt": {"budget": "30s"}, "dmt": {"budget": "10s"}}, "budget", "40s"),
    ({"smt": {"budget": "30s"}, "dmt": {"budget": "10s"}}, "smt.share", 30.0),
    ({"data": {"name": "stdlib", "symbols": 8, "events": False, "column": None}, "smt": {"unroll": 1}}, "data", None),
    ({"version": 4, "cell": {"kind": "delta"}, "memory": {"tokens": 3, "width": 16}}, "cell.addresses", "memory"),
    ({"version": 5, "cell": {"kind": "delta"}, "memory": {"tokens": 3, "width": 16}}, "cell.addresses", "inputs"),
]


IMAGES = {"name": "images", "path": "hf:a/b", "image_size": 4}
CHANGES += [
    # of the second, and what it is now
    ({"version": 2} | old, key, value)
    for old, key, value in (
        ({"log_every": 5, "checkpoint_every": "5steps", "seed": 3}, "seed", 3),
        ({"teacher": {"activation_checkpointing": True, "width": 64}}, "teacher.width", 64),
        ({"optimizer": {"betas": [0.9, 0.95], "max_grad_norm": 3.0, "warmup": 0.5}}, "optimizer.max_grad_norm", 3.0),
        ({"data": IMAGES | {"revision": "abc"}}, "data.path", "hf:a/b@abc"),
        ({"data": IMAGES | {"revision": None}}, "data.path", "hf:a/b"),
        ({"data": IMAGES | {"threshold": 96, "levels": 256}}, "data.thresholds", [96]),
        ({"data": IMAGES | {"threshold": None, "levels": 256}}, "data.thresholds", []),
        ({"data": IMAGES | {"levels": 3}}, "data.thresholds", [86, 171]),
        ({"data": IMAGES | {"levels": 4}}, "data.seq_len", 15),
    )
]


@pytest.mark.parametrize(("old", "key", "value"), CHANGES, ids=str)
def test_a_field_of_the_first_version_is_read_as_today(old, key, value):
    found = to_dict(from_dict(old))
    for part in key.split("."):
        found = found[part]
    assert found == ({"name": "stdlib", "seq_len": 64} if key == "data" else value)


LOST = [
    ({"smt": {"sweeps": 2}}, "smt.sweeps 2"),
    ({"smt": {"unroll": 1, "detach_labels": True}}, "smt.detach_labels True"),
    ({"smt": {"unroll": 1, "on_policy": 0.5, "horizon": 3}}, "smt.horizon 3"),
    ({"smt": {"clip": 2.0}}, "clip 2.0, 1.0 for each phase"),
    ({"smt": {"budget": "30s"}, "dmt": {"unroll": 1}}, "smt.budget 30s"),
    ({"smt": {"budget": "30s"}, "dmt": {"budget": "9steps"}}, "smt.budget 30s"),
    ({"dmt": {"horizon": 3, "horizon_end": None}}, "dmt.horizon 3"),
    ({"dmt": {"schedule": "constant"}}, "dmt.lr_schedule constant"),
    ({"version": 2, "optimizer": {"betas": [0.5, 0.95]}}, "optimizer.betas [0.5, 0.95]"),
    ({"version": 3, "dmt": {"lr_schedule": "constant"}}, "dmt.lr_schedule constant"),
]


@pytest.mark.parametrize(("old", "lost"), LOST, ids=str)
def test_what_this_version_lacks_is_refused_to_train_with_and_left_out_to_read(old, lost):
    with pytest.raises(UserError, match="of an earlier version") as caught:
        from_dict(old)
    assert lost in str(caught.value)
    assert from_dict(old, drop=True)


def test_a_model_trained_with_what_is_gone_is_still_read(old):
    def add_sweeps(path):
        values = json.loads(path.read_text())
        values.get("config", values)["smt"]["sweeps"] = 2
        path.write_text(json.dumps(values))
        return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}

    add_sweeps(old / "config.json")
    for folder in (old / "checkpoints").iterdir():
        known = json.loads((folder / "manifest.json").read_text())
        known["files"]["state.json"] = add_sweeps(folder / "state.json")
        (folder / "manifest.json").write_text(json.dumps(known))
    assert load(old).vocab_size == 9
    with pytest.raises(UserError, match=r"smt\.sweeps 2 is of an earlier version"):
        train(load_config(old / "config.json", drop=True), old, resume=True, progress_bar=False)


def test_a_newer_version_is_refused():
    with pytest.raises(UserError, match="version: 99 is none that this retain reads"):
        from_dict(to_dict(tiny()) | {"version": 99})
