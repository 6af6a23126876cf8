"""Supervised Memory Training (Eq. 5): teacher and RNN learn together, with no recurrence anywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.config import SMTLoss
from retain.model.delta_cell import DeltaCell
from retain.model.encoders import RegisterEncoder
from retain.model.fast import fast
from retain.model.given import TopK, compress
from retain.model.likelihood import nothing
from retain.model.memory_norm import counted_memories
from retain.model.rnn import RNN, check_alike
from retain.model.store_encoder import StoreEncoder
from retain.model.teacher import Teacher
from retain.objectives.chunks import sum_over_chunks
from retain.objectives.losses import (
    answer_losses,
    counted,
    counted_targets,
    dynamics_loss,
    kept_labels,
    predictive_loss,
    real_tokens,
    uniformity_loss,
    variance_across,
)
from retain.objectives.segments import unroll, window_len

ON_POLICY_STEPS = 8
"""How many steps from the teacher's memory f may be when it starts from a memory of its own."""
SMALLEST_VARIANCE = 1e-4
"""The variance across sequences by which loss_dyn is divided at least: equal sequences have none."""


class SMT(nn.Module):
    """loss_smt = λ_dec·dec + λ_dyn·dyn + λ_unif·unif (+ λ_trunk·trunk + λ_readout·readout + λ_distill·distill).

    f is trained one step at a time, or over windows of `bptt_window` steps. The gradient crosses a whole window, and
    the windows run in parallel. Create this objective when its phase begins: all parameters are unfrozen, and those
    that no loss reaches are frozen. m_0 stays frozen until BPTT or the user unfreezes it. After training, `finish()`
    gives the RNN its m_0.

    Args:
        teacher: The encoder and decoder, trained here.
        rnn: The cell and readout, trained here.
        loss: The weights of the losses, and the choice of transitions to train.
        future_len: F of the TeacherConfig, how many tokens the decoder reads after m_t; 0 is none.
        fresh: Whether the RNN is untrained, so that its readout starts with the decoder's weights, and a delta cell
            with the maps of the store encoder.

    Raises:
        UserError: If the teacher and the RNN differ in memory or vocabulary.

    Examples:
        >>> objective = SMT(teacher, rnn, SMTLoss(lambda_dyn=0.1), future_len=16)
        >>> objective({"tokens": tokens, "targets": targets})["loss"].backward()
    """

    def __init__(self, teacher: Teacher, rnn: RNN, loss: SMTLoss, future_len: int, *, fresh: bool = True):
        super().__init__()
        check_alike(teacher, rnn)
        self.teacher, self.rnn, self.config, self.future_len = teacher, rnn, loss, future_len
        self.train()
        self.requires_grad_(True)
        rnn.m_0.requires_grad_(False)
        rnn.readout.requires_grad_(self.trains_readout)
        trunk = getattr(teacher.encoder, "trunk", None)
        if loss.lambda_trunk == 0 and trunk is not None:
            trunk.head.requires_grad_(False)
            if isinstance(teacher.encoder, RegisterEncoder):  # its registers have their own last norm
                trunk.transformer.norm.requires_grad_(False)
        if teacher.given_trunk is not None and teacher.given_trunk.trained:
            teacher.given_trunk.freeze_unreached(loss.lambda_trunk > 0)
        if loss.lambda_dec == 0:
            teacher.decoder.requires_grad_(False)
            if teacher.given_trunk is not None and not teacher.given_trunk.trained:
                teacher.encoder.requires_grad_(False)  # or the labels would become whatever f predicts
        elif future_len == 0:
            teacher.decoder.embed.requires_grad_(False)
        if fresh or not self.trains_readout:
            copy_readout(teacher, rnn)
        encoder, cell = teacher.encoder, rnn.cell
        if fresh and isinstance(encoder, StoreEncoder) and isinstance(cell, DeltaCell) and not cell.addressed:
            encoder.start(cell, rnn.embed)

    @property
    def trains_readout(self) -> bool:
        """Whether a loss reaches the RNN's readout."""
        return self.config.lambda_readout > 0 or self.config.lambda_distill > 0

    def lambda_dyn(self, progress: float) -> float:
        """Return λ_dyn at `progress` 0 … 1 of the phase: geometric from lambda_dyn to lambda_dyn_end."""
        start, end = self.config.lambda_dyn, self.config.lambda_dyn_end
        return start if end is None else start * (end / start) ** progress

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: "tokens" (B, T) and "targets" (B, T + 1). Optional: "progress", the share of the phase that is over
                (0 … 1, default 0), and "real" (B, T) bool, False where a token is padding. No loss counts the memory
                after a padding token.

        Returns:
            Scalar losses by name. "loss" is their weighted sum, to be minimised.
        """
        tokens, targets, c = batch["tokens"], batch["targets"], self.config
        length = tokens.shape[1]
        count = length if c.steps_per_sequence is None else min(c.steps_per_sequence, length)
        first = int(torch.randint(length - count + 1, ()))
        steps = torch.arange(first, first + count + 1, device=tokens.device)
        real = batch.get("real")
        # (B, S + 1, K, D)
        given = self.teacher.given_trunk
        learns = c.lambda_trunk > 0 and (given is None or given.trained)
        asks_trunk = learns or (given is not None and c.lambda_distill > 0)
        memory, trunk_logits = self.teacher.encode_with_trunk(
            tokens, steps, asks_trunk, real, kept_labels(batch), whole=learns
        )
        losses = {}
        if c.lambda_dec:
            chosen = spread(count + 1, c.decodes_per_sequence, tokens.device)
            future, future_targets = futures(tokens, targets, steps[chosen], min(self.future_len, length))
            logits = fast(self.teacher.decoder)(memory[:, chosen], future if self.future_len else None)
            wanted = future_targets if self.future_len else future_targets[:, :, 0]
            losses["loss_dec"] = predictive_loss(logits, wanted, likelihood=self.teacher.decoder.likelihood)
        if learns and isinstance(trunk_logits, Tensor):
            losses["loss_trunk"] = predictive_loss(trunk_logits, targets, likelihood=self.teacher.decoder.likelihood)
            if given is not None:
                trunk_logits = compress(trunk_logits.detach(), self.teacher.top_k)
        inputs, asked = tokens[:, first : first + count], targets[:, first : first + count + 1]
        own, in_all = on_policy_rows(tokens, c.on_policy), counted_targets(asked) if self.trains_readout else None
        moving = real_tokens(batch)  # which transitions count, (B, S)
        if moving is not None:
            moving = moving[:, first : first + count]
            in_dyn = counted(moving)
        unit: Tensor | float = 1.0  # of loss_dyn
        if c.relative_dyn:
            unit = variance_across(memory[:, 1:], moving).clamp_min(SMALLEST_VARIANCE)
        guide: Tensor | TopK | None = None
        decoder = None
        if c.lambda_distill:
            guide, decoder = (memory, self.teacher.decoder) if trunk_logits is None else (trunk_logits[:, steps], None)

        def follow(labels: Tensor, a: int, b: int) -> dict[str, Tensor]:
            """Return f's and the readout's share of the mean losses, steps a … b - 1; labels (B, b - a + 1, K, D)."""
            window = window_len(c.bptt_window, b - a)
            predicted = unroll(self.rnn, labels[:, :-1], inputs[:, a:b], window, own, ON_POLICY_STEPS)
            if moving is None:
                found = {"loss_dyn": dynamics_loss(predicted, labels[:, 1:]) * ((b - a) / count) / unit}
            else:
                of_chunk = dynamics_loss(predicted, labels[:, 1:], moving[:, a:b])
                found = {"loss_dyn": of_chunk * counted(moving[:, a:b]) / in_dyn / unit}
            if self.trains_readout:
                new = int(a == 0)  # a later chunk's first memory is scored as the last of the chunk before
                at = slice(a + 1 - new, b + 1)
                found |= answer_losses(
                    self.rnn.readout,
                    torch.cat([labels[:, :new].detach(), predicted], 1),
                    asked[:, at],
                    guide=None if guide is None else guide[:, at],
                    decoder=decoder,
                    count=in_all,
                    temperature=self.teacher.temperature,
                )
            return found

        weights = {
            "loss_dec": c.lambda_dec,
            "loss_trunk": c.lambda_trunk,
            "loss_dyn": self.lambda_dyn(float(batch.get("progress", 0.0))),
            "loss_readout": c.lambda_readout,
            "loss_distill": c.lambda_distill,
            "loss_unif": c.lambda_unif,
        }
        of_f: list[Tensor] = []
        in_parts: dict[str, Tensor] = {}
        if c.num_chunks == 1:
            losses |= follow(memory, 0, count)
        else:
            trained = [p for p in self.rnn.parameters() if p.requires_grad]
            total, in_parts = sum_over_chunks(follow, weights, memory, trained, c.num_chunks)
            of_f = [total]
        which = None if real is None else counted_memories(real)[:, first : first + count + 1]
        losses["loss_unif"] = uniformity_loss(memory, which=which)
        loss = torch.stack([weights[name] * loss for name, loss in losses.items()] + of_f).sum()
        return losses | in_parts | {"loss": loss}

    def sequential_steps(self, length: int, progress: float = 0.0) -> int:
        """Return the sequential steps of one optimizer step: encoder, then the decoder or rollout, f and readout."""
        c, encoder = self.config, self.teacher.chain(length)
        count = length if c.steps_per_sequence is None else min(c.steps_per_sequence, length)
        count = -(-count // c.num_chunks)  # chunks do not depend on each other
        again = encoder if self.teacher.recomputes else 0
        steps = window_len(c.bptt_window, count)
        cell = self.rnn.depth * steps
        readout = self.rnn.readout.depth if self.trains_readout else 0
        decoder = self.teacher.decoder.depth if c.lambda_dec else 0
        on_policy = c.on_policy and (steps == 1 or steps < count)
        rollout = min(ON_POLICY_STEPS, count) * self.rnn.depth if on_policy else 0
        return encoder + max(decoder, rollout + cell + readout) + max(decoder, cell + readout) + again + encoder

    @torch.no_grad()
    def finish(self) -> None:
        """Give the RNN its m_0 (K, D), the teacher's memory before any token; copy a readout that was not trained."""
        self.rnn.m_0.copy_(self.teacher.empty_memory())
        if not self.trains_readout:
            copy_readout(self.teacher, self.rnn)


