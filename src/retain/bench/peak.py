"""`python -m retain.bench.peak smt|bptt`: bytes a training step needs at its peak, models and optimizer included."""

from __future__ import annotations

import sys

import torch

from retain.bench.sides import SMALL, at, batch_of, models, smt_step, training_step
from retain.config import BPTTConfig
from retain.grid import peak_memory
from retain.objectives import BPTT


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = peak_memory(device)
    size = at(SMALL, length=256)
    step = (
        smt_step(size) if sys.argv[1] == "smt" else training_step(BPTT(models(size)[0], BPTTConfig()), batch_of(size))
    )
    for _ in range(2):
        step()
    print(peak_memory(device) - before)


if __name__ == "__main__":
    main()
