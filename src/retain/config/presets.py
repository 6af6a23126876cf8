"""Presets: functions that each return the full RunConfig of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from retain.config import (
    BPTTConfig,
    CellConfig,
    DataConfig,
    DMTConfig,
    DocumentDataConfig,
    ImageDataConfig,
    MemoryConfig,
    OptimizerConfig,
    RunConfig,
    SeriesDataConfig,
    SMTConfig,
    TaskDataConfig,
    TeacherConfig,
    TextDataConfig,
)


def _bytes(preset: str, data: DataConfig) -> RunConfig:
    """Model bytes in minutes on a small CPU (docs/log.md has the trials behind these settings)."""
    return RunConfig(
        preset=preset,
        data=data,
        memory=MemoryConfig(tokens=1, width=256, norm="batch"),
        teacher=TeacherConfig(encoder="state", width=128, layers=2, decoder_layers=1, future_len=16),
        cell=CellConfig(kind="gated", width=256),
        # Text needs little memory and many steps. So SMT is short, at a constant learning rate. In DMT the RNN then
        # learns the targets themselves on its own memories, and becomes better than its teacher.
        smt=SMTConfig(
            share=3,
            batch_size=16,
            lr=2e-3,
            lr_schedule="constant",
            bptt_window=16,
            on_policy=0.5,
            lambda_dyn=0.03,
            lambda_distill=1.0,
        ),
        dmt=DMTConfig(share=7, batch_size=16, lr=2e-3, bptt_window=32, horizon_growth=0.0, lambda_dyn=0.02),
        bptt=BPTTConfig(batch_size=16, lr=3e-3),
    )


def stdlib() -> RunConfig:
    """Learn the source code of the Python standard library, byte by byte."""
    return _bytes("stdlib", DataConfig(name="stdlib", seq_len=64))


def text() -> RunConfig:
    """Learn any UTF-8 text file, byte by byte (--data PATH)."""
    return _bytes("text", TextDataConfig(path="TEXT", seq_len=64))


def series() -> RunConfig:
    """Learn series of numbers: a CSV, parquet or JSON table, or a .npy of floats (--data PATH; docs/series.md)."""
    return RunConfig(
        preset="series",
        data=SeriesDataConfig(path="SERIES", seq_len=64),
        memory=MemoryConfig(tokens=1, width=64, norm="batch"),
        teacher=TeacherConfig(encoder="state", width=64, layers=2, decoder_layers=1, future_len=16),
        cell=CellConfig(kind="gated", width=128),
        smt=SMTConfig(
            share=3,
            batch_size=16,
            lr=1e-3,
            lr_schedule="constant",
            bptt_window=16,
            on_policy=0.5,
            lambda_dyn=0.03,
        ),
        dmt=DMTConfig(share=7, batch_size=16, lr=1e-3, bptt_window=32, horizon_growth=0.0, lambda_dyn=0.02),
        bptt=BPTTConfig(batch_size=16, lr=1e-3),
        budget="60s",
        validate_every="5s",
        precision="fp32",  # bfloat16 holds too few digits of a real number
    )


def digits() -> RunConfig:
    """Learn handwritten 8x8 digits, pixel by pixel."""
    return RunConfig(
        preset="digits",
        data=DataConfig(name="digits", seq_len=63),
        memory=MemoryConfig(tokens=1, width=128, norm="batch"),
        teacher=TeacherConfig(layers=2, future_len=16),
        cell=CellConfig(kind="gated", width=256),
        smt=SMTConfig(share=5, batch_size=16, lr=3e-3, bptt_window=16, on_policy=0.5, lambda_distill=1.0),
        dmt=DMTConfig(share=5, batch_size=16, lr=2e-3, bptt_window=16, horizon_growth=0.4, lambda_distill=1.0),
        bptt=BPTTConfig(batch_size=16, lr=3e-3),
    )


def _task(
    name: str, *, seq_len: int = 64, min_seq_len: int | None = None, future_len: int = 16, bptt_window: int | None = 16
) -> RunConfig:
    """Learn a memory task in minutes on one core.

    There are few symbols, so the teacher is narrow. Its decoder must find each of many items in one memory, which takes
    several memory tokens and a second layer (docs/log.md, "what memory must hold"). If an answer depends on something
    far back, the teacher learns this on short sequences first (`min_seq_len`). If f has to keep many such items, it is
    trained over the whole sequence (`bptt_window` None).
    """
    return RunConfig(
        preset=name,
        data=TaskDataConfig(name=name, seq_len=seq_len, min_seq_len=min_seq_len),
        memory=MemoryConfig(tokens=4, width=64, norm="batch"),
        teacher=TeacherConfig(width=64, layers=2, decoder_layers=2, future_len=future_len),
        cell=CellConfig(kind="gated", width=256),
        # As with text: a short SMT, then DMT, in which the RNN learns the targets on its own memories.
        smt=SMTConfig(
            share=2,
            batch_size=16,
            lr=2e-3,
            lr_schedule="constant",
            decodes_per_sequence=2,
            bptt_window=bptt_window,
            on_policy=0.5,
            lambda_dyn=0.1,
            lambda_dyn_end=1.0,
        ),
        dmt=DMTConfig(
            share=8,
            batch_size=16,
            lr=2e-3,
            bptt_window=None if bptt_window is None else 32,
            horizon_growth=0.0,
            lambda_dyn=0.02,
        ),
        bptt=BPTTConfig(lr=1e-3),
    )


def keys_values() -> RunConfig:
    """Learn the memory task of 8 key strings with value strings, then one of the keys."""
    task = _task("keys_values", min_seq_len=8, future_len=64, bptt_window=None)
    # To bind a value to its key takes a product of both. The delta cell has one; a gated cell would have to learn it.
    # The delta cell needs a lower learning rate and larger batches. Its memory differs much from the teacher's, so
    # lambda_dyn is small.
    return dataclasses.replace(
        task,
        memory=MemoryConfig(tokens=4, width=256, norm="batch"),
        cell=CellConfig(kind="delta", width=128),
        smt=dataclasses.replace(task.smt, batch_size=32, lr=1e-3, lambda_dyn=0.03, lambda_dyn_end=None),
        dmt=dataclasses.replace(task.dmt, batch_size=32, lr=1e-3),
    )


def mqar() -> RunConfig:
    """Learn the memory task of key, value pairs and many queries (Zoology), one step at a time.

    The store encoder's memories are the delta cell's own, so that one application of f can follow them.
    """
    task = _task("mqar", future_len=0, bptt_window=1)
    return dataclasses.replace(
        task,
        memory=MemoryConfig(tokens=4, width=256, norm="none"),
        teacher=dataclasses.replace(task.teacher, encoder="store"),
        cell=CellConfig(kind="delta", width=128),
        smt=dataclasses.replace(
            task.smt,
            share=5,
            batch_size=32,
            decodes_per_sequence=16,
            on_policy=0.0,
            lambda_dyn=1.0,
            lambda_dyn_end=30.0,
            lambda_unif=0.0,
        ),
        dmt=dataclasses.replace(
            task.dmt, share=5, batch_size=32, lr=1e-3, bptt_window=1, horizon_growth=0.7, lambda_dyn=3.0
        ),
        bptt=BPTTConfig(batch_size=32, lr=1e-3),
    )


def tinystories() -> RunConfig:
    """Learn short stories in simple words (roneneldan/TinyStories), byte by byte."""
    return _bytes("tinystories", DocumentDataConfig(path="hf:roneneldan/TinyStories", seq_len=64))


def _pixels(preset: str, data: DataConfig) -> RunConfig:
    """Learn images pixel by pixel, in minutes on a small CPU."""
    return dataclasses.replace(digits(), preset=preset, data=data)


def mnist() -> RunConfig:
    """Learn handwritten digits (ylecun/mnist), 14x14 and thresholded, pixel by pixel."""
    data = ImageDataConfig(path="hf:ylecun/mnist", image_size=14, thresholds=(128,))
    return _pixels("mnist", data)


def sketchy() -> RunConfig:
    """Learn a folder of sketches, dark on white, of any size (--data PATH): 16x16, inverted and thresholded."""
    data = ImageDataConfig(path="SKETCHES", image_size=16, invert=True, thresholds=(96,))
    return _pixels("sketchy", data)


def _paper(preset: str, data: DataConfig) -> RunConfig:
    """Return one of the paper's main runs, for one large GPU. All of its settings are given, also defaults of ours."""
    return RunConfig(
        preset=preset,
        budget="151500steps",  # 150,000 of SMT, 1,500 of DMT
        data=data,
        memory=MemoryConfig(tokens=16, width=256, norm="rms"),
        teacher=TeacherConfig(
            encoder="window", width=256, heads=8, layers=8, decoder_layers=4, future_len=64, context_len=256
        ),
        cell=CellConfig(kind="transformer", width=256, heads=8, layers=8),
        optimizer=OptimizerConfig(warmup=0.01, weight_decay=0.01),
        smt=SMTConfig(
            share=100,
            batch_size=128,
            seq_len=320,
            lr=3e-4,
            lr_schedule="constant",
            steps_per_sequence=1,
            decodes_per_sequence=1,
            lambda_dec=1.0,
            lambda_dyn=0.1,
            lambda_unif=0.001,
            lambda_trunk=0.0,
            lambda_readout=0.0,
        ),
        dmt=DMTConfig(
            share=1,
            batch_size=32,
            seq_len=576,
            lr=3e-5,
            horizon=256,
            horizon_growth=0.0,
            label_every=16,
            lambda_dyn=10.0,
            lambda_readout=1.0,
            predictive=False,
        ),
        bptt=BPTTConfig(batch_size=128, seq_len=320, lr=3e-4, lr_schedule="constant"),
        precision="bf16",
        validate_every="5000steps",
    )


