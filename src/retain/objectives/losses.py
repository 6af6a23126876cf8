"""The losses, Eq. 2–4 of the paper, as plain functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from retain.config import IGNORE
from retain.errors import UserError
from retain.model.fast import fast
from retain.model.given import NAMES, READ, Labels, TopK, as_guide, expand
from retain.model.likelihood import Likelihood, is_asked
from retain.model.teacher import Readout
from retain.ops.cross_entropy import cross_entropies
from retain.ops.elementwise import at_least_float32


def where_asked(targets: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Select the targets that count, (B, T) → (N,), and the entries of `others` at their places, (B, T, …) → (N, …).

    Targets of numbers have one more axis. Such a target counts if any of its values is present.

    A readout can cost more than f, and most memories of a memory task have no target. The host needs the number of
    targets, so it waits for an accelerator.

    Raises:
        UserError: If there are more or fewer targets than memories.
    """
    for part in others:
        if part.shape[:2] != targets.shape[:2]:
            raise UserError(
                f"targets: {tuple(targets.shape)} for {tuple(part.shape[:2])} memories; give (B, T + 1), one for "
                "m_0 and one after every token"
            )
    flat = [part.flatten(0, 1) for part in (targets, *others)]
    counted = is_asked(flat[0]).nonzero()[:, 0]
    return tuple(flat if len(counted) == len(flat[0]) else [part.index_select(0, counted) for part in flat])


def predictive_loss(
    logits: Tensor, targets: Tensor, count: Tensor | None = None, likelihood: Likelihood | None = None
) -> Tensor:
    """Compute the mean cross-entropy in nats (Eq. 2), 0 if no target counts.

    Under `torch.distributed`, the mean of the results over processes is the mean over the targets of all processes.

    Args:
        logits: (..., V).
        targets: (...), where IGNORE never counts. Targets of numbers are (..., 2 · C), where NaN never counts.
        count: Divide by this many targets instead (see `counted_targets`), if these logits are one part of a larger
            mean.
        likelihood: Scores targets of numbers. Each value is one target.
    """
    if likelihood is not None:
        total = likelihood.loss(at_least_float32(logits), targets).sum()
        return total / (counted_targets(targets) if count is None else count)
    asked = targets.flatten()
    (losses,) = cross_entropies(logits.flatten(0, -2), asked.clamp_min(0))
    return losses.masked_fill(asked == IGNORE, 0).sum() / (counted_targets(targets) if count is None else count)


