"""Measurements of a trained run: by position, gradient flow, the geometry of memory. All return JSON values."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.config import RunConfig
from retain.data import Data, Split, load_data
from retain.data.batches import Ints, evenly_spaced, find_symbols
from retain.data.series import SeriesData
from retain.errors import UserError
from retain.inference.backtest import backtest, score_one_step
from retain.inference.evaluate import batch_for, evaluate
from retain.model.likelihood import is_asked, nothing
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, SMT
from retain.objectives.losses import predictive_loss, uniformity_loss
from retain.runs.run import Run, build
from retain.runs.trunk import for_scoring

SPLIT: Split = "validation"
"""Never the test split, because people choose their next step by the report."""
SEQUENCES = 512
LONGER = 4
"""Quality and drift are also measured on sequences this many times the training length."""
GRADIENT_TOKENS = 200_000
"""About how many positions the decoder reads for the gradient of SMT, with a vocabulary of at most 256."""


def score(run: Run, data: Data, sequences: int = SEQUENCES) -> dict[str, Any]:
    """Score the RNN alone, and its teacher if there is a trained one, on validation sequences of length T."""
    data = for_scoring(run.config, data)
    return evaluate(run.rnn, run.teacher, data.windows(SPLIT, min(128, batch_for(data, run.rnn)), sequences))


def load_longer(config: RunConfig) -> tuple[Data | None, str | None]:
    """Load the same data in sequences LONGER times as long, or say why there are none."""
    if config.data.name == "digits":
        return None, "an image has a fixed number of pixels, so there is nothing beyond the training length"
    try:
        return load_data(config.data.at_length(LONGER * config.data.seq_len)), None
    except UserError as error:
        return None, f"nothing beyond the training length: {error}"


def score_lengths(run: Run, sequences: int = SEQUENCES) -> list[dict[str, Any]]:
    """Score data with the answer at the end: bits and accuracy at T/2, T, 2T and 4T."""
    found, trained = [], run.config.data.seq_len
    for length in (trained // 2, trained, 2 * trained, LONGER * trained):
        try:
            data = load_data(run.config.data.at_length(length))
        except UserError:  # too short for the task
            continue
        scores = score(run, data, min(sequences, 256))
        keep = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy")
        found.append({"length": length} | {key: scores[key] for key in keep})
    return found


def find_settling(scored: dict[str, Any]) -> dict[str, Any] | None:
    """Tell whether relative drift by position levels off: compare the third and the last quarter of t = 1 … T.

    The sum of drift over a quarter is divided by the sum of variances, so that a position with little variance does not
    decide. Drift levels off if the last quarter is at most a tenth above the third. Returns None if there is no drift
    or there are too few positions.
    """
    pairs = zip(scored["drift_by_position"] or [], scored["relative_drift_by_position"] or [], strict=True)
    parts = [(drift, drift / relative) for drift, relative in pairs if drift is not None and relative]
    if len(parts) < 8:
        return None
    quarter = len(parts) // 4
    quarters = parts[-2 * quarter : -quarter], parts[-quarter:]
    before, end = (sum(drift for drift, _ in some) / sum(spread for _, spread in some) for some in quarters)
    return {"levels_off": end <= 1.1 * before + 1e-9, "third_quarter": before, "last_quarter": end}


def _count_decoded(vocab_size: int) -> int:
    """Return how many positions the decoder reads for a gradient, fewer if the vocabulary is large."""
    return GRADIENT_TOKENS * 256 // max(256, vocab_size)


def measure_gradient_flow(run: Run, data: Data) -> dict[str, Any]:
    """Measure the mean norm of the gradient of each sequence's loss at m_t, t = 0 … T, at the start and now.

    `bptt`: cross-entropy of the readout along the unrolled RNN, with gradient through all steps. `bptt_last`: the same
    with the last target alone, which shows how far back the gradient reaches. `smt` (if the run has that phase): Eq. 5
    at the teacher's m_t, with every step and as many futures as GRADIENT_TOKENS allow. "initial" is the run's
    initialisation, built again from its seed (absent if run or teacher started from another model). "trained" is the
    run's model.
    """
    config = run.config
    models: dict[str, tuple[RNN, Teacher | None]] = {"trained": (run.rnn, run.teacher)}
    if config.init_from is None and config.teacher.from_ is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            models = {"initial": build(config, find_symbols(data))} | models
    decoded = (data.seq_len + 1) * (config.teacher.future_len + config.memory.tokens)
    size = max(2, min(16, _count_decoded(data.vocab_size) // decoded))
    batch = next(iter(data.windows(SPLIT, size, size)))
    found: dict[str, Any] = {"sequences": len(batch["tokens"])}
    for when, (rnn, teacher) in models.items():
        taught, progress = teacher if config.has_teacher else None, float(when == "trained")
        found[when] = {
            "bptt": measure_bptt_gradient(rnn, batch),
            "bptt_last": measure_bptt_gradient(rnn, batch, last=True),
            "smt": None if taught is None else measure_smt_gradient(rnn, taught, config, batch, progress),
        }
    return found


def measure_bptt_gradient(rnn: RNN, batch: dict[str, Tensor], *, last: bool = False) -> list[float]:
    """Return ‖∂ loss / ∂ m_t‖ along the unrolled RNN, t = 0 … T; `last`: of each sequence's last target alone."""
    rnn = BPTT(copy.deepcopy(rnn)).rnn
    tokens, targets = batch["tokens"], batch["targets"]
    memories = [rnn.init_memory(len(tokens)).clone()]
    for token in tokens.unbind(1):
        memories.append(rnn.update(memories[-1], token))
    if last:
        count = is_asked(targets).cumsum(1)
        before = count < count[:, -1:]
        targets = targets.masked_fill(before[..., None] if rnn.channels else before, nothing(targets))
    loss = predictive_loss(rnn.readout(torch.stack(memories, 1)), targets, likelihood=rnn.readout.likelihood)
    return _norms(torch.stack(torch.autograd.grad(loss, memories, allow_unused=True, materialize_grads=True), 1))


