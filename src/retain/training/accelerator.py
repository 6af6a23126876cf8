"""Accelerate's view of devices, precision and processes; agreement between processes; and trackers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast, broadcast_object_list

from retain.config import RunConfig
from retain.config.json import flatten, to_dict
from retain.devices import check_device, fast_bf16
from retain.errors import UserError, explain


@contextmanager
def open_accelerator(config: RunConfig, out: Path | None = None) -> Iterator[Accelerator]:
    """Create an Accelerator with the config's device, precision and processes, and trackers that write into `out`.

    At the end of the `with` block the processes disconnect, and Accelerate's global state is restored.

    Raises:
        UserError: A device or a tracker is not available.
    """
    check_device(config.device)
    tracker = None if out is None else _choose_tracker(config)
    cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    # Without an accelerator, processes are connected only if the device is the CPU.
    cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    auto_bf16 = config.precision == "auto" and fast_bf16(torch.device("cuda" if cuda else "cpu"))
    precision = "bf16" if config.precision == "bf16" or auto_bf16 else "no"
    with _own_state():
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=tracker, project_dir=out and str(out))
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and accelerator.num_processes != started:
            raise UserError(f"device: {config.device} cannot connect the {started} processes; use cpu")
        try:
            yield accelerator
        finally:
            accelerator.end_training()  # processes must not exit while they are connected


@contextmanager
def _own_state() -> Iterator[None]:
    """Give an accelerator that is created in the `with` block a device and precision of its own.

    Accelerate allows one of each per process, and has no other way to give a second run its own. Existing accelerators
    keep theirs.
    """
    states = (AcceleratorState, PartialState)
    before = [vars(state)["_shared_state"] for state in states]
    if not dist.is_initialized():
        for state in states:
            state._shared_state = {}
    try:
        yield
    finally:
        for state, shared in zip(states, before, strict=True):
            state._shared_state = shared


def _choose_tracker(config: RunConfig) -> str | None:
    if config.tracker == "auto":
        return "tensorboard" if installed("tensorboard") else None
    if config.tracker is not None and not installed(config.tracker):
        raise UserError(f"tracker: {config.tracker} is not installed; pip install {config.tracker}, or --tracker None")
    return config.tracker


def start_trackers(accelerator: Accelerator, config: RunConfig, out: Path) -> None:
    """Start the trackers. TensorBoard writes into the run folder's `trackers`.

    In other trackers the project is "retain", and the run has the name of its folder.
    """
    if accelerator.log_with:
        by_name = any(str(tracker) in ("wandb", "trackio") for tracker in accelerator.log_with)
        accelerator.init_trackers(
            "retain" if by_name else "trackers",
            config={k: str(v) for k, v in flatten(to_dict(config)).items()},
            init_kwargs={name: {"name": out.resolve().name} for name in ("wandb", "trackio")},
        )


def installed(package: str) -> bool:
    """Whether a package can be imported. A plain folder of its name, such as the one W&B writes, does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def together(accelerator: Accelerator, check: Callable[[], None]) -> None:
    """Call `check` in the main process only: the others might see what the main process has already changed.

    An error of `check` is raised in all processes. In the others it is a UserError if the user can fix it, otherwise a
    RuntimeError.
    """
    failed: Exception | None = None
    told: list[tuple[bool, str] | None] = [None]
    if accelerator.is_main_process:
        try:
            check()
        except Exception as error:  # raised below: the others wait for the result
            explained = explain(error)
            failed, told = error, [(explained is not None, explained[0] if explained else repr(error))]
    broadcast_object_list(told)
    if failed is not None:
        raise failed
    if told[0] is not None:
        mendable, said = told[0]
        raise UserError(said) if mendable else RuntimeError(f"the main process failed: {said}")


def agree(accelerator: Accelerator, *values: float) -> list[float]:
    """Return the main process's values in all processes: clocks and signals differ, but all must act alike."""
    if accelerator.num_processes == 1:
        return list(values)
    # In double precision, as in one process: DMT's horizon doubles at exact shares of its phase.
    said: list[float] = broadcast(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
    return said
