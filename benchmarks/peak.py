"""`python -m benchmarks.peak smt|frugal|bptt`: the peak memory of a training step in bytes, with models and optimizer.

frugal is an SMT step that computes f in chunks and recomputes the encoder's activations. Its gradients are the same.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from benchmarks.sides import SMALL, Size, at, batch_of, models, smt_step, training_step
from retain.experiments.scheduler import measure_peak_memory
from retain.objectives import BPTT


def main() -> None:
    """Measure and print the bytes."""
    device, side = "cuda" if torch.cuda.is_available() else "cpu", sys.argv[1]
    if device == "cpu":
        twice(side, at(SMALL, length=8, batch=2))  # the first step loads about 100 MiB of code
    before = measure_peak_memory(device)
    twice(side, at(SMALL, length=256, batch=SMALL.batch))
    held = 0
    if device == "cpu":  # weights, gradients and two moments: the small step has allocated them before
        parts = models(SMALL)[: 1 if side == "bptt" else 2]
        held = 4 * sum(p.nbytes for part in parts for p in part.parameters())
    print(measure_peak_memory(device) - before + held)


def twice(side: str, size: Size) -> None:
    """Run two steps of this side, and free its models."""
    if side == "frugal":
        size = dataclasses.replace(size, smt=dataclasses.replace(size.smt, num_chunks=8))
    step = (
        training_step(BPTT(models(size)[0]), batch_of(size))
        if side == "bptt"
        else smt_step(size, recompute=side == "frugal")
    )
    for _ in range(2):
        step()


if __name__ == "__main__":
    main()
