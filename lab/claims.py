"""`make claims`: every claim of the paper, what tests it here, the figures, a verdict; docs/claims.md.

The claims and their `retain compare` lines are in lab/claim_list.py. Numbers are kept as docs/results/claims/NAME.json,
and what stands there is not run again. Everything takes about nine hours on two cores; a name runs one line alone, e.g.
`python -m lab.claims text-gated`. If it is stopped, it goes on where it was. `--tables` only writes the page.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.claim_list import LENGTHS, RUNS, TASKS, WITH_LENGTHS, Row, claims, comparisons, line_of
from lab.results import Kept, find_comparison, make_each, run_comparison, write
from retain.experiments.tables import mean_and_deviation, table

PAGE = Path("docs/claims.md")
KEPT = Path("docs/results/claims")
MARKS = ("<!-- claims begin -->", "<!-- claims end -->")


def kept(name: str) -> dict[str, Any] | None:
    """Read the results of a comparison, None if it has not been run as it is now."""
    if not (KEPT / f"{name}.json").exists():  # its data may not be here either
        return None
    found = find_comparison(name, line_of(name), KEPT)
    saved = found.read() if found.is_current() else None
    return None if saved is None else saved["results"]


def scores(name: str, method: str) -> list[float]:
    """Return the scores of a method's seeds on the test split, none if the comparison has not been run."""
    results = kept(name)
    if results is None:
        return []
    return [run["test"][results["metric"]] for run in results["methods"][method]["runs"] if "test" in run]


def judge(ours: Sequence[float], theirs: Sequence[float], higher_is_better: bool) -> str:
    """Say who is ahead: by more than two standard errors of the difference of means, or neither.

    With one seed there is no error to speak of, and the verdict says so.
    """
    ahead = (statistics.mean(ours) - statistics.mean(theirs)) * (1 if higher_is_better else -1)
    if min(len(ours), len(theirs)) < 2:
        return ("ahead" if ahead > 0 else "behind") + " (too few seeds for a claim)"
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (ours, theirs)))
    return "level" if abs(ahead) <= 2 * error else "ahead" if ahead > 0 else "behind"


def measure(row: Row) -> tuple[list[str], str | None]:
    """Return a row of a claim's table, and its verdict; None if it has not been run."""
    ours, theirs = scores(row.name, "one-step"), scores(row.other, row.method)
    if not ours or not theirs:
        return [row.what, "not run yet", "", "", ""], None
    results = kept(row.name) or {}
    verdict = judge(ours, theirs, results["metric"] == "accuracy")
    difference = statistics.mean(ours) - statistics.mean(theirs)
    return [row.what, mean_and_deviation(ours), mean_and_deviation(theirs), f"{difference:+.3f}", verdict], verdict


def sum_up(verdicts: Sequence[str | None]) -> str:
    """Sum the rows of a claim up."""
    known = [verdict for verdict in verdicts if verdict is not None and "(" not in verdict]
    if not known:
        return "not tested over seeds"
    verdict = "holds" if set(known) == {"ahead"} else "holds in part" if "ahead" in known else "does not hold"
    if len(known) < len(verdicts):
        verdict += f" in the {len(known)} of {len(verdicts)} rows that were run"
    return verdict


def drift() -> tuple[str, str]:
    """Return relative drift along DMT of the runs on text, and whether it settles below where DMT began."""
    rows, settled = [], []
    for name in ("text-transformer", "text-gated", *(f"{task}-transformer" for task in TASKS)):
        results = kept(name)
        if results is None:
            continue
        curves = [[p["relative_drift"] for p in r["curve"]] for r in results["methods"]["one-step"]["runs"]]
        # Validations after a quarter (SMT is nearly over), after half of the run, before the end and at the end.
        at = [[curve[round(part * (len(curve) - 1))] for curve in curves] for part in (0.25, 0.5, 0.9, 1)]
        before, end = (statistics.mean(values) for values in at[2:])
        settled.append(end < statistics.mean(at[0]) and abs(end - before) <= 0.1 * before)
        rows.append([name, *(mean_and_deviation(values, ".2f") for values in at), "yes" if settled[-1] else "no"])
    if not rows:
        return "", "not run yet"
    head = ["comparison, one-step", "a quarter of the run", "half", "nine tenths", "the end", "settled"]
    verdict = "holds" if all(settled) else "holds in part" if any(settled) else "does not hold"
    return table(head, rows), f"{verdict} ({sum(settled)} of {len(settled)} comparisons settle)"


