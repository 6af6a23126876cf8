"""Descriptions of all plots. `figures` draws them with Plotly for the page, and `plot` with Matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from retain.plots import FAINT, METHODS, PALETTE, pick_colours
from retain.report.history import AXES

Numbers = list[Any]
"""Floats; a missing one is None."""
Run = dict[str, Any]
"""A run as `gather` returns it."""
OTHER = FAINT
WORD_COLOURS = (*PALETTE[:7], "#17becf", "#8c564b", "#84cc16")


@dataclass(frozen=True)
class Line:
    """One curve, with `x` for each axis."""

    name: str
    x: dict[str, Numbers]
    y: Numbers
    colour: str
    dash: str = "solid"
    """solid, dash or dot."""


@dataclass(frozen=True)
class Chart:
    """A plot of lines, with a label for each axis and vertical marks by axis as (position, label)."""

    key: str
    title: str
    axes: dict[str, str]
    y: str
    lines: list[Line]
    log: bool = False
    marks: dict[str, list[tuple[float, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Colouring:
    """Colours of points: a number for each point and, if the numbers stand for words, a colour for each word."""

    values: list[int]
    words: Sequence[tuple[str, str]] = ()
    """(word, colour) of the numbers 0, 1, …; empty if the numbers are a scale."""


LABELS = {
    "loss": "total loss",
    "loss_dec": "loss_dec, decoder (Eq. 2)",
    "loss_dyn": "loss_dyn, dynamics (Eq. 3)",
    "loss_unif": "loss_unif, uniformity (Eq. 4)",
    "loss_readout": "loss_readout",
    "loss_trunk": "loss_trunk",
    "loss_distill": "loss_distill",
    "gradient_norm": "gradient norm",
    "gradient_norm_rnn": "gradient norm, RNN",
    "gradient_norm_teacher": "gradient norm, teacher",
    "relative_drift": "relative drift in DMT",
    "validation_bits_per_token": "validation bits per token",
    "validation_accuracy": "validation accuracy",
    "validation_relative_drift": "validation relative drift",
}
LOG = ("loss_dyn", "gradient_norm", "gradient_norm_rnn", "gradient_norm_teacher")
BITS = (("RNN", "bits_by_position", "solid"), ("teacher", "teacher_bits_by_position", "dot"))
DRIFT = (("RNN", "relative_drift_by_position", "solid"),)
CALIBRATION = (("one step ahead", "one_step", "solid"), ("over the horizon", "ahead", "dash"))
ACCURACY = (("RNN", "accuracy", "solid"), ("teacher", "teacher_accuracy", "dot"))
POSITION = {"position": "position t"}
GRADIENTS = (("SMT", "smt", "solid"), ("BPTT", "bptt", "dash"), ("BPTT, last target only", "bptt_last", "dot"))
OF_LOSS = {"smt": METHODS["one-step"], "bptt": METHODS["bptt"], "bptt_last": METHODS["bptt"]}
"""Colours of gradients if there is a single run. The gradient of SMT is through one step of f."""


def name_method(run: Run) -> str:
    """Return the method of `retain compare` that a run is closest to, which decides the run's colour."""
    config = run["config"]
    if config["phases"] == ["bptt"]:
        kind = config["cell"]["kind"]
        return kind if kind in METHODS else "bptt" if config["bptt"]["bptt_window"] is None else "tbptt"
    if "bptt" in config["phases"]:
        return "smt+bptt"
    return "one-step" if run["longest_gradient_path"] == 1 else "hybrid"


def colour_runs(runs: list[Run]) -> list[str]:
    """Return each run's colour: that of its method, as in every picture of the project."""
    return pick_colours([name_method(run) for run in runs])


