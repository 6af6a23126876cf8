"""Scores of the RNN alone, from m_0, over a whole split: likelihood, accuracy, and drift from its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.data import Data
from retain.errors import UserError
from retain.inference.memory_use import MemoryUse
from retain.model.fast import fast
from retain.model.likelihood import Likelihood
from retain.model.memory_norm import counted_memories
from retain.model.modes import evaluating
from retain.model.rnn import RNN
from retain.model.teacher import Readout, Teacher
from retain.objectives.losses import kept_labels, where_asked

LOGITS = 2**26
"""The most numbers in the logits (B, T + 1, V), and in the memories (B, T + 1, K, D), of one batch."""

MEMORIES = 2**15
"""The most memories that a readout reads at once, or fewer if their logits would exceed LOGITS. If a memory has many
tokens, all memories of a validation would fill a GPU. A GPU's kernels take no more than twice this number."""

DRIFTS = (
    *("drift", "relative_drift", "drift_last", "relative_drift_last"),
    *("drift_by_position", "relative_drift_by_position"),
)


def batch_for(data: Data, rnn: RNN) -> int:
    """Choose how many sequences are read at once: fewer if the vocabulary or the memories are large."""
    return max(1, min(256, LOGITS // ((data.seq_len + 1) * max(data.vocab_size, rnn.m_0.numel()))))


class _Score:
    """Cross-entropy and hits at each position, summed over batches."""

    def __init__(self, positions: int):
        self.nats, self.hits, self.count = self.sums = torch.zeros(3, positions, dtype=torch.float64)
        self.numbers = False

    def add(self, readout: Readout, memory: Tensor, answers: Tensor, positions: Tensor) -> None:
        """Score a readout of memories (N, K, D), a part at a time, with answers (N,) at positions (N,)."""
        at_once = max(1, min(MEMORIES, LOGITS // readout.head.out_features))
        for part, asked, where in zip(*(torch.split(x, at_once) for x in (memory, answers, positions)), strict=True):
            self.count_up(fast(readout)(part), asked, where, readout.likelihood)

    def count_up(
        self, logits: Tensor, answers: Tensor, positions: Tensor, likelihood: Likelihood | None = None
    ) -> None:
        """Score logits (N, V) with answers (N,); with a likelihood, logits of numbers with answers (N, 2 · C)."""
        if likelihood is None:
            nats = F.cross_entropy(logits.float(), answers, reduction="none")
            hits = logits.argmax(-1) == answers
            count = torch.ones_like(hits)
        else:  # each value counts
            self.numbers = True
            nats = likelihood.of_steps(logits.float(), answers)
            count = (~answers.chunk(2, -1)[0].isnan()).sum(1)
            hits = torch.zeros_like(count)
        found = torch.stack([x.cpu().double() for x in (nats, hits, count)])
        self.sums.index_add_(1, positions.cpu(), found)

    def results(self) -> dict[str, Any]:
        count = self.count.sum().clamp_min(1)
        return {
            "bits_per_token": float(self.nats.sum() / count) / math.log(2),
            "accuracy": None if self.numbers else float(self.hits.sum() / count),
            "bits_by_position": _or_none(self.nats / self.count / math.log(2)),
        }


class _Spread:
    """Variance of memories (B, T + 1, K, D) over the sequences that count, in batches (Chan et al. 1979)."""

    # The mean of squares minus the squared mean would lose precision if the mean is far from 0.

    def __init__(self) -> None:
        self.count = self.mean = self.squares = torch.zeros((), dtype=torch.float64)
        """`squares` is the sum of squared distances from the mean."""

    def add(self, memory: Tensor, which: Tensor) -> None:
        """Add a batch; `which` (B, T + 1) bool marks the memories that count."""
        left_out, count = ~which[..., None, None], which.sum(0)[:, None, None]
        mean = memory.masked_fill(left_out, 0).sum(0) / count.clamp_min(1)
        squares = (memory - mean).masked_fill(left_out, 0).square().sum(0).cpu().double()
        both, apart = self.count + count.cpu(), mean.cpu().double() - self.mean
        share = count.cpu() / both.clamp_min(1)
        self.squares = self.squares + squares + apart.square() * self.count * share
        self.mean, self.count = self.mean + apart * share, both

    def variance(self) -> Tensor:
        """Return the variance (T + 1, K, D)."""
        return self.squares / self.count.clamp_min(1)


class _Drift:
    """Squared difference of the RNN's memory from the teacher's by position, summed over batches."""

    def __init__(self) -> None:
        self.squared = self.counts = torch.zeros((), dtype=torch.float64)
        self.spread = _Spread()

    def add(self, memory: Tensor, labels: Tensor, which: Tensor) -> None:
        """Add a batch of memories (B, T + 1, K, D); `which` (B, T + 1) bool marks those that count."""
        precise = torch.float32 if memory.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        apart, labels = (memory - labels).to(precise), labels.to(precise)
        self.squared = self.squared + apart.square().mean((2, 3)).masked_fill(~which, 0).sum(0).cpu()  # (T + 1,)
        self.counts = self.counts + which.sum(0).cpu()
        self.spread.add(labels, which)

    def results(self) -> dict[str, Any]:
        counts = self.counts
        if not counts.dim():  # there is no teacher
            return dict.fromkeys(DRIFTS)
        drift, variance = self.squared / counts.clamp_min(1), self.spread.variance().mean((1, 2))  # (T + 1,)
        weight = counts[1:] / counts[1:].mean()  # 1 where nothing is padded
        mean_drift, mean_variance = (weight * drift[1:]).mean(), (weight * variance[1:]).mean()
        drift = drift.where(counts > 0, torch.nan)
        # All sequences share m_0, so its variance is rounding error and a ratio to it means nothing.
        relative = torch.where(variance > 1e-8, drift / variance, torch.nan)
        relative[0] = torch.nan
        ratio = finite(float(mean_drift / mean_variance)) if mean_variance > 1e-8 else None
        last = finite(float(drift[-1])), finite(float(relative[-1]))
        found = (finite(float(mean_drift)), ratio, *last, _or_none(drift), _or_none(relative))
        return dict(zip(DRIFTS, found, strict=True))


def _or_none(values: Tensor) -> list[float | None]:
    return [finite(value) for value in values.tolist()]


@torch.no_grad()
def evaluate(
    rnn: RNN, teacher: Teacher | None, batches: Iterable[dict[str, Tensor]], *, given: bool = False
) -> dict[str, Any]:
    """Run the RNN from m_0 over every batch and compare it with its teacher.

    Args:
        rnn: The RNN to score.
        teacher: The teacher to compare with. Without one, the teacher's scores and drift are null.
        batches: See `retain.data.batches.Batch`. Drift is measured on the memories after tokens that are not padding
            ("real"). If a batch has "fresh" (B,) bool, sequences that are not fresh start from the memory after all
            T + 1 tokens of the same row in the batch before, instead of m_0.
        given: Whether to score the given trunk of the teacher, a language model, by itself, too.

    Returns:
        JSON values. `bits_per_token` and `accuracy` are over all targets that are not IGNORE. If steps are numbers,
        each value is a target, bits are those of a density in the value's own units, and `accuracy` is null. `drift` is
        the mean squared difference of the RNN's memory from the teacher's over t = 1 … T. `relative_drift` is its ratio
        to the variance of the teacher's memory across sequences. Both are also given at the last position and by
        position (t = 0 … T; null if undefined, as when no sequence is that long). `tokens` counts targets. `seconds`
        and `tokens_per_second` measure the RNN's own reading and the scoring of its predictions. With `given` there
        are also `model_bits_per_token` and so on. An fsq memory adds the results of `MemoryUse.results`.

    Raises:
        UserError: There is no batch.
    """
    device = rnn.m_0.device
    own: _Score | None = None
    before: tuple[Tensor, Tensor] | None = None  # the last memories (B, K, D), and the last tokens, not yet read
    drift = _Drift()
    use = MemoryUse(rnn.levels) if rnn.norm == "fsq" else None
    sequences, seconds, read = 0, 0.0, 0
    with evaluating(rnn, teacher):
        for batch in batches:
            tokens, targets = batch["tokens"].to(device), batch["targets"].to(device)
            if own is None:
                own, theirs, model = (_Score(targets.shape[1]) for _ in range(3))
                positions = torch.arange(targets.shape[1], device=device)
            start = time.perf_counter()
            begin = rnn.init_memory(len(tokens))
            if "fresh" in batch and before is not None:
                carried = rnn.update(*(part[: len(tokens)] for part in before))
                begin = torch.where(batch["fresh"].to(device)[:, None, None], begin, carried)
            memory = torch.cat([begin[:, None], rnn.rollout(tokens, begin)], 1)  # (B, T + 1, K, D)
            before = memory[:, -1], targets[:, -1].clamp_min(0)
            answers, asked, at = where_asked(targets, memory, positions.expand(targets.shape[:2]))
            own.add(rnn.readout, asked, answers, at)
            seconds += time.perf_counter() - start
            read += tokens.shape[:2].numel()
            sequences += len(tokens)
            all_real = torch.ones(targets.shape[:2], dtype=torch.bool, device=device)
            which = counted_memories(batch["real"].to(device)) if "real" in batch else all_real
            if use is not None:
                use.add(memory, which)
            if teacher is not None:
                kept = kept_labels(batch)
                kept = None if kept is None else {name: x.to(device) for name, x in kept.items()}
                if given:
                    labels, logits = teacher.encode_with_trunk(tokens, kept=kept, whole=True)
                    assert isinstance(logits, torch.Tensor)
                    model.count_up(where_asked(targets, logits)[1], answers, at)
                else:
                    labels = teacher.encode(tokens, kept=kept)
                theirs.add(teacher.decoder, where_asked(targets, labels)[1], answers, at)
                drift.add(memory, labels, which)
    if own is None:
        raise UserError("evaluate: the split holds no sequence")
    scores = own.results()
    taught = dict.fromkeys(scores) if teacher is None else theirs.results()
    found = {
        **scores,
        **{f"teacher_{key}": value for key, value in taught.items()},
        **({f"model_{key}": value for key, value in model.results().items()} if given else {}),
        **drift.results(),
        **({} if use is None else use.results()),
        "tokens": int(own.count.sum()),
        "sequences": sequences,
        "seconds": seconds,
        "tokens_per_second": read / max(seconds, 1e-9),
    }
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("by_position")))  # long lists come last


def finite(value: float | None) -> float | None:
    """Replace NaN and infinity, which JSON lacks, by None."""
    return value if value is not None and math.isfinite(value) else None


LEFT = "the RNN has left its teacher, and predicts no worse"


def has_left(scores: dict[str, Any]) -> bool:
    """Whether the RNN's memory no longer resembles the teacher's although its predictions are as good.

    An RNN trained on the targets may leave its teacher (docs/following.md). Drift is then no sign of a bad RNN.
    """
    drift, own, theirs = (scores[key] for key in ("relative_drift", "bits_per_token", "teacher_bits_per_token"))
    return None not in (drift, own, theirs) and drift > 0.9 and own <= theirs
