"""Export of a trained RNN as ONNX graphs of a step, of its readout and of a chunk of tokens, and a way to run them."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain import __version__
from retain.data import IGNORE, load_data
from retain.errors import UserError
from retain.export.parts import chunk_graph, readout_graph
from retain.files import new_folder, write_file
from retain.inference.generate import Step
from retain.model.rnn import RNN
from retain.runs.checkpoint import find_run
from retain.runs.run import Run

if TYPE_CHECKING:
    import onnx

LIBRARIES = {"torch": "2.13", "onnx": "1.19", "onnxscript": "0.7", "onnxruntime": "1.20"}
"""The oldest versions that the extra `onnx` accepts. They have been tried."""

SCORED = 256
"""The validation sequences, read one at a time, that measure the loss from rounding to int8."""

ROUNDING = 1e-4
"""The largest allowed difference between a graph's numbers and PyTorch's, as a share of the largest (at least of 1)."""

GRAPHS: dict[str, Callable[[Any], Any]] = {"step": lambda step: step, "readout": readout_graph, "chunk": chunk_graph}
"""Name of a graph → the function that makes it from the graph of a step."""

WHOLE = 2**40
"""The size limit of constant folding, which no constant reaches. So the file holds only folded constants."""


def export_onnx(run: Run, directory: Path, *, int8: bool = False) -> dict[str, Any]:
    """Write a new folder with the ONNX graphs of a run's RNN.

    step.onnx reads one token of each stream: token (B,) int64 and memory (B, K, D) float32 → logits of what comes next,
    (B, V), and next_memory (B, K, D). readout.onnx gives the logits of a memory, e.g. of m_0 before the first token.
    chunk.onnx reads tokens (B, T), T at least 1, and gives logits (B, T, V). B and T are free. metadata.json has m_0,
    the memory to start from, and the meaning of tokens. The run's tokenizer is copied.

    Args:
        run: The return value of `load_run`.
        directory: The folder to write.
        int8: Also write step-int8.onnx, whose weights are int8, and score both graphs on validation data.

    Returns:
        The contents of metadata.json.

    Raises:
        UserError: The folder exists, a library is missing or too old, the cell can't be traced, or `int8` has no
            data.
    """
    check_libraries()
    with new_folder(directory) as folder:
        rnn = write_graphs(run.rnn, folder, tuple(GRAPHS))
        metadata = describe(run)
        if metadata["codec"] == "tokenizer":
            shutil.copyfile(find_run(run.path) / "tokenizer.json", folder / "tokenizer.json")
        if int8:
            metadata["int8"] = write_int8(run, rnn, folder)
        write_file(folder / "metadata.json", json.dumps(metadata).encode() + b"\n")
    return metadata


def write_graphs(rnn: RNN, folder: Path, names: Sequence[str]) -> RNN:
    """Write some of GRAPHS into a folder, compare them with the RNN, and return its copy in float32 on the CPU."""
    rnn = copy.deepcopy(rnn).cpu().float().eval().requires_grad_(False)
    step = step_graph(rnn)
    for name in names:
        write_file(folder / f"{name}.onnx", GRAPHS[name](step).SerializeToString())
    check_graphs(rnn, folder, names)
    return rnn


def check_libraries() -> None:
    """Raise UserError if a library of the extra `onnx` is missing or too old."""
    for name, least in LIBRARIES.items():
        try:
            version: str = importlib.import_module(name).__version__
        except ImportError:
            raise UserError(f"onnx: needs {name}; run pip install 'retain[onnx]'") from None
        if _numbers(version) < _numbers(least):
            raise UserError(f"onnx: {name} {version} is too old; run pip install '{name}>={least}'")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


class _Step(nn.Module):
    """`RNN.step`, without the table of projected tokens that it makes for many streams."""

    def __init__(self, rnn: RNN):
        super().__init__()
        self.rnn = rnn

    def forward(self, token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        inputs: Any = self.rnn.embed(token)
        if self.rnn.projects:
            inputs = self.rnn.cell.from_input(inputs)  # type: ignore[operator]
        memory = self.rnn.advance(memory, inputs)
        return self.rnn.readout(memory), memory


def step_graph(rnn: RNN) -> onnx.ModelProto:
    """Return the ONNX graph of a step, for any number of streams. Raises UserError if the cell can't be traced."""
    from onnxscript import optimizer

    batch = {0: "batch"}
    try:
        with torch.no_grad(), quiet():
            program: Any = torch.onnx.export(
                _Step(rnn).eval(),
                (torch.zeros(2, dtype=torch.long), rnn.init_memory(2)),
                input_names=["token", "memory"],
                output_names=["logits", "next_memory"],
                dynamic_shapes={"token": batch, "memory": batch},
                dynamo=True,
                verbose=False,
            )
            optimizer.optimize(program.model, input_size_limit=WHOLE, output_size_limit=WHOLE)
    except torch.onnx.OnnxExporterError as error:
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"cell: {type(rnn.cell).__name__} cannot be traced: {reason[:300]}; write its forward without NumPy and "
            "without branches on values"
        ) from error
    graph: onnx.ModelProto = program.model_proto
    forget_sources(graph)
    return graph


