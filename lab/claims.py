"""`make claims`: tests every claim of the paper, and writes docs/claims.md with the scores and a verdict for each.

The claims and their `retain compare` lines are in lab/claim_list.py. A line runs unless its results are stored as
docs/results/claims/NAME.json. All lines take about seven hours on two cores. A name runs one line, e.g.
`python -m lab.claims text-gated`. After an interruption the same command continues. `--tables` only writes the page and
draws its pictures (lab/claim_plots.py).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import claim_plots
from lab.claim_list import LENGTHS, RUNS, TASKS, Claim, Row, claims, comparisons, line_of
from lab.kept import Kept, find_comparison
from lab.results import make_each, run_comparison, write
from lab.studies import CREDIT_LENGTHS
from retain.experiments.tables import mean_and_deviation, table

PAGE = Path("docs/claims.md")
KEPT = Path("docs/results/claims")
CREDIT = Path("docs/results/credit.json")
COMPLETED = {
    "mnist-completed.png": ("mnist-transformer", "mnist-transformer-bptt"),
    "mnist-completed-gated.png": ("mnist-gated", "mnist-gated"),
}
"""Picture → the comparisons whose RNNs complete digits there: by one-step and by BPTT."""
ZOOM = 3
MARKS = ("<!-- claims begin -->", "<!-- claims end -->")


def kept(name: str) -> dict[str, Any] | None:
    """Return the results of a comparison, None if it has not been run with its current settings."""
    found = find_comparison(name, line_of(name), KEPT)
    saved = found.read() if found.is_current() else None
    if saved is None:
        return None
    results: dict[str, Any] = saved["results"]
    if "--recipe one-step" in saved["command"]:
        results["methods"]["one-step"] = results["methods"].pop("smt")
    return results


def scores(name: str, method: str, length: int | None = None) -> list[float]:
    """Return a method's test scores at a length, one per seed; none if the comparison has not been run."""
    results = kept(name)
    if results is None:
        return []
    runs = [run for run in results["methods"][method]["runs"] if "test" in run]
    return [(run["test"] if length is None else run["lengths"][str(length)])[results["metric"]] for run in runs]


def judge(ours: Sequence[float], theirs: Sequence[float], higher_is_better: bool) -> str:
    """Return "level" if the means differ by at most two standard errors of their difference, else "ahead" or "behind".

    With one seed there is no standard error, and the verdict says so.
    """
    ahead = (statistics.mean(ours) - statistics.mean(theirs)) * (1 if higher_is_better else -1)
    if min(len(ours), len(theirs)) < 2:
        return ("ahead" if ahead > 0 else "behind") + " (too few seeds for a claim)"
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (ours, theirs)))
    return "level" if abs(ahead) <= 2 * error else "ahead" if ahead > 0 else "behind"


def measure(row: Row) -> tuple[list[str], str | None]:
    """Return a row of a claim's table, and its verdict, which is None if it has not been run."""
    ours, theirs = (
        scores(name, method, row.length) for name, method in ((row.name, "one-step"), (row.other, row.method))
    )
    if not ours or not theirs:
        return [row.what, "not run yet", "", "", ""], None
    results = kept(row.name) or {}
    verdict = judge(ours, theirs, results["metric"] == "accuracy")
    difference = statistics.mean(ours) - statistics.mean(theirs)
    return [row.what, mean_and_deviation(ours), mean_and_deviation(theirs), f"{difference:+.3f}", verdict], verdict


def sum_up(verdicts: Sequence[str | None]) -> tuple[str, str]:
    """Return the verdict on a claim with these rows, and the evidence. With rows not run it holds at most in part."""
    run = [verdict for verdict in verdicts if verdict is not None]
    known = [verdict for verdict in run if "(" not in verdict]
    counts = [(known.count(word), word) for word in ("ahead", "level", "behind")]
    counts.append((len(run) - len(known), "with one seed"))
    note = f"{len(run)} of {len(verdicts)} rows run" + "".join(f", {n} {word}" for n, word in counts if n)
    if not known:
        return "not tested yet", note
    whole = len(known) == len(verdicts) and set(known) == {"ahead"}
    return "holds" if whole else "holds in part" if "ahead" in known else "does not hold here", note