def lengths() -> tuple[str, str]:
    """Return the RNN and its teacher at and beyond the training length, and who is ahead at four times of it."""
    rows: list[list[str]] = []
    beyond: list[str | None] = []
    for name in WITH_LENGTHS:
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
        rows.append([f"{name} ({'accuracy' if accuracy else 'bits/token'})", *pairs, verdict])
    if not rows:
        return "", "not run yet"
    head = ["comparison, one-step (its teacher)", *(f"T = {n}" for n in LENGTHS), f"at {LENGTHS[-1]}"]
    return table(head, rows), sum_up(beyond)


def gradients() -> tuple[str, str]:
    """Return how the gradient's norm at m_t depends on t, for the RNNs of text-transformer that one-step trained."""
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
    if saved is None:
        return "", "not run yet"
    rows, ratios = [], {}
    for when in ("initial", "trained"):
        for loss, what in (("smt", "SMT"), ("bptt_last", "BPTT, the last target alone")):
            # From m_1 to m_{T-1}: m_0 is the same for all sequences, and m_T has no step of f after it.
            ratios[when, loss] = [flow[when][loss][1] / flow[when][loss][-2] for flow in saved["results"]]
            shown = f"{statistics.geometric_mean(ratios[when, loss]):.2g}"
            rows.append([f"{what}, {when}", shown, ", ".join(f"{ratio:.2g}" for ratio in ratios[when, loss])])
    flat = all(0.2 < ratio < 5 for when in ("initial", "trained") for ratio in ratios[when, "smt"])
    fades = all(not 0.2 < ratio < 5 for ratio in ratios["trained", "bptt_last"])
    verdict = "holds" if flat and fades else "holds for SMT" if flat else "does not hold"
    text = "Both losses on the RNNs that one-step supervision trained, at their start and at their end.\n\n"
    return text + table(["gradient's norm at m_1, over that at m_{T-1}", "mean", "seeds"], rows), verdict


STUDIES = {"drift": drift, "lengths": lengths, "gradients": gradients}


def page() -> str:
    """Write all claims: a table of verdicts, then for each what was run, its figures and its plots."""
    head, sections = [], ""
    for claim in claims():
        anchor = claim.title.lower().replace(" ", "-").replace(",", "")
        verdict, body = claim.verdict, claim.tested and f"{claim.tested}\n"
        if claim.study:
            body, verdict = STUDIES[claim.study]()
        if claim.rows:
            found = [measure(row) for row in claim.rows]
            verdict = sum_up([verdict for _, verdict in found])
            head_of_rows = ["what", "one-step", claim.rows[0].method, "difference", "one-step is"]
            body = table(head_of_rows, [row for row, _ in found]) + (body and f"\n{body}")
            for name in dict.fromkeys(name for row in claim.rows for name in (row.name, row.other)):
                if kept(name) is not None:
                    body += f"\n`retain compare {line_of(name)}`\n"
                    if (KEPT / f"{name}.png").exists():
                        body += f"\n![{name}: quality against cost](results/claims/{name}.png)\n"
        head.append([f"[{claim.title}](#{anchor})", claim.text, verdict])
        sections += f"\n## {claim.title}\n\n{claim.text} **{verdict[0].upper()}{verdict[1:]}.**\n\n{body}"
    words = table(["claim", "what it says", "verdict"], head).replace("---:", "---")  # sentences stand to the left
    return words + sections


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons that the command line names, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims", description=__doc__)
    parser.add_argument("names", nargs="*", help="some comparisons, e.g. text-gated; all by default")
    parser.add_argument("--jobs", default="2", help="runs side by side")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(comparisons())
    if unknown:
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join(comparisons())}")
    names = [] if args.tables else args.names or [*comparisons()]
    make_each(
        names,
        lambda name: run_comparison(name, line_of(name), KEPT, jobs=args.jobs),
        lambda: write(page(), PAGE, MARKS),
        RUNS,
    )
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
