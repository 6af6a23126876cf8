"""The rows of the benchmark. Each measures one ratio and has a goal."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import naive
from benchmarks.measure import REPEATS, autocast, by_turns, device, large, peak_of, precision, product, reading
from benchmarks.sides import (
    PAPER,
    SMALL,
    WHOLE_ROLLOUT,
    Size,
    at,
    batch_of,
    full_window,
    models,
    quicken,
    smt_step,
    training_step,
)
from retain.export.onnx import load_step, write_graphs
from retain.inference.fast_step import fast_step
from retain.inference.generate import generate
from retain.model.compiling import can_compile
from retain.objectives import BPTT, DMT
from retain.ops import attention as ways_of_attention
from retain.ops.graphs import launched


@dataclass(frozen=True)
class Row:
    """One measured ratio."""

    what: str
    goal: float
    least: bool
    """Whether the goal is a lower bound on the ratio, or else an upper bound."""
    reached: float
    note: str
    """The two numbers of the ratio."""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.reached >= self.goal if self.least else self.reached <= self.goal


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{seconds * 1e3:,.1f} ms"


def ways() -> tuple[bool, ...]:
    """Return the values of `compiled` to time: both on a CPU that can compile. On a GPU nothing is compiled."""
    return (False, True) if device().type == "cpu" and can_compile(device()) else (False,)


def fastest(seconds: list[float]) -> str:
    """Format the time of the faster of `ways`, and the time of each."""
    eager, *compiled = seconds
    return ms(min(seconds)) + "".join(f" (eager {ms(eager)}, compiled {ms(other)})" for other in compiled)


def smt_small() -> Row:
    """Time an SMT step of the small size."""
    return _smt(SMALL, "SMT step, small, against float32 with plain SDPA and no compile")


def smt_paper() -> Row:
    """Time an SMT step of the paper's size, with a full window on every side.

    The encoder compiled for a CPU computes every window as a full one.
    """
    return _smt(PAPER, "SMT step, paper (window encoder), against the same", full_window(PAPER))


def _smt(size: Size, what: str, seed: int | None = None) -> Row:
    """Time an SMT step against the plain one, eager or compiled, whichever is faster."""
    *ours, slow = by_turns(
        *(smt_step(size, compiled=way, seed=seed) for way in ways()),
        naive.plain(smt_step(size, bf16=False, seed=seed)),
    )
    return Row(what, 4, True, slow / min(ours), f"{fastest(ours)} against {ms(slow)}")


def labels() -> Row:
    """Compare transitions trained per second: T per sequence with the state encoder, one with the window encoder."""
    size = at(SMALL, length=256)
    state, window = by_turns(smt_step(size), smt_step(size, encoder="window", context_len=256))
    rates = [size.batch * size.length / state, size.batch / window]
    note = f"{rates[0]:,.0f} against {rates[1]:,.0f} transitions/s"
    return Row("transitions trained per second at T = 256: state against window", 50, True, rates[0] / rates[1], note)


def register() -> Row:
    """Time the labels of the register encoder against those of the state encoder."""
    size = dataclasses.replace(at(SMALL, length=256), memory=dataclasses.replace(SMALL.memory, tokens=4))
    sides = []
    for encoder in ("register", "state"):
        teacher, batch = models(size, encoder=encoder)[1], batch_of(size)

        def label(teacher=teacher, batch=batch) -> None:  # type: ignore[no-untyped-def]
            with autocast():
                loss = teacher.encode(batch["tokens"]).square().mean()
            loss.backward()

        sides.append(label)
    ours, state = by_turns(*sides)
    note = f"{ms(ours)} against {ms(state)}, forward and backward"
    return Row("register, all T = 256 steps labelled (K = 4), against state labels", 6, False, ours / state, note)


def dmt() -> Row:
    """Time a DMT step against the paper's loop."""
    rnn, teacher = models(SMALL)
    other, guide = models(SMALL)
    batch = batch_of(SMALL)
    objective, parts = DMT(teacher, rnn, WHOLE_ROLLOUT), quicken(rnn, teacher, compiled=True)
    ours, loop = by_turns(
        training_step(objective, batch, parts=parts),
        naive.plain(training_step(naive.DetachedLoop(guide, other), batch, bf16=False)),
    )
    what = "DMT step per transition, against a rollout with a graph and a detached loop"
    return Row(what, 5, True, loop / ours, f"{ms(ours)} against {ms(loop)}")


def peak() -> Row:
    """Divide the FLOPs of a step, counted by torch, by its time and by the rate of one large product."""
    step = smt_step(PAPER, seed=full_window(PAPER))
    with launched(), FlopCounterMode(display=False) as counter:
        step()
    size = large()
    taken, one = by_turns(step, product(size))
    reached, most = counter.get_total_flops() / taken, 2 * size**3 / one
    note = f"{reached / 1e9:,.0f} of {most / 1e9:,.0f} GFLOP/s"
    return Row("share of the machine's matrix peak in an SMT step, paper", 0.35, True, reached / most, note)


def growth() -> Row:
    """Time an SMT step at T = 1024 against T = 256."""
    short, long = by_turns(smt_step(at(SMALL, length=256)), smt_step(at(SMALL, length=1024)))
    what = "growth of SMT step time from T = 256 to T = 1024, state"
    return Row(what, 5, False, long / short, f"{ms(long)} against {ms(short)}")


