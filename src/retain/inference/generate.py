"""Sampling from the RNN alone, token by token, at constant memory and constant time per token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from retain.errors import UserError
from retain.model.modes import evaluating
from retain.model.rnn import RNN

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Reads tokens (B,) into memory (B, K, D) → logits (B, V), memory."""

READ_AT_ONCE = 2**22
"""The most numbers in the memories held while a part of a prompt is read."""


def check_sampling(length: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError naming a setting that is out of range."""
    if length < 0:
        raise UserError(f"length: {length} must not be negative")
    if not math.isfinite(temperature) or temperature < 0:
        raise UserError(f"temperature: {temperature} must be 0 (the likeliest token) or above")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k: {top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p: {top_p} must lie in 0 … 1, above 0")


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row: logits (B, V) → (B,).

    `temperature` 0 takes the likeliest; `top_k` keeps the k likeliest; `top_p` keeps the fewest tokens whose
    probability reaches p (Holtzman et al. 2020). Raises UserError if logits are not finite (a GPU raises RuntimeError).
    """
    if temperature == 0:
        return logits.argmax(-1)
    # The largest logit becomes 0, so that a temperature close to 0 does not make it infinite.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    if top_k is not None and top_k < logits.shape[-1]:
        values, kept = logits.topk(top_k)  # never more than k, even of equal logits
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept, values)
    probability = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probability = torch.zeros_like(probability).scatter(-1, order, ordered.masked_fill(beyond, 0))
    if probability.device.type != "cpu":
        return torch.multinomial(probability, 1, generator=generator)[:, 0]
    # One random number per row chooses the token. `multinomial` draws one for every token of the vocabulary and is 10
    # to 40 times slower on a CPU. float64 keeps the small parts of the sum over a large vocabulary.
    upto = probability.cumsum(-1, dtype=torch.float64)
    if not upto[:, -1].isfinite().all():
        raise UserError("logits: they are not finite, so no token can be drawn")
    drawn = torch.rand(len(upto), 1, dtype=upto.dtype, device=upto.device, generator=generator) * upto[:, -1:]
    return torch.searchsorted(upto, drawn, right=True)[:, 0]


def generate(
    rnn: RNN,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step | None = None,
    memory: Tensor | None = None,
) -> Iterator[Tensor]:
    """Read a prompt, then sample tokens, yielding each (B,) as soon as it is drawn.

    Only one memory is kept, whatever the length. The RNN is in evaluation mode while it computes, and in its former
    mode between tokens.

    Args:
        rnn: Reads the prompt and its own tokens.
        prompt: (B, P) tokens.
        length: How many tokens are sampled.
        temperature: See `sample`, as for `top_k` and `top_p`.
        top_k: The likeliest tokens that are kept.
        top_p: The probability that is kept.
        seed: The same seed gives the same tokens.
        step: Replaces `rnn.step`, as `fast_step` does.
        memory: (B, K, D) to start from instead of m_0, as `rnn.step` returns it. The prompt may then be empty, (B, 0).

    Raises:
        UserError: A setting is out of range, before anything is read; or, later, logits are not finite.
    """
    check_sampling(length, temperature, top_k, top_p)
    if memory is not None and memory.shape != (len(prompt), *rnn.m_0.shape):
        raise UserError(f"memory: {tuple(memory.shape)} does not fit prompt; give {(len(prompt), *rnn.m_0.shape)}")
    step = step or rnn.step
    generator = torch.Generator(rnn.m_0.device).manual_seed(seed)

    def stream(memory: Tensor | None) -> Iterator[Tensor]:
        parts = list(rnn.modules())  # collected once: walking the tree would cost a tenth of every token's time
        # These modes surround the work, not the yields: the caller's own code must not run in them.
        with torch.inference_mode(), evaluating(rnn):
            logits, memory = read_prompt(rnn, prompt, memory)
        token: Tensor | None = None
        for number in range(length):
            mode = evaluating(rnn) if any(part.training for part in parts) else nullcontext()
            with torch.inference_mode(), mode:
                if token is not None:
                    logits, memory = step(token, memory)
                # This check would make the host wait for a GPU, where `sample` fails instead.
                if not logits.is_cuda and not logits.amax(-1).isfinite().all():
                    raise UserError(f"run: the RNN's logits are not finite after {number} tokens of its own")
                token = sample(logits, temperature, top_k, top_p, generator)
            yield token.clone()  # a caller may train on a clone, but not on a tensor of inference mode

    return stream(memory)


def read_prompt(rnn: RNN, prompt: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read a prompt (B, P) from `memory` (B, K, D) or m_0, a part at a time → logits (B, V), memory (B, K, D)."""
    device = rnn.m_0.device
    memory = rnn.init_memory(len(prompt)) if memory is None else memory.to(device)
    at_once = max(1, min(256, READ_AT_ONCE // max(1, memory.numel())))
    for part in torch.split(prompt.to(device), at_once, dim=1) if prompt.shape[1] else ():
        memory = rnn.rollout(part, memory)[:, -1].clone()  # a view would keep the memories of every step
    return rnn.readout(memory).float(), memory
