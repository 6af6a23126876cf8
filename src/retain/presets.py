"""Whole runs as functions: each returns a full RunConfig for one task."""

from __future__ import annotations

from collections.abc import Callable

from retain.config import DataConfig, MemoryConfig, RunConfig, SMTConfig, TeacherConfig


def stdlib() -> RunConfig:
    """Source code of the Python standard library, byte by byte."""
    return RunConfig(preset="stdlib", data=DataConfig(name="stdlib", seq_len=64))


def text() -> RunConfig:
    """Any UTF-8 text file, byte by byte (--data PATH)."""
    return RunConfig(preset="text", data=DataConfig(name="text", path="TEXT", seq_len=64))


def digits() -> RunConfig:
    """Handwritten 8x8 digits, pixel by pixel."""
    return RunConfig(preset="digits", data=DataConfig(name="digits", seq_len=63))


def retrieval() -> RunConfig:
    """Memory task: a marked symbol in the first half, asked for at the end."""
    return RunConfig(
        preset="retrieval",
        data=DataConfig(name="retrieval", seq_len=64),
        memory=MemoryConfig(tokens=2, width=64),
        teacher=TeacherConfig(future_len=64),
        smt=SMTConfig(lambda_dyn=0.1, lambda_dyn_end=3.0),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {f.__name__: f for f in (stdlib, text, digits, retrieval)}
