"""Runs the code of a tutorial and puts its output and pictures into the page: `python -m lab.tutorials PAGE OUT`.

`make docs` runs every page of docs/tutorials, each in its own process and empty folder. In a page

- the lines of a bash block are `retain` commands, run one after the other;
- python blocks are executed in one namespace; a block with title="NAME" is written to that file instead;
- a comment <!-- picture: FILE | CAPTION --> becomes the picture FILE that the code has made.

A block of any other language is only shown. A block's output follows it. An error ends the build.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

PARTS = re.compile(
    r'^```(?P<language>bash|python)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```\n'
    r"|<!-- picture: (?P<file>\S+) \| (?P<see>[^>]*) -->",
    re.M | re.S,
)
LONGEST = 40
"""The most lines of output that are shown."""


class Failed(Exception):
    """An error in a block of a tutorial."""


def run_page(text: str, pictures: Path) -> str:
    """Run a page's blocks in the current folder, and return the page with their output; copy their pictures."""
    names: dict[str, Any] = {"__name__": "tutorial"}

    def replace(part: re.Match[str]) -> str:
        if part["file"]:
            if not Path(part["file"]).exists():
                raise Failed(f"{part['file']}: no block has drawn it")
            pictures.mkdir(parents=True, exist_ok=True)
            shutil.copy(part["file"], pictures)
            return f"![{part['see']}]({pictures.name}/{Path(part['file']).name})\n\n*{part['see']}*"
        if part["title"]:
            Path(part["title"]).write_text(part["code"], encoding="utf-8")
            return part[0]
        printed = run_block(part["language"], part["code"], names)
        return part[0] + (f'\n```text title="it prints"\n{printed}\n```\n' if printed else "")

    return PARTS.sub(replace, text)


def run_block(language: str, code: str, names: dict[str, Any]) -> str:
    """Run a block and return its stdout. Raises Failed with its stderr and traceback."""
    from retain.cli import main

    said, complaints = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
            if language == "python":
                exec(compile(code, "<tutorial>", "exec"), names)
            else:
                for line in code.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words and words[0] != "retain":
                        raise Failed(f"{line}: only retain commands are run here; give the block another language")
                    if words:
                        main(words[1:])
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            pass
        else:
            raise Failed(f"{code}\n{complaints.getvalue()}\n{traceback.format_exc(limit=4)}") from error
    lines = said.getvalue().strip("\n").splitlines()
    return "\n".join([*lines[:LONGEST], *(["…"] if len(lines) > LONGEST else [])])


def main_of(page: Path, out: Path) -> None:
    """Run one page, and write the page and a folder of its pictures into `out`."""
    text, out = page.read_text(encoding="utf-8"), out.resolve()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)  # for modules that a page writes
        try:
            made = run_page(text, out / page.stem)
        except Failed as error:
            sys.exit(f"{page}: {error}")
        finally:
            os.chdir("/")
    (out / page.name).write_text(made, encoding="utf-8")
    print(f"{page}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main_of(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
