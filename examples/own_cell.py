"""Train your own cell by SMT and DMT: any nn.Module that computes the next memory from a memory and an input.

python examples/own_cell.py --budget 120s --out runs/own-cell
"""

import argparse
import dataclasses

import torch
from torch import Tensor, nn

import retain
from retain.config import MemoryConfig


class MyCell(nn.Module):
    """A residual cell: a network with one hidden layer computes the change of the memory."""

    def __init__(self, memory: MemoryConfig, hidden: int = 128):
        super().__init__()
        size = memory.tokens * memory.width
        self.hidden = nn.Linear(size + memory.width, hidden)
        self.out = nn.Linear(hidden, size)

    def forward(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Return the memory (N, K, D) after memory (N, K, D) has read inputs (N, D)."""
        # The N rows must stay independent, because in SMT they are steps of the same sequence. So no BatchNorm here.
        x = self.hidden(torch.cat([memory.flatten(1), inputs], 1)).relu()
        change: Tensor = self.out(x)
        return memory + change.view_as(memory)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--budget", default="120s", help="length of the training, e.g. 240s, 5000steps, 20Mtokens")
parser.add_argument("--out", default="runs/own-cell", help="a new folder for the run")
args = parser.parse_args()

# A residual cell needs memory of a fixed scale (rms), because nothing else here keeps it from growing.
memory = MemoryConfig(tokens=4, width=64, norm="rms")
config = dataclasses.replace(retain.PRESETS["stack"](), budget=args.budget, memory=memory)
retain.train(config, args.out, cell=MyCell(memory))

# The run folder holds the weights but not the class. So loading needs a cell of the same sizes.
rnn = retain.load(args.out, cell=MyCell(memory))
data = retain.load_data(config.data)
scores = retain.evaluate(rnn, None, data.windows("test", batch_size=64))
print(f"accuracy {scores['accuracy']:.3f} on the test split; chance is {data.chance:.3f}")
