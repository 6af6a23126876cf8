"""The same on a GPU: bf16, a fused optimizer, training, resuming, evaluation and generation."""

import dataclasses
import json

import pytest
import torch

from retain.config import DataConfig
from retain.evaluate import evaluate
from retain.generate import generate
from retain.presets import PRESETS
from retain.run import load_run
from retain.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("preset", ["retrieval", "digits", "mnist-paper"])
def test_a_preset_trains_resumes_reads_and_writes_on_cuda(preset, tmp_path):
    config = PRESETS[preset]()
    data = DataConfig(name="digits", seq_len=63) if preset == "mnist-paper" else config.data
    parts = {
        name: dataclasses.replace(getattr(config, name), budget=None, batch_size=4, seq_len=None)
        for name in config.phases
    }
    if preset == "mnist-paper":
        parts["dmt"] = dataclasses.replace(parts["dmt"], horizon=32, horizon_end=32)
    if preset == "retrieval":  # most pieces are asked nothing
        parts["smt"] = dataclasses.replace(parts["smt"], pieces=8)
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, recompute=True))
    config = dataclasses.replace(
        config, data=data, budget="4steps", device="cuda", precision="auto", log_every=1, tracker=None,
        validation_sequences=8, validate_every="1000steps", checkpoint_every="1steps", **parts,
    )  # fmt: skip
    summary = train(config, tmp_path / "run", progress_bar=False)
    assert summary["device"].startswith("cuda")
    assert (summary["precision"] == "bf16") == torch.cuda.is_bf16_supported(including_emulation=False)
    for end in (tmp_path / "run" / "manifest.json",):
        end.unlink()  # as if it had been killed before it was exported
    again = train(config, tmp_path / "run", resume=True, progress_bar=False)
    assert again["steps"] == summary["steps"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines if "loss" in line)
    run = load_run(tmp_path / "run", teacher=True, device="cuda")
    from retain.data import load_data

    result = evaluate(run.rnn, run.teacher, load_data(data).windows("test", 8, 8))
    on_cpu = load_run(tmp_path / "run", teacher=True)
    there = evaluate(on_cpu.rnn, on_cpu.teacher, load_data(data).windows("test", 8, 8))
    assert abs(result["bits_per_token"] - there["bits_per_token"]) < 0.02
    tokens = torch.stack(list(generate(run.rnn, torch.zeros(3, 0, dtype=torch.long), 5)), 1)
    assert tokens.shape == (3, 5) and tokens.device.type == "cuda"
