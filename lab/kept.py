"""Results stored in the repository, with the command that made them and a hash of its settings."""

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
    "smt": {"relative_dyn": False},
    "dmt": {"rollout": "loop", "lambda_dec": 0.0},
    "bptt": {"lambda_distill": 0.0},
}
"""Options that are newer than some stored results, at the values that change nothing."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The results of a command, stored as FOLDER/NAME.json with its pictures beside it."""

    name: str
    command: str
    settings: str
    """A hash of all settings, because a preset may change while the command stays the same."""
    folder: Path

    def read(self) -> dict[str, Any] | None:
        """Return the "command" that was run, its "settings" and its "results"; None if nothing is stored."""
        path = self.folder / f"{self.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def is_current(self) -> bool:
        """Whether the stored results are of exactly this command and these settings."""
        saved = self.read()
        return saved is not None and (saved["command"], saved.get("settings")) == (self.command, self.settings)

    def make(self, work: Callable[[], Any], pictures: dict[str, Path] | None = None) -> None:
        """Unless the stored results are current, do the work, and store its results and the pictures (by suffix)."""
        if self.is_current():
            return
        print(self.command, file=sys.stderr, flush=True)
        results = work()
        self.folder.mkdir(parents=True, exist_ok=True)
        for ending, made in (pictures or {}).items():
            picture = self.folder / f"{self.name}{ending}.png"
            picture.unlink(missing_ok=True)  # an old picture must not stay beside new results, even if none was drawn
            if made.exists():
                picture.write_bytes(made.read_bytes())
        text = json.dumps({"command": self.command, "settings": self.settings, "results": results}) + "\n"
        replace_file(self.folder / f"{self.name}.json", text.encode())

    def write(self, table: Callable[[Any], str], before: str = "", after: str = "") -> str:
        """Return the command that was run and the table of its results, marked if they are not current."""
        saved = self.read()
        if saved is None:
            return f"`{self.command}`\n\nNot run yet.\n"
        stale = "" if self.is_current() else STALE
        return f"`{saved['command']}`\n\n{stale}{before}{table(saved['results'])}{after}"

    def show(self, words: str, ending: str = "") -> str:
        """Return the Markdown of a picture, "" if there is none."""
        file = f"{self.name}{ending}.png"
        return f"![{words}]({self.folder.name}/{file})\n" if (self.folder / file).exists() else ""


def fingerprint(configs: Sequence[RunConfig]) -> str:
    """Return a hash of the settings of runs."""
    return hash_settings([list_settings(config) for config in configs])


def list_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run without options that change nothing: None, or as in ADDED."""
    settings = leave_out_none(to_dict(config))
    for part, added in ADDED.items():
        settings[part] = {k: v for k, v in settings[part].items() if k not in added or v != added[k]}
    settings["version"] = 4  # a new format of config.json changes no run
    if "path" in settings["data"]:
        settings["data"]["path"] = Path(settings["data"]["path"]).name  # its folder differs between machines
    if config.cell.kind != "delta":  # the delta cell of older results had other addresses
        settings["cell"].pop("addresses")
    return settings


def leave_out_folders(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a comparison without the folders of the machine that made them."""
    if "path" not in results["data"]:
        return results
    source = {key: value for key, value in results["source"].items() if key not in ("path", "prepared")}
    return results | {"data": results["data"] | {"path": Path(results["data"]["path"]).name}, "source": source}


def hash_settings(settings: list[dict[str, Any]]) -> str:
    """Return a short hash of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def leave_out_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that are None, so that a new option does not make stored results stale."""
    found = {key: leave_out_none(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in found.items() if value is not None}


def find_comparison(name: str, arguments: str, folder: Path) -> Kept:
    """Return the stored results of a comparison."""
    comparison = parse_comparison(shlex.split(arguments))[0]
    return Kept(name, f"retain compare {arguments}", fingerprint([comparison.config]), folder)


def find_study(name: str, study: Study, folder: Path) -> Kept:
    """Return the stored results of a study; its hash leaves out settings of phases that its runs do not have."""
    found = []
    for config in study.runs.values():
        settings = list_settings(config)
        for phase in {"smt", "dmt", "bptt"} - set(config.phases):
            del settings[phase]
        if len(config.phases) == 1:
            del settings[config.phases[0]]["share"]
        found.append(settings)
    return Kept(name, study.command, hash_settings(found), folder)