def drift() -> tuple[str, str, str]:
    """Return a table of the relative drift, the verdict on whether it falls in DMT and settles, and the evidence."""
    rows, settled, missing = [], [], 0
    for name in ("text-transformer", "text-gated", *(f"{task}-transformer" for task in TASKS)):
        results = kept(name)
        if results is None:
            missing += 1
            continue
        curves = [[p["relative_drift"] for p in r["curve"]] for r in results["methods"]["one-step"]["runs"]]
        # Validations after a quarter of the run (SMT is nearly over), half, nine tenths, and at the end.
        at = [[curve[round(part * (len(curve) - 1))] for curve in curves] for part in (0.25, 0.5, 0.9, 1)]
        before, end = (statistics.mean(values) for values in at[2:])
        settled.append(end < statistics.mean(at[0]) and abs(end - before) <= 0.1 * before)
        rows.append([name, *(mean_and_deviation(values, ".2f") for values in at), "yes" if settled[-1] else "no"])
    if not rows:
        return "", "not tested yet", ""
    head = ["comparison, one-step", "a quarter of the run", "half", "nine tenths", "the end", "settled"]
    whole = all(settled) and not missing
    verdict = "holds" if whole else "holds in part" if any(settled) else "does not hold here"
    return table(head, rows), verdict, f"{sum(settled)} of {len(settled)} comparisons settle; {missing} not run"


def lengths() -> tuple[str, str, str]:
    """Return a table of scores at and beyond the training length, the verdict at the longest, and the evidence."""
    rows: list[list[str]] = []
    beyond: list[str | None] = []
    for name in LENGTHS:
        if "one-step" not in line_of(name):
            continue
        results = kept(name)
        if results is None:
            beyond.append(None)
            continue
        accuracy, runs = results["metric"] == "accuracy", results["methods"]["one-step"]["runs"]
        own, theirs = (
            [[run["lengths"][str(n)][f"{whose}{results['metric']}"] for run in runs] for n in results["lengths"]]
            for whose in ("", "teacher_")
        )
        verdict = judge(own[-1], theirs[-1], accuracy)
        beyond.append(verdict)
        pairs = [f"{mean_and_deviation(a)} ({mean_and_deviation(b)})" for a, b in zip(own, theirs, strict=True)]
        rows.append(
            [f"{name}, T = {results['lengths'][0]:,} ({'accuracy' if accuracy else 'bits/token'})", *pairs, verdict]
        )
    if not rows:
        return "", "not tested yet", ""
    head = ["comparison, one-step (its teacher)", "T", "2 T", "4 T", "at 4 T"]
    return (table(head, rows), *sum_up(beyond))


def gradient_flows() -> list[dict[str, Any]] | None:
    """Return the gradients at each m_t for the one-step RNNs of text-transformer, None if they are unknown."""
    from retain.data import load_data
    from retain.report.analyses import measure_gradient_flow
    from retain.runs.run import load_run

    of = find_comparison("text-transformer", line_of("text-transformer"), KEPT)
    flows = Kept("gradients", of.command, of.settings, KEPT)
    folders = sorted((RUNS / of.name / "runs").glob("one-step-*-seed?"))
    if len(folders) == 3:
        runs = [load_run(folder, teacher=True) for folder in folders]
        flows.make(lambda: [measure_gradient_flow(run, load_data(run.config.data)) for run in runs])
    saved = flows.read() if flows.is_current() else None
    return None if saved is None else saved["results"]


def gradients() -> tuple[str, str, str]:
    """Return a table of the gradient's norm by t, the verdict on whether it is flat for SMT alone, and the evidence."""
    flows = gradient_flows()
    if flows is None:
        return "", "not tested yet", ""
    rows, ratios = [], {}
    for when in ("initial", "trained"):
        for loss, what in (("smt", "SMT"), ("bptt_last", "BPTT, the last target alone")):
            # From m_1 to m_{T-1}: m_0 is the same for all sequences, and m_T has no step of f after it.
            ratios[when, loss] = [flow[when][loss][1] / flow[when][loss][-2] for flow in flows]
            shown = f"{statistics.geometric_mean(ratios[when, loss]):.2g}"
            rows.append([f"{what}, {when}", shown, ", ".join(f"{ratio:.2g}" for ratio in ratios[when, loss])])
    flat = all(0.2 < ratio < 5 for when in ("initial", "trained") for ratio in ratios[when, "smt"])
    fades = all(not 0.2 < ratio < 5 for ratio in ratios["trained", "bptt_last"])
    verdict = "holds" if flat and fades else "holds in part" if flat else "does not hold here"
    note = (
        f"{len(flows)} seeds"
        if flat == fades
        else f"{len(flows)} seeds; "
        + ("flat for SMT, and BPTT's does not vanish" if flat else "BPTT's vanishes, but SMT's is not flat")
    )
    text = "Both losses on the RNNs that one-step supervision trained, at their start and at their end.\n\n"
    return text + table(["gradient's norm at m_1, over that at m_{T-1}", "mean", "seeds"], rows), verdict, note


def credit() -> dict[int, list[dict[str, Any]]]:
    """Return the curves of retrieval with one token of future (lab/studies.py), by length."""
    results = json.loads(CREDIT.read_text(encoding="utf-8"))["results"]
    return {length: results[f"joint-{length}"]["curve"] for length in CREDIT_LENGTHS}


