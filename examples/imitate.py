"""Imitation without velocities: an RNN learns from an expert what to do, and plays in the environment.

The expert balances the cart and pole of gymnasium, and knows how fast they move. The RNN sees where they are alone, so
it must remember. A step of its stream is the push that the expert chose, and the place and angle that followed. It
predicts the next push, place and angle; the next push is what it does. Needs: pip install gymnasium

    python imitate.py --budget 120s           # SMT → DMT
    python imitate.py --budget 120s --bptt    # BPTT beside it
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

import retain
from retain.config import SeriesDataConfig

LENGTH = 500
"""Steps of an episode, and its largest return."""
WINDOW = 32
"""Steps that are trained at a time, from any step of an episode on."""

Floats = npt.NDArray[np.float64]
Choose = Callable[[Floats, Floats], Floats]
"""From the states of some carts (B, 4) and the newest rows of their streams (B, 3) to pushes (B,): left below 0."""


def expert(states: Floats, rows: Floats) -> Floats:
    """Push to where the pole falls, with an eye on the middle of the track."""
    return np.asarray(np.where(states @ np.array([0.03, 0.08, 1.0, 0.3]) > 0, 1.0, -1.0))


def play(choose: Choose, episodes: int, seed: int, length: int = LENGTH, noise: float = 0.0) -> tuple[Floats, Floats]:
    """Play episodes side by side: rows (B, T + 1, 3) of push, place and angle, and the returns (B,).

    A part `noise` of the pushes is at random, so that the expert shows how to come back from there.
    """
    rng = np.random.default_rng(seed)
    environments = [gymnasium.make("CartPole-v1").unwrapped for _ in range(episodes)]
    states = np.array([env.reset(seed=10_000 * seed + i)[0] for i, env in enumerate(environments)], np.float64)
    rows = [np.column_stack([np.full(episodes, np.nan), states[:, [0, 2]]])]
    returns, alive = np.zeros(episodes), np.ones(episodes, bool)
    for _ in range(length):
        pushes = choose(states, rows[-1])
        done = np.where(rng.random(episodes) < noise, rng.choice([-1.0, 1.0], episodes), pushes)
        for i in np.flatnonzero(alive):
            state, _, fallen, _, _ = environments[i].step(int(done[i] > 0))
            states[i], returns[i], alive[i] = state, returns[i] + 1, not fallen
        rows.append(np.where(alive[:, None], np.column_stack([pushes, states[:, [0, 2]]]), np.nan))
    return np.stack(rows, 1), returns


class Player:
    """The RNN: it reads its own pushes and what it sees, and does what it expects to be done next."""

    def __init__(self, path: str, episodes: int):
        self.rnn = retain.load_series(path)
        nothing = torch.full((episodes, 1, self.rnn.channels.row), torch.nan)
        self.memory = self.rnn.read(nothing, self.rnn.init_memory(episodes))  # a stream begins without values

    @torch.inference_mode()
    def __call__(self, states: Floats, rows: Floats) -> Floats:
        """Choose after the newest rows; the states are not for it."""
        distribution, self.memory = self.rnn.step(torch.from_numpy(rows), self.memory)
        return np.asarray(distribution.mean[:, 0].sign().numpy())


def main() -> None:
    """Record the expert, train on that, play, and compare the returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--bptt", action="store_true")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--out", default="runs/imitate")
    args = parser.parse_args()
    rows, _ = play(expert, args.episodes, seed=0, length=200, noise=0.2)
    data = retain.series_data(rows, seq_len=WINDOW, scale="fixed")  # places and pushes keep their units
    fields: dict[str, Any] = {"phases": ("bptt",)} if args.bptt else {}
    config = dataclasses.replace(
        retain.PRESETS["series"](), data=SeriesDataConfig(path="in memory", seq_len=WINDOW), budget=args.budget,
        tracker=None, **fields,
    )  # fmt: skip
    retain.train(config, args.out, data=data)
    rng = np.random.default_rng(0)
    players = (expert, Player(args.out, 20), lambda states, rows: rng.choice([-1.0, 1.0], 20))
    best, own, chance = (float(play(choose, 20, seed=1)[1].mean()) for choose in players)
    print(f"return: expert {best:.0f}, RNN {own:.0f} ({own / best:.1%}), random pushes {chance:.0f}")


if __name__ == "__main__":
    main()
