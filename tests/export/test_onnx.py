"""ONNX graphs in onnxruntime: they say what the RNN says, for every cell, any number of streams, and 1,000 steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny
from retain.config import MemoryConfig
from retain.errors import UserError
from retain.export import onnx as target
from retain.export.onnx import export_onnx, load_session, load_step
from retain.inference.generate import generate
from retain.model.cells import CELLS
from retain.runs.run import Run, build, load_run

for name in ("onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"no {name} here: pip install 'retain[onnx]'")


class OwnCell(nn.Module):
    """What a user might write: it shows no `rollout`, no `depth` and no projection."""

    def __init__(self, memory, config):
        super().__init__()
        self.mix = nn.Linear((memory.tokens + 1) * memory.width, memory.tokens * memory.width)

    def forward(self, memory, inputs):
        return memory + torch.tanh(self.mix(torch.cat([memory.flatten(1), inputs], 1))).view_as(memory)


class BranchingCell(OwnCell):
    """It looks at a value, which no graph can."""

    def forward(self, memory, inputs):
        new = super().forward(memory, inputs)
        return new if float(new.detach().abs().max()) < 100 else memory


class CountingCell(OwnCell):
    """It does something else at every call, which a graph does not."""

    calls = 0

    def forward(self, memory, inputs):
        self.calls += 1
        return super().forward(memory, inputs) * (1 + self.calls / 100)


def run_of(tmp_path, cell="gated", norm="batch", own=None, kind="text"):
    """A run as `load_run` gives it, with weights that are not those of the start, many of which are 0."""
    memory = MemoryConfig(tokens=4 if cell == "delta" else 2, width=16, norm=norm)
    config = tiny(memory=memory, cell__kind=cell, cell__layers=2 if cell in ("mlp", "transformer") else 1)
    rnn, _ = build(config, 256 if kind == "text" else 11, own)
    for weight in rnn.parameters():
        nn.init.normal_(weight, std=0.3)
    state = {"kind": kind, "vocab_size": rnn.vocab_size, "own_cell": type(own).__name__ if own else None}
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run", config, state, rnn.eval().requires_grad_(False), None)


def own_of(cls):
    return cls(MemoryConfig(tokens=2, width=16), None)


@pytest.mark.parametrize(
    ("cell", "norm"),
    [(name, "rms" if name in ("mlp", "elman") else "batch") for name in CELLS] + [("own", "rms"), ("gated", "fsq")],
)
def test_the_graphs_say_what_the_rnn_says(tmp_path, cell, norm):
    run = run_of(tmp_path, norm=norm, own=own_of(OwnCell)) if cell == "own" else run_of(tmp_path, cell, norm)
    metadata = export_onnx(run, tmp_path / "out")
    assert metadata == json.loads((tmp_path / "out" / "metadata.json").read_text())
    step, chunk = load_step(tmp_path / "out" / "step.onnx"), load_session(tmp_path / "out" / "chunk.onnx")

    start = torch.tensor(metadata["m_0"])[None]
    assert torch.equal(start, run.rnn.init_memory(1))
    first = load_session(tmp_path / "out" / "readout.onnx").run(["logits"], {"memory": start.numpy()})[0]
    assert np.abs(first - run.rnn.readout(start).numpy()).max() <= 1e-4
    for streams, length in ((1, 1000), (5, 20)):
        tokens = torch.randint(256, (streams, length))
        ours = theirs = start.repeat(streams, 1, 1)
        said, of_step = [], []
        for token in tokens.unbind(1):
            logits, ours = run.rnn.step(token, ours)
            said.append(logits)
            logits, theirs = step(token, theirs)
            of_step.append(logits)
        said, of_step = torch.stack(said, 1), torch.stack(of_step, 1)
        assert said.std() > 0.01 and (said[:, 0] - said[:, -1]).abs().max() > 0.01
        assert (said - of_step).abs().max() <= 1e-4

        memory, of_chunk = start.repeat(streams, 1, 1).numpy(), []
        for part in tokens.split([length - 7, 6, 1], 1):
            logits, memory = chunk.run(None, {"tokens": part.numpy(), "memory": memory})
            of_chunk.append(logits)
        assert np.abs(np.concatenate(of_chunk, 1) - said.numpy()).max() <= 1e-4
        assert np.abs(memory - ours.numpy()).max() <= 1e-4 * max(1, ours.abs().max())


def test_the_folder_of_a_run(retain, text_run, tmp_path):
    """From the command line, with int8: smaller, nearly as good, and nothing of this machine in the files."""
    code, said, complaint = retain("export", text_run, tmp_path / "out", "--to", "onnx", "--int8")
    assert (code, complaint) == (0, "")
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert set(files) == {"step.onnx", "readout.onnx", "chunk.onnx", "step-int8.onnx", "metadata.json"}
    metadata = json.loads(files["metadata.json"].read_text())
    assert metadata["codec"] == "bytes" and metadata["shapes"]["memory"] == ["batch", 2, 8]
    bits = metadata["int8"]["bits_per_token"]
    assert f"{bits['before']:.4f} bits per token before, {bits['after']:.4f} after" in said
    assert bits["after"] == pytest.approx(bits["before"], abs=0.1) and bits["after"] != bits["before"]
    assert "MatMulInteger" in str(files["step-int8.onnx"].read_bytes())
    for file in files.values():
        assert b"site-packages" not in file.read_bytes() and b"retain/model" not in file.read_bytes()

    rnn = load_run(text_run).rnn
    prompt = torch.tensor([list(b"to be")])
    theirs = generate(rnn, prompt, 50, temperature=0, step=load_step(files["step.onnx"]))
    assert [t.item() for t in theirs] == [t.item() for t in generate(rnn, prompt, 50, temperature=0)]


def test_before_int8_the_bits_are_those_of_eval(text_run, tmp_path):
    from retain.data import load_data
    from retain.inference.evaluate import evaluate

    run = load_run(text_run)
    data = load_data(run.config.data)
    metadata = export_onnx(run, tmp_path / "out", int8=True)
    assert metadata["int8"]["sequences"] == data.count("validation") < target.SCORED
    ours = evaluate(run.rnn, None, data.windows("validation", 16))["bits_per_token"]
    assert metadata["int8"]["bits_per_token"]["before"] == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize(
    ("cell", "words"),
    [(BranchingCell, "cell: BranchingCell cannot be traced: "), (CountingCell, "cell: its ONNX graph differs from it")],
)
def test_a_cell_that_no_graph_can_be_is_one_line(tmp_path, cell, words):
    with pytest.raises(UserError, match=words) as caught:
        export_onnx(run_of(tmp_path, own=own_of(cell)), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("least", "words"),
    [
        ({"onnxscript": "99.0"}, "is too old; run pip install 'onnxscript>=99.0'"),
        ({"no_such": "1"}, "onnx: needs no_such; run"),
    ],
)
def test_a_library_that_is_missing_or_too_old(tmp_path, monkeypatch, least, words):
    monkeypatch.setattr(target, "LIBRARIES", least)
    with pytest.raises(UserError, match=words):
        export_onnx(run_of(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_extra_asks_for_these_versions():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert "onnx = " + json.dumps([f"{name}>={least}" for name, least in target.LIBRARIES.items()]) in text


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="already exists"):
        export_onnx(run_of(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