def counted_targets(targets: Tensor) -> Tensor:
    """Count the targets that are not IGNORE, or the numbers that are not missing, as `counted` does."""
    if targets.is_floating_point():
        return counted(~targets[..., : targets.shape[-1] // 2].isnan())
    return counted(targets != IGNORE)


def real_tokens(batch: dict[str, Tensor]) -> Tensor | None:
    """Return which tokens (B, T) of a batch are real, not padding; None if all are and there is one process.

    One process may have padding while another has none. If one counts its real tokens, all must count theirs.
    """
    real = batch.get("real")
    if real is None and dist.is_initialized() and dist.get_world_size() > 1:
        tokens = batch["tokens"]
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return real


def kept_labels(batch: dict[str, Tensor]) -> Labels | None:
    """Return a batch's labels for a given trunk, or inputs of the trunk; None if the trunk reads the tokens alone."""
    return {name: batch[name] for name in (*NAMES, *READ) if name in batch} or None


def counted(which: Tensor) -> Tensor:
    """Count the True values, as the mean over processes; at least 1e-9, so that a sum over none gives 0."""
    count = which.sum().float()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp_min(1e-9)


def readout_losses(
    logits: Tensor, guide: Tensor | TopK, targets: Tensor, count: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute `predictive_loss`, and the mean cross-entropy in nats against the teacher (Hinton et al. 2015).

    Both are means over the targets (N,) that count. logits are (N, V), and the guide is the teacher's predictions (N,)
    or its logits (N, V), which no gradient reaches. If `temperature` is not 1, the second loss is
    `softened_cross_entropy`.
    """
    asked, count = targets != IGNORE, counted_targets(targets) if count is None else count
    if isinstance(guide, TopK) and temperature == 1:
        losses = cross_entropies(logits, targets.clamp_min(0), as_guide(guide, logits.shape[-1]))
        predictive, distilled = (loss.masked_fill(~asked, 0).sum() / count for loss in losses)
        return predictive, distilled
    log_probabilities = at_least_float32(logits).log_softmax(-1)  # once, for both
    theirs = expand(guide, logits.shape[-1]) if isinstance(guide, TopK) else at_least_float32(guide.detach())
    predictive = F.nll_loss(log_probabilities, targets, ignore_index=IGNORE, reduction="sum")
    if temperature == 1:
        cross_entropy = -(theirs.softmax(-1) * log_probabilities).sum(-1)
    else:
        cross_entropy = softened_cross_entropy(log_probabilities, theirs, temperature)
    return predictive / count, (cross_entropy * asked).sum() / count


def softened_cross_entropy(log_probabilities: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute τ² times the cross-entropy against the teacher, both softened by temperature τ (Hinton et al. 2015).

    Only the teacher's largest probabilities are known. All other tokens share the remaining mass evenly, which is a
    guess. Softening thousands of small equal probabilities would give them nearly all of the mass. So all other tokens
    are one outcome here, with the remaining mass, for the teacher and for the RNN. Only the probabilities of these
    outcomes are softened. Among the other tokens the cross-entropy has no temperature. The loss is therefore minimal if
    the RNN predicts as the teacher does, at any temperature. At τ = 1 it is the plain cross-entropy.

    Args:
        log_probabilities: Those of the RNN, (N, V).
        teacher_logits: (N, V). The tokens that share the remaining mass have the smallest logits, all equal.
        temperature: τ, above 0.

    Returns:
        (N,), in nats.
    """
    guide = teacher_logits.log_softmax(-1)
    others = guide <= guide.amin(-1, keepdim=True)  # (N, V)
    low = torch.finfo(guide.dtype).min / 4  # not infinity, whose gradients are undefined

    def outcomes(values: Tensor) -> tuple[Tensor, Tensor]:
        """Return softened log-probabilities, last that of all others together, (N, V + 1); then the last unsoftened."""
        rest = values.masked_fill(~others, low).logsumexp(-1, keepdim=True)
        known = values.masked_fill(others, low)
        return (torch.cat([known, rest], -1) / temperature).log_softmax(-1), rest

    (target, rest), (mine, my_rest) = outcomes(guide), outcomes(log_probabilities)
    softened = -(target.exp() * mine).sum(-1) * temperature**2
    among = (log_probabilities - my_rest).masked_fill(~others, 0).sum(-1) / others.sum(-1)
    return softened - rest[:, 0].exp() * among


def answer_losses(
    readout: Readout,
    memory: Tensor,
    targets: Tensor,
    *,
    guide: Tensor | TopK | None = None,
    decoder: Readout | None = None,
    count: Tensor | None = None,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """Compute the losses of the readout's predictions: "loss_readout" and, with a guide, "loss_distill".

    Args:
        readout: The readout to score.
        memory: Its input, (B, T, K, D).
        targets: (B, T), where IGNORE never counts, or (B, T, 2 · C) of numbers, where NaN never counts.
        guide: The teacher's logits (B, T, V) or predictions (B, T), or with `decoder` its memory (B, T, K, D).
        decoder: Computes the teacher's logits from its memory.
        count: As in `predictive_loss`.
        temperature: As in `readout_losses`.
    """
    if guide is None:
        answers, asked = where_asked(targets, memory)
        return {"loss_readout": predictive_loss(fast(readout)(asked), answers, count, readout.likelihood)}
    if isinstance(guide, TopK):
        answers, asked, *kept = where_asked(targets, memory, *vars(guide).values())
        guide = TopK(*kept)
    else:
        answers, asked, guide = where_asked(targets, memory, guide)
    if decoder is not None:
        with torch.no_grad():
            guide = fast(decoder)(guide)
    predictive, distilled = readout_losses(fast(readout)(asked), guide, answers, count, temperature)
    return {"loss_readout": predictive, "loss_distill": distilled}


def dynamics_loss(predicted: Tensor, memory: Tensor, real: Tensor | None = None) -> Tensor:
    """Compute the mean squared error between f(m_t, x_t) and m_{t+1} (Eq. 3).

    Args:
        predicted: f(m_t, x_t), (..., K, D).
        memory: m_{t+1}, (..., K, D).
        real: (...) bool, False where x_t is padding. The mean is over the other transitions only, and over processes as
            in `predictive_loss`.
    """
    predicted, memory = at_least_float32(predicted), at_least_float32(memory)
    if real is None:
        return F.mse_loss(predicted, memory)
    apart = (predicted - memory).masked_fill(~real[..., None, None], 0)
    return apart.square().sum() / (counted(real) * memory.shape[-2:].numel())


def variance_across(memory: Tensor, real: Tensor | None) -> Tensor:
    """Return the mean variance of memory (B, T, K, D) across sequences. real (B, T) is as in `dynamics_loss`."""
    if real is None:
        return (memory - memory.mean(0)).square().mean()  # much faster than .var(0)
    left_out = ~real[..., None, None]
    mean = memory.masked_fill(left_out, 0).sum(0) / real.sum(0).clamp_min(1)[:, None, None]
    total = (memory - mean).masked_fill(left_out, 0).square().sum()
    return total / (real.sum().clamp_min(1) * memory.shape[-2:].numel())


def uniformity_loss(memory: Tensor, sample: int = 512, which: Tensor | None = None) -> Tensor:
    """Compute log mean exp(-2 ‖u_a − u_b‖²) over pairs of L2-normalised memory tokens u (Eq. 4; Wang & Isola 2020).

    The loss lies in [-8, 0]. At 0 the memories have collapsed.

    Args:
        memory: (..., K, D).
        sample: How many memory tokens are drawn at most, without replacement.
        which: (...) bool, True for memories that count.
    """
    tokens = at_least_float32(memory).flatten(0, -2)
    counts = None if which is None else which.flatten().repeat_interleave(memory.shape[-2])
    if len(tokens) > sample:
        # Without replacement: a token drawn twice would be its own neighbour.
        if counts is None:
            drawn = torch.randperm(len(tokens), device=tokens.device)[:sample]
        else:  # those that count come first
            drawn = (torch.rand(len(tokens), device=tokens.device) - counts.float()).argsort()[:sample]
            counts = counts[drawn]
        tokens = tokens[drawn]
    u = F.normalize(tokens, dim=-1)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    # On the unit sphere ‖a − b‖² = 2 − 2 a·b, so one product gives every pair, twice. Keeping both copies is faster
    # than selecting one.
    exponent = 4 * at_least_float32(u @ u.T) - 4
    if counts is not None:
        pairs = counts & counts[:, None] & ~itself
        count = pairs.sum().to(u.dtype)
        none = count == 0  # then the loss is 0
        return ((exponent.exp() * pairs).sum() + none).log() - (count + none).log()
    exponent = exponent.masked_fill(itself, -math.inf)
    return torch.logsumexp(exponent.flatten(), 0) - math.log(len(u) * (len(u) - 1))
