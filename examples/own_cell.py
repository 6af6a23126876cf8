"""Train a cell of your own by SMT and DMT: any nn.Module that makes the next memory of a memory and an input.

python examples/own_cell.py --budget 120s --out runs/own-cell
"""

import argparse
import dataclasses

import torch
from torch import Tensor, nn

import retain
from retain.config import MemoryConfig


class MyCell(nn.Module):
    """It adds to memory what one hidden layer computes of memory and input."""

    def __init__(self, memory: MemoryConfig, hidden: int = 128):
        super().__init__()
        size = memory.tokens * memory.width
        self.hidden = nn.Linear(size + memory.width, hidden)
        self.out = nn.Linear(hidden, size)

    def forward(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Read inputs (N, D) into memory (N, K, D)."""
        # Each of the N stands for itself: in SMT they are steps of one sequence, all at once. So no BatchNorm here.
        x = self.hidden(torch.cat([memory.flatten(1), inputs], 1)).relu()
        change: Tensor = self.out(x)
        return memory + change.view_as(memory)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--budget", default="120s", help="of training: 240s, 5000steps, 20Mtokens")
parser.add_argument("--out", default="runs/own-cell", help="a new folder for the run")
args = parser.parse_args()

# Memory of a fixed scale (rms) suits a cell that adds to it: nothing else here keeps it from growing.
memory = MemoryConfig(tokens=4, width=64, norm="rms")
config = dataclasses.replace(retain.PRESETS["stack"](), budget=args.budget, memory=memory)
retain.train(config, args.out, cell=MyCell(memory))

# The run folder has the weights, not the class. So loading needs a cell of the same sizes to put them into.
rnn = retain.load(args.out, cell=MyCell(memory))
data = retain.load_data(config.data)
scores = retain.evaluate(rnn, None, data.windows("test", batch_size=64))
print(f"accuracy {scores['accuracy']:.3f} on the test split; guessing has {data.chance:.3f}")
