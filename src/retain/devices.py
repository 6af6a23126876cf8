"""Devices, precision, trackers and torch.compile: what a run is executed on."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from retain.config import RunConfig
from retain.config_json import flatten, to_dict
from retain.model.cells import rolls
from retain.model.graphs import Replayed
from retain.model.rnn import RNN
from retain.model.teacher import Readout, Teacher
from retain.run import check_device

log = logging.getLogger("retain")


def fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are fast here: CUDA since Ampere, or a CPU with AMX or AVX512_BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of its name, as W&B leaves one where it was run, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def make_accelerator(config: RunConfig, out: Path) -> Accelerator:
    """Accelerate's view of devices, precision and processes. Raises ValueError for what is not there."""
    check_device(config.device)
    tracker = config.tracker
    if tracker == "auto":
        tracker = "tensorboard" if installed("tensorboard") else None
    elif tracker is not None and not installed(tracker):
        raise ValueError(f"tracker: {tracker} is not installed; pip install {tracker}, or --tracker None")
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
        raise ValueError(f"device: {config.device} does not join the {started} processes that were started; use cpu")
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


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs here; where it has not, a note goes to the log."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        log.warning("compile: no C++ compiler on the PATH; going on without torch.compile")
        return False
    return True


def compile_parts(rnn: RNN, teacher: Teacher) -> None:
    """Compile the modules whose shapes stay the same, or nearly, from step to step: how many memories a readout reads
    varies on some memory tasks. Without a compiler they stay as they are."""
    if can_compile(rnn.m_0.device):
        parts = {"encoder": teacher.encoder, "decoder": teacher.decoder, "readout": rnn.readout}
        if not rolls(rnn.cell) or rnn.normalise:  # else its rollout is what runs, which is written out by hand
            parts["cell"] = rnn.cell
        for name, part in parts.items():
            part.forward = compiled(part.forward, name)


def replay_parts(rnn: RNN, teacher: Teacher) -> None:
    """Replay encoder, decoder and readout from CUDA graphs, compiled or not. Away from a GPU they stay as they are.

    As with `compile_parts`, a copy of them that is made later would compute with these very weights.
    """
    if not rnn.m_0.is_cuda:
        return
    encode = teacher.encoder.forward

    def encoded(tokens: Tensor, steps: Tensor, logits: bool) -> tuple[Tensor, ...]:
        return tuple(x for x in encode(tokens, steps, logits) if x is not None)

    replayed = Replayed(encoded, teacher.encoder)

    def encoder(tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, Tensor | None]:
        memory, *trunk_logits = replayed(tokens, steps, logits)
        return memory, trunk_logits[0] if trunk_logits else None

    teacher.encoder.forward = encoder
    for part in (teacher.decoder, rnn.readout):
        part.forward = _replayed(part)  # type: ignore[method-assign]


def _replayed(part: Readout) -> Callable[..., Tensor]:
    forward = part.forward
    replayed = Replayed(lambda *args: (forward(*args),), part)
    return lambda *args: replayed(*args)[0]


Options = dict[str, str | int | bool | Callable[..., Any]]

STEP_ON_CPU: Options = {
    "freezing": True,  # weights are constants, laid out as the products want them
    "cpp_wrapper": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "autotune_num_choices_displayed": 0,
}
"""How a step of few streams is compiled for a CPU. It is a hundred small calls, and what each costs beside its work is
most of the time: small products take their own kernels, found by trying, and nothing goes through Python between."""


class _WithoutChoices:
    """stderr but for the kernels that were tried, of which the compiler tells there whatever one asks of it."""

    def __init__(self, stderr: Any):
        self.stderr = stderr

    def write(self, text: str) -> int:
        if not text.startswith("Autotune Choices Stats"):
            self.stderr.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stderr, name)


@contextmanager
def _compiling(options: Options) -> Iterator[None]:
    import torch._inductor.config

    stderr: Any = _WithoutChoices(sys.stderr) if sys.stderr else sys.stderr
    with torch._inductor.config.patch(options), redirect_stderr(stderr):
        yield


def compiled(function: Callable[..., Any], name: str, options: Options | None = None) -> Callable[..., Any]:
    """`function` by torch.compile; at the first failure it stays as it is from then on, with a note in the log.

    `options` of the compiler, as far as this version of it knows them.
    """
    import torch._functorch.config
    import torch._inductor.config

    options = {key: value for key, value in (options or {}).items() if hasattr(torch._inductor.config, key)} or None
    # The backward pass is compiled with the forward: a failure must come here, not in the middle of a step.
    if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        torch._functorch.config.force_non_lazy_backward_lowering = True
    fast: Callable[..., Any] | None = torch.compile(function, options=options)
    # The first call compiles. Given to torch.compile alone, `freezing` comes too late: what is a constant is decided
    # while the function is traced, by the settings of that moment.
    settings: Any = _compiling(options or {})

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast, settings
        if fast is None:
            return function(*args, **kwargs)
        try:
            with settings:
                settings = nullcontext()
                return fast(*args, **kwargs)
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
            log.warning("compile: the %s failed to compile (%s); going on without torch.compile", name, reason)
            fast = None
            return function(*args, **kwargs)

    return call
