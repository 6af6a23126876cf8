"""What a run is: frozen dataclasses, checked when built. Nothing heavy is imported, so that --help answers at once."""

from retain.config.data import (
    DATASETS,
    EMBEDDED_DATA,
    FILE_DATA,
    IGNORE,
    LARGEST_VOCABULARY,
    READ_BY,
    TASK_DATA,
    TASK_FIELDS,
    DataConfig,
)
from retain.config.model import CELLS, READ_BY_CELL, CellConfig, MemoryConfig, TeacherConfig, check_memory
from retain.config.phases import PHASES, BPTTConfig, DMTConfig, PhaseConfig, SMTConfig
from retain.config.run import SEEDS, TRACKERS, RunConfig

__all__ = [
    "BPTTConfig",
    "CELLS",
    "CellConfig",
    "DATASETS",
    "DMTConfig",
    "DataConfig",
    "EMBEDDED_DATA",
    "FILE_DATA",
    "IGNORE",
    "LARGEST_VOCABULARY",
    "MemoryConfig",
    "PHASES",
    "PhaseConfig",
    "READ_BY",
    "READ_BY_CELL",
    "RunConfig",
    "SEEDS",
    "SMTConfig",
    "TASK_DATA",
    "TASK_FIELDS",
    "TRACKERS",
    "TeacherConfig",
    "check_memory",
]
