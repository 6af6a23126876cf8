"""Numbers that are kept in the repository, with the command that made them and what that command set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.studies import Study
from retain.cli.compare import parse_comparison
from retain.config import RunConfig
from retain.config.json import to_dict
from retain.files import replace_file

STALE = "*Run with an earlier form of the command or of its preset; to be run anew.*\n\n"
ADDED: dict[str, dict[str, Any]] = {
    "memory": {"levels": 5},
    "teacher": {
        "trunk": "attention",
        "householders": 2,
        "local": 1,
        "temperature": 1.0,
        "context_before": 0,
        "freeze_embeddings": False,
    },
    "dmt": {"rollout": "loop"},
    "bptt": {"lambda_distill": 0.0},
}
"""Options that were added after figures had been kept, at the values that change nothing."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The numbers of a command, kept as FOLDER/NAME.json, and its pictures beside them."""

    name: str
    command: str
    settings: str
    """A fingerprint of what the command sets: a preset may change under a command that stays."""
    folder: Path

    def read(self) -> dict[str, Any] | None:
        """Read the "command" that was run, its "settings" and its "results"; None if nothing is kept."""
        path = self.folder / f"{self.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def is_current(self) -> bool:
        """Whether what is kept is of this very command and these very settings."""
        saved = self.read()
        return saved is not None and (saved["command"], saved.get("settings")) == (self.command, self.settings)

    def make(self, work: Callable[[], Any], pictures: dict[str, Path] | None = None) -> None:
        """Do the work if what is kept is not current, and keep what it returns and the pictures (by ending)."""
        if self.is_current():
            return
        print(self.command, file=sys.stderr, flush=True)
        results = work()
        self.folder.mkdir(parents=True, exist_ok=True)
        for ending, made in (pictures or {}).items():
            picture = self.folder / f"{self.name}{ending}.png"
            picture.unlink(missing_ok=True)  # no older one stays beside newer numbers, even if none could be drawn
            if made.exists():
                picture.write_bytes(made.read_bytes())
        text = json.dumps({"command": self.command, "settings": self.settings, "results": results}) + "\n"
        replace_file(self.folder / f"{self.name}.json", text.encode())

    def write(self, table: Callable[[Any], str], before: str = "", after: str = "") -> str:
        """Write the command and the table of its numbers; those of an earlier command stand under theirs."""
        saved = self.read()
        if saved is None:
            return f"`{self.command}`\n\nNot run yet.\n"
        stale = "" if self.is_current() else STALE
        return f"`{saved['command']}`\n\n{stale}{before}{table(saved['results'])}{after}"

    def show(self, words: str, ending: str = "") -> str:
        """Show a picture in Markdown, if there is one."""
        file = f"{self.name}{ending}.png"
        return f"![{words}]({self.folder.name}/{file})\n" if (self.folder / file).exists() else ""


def fingerprint(configs: Sequence[RunConfig]) -> str:
    """Identify the settings that numbers are of."""
    return hash_settings([list_settings(config) for config in configs])


def list_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run without those that are as if there were no such option."""
    settings = leave_out_none(to_dict(config))
    for part, added in ADDED.items():
        settings[part] = {k: v for k, v in settings[part].items() if k not in added or v != added[k]}
    return settings


def hash_settings(settings: list[dict[str, Any]]) -> str:
    """Return a few digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def leave_out_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None: an option that is added later makes no kept figures old."""
    found = {key: leave_out_none(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in found.items() if value is not None}


def find_comparison(name: str, arguments: str, folder: Path) -> Kept:
    """Return what is kept of a comparison."""
    comparison = parse_comparison(shlex.split(arguments))[0]
    return Kept(name, f"retain compare {arguments}", fingerprint([comparison.config]), folder)


def find_study(name: str, study: Study, folder: Path) -> Kept:
    """Return what is kept of a study; its settings are those that its runs read, nothing of phases they do not have."""
    found = []
    for config in study.runs.values():
        settings = list_settings(config)
        for phase in {"smt", "dmt", "bptt"} - set(config.phases):
            del settings[phase]
        if len(config.phases) == 1:
            del settings[config.phases[0]]["share"]
        found.append(settings)
    return Kept(name, study.command, hash_settings(found), folder)
