"""Devices: which are available, and what is fast on them."""

from __future__ import annotations

import torch

from retain.errors import UserError


def check_device(name: str) -> None:
    """Raise UserError for a device that is not available."""
    try:
        kind = name if name == "auto" else torch.device(name).type
    except RuntimeError:
        raise UserError(f"device: {name!r} is none of auto, cpu, cuda, mps") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but PyTorch sees no CUDA device here; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: mps was asked for, but it is not available here; use --device cpu")


def fastest() -> str:
    """Return the device that `auto` stands for on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are fast on a device: CUDA since Ampere, or a CPU with AMX or AVX512_BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
