"""Studies past the paper's limits: the true bits of a memory, DMT's rollout for all steps at once, and recall."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.studies import Study
from retain.config import TaskDataConfig
from retain.config.presets import PRESETS
from retain.config.recipes import with_recipe
from retain.experiments.sweep import with_values
from retain.experiments.tables import table
from retain.plots import DPI, FAINT, PALETTE, add_legend, new_figure, tidy_axes

WIDTHS = {"digits": (8, 16, 32, 128), "stdlib": (8, 32, 128, 256)}
"""Preset → numbers in its fsq memory of one token. The last is that of the preset."""
ROLLOUTS = ("loop", "jacobi", "newton")
LENGTHS = (64, 256, 1024, 4096)
DRIFTS = (0.001, 0.01, 0.1)
"""Relative drift of the guesses that the iterations start from."""
STREAMS = 4
MOST_ITERATIONS = 128
PAIRS = {32: 300, 64: 400}
"""Pairs → seconds of a run of `recall`, over 8 times as many tokens."""
LONGEST_RECALL = 1024
STATE = {
    "teacher.trunk": "delta",
    "teacher.layers": 1,
    "smt.lr": 3e-3,
    "data.min_seq_len": 4,
    "smt.batch_size": 32,
    "smt.lambda_dyn": 0.01,
    "smt.lambda_dyn_end": 1.0,
    "smt.share": 5.0,
    "dmt.share": 5.0,
}
"""The settings with which one-step supervision learns S3."""


def compression(quick: bool = False) -> Study:
    """Return the study of fsq memories of several sizes, and of one of float32 numbers, trained for equal steps."""
    steps = 60 if quick else 600
    runs = {}
    for preset, widths in WIDTHS.items():
        shared = {"budget": f"{steps}steps", "validate_every": f"{steps}steps", "tracker": None}
        runs[f"{preset}-float"] = with_values(PRESETS[preset](), shared)
        for width in widths:
            few = {"memory.norm": "fsq", "memory.tokens": 1, "memory.width": width, "smt.lambda_unif": 0.0}
            runs[f"{preset}-{width}"] = with_values(PRESETS[preset](), shared | few)
    line = (
        f"retain train PRESET --budget {steps}steps --validate-every {steps}steps --memory.norm fsq --memory.tokens 1 "
        "--memory.width WIDTH --smt.lambda-unif 0"
    )
    return Study(
        "Quality against bits of memory", line, runs, compression_table, "test", plot=plot_compression, by_name=True
    )


def compression_table(results: Mapping[str, Any]) -> str:
    """Return a table with a row for each memory: the bits it can hold, those it uses, and the bits per token."""
    head = ["data", "memory", "bits it can hold", "bits it uses", "bits per token, test", "relative drift"]
    rows = []
    for preset, widths in WIDTHS.items():
        for name in (*widths, "float"):
            found = results.get(f"{preset}-{name}", {}).get("test")
            if found is None:
                continue
            is_float = name == "float"
            memory = f"{widths[-1]} float32 numbers" if is_float else f"{name} numbers of 5 levels"
            held = f"{32 * widths[-1]:,}" if is_float else f"{found['memory_bits']:.0f}"
            used = "–" if is_float else f"{found['memory_entropy']:.1f} to {found['memory_entropy_by_number']:.0f}"
            rows.append(
                [preset, memory, held, used, f"{found['bits_per_token']:.3f}", f"{found['relative_drift']:.2f}"]
            )
    return (
        "Hybrid recipe, equal steps, one seed. What a memory uses lies between the entropy of whole memories, which "
        "the number of memories seen bounds, and the sum of the entropies of its numbers.\n\n" + table(head, rows)
    )


def plot_compression(results: Mapping[str, Any], path: Path) -> bool:
    """Draw bits per token against bits used, a panel for each preset; return False if matplotlib is not installed."""
    figure = new_figure(path, 9, 3.6)
    if figure is None:
        return False
    for axes, (preset, widths) in zip(figure.subplots(1, len(WIDTHS)), WIDTHS.items(), strict=True):
        found = [r["test"] for r in (results.get(f"{preset}-{width}", {}) for width in widths) if "test" in r]
        quality = [r["bits_per_token"] for r in found]
        axes.plot([r["memory_bits"] for r in found], quality, marker="o", color=PALETTE[1], label="bits it can hold")
        used = [r["memory_entropy_by_number"] for r in found]
        axes.plot(used, quality, marker="o", color=PALETTE[0], label="entropy of its numbers")
        if "test" in (of_float := results.get(f"{preset}-float", {})):
            level = of_float["test"]["bits_per_token"]
            axes.axhline(level, color=FAINT, linestyle=":", label=f"{widths[-1]} float32 numbers")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("bits of memory")
        axes.set_ylabel(f"{preset}: bits per token, test")
        tidy_axes(axes)
        add_legend(axes)
    figure.savefig(path, dpi=DPI)
    return True


def rollouts(quick: bool = False) -> Study:
    """Return the study of DMT's rollouts: the same run with each, for equal steps and for equal seconds."""
    budgets = ("40steps", "10s") if quick else ("1600steps", "120s")
    one_step = with_recipe(with_values(PRESETS["s3"](), STATE), "one-step")
    runs = {
        f"{name}-{budget}": with_values(
            one_step,
            {"dmt.rollout": name, "budget": budget, "validate_every": budget, "tracker": None, "precision": "fp32"},
        )
        for budget in budgets
        for name in ROLLOUTS
    }
    options = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in STATE.items() if value != "delta")
    line = (
        f"retain train s3 --recipe one-step --teacher.trunk delta {options} --dmt.rollout ROLLOUT --budget BUDGET "
        "--validate-every BUDGET --precision fp32"
    )

    def measure(out: Path) -> list[dict[str, Any]]:
        return count_iterations(out / f"loop-{budgets[0]}", LENGTHS[:2] if quick else LENGTHS)

    return Study(
        "Rollouts for all steps at once", line, runs, rollout_tables, None, measure, plot_iterations, by_name=True
    )


