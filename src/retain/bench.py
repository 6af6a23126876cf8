"""`make bench`: the figures this project stands by, trained anew and written to docs/results.md.

Every run is kept in its folder under runs/bench and not done twice; a bench that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from retain.config import CellConfig, RunConfig
from retain.presets import PRESETS
from retain.results import PAGE, write
from retain.tables import spread, table

OUT = Path("runs/bench")
MARKS = ("<!-- bench begin -->", "<!-- bench end -->")


def runs() -> dict[str, dict[str, RunConfig]]:
    """Task → method → run. All methods of a task have the same seconds, data and memory, and are scored alike.

    Text has two shapes of batch, 16 sequences of 64 tokens (the preset's) and 8 of 128: they favour different methods.
    """
    stdlib, digits, retrieval = (PRESETS[name]() for name in ("stdlib", "digits", "retrieval"))
    transformer = CellConfig(kind="transformer", width=128, layers=2)

    def bptt(config: RunConfig, cell: CellConfig) -> RunConfig:
        return dataclasses.replace(config, phases=("bptt",), cell=cell)

    def longer(config: RunConfig) -> RunConfig:
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, seq_len=128),
            **{phase: dataclasses.replace(getattr(config, phase), batch_size=8) for phase in ("smt", "dmt", "bptt")},
        )

    gru = CellConfig(kind="gru")
    return {
        "stdlib": {
            "SMT → DMT": stdlib,
            "BPTT, same cell": bptt(stdlib, stdlib.cell),
            "BPTT, GRU": bptt(stdlib, gru),
            "SMT → DMT, 8 × 128": longer(stdlib),
            "BPTT, same cell, 8 × 128": longer(bptt(stdlib, stdlib.cell)),
        },
        "digits": {"SMT → DMT": digits, "BPTT, same cell": bptt(digits, digits.cell), "BPTT, GRU": bptt(digits, gru)},
        "retrieval": {
            "SMT → DMT": retrieval,
            "BPTT, same cell": bptt(retrieval, retrieval.cell),
            "BPTT, transformer cell": bptt(retrieval, transformer),
            "BPTT, GRU": bptt(retrieval, gru),
        },
    }


def run_one(task: str, method: str, config: RunConfig, seed: int) -> dict[str, Any]:
    """Train and score one run, unless that is done already; what was cut short is resumed."""
    from retain.data import load_data
    from retain.evaluate import evaluate
    from retain.run import load_run
    from retain.train import prepare_folder, train

    folder = OUT / task / f"{slug(method)}-seed{seed}"
    scored = folder / "eval-test.json"
    config = dataclasses.replace(config, seed=seed, tracker=None)
    begun = (folder / "config.json").exists()
    prepare_folder(config, folder, begun)  # a run of an earlier recipe must not pass for one of this
    if not scored.exists():
        train(config, folder, resume=begun)
        run = load_run(folder, teacher=True)
        data_config = PRESETS[task]().data
        if task == "stdlib":
            data_config = dataclasses.replace(data_config, seq_len=128)  # one length for both shapes
        data = load_data(data_config)
        result = evaluate(run.rnn, run.teacher if "smt" in config.phases else None, data.windows("test", 256))
        scored.write_text(json.dumps(result, indent=2) + "\n")
    summary = json.loads((folder / "summary.json").read_text())
    return json.loads(scored.read_text()) | {f"train_{k}": summary[k] for k in ("seconds", "tokens", "parameters")}


def slug(method: str) -> str:
    return method.replace(" → ", "-").replace(" × ", "x").replace(", ", "-").replace(" ", "-").lower()


def markdown(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """One line per task and method, mean ± standard deviation over the seeds."""
    head = ["task", "method", "seeds", "RNN, bits/token", "accuracy", "its teacher, bits/token", "relative drift"]
    head += ["seconds", "tokens", "parameters"]
    rows = []
    for task, methods in results.items():
        for method, seeds in methods.items():
            scores = ("bits_per_token", "accuracy", "teacher_bits_per_token", "relative_drift")
            costs = {"train_seconds": ".0f", "train_tokens": ",.0f"}
            rows.append(
                [task, method, str(len(seeds))]
                + [spread(run[key] for run in seeds) for key in scores]
                + [spread((run[key] for run in seeds), form, deviation=False) for key, form in costs.items()]
                + [f"{seeds[0]['train_parameters']:,}"]
            )
    return table(head, rows)


def collect() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every finished run under runs/bench."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task, methods in runs().items():
        for method, config in methods.items():
            done = sorted((OUT / task).glob(f"{slug(method)}-seed*/eval-test.json"))
            rows = [run_one(task, method, config, int(p.parent.name.rpartition("seed")[2])) for p in done]
            if rows:
                found.setdefault(task, {})[method] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m retain.bench", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="some of stdlib, digits, retrieval; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="beginnings of method names, e.g. SMT 'BPTT, GRU'")
    args = parser.parse_args()
    for task, methods in runs().items():
        for method, config in methods.items():
            wanted = args.methods is None or method.startswith(tuple(args.methods))
            if wanted and (not args.tasks or task in args.tasks):
                for seed in args.seeds:
                    result = run_one(task, method, config, seed)
                    print(f"{task}, {method}, seed {seed}: {result['bits_per_token']:.3f} bits/token", flush=True)
    results = collect()
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write(markdown(results), PAGE, MARKS)
    print(markdown(results))


if __name__ == "__main__":
    main()
