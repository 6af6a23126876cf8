"""`make docs`: builds docs/ into build/site, which can be read offline. A warning is an error.

Pages are collected in build/docs. Some are generated there: the options, from the commands' help texts; the changelog
and the guide for contributors, whose links are adapted; and the tutorials, whose code is run (lab/tutorials.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from retain.cli import HELP, main

DOCS, BUILT, SITE = Path("docs"), Path("build/docs"), Path("build/site")
WIDTH = "86"
"""Columns of the help texts."""
ALL_OPTIONS = {"train": "stdlib"}
"""Command with --help-all → the preset whose options are shown."""


def gather() -> None:
    """Delete build/docs and fill it again."""
    shutil.rmtree(BUILT, ignore_errors=True)
    shutil.copytree(DOCS, BUILT)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (
            Path(name).read_text(encoding="utf-8").replace("](docs/", "](").replace("](CHANGELOG.md", "](changelog.md")
        )
        (BUILT / name.lower()).write_text(text, encoding="utf-8")
    log = BUILT / "log.md"
    log.write_text(with_contents(log.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy("lab/iframe-worker.js", BUILT)
    (BUILT / "options.md").write_text(options(), encoding="utf-8")


def with_contents(text: str) -> str:
    """Replace the comment <!-- contents --> in the log by a list of its dated entries."""
    found = re.findall(r"^## (\d{4}-.*)$", text, re.M)
    anchors = [re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in found]
    entries = [f"- [{title}](#{anchor})" for title, anchor in zip(found, anchors, strict=True)]
    return text.replace("<!-- contents -->", "\n".join(["## Entries", "", *entries]))


def run_tutorials() -> list[str]:
    """Run the tutorials, two at a time, and put their pages into build/docs; return the errors of those that fail."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path("src").resolve()), os.getcwd()]),
    }

    def run(page: Path) -> str:
        line = [sys.executable, "-m", "lab.tutorials", str(page), str(BUILT / "tutorials")]
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        return [said for said in pool.map(run, sorted(DOCS.glob("tutorials/*.md"))) if said]


def options() -> str:
    """Return the page of all commands and their options, from their help texts."""
    os.environ["COLUMNS"] = WIDTH
    parts = ["# Options\n\nEvery command and its options, as `--help` prints them.\n"]
    for command in re.findall(r"^  (\w+) ", HELP, re.M):
        argv = [command, ALL_OPTIONS[command], "--help-all"] if command in ALL_OPTIONS else [command, "--help"]
        parts.append(f"## {command}\n\n`retain {' '.join(argv)}`\n\n```text\n{help_of(argv)}\n```\n")
    return "\n".join(parts)


def help_of(argv: list[str]) -> str:
    """Return the help text of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(argv)
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip("\n")


class Links(HTMLParser):
    """The local links and images of a page, and the anchors in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the anchor and the local links of a tag."""
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name in ("href", "src") and value and not urlsplit(value).scheme:
                self.targets.append(value)


def dead_links() -> list[str]:
    """Return the links and images of the site whose targets do not exist. Zensical does not check images and files."""
    pages = {page.resolve(): Links(page) for page in SITE.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            address = urlsplit(target)
            start = SITE if address.path.startswith("/") else page.parent
            path = (start / unquote(address.path).lstrip("/")).resolve() if address.path else page
            if not path.exists() or (path in pages and unquote(address.fragment) not in pages[path].places | {""}):
                dead.append(f"{page.name}: {target}")
    return dead


if __name__ == "__main__":
    gather()
    if failed := run_tutorials():
        sys.exit("\n".join(failed))
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"]).returncode
    if dead := [] if built else dead_links():
        print("\n".join(["Dead links:", *dead]), file=sys.stderr)
    print(f"{SITE}/index.html")
    sys.exit(built or bool(dead))
