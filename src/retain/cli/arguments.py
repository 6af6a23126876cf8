"""What all commands read from a command line: options by tyro, mistakes as one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from retain.errors import UserError

T = TypeVar("T")
D = TypeVar("D", int, None)


class Usage(UserError):
    """A mistake on the command line; the message is one line."""


def parse(cls: Any, argv: list[str], prog: str, default: Any = None, description: str | None = None) -> Any:
    """Parse `argv` into the dataclass `cls` with tyro; its boxed messages become one line."""
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(cls, args=argv, prog=prog, default=default, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    # A box with a title, of |, + and - where the terminal has no better; rules in it part the message from advice.
    lines = [line.strip("│╭╮╰╯─| \t") for line in stderr.getvalue().splitlines()[1:]]
    parts = " ".join("\n" if re.fullmatch(r"[-+]*", line) else line for line in lines).split("\n")
    message = next((part for part in map(str.strip, parts) if part), "")
    # 'Error parsing smt: lr: -1 …' names the field as smt.lr, 'Error parsing cell: cell.kind: …' has it already.
    message = re.sub(r"^Error parsing [A-Z]\w*: (?=\w+: )", "", message)
    message = re.sub(r"^Error parsing (\w+): (?=\w+: )", r"\1.", message)
    message = re.sub(r"^Error parsing [\w.-]+: (?=[\w.]+: )", "", message)
    raise Usage(f"{message} (see {prog} --help)")


def take_run(argv: list[str], command: str, cls: type[T]) -> tuple[Path, T]:
    """A command of the form RUN [options]."""
    if "-h" in argv or "--help" in argv:
        parse(cls, ["--help"], f"retain {command} RUN")
    if not argv or argv[0].startswith("-"):
        raise Usage(f"retain {command}: name a run folder first, as in: retain {command} runs/stdlib")
    return Path(argv[0]), parse(cls, argv[1:], f"retain {command} RUN")


def take_option(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """Take `name VALUE` or `name=VALUE` out of argv."""
    rest, value, i = [], None, 0
    while i < len(argv):
        if argv[i] == name:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise Usage(f"{name} needs a value")
            found, i = argv[i + 1], i + 1
        elif argv[i].startswith(name + "="):
            found = argv[i].partition("=")[2]
        else:
            rest.append(argv[i])
            i += 1
            continue
        if not found:  # as of a variable of the shell that is not set
            raise Usage(f"{name} needs a value, and was given an empty one")
        if value is not None:
            raise Usage(f"{name}: given twice, {value} and {found}; give one")
        value, i = found, i + 1
    return value, rest


def refuse(argv: list[str], command: str, options: Sequence[str]) -> None:
    """Say of options of `retain train` that `command` decides them itself; to take and ignore them would mislead."""
    for word in argv:
        if (name := word.partition("=")[0].replace("_", "-")) in (*options, "--resume", "--dry-run"):
            raise Usage(f"{name}: retain {command} does not take it; leave it out (see retain {command} --help)")


def whole(values: dict[str, str | None], name: str, default: D) -> int | D:
    """The option `name` as a whole number, at least 1."""
    text = values[name]
    if text is not None and (not text.isascii() or not text.isdigit() or int(text) < 1):
        raise Usage(f"{name}: {text!r} must be a whole number, at least 1")
    return default if text is None else int(text)
