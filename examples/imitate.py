"""Imitation without velocities: an RNN learns from an expert what to do, and plays in the environment.

The pendulum of gymnasium is swung up by an expert that knows how fast it turns. The RNN sees the angle alone, so it
must remember. A step of its stream is the action that was taken and the angle that followed, as cosine and sine. It
predicts the next action and angle; the next action is what it does. Needs: pip install gymnasium

    python imitate.py --budget 120s           # SMT → DMT
    python imitate.py --budget 120s --bptt    # BPTT beside it
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

import retain
from retain.config import SeriesDataConfig
from retain.model.series_rnn import SeriesRNN

LENGTH = 200
"""Steps of an episode."""
WINDOW = 50
"""Steps that are trained at a time, from any step of an episode on."""


def expert(angle: float, speed: float) -> float:
    """Pump energy until the pendulum can reach the top, then hold it there."""
    if np.cos(angle) > 0.85:
        return float(np.clip(-14 * np.sin(angle) - 3 * speed, -2, 2))
    energy = speed**2 / 6 + 5 * (np.cos(angle) - 1)  # 0 at rest at the top
    return float(np.clip(-6 * energy * np.sign(speed or 1.0), -2, 2))


def play(choose: Callable[[Any], np.ndarray], episodes: int, seed: int, noise: float = 0.0) -> tuple[Any, Any]:
    """Play episodes side by side: rows (B, T + 1, 3) of action and angle, and the returns (B,).

    `choose` takes the environments and the rows so far, and gives actions (B,). `noise` disturbs what is done, so that
    the expert shows how to come back.
    """
    rng = np.random.default_rng(seed)
    environments = [gymnasium.make("Pendulum-v1").unwrapped for _ in range(episodes)]
    seen = np.stack([env.reset(seed=seed * 10_000 + i)[0] for i, env in enumerate(environments)])
    rows = [np.column_stack([np.full(episodes, np.nan), seen[:, :2]])]
    returns = np.zeros(episodes)
    for _ in range(LENGTH):
        actions = choose((environments, rows[-1]))
        done = np.clip(actions + noise * rng.normal(size=episodes), -2, 2)
        found = [env.step(np.array([a], np.float32)) for env, a in zip(environments, done, strict=True)]
        returns += [step[1] for step in found]
        rows.append(np.column_stack([actions, np.stack([step[0][:2] for step in found])]))
    return np.stack(rows, 1), returns


def ask_expert(state: Any) -> np.ndarray:
    """Have the expert act: it is told the speed."""
    return np.array([expert(*env.state) for env in state[0]])


class Player:
    """The RNN: it reads its own actions and the angles, and does what it expects to be done next."""

    def __init__(self, rnn: SeriesRNN, episodes: int):
        self.rnn, self.memory = rnn, rnn.init_memory(episodes)

    @torch.inference_mode()
    def __call__(self, state: Any) -> np.ndarray:
        """Act after the newest row."""
        distribution, self.memory = self.rnn.step(torch.from_numpy(state[1]), self.memory)
        return distribution.mean[:, 0].clamp(-2, 2).numpy()


def main() -> None:
    """Record the expert, train on that, play, and compare the returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="120s")
    parser.add_argument("--bptt", action="store_true")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--out", default="runs/imitate")
    args = parser.parse_args()
    rows, _ = play(ask_expert, args.episodes, seed=0, noise=0.3)
    data = retain.series_data(rows, seq_len=WINDOW, scale="fixed")  # angles and actions keep their units
    config = retain.PRESETS["series"]()
    fields: dict[str, Any] = {"phases": ("bptt",)} if args.bptt else {}
    config = dataclasses.replace(
        config, data=SeriesDataConfig(path="in memory", seq_len=WINDOW), budget=args.budget, tracker=None, **fields
    )
    retain.train(config, args.out, data=data)
    _, best = play(ask_expert, 50, seed=1)
    _, own = play(Player(retain.load_series(args.out), 50), 50, seed=1)
    low = play(lambda state: np.zeros(50), 50, seed=1)[1]
    share = (own.mean() - low.mean()) / (best.mean() - low.mean())
    print(f"return: expert {best.mean():.0f}, RNN {own.mean():.0f}, nothing done {low.mean():.0f}")
    print(f"the RNN has {share:.1%} of what the expert gains, and {best.mean() / own.mean():.1%} of its return")


if __name__ == "__main__":
    main()
