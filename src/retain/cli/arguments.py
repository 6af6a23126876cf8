"""Parsing that all commands share: options by tyro, mistakes as one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from retain.config.presets import PRESETS
from retain.errors import UserError

T = TypeVar("T")
D = TypeVar("D", int, None)
NO_RUN = "retain {0}: name a run folder first, as in: retain {0} runs/stdlib"


class Usage(UserError):
    """A mistake on the command line; the message is one line."""


def warn(line: str) -> None:
    """Print a line on stderr."""
    print(f"retain: {line}", file=sys.stderr)


def parse(cls: Any, argv: list[str], prog: str, default: Any = None, description: str | None = None) -> Any:
    """Parse `argv` into the dataclass `cls` with tyro. Raises Usage with tyro's message as one line."""
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(cls, args=argv, prog=prog, default=default, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    # tyro prints a titled box, of |, + and - on a simple terminal. A rule separates the message from advice.
    lines = [line.strip("│╭╮╰╯─| \t") for line in stderr.getvalue().splitlines()[1:]]
    parts = " ".join("\n" if re.fullmatch(r"[-+]*", line) else line for line in lines).split("\n")
    message = next((part for part in map(str.strip, parts) if part), "")
    # 'Error parsing smt: lr: -1 …' becomes 'smt.lr: -1 …'; 'Error parsing cell: cell.kind: …' has the full name.
    message = re.sub(r"^Error parsing [A-Z]\w*: (?=\w+: )", "", message)
    message = re.sub(r"^Error parsing (\w+): (?=\w+: )", r"\1.", message)
    message = re.sub(r"^Error parsing [\w.-]+: (?=[\w.]+: )", "", message)
    raise Usage(f"{message} (see {prog} --help)")


def take_words(argv: list[str], prog: str, cls: type[T], count: int | None, missing: str) -> tuple[list[str], T]:
    """Take `count` words, or all before the first option, and parse the options. Raises Usage if words are missing."""
    given = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    if "-h" in argv or "--help" in argv:
        parse(cls, ["--help"], prog)
    if given < (count or 1):
        raise Usage(missing)
    return argv[: count or given], parse(cls, argv[count or given :], prog)


def take_run(argv: list[str], command: str, cls: type[T]) -> tuple[Path, T]:
    """Parse a command of the form RUN [options]."""
    words, args = take_words(argv, f"retain {command} RUN", cls, 1, NO_RUN.format(command))
    return Path(words[0]), args


def take_all(argv: list[str], name: str) -> tuple[list[str], list[str]]:
    """Take every `name VALUE` and `name=VALUE` out of argv. Returns the values, and the other words."""
    values, rest, words = [], [], iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != name:
            rest.append(word)
            continue
        if not equals and (value := next(words, "--")).startswith("--"):
            raise Usage(f"{name} needs a value")
        if not value:  # e.g. of an unset shell variable
            raise Usage(f"{name} needs a value, but was given an empty one")
        values.append(value)
    return values, rest


def take_option(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """Take `name VALUE` or `name=VALUE` out of argv."""
    values, rest = take_all(argv, name)
    if len(values) > 1:
        raise Usage(f"{name}: given twice, {values[0]} and {values[1]}; give one")
    return (values[0] if values else None), rest


def take_options(argv: list[str], command: str, names: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take the command's own options out of argv. Raises Usage if the rest names no run."""
    values: dict[str, str | None] = {}
    for name in names:
        values[name], argv = take_option(argv, f"--{name}")
    if not argv or (argv[0].startswith("-") and not any(a.startswith("--config") for a in argv)):
        raise Usage(f"retain {command}: name a preset ({', '.join(PRESETS)}) or give --config FILE")
    return values, argv


def split_list(text: str | None) -> tuple[str, ...]:
    """Split a value at its commas; None gives an empty tuple."""
    return () if text is None else tuple(part.strip() for part in text.split(","))


def name_option(word: str) -> str:
    """Return the option of a command-line word as the help writes it: without a value, with dashes."""
    return word.partition("=")[0].replace("_", "-")


def refuse(argv: list[str], command: str, options: Sequence[str]) -> None:
    """Raise Usage for options of `retain train` that `command` sets itself. To ignore them would mislead."""
    for word in argv:
        if (name := name_option(word)) in (*options, "--resume", "--dry-run"):
            raise Usage(f"{name}: retain {command} does not take it; leave it out (see retain {command} --help)")


def parse_count(values: dict[str, str | None], name: str, default: D) -> int | D:
    """Read the option `name` as a whole number, at least 1."""
    text = values[name]
    if text is not None and (not text.isascii() or not text.isdigit() or int(text) < 1):
        raise Usage(f"{name}: {text!r} must be a whole number, at least 1")
    return default if text is None else int(text)