def count_iterations(folder: Path, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the loop, and both iterations from several guesses, on a trained RNN: a row for each length and guess.

    A guess is the RNN's own memories plus noise of some relative drift, or the teacher's memories.
    """
    import torch

    from retain.data import load_data
    from retain.objectives import rollout_from_teacher
    from retain.objectives.parallel import rollout_in_parallel
    from retain.runs.run import load_run

    run = load_run(folder, teacher=True)
    assert run.teacher is not None
    rnn, teacher, rows = run.rnn.eval(), run.teacher.eval(), []
    noise = torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # Newton draws a random vector
    with torch.no_grad():
        for length in lengths:
            data = load_data(run.config.data.at_length(length))
            tokens = next(iter(data.windows("test", STREAMS)))["tokens"]
            labels = teacher.encode(tokens)
            start = time.perf_counter()
            loop = rollout_from_teacher(rnn, labels, tokens, length)
            seconds = time.perf_counter() - start
            own = torch.cat([loop, rnn.update(loop[:, -1], tokens[:, -1])[:, None]], 1)
            variance = own[:, 1:].var(0).mean()
            off = float((labels - own)[:, 1:].square().mean() / variance)
            guesses = {
                drift: own + torch.randn(own.shape, generator=noise) * (drift * variance).sqrt() for drift in DRIFTS
            }
            for drift, guess in (guesses | {off: labels}).items():
                guess[:, 0] = own[:, 0]
                row: dict[str, Any] = {
                    "length": length,
                    "drift": drift,
                    "teacher": guess is labels,
                    "loop_seconds": seconds,
                }
                for method in ("jacobi", "newton"):
                    start = time.perf_counter()
                    found, iterations, fell_back = rollout_in_parallel(
                        rnn, guess, tokens, length, method, MOST_ITERATIONS
                    )
                    row |= {
                        f"{method}_iterations": None if fell_back else iterations,
                        f"{method}_seconds": time.perf_counter() - start,
                        f"{method}_error": float((found - loop).abs().max()),
                    }
                rows.append(row)
    return rows


def rollout_tables(results: Mapping[str, Any]) -> str:
    """Return a table of the trained runs, and one of the iterations."""
    rows = []
    for run, found in results.items():
        if run != "measured" and found.get("curve"):
            name, budget = run.split("-")
            # At the run's end. The model that a run keeps, the best on validation, may be from before DMT.
            last = found["curve"][-1]
            cells = [f"{last['accuracy']:.3f}", f"{last['relative_drift']:.4f}", f"{found['steps']:,}"]
            rows.append([name, budget, *cells, f"{found['seconds']:,.0f}", f"{found['sequential_steps']:,}"])
    head = ["rollout", "budget", "accuracy, validation", "relative drift", "steps", "seconds", "sequential steps"]
    text = "S3, one-step recipe, float32, one seed, half of the budget for DMT.\n\n" + table(head, rows)
    text += (
        f"\nThe model that the first run keeps, {STREAMS} sequences, float32, one thread. Iterations end when no "
        f"number changes by more than 1e-4; – is more than {MOST_ITERATIONS}. The error is the largest difference "
        "from the loop.\n\n"
    )
    rows = []
    for row in results["measured"]:
        cells = [f"{row['length']:,}", f"{row['drift']:.2g}{' (teacher)' if row['teacher'] else ''}"]
        for method in ("jacobi", "newton"):
            count = row[f"{method}_iterations"]
            cells += ["–" if count is None else str(count), f"{row[f'{method}_error']:.0e}"]
            cells.append(f"{row[f'{method}_seconds']:.2f}")
        rows.append([*cells, f"{row['loop_seconds']:.2f}"])
    head = ["T", "drift of the guess", "Jacobi: iterations", "error", "seconds"]
    return text + table([*head, "Newton: iterations", "error", "seconds", "the loop, seconds"], rows)


def plot_iterations(results: Mapping[str, Any], path: Path) -> bool:
    """Draw iterations against T, a line for each guess and method; return False if matplotlib is not installed."""
    figure = new_figure(path, 6.5, 4)
    if figure is None:
        return False
    axes = figure.subplots()
    rows = results["measured"]
    lengths = sorted({row["length"] for row in rows})
    axes.plot(lengths, lengths, color=FAINT, linestyle=":", label="the loop")
    for colour, guess in zip(PALETTE, (*DRIFTS, None), strict=False):
        mine = [row for row in rows if (row["teacher"] if guess is None else row["drift"] == guess)]
        label = "the teacher's memories" if guess is None else f"drift {guess:g}"
        for method, style in (("newton", "-"), ("jacobi", "--")):
            counts = [row[f"{method}_iterations"] or float("nan") for row in mine]
            axes.plot([r["length"] for r in mine], counts, style, color=colour, marker="o", label=f"{method}, {label}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("T")
    axes.set_ylabel("sequential applications of f")
    tidy_axes(axes)
    add_legend(axes, loc="center right")
    figure.savefig(path, dpi=DPI)
    return True


def recall(quick: bool = False) -> Study:
    """Return the study of MQAR with many pairs, by one-step supervision and by BPTT."""
    methods, runs = {"one-step": ("smt", "dmt"), "bptt": ("bptt",)}, {}
    for pairs, seconds in PAIRS.items():
        size = {"data.pairs": pairs, "data.seq_len": 8 * pairs, "data.min_seq_len": 32, "data.symbols": 64}
        shared = size | {"memory.tokens": 6, "budget": "10s" if quick else f"{seconds}s", "tracker": None}
        for method, phases in methods.items():
            runs[f"{method}-{pairs}"] = with_values(PRESETS["mqar"](), shared | {"phases": phases})

    def measure(out: Path) -> dict[str, dict[str, float]]:
        return {name: score_recall(out / name, (8, 16, *PAIRS)) for name in runs}

    line = (
        "retain train mqar --phases PHASES --data.symbols 64 --memory.tokens 6 --data.pairs PAIRS "
        "--data.seq-len LENGTH --data.min-seq-len 32 --budget SECONDS"
    )
    return Study("Recall by number of pairs", line, runs, recall_tables, "test", measure, plot_recall, by_name=True)


def score_recall(folder: Path, pairs: tuple[int, ...]) -> dict[str, float]:
    """Return the RNN's test accuracy by pairs and length, "PAIRS/T": all pairs, and its own pairs over longer T."""
    from retain.data import load_data
    from retain.experiments.scheduler import LENGTH_SEQUENCES
    from retain.inference.evaluate import evaluate
    from retain.runs.run import load_run

    run, found = load_run(folder), {}
    own = run.config.data
    assert isinstance(own, TaskDataConfig)
    sizes = [(n, 8 * n) for n in pairs] + [(own.pairs, own.seq_len * times) for times in (2, 4, 8)]
    for count, length in sizes:
        if length <= LONGEST_RECALL:
            data = load_data(dataclasses.replace(own.at_length(length), pairs=count))
            scores = evaluate(run.rnn, None, data.windows("test", max(1, 2**14 // length), LENGTH_SEQUENCES))
            found[f"{count}/{length}"] = scores["accuracy"]
    return found


def recall_tables(results: Mapping[str, Any]) -> str:
    """Return a table of the trained runs, and one of their accuracy with other pairs and lengths."""
    rows = []
    for run, found in results.items():
        if run != "measured" and "test" in found:
            test, drift = found["test"], found["test"].get("relative_drift")
            teacher = test.get("teacher_accuracy")
            cells = [f"{test['accuracy']:.3f}", "–" if teacher is None else f"{teacher:.3f}"]
            cells += ["–" if drift is None else f"{drift:.2f}", f"{found['steps']:,}", f"{found['seconds']:,.0f}"]
            rows.append([run, *cells])
    text = table(["method and pairs", "accuracy, test", "its teacher", "relative drift", "steps", "seconds"], rows)
    measured = results["measured"]
    columns = sorted({place for found in measured.values() for place in found}, key=lambda p: [*map(int, p.split("/"))])
    rows = [[run, *(f"{found[c]:.3f}" if c in found else "–" for c in columns)] for run, found in measured.items()]
    text += "\nAccuracy by pairs / tokens, of 512 test sequences.\n\n"
    return text + table(["trained", *(place.replace("/", " / ") for place in columns)], rows)


def ideal_recall(stores: int, side: int, pairs: int, sequences: int = 64, symbols: int = 64) -> float:
    """Return the accuracy of stores that are written with `pairs` alone, at random addresses of length 1."""
    import torch
    import torch.nn.functional as F

    random = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(sequences, pairs, stores, side, generator=random), dim=-1)
    values = torch.randn(sequences, symbols, stores, side, generator=random)
    store = torch.zeros(sequences, stores, side, side)
    for i in range(pairs):  # values are distinct, so value i may belong to key i
        new = values[:, i] - (keys[:, i, :, None] @ store)[:, :, 0]
        store = store + keys[:, i, :, :, None] * new[:, :, None]
    read = torch.einsum("bpsn,bsnm->bpsm", keys, store).flatten(2)
    closest = (read @ F.normalize(values.flatten(2), dim=-1).mT).argmax(-1)
    return float((closest == torch.arange(pairs)).float().mean())


def plot_recall(results: Mapping[str, Any], path: Path) -> bool:
    """Draw the accuracy of RNNs by pairs, and of ideal stores; return False if matplotlib is not installed."""
    figure = new_figure(path, 6.5, 4)
    if figure is None:
        return False
    axes, counts = figure.subplots(), (4, 8, 16, 24, 32, 48, 64)
    for stores, style in ((2, ":"), (4, "--"), (8, "-.")):
        ideal = [ideal_recall(stores, 16, n) for n in counts]
        axes.plot(counts, ideal, style, color=FAINT, label=f"{stores} stores of 16 x 16, random addresses")
    fewest = min(PAIRS)
    for method, colour in zip(("one-step", "bptt"), PALETTE, strict=False):
        scores = results["measured"].get(f"{method}-{fewest}", {})
        found = {n: scores[f"{n}/{8 * n}"] for n in counts if f"{n}/{8 * n}" in scores}
        label = f"{method}, 4 stores, trained with {fewest} pairs"
        axes.plot(list(found), list(found.values()), marker="o", color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_xlabel("pairs")
    axes.set_ylabel("accuracy, test")
    tidy_axes(axes)
    add_legend(axes)
    figure.savefig(path, dpi=DPI)
    return True
