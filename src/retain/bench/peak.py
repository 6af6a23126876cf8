"""`python -m retain.bench.peak smt|frugal|bptt`: bytes a training step needs at its peak, with models and optimizer.

frugal is an SMT step with f in pieces, and the encoder's activations computed again: the same losses and gradients.
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import nn

from retain.bench.sides import SMALL, batch_of, models, smt_step, training_step
from retain.config import BPTTConfig
from retain.grid import peak_memory
from retain.objectives import BPTT


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training_step(nn.Linear(1, 1), {})  # what PyTorch first loads for an optimizer is code, and 80 MiB
    before = peak_memory(device)
    size = dataclasses.replace(SMALL, length=256)
    side = sys.argv[1]
    if side == "frugal":
        size = dataclasses.replace(size, smt=dataclasses.replace(size.smt, pieces=8))
    step = (
        training_step(BPTT(models(size)[0], BPTTConfig()), batch_of(size))
        if side == "bptt"
        else smt_step(size, recompute=side == "frugal")
    )
    for _ in range(2):
        step()
    print(peak_memory(device) - before)


if __name__ == "__main__":
    main()
