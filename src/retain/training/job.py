"""The state of one call of `train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from retain.config import RunConfig
from retain.data import Data
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.runs.progress import Progress
from retain.runs.save import build_state


@dataclass
class Job:
    """A run in this process: its settings, folder, data, models and progress."""

    config: RunConfig
    out: Path
    accelerator: Accelerator
    data: Data
    rnn: RNN
    teacher: Teacher
    own_cell: str | None
    """The class of a cell that was given in Python."""
    own_data: bool
    """Whether the data was given in Python."""
    progress: Progress = field(default_factory=Progress)
    saved_at: int | None = None
    """The step of the last checkpoint that was saved here."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return bool(self.accelerator.is_main_process)

    def phase_name(self) -> str:
        """Return the name of the current phase."""
        return self.config.phases[self.progress.phase]

    def state(self) -> dict[str, Any]:
        """Return the contents of state.json: what a loader needs besides the weights, and how they were trained."""
        precision = self.accelerator.mixed_precision
        trunk = self.teacher.given_trunk
        return build_state(self.config, self.rnn, self.data, self.progress, own_cell=self.own_cell) | {
            "own_data": self.own_data,
            "teacher_from": None if trunk is None else trunk.identity,
            "precision": precision if precision != "no" else "fp32",
            "processes": self.accelerator.num_processes,
        }
