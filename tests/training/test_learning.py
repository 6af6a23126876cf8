"""Small real training: the RNN alone, after SMT and DMT, does what it was trained for."""

import pytest

from retain.config import CellConfig, DMTConfig, MemoryConfig, RunConfig, SMTConfig, TeacherConfig, data_config
from retain.data import load_data
from retain.inference.evaluate import evaluate
from retain.runs.run import load_run
from retain.training.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_retrieval_is_learnt_and_remembered_without_the_teacher(tmp_path, seed):
    config = RunConfig(
        seed=seed,
        budget="250steps",
        data=data_config(name="retrieval", seq_len=16, symbols=4),
        memory=MemoryConfig(tokens=1, width=32),
        teacher=TeacherConfig(width=64, heads=2, layers=1, future_len=16),
        cell=CellConfig(width=128),
        smt=SMTConfig(share=4, batch_size=32, lr=6e-3, on_policy=0.5, decodes_per_sequence=2),
        dmt=DMTConfig(share=1, batch_size=32, lr=2e-3),
        device="cpu",
        tracker=None,
        validate_every="250steps",
    )
    train(config, tmp_path / "run", progress_bar=False)
    run = load_run(tmp_path / "run", teacher=True)
    result = evaluate(run.rnn, run.teacher, load_data(config.data).windows("test", 512))
    assert result["teacher_accuracy"] > 0.95
    assert result["accuracy"] > 0.95, "chance is 0.25"
    assert result["relative_drift"] < 0.5