def forget_sources(model: onnx.ModelProto) -> None:
    """Remove the stack traces, with paths of this machine, that the exporter puts at every node, and inner shapes."""
    del model.graph.value_info[:]  # an older quantizer changes weights without changing their shapes here
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log messages and warnings of the exporter and the quantizer."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "onnxscript", "root")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def load_session(path: Path) -> Any:
    """Open a graph in onnxruntime, on one thread, because a step is too small to be parallel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_step(path: Path) -> Step:
    """Open step.onnx as a `Step`, which `generate` takes: tokens (B,), memory (B, K, D) → logits (B, V), memory."""
    session = load_session(path)

    def step(token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        logits, memory = session.run(["logits", "next_memory"], {"token": token.numpy(), "memory": memory.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(memory)

    return step


@torch.no_grad()
def check_graphs(rnn: RNN, folder: Path, names: Sequence[str], length: int = 8) -> None:
    """Compare the graphs in a folder with the RNN. Raises UserError if their outputs differ."""
    step, sessions = load_step(folder / "step.onnx"), {name: load_session(folder / f"{name}.onnx") for name in names}
    for streams in (1, 3):
        tokens = torch.arange(streams * length).view(streams, length) % rnn.vocab_size
        memory = theirs = start = rnn.init_memory(streams)
        said = []
        for token in tokens.unbind(1):
            logits, memory = rnn.step(token, memory)
            said.append(logits)
            of_step, theirs = step(token, theirs)
            _check_same(of_step, logits)
        if "readout" in names:
            (first,) = sessions["readout"].run(["logits"], {"memory": start.numpy()})
            _check_same(first, rnn.readout(start))
        if "chunk" in names:
            inputs = {"tokens": tokens.numpy(), "memory": start.numpy()}
            of_chunk, last = sessions["chunk"].run(["logits", "next_memory"], inputs)
            _check_same(of_chunk, torch.stack(said, 1))
            _check_same(last, memory)


def _check_same(theirs: Any, ours: Tensor) -> None:
    apart = float((torch.as_tensor(theirs) - ours).abs().max()) if theirs.shape == ours.shape else float("nan")
    if not apart <= ROUNDING * max(1.0, float(ours.abs().max())):
        raise UserError(
            f"cell: its ONNX graph differs from it by {apart:.1e}; write a forward with the same operations "
            "for every input and any number of streams"
        )


def describe(run: Run) -> dict[str, Any]:
    """Return the contents of metadata.json, in JSON values."""
    rnn = run.rnn
    tokens, width = rnn.m_0.shape
    kind = run.state["kind"]
    tokenizer = (find_run(run.path) / "tokenizer.json").exists()
    return {
        "format": "retain.onnx",
        "retain": __version__,
        "codec": "tokenizer" if tokenizer else "bytes" if kind == "text" else "numbers",
        "vocab_size": rnn.vocab_size,
        "end": run.state.get("end"),
        "parameters": sum(p.numel() for p in rnn.parameters()),
        "shapes": {
            "token": ["batch"],
            "memory": ["batch", tokens, width],
            "logits": ["batch", rnn.vocab_size],
            "next_memory": ["batch", tokens, width],
        },
        "m_0": _as_json(rnn.init_memory(1)[0].detach().cpu()),
    }


def _as_json(values: Tensor) -> Any:
    """Round float32 numbers to the digits that identify them."""
    if values.dim():
        return [_as_json(part) for part in values]
    return float(f"{float(values):.9g}")


def write_int8(run: Run, rnn: RNN, folder: Path) -> dict[str, Any]:
    """Write step-int8.onnx, and return the bits per token of both graphs on validation data."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if run.state.get("own_data"):
        raise UserError("int8: this run was trained on data of your own, which no config names; leave out int8")
    data = load_data(run.config.data)
    with quiet():
        quantize_dynamic(folder / "step.onnx", folder / "step-int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    bits = {
        name: bits_per_token(load_step(folder / f"{file}.onnx"), rnn, data.windows("validation", 1, SCORED))
        for name, file in (("before", "step"), ("after", "step-int8"))
    }
    return {"bits_per_token": bits, "sequences": min(SCORED, data.count("validation")), "split": "validation"}


@torch.no_grad()
def bits_per_token(step: Step, rnn: RNN, batches: Iterable[dict[str, Tensor]]) -> float:
    """Return the bits per token of a step on batches of one sequence each, read from m_0.

    In a larger batch, int8 steps would round each stream's numbers by the largest number of all streams.
    """
    nats, count = 0.0, 0
    for batch in batches:
        memory = rnn.init_memory(1)
        said = [rnn.readout(memory)]
        for token in batch["tokens"][0]:
            logits, memory = step(token[None], memory)
            said.append(logits)
        targets = batch["targets"][0]
        nats += float(F.cross_entropy(torch.cat(said), targets, ignore_index=IGNORE, reduction="sum"))
        count += int((targets != IGNORE).sum())
    return nats / max(count, 1) / float(torch.log(torch.tensor(2.0)))
