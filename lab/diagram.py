"""Draws docs/diagram.svg, the path of the gradient in BPTT, SMT and DMT, and the pictures of docs/method.md.

`python -m lab.diagram`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from retain.plots import METHODS

DOCS = Path("docs")
BLUE, ORANGE, GREEN = METHODS["one-step"], METHODS["bptt"], METHODS["gru"]
INK, FAINT = "#26323d", "#7a8590"
PANEL, HEIGHT = 330, 345
STEPS, FIRST, GAP, RADIUS = 4, 50, 76, 19
"""The memories of a panel: their number, the x of the first, their distance, and their radius."""
ROW = 190
"""The y of the row of memories."""
MIDDLE = FIRST + GAP * (STEPS - 1) / 2


def text(x: float, y: float, words: str, size: int = 14, colour: str = INK, weight: int = 400) -> str:
    """Return text centred on x."""
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def arrow(path: str, colour: str, dashed: bool = False) -> str:
    """Return a path that ends in an arrowhead."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    head = {INK: "ink", BLUE: "blue", ORANGE: "orange", GREEN: "green"}[colour]
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash} marker-end="url(#{head})"/>'


def memories(name: str, colour: str, row: float = ROW) -> list[str]:
    """Return a row of memories that begins with m_0."""
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
    """Return the teacher above a row, with an arrow to each memory."""
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
    """Return the panel of SMT, where each step has its own target."""
    hops = []
    for t in range(STEPS - 1):
        right, left = FIRST + GAP * (t + 1) - 15, FIRST + GAP * t + 17
        hops.append(
            arrow(f"M{right} {ROW - 15}C{right - 8} {ROW - 44} {left + 8} {ROW - 44} {left} {ROW - 17}", ORANGE)
        )
    return [*teacher(ROW), *steps(), *hops, *memories("m", BLUE)]


def dmt() -> list[str]:
    """Return the panel of DMT, where the RNN runs on its own memories and learns to match the teacher's."""
    high, low = ROW - 45, ROW + 35
    drop = f"{high + RADIUS + 2}V{low - RADIUS - 8}"
    pulls = [arrow(f"M{FIRST + GAP * t} {drop}", ORANGE, dashed=True) for t in range(1, STEPS)]
    return [*teacher(high), *pulls, *steps(low), *memories("m", BLUE, high), *memories("m̂", GREEN, low)]


def predict() -> list[str]:
    """Return the panel of the teacher: the encoder reads the past, the decoder predicts the future from the memory."""
    tokens = [f'x<tspan font-size="10" dy="4">{name}</tspan>' for name in ("t-3", "t-2", "t-1", "t", "t+1", "t+2")]
    drawn = []
    for number, words in enumerate(tokens):
        x = 60 + 62 * number + (90 if number > 2 else 0)
        past = number < 3
        drawn.append(text(x, 205, words, 15, INK if past else FAINT))
        if past:
            drawn.append(arrow(f"M{x} 186V166", INK))
        else:
            drawn.append(arrow(f"M{x} 166V180", GREEN))
    for x, width, words, colour in ((30, 184, "encoder E", BLUE), (306, 184, "decoder P", GREEN)):
        drawn.append(
            f'<rect x="{x}" y="120" width="{width}" height="34" rx="6" fill="{colour}" fill-opacity="0.14" '
            f'stroke="{colour}"/>{text(x + width / 2, 142, words)}'
        )
    drawn.append(arrow("M216 137H234", BLUE))
    drawn.append(arrow("M282 137H298", BLUE))
    drawn.append(f'<circle cx="260" cy="137" r="20" fill="#fff" stroke="{BLUE}" stroke-width="2"/>')
    drawn.append(text(260, 142, 'm<tspan font-size="10" dy="4">t</tspan>'))
    drawn.append(text(122, 232, "the past", 13, FAINT))
    drawn.append(text(398, 232, "the future, predicted", 13, FAINT))
    return drawn


