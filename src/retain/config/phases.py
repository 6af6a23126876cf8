"""Settings of the phases SMT, DMT and BPTT: what each minimises, and how it is trained."""

from __future__ import annotations

from typing import Literal

from retain.config.checks import Count, Fraction, Length, NotNegative, Positive, Width, settings
from retain.errors import UserError

PHASES = ("smt", "dmt", "bptt")


@settings
class PhaseConfig:
    """Training settings that all phases share."""

    share: Positive = 1.0
    """Weight of this phase in the split of the run's budget."""
    batch_size: Width = 32
    """Sequences per process and micro-batch."""
    seq_len: Length | None = None
    """Train on a random part of this length of every sequence (not for tasks and digits). None: data.seq_len."""
    lr: Positive = 3e-3


@settings
class SMTLoss:
    """The loss of Supervised Memory Training (Eq. 5), and the transitions that it covers."""

    lambda_dec: NotNegative = 1.0
    """Weight of the decoder's loss on the future (Eq. 2). With 0 and a frozen language model, labels stay as at
    the start."""
    lambda_dyn: NotNegative = 0.1
    """Weight of the squared error of f against the teacher's next memory (Eq. 3)."""
    lambda_dyn_end: Positive | None = None
    """lambda_dyn grows geometrically to this over the phase. None keeps it constant."""
    relative_dyn: bool = False
    """Divide the squared error of f by the variance of memories across sequences, as relative drift does. The teacher
    then gains nothing by shrinking the differences between sequences."""
    lambda_unif: NotNegative = 0.1
    """Weight of the uniformity loss of memories (Eq. 4). The paper has 0.001; docs/following.md explains the choice."""
    lambda_trunk: NotNegative = 1.0
    """Weight of the next-target loss of the encoder's trunk, which only the window encoder lacks."""
    lambda_readout: NotNegative = 1.0
    """Weight of the readout's cross-entropy on f's memories. It trains the readout, f, and through m_t the encoder."""
    lambda_distill: NotNegative = 0.0
    """Weight of the readout's cross-entropy against the teacher's probabilities (its trunk's, else its decoder's)."""
    steps_per_sequence: Count | None = None
    """S, consecutive transitions trained per sequence. None: all."""
    decodes_per_sequence: Count | None = 4
    """How many memories per sequence are decoded with their future. None: all."""
    bptt_window: Count | None = 1
    """f is trained over windows of this many steps, with gradient through them. The windows start from the teacher's
    memories and run in parallel. 1 is one step, as in the paper. None: the whole sequence."""
    num_chunks: Count = 1
    """f is trained on this many chunks of the sequence, one after another, each with its own backward pass. Only one
    chunk's activations are held at a time. The gradient is the same, but windows and rollouts end with their chunk."""
    on_policy: Fraction = 0.0
    """Fraction of the sequences on which f starts from its own memories, up to 8 steps after one of the teacher's."""

    def __post_init__(self) -> None:
        if self.lambda_dyn_end is not None and self.lambda_dyn <= 0:
            raise UserError(f"lambda_dyn: {self.lambda_dyn} must be positive to grow to lambda_dyn_end")
        if self.relative_dyn and self.num_chunks > 1:
            raise UserError(f"relative_dyn: it needs all of a sequence at once, not {self.num_chunks} chunks")


@settings
class DMTLoss:
    """The loss of DAgger Memory Training (Eq. 6), and the rollouts that it covers."""

    lambda_dyn: NotNegative = 1.0
    """Weight of the squared error of f, on the RNN's own memories, against the teacher's next memory."""
    lambda_dec: NotNegative = 0.0
    """Weight of the teacher's decoder on f's output: the cross-entropy of the next F tokens, through the frozen
    decoder. f gets credit over F steps, and the gradient crosses one application of f."""
    lambda_readout: NotNegative = 1.0
    """Weight of the readout's cross-entropy on the RNN's own memories."""
    lambda_distill: NotNegative = 0.0
    """Weight of the readout's cross-entropy against the teacher's probabilities (its trunk's, else its decoder's)."""
    predictive: bool = True
    """Both cross-entropies also train f, through the steps of its window (bptt_window)."""
    horizon: Count | None = None
    """How many steps the RNN runs on its own memories before it restarts from the teacher's. None: the whole sequence,
    from m_0."""
    horizon_growth: Fraction = 0.7
    """Fraction of the phase over which the horizon doubles from 1 to its full length. 0: full from the start."""
    bptt_window: Count | None = 1
    """f is trained over windows of this many steps, with gradient through them. 1 is the paper's. None: all steps."""
    label_every: Count = 1
    """N above 1: one rollout of `horizon` steps from a random position, trained at every Nth step."""
    rollout: Literal["loop", "jacobi", "newton"] = "loop"
    """How a rollout is computed. loop: step by step. jacobi, newton: all steps at once, by iterations that begin at the
    teacher's memories. If 64 iterations are not enough, the loop runs. newton (quasi-DEER) needs fewer iterations, at a
    higher cost each."""

    def __post_init__(self) -> None:
        if self.bptt_window != 1 and self.label_every > 1:
            raise UserError(
                f"bptt_window: {self.bptt_window} needs a label at every step, not at every {self.label_every}th"
            )
        if self.lambda_dec and self.label_every > 1:
            raise UserError(f"lambda_dec: {self.lambda_dec} needs a label at every step; leave out label_every")
        if self.rollout != "loop" and self.label_every > 1:
            raise UserError(f"rollout: {self.rollout} needs a label at every step; leave out label_every")


@settings
class ScheduledConfig(PhaseConfig):
    """A phase with a choice of learning-rate schedules. DMT always has the cosine."""

    lr_schedule: Literal["constant", "cosine"] = "cosine"


@settings
class SMTConfig(ScheduledConfig, SMTLoss):
    """Supervised Memory Training, Eq. 5: teacher and RNN learn together."""


@settings
class DMTConfig(PhaseConfig, DMTLoss):
    """DAgger Memory Training, Eq. 6: the RNN learns on its own memories, and the teacher is frozen."""

    lr: Positive = 1e-3


@settings
class BPTTConfig(ScheduledConfig):
    """Backpropagation through time: baseline and finetuning."""

    bptt_window: Count | None = None
    """The gradient is cut every so many steps, the first time at a random step. None: never."""
    lambda_distill: NotNegative = 0.0
    """Weight of the readout's cross-entropy against the probabilities of the language model (teacher.from)."""