@torch.no_grad()
def copy_readout(teacher: Teacher, rnn: RNN) -> None:
    """Copy the decoder's weights into the RNN's readout: the two differ only in the embedding of the future."""
    rnn.readout.load_state_dict({k: v for k, v in teacher.decoder.state_dict().items() if not k.startswith("embed")})


def on_policy_rows(tokens: Tensor, fraction: float) -> Tensor | None:
    """Return which sequences (n,) of the batch start f from its own memories; None if none does.

    They are evenly spaced, so that the concatenated batches of several processes equal a batch of one process.
    """
    size = len(tokens)
    count = round(fraction * size)
    return (2 * torch.arange(count, device=tokens.device) + 1) * size // (2 * count) if count else None


def spread(count: int, wanted: int | None, device: torch.device) -> Tensor:
    """Return `wanted` of the indices 0 … count - 1, evenly spaced from a random start; None is all of them."""
    if wanted is None or wanted >= count:
        return torch.arange(count, device=device)
    offset = torch.rand(())  # drawn on the host, so that no device has to wait
    return ((torch.arange(wanted, device=device) + offset) * (count / wanted)).long().clamp_max(count - 1)


def futures(tokens: Tensor, targets: Tensor, steps: Tensor, future_len: int) -> tuple[Tensor, Tensor]:
    """Return the decoder's inputs and targets after m_t: x_t … x_{t+F-1} (B, S, F), y_t … y_{t+F} (B, S, F + 1).

    Past the end of the sequence the tokens are 0 and the targets IGNORE, or NaN if they are numbers.
    """
    after = steps[:, None] + torch.arange(future_len + 1, device=tokens.device)  # (S, F + 1)
    length = tokens.shape[1]
    inside, beyond = after[:, :-1] < length, after > length
    if targets.is_floating_point():
        inside, beyond = inside[..., None], beyond[..., None]
    shown = tokens[:, after[:, :-1].clamp_max(length - 1)] * inside
    asked = targets[:, after.clamp_max(length)].masked_fill(beyond, nothing(targets))
    return shown, asked
