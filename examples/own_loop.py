"""SMT and DMT as losses in a training loop of your own, on any batches of tokens.

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
    """Make a batch of your data; this one counts up from a random number, modulo 10."""
    count = (torch.randint(10, (16, 1)) + torch.arange(33)) % 10
    # After t tokens the target is token t. Target 0 asks what m_0 expects, so there is one target more than tokens.
    return {"tokens": count[:, :-1], "targets": count}


def train(objective: SMT | DMT) -> None:
    """Minimise the loss of an objective."""
    # An objective freezes what it does not train. An optimizer that saw those parameters would still decay them.
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        losses = objective({**batch(), "progress": step / steps})  # schedules inside follow the progress, 0 … 1
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    print(type(objective).__name__, {name: round(value.item(), 3) for name, value in losses.items()})


# The teacher and the RNN share one form of memory. The RNN's readout has the shape of the teacher's decoder.
memory, guide = MemoryConfig(tokens=2, width=32), TeacherConfig(width=64, layers=2)
rnn = RNN(10, memory, guide, CellConfig(kind="gated", width=64))
smt = SMT(Teacher(10, memory, guide), rnn, SMTLoss(), future_len=guide.future_len)
train(smt)
smt.finish()  # the RNN gets its m_0, and needs the teacher no more to run

# The RNN now runs on its own memories. The teacher only says where it should have been.
train(DMT(smt.teacher, rnn, DMTLoss(bptt_window=16, lambda_dyn=0.1), trunk_trained=True))
print(f"accuracy {retain.evaluate(rnn, None, [batch()])['accuracy']:.3f}")  # 0.97 at best: m_0 cannot know the start