def spread() -> list[str]:
    """Return the panel of uniformity: memory tokens as directions, collapsed and spread."""
    drawn = []
    for x, words, angles in (
        (130, "collapsed: loss_unif near 0", [78, 84, 88, 92, 97, 101]),
        (390, "spread: loss_unif well below -1", [10, 72, 128, 190, 250, 312]),
    ):
        drawn.append(f'<circle cx="{x}" cy="135" r="62" fill="none" stroke="#d5dbe0" stroke-width="2"/>')
        for angle in angles:
            right, up = 62 * math.cos(math.radians(angle)), 62 * math.sin(math.radians(angle))
            drawn.append(f'<circle cx="{x + right:.1f}" cy="{135 - up:.1f}" r="7" fill="{BLUE}" fill-opacity="0.75"/>')
        drawn.append(text(x, 228, words))
    return drawn


def draw() -> str:
    """Return the picture of the README as SVG."""
    panels = (
        ("BPTT", bptt, "The gradient goes back through every step.", "The steps wait for each other."),
        ("1. SMT", smt, "Each step has a target of its own.", "All steps are trained at once."),
        ("2. DMT", dmt, "The RNN runs on its own memories", "and learns to come back to the teacher's."),
    )
    parts = []
    for number, (title, panel, first, second) in enumerate(panels):
        words = [
            text(MIDDLE, 40, title, 18, INK, 600),
            text(MIDDLE, HEIGHT - 34, first),
            text(MIDDLE, HEIGHT - 14, second),
        ]
        parts.append(f'<g transform="translate({number * PANEL} 0)">{"".join([*words, *panel()])}</g>')
    width, legend = PANEL * len(panels), "orange: the way of the gradient; dashed: each memory and its target"
    rules = [f'<path d="M{PANEL * n} 24V{HEIGHT - 24}" stroke="#d5dbe0"/>' for n in (1, 2)]
    return frame(
        width,
        HEIGHT + 20,
        [*rules, *parts, text(width / 2, HEIGHT + 9, legend, 13, FAINT)],
        "BPTT sends the gradient back through every step. SMT trains each step alone on the memories of a teacher. DMT "
        "trains the RNN on its own memories.",
    )


def draw_panel(panel: Callable[[], list[str]], title: str, says: str, width: int, height: int, top: int = 0) -> str:
    """Return one panel as SVG, moved up by `top`."""
    parts = [text(width / 2, 30, title, 16, INK, 600), f'<g transform="translate(0 {-top})">{"".join(panel())}</g>']
    return frame(width, height, parts, says)


def frame(width: int, height: int, parts: Sequence[str], says: str) -> str:
    """Return a whole SVG, white in dark mode too; `says` is its label for screen readers."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="4" markerHeight="4" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("ink", INK), ("blue", BLUE), ("orange", ORANGE), ("green", GREEN))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        f'aria-label="{says}"><defs>{heads}</defs>'
        f'<rect width="{width}" height="{height}" rx="10" fill="#fff" stroke="#d5dbe0"/>{"".join(parts)}</svg>\n'
    )


PICTURES: dict[str, Callable[[], str]] = {
    "diagram.svg": draw,
    "method/bptt.svg": lambda: draw_panel(
        bptt, "BPTT", "The gradient goes back through every step of the RNN.", PANEL, 235, 30),
    "method/teacher.svg": lambda: draw_panel(
        predict, "The teacher (Eq. 2)", "The encoder makes a memory of the past, the decoder the future.",
        520, 190, 55),
    "method/smt.svg": lambda: draw_panel(
        smt, "Dynamics in SMT (Eq. 3)", "f is trained from each memory of the teacher to the next, all at once.",
        PANEL, 245, 15),
    "method/uniformity.svg": lambda: draw_panel(
        spread, "Uniformity (Eq. 4)", "Memories that all point one way, and memories that are spread.", 520, 240, 5),
    "method/dmt.svg": lambda: draw_panel(
        dmt, "DMT (Eq. 6)", "The RNN runs on its own memories, and each is drawn to the teacher's.", PANEL, 290, 15),
}  # fmt: skip

if __name__ == "__main__":
    for name, made in PICTURES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(made(), encoding="utf-8")
