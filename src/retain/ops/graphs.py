"""CUDA graphs: a chain of small kernels that the host launches as one.

A GPU's host takes longer to launch a small kernel than the GPU takes to run it. One launch of a graph runs all the
kernels that it captured (Ng et al. 2021, "Accelerating PyTorch with CUDA Graphs"). RETAIN_CUDA_GRAPHS=0 in the
environment turns graphs off.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHARE = 4
"""All graphs together hold at most 1 / SHARE of a GPU's memory."""

MOST = 128
"""At most this many shapes of one function are captured. If there are more, for example if every batch has another
number of targets, capturing all takes longer than launching their kernels."""

LONGEST = 2048
"""One graph holds at most this many steps of a rollout: a step is about ten kernels, and the driver records each."""

FAILED = "a CUDA graph could not be captured ({}); set RETAIN_CUDA_GRAPHS=0 to run without graphs"

Function = Callable[..., tuple[Tensor, ...]]


class Replayed:
    """A function of tensors and constants that is replayed from CUDA graphs if its arguments are on a GPU.

    The naive twin is the function itself, which runs inside `launched`. A shape is captured at its second call (with
    `at_first` at its first), together with the backward pass if a gradient is needed. Results are copies that belong to
    the caller. The function itself runs if there is no room for a graph (SHARE, MOST), and for a rollout of more than
    LONGEST steps (the length of argument number `steps`). Raises RuntimeError if a capture failed.

    The function returns a tuple of tensors. It must not read values on the host, draw random numbers or differ
    between calls. It reads only its arguments and the parameters of `module`.
    """

    def __init__(
        self, function: Function, module: nn.Module | None = None, at_first: bool = False, steps: int | None = None
    ):
        self.function, self.at_first, self.steps = function, at_first, steps
        self.module = None if module is None else weakref.ref(module)
        self.forget()
        _ALL.add(self)

    def forget(self) -> None:
        """Release the graphs."""
        self.idle: dict[Hashable, list[_Graph]] = {}
        self.seen: set[Hashable] = set()
        self.refused: set[Hashable] = set()
        self.held = 0  # bytes

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """Return a copy of what the function returns."""
        tensors = [x for x in args if isinstance(x, Tensor)]
        if not is_capturable(tensors) or (self.steps is not None and len(args[self.steps]) > LONGEST):
            return self.function(*args)
        module = self.module() if self.module else None
        weights = [] if module is None else list(module.parameters())
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *weights))
        key = (graded, *_state(), *map(_shape, args), *((_shape(w), w.data_ptr()) for w in weights))
        idle = self.idle.get(key) or self._capture(key, args, module, graded)
        if not idle:
            return self.function(*args)
        if not graded:
            return idle[-1](tensors)
        replayed: tuple[Tensor, ...] = _Replay.apply(_Lease(idle), len(tensors), *tensors, *weights)
        return replayed

    def _capture(self, key: Hashable, args: tuple[Any, ...], module: nn.Module | None, graded: bool) -> list[_Graph]:
        """Return the idle graphs of this key, with a new one; an empty list if the function itself must run."""
        if key in self.refused or (key not in self.idle and len(self.idle) >= MOST):
            return []
        if key not in self.seen and not self.at_first:  # a shape that comes once is not worth a capture
            self.seen.add(key)
            return []
        if not _CAPTURING.acquire(blocking=False):  # another thread is capturing, or this call is being captured
            return []
        try:
            graph = _Graph(self.function, args, module, graded)
            held = graph.size + sum(replayed.held for replayed in _ALL)
            has_room = held <= torch.cuda.get_device_properties(graph.device).total_memory // SHARE
        except torch.OutOfMemoryError:
            has_room = False
        finally:
            _CAPTURING.release()
        if not has_room:
            self.refused.add(key)
            return []
        self.held += graph.size
        self.idle.setdefault(key, []).append(graph)
        return self.idle[key]


_ALL: weakref.WeakSet[Replayed] = weakref.WeakSet()
_CAPTURING = threading.Lock()


def forget() -> None:
    """Release all graphs: another phase or run has other shapes."""
    for replayed in _ALL:
        replayed.forget()


_on = os.environ.get("RETAIN_CUDA_GRAPHS") != "0"


