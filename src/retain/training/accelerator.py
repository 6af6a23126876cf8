"""Accelerate's view of devices, precision and processes, and trackers."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from retain.config import RunConfig
from retain.config.json import flatten, to_dict
from retain.devices import check_device, fast_bf16
from retain.errors import UserError

log = logging.getLogger("retain")


def make_accelerator(config: RunConfig, out: Path) -> Accelerator:
    """Accelerate's view of devices, precision and processes. Raises UserError for what is not there."""
    check_device(config.device)
    tracker = config.tracker
    if tracker == "auto":
        tracker = "tensorboard" if installed("tensorboard") else None
    elif tracker is not None and not installed(tracker):
        raise UserError(f"tracker: {tracker} is not installed; pip install {tracker}, or --tracker None")
    cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    # Where there is no accelerator, processes are only told of each other if it is the CPU that is asked for.
    cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and fast_bf16(torch.device("cuda" if cuda else "cpu"))
    )
    precision = "bf16" if bf16 else "no"
    if not dist.is_initialized():
        # Accelerate allows one device and one precision per process. A new state lets another run have its own; the
        # accelerators that there are keep theirs.
        AcceleratorState._shared_state, PartialState._shared_state = {}, {}
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=tracker, project_dir=str(out))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator.num_processes != started:
        raise UserError(f"device: {config.device} does not join the {started} processes that were started; use cpu")
    return accelerator


def start_trackers(accelerator: Accelerator, config: RunConfig, out: Path) -> None:
    """TensorBoard writes into the run folder's `trackers`; for the others the project is retain, the run the folder."""
    if accelerator.log_with:
        by_name = any(str(tracker) in ("wandb", "trackio") for tracker in accelerator.log_with)
        accelerator.init_trackers(
            "retain" if by_name else "trackers",
            config={k: str(v) for k, v in flatten(to_dict(config)).items()},
            init_kwargs={name: {"name": out.resolve().name} for name in ("wandb", "trackio")},
        )


def keep_pages() -> None:
    """Let the C library keep freed memory for the next step, instead of asking the system for cleared pages again.

    A step allocates what the last one freed. Where there is no glibc, nothing happens.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of its name, as W&B leaves one where it was run, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
