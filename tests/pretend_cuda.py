"""A CUDA device that is not there, as a pytest plugin: `tests/test_cuda.py` without a GPU (see test_pretend_cuda.py).

Tensors say that they are on it and compute on the CPU. The dispatcher takes them for CUDA tensors, so autocast follows
CUDA's rules, backward passes run in the device's own thread, and what mixes devices fails as it would there. What
makes the host wait warns as under `torch.cuda.set_sync_debug_mode("warn")`. What it cannot show: CUDA's kernels
themselves, cuDNN, compiling, memory and time.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import nullcontext

# pretend_cuda.cpp, compiled: it must be there before torch is.
ctypes.CDLL(os.environ["RETAIN_PRETEND_CUDA"], mode=ctypes.RTLD_GLOBAL)

import pytest  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default)
MOVES = (aten._to_copy.default, aten.copy_.default)
INDEXES = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
"""Ops that take indices on the CPU beside tensors on CUDA."""


class Pretended(torch.Tensor):
    """Says that it is on CUDA; its values are those of `there`, on the CPU."""

    @staticmethod
    def __new__(cls, there):
        return torch.Tensor._make_wrapper_subclass(
            cls, there.shape, strides=there.stride(), storage_offset=there.storage_offset(), dtype=there.dtype,
            device=CUDA,
        )  # fmt: skip

    def __init__(self, there):
        self.there = there

    def __repr__(self):
        return f"Pretended({self.there})"

    def tolist(self):
        waited("tolist")
        return self.there.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Pretence(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, Pretended)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Pretended)]
    device = next((x for x in flat if isinstance(x, torch.device)), CUDA if there else CPU)
    if func in MOVES:
        between = bool(there and here) or device.type != (CUDA if there else CPU).type
        if between and not kwargs.get("non_blocking", len(args) > 2 and args[2]):
            waited(func)
    elif there and func not in INDEXES and any(x.dim() for x in here):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
    elif there and func in WAITS:
        waited(func)
    plain = [x.there if isinstance(x, Pretended) else CPU if isinstance(x, torch.device) else x for x in flat]
    args_there, kwargs_there = tree_unflatten(plain, spec)
    out = KERNELS.get(func, func)(*args_there, **kwargs_there)
    if func is aten.copy_.default:
        return args[0]
    if device.type != "cuda":
        return out
    out = tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, out)
    return out if func in KERNELS else return_and_correct_aliasing(func, args, kwargs, out)


def gru_cell(of_input, of_state, state, input_bias, state_bias):
    of_input, of_state = of_input + input_bias, of_state + state_bias
    (ri, zi, ni), (rs, zs, ns) = of_input.chunk(3, 1), of_state.chunk(3, 1)
    r, z = (ri + rs).sigmoid(), (zi + zs).sigmoid()
    n = (ni + r * ns).tanh()
    return n + z * (state - n), torch.cat([r, z, n, state, ns], 1)


def gru_cell_backward(grad, saved, has_bias):
    r, z, n, state, ns = saved.chunk(5, 1)
    dz, dn = (state - n) * grad * z * (1 - z), (1 - z) * grad * (1 - n * n)
    dr = dn * ns * r * (1 - r)
    of_input, of_state = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return of_input, of_state, grad * z, of_input.sum(0), of_state.sum(0)


def lstm_cell(of_input, of_state, c, input_bias, state_bias):
    i, f, g, o = (of_input + input_bias + of_state + state_bias).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * c + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(grad_h, grad_c, c, new, saved, has_bias):
    i, f, g, o = saved.chunk(4, 1)
    h = new.tanh()
    grad_h = torch.zeros_like(c) if grad_h is None else grad_h
    grad_c = grad_h * o * (1 - h * h) + (0 if grad_c is None else grad_c)
    parts = grad_c * g * i * (1 - i), grad_c * c * f * (1 - f), grad_c * i * (1 - g * g), grad_h * h * o * (1 - o)
    gates = torch.cat(parts, 1)
    return gates, grad_c * f, gates.sum(0)


KERNELS = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}
"""Ops that there are for CUDA alone."""

warning = False


def sync_debug_mode(mode):
    global warning
    warning = mode in ("warn", 1)


def waited(what):
    if warning:
        warnings.warn(f"called a synchronizing CUDA operation ({what})", stacklevel=2)


class Generator(torch.Generator):
    def __new__(cls, device=None):
        return super().__new__(cls)


def pytest_configure():
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(1.0, device="cuda") goes through the CPU
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Generator = Generator
    # A wrapper's views cannot be inference tensors.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()
    torch.Tensor.pin_memory = lambda self, device=None: self
    pretended = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "is_bf16_supported": True, "get_device_name": "pretended", "max_memory_allocated": 0,
    }  # fmt: skip
    for name, answer in pretended.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    for name in ("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed_all"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.set_sync_debug_mode = sync_debug_mode


@pytest.fixture(autouse=True)
def pretend():
    with Pretence():
        yield