def bptt() -> Row:
    """Time SMT against BPTT, each eager or compiled, whichever is faster."""
    size, sides = at(SMALL, length=256), []
    for way in ways():
        rnn, teacher = models(size)
        parts = quicken(rnn, teacher, compiled=way)
        sides += [smt_step(size, compiled=way), training_step(BPTT(rnn), batch_of(size), parts=parts)]
    taken = by_turns(*sides)
    ours, theirs = taken[::2], taken[1::2]
    what = "SMT step time against BPTT, same cell and tokens, T = 256"
    return Row(what, 0.2, False, min(ours) / min(theirs), f"{fastest(ours)} against {fastest(theirs)}")


def generate_1() -> Row:
    """Time the generation of one stream."""
    return _generate(1)


def generate_64() -> Row:
    """Time the generation of 64 streams."""
    return _generate(64)


def _generate(batch: int, length: int = 32) -> Row:
    rnn = models(SMALL)[0].eval()
    prompt = torch.zeros(batch, 0, dtype=torch.long)
    step = fast_step(rnn, batch)
    ours, loop = by_turns(
        lambda: list(generate(rnn, prompt, length, step=step)), naive.plain(lambda: naive.generate(rnn, batch, length))
    )
    rates = [batch * length / ours, batch * length / loop]
    what = f"generated tokens per second against a plain eager loop, batch {batch}"
    return Row(what, 3, True, rates[0] / rates[1], f"{rates[0]:,.0f} against {rates[1]:,.0f} tokens/s")


def onnx(length: int = 64) -> Row:
    """Time the generation of one stream on one CPU thread: the step in onnxruntime against the compiled step."""
    rnn = models(SMALL)[0].cpu().eval()
    prompt = torch.zeros(1, 0, dtype=torch.long)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(rnn, Path(folder), ["step"])
        file = Path(folder) / "step.onnx"
        size, exported, compiled = file.stat().st_size, load_step(file), fast_step(rnn)
    torch.set_num_threads(1)
    try:
        sides = [partial(lambda step: list(generate(rnn, prompt, length, step=step)), s) for s in (exported, compiled)]
        theirs, ours = (length / seconds for seconds in by_turns(*sides))
    finally:
        torch.set_num_threads(threads)
    what = "generated tokens per second of the ONNX step against `fast_step`, batch 1, one thread"
    note = f"{theirs:,.0f} against {ours:,.0f} tokens/s; the file has {size / 2**20:.1f} MiB"
    return Row(what, 1, True, theirs / ours, note)


def weights(length: int = 16) -> Row:
    """Compare the time of a generated token with the time to read the weights once."""
    rnn = models(PAPER)[0].eval()
    size = sum(p.numel() * p.element_size() for part in (rnn.cell, rnn.readout) for p in part.parameters())
    prompt = torch.zeros(1, 0, dtype=torch.long)
    step, size = fast_step(rnn), size * precision().itemsize // 4
    read, times = reading(size)
    ours, reads = by_turns(lambda: list(generate(rnn, prompt, length, step=step)), read)
    token, once = ours / length, reads / times
    what = "time to read the weights over time per generated token, batch 1, paper"
    return Row(what, 0.5, True, once / token, f"{ms(once)} for {size / 2**20:.0f} MiB, {ms(token)} a token")


def memory() -> Row:
    """Compare the peak memory of a frugal SMT step with that of BPTT."""
    # On a CPU the fragmentation of the C library's heap differs between processes, so the median of several counts.
    turns = range(REPEATS if device().type == "cpu" else 1)
    peaks = [[peak_of(side) for side in ("frugal", "smt", "bptt")] for _ in turns]
    ours, held, theirs = (statistics.median(of_side) / 2**20 for of_side in zip(*peaks, strict=True))
    what = "peak memory of an SMT step (f in 8 pieces, the encoder recomputed) against BPTT, T = 256"
    note = f"{ours:,.0f} against {theirs:,.0f} MiB; {held:,.0f} with everything held"
    return Row(what, 0.5, False, ours / theirs, note)


def attention() -> Row:
    """Time every way of attention, forward and backward, at the shapes of SMT: `attention` against the fastest."""
    worst, notes = 0.0, []
    shapes = {
        "readout": (2048, 2, 2),
        "its last layer": (2048, 1, 2),
        "cell": (2048, 3, 3),
        "decoder": (128, 18, 18),
        "trunk": (32, 65, 65),
        "middle trunk": (8, 257, 257),
        "long trunk": (4, 1025, 1025),
    }
    for name, (batch, queries, keys) in shapes.items():
        q, k, v = (torch.randn(batch, 4, length, 32).to(device(), precision()) for length in (queries, keys, keys))
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        causal = queries == keys and name != "cell"
        ways = (ways_of_attention.attention, ways_of_attention.plain_attention, naive.attention)

        def work(way: Callable[..., torch.Tensor], *inputs: torch.Tensor, causal: bool = causal) -> None:
            way(*inputs, causal=causal).float().sum().backward()

        # If two of them are the same function, their ratio is noise, which many rounds reduce.
        chosen, plain, sdpa = by_turns(*(partial(work, way, q, k, v) for way in ways), repeats=3 * REPEATS, primed=True)
        worst = max(worst, chosen / min(plain, sdpa))
        notes.append(f"{name} {keys}: {ms(chosen)} (plain {ms(plain)}, SDPA {ms(sdpa)})")
    return Row("the way attention is computed, over the faster one, worst shape", 1.2, False, worst, "; ".join(notes))


ROWS: dict[str, Callable[[], Row]] = {
    "smt-small": smt_small,
    "smt-paper": smt_paper,
    "labels": labels,
    "register": register,
    "dmt": dmt,
    "peak": peak,
    "growth": growth,
    "bptt": bptt,
    "generate-1": generate_1,
    "generate-64": generate_64,
    "onnx": onnx,
    "weights": weights,
    "memory": memory,
    "attention": attention,
}
