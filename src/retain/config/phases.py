"""Settings of the phases SMT, DMT and BPTT: what each minimises, and how it is trained."""

from __future__ import annotations

from typing import Literal

from retain.config.checks import Count, Fraction, Length, NotNegative, Positive, Width, settings
from retain.errors import UserError

PHASES = ("smt", "dmt", "bptt")


@settings
class PhaseConfig:
    """How a phase is trained."""

    share: Positive = 1.0
    """Weight of this phase when the run's budget is shared out."""
    batch_size: Width = 32
    """Sequences per process and micro-batch."""
    seq_len: Length | None = None
    """Train on a random part of so many tokens of every sequence, but of tasks and digits; None is data.seq_len."""
    lr: Positive = 3e-3


@settings
class SMTLoss:
    """What Supervised Memory Training minimises (Eq. 5), and on which transitions."""

    lambda_dec: NotNegative = 1.0
    """Loss of the decoder on the future (Eq. 2)."""
    lambda_dyn: NotNegative = 0.1
    """Squared error of f against the teacher's next memory (Eq. 3)."""
    lambda_dyn_end: Positive | None = None
    """lambda_dyn grows geometrically to this over the phase; None keeps it."""
    lambda_unif: NotNegative = 0.1
    """Uniformity of memories (Eq. 4). The paper has 0.001; docs/following.md tells why not here."""
    lambda_trunk: NotNegative = 1.0
    """Plain next-target loss of the encoder's trunk (state and register encoders)."""
    lambda_readout: NotNegative = 1.0
    """Cross-entropy of the readout on what f makes. It trains the readout, f, and through m_t the encoder."""
    lambda_distill: NotNegative = 0.0
    """Cross-entropy of the readout against the teacher's probabilities (its trunk's, else its decoder's)."""
    steps_per_sequence: Count | None = None
    """S, transitions trained per sequence, a run of consecutive steps; None is all."""
    decodes_per_sequence: Count | None = 4
    """How many of the labelled memories are decoded with their future; None is all."""
    bptt_window: Count | None = 1
    """f is trained over windows of so many steps with gradient through them. The windows start from the teacher's
    memories and run side by side. 1, one step, is the paper's; None is the whole sequence."""
    num_chunks: Count = 1
    """f is trained on so many chunks of the sequence, one after another, each with a backward pass of its own. Only
    one chunk's activations are held at a time. The gradient is the same, but windows and rollouts end with a chunk."""
    on_policy: Fraction = 0.0
    """Fraction of the sequences on which f starts from its own memories, up to 8 steps away from the teacher's."""

    def __post_init__(self) -> None:
        if self.lambda_dyn_end is not None and self.lambda_dyn <= 0:
            raise UserError(f"lambda_dyn: {self.lambda_dyn} must be positive to grow to lambda_dyn_end")


@settings
class DMTLoss:
    """What DAgger Memory Training minimises (Eq. 6), and how far the RNN runs on its own."""

    lambda_dyn: NotNegative = 1.0
    """Squared error of f, on the RNN's own memories, against the teacher's next memory."""
    lambda_readout: NotNegative = 1.0
    """Cross-entropy of the readout on the RNN's own memories."""
    lambda_distill: NotNegative = 0.0
    """Cross-entropy of the readout against the teacher's probabilities (its trunk's, else its decoder's)."""
    predictive: bool = True
    """Both cross-entropies also train f, through the steps of its window (bptt_window)."""
    horizon: Count | None = None
    """How many steps the RNN runs on its own before it is set back on the teacher's memory; None is the whole
    sequence, from m_0."""
    horizon_growth: Fraction = 0.7
    """Fraction of the phase over which the horizon doubles from 1 to its full length; 0 has it full from the start."""
    bptt_window: Count | None = 1
    """f is trained over windows of so many steps with gradient through them; 1 is the paper's, None all of them."""
    label_every: Count = 1
    """More than 1: one rollout of `horizon` steps from a random place, trained at every so many of its steps."""
    rollout: Literal["loop", "jacobi", "newton"] = "loop"
    """How the RNN runs on its own: step by step, or all steps at once by iterations that begin at the teacher's
    memories. If 64 of them are not enough, the loop is run. newton (quasi-DEER) needs fewer and dearer ones."""

    def __post_init__(self) -> None:
        if self.bptt_window != 1 and self.label_every > 1:
            raise UserError(
                f"bptt_window: {self.bptt_window} needs the label of every step, not of every {self.label_every}th"
            )
        if self.rollout != "loop" and self.label_every > 1:
            raise UserError(f"rollout: {self.rollout} begins at the label of every step; leave out label_every")


@settings
class ScheduledConfig(PhaseConfig):
    """A phase whose learning rate may stay; that of DMT always falls, as a cosine."""

    lr_schedule: Literal["constant", "cosine"] = "cosine"


@settings
class SMTConfig(ScheduledConfig, SMTLoss):
    """Supervised Memory Training, Eq. 5: teacher and RNN learn together."""


@settings
class DMTConfig(PhaseConfig, DMTLoss):
    """DAgger Memory Training, Eq. 6: the RNN learns on its own memories; the teacher is frozen."""

    lr: Positive = 1e-3


@settings
class BPTTConfig(ScheduledConfig):
    """Backpropagation through time: baseline and finetuning."""

    bptt_window: Count | None = None
    """The gradient is cut every so many steps, the first time at a random one; None is nowhere."""
    lambda_distill: NotNegative = 0.0
    """Cross-entropy of the readout against the probabilities of the model of teacher.from."""