def tinystories_paper() -> RunConfig:
    """Repeat the paper's TinyStories run: bytes, 150,000 steps of SMT and 1,500 of DMT."""
    return _paper("tinystories-paper", DocumentDataConfig(path="hf:roneneldan/TinyStories", seq_len=576))


def mnist_paper() -> RunConfig:
    """Repeat the paper's MNIST run: 28x28 pixels of 256 levels (the paper's exact sparse form is unpublished)."""
    return _paper("mnist-paper", ImageDataConfig(path="hf:ylecun/mnist", image_size=28))


MEMORY_TASKS: tuple[Callable[[], RunConfig], ...] = (
    partial(_task, "retrieval", min_seq_len=16, future_len=64),
    partial(_task, "copy", seq_len=32, future_len=32, bptt_window=None),
    partial(_task, "stack"),
    keys_values,
    *(partial(_task, name) for name in ("modular", "parity", "s3", "s5", "dyck")),
    mqar,
    partial(_task, "selective_copy", future_len=64),
)
DATASETS = (tinystories, tinystories_paper, mnist, mnist_paper, sketchy)
PRESETS: dict[str, Callable[[], RunConfig]] = {
    f().preset: f for f in (stdlib, text, series, digits, *MEMORY_TASKS, *DATASETS)
}
NEED_DATA = {"text": "a file", "series": "a table or an array of numbers", "sketchy": "a folder of sketches"}
"""Presets that need --data, and what it must be."""
