"""What a run is: frozen dataclasses, checked when built.

Nothing heavy is imported here, so that `retain --help` answers at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from retain.config.budget import Budget, parse_budget
from retain.config.checks import at_most, not_negative, positive, typed
from retain.errors import UserError

__all__ = [
    "BPTTConfig",
    "CELLS",
    "CellConfig",
    "DATASETS",
    "DEEPEST",
    "DMTConfig",
    "DataConfig",
    "EMBEDDED_DATA",
    "FILE_DATA",
    "IGNORE",
    "LARGEST_VOCABULARY",
    "LONGEST",
    "MOST",
    "MemoryConfig",
    "PHASES",
    "PhaseConfig",
    "READ_BY",
    "READ_BY_CELL",
    "RunConfig",
    "SEEDS",
    "SMTConfig",
    "TASK_DATA",
    "TASK_FIELDS",
    "TRACKERS",
    "TeacherConfig",
    "WIDEST",
    "check_memory",
]

CELLS = ("transformer", "mlp", "gated", "delta", "gru", "lstm", "elman")
READ_BY_CELL: dict[str, set[str]] = {
    "transformer": {"kind", "width", "heads", "layers", "residual"},
    "mlp": {"kind", "width", "layers", "residual"},
    "gated": {"kind", "width", "layers"},
    "delta": {"kind", "width"},
    "gru": {"kind"},
    "lstm": {"kind"},
    "elman": {"kind"},
}
"""Fields of `cell` that each kind reads; one's own may read any."""
PHASES = ("smt", "dmt", "bptt")
TRACKERS = ("auto", "tensorboard", "wandb", "trackio")
SEEDS = 2**63
TASK_DATA = (
    *("retrieval", "copy", "stack", "keys_values", "modular"),
    *("parity", "s3", "s5", "dyck", "mqar", "selective_copy"),
)
EMBEDDED_DATA = ("stdlib", "digits", *TASK_DATA)
TASK_FIELDS = ("symbols", "copy_len", "reverse", "depth", "pairs", "string_len")
"""What a DataConfig sets for memory tasks: None is the task's own."""
FILE_DATA = ("text", "npy", "documents", "images")
DATASETS = ("documents", "images")
READ_BY = {
    **dict.fromkeys((*TASK_FIELDS, "min_seq_len", "label_noise"), TASK_DATA),
    "split": FILE_DATA,
    "tokenizer": ("documents",),
    "ignore": ("npy",),
    **dict.fromkeys(("column", "revision", "reset", "stream"), DATASETS),
    **dict.fromkeys(("image_size", "levels", "threshold", "invert", "events"), ("images",)),
}
"""Fields of a DataConfig that some data alone reads. For other data they must stay as they are."""
IGNORE = -100
"""The target where there is none: it never counts in a loss or a score."""
LARGEST_VOCABULARY = 2**24
LONGEST = 2**24
"""Tokens of a sequence, at most."""
WIDEST = 2**20
"""Numbers in a memory token or in a layer, and sequences in a batch, at most."""
DEEPEST = 2**10
"""Layers, at most."""
MOST = 2**31
"""Of anything else that is counted: steps beyond the end of a sequence are none."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The memory, shared by teacher and RNN: K memory tokens of width D."""

    tokens: int = 2
    """K, number of memory tokens."""
    width: int = 128
    """D, width of a memory token."""
    norm: Literal["rms", "batch"] = "batch"
    """rms: unit RMS over D (the paper). batch: unit variance per dimension, by batch statistics."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "tokens", "width")
        at_most(WIDEST, self, "tokens", "width")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Memory encoder and predictive decoder. The readout has the decoder's shape."""

    encoder: Literal["state", "register", "window"] = "state"
    """state: one causal pass labels every step. register: K registers per step. window: the paper's."""
    width: int = 128
    heads: int = 4
    layers: int = 3
    """Layers of the encoder."""
    decoder_layers: int = 1
    """Layers of the decoder, and of the RNN's readout."""
    future_len: int = 16
    """F, how many tokens the decoder is shown after m_t."""
    recompute: bool = False
    """The encoder's activations are not held but computed again in the backward pass, a layer at a time (gradient
    checkpointing)."""
    context_len: int | None = None
    """C, how far back the window encoder looks; None is all the way."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "width", "heads", "layers", "decoder_layers", "context_len")
        not_negative(self, "future_len")
        at_most(WIDEST, self, "width", "heads")
        at_most(DEEPEST, self, "layers", "decoder_layers")
        at_most(MOST, self, "future_len", "context_len")
        if self.width % (2 * self.heads):
            raise UserError(f"teacher.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.context_len is not None and self.encoder != "window":
            raise UserError(f"teacher.context_len: only the window encoder looks back a set way, not {self.encoder}")


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """The one-step update m_{t+1} = f(m_t, x_t)."""

    kind: str = "mlp"
    """transformer, mlp, gated, delta, gru, lstm, elman, or your own as module:Class."""
    width: int = 512
    """Hidden width of the mlp, gated, delta and transformer; gru, lstm and elman have the memory's own size."""
    heads: int = 4
    """Attention heads of the transformer."""
    layers: int = 1
    """Hidden layers of the mlp and gated, blocks of the transformer; the others have one."""
    residual: bool = True
    """mlp and transformer: m + f(m, x) instead of f(m, x)."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "width", "heads", "layers")
        at_most(WIDEST, self, "width", "heads")
        at_most(DEEPEST, self, "layers")
        if self.kind not in CELLS and not re.fullmatch(r"[\w.]+:\w+", self.kind):
            raise UserError(f"cell.kind: {self.kind!r} is none of {', '.join(CELLS)}, nor module:Class")
        if self.kind == "transformer" and self.width % (2 * self.heads):
            raise UserError(f"cell.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sequences to learn."""

    name: str = "stdlib"
    """stdlib, digits, a memory task (see retain tasks), or text / npy / documents / images with a path."""
    path: str | None = None
    """A text (UTF-8, read as bytes) or a 1-D or 2-D integer .npy; for documents and images hf:NAME[:CONFIG], a
    parquet, JSON, CSV or Arrow file, or a folder of texts, of such files or of images. Compressed files are
    unpacked."""
    seq_len: int = 64
    """T, tokens read per training sequence; targets are T + 1."""
    min_seq_len: int | None = None
    """Memory tasks: each training batch has T or T halved again and again, down to this, at random, and what there is
    to remember (copy_len, pairs) is halved with it. Evaluation is of T. None trains at T alone."""
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Fractions of train, validation and test, for a file."""
    vocab_size: int | None = None
    """For a .npy: tokens must lie below it. None: one more than the largest in the file."""
    ignore: int | None = None
    """For a .npy of rows: the number that fills up short rows at their end, as -1. It is no token and counts in no
    loss."""
    symbols: int | None = None
    """Memory tasks but parity, s3, s5: number of symbols; of brackets in dyck; the modulus in modular."""
    copy_len: int | None = None
    """copy, selective_copy: symbols to copy."""
    reverse: bool = False
    """copy: say the string from its end."""
    depth: int | None = None
    """stack, dyck: the stack holds at most so many symbols."""
    pairs: int | None = None
    """keys_values, mqar: number of keys, each with its value."""
    string_len: int | None = None
    """keys_values: symbols in a key, and in a value."""
    label_noise: float = 0.0
    """Memory tasks: fraction of the training targets replaced by random answers; evaluation stays clean."""
    column: str | None = None
    """documents, images: the column to read; None is text or image."""
    revision: str | None = None
    """hf: only: a commit, tag or branch; None is the newest when it is first prepared."""
    tokenizer: str | None = None
    """documents: a tokenizer.json of Hugging Face tokenizers; None reads UTF-8 bytes."""
    reset: bool = False
    """documents: memory starts at m_0 with each document, instead of being carried over from the one before.
    What fills up a shorter one counts in no loss."""
    stream: bool = False
    """documents, images: train straight from the source, nothing is prepared on disk."""
    image_size: int = 28
    """images: height and width that they are brought to, in pixels."""
    levels: int = 256
    """images: gray levels that pixels are quantised to."""
    threshold: int | None = None
    """images: pixels of at least this much (1 … 255) become 1, all others 0, instead of levels."""
    invert: bool = False
    """images: black becomes white, for dark lines on paper; thin ones stay when the image is made smaller."""
    events: bool = False
    """images: only pixels that are not 0, as events: the position, then the value where there are several."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "seq_len", "min_seq_len", "vocab_size", "image_size")
        positive(self, "symbols", "copy_len", "depth", "pairs", "string_len")
        at_most(LONGEST, self, "seq_len", "min_seq_len", "copy_len", "depth", "pairs", "string_len")
        at_most(LARGEST_VOCABULARY, self, "vocab_size")
        at_most(math.isqrt(LONGEST), self, "image_size")
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise: {self.label_noise} must lie in 0 … 1, below 1")
        if self.name not in (*EMBEDDED_DATA, *FILE_DATA):
            raise UserError(f"data.name: {self.name!r} is none of {', '.join((*EMBEDDED_DATA, *FILE_DATA))}")
        if self.name in FILE_DATA and not self.path:
            raise UserError(f"data.path: {self.name} needs a file; give --data PATH")
        if not 2 <= self.levels <= 256:
            raise UserError(f"data.levels: {self.levels} must lie in 2 … 256")
        if self.threshold is not None and not 1 <= self.threshold <= 255:
            raise UserError(f"data.threshold: {self.threshold} must lie in 1 … 255")
        if len(self.split) != 3 or min(self.split) <= 0 or not abs(sum(self.split) - 1) < 1e-6:
            raise UserError(f"data.split: {self.split} must be three positive fractions that sum to 1")
        # Sizes of tasks stand in older run folders whatever the data is; the command line asks of them, too.
        self.check_read([name for name in READ_BY if name not in TASK_FIELDS])
        if self.revision is not None and not str(self.path).startswith("hf:"):
            raise UserError(f"data.revision: {self.revision!r} is for a dataset of the hub, hf:NAME; leave it out")

    def at_length(self, length: int) -> DataConfig:
        """The same to be scored in sequences of this length. Those of training batches are no matter then."""
        return replace(self, seq_len=length, min_seq_len=None)

    def check_read(self, names: Iterable[str] = READ_BY) -> None:
        """Raises UserError where one of these fields is set and this data does not read it."""
        for name, value in self.unread(self.name).items():
            if name in names:
                readers = "memory tasks" if READ_BY[name] is TASK_DATA else ", ".join(READ_BY[name])
                raise UserError(f"data.{name}: {value!r} is for {readers}, not {self.name}; leave it out")

    def unread(self, data: str) -> dict[str, Any]:
        """The fields that are set here and that data of this name does not read, with their values."""
        set_here = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: value for name, value in set_here.items() if data not in READ_BY.get(name, (data,))}


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