@contextmanager
def launched() -> Iterator[None]:
    """Run without graphs inside the `with` block, to count operations or to compare results."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def is_capturable(tensors: list[Tensor]) -> bool:
    """Whether the tensors are on an NVIDIA GPU, and no compiler or other capture records the operations."""
    return (
        _on
        and torch.version.cuda is not None
        and all(x.is_cuda for x in tensors)
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def _state() -> tuple[Hashable, ...]:
    """Return what the results depend on besides the arguments: autocast and the current stream."""
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    return autocast, torch.cuda.current_stream().cuda_stream


def _shape(x: Any) -> Hashable:
    return (x.shape, x.dtype, x.device, x.requires_grad) if isinstance(x, Tensor) else x


class _Graph:
    """A captured function, and if `graded` its backward pass to the arguments and the module's parameters."""

    def __init__(self, function: Function, args: tuple[Any, ...], module: nn.Module | None, graded: bool):
        tensors = [x for x in args if isinstance(x, Tensor)]
        self.device = tensors[0].device
        self.lock = threading.Lock()
        with (
            torch.cuda.device(self.device),
            torch.inference_mode(False),
            torch.set_grad_enabled(graded),
            _stand_ins(module if graded else None) as weights,
        ):
            given = [x.detach().contiguous().clone() if isinstance(x, Tensor) else x for x in args]
            self.inputs = [x for x in given if isinstance(x, Tensor)]
            for there, x in zip(self.inputs, tensors, strict=True):
                there.requires_grad_(graded and x.requires_grad)
            towards = [x for x in (*self.inputs, *weights) if x.requires_grad]
            main, stream = torch.cuda.current_stream(), _stream(self.device)
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                # Libraries initialise themselves for a stream at its first use.
                torch.clear_autocast_cache()
                outputs = function(*given)
                self.roots = [i for i, x in enumerate(outputs) if x.requires_grad]
                self.grads = [torch.zeros_like(outputs[i]) for i in self.roots]
                if graded:
                    _gradients([outputs[i] for i in self.roots], towards, self.grads)
                del outputs
                torch.cuda.synchronize()
                free, total = torch.cuda.mem_get_info()
                if free < total // SHARE:  # a capture cannot use cached memory
                    torch.cuda.empty_cache()
                before = torch.cuda.memory_reserved()
                self.there, self.outputs = _captured(partial(function, *given))
                self.back: torch.cuda.CUDAGraph | None = None
                found: tuple[Any, ...] = ()
                if graded:
                    roots = [self.outputs[i] for i in self.roots]
                    self.back, found = _captured(partial(_gradients, roots, towards, self.grads), self.there.pool())
                self.size = torch.cuda.memory_reserved() - before + sum(x.nbytes for x in (*self.inputs, *self.grads))
            main.wait_stream(stream)
            by_tensor = {id(x): grad for x, grad in zip(towards, found, strict=graded)}
            self.found = [by_tensor.get(id(x)) for x in (*self.inputs, *weights)]
            self.outputs = tuple(x.detach() for x in self.outputs)

    def __call__(self, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.lock:  # several threads may run the same graph, each for its own text
            for there, x in zip(self.inputs, tensors, strict=True):
                there.copy_(x)
            self.there.replay()
            return tuple(x.clone() for x in self.outputs)

    def backward(self, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        assert self.back is not None
        for there, i in zip(self.grads, self.roots, strict=True):
            there.copy_(grads[i])
        self.back.replay()
        return tuple(None if x is None else x.clone() for x in self.found)


def _gradients(roots: list[Tensor], towards: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Compute gradients outside of autocast, as a backward pass that is not captured does."""
    with torch.autocast("cuda", enabled=False):
        return torch.autograd.grad(roots, towards, grads, allow_unused=True)


@contextmanager
def _stand_ins(module: nn.Module | None) -> Iterator[list[nn.Parameter]]:
    """Replace the module's parameters by others that share their memory; yield them in the order of `parameters()`.

    Autograd may have used the module's own on another stream, where a rollout still waits for its gradient. The capture
    would then wait for that stream.
    """
    if module is None:
        yield []
        return
    alias = {p: nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    places = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if p is not None]
    for m, name, p in places:
        m._parameters[name] = alias[p]
    try:
        yield list(alias.values())
    finally:
        for m, name, p in places:
            m._parameters[name] = p


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures: libraries allocate memory for each stream, so there is only one."""
    return torch.cuda.Stream(device)


def _captured(
    function: Callable[[], tuple[Any, ...]], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, tuple[Any, ...]]:
    """Return a graph of the function's kernels, and the function's results, which every replay overwrites."""
    torch.clear_autocast_cache()  # every replay must cast the weights anew
    _clear_workspaces()
    graph = torch.cuda.CUDAGraph()
    # Another thread may allocate memory: it prepares batches.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        outputs = function()
    except BaseException as error:
        with suppress(RuntimeError):
            graph.capture_end()
        if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, Exception):
            raise
        # The device's random generator may be unusable now, so continuing would only fail elsewhere.
        raise RuntimeError(FAILED.format(error)) from error
    finally:
        torch.clear_autocast_cache()
    try:
        graph.capture_end()
    except RuntimeError as error:
        kind = torch.OutOfMemoryError if "out of memory" in str(error) else RuntimeError
        raise kind(FAILED.format(error)) from error
    _clear_workspaces()
    return graph, outputs


def _clear_workspaces() -> None:
    """Make cuBLAS allocate new workspaces: a graph needs its own, which nothing frees while the graph lives.

    From torch 2.12 on, the end of one graph frees the workspace of its stream. PyTorch's own compiler also clears them.
    """
    torch._C._cuda_clearCublasWorkspaces()


class _Lease:
    """A graph that is busy until its backward pass has run or cannot run any more."""

    def __init__(self, idle: list[_Graph]):
        self.idle, self.graph = idle, idle.pop()
        self.returned = False

    def give_back(self) -> None:
        if not self.returned:
            self.returned = True
            self.idle.append(self.graph)

    __del__ = give_back


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lease: _Lease, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.lease = lease
        ctx.save_for_backward(*tensors[count:])
        return lease.graph(tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lease, _ = ctx.lease, ctx.saved_tensors  # PyTorch raises if saved weights have changed
        if lease.returned:
            raise RuntimeError("this gradient was computed already; run the forward pass again")
        found = lease.graph.backward(grads)
        lease.give_back()
        return None, None, *found
