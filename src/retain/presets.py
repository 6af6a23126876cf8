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


def _task(name: str, *, seq_len: int = 64, future_len: int = 16) -> RunConfig:
    """A memory task, for minutes of one core."""
    return RunConfig(
        preset=name,
        data=DataConfig(name=name, seq_len=seq_len),
        memory=MemoryConfig(tokens=1, width=128, norm="batch"),
        teacher=TeacherConfig(layers=2, future_len=future_len),
        smt=SMTConfig(lr=1e-3, decodes_per_sequence=2, on_policy=0.5, horizon=8, lambda_dyn=0.1, lambda_dyn_end=3.0),
        dmt=DMTConfig(lr=3e-4),
        bptt=BPTTConfig(lr=1e-3),
    )


def retrieval() -> RunConfig:
    """Memory task: a marked symbol in the first half, asked for at the end."""
    return _task("retrieval", future_len=64)


def copy() -> RunConfig:
    """Memory task: a string of 16 symbols, said again."""
    return _task("copy", seq_len=32, future_len=32)


def stack() -> RunConfig:
    """Memory task: push and pop, at most 10 deep."""
    return _task("stack")


def keys_values() -> RunConfig:
    """Memory task: 8 key strings with value strings, then one of the keys."""
    return _task("keys_values", future_len=64)


def modular() -> RunConfig:
    """Memory task: (w x + b) mod 16, with w and b to be found out in context."""
    return _task("modular")


def parity() -> RunConfig:
    """Memory task: is the number of ones so far odd?"""
    return _task("parity")


def s3() -> RunConfig:
    """Memory task: the product of permutations of three things."""
    return _task("s3")


def s5() -> RunConfig:
    """Memory task: the product of permutations of five things."""
    return _task("s5")


def dyck() -> RunConfig:
    """Memory task: which kind of bracket is open?"""
    return _task("dyck")


def mqar() -> RunConfig:
    """Memory task: 8 keys with values, each asked for again (Zoology's MQAR)."""
    return _task("mqar", future_len=64)


def selective_copy() -> RunConfig:
    """Memory task: 16 symbols among blanks, said again."""
    return _task("selective_copy", future_len=64)


MEMORY_TASKS = (retrieval, copy, stack, keys_values, modular, parity, s3, s5, dyck, mqar, selective_copy)
PRESETS: dict[str, Callable[[], RunConfig]] = {f.__name__: f for f in (stdlib, text, digits, *MEMORY_TASKS)}