def check_memory(memory: MemoryConfig, kind: str) -> None:
    """Raises UserError for a memory that a cell of this kind cannot have."""
    sizes, side = f"memory: {memory.tokens} x {memory.width}", math.isqrt(memory.width)
    if kind == "lstm" and memory.tokens * memory.width % 2:
        raise UserError(f"{sizes} must be even, the lstm keeps h and c in it")
    if kind == "delta" and (memory.tokens < 3 or side % 2 or side**2 != memory.width):
        raise UserError(
            f"{sizes}: the delta cell needs 3 memory tokens or more and a width that is the square of an even number; "
            "give e.g. memory.tokens 4 and memory.width 256"
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    preset: str = ""
    """The preset this came from; a label only."""
    init_from: str | None = None
    """A run folder to start from: its RNN, and its teacher where the phases use one.
    Sizes and vocabulary must be the same (--config RUN --init-from RUN)."""
    seed: int = 0
    phases: tuple[Literal["smt", "dmt", "bptt"], ...] = ("smt", "dmt")
    """The phases in their order."""
    budget: str = "240s"
    """Shared out over the phases: e.g. 240s, 5000steps, 20Mtokens, 500ksequential."""
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cell: CellConfig = field(default_factory=CellConfig)
    smt: SMTConfig = field(default_factory=SMTConfig)
    dmt: DMTConfig = field(default_factory=DMTConfig)
    bptt: BPTTConfig = field(default_factory=BPTTConfig)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where matrix products in it are fast (CUDA, a CPU with AMX or AVX512_BF16), else fp32. Scores, those
    of validation too, are always computed in fp32."""
    compile: bool = False
    """torch.compile the objective's modules (needs a C++ compiler); falls back to eager with a note. On a CPU the first
    run of these sizes takes about a minute for it, out of its budget, and later ones some seconds."""
    log_every: int = 20
    """Optimizer steps between lines of metrics.jsonl."""
    checkpoint_every: str = "60s"
    """Budget between checkpoints."""
    validate_every: str = "60s"
    """Budget between validations; the best model by them is the one kept."""
    validation_sequences: int = 256
    tracker: str | None = "auto"
    """Also log to: auto (tensorboard if installed), tensorboard, wandb, trackio, or None."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "log_every", "validation_sequences")
        at_most(MOST, self, "log_every", "validation_sequences")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed: {self.seed} must not be negative, and lie below {SEEDS}")
        if self.tracker is not None and self.tracker not in TRACKERS:
            raise UserError(f"tracker: {self.tracker!r} is none of {', '.join(TRACKERS)}, None")
        if not self.phases:
            raise UserError(f"phases: empty; name some of {', '.join(PHASES)}")
        for name in ("budget", "checkpoint_every", "validate_every"):
            parse_budget(getattr(self, name), name)
        self._check_teacher()
        check_memory(self.memory, self.cell.kind)
        if self.memory.norm == "rms" and self.memory.width == 1:
            raise UserError("memory.width: 1 leaves nothing after rms normalisation; use norm batch or a wider memory")
        for phase in set(self.phases):
            steps = {"smt": "steps_per_sequence", "dmt": "horizon", "bptt": "truncate"}[phase]
            own = getattr(self, phase)
            value, length = getattr(own, steps), self.data.seq_len
            if own.seq_len is not None and self.data.name in ("digits", *TASK_DATA):
                cut = (
                    "every image starts at its first pixel" if self.data.name == "digits" else "an answer needs it all"
                )
                raise UserError(f"{phase}.seq_len: {own.seq_len} is a part of a sequence, and {cut}; leave it out")
            if own.seq_len is not None and own.seq_len > length:
                raise UserError(f"{phase}.seq_len: {own.seq_len} is longer than data.seq_len {length}")
            if value is not None and value > (own.seq_len or length):
                whose = f"{phase}.seq_len {own.seq_len}" if own.seq_len else f"data.seq_len {length}"
                raise UserError(f"{phase}.{steps}: {value} is longer than {whose}")

    @property
    def has_teacher(self) -> bool:
        """Whether there is a trained teacher: smt trains it, or dmt has it from the run that this one starts from."""
        return "smt" in self.trained or ("dmt" in self.trained and self.init_from is not None)

    @property
    def trained(self) -> tuple[str, ...]:
        """The phases that have a step to do: a small budget leaves nothing for the last of them."""
        return tuple(name for name, budget in zip(self.phases, self.budgets(), strict=True) if budget.amount)

    def left_out(self) -> list[str]:
        """A line for each phase that has no step to do."""
        phases = zip(self.phases, self.budgets(), strict=True)
        return [f"budget: {self.budget} leaves nothing for {name}; it is skipped" for name, b in phases if not b.amount]

    def _check_teacher(self) -> None:
        """Refuse to learn from what nothing has trained."""
        smt, dmt = self.smt, self.dmt
        follows = "dmt" in self.phases and (dmt.lambda_dyn > 0 or dmt.lambda_distill > 0)
        if follows and "smt" not in self.phases[: self.phases.index("dmt")] and self.init_from is None:
            raise UserError(
                "phases: dmt follows the teacher that smt trains; put smt before it, or start from a run that has one "
                "(--init-from RUN)"
            )
        if follows and "dmt" in self.trained and not self.has_teacher:
            raise UserError(f"budget: {self.budget} leaves nothing for smt, whose teacher dmt follows; give more")
        if "smt" not in self.phases:
            return
        predicts = smt.lambda_dec > 0 or (smt.lambda_trunk > 0 and self.teacher.encoder != "window")
        distilled = {"smt": smt.lambda_distill, "dmt": dmt.lambda_distill if "dmt" in self.phases else 0.0}
        for phase, weight in distilled.items():
            if weight and not predicts:
                raise UserError(f"{phase}.lambda_distill: the teacher predicts nothing; give smt.lambda_dec above 0")
        if self.trained == ("smt",) and not smt.lambda_dec and not smt.lambda_readout and not smt.lambda_distill:
            raise UserError("smt.lambda_readout: nothing trains the readout; give it or smt.lambda_dec above 0")

    def budgets(self) -> tuple[Budget, ...]:
        """The budget of each phase: its own, or its share of the run's. Where that is no step, the phase is skipped."""
        configs = [getattr(self, name) for name in self.phases]
        shared = iter(parse_budget(self.budget).split([c.share for c in configs if c.budget is None]))
        return tuple(parse_budget(c.budget) if c.budget else next(shared) for c in configs)
