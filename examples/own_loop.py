"""Use SMT and DMT as losses in your own training loop, on any batches of tokens.

python examples/own_loop.py --steps 500
"""

import argparse

import torch

import retain
from retain import DMT, RNN, SMT, Teacher
from retain.config import CellConfig, DMTLoss, MemoryConfig, SMTLoss, TeacherConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each phase")
steps = parser.parse_args().steps


def batch() -> dict[str, torch.Tensor]:
    """Return a batch of your data. Here each sequence counts up from a random number, modulo 10."""
    count = (torch.randint(10, (16, 1)) + torch.arange(33)) % 10
    # The target after t tokens is token t. Target 0 is predicted from m_0, so there is one more target than tokens.
    return {"tokens": count[:, :-1], "targets": count}


def train(objective: SMT | DMT) -> None:
    """Minimise the loss of an objective."""
    # An objective freezes the parameters that it does not train. The optimizer must not get them, or they would decay.
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        losses = objective({**batch(), "progress": step / steps})  # the objective's schedules need the progress, 0 … 1
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    print(type(objective).__name__, {name: round(value.item(), 3) for name, value in losses.items()})


# The teacher and the RNN have memories of the same shape. The RNN's readout has the sizes of the teacher's decoder.
memory, guide = MemoryConfig(tokens=2, width=32), TeacherConfig(width=64, layers=2)
rnn = RNN(10, memory, guide, CellConfig(kind="gated", width=64))
smt = SMT(Teacher(10, memory, guide), rnn, SMTLoss(), future_len=guide.future_len)
train(smt)
smt.finish()  # the RNN gets its m_0, so that it runs without the teacher

# The RNN now runs on its own memories. The teacher only gives the targets.
train(DMT(smt.teacher, rnn, DMTLoss(bptt_window=16, lambda_dyn=0.1), trunk_trained=True))
print(f"accuracy {retain.evaluate(rnn, None, [batch()])['accuracy']:.3f}")  # 0.97 at best: the start is random