def measure_smt_gradient(
    rnn: RNN, teacher: Teacher, config: RunConfig, batch: dict[str, Tensor], progress: float
) -> list[float]:
    """Return ‖∂ loss_smt / ∂ m_t‖ at the teacher's memories, t = 0 … T, with one step of f from each."""
    rnn, teacher = copy.deepcopy(rnn), copy.deepcopy(teacher)
    readout = copy.deepcopy(rnn.readout.state_dict())
    count, length = batch["tokens"].shape[:2]
    per_step = config.teacher.future_len + config.memory.tokens
    decodes = max(4, min(length + 1, _count_decoded(rnn.vocab_size) // (per_step * count)))
    everything = dataclasses.replace(
        config.smt, steps_per_sequence=None, decodes_per_sequence=decodes, on_policy=0.0, bptt_window=1
    )
    smt = SMT(teacher, rnn, everything, config.teacher.future_len)
    if progress:
        rnn.readout.load_state_dict(readout)  # the objective overwrote the readout with the decoder's weights
    seen: list[Tensor] = []
    hook = teacher.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = smt(batch | {"progress": progress})["loss"]
    hook.remove()
    return _norms(torch.autograd.grad(loss, seen[0])[0])


def _norms(gradient: Tensor) -> list[float]:
    """Return by t the mean norm of each sequence's gradient, from the gradient (B, T + 1, K, D) of their mean loss."""
    norms: list[float] = (gradient.flatten(2).norm(dim=-1) * len(gradient)).mean(0).tolist()
    return norms


def find_geometry(run: Run, data: Data, plotted: int = 1200) -> dict[str, Any]:
    """Find the geometry of memories: principal components, effective rank, uniformity, and whether they have collapsed.

    `rnn` and `teacher` (null if it was not trained) each have the figures of `measure_spread`. `points` are some
    memories of RNN and teacher in the RNN's first three principal components, with position, last token, and the task's
    hidden state if it is known. Memories of padding are left out, and so is m_0, which all sequences share.
    """
    index = evenly_spaced(data.count(SPLIT), 64)
    batch = data.sequences(SPLIT, index)
    tokens = batch["tokens"]
    real = batch.get("real", torch.ones(tokens.shape[:2], dtype=torch.bool))  # (B, T)
    with torch.no_grad():
        own = run.rnn.rollout(tokens, run.rnn.init_memory(len(tokens))).float()  # (B, T, K, D)
        labels = None if run.teacher is None else run.teacher.encode(tokens)[:, 1:].float()
    places = real.nonzero()
    places = places[torch.linspace(0, len(places) - 1, min(plotted, len(places))).long()]
    rows, steps = places.unbind(1)
    chosen = own[rows, steps].flatten(1)  # (N, K·D)
    centre = chosen.mean(0)
    _, singular, axes = torch.linalg.svd(chosen - centre, full_matrices=False)
    share = singular.square() / singular.square().sum().clamp_min(1e-12)
    axes = F.pad(axes[:3], (0, 0, 0, 3 - len(axes[:3])))

    def project(memories: Tensor) -> list[list[float]]:
        return [[round(v, 4) for v in column] for column in ((memories - centre) @ axes.T).T.tolist()]

    name, words = find_hidden_state(data, tokens, index) or (None, None)
    return {
        "rnn": measure_spread(own, real),
        "teacher": None if labels is None else measure_spread(labels, real),
        "explained": F.pad(share[:3], (0, 3 - len(share[:3]))).tolist(),
        "points": {
            "rnn": project(chosen),
            "teacher": None if labels is None else project(labels[rows, steps].flatten(1)),
            "position": (steps + 1).tolist(),
            "last_token": [name_token(token, data) for token in tokens[rows, steps].tolist()],
            "hidden": None if words is None else [words[row][step] for row, step in places.tolist()],
            "hidden_name": name,
        },
    }


def measure_spread(memories: Tensor, real: Tensor) -> dict[str, Any]:
    """Measure the spread of memories (B, T, K, D), and list signs of collapse. `real` (B, T) bool selects memories.

    `effective_rank`: exp of the entropy of the singular values' shares (Roy & Vetterli 2007), at most K·D.
    `uniformity`: Eq. 4, which is 0 if all memories point the same way. `between_sequences`: share of the variance
    between sequences at the same position. Near 0 the memory counts steps and knows nothing of its input. For a single
    sequence it is null.
    """
    flat, count = memories.flatten(2), real.sum(0)[:, None].clamp_min(1)
    some = flat[real]  # (N, K·D)
    total = some.var(0, correction=0).mean()
    apart = (flat - flat.masked_fill(~real[..., None], 0).sum(0) / count)[real]
    between = float(apart.square().mean() / total.clamp_min(1e-12)) if len(flat) > 1 else None
    some = some[torch.linspace(0, len(some) - 1, min(2000, len(some))).long()]
    singular = torch.linalg.svdvals(some - some.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    rank = float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum())) if total > 1e-10 else 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        uniformity = float(uniformity_loss(memories[real], 2000))
    reasons = []
    if rank < 2:
        reasons.append(f"effective rank {rank:.1f}: memories lie on less than a plane")
    if uniformity > -0.1:
        reasons.append(f"uniformity {uniformity:.2f}: all memories point nearly the same way")
    if between is not None and (not math.isfinite(between) or between < 0.01):
        reasons.append(f"{between:.1%} of the variance is between sequences: memory hardly depends on the input")
    figures = {"effective_rank": rank, "dimensions": flat.shape[-1], "uniformity": uniformity}
    return figures | {"between_sequences": between, "collapsed": reasons}


def find_hidden_state(data: Data, tokens: Tensor, index: Ints) -> tuple[str, list[list[str]]] | None:
    """Find what memory should hold after each of t = 1 … T: its name, and a word per sequence and step.

    A task defines a method `hidden(tokens (B, T)) -> (name, (B, T) words)`. Images of digits have their class. `index`
    has the numbers of the sequences in their split. Returns None if the state is not known.
    """
    task = getattr(data, "task", None)
    if hasattr(task, "hidden"):
        name, words = task.hidden(tokens.numpy())  # type: ignore[union-attr]
        return name, [[str(w) for w in row] for row in words.tolist()]
    if data.info.get("name") == "digits":
        from sklearn import datasets

        digit = datasets.load_digits().target[data.index[SPLIT][index]]  # type: ignore[attr-defined]
        return "digit class", [[str(d)] * tokens.shape[1] for d in digit]
    return None


def score_forecasts(run: Run, data: Data) -> dict[str, Any] | None:
    """Score a run of series one step ahead, and over the teacher's horizon from some origins; None for other runs."""
    if not isinstance(data, SeriesData):
        return None
    horizon = max(1, run.config.teacher.future_len)
    ahead = backtest(run.rnn, data, SPLIT, horizon, limit=100)
    return {"one_step": score_one_step(run.rnn, data, SPLIT, SEQUENCES), "ahead": ahead}


def name_token(token: Any, data: Data) -> str:
    """Return a token as readable text; for numbers, the first value in its normalised units."""
    if data.kind == "numbers":
        return f"{math.sinh(token[0]):.0f}"
    if data.kind != "text":
        return str(token)
    return repr(chr(token))[1:-1] if 32 < token < 127 else {32: "space", 10: "newline"}.get(token, f"0x{token:02x}")