STUDIES = {"drift": drift, "lengths": lengths, "gradients": gradients}
PLOTS = {
    "drift": lambda: claim_plots.plot_drift(kept),
    "lengths": lambda: claim_plots.plot_lengths(kept),
    "gradients": lambda: claim_plots.plot_gradients(gradient_flows()),
    "credit": lambda: claim_plots.plot_credit(credit()),
    "chains": claim_plots.plot_chains,
}


def draw(claim: Claim) -> None:
    """Draw a claim's picture, if there are results for it."""
    figure = PLOTS[claim.study]() if claim.study else claim_plots.plot_rows(claim.rows, kept, claim.axis)
    if figure is not None:
        claim_plots.save(figure, claim, KEPT)


def draw_completions(picture: str, names: tuple[str, str], count: int = 8) -> None:
    """Draw MNIST images of the test split that the RNNs of seed 0 complete, if these RNNs are there.

    The rows are what an RNN is given, its completion with one-step supervision and with BPTT, and the truth.
    """
    import torch

    from retain.config import ImageDataConfig
    from retain.inference.complete import complete, save_image_grid, true_images
    from retain.runs.run import load_run

    methods = ("one-step", "bptt")
    folders = [RUNS / name / "runs" / f"{method}-lr1-seed0" for name, method in zip(names, methods, strict=True)]
    if not all((folder / "summary.json").exists() for folder in folders):
        return
    runs = [load_run(folder) for folder in folders]
    config = runs[0].config
    assert isinstance(config.data, ImageDataConfig)
    truth, side = true_images(config, count, []), config.data.image_size
    made = [complete(run.rnn, truth, (side, side), run.config, seed=0) for run in runs]
    rows = torch.cat([made[0][0], *(completed for _, completed in made), truth])
    large = rows.unflatten(1, (side, side)).repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2).flatten(1)
    save_image_grid(large, (ZOOM * side,) * 2, config.data.levels, KEPT / picture, columns=count)


def write_all() -> None:
    """Write the page, and draw its pictures."""
    write(page(), PAGE, MARKS)
    for claim in claims():
        draw(claim)
    for picture, names in COMPLETED.items():
        draw_completions(picture, names)


def section(claim: Claim) -> tuple[str, str, str]:
    """Return the body of a claim's section, the verdict, and the evidence."""
    body, verdict, note = "", claim.verdict, claim.note
    if claim.study in STUDIES:
        body, verdict, note = STUDIES[claim.study]()
    commands = ""
    if claim.rows:
        found = [measure(row) for row in claim.rows]
        verdict, note = sum_up([verdict for _, verdict in found])
        others = {row.method for row in claim.rows}
        other = others.pop() if len(others) == 1 else "the other"
        body = table(["what", "one-step", other, "difference", "one-step is"], [row for row, _ in found])
        names = dict.fromkeys(name for row in claim.rows for name in (row.name, row.other))
        lines = "\n".join(f"retain compare {line_of(name)}" for name in names)
        commands = f"\n<details markdown>\n<summary>The commands</summary>\n\n```text\n{lines}\n```\n\n</details>\n"
    shown = claim.picture
    if not shown and ((claim.rows and any(verdict for _, verdict in found)) or (claim.study and verdict[:3] != "not")):
        words = "Mean and range of the seeds. Diamonds: test scores."
        see = claim.see or words
        shown = (f"results/claims/claim-{claim_plots.anchor(claim)}.png", see)
    picture = f"![{shown[1]}]({shown[0]})\n\n*{shown[1]}*\n" if shown else ""
    parts = [part for part in (picture, body, claim.tested and f"{claim.tested}\n") if part]
    return "\n".join(parts) + commands, verdict, note


def page() -> str:
    """Return the page: a table of verdicts, then the picture, scores and commands of each claim."""
    head, sections = [], ""
    for claim in claims():
        body, verdict, note = section(claim)
        head.append([f"[{claim.title}](#{claim_plots.anchor(claim)})", claim.text, f"**{verdict}**", note])
        said = f"**{verdict[0].upper()}{verdict[1:]}**{f' ({note})' if note else ''}."
        sections += f"\n## {claim.title}\n\n{claim.text} {said}\n\n{body}"
    words = table(["claim", "what it says", "verdict", "what it rests on"], head).replace("---:", "---")
    return words + sections


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons named on the command line, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims", description=__doc__)
    parser.add_argument("names", nargs="*", help="comparisons to run, e.g. text-gated (default: all)")
    parser.add_argument("--jobs", default="2", help="runs that train at once")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(comparisons())
    if unknown:
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join(comparisons())}")
    names = [] if args.tables else args.names or [*comparisons()]
    make_each(
        names,
        lambda name: run_comparison(name, line_of(name), KEPT, jobs=args.jobs, picture=False),
        write_all,
        RUNS,
    )
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
