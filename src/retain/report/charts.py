"""What a plot shows, told once: `figures` draws it with Plotly for the page, `plot` with Matplotlib."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retain.plots import PALETTE
from retain.report.history import AXES

OTHER = "#9aa3ad"
Numbers = list[Any]
"""Floats, None where there is none."""


@dataclass(frozen=True)
class Line:
    """One curve: `x` by axis, `colour` an index into the palette."""

    name: str
    x: dict[str, Numbers]
    y: Numbers
    colour: int
    dash: str = "solid"
    """solid, dash or dot."""


@dataclass(frozen=True)
class Chart:
    """A plot: its axes' words by axis, and vertical marks by axis as (place, word)."""

    key: str
    title: str
    axes: dict[str, str]
    y: str
    lines: list[Line]
    log: bool = False
    marks: dict[str, list[tuple[float, str]]] = field(default_factory=dict)


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


def history_charts(runs: list[dict[str, Any]]) -> list[Chart]:
    """Validation quality first, then every loss, against each axis that all runs have logged."""
    present = {name for run in runs for name in run["history"]["curves"]}
    wanted = [n for n in LABELS if n.startswith("validation_") and n in present]
    wanted += [n for n in LABELS if not n.startswith("validation_") and n in present]
    wanted += sorted(n for n in present if n not in LABELS and not n.startswith("validation_teacher_"))
    curves = [c for run in runs for c in run["history"]["curves"].values()]
    axes = {axis: words for axis, words in AXES.items() if curves and all(axis in c for c in curves)}
    several = len(runs) > 1
    marks: dict[str, list[tuple[float, str]]] = {axis: [] for axis in axes}
    for run in runs:
        # Beside others, where the first phase begins says nothing.
        for phase in run["history"]["phases"][1 if several else 0 :]:
            for axis in axes:
                if phase.get(axis) is not None:
                    marks[axis].append((phase[axis], f"{run['name']}: {phase['phase']}" if several else phase["phase"]))
    marks = {axis: _joined(places) for axis, places in marks.items()}
    charts = []
    for name in wanted:
        lines = []
        for i, run in enumerate(runs):
            for key, who, dash in (
                (name, "RNN" if name.startswith("validation_") else LABELS.get(name, name), "solid"),
                (name.replace("validation_", "validation_teacher_"), "teacher", "dot"),
            ):
                curve = run["history"]["curves"].get(key)
                if curve is None or (dash == "dot" and key == name):
                    continue
                words = f"{run['name']}, {who}" if several and name.startswith("validation_") else who
                words = run["name"] if several and not name.startswith("validation_") else words
                lines.append(Line(words, {a: curve[a] for a in axes}, curve["value"], i, dash))
        label = LABELS.get(name, name)
        charts.append(Chart(name, label, axes, label, lines, name in LOG, marks))
    return charts


