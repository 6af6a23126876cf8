"""Faster versions of a model's parts: compiled by torch.compile, or replayed from CUDA graphs."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from retain.model.cells import has_own_rollout
from retain.model.fast import Parts
from retain.model.rnn import RNN
from retain.model.teacher import Readout, Teacher
from retain.ops.graphs import Replayed

log = logging.getLogger("retain")


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has a compiler here. If not, a warning is logged."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        log.warning("compile: no C++ compiler on the PATH; going on without torch.compile")
        return False
    return True


def fast_parts(rnn: RNN, teacher: Teacher, compile: bool = False) -> Parts:
    """Make faster versions of modules for `using`: compiled, if asked for and possible, and on a GPU replayed."""
    parts = compiled_parts(rnn, teacher) if compile and can_compile(rnn.m_0.device) else {}
    return parts | replayed_parts(rnn, teacher, parts) if rnn.m_0.is_cuda else parts


def compiled_parts(rnn: RNN, teacher: Teacher) -> Parts:
    """Compile encoder, decoder, readout and, if it runs step by step, the cell, each in as few graphs as possible."""
    encode, cell = teacher.encoder.forward, rnn.cell
    encode_fast = compiled(encode, "encoder")
    parts: Parts = {
        # The memory of no tokens is computed a few times a run, which does not repay compiling.
        teacher.encoder: lambda tokens, *args: (encode_fast if tokens.shape[1] else encode)(tokens, *args),
        teacher.decoder: _where_trained(teacher.decoder.forward, "decoder"),
        rnn.readout: _where_trained(rnn.readout.forward, "readout"),
    }
    if not has_own_rollout(cell) or rnn.normalise:  # else its hand-written rollout runs
        parts[cell] = _in_two_graphs(compiled(cell.forward, "cell"))
    return parts


def _where_trained(forward: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Compile `forward` for calls with a gradient. Validation alone would not repay the time that compiling takes."""
    fast = compiled(forward, name)
    return lambda *args: (fast if torch.is_grad_enabled() else forward)(*args)


def _in_two_graphs(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the compiled step of a cell so that it has only two graphs, one with a gradient and one without.

    A batch of one memory has two more. By default the compiler makes another graph for every number of memories, for
    views of a longer sequence, and for memories with a gradient and without. Each takes 5 to 13 seconds. After eight
    graphs the compiler gives up.
    """
    from torch._dynamo import maybe_mark_dynamic

    def call(memory: Tensor, inputs: Tensor, **settings: bool) -> Tensor:
        if torch.is_grad_enabled() and not memory.requires_grad:
            memory = memory.detach().requires_grad_()
        own = [x.clone(memory_format=torch.contiguous_format) for x in (memory, inputs)]
        for x in own:
            maybe_mark_dynamic(x, 0)
        return step(*own, **settings)

    return call


def replayed_parts(rnn: RNN, teacher: Teacher, parts: Parts) -> Parts:
    """Replay encoder, decoder and readout from CUDA graphs, in their versions from `parts` if there are any."""
    encode, *others = (parts.get(part, part.forward) for part in (teacher.encoder, teacher.decoder, rnn.readout))

    def encoded(tokens: Tensor, steps: Tensor, logits: bool) -> tuple[Tensor, ...]:
        return tuple(x for x in encode(tokens, steps, logits) if x is not None)

    replayed = Replayed(encoded, teacher.encoder)

    def encoder(tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, Tensor | None]:
        memory, *trunk_logits = replayed(tokens, steps, logits)
        return memory, trunk_logits[0] if trunk_logits else None

    readouts = zip((teacher.decoder, rnn.readout), others, strict=True)
    return {teacher.encoder: encoder} | {part: _replayed(part, forward) for part, forward in readouts}


def _replayed(part: Readout, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    replayed = Replayed(lambda *args: (forward(*args),), part)
    return lambda *args: replayed(*args)[0]


Options = dict[str, str | int | bool | Callable[..., Any]]

STEP_ON_CPU: Options = {
    "freezing": True,  # weights are constants, laid out for the products
    "cpp_wrapper": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
"""Compiler options for a step of few streams on a CPU. The step is a hundred small calls, and most of its time is the
overhead of a call. So small products get autotuned kernels, and nothing between them goes through Python."""

WITH_GRADIENTS: Options = {
    "force_non_lazy_backward_lowering": True,  # with the forward pass, where a failure is caught
    "autograd_cache_allow_custom_autograd_functions": True,  # ours depend only on their arguments
}
"""Compiler options for a function with its gradient."""


def _known(settings: Options, config: Any) -> Options:
    """Return those settings that this version of the compiler knows."""
    return {key: value for key, value in settings.items() if hasattr(config, key)}


@contextmanager
def _settings(config: Any, settings: Options) -> Iterator[None]:
    """Change the compiler's settings inside, and restore them afterwards."""
    from torch.utils import cpp_extension

    path = cpp_extension.TORCH_LIB_PATH
    cpp_extension.TORCH_LIB_PATH = shlex.quote(path)  # else the C++ compiler gets a path with a space as two arguments
    try:
        with config.patch(settings):
            yield
    finally:
        cpp_extension.TORCH_LIB_PATH = path


def compiled(function: Callable[..., Any], name: str, options: Options | None = None) -> Callable[..., Any]:
    """Compile a function by torch.compile. After a failure it runs uncompiled, with a warning about `name`.

    Compiler `options` are for a function without gradients that is compiled at its first call and never again. Options
    that this version of the compiler does not know are left out.
    """
    import torch._functorch.config
    import torch._inductor.config

    options = _known(options or {}, torch._inductor.config)
    with_gradients = _known(WITH_GRADIENTS, torch._functorch.config)
    fast: Callable[..., Any] | None = torch.compile(function, options=options or None)
    is_first = True

    def settings() -> AbstractContextManager[None]:
        # Options of torch.compile alone come too late for `freezing`: tracing decides what is a constant, by the
        # settings in force.
        if options:
            return _settings(torch._inductor.config, options) if is_first else nullcontext()
        return _settings(torch._functorch.config, with_gradients)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast, is_first
        if fast is None:
            return function(*args, **kwargs)
        try:
            with settings():
                is_first = False
                return fast(*args, **kwargs)
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
            log.warning("compile: the %s failed to compile (%s); going on without torch.compile", name, reason)
            fast = None
            return function(*args, **kwargs)

    return call
