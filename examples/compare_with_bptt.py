"""A fair comparison: SMT → DMT and BPTT train the same RNN for equal seconds, at the best of the same learning rates.

    python examples/compare_with_bptt.py --preset stack --budget 60s --out runs/fair

It trains six runs, one after another. `retain compare` does the same with seeds, more methods and tables.
"""

import argparse
import dataclasses

import retain
from retain import RunConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--preset", default="stack", help="a preset that needs no file, e.g. stack, digits or stdlib")
parser.add_argument("--budget", default="60s", help="budget of each run; seconds include the teacher")
parser.add_argument("--out", default="runs/fair", help="a new folder for the runs")
args = parser.parse_args()

base = dataclasses.replace(retain.PRESETS[args.preset](), budget=args.budget, tracker=None)
data = retain.load_data(base.data)


def at_rate(config: RunConfig, factor: float) -> RunConfig:
    """Multiply the learning rates of all phases."""
    phases = {name: getattr(config, name) for name in config.phases}
    return dataclasses.replace(config, **{k: dataclasses.replace(c, lr=c.lr * factor) for k, c in phases.items()})


# Both have the memory, cell, readout, data and seed of the base. Only the training differs.
methods = {"smt-dmt": base, "bptt": dataclasses.replace(base, phases=("bptt",))}
for name, config in methods.items():
    # A method with a bad learning rate would lose for that reason alone. So each tries the same number of rates.
    # Validation chooses the best. A choice by the test split would make both look too good.
    found = {}
    for factor in (1 / 3, 1, 3):
        folder = f"{args.out}/{name}-{factor:.2f}"
        summary = retain.train(at_rate(config, factor), folder)
        found[folder] = summary["validation_bits_per_token"]
    best = min(found, key=lambda folder: found[folder])
    scores = retain.evaluate(retain.load(best), None, data.windows("test", batch_size=64))
    print(f"{name}: {scores['bits_per_token']:.3f} bits per token, accuracy {scores['accuracy']:.3f} (test, {best})")
