"""`retain report` and `retain plot`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.cli.arguments import NO_RUN, Usage, take_words, warn
from retain.config import RunConfig
from retain.config.json import flatten, option_of, to_dict
from retain.errors import READ_ONLY, UserError


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about a run, or several side by side, and its numbers as JSON next to it."""

    out: str | None = None
    """The page, .html. None: report.html, in the run folder if there is one run, else in the current folder."""


@dataclass(frozen=True)
class Plot:
    """Draw one plot of a run as a picture for a paper.

    NAME is a curve (loss, loss_dyn, validation_bits_per_token …), drift, absolute-drift, drift-beyond, quality,
    quality-beyond, calibration, length, gradient-initial, gradient-trained, memory, memory-3d or memory-teacher.
    """

    out: str | None = None
    """The picture, .png, .svg or .pdf. None: NAME.png in the run folder."""
    x: Literal["step", "seconds", "tokens", "sequential_steps"] = "step"
    """The x axis of training curves."""
    colour: str | None = None
    """Colour of memories: 'position', 'last token' or the task's hidden state.
    None: the hidden state, or position if the task has none."""


def report_command(argv: list[str]) -> None:
    """Run `retain report`."""
    paths, args = take_words(argv, "retain report RUN [RUN ...]", Report, None, NO_RUN.format("report"))
    out = Path(args.out or ("report.html" if len(paths) > 1 else Path(paths[0]) / "report.html"))
    if out.suffix.lower() not in (".html", ".htm"):
        raise Usage(f"out: {out} must be an .html")
    from retain.report.page import keep_report, make_report

    report = make_report([Path(p) for p in paths], out, write_command)
    written = f"{out} and {out.with_suffix('.json')}"
    try:
        keep_report(report, out)
    except OSError as error:
        if args.out is not None or error.errno not in READ_ONLY:
            raise
        warn(f"{out}: cannot be written, {error.strerror}; give --out PAGE to write it elsewhere")
        written = ""
    for run, verdict in zip(report["runs"], report["verdicts"], strict=True):
        print(f"{run['name']}: {verdict}")
        for note in run["notes"]:
            print(f"  note: {note}")
    if written:
        print(written)


def plot_command(argv: list[str]) -> None:
    """Run `retain plot`."""
    missing = "retain plot: name a run folder and a plot, as in: retain plot runs/stdlib drift"
    words, args = take_words(argv, "retain plot RUN NAME", Plot, 2, missing)
    path, name = Path(words[0]), words[1]
    out = Path(args.out) if args.out else path / f"{name}.png"
    from retain.report.plot import FORMATS, save_plot

    if out.suffix.lower() not in FORMATS:
        raise Usage(f"out: {out} must be one of {', '.join(FORMATS)}")
    save_plot(path, name, out, args.x, args.colour)
    print(out)


def write_command(config: RunConfig, path: Path) -> str:
    """Return a `retain train` line that gives this config, or if there is none, one that reads the config file."""
    from retain.cli.train import train_config
    from retain.config.presets import PRESETS
    from retain.report.gather import command_by_file

    if config.preset not in PRESETS:
        return command_by_file(config, path)
    line = ["train", config.preset, "--out", "NEW"]
    kept = {"data.path", "preset", "version"}
    if (source := getattr(config.data, "path", None)) is not None:
        line += ["--data", source]
        kept.add("data.name")
    before = flatten(to_dict(PRESETS[config.preset]()))
    for key, value in flatten(to_dict(config)).items():
        if key not in kept and value != before.get(key):
            line += option_of(key, value)
    try:  # the line is shown only if it parses to exactly this config
        same = train_config(line[1:])[0] == config
    except UserError:  # a line that does not parse is not shown
        same = False
    return "retain " + shlex.join(line) if same else command_by_file(config, path)
