"""The settings of a run."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from retain.config.budget import Budget, parse_budget
from retain.config.checks import Count, settings
from retain.config.data import TASK_DATA, DataConfig
from retain.config.model import CellConfig, MemoryConfig, TeacherConfig, check_memory
from retain.config.optimizer import OptimizerConfig
from retain.config.phases import PHASES, BPTTConfig, DMTConfig, SMTConfig
from retain.errors import UserError

TRACKERS = ("auto", "tensorboard", "wandb", "trackio")
SEEDS = 2**63


@settings
class RunConfig:
    """All settings of a run."""

    preset: str = ""
    """The preset that these settings came from, as a label only."""
    init_from: str | None = None
    """A run folder to start from: its RNN, and its teacher if the phases use one.
    Sizes and vocabulary must be the same (--config RUN --init-from RUN)."""
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    phases: tuple[Literal["smt", "dmt", "bptt"], ...] = ("smt", "dmt")
    """The phases, in order."""
    budget: str = "240s"
    """Amount of training, split over the phases: e.g. 240s, 5000steps, 20Mtokens, 500ksequential."""
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cell: CellConfig = field(default_factory=CellConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    smt: SMTConfig = field(default_factory=SMTConfig)
    dmt: DMTConfig = field(default_factory=DMTConfig)
    bptt: BPTTConfig = field(default_factory=BPTTConfig)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 if the device has fast bf16 matrix products (CUDA, a CPU with AMX or AVX512_BF16), else fp32. Scores,
    including validation, are always computed in fp32."""
    compile: bool = False
    """torch.compile the objective's modules (needs a C++ compiler). If that fails, the run is eager, with a note. On
    a CPU compilation takes about a minute of the budget in the first run of these sizes, and seconds in later runs."""
    validate_every: str = "60s"
    """Budget between validations. The model of the best validation is exported. A checkpoint is saved at each
    validation and every minute."""
    validation_sequences: Count = 256
    tracker: str | None = "auto"
    """Also log to: auto (tensorboard if installed), tensorboard, wandb, trackio, or None."""

    def __post_init__(self) -> None:
        if self.tracker is not None and self.tracker not in TRACKERS:
            raise UserError(f"tracker: {self.tracker!r} is none of {', '.join(TRACKERS)}, None")
        if not self.phases:
            raise UserError(f"phases: empty; name some of {', '.join(PHASES)}")
        for name in ("budget", "validate_every"):
            parse_budget(getattr(self, name), name)
        self._check_teacher()
        self._check_numbers()
        check_memory(self.memory, self.cell.kind)
        self._check_stores()
        if self.memory.norm == "rms" and self.memory.width == 1:
            raise UserError("memory.width: 1 stores nothing after rms normalisation; use norm batch or a wider memory")
        for phase in set(self.phases):
            steps = {"smt": "steps_per_sequence", "dmt": "horizon", "bptt": "bptt_window"}[phase]
            own = getattr(self, phase)
            value, length = getattr(own, steps), self.data.seq_len
            if own.seq_len is not None and self.data.name in ("digits", *TASK_DATA):
                cut = "every image starts at its first pixel" if self.data.name == "digits" else "tasks are read whole"
                raise UserError(f"{phase}.seq_len: {own.seq_len} is a part of a sequence, and {cut}; leave it out")
            if own.seq_len is not None and self.teacher.labels is not None:
                raise UserError(
                    f"{phase}.seq_len: {own.seq_len} is a part of a sequence, and labels have whole ones; leave it out"
                )
            if own.seq_len is not None and own.seq_len > length:
                raise UserError(f"{phase}.seq_len: {own.seq_len} is longer than data.seq_len {length}")
            if value is not None and value > (own.seq_len or length):
                whose = f"{phase}.seq_len {own.seq_len}" if own.seq_len else f"data.seq_len {length}"
                raise UserError(f"{phase}.{steps}: {value} is longer than {whose}")

    @property
    def reads_model(self) -> bool:
        """Whether training uses the language model of teacher.from, or its labels."""
        taught = "bptt" not in self.phases or len(set(self.phases)) > 1 or self.bptt.lambda_distill > 0
        return self.teacher.from_ is not None and taught

    @property
    def has_teacher(self) -> bool:
        """Whether there is a trained teacher: smt trains it, or dmt takes that of init_from."""
        return "smt" in self.trained or ("dmt" in self.trained and self.init_from is not None)

    @property
    def trained(self) -> tuple[str, ...]:
        """The phases that have at least one step. A small budget leaves nothing for the last phases."""
        return tuple(name for name, budget in zip(self.phases, self.budgets(), strict=True) if budget.amount)

    @property
    def longest_gradient_path(self) -> int:
        """The most applications of f that a gradient crosses in any phase. 1 is one-step supervision."""
        paths = []
        for name in self.trained:
            phase = getattr(self, name)
            length = phase.seq_len or self.data.seq_len
            if name == "smt":
                length = -(-min(length, self.smt.steps_per_sequence or length) // self.smt.num_chunks)
            paths.append(min(phase.bptt_window or length, length))
        return max(paths)

    def left_out(self) -> list[str]:
        """Return a line for each phase that has no step."""
        phases = zip(self.phases, self.budgets(), strict=True)
        return [f"budget: {self.budget} leaves nothing for {name}; it is skipped" for name, b in phases if not b.amount]

    def _check_teacher(self) -> None:
        """Raise UserError if a phase would learn from something untrained."""
        smt, dmt = self.smt, self.dmt
        follows = "dmt" in self.phases and (dmt.lambda_dyn > 0 or dmt.lambda_distill > 0)
        if follows and "smt" not in self.phases[: self.phases.index("dmt")] and self.init_from is None:
            raise UserError(
                "phases: dmt needs the teacher that smt trains; put smt before it, or start from a run that has one "
                "(--init-from RUN)"
            )
        if "bptt" in self.phases and self.bptt.lambda_distill and self.teacher.from_ is None:
            raise UserError(
                f"bptt.lambda_distill: {self.bptt.lambda_distill} needs a language model; give --teacher.from M or "
                "--labels DIR"
            )
        if "smt" not in self.phases:
            return
        has_trunk = self.teacher.from_ is not None or (smt.lambda_trunk > 0 and self.teacher.encoder != "window")
        predicts = smt.lambda_dec > 0 or has_trunk
        if "dmt" in self.phases and dmt.lambda_dec and not smt.lambda_dec:
            raise UserError(f"dmt.lambda_dec: {dmt.lambda_dec} needs a trained decoder; give smt.lambda_dec above 0")
        distilled = {"smt": smt.lambda_distill, "dmt": dmt.lambda_distill if "dmt" in self.phases else 0.0}
        for phase, weight in distilled.items():
            if weight and not predicts:
                raise UserError(f"{phase}.lambda_distill: the teacher predicts nothing; give smt.lambda_dec above 0")
        if self.trained == ("smt",) and not smt.lambda_dec and not smt.lambda_readout and not smt.lambda_distill:
            raise UserError("smt.lambda_readout: nothing trains the readout; set it or smt.lambda_dec above 0")

    def _check_stores(self) -> None:
        """Raise UserError unless memory without normalisation and the store encoder are used together."""
        encoder, norm, kind = self.teacher.encoder, self.memory.norm, self.cell.kind
        if encoder == "store" and kind != "delta":
            raise UserError(f"teacher.encoder: store makes memories of the delta cell, not of {kind}; give another")
        if encoder == "store" and norm != "none":
            raise UserError(f"memory.norm: {norm} would change the stores of the store encoder; give none")
        if norm == "none" and encoder != "store":
            raise UserError(f"memory.norm: without one the {encoder} encoder's memories shrink; give batch, rms or fsq")

    def _check_numbers(self) -> None:
        """Raise UserError for settings of tokens if the data is numbers."""
        if self.data.name != "series":
            return
        for phase in (name for name in ("smt", "dmt") if name in self.phases):
            if weight := getattr(self, phase).lambda_distill:
                raise UserError(f"{phase}.lambda_distill: {weight} is for tokens, but series are numbers; set it to 0")
        if self.teacher.from_ is not None:
            raise UserError(f"teacher.from: {self.teacher.from_} reads tokens, but series are numbers; leave it out")

    def budgets(self) -> tuple[Budget, ...]:
        """Return the budget of each phase. A phase whose share is less than a step is skipped."""
        return tuple(parse_budget(self.budget).split([getattr(self, name).share for name in self.phases]))
