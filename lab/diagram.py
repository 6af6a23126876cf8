"""Draws docs/diagram.svg: where the gradient goes in BPTT, in SMT and in DMT. `python -m lab.diagram`."""

from __future__ import annotations

from pathlib import Path

from retain.plots import METHODS

PATH = Path("docs/diagram.svg")
BLUE, ORANGE, GREEN = METHODS["one-step"], METHODS["bptt"], METHODS["gru"]
INK, FAINT = "#26323d", "#7a8590"
PANEL, HEIGHT = 330, 345
STEPS, FIRST, GAP, RADIUS = 4, 50, 76, 19
"""Memories of a panel: how many, where the first is, how far apart, and how large."""
ROW = 190
"""Height of the row of memories."""


def text(x: float, y: float, words: str, size: int = 14, colour: str = INK, weight: int = 400) -> str:
    """Return words that are centred on x."""
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def arrow(path: str, colour: str, dashed: bool = False) -> str:
    """Return a path with a head at its end."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    head = {INK: "ink", BLUE: "blue", ORANGE: "orange", GREEN: "green"}[colour]
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash} marker-end="url(#{head})"/>'


def memories(name: str, colour: str, row: float = ROW) -> list[str]:
    """Return a row of memories, the first of them m_0."""
    drawn = []
    for t in range(STEPS):
        x = FIRST + GAP * t
        drawn.append(f'<circle cx="{x}" cy="{row}" r="{RADIUS}" fill="#fff" stroke="{colour}" stroke-width="2"/>')
        drawn.append(text(x, row + 5, f'{name}<tspan font-size="10" dy="4">{t}</tspan>'))
    return drawn


def steps(row: float = ROW) -> list[str]:
    """Return the applications of f between memories, and the tokens that they read."""
    drawn = []
    for t in range(STEPS - 1):
        left, right = FIRST + GAP * t + RADIUS + 2, FIRST + GAP * (t + 1) - RADIUS - 8
        middle = (left + right) / 2 + 2
        drawn.append(arrow(f"M{left} {row}H{right}", INK))
        drawn.append(text(middle, row - 7, "f", 13))
        drawn.append(arrow(f"M{middle} {row + 42}V{row + 10}", INK))
        drawn.append(text(middle, row + 58, f'x<tspan font-size="10" dy="4">{t}</tspan>', 13, FAINT))
    return drawn


def teacher(row: float) -> list[str]:
    """Return the teacher above a row, with an arrow to each memory that it gives."""
    end = FIRST + GAP * (STEPS - 1)
    drawn = [
        f'<rect x="{FIRST - 30}" y="70" width="{end - FIRST + 60}" height="28" rx="6" fill="{BLUE}" fill-opacity="0.14"'
        f' stroke="{BLUE}"/>',
        text((FIRST + end) / 2, 89, "teacher: a Transformer reads all tokens", 13),
    ]
    return drawn + [arrow(f"M{FIRST + GAP * t} 98V{row - RADIUS - 8}", BLUE) for t in range(STEPS)]


def bptt() -> list[str]:
    """Return the panel of backpropagation through time."""
    last = FIRST + GAP * (STEPS - 1)
    hops = []
    for t in range(STEPS - 1, 0, -1):
        right, left = FIRST + GAP * t - 8, FIRST + GAP * (t - 1) + 8
        hops.append(
            arrow(f"M{right} {ROW - 22}C{right - 10} {ROW - 62} {left + 10} {ROW - 62} {left} {ROW - 26}", ORANGE)
        )
    loss = [text(last, 100, "loss", 14, ORANGE, 600), arrow(f"M{last} 108V{ROW - RADIUS - 8}", ORANGE)]
    return [*memories("m", INK), *steps(), *hops, *loss]


def smt() -> list[str]:
    """Return the panel of SMT: each step has a target of its own."""
    hops = []
    for t in range(STEPS - 1):
        right, left = FIRST + GAP * (t + 1) - 15, FIRST + GAP * t + 17
        hops.append(
            arrow(f"M{right} {ROW - 15}C{right - 8} {ROW - 44} {left + 8} {ROW - 44} {left} {ROW - 17}", ORANGE)
        )
    return [*teacher(ROW), *steps(), *hops, *memories("m", BLUE)]


def dmt() -> list[str]:
    """Return the panel of DMT: the RNN on memories of its own, each drawn to the teacher's."""
    high, low = ROW - 45, ROW + 35
    drop = f"{high + RADIUS + 2}V{low - RADIUS - 8}"
    pulls = [arrow(f"M{FIRST + GAP * t} {drop}", ORANGE, dashed=True) for t in range(1, STEPS)]
    return [*teacher(high), *pulls, *steps(low), *memories("m", BLUE, high), *memories("m̂", GREEN, low)]


def draw() -> str:
    """Return the whole picture as SVG."""
    panels = (
        ("BPTT", bptt, "The gradient goes back through every step.", "The steps wait for each other."),
        ("1. SMT", smt, "Each step has a target of its own.", "All steps are trained at once."),
        ("2. DMT", dmt, "The RNN runs on its own memories", "and learns to come back to the teacher's."),
    )
    parts = []
    for number, (title, panel, first, second) in enumerate(panels):
        middle = FIRST + GAP * (STEPS - 1) / 2
        words = [
            text(middle, 40, title, 18, INK, 600),
            text(middle, HEIGHT - 34, first),
            text(middle, HEIGHT - 14, second),
        ]
        parts.append(f'<g transform="translate({number * PANEL} 0)">{"".join([*words, *panel()])}</g>')
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="4" markerHeight="4" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("ink", INK), ("blue", BLUE), ("orange", ORANGE), ("green", GREEN))
    )
    width, legend = PANEL * len(panels), "orange: the way of the gradient; dashed: each memory and its target"
    rules = "".join(f'<path d="M{PANEL * n} 24V{HEIGHT - 24}" stroke="#d5dbe0"/>' for n in (1, 2))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 20}" width="{width}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        'aria-label="BPTT sends the gradient back through every step. SMT trains each step alone on the memories of a '
        'teacher. DMT trains the RNN on its own memories.">'
        f'<defs>{heads}</defs><rect width="{width}" height="{HEIGHT + 20}" rx="10" fill="#fff" stroke="#d5dbe0"/>'
        f"{rules}{''.join(parts)}"
        f"{text(width / 2, HEIGHT + 9, legend, 13, FAINT)}"
        "</svg>\n"
    )


if __name__ == "__main__":
    PATH.write_text(draw(), encoding="utf-8")