def group_charts(runs: list[Run]) -> dict[str, list[Chart]]:
    """Return every line plot of the page, by section."""
    compare = partial(_compare, runs)
    final, longer = (partial(_read_positions, part=part) for part in ("final", "longer"))
    bits, beyond = "bits per token", "beyond the training length"
    moments = {"initial": "Gradient flow at initialisation", "trained": "Gradient flow after training"}
    groups = {
        "history": chart_history(runs),
        "drift": [
            chart_drift(runs, relative=True),
            chart_drift(runs, relative=False),
            compare("drift-beyond", f"Relative drift {beyond}", "relative drift", longer, DRIFT, marked=True),
        ],
        "quality": [
            compare("quality", "Quality by position, from a cold start", bits, final, BITS),
            compare("quality-beyond", f"Quality {beyond}", bits, longer, BITS, marked=True),
            compare("calibration", "Calibration of bands: 1:1 is right", "share of values inside", _read_calibration,
                    CALIBRATION, axes={"band": "central band of the forecast"}),
            compare("length", "Accuracy by length of the sequence", "accuracy", _read_lengths, ACCURACY,
                    axes={"length": "tokens read before the answer"}, marked=True),
        ],
        "gradient": [
            compare(f"gradient-{when}", title, "‖∂loss / ∂m_t‖", partial(_read_gradients, when=when), GRADIENTS,
                    log=True, colour_kinds=len(runs) == 1)
            for when, title in moments.items()
        ],
    }  # fmt: skip
    return {name: [chart for chart in charts if chart.lines] for name, charts in groups.items()}


def chart_by_name(runs: list[Run]) -> dict[str, Chart]:
    """Return all line plots by name."""
    return {chart.key: chart for charts in group_charts(runs).values() for chart in charts}


def chart_history(runs: list[Run]) -> list[Chart]:
    """Describe validation quality and then every loss, against each axis that all runs have logged."""
    present = {name for run in runs for name in run["history"]["curves"]}
    known = sorted(LABELS, key=lambda name: not name.startswith("validation_"))
    names = [name for name in known if name in present]
    names += sorted(n for n in present if n not in LABELS and not n.startswith("validation_teacher_"))
    curves = [curve for run in runs for curve in run["history"]["curves"].values()]
    axes = {axis: words for axis, words in AXES.items() if curves and all(axis in c for c in curves)}
    several = len(runs) > 1
    marks = {axis: _phase_marks(runs, axis) for axis in axes}
    charts, colours = [], colour_runs(runs)
    for name in names:
        label, validation = LABELS.get(name, name), name.startswith("validation_")
        kinds = [(name, "RNN" if validation else label, "solid")]
        if validation:
            kinds.append((name.replace("validation_", "validation_teacher_"), "teacher", "dot"))
        lines = []
        for i, run in enumerate(runs):
            for key, who, dash in kinds:
                if (curve := run["history"]["curves"].get(key)) is None:
                    continue
                words = (f"{run['name']}, {who}" if validation else run["name"]) if several else who
                lines.append(Line(words, {a: curve[a] for a in axes}, curve["value"], colours[i], dash))
        charts.append(Chart(name, label, axes, label, lines, name in LOG, marks))
    return charts


def _phase_marks(runs: list[Run], axis: str) -> list[tuple[float, str]]:
    """Return where each phase begins, with its label. Phases that begin at the same place share a label."""
    several = len(runs) > 1
    words: dict[float, list[str]] = {}
    for run in runs:
        # If runs are compared, the start of the first phase tells nothing.
        for phase in run["history"]["phases"][1 if several else 0 :]:
            if phase.get(axis) is not None:
                word = f"{run['name']}: {phase['phase']}" if several else phase["phase"]
                words.setdefault(phase[axis], []).append(word)
    return [(place, "<br>".join(some)) for place, some in words.items()]


def chart_drift(runs: list[Run], relative: bool) -> Chart:
    """Describe drift by position after each phase."""
    key = "relative_drift_by_position" if relative else "drift_by_position"
    several, colours = len(runs) > 1, colour_runs(runs)
    lines = []
    for i, run in enumerate(runs):
        if (positions := run["positions"]) is None:
            continue
        prefix = f"{run['name']}, "
        models = [(f"{prefix if several else ''}after {phase['phase']}", phase[key]) for phase in positions["phases"]]
        models = models or [(f"{prefix}best so far", positions["final"][key])]
        for j, (words, values) in enumerate(models):
            if values is not None:
                # RNN and teacher share m_0. The rounding error there would stretch a log scale by ten decades.
                y = [None, *values[1:]]
                last = j == len(models) - 1
                dash = "solid" if last else ("dash", "dot")[j % 2]
                colour = colours[i] if several or last else OTHER
                lines.append(Line(words, {"position": list(range(len(y)))}, y, colour, dash))
    if relative:
        y_words = "relative drift (1: as far off as an empty memory)"
        return Chart("drift", "Relative drift by position", POSITION, y_words, lines)
    return Chart("absolute-drift", "Drift by position (mean squared)", POSITION, "drift", lines, log=True)


