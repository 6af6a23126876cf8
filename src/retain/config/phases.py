"""Settings of the phases: SMT, DMT and BPTT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retain.config.budget import parse_budget
from retain.config.checks import LONGEST, MOST, WIDEST, at_most, not_negative, positive, typed
from retain.errors import UserError

PHASES = ("smt", "dmt", "bptt")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """What every phase has: its budget, batch and optimizer (AdamW)."""

    share: float = 1.0
    """Weight of this phase when the run's budget is shared out."""
    budget: str | None = None
    """This phase's own budget, e.g. 60s or 2000steps; None takes its share of the run's."""
    batch_size: int = 32
    """Sequences per process and micro-batch."""
    seq_len: int | None = None
    """Train on a random part of so many tokens of every sequence, but of tasks and digits; None is data.seq_len."""
    accumulate: int = 1
    """Micro-batches per optimizer step. Each is a mean over its own targets, and all count alike."""
    lr: float = 3e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.02
    """Fraction of the phase in which the learning rate rises from 0."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "share", "batch_size", "seq_len", "accumulate", "lr", "clip")
        not_negative(self, "warmup", "weight_decay", "beta1", "beta2")
        at_most(WIDEST, self, "batch_size", "accumulate")
        at_most(LONGEST, self, "seq_len")
        if self.warmup >= 1 or self.beta1 >= 1 or self.beta2 >= 1:
            raise UserError(f"warmup, beta1, beta2: {self.warmup}, {self.beta1}, {self.beta2} must be below 1")
        if self.budget is not None:
            parse_budget(self.budget)


@dataclass(frozen=True, kw_only=True)
class SMTConfig(PhaseConfig):
    """Supervised Memory Training, Eq. 5: teacher and RNN learn together."""

    steps_per_sequence: int | None = None
    """S, transitions trained per sequence, a run of consecutive steps; None is all."""
    decodes_per_sequence: int | None = 4
    """How many of the labelled memories are decoded with their future; None is all."""
    unroll: int | None = 1
    """f is trained over so many steps at a stretch, with gradient through them, in segments of the sequence that
    start where one step would and run side by side. 1, one step, is the paper's; None is the whole sequence."""
    pieces: int = 1
    """f is trained on so many pieces of the sequence one after another, each with a backward pass of its own: of one
    piece alone activations are held. The gradient is the same; stretches of f (unroll) and its rollouts (on_policy)
    end where a piece does."""
    sweeps: int = 1
    """1 trains f on the teacher's memories; j > 1 also on f's own, up to j - 1 steps away from them."""
    on_policy: float = 0.0
    """Fraction of the sequences on which f starts from its own memories instead of the teacher's."""
    horizon: int = 8
    """on_policy: at most so many steps away from a teacher's memory."""
    lambda_dec: float = 1.0
    lambda_dyn: float = 0.1
    lambda_dyn_end: float | None = None
    """lambda_dyn grows geometrically to this over the phase; None keeps it."""
    detach_labels: bool = False
    """No gradient of f reaches the teacher: not through the m_t it starts from, nor the m_{t+1} it should give."""
    lambda_unif: float = 0.1
    """The paper has 0.001; docs/following.md tells why not here."""
    lambda_trunk: float = 1.0
    """Plain next-target loss of the encoder's trunk (state and register encoders)."""
    lambda_readout: float = 1.0
    """Cross-entropy of the readout on what f makes; trains the readout, f, and by way of m_t the encoder."""
    lambda_distill: float = 0.0
    """Cross-entropy of the readout against the teacher's probabilities (its trunk's, else its decoder's), beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "steps_per_sequence", "decodes_per_sequence", "unroll", "pieces", "sweeps", "horizon")
        positive(self, "lambda_dyn_end")
        at_most(MOST, self, "steps_per_sequence", "decodes_per_sequence", "unroll", "pieces", "sweeps", "horizon")
        not_negative(self, "lambda_dec", "lambda_dyn", "lambda_unif", "lambda_trunk", "lambda_readout")
        not_negative(self, "lambda_distill")
        if self.unroll != 1 and self.sweeps > 1:
            raise UserError(
                f"unroll: {self.unroll} with sweeps {self.sweeps}: both go on from f's own memories; use one"
            )
        if self.pieces > 1 and self.sweeps > 1:
            raise UserError(
                f"pieces: {self.pieces} with sweeps {self.sweeps}: sweeps run through the whole sequence; use one"
            )
        if not 0 <= self.on_policy <= 1:
            raise UserError(f"on_policy: {self.on_policy} must lie in 0 … 1")
        if self.lambda_dyn_end is not None and self.lambda_dyn <= 0:
            raise UserError(f"lambda_dyn: {self.lambda_dyn} must be positive to grow to lambda_dyn_end")


@dataclass(frozen=True, kw_only=True)
class DMTConfig(PhaseConfig):
    """DAgger Memory Training, Eq. 6: the RNN learns on its own memories; the teacher is frozen."""

    lr: float = 1e-3
    horizon: int = 1
    """How many steps the RNN runs on its own before it is set back on the teacher's memory."""
    horizon_end: int | None = None
    """The horizon doubles over the phase up to this; None is the whole sequence, from m_0."""
    horizon_growth: float = 0.7
    """Fraction of the phase after which the horizon is at its end."""
    unroll: int | None = 1
    """f is trained over so many steps at a stretch, with gradient through them; 1 is the paper's, None all of them."""
    label_every: int = 1
    """More than 1: one rollout of `horizon` steps from a random place, trained at every so many of its steps."""
    lambda_dyn: float = 1.0
    lambda_readout: float = 1.0
    """Cross-entropy of the readout on the RNN's own memories."""
    lambda_distill: float = 0.0
    """Cross-entropy of the readout against the teacher's probabilities (its trunk's, else its decoder's), beside it."""
    predictive: bool = True
    """Let both cross-entropies also train f, through the steps of its stretch (unroll)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "horizon", "horizon_end", "unroll", "label_every")
        at_most(MOST, self, "horizon", "horizon_end", "unroll", "label_every")
        if self.unroll != 1 and self.label_every > 1:
            raise UserError(f"unroll: {self.unroll} needs the label of every step, not of every {self.label_every}th")
        not_negative(self, "lambda_dyn", "lambda_readout", "lambda_distill")
        if not 0 <= self.horizon_growth <= 1:
            raise UserError(f"horizon_growth: {self.horizon_growth} must lie in 0 … 1")


@dataclass(frozen=True, kw_only=True)
class BPTTConfig(PhaseConfig):
    """Backpropagation through time: baseline and finetuning."""

    truncate: int | None = None
    """The gradient is cut every so many steps, the first time at a random one; None is nowhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "truncate")
        at_most(MOST, self, "truncate")
