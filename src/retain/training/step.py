"""One optimizer step."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from retain.training.batches import Batches
from retain.training.job import Job
from retain.training.losses_log import LossesLog
from retain.training.phases import Phase, cut_part, learning_rate, mix_seed


def take_step(
    job: Job, phase: Phase, batches: Batches, losses: LossesLog, done: float, logged: bool
) -> dict[str, float]:
    """Train on the micro-batches of one step, at `done` (0 … 1) of the phase; return learning rate and mean losses.

    The losses are those of this step if it is `logged` or on a CPU, otherwise those that were fetched last. Raises
    TrainingError if a loss is not finite. Raises ChangedData if the data has changed, before the step changes anything.
    """
    p, accelerator = job.progress, job.accelerator
    lr = learning_rate(phase.config, job.config.optimizer.warmup, done)
    for group in phase.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    names, values, tokens, chain = _backward(job, phase, batches, done)
    norms = _gradient_norms(job) if logged else {}
    largest = job.config.optimizer.max_grad_norm
    norms["gradient_norm"] = accelerator.clip_grad_norm_(phase.wrapped.parameters(), largest)
    values = torch.cat([values, torch.stack([*norms.values()]).detach().float()])
    if accelerator.num_processes > 1 and logged:
        values = accelerator.reduce(values, "mean")
    losses.add([*names, *norms], values, now=logged)
    phase.optimizer.step()
    phase.optimizer.zero_grad()
    p.count_step(tokens * accelerator.num_processes, chain)
    return losses.latest | {"lr": lr}


def _backward(job: Job, phase: Phase, batches: Batches, done: float) -> tuple[list[str], Tensor, int, int]:
    """Compute the gradient; return the losses' names and means, the number of tokens, and the sequential steps."""
    accelerator, config = job.accelerator, phase.config
    parts, tokens, length = [], 0, 0  # the losses stay on the device: reading them would wait for it
    taken = batches.take(config.batch_size)
    for micro, whole in enumerate(taken):
        # All randomness of a step follows from (seed, step), so resuming needs no state of a generator.
        torch.manual_seed(mix_seed(job.config.seed, job.progress.step) + micro)
        part = cut_part(whole, config.seq_len)
        tokens += part["tokens"].shape[:2].numel()
        length = max(length, part["tokens"].shape[1])
        batch = {name: x.to(accelerator.device, non_blocking=True) for name, x in part.items()} | {"progress": done}
        with nullcontext() if micro == len(taken) - 1 else accelerator.no_sync(phase.wrapped):
            losses = phase.wrapped(batch)
            accelerator.backward(losses["loss"] / len(taken))
        parts.append(torch.stack([*losses.values()]).detach().float())
    # Micro-batches do not depend on each other, so the longest alone determines the sequential steps.
    return [*losses], torch.stack(parts).mean(0), tokens, phase.objective.sequential_steps(length, done)


def _gradient_norms(job: Job) -> dict[str, Tensor]:
    """Return the norms of the RNN's and the teacher's gradients, if there are any, before both are clipped together."""
    norms = {}
    for name, model in (("rnn", job.rnn), ("teacher", job.teacher)):
        if gradients := [p.grad for p in model.parameters() if p.grad is not None]:
            norms[f"gradient_norm_{name}"] = nn.utils.get_total_norm(gradients)
    return norms