def _read_positions(run: Run, part: str) -> dict[str, Numbers]:
    """Return the curves by position among the scores of a part. A single point is not a curve."""
    scores = (run["positions"] or {}).get(part) or {}
    curves = {key: values for key, values in scores.items() if isinstance(values, list)}
    return {key: values for key, values in curves.items() if sum(v is not None for v in values) > 1}


def _read_calibration(run: Run) -> dict[str, Numbers]:
    """Return the share of values inside each central band."""
    scores = run["forecast"] or {}
    found = {name: part["calibration"] for name, part in scores.items() if part["calibration"]}
    curves = {name: [share for _, share in pairs] for name, pairs in found.items()}
    return curves | {"band": [band for pairs in list(found.values())[:1] for band, _ in pairs]} if curves else {}


def _read_lengths(run: Run) -> dict[str, Numbers]:
    rows = (run["positions"] or {}).get("lengths") or []
    keys = ("length", "accuracy", "teacher_accuracy")
    return {key: [row[key] for row in rows] for key in keys if rows and rows[0][key] is not None}


def _read_gradients(run: Run, when: str) -> dict[str, Numbers]:
    flow = (run["gradient"] or {}).get(when) or {}
    # A log scale has no 0.
    return {key: [v or None for v in values] for key, values in flow.items() if values is not None}


def _compare(
    runs: list[Run],
    key: str,
    title: str,
    y_words: str,
    read: Callable[[Run], dict[str, Numbers]],
    kinds: Sequence[tuple[str, str, str]],
    *,
    axes: dict[str, str] = POSITION,
    marked: bool = False,
    log: bool = False,
    colour_kinds: bool = False,
) -> Chart:
    """Describe the curves that `read` returns for each run. With `marked`, mark the training length of their runs.

    `kinds` are the curves: (label, name, dash). x is the curve named like the axis, or 0, 1, … without one.
    """
    lines: list[Line] = []
    marks = set()
    colours = colour_runs(runs)
    (axis,) = axes
    for i, run in enumerate(runs):
        curves = read(run)
        for who, name, dash in kinds:
            if name in curves:
                y = curves[name]
                x = {axis: curves.get(axis) or list(range(len(y)))}
                words = f"{run['name']}, {who}" if len(runs) > 1 else who
                lines.append(Line(words, x, y, OF_LOSS[name] if colour_kinds else colours[i], dash))
                marks.add((run["config"]["data"]["seq_len"], "T"))
    return Chart(key, title, axes, y_words, lines, log, {axis: sorted(marks)} if marked else {})


def find_colourings(geometry: dict[str, Any]) -> dict[str, Colouring]:
    """Return the colourings of the memories: by the task's hidden state if it is known, position, and last token."""
    points = geometry["points"]
    found = {"position": Colouring(points["position"]), "last token": _colour_words(points["last_token"])}
    return found if points["hidden"] is None else {points["hidden_name"]: _colour_words(points["hidden"])} | found


def _colour_words(words: list[str]) -> Colouring:
    """Give one colour to each of the most frequent words, and grey to the others."""
    counts = Counter(words)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    has_other = len(frequent) > len(WORD_COLOURS)
    kept = frequent[: len(WORD_COLOURS) - has_other]
    kept.sort(key=lambda word: (0, int(word), word) if word.isdecimal() else (1, 0, word))
    numbers = {word: i for i, word in enumerate(kept)}
    colours = [*zip(kept, WORD_COLOURS, strict=False), *([("other", OTHER)] if has_other else [])]
    return Colouring([numbers.get(word, len(kept)) for word in words], colours)