def _joined(marks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Marks at one place as one, its words below each other."""
    words: dict[float, list[str]] = {}
    for place, word in marks:
        words.setdefault(place, []).append(word)
    return [(place, "<br>".join(some)) for place, some in words.items()]


def drift_chart(runs: list[dict[str, Any]], relative: bool = True) -> Chart | None:
    """Drift by position as each phase left the RNN."""
    key = "relative_drift_by_position" if relative else "drift_by_position"
    lines = []
    for i, run in enumerate(runs):
        for j, phase in enumerate((run["positions"] or {}).get("phases", [])):
            if phase[key] is not None:
                words = f"after {phase['phase']}" if len(runs) == 1 else f"{run['name']}, after {phase['phase']}"
                last = j == len(run["positions"]["phases"]) - 1
                colour = j if len(runs) == 1 else i
                lines.append(_by_position(words, _from_one(phase[key]), colour, "solid" if last else "dash"))
        positions = run["positions"]
        if positions and not positions["phases"] and positions["final"][key] is not None:
            lines.append(_by_position(f"{run['name']}, best so far", _from_one(positions["final"][key]), i))
    y = "relative drift (1: as far off as an empty memory)" if relative else "drift"
    name = "drift" if relative else "absolute-drift"
    title = "Relative drift by position" if relative else "Drift by position (mean squared)"
    return Chart(name, title, {"position": "position t"}, y, lines, not relative) if lines else None


def beyond_chart(runs: list[dict[str, Any]], drift: bool) -> Chart | None:
    """Quality or relative drift by position on sequences longer than those of training."""
    lines, marks = [], set()
    for i, run in enumerate(runs):
        longer = (run["positions"] or {}).get("longer")
        if longer is None:
            continue
        prefix = f"{run['name']}, " if len(runs) > 1 else ""
        if drift:
            pairs = [("RNN", "relative_drift_by_position", "solid")]
        else:
            pairs = [("RNN", "bits_by_position", "solid"), ("teacher", "teacher_bits_by_position", "dot")]
        for who, key, dash in pairs:
            if longer[key] is not None and sum(v is not None for v in longer[key]) > 1:
                lines.append(_by_position(prefix + who, longer[key], i, dash))
                marks.add((run["config"]["data"]["seq_len"], "T"))
    name, title = ("drift-beyond", "Relative drift beyond the training length") if drift else (
        "quality-beyond", "Quality beyond the training length"
    )  # fmt: skip
    y = "relative drift" if drift else "bits per token"
    axes = {"position": "position t"}
    return Chart(name, title, axes, y, lines, False, {"position": sorted(marks)}) if lines else None


def quality_chart(runs: list[dict[str, Any]]) -> Chart | None:
    """Bits by position from a cold start."""
    lines = []
    for i, run in enumerate(runs):
        final = (run["positions"] or {}).get("final")
        prefix = f"{run['name']}, " if len(runs) > 1 else ""
        for who, key, dash in (("RNN", "bits_by_position", "solid"), ("teacher", "teacher_bits_by_position", "dot")):
            if final and final[key] is not None and sum(v is not None for v in final[key]) > 1:
                lines.append(_by_position(prefix + who, final[key], i, dash))
    title = "Quality by position, from a cold start"
    return Chart("quality", title, {"position": "position t"}, "bits per token", lines) if lines else None


def length_chart(runs: list[dict[str, Any]]) -> Chart | None:
    """Accuracy by length of the sequence, for tasks whose answer comes at the end."""
    lines, marks = [], set()
    for i, run in enumerate(runs):
        rows = (run["positions"] or {}).get("lengths")
        prefix = f"{run['name']}, " if len(runs) > 1 else ""
        for who, key, dash in (("RNN", "accuracy", "solid"), ("teacher", "teacher_accuracy", "dot")):
            if rows and rows[0][key] is not None:
                lengths = [row["length"] for row in rows]
                lines.append(Line(prefix + who, {"length": lengths}, [row[key] for row in rows], i, dash))
                marks.add((run["config"]["data"]["seq_len"], "T"))
    title = "Accuracy by length of the sequence"
    axes = {"length": "tokens read before the answer"}
    return Chart("length", title, axes, "accuracy", lines, False, {"length": sorted(marks)}) if lines else None


def gradient_chart(runs: list[dict[str, Any]], when: str) -> Chart | None:
    """Norm of the loss's gradient at m_t, on a log scale; `when` is "initial" or "trained"."""
    several = len(runs) > 1
    lines = []
    for i, run in enumerate(runs):
        flow = (run["gradient"] or {}).get(when)
        for j, (key, who, dash) in enumerate(
            (("smt", "SMT", "solid"), ("bptt", "BPTT", "dash"), ("bptt_last", "BPTT, last target only", "dot"))
        ):
            if flow and flow[key] is not None:
                # A norm of exactly 0 has no place on a log scale.
                values = [v if v else None for v in flow[key]]
                colour = i if several else j
                lines.append(_by_position(f"{run['name']}, {who}" if several else who, values, colour, dash))
    title = {"initial": "Gradient flow at initialisation", "trained": "Gradient flow after training"}[when]
    return (
        Chart(f"gradient-{when}", title, {"position": "position t"}, "‖∂loss / ∂m_t‖", lines, True) if lines else None
    )


def _by_position(name: str, values: Numbers, colour: int, dash: str = "solid") -> Line:
    return Line(name, {"position": list(range(len(values)))}, values, colour, dash)


def _from_one(values: Numbers) -> Numbers:
    """Without t = 0: RNN and teacher share m_0, and its rounding error would stretch a log scale by ten decades."""
    return [None, *values[1:]]


def grouped_charts(runs: list[dict[str, Any]]) -> dict[str, list[Chart]]:
    """Every line plot of the page, by the part of it where it stands."""
    groups: dict[str, list[Chart | None]] = {
        "history": [*history_charts(runs)],
        "drift": [drift_chart(runs), drift_chart(runs, False), beyond_chart(runs, True)],
        "quality": [quality_chart(runs), beyond_chart(runs, False), length_chart(runs)],
        "gradient": [gradient_chart(runs, when) for when in ("initial", "trained")],
    }
    return {name: [chart for chart in some if chart is not None and chart.lines] for name, some in groups.items()}


def named_charts(runs: list[dict[str, Any]]) -> dict[str, Chart]:
    """The same by their own names."""
    return {chart.key: chart for some in grouped_charts(runs).values() for chart in some}


def colourings(geometry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ways to colour the memories: by position, last token, and the task's hidden state where it is known."""
    points = geometry["points"]
    bar = {"thickness": 10, "len": 0.9, "outlinewidth": 0}
    positions = points["position"]
    found = {
        "position": {
            "color": positions, "colorscale": "Viridis", "cmin": min(positions), "cmax": max(positions),
            "colorbar": bar | {"title": {"text": "t"}, "tickmode": "auto"},
        },
        "last token": _categories(points["last_token"], bar),
    }  # fmt: skip
    if points["hidden"] is not None:
        found = {points["hidden_name"]: _categories(points["hidden"], bar)} | found
    return found


def _categories(words: list[str], bar: dict[str, Any]) -> dict[str, Any]:
    """One colour for each of the most frequent words, grey for the others."""
    colours = (*PALETTE[:7], "#17becf", "#8c564b", "#84cc16")
    counted = sorted(set(words), key=lambda w: (-words.count(w), w))
    kept = counted[: len(colours)] if len(counted) <= len(colours) else counted[: len(colours) - 1]
    kept = sorted(kept, key=lambda w: (0, int(w), w) if w.isdecimal() else (1, 0, w))
    names = kept if len(kept) == len(counted) else [*kept, "other"]
    used = [*colours[: len(kept)], OTHER][: len(names)]
    place = {word: i for i, word in enumerate(kept)}
    count = len(names)
    scale = [[(i + step) / count, used[i]] for i in range(count) for step in (0, 1)]
    ticks = {"tickmode": "array", "tickvals": list(range(count)), "ticktext": [escape(n) for n in names]}
    return {
        "color": [place.get(word, count - 1) for word in words], "colorscale": scale, "cmin": -0.5,
        "cmax": count - 0.5, "colorbar": bar | ticks | {"title": {"text": ""}},
    }  # fmt: skip


def escape(text: str) -> str:
    """Plotly reads a few HTML tags in its texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
