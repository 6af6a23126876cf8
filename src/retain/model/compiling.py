"""What a model's parts run as: compiled by torch.compile, or replayed from CUDA graphs."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.model.cells import rolls
from retain.model.fast import Parts
from retain.model.rnn import RNN
from retain.model.teacher import Readout, Teacher
from retain.ops.graphs import Replayed

log = logging.getLogger("retain")


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs here; where it has not, a note goes to the log."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        log.warning("compile: no C++ compiler on the PATH; going on without torch.compile")
        return False
    return True


def fast_parts(rnn: RNN, teacher: Teacher, compile: bool = False) -> Parts:
    """Faster versions of the modules that are run again and again: compiled, if one asks and there is a compiler, and
    on a GPU replayed from CUDA graphs. They are there for who runs `using` them."""
    parts = compiled_parts(rnn, teacher) if compile and can_compile(rnn.m_0.device) else {}
    return parts | replayed_parts(rnn, teacher, parts) if rnn.m_0.is_cuda else parts


def compiled_parts(rnn: RNN, teacher: Teacher) -> Parts:
    """Each in as few graphs as will do."""
    encode, cell = teacher.encoder.forward, rnn.cell
    encode_fast = compiled(encode, "encoder")
    parts: Parts = {
        # The memory of nothing is asked for a few times in a run.
        teacher.encoder: lambda tokens, *args: (encode_fast if tokens.shape[1] else encode)(tokens, *args),
        teacher.decoder: _where_trained(teacher.decoder.forward, "decoder"),
        rnn.readout: _where_trained(rnn.readout.forward, "readout"),
    }
    if not rolls(cell) or rnn.normalise:  # else its rollout is what runs, which is written out by hand
        parts[cell] = _in_two_graphs(compiled(cell.forward, "cell"))
    return parts


def _where_trained(forward: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """`forward` compiled for its gradient's sake; validation alone would not make up for what compiling takes."""
    fast = compiled(forward, name)
    return lambda *args: (fast if torch.is_grad_enabled() else forward)(*args)


def _in_two_graphs(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled step of a cell, such that it has two graphs, with gradient and without (and two more for one memory
    alone, where that is asked for).

    Left to itself the compiler makes another for every number of memories, for views of a longer sequence, and for
    memories that have a gradient and that have none, each in 5 to 13 seconds, and after eight it gives up.
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
    """Encoder, decoder and readout replayed from CUDA graphs, of their versions in `parts` where they have one."""
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
    from torch.utils import cpp_extension

    options = {key: value for key, value in (options or {}).items() if hasattr(torch._inductor.config, key)} or None
    wanted = {
        "force_non_lazy_backward_lowering": True,  # with the forward: a failure must come here, not within a step
        "autograd_cache_allow_custom_autograd_functions": True,  # ours depend on nothing but what they are given
    }
    for name_of_setting, value in wanted.items():
        if hasattr(torch._functorch.config, name_of_setting):
            setattr(torch._functorch.config, name_of_setting, value)
    # Left as it is, a path with a space is two arguments of the C++ compiler.
    cpp_extension.TORCH_LIB_PATH = shlex.quote(str(Path(torch.__file__).parent / "lib"))
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
