"""Whole runs as functions: each returns a full RunConfig for one task."""

from __future__ import annotations

from collections.abc import Callable

from retain.config import (
    BPTTConfig,
    CellConfig,
    DataConfig,
    DMTConfig,
    MemoryConfig,
    RunConfig,
    SMTConfig,
    TeacherConfig,
)


def _bytes(preset: str, data: DataConfig) -> RunConfig:
    """Language modelling of bytes, for minutes of a small CPU (docs/log.md tells how it came about)."""
    return RunConfig(
        preset=preset,
        data=data,
        memory=MemoryConfig(tokens=1, width=256, norm="batch"),
        teacher=TeacherConfig(encoder="state", width=128, layers=2, decoder_layers=1, future_len=16),
        cell=CellConfig(kind="gated", width=256),
        smt=SMTConfig(share=7, batch_size=16, lr=3e-3, on_policy=0.5, horizon=8, lambda_distill=1.0),
        dmt=DMTConfig(share=3, batch_size=16, lr=1.5e-3, horizon_growth=0.5, lambda_distill=1.0),
        bptt=BPTTConfig(batch_size=16, lr=3e-3),
    )


def stdlib() -> RunConfig:
    """Source code of the Python standard library, byte by byte."""
    return _bytes("stdlib", DataConfig(name="stdlib", seq_len=64))


def text() -> RunConfig:
    """Any UTF-8 text file, byte by byte (--data PATH)."""
    return _bytes("text", DataConfig(name="text", path="TEXT", seq_len=64))


def digits() -> RunConfig:
    """Handwritten 8x8 digits, pixel by pixel."""
    return RunConfig(
        preset="digits",
        data=DataConfig(name="digits", seq_len=63),
        memory=MemoryConfig(tokens=1, width=128, norm="batch"),
        teacher=TeacherConfig(layers=2, future_len=16),
        cell=CellConfig(kind="gated", width=256),
        smt=SMTConfig(share=5, batch_size=16, lr=3e-3, on_policy=0.5, horizon=8, lambda_distill=1.0),
        dmt=DMTConfig(share=5, batch_size=16, lr=2e-3, horizon_growth=0.4, lambda_distill=1.0),
        bptt=BPTTConfig(batch_size=16, lr=3e-3),
    )


def retrieval() -> RunConfig:
    """Memory task: a marked symbol in the first half, asked for at the end."""
    return RunConfig(
        preset="retrieval",
        data=DataConfig(name="retrieval", seq_len=64),
        memory=MemoryConfig(tokens=1, width=128, norm="batch"),
        teacher=TeacherConfig(layers=2, future_len=64),
        smt=SMTConfig(lr=1e-3, decodes_per_sequence=2, on_policy=0.5, horizon=8, lambda_dyn=0.1, lambda_dyn_end=3.0),
        dmt=DMTConfig(lr=3e-4),
        bptt=BPTTConfig(lr=1e-3),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {f.__name__: f for f in (stdlib, text, digits, retrieval)}
