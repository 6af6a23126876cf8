"""What is compared: the methods, and how a learning rate is chosen for each."""

from __future__ import annotations

import dataclasses

from retain.config import RunConfig
from retain.config.budget import parse_budget
from retain.config.recipes import RECIPES
from retain.errors import UserError

METHODS = ("smt", "one-step", "hybrid", "smt+bptt", "bptt", "tbptt", "gru", "lstm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: a base run, the methods, and how the learning rate is chosen."""

    config: RunConfig
    """The SMT run; its budget is that of every method, its seed is not used."""
    methods: tuple[str, ...] = ("smt", "bptt", "gru", "lstm")
    seeds: int = 3
    lrs: tuple[str, ...] = ("1/3", "1", "3")
    """Factors on the learning rates, as fractions or numbers."""
    sweep_budget: str | None = None
    lengths: tuple[int, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"methods: {method!r} is none of {', '.join(METHODS)}")
        if not self.methods or not self.lrs:
            raise UserError("methods, lrs: name at least one of each")
        for name in ("methods", "lrs", "lengths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name}: {','.join(map(str, values))} names one twice")
        if self.config.init_from is not None:
            raise UserError(
                f"init_from: every method starts anew; leave out {self.config.init_from} (--init-from None)"
            )
        if "bptt" in self.config.phases and {"smt", "smt+bptt", *RECIPES} & set(self.methods):
            raise UserError(
                f"phases: {' '.join(self.config.phases)}: SMT trains no BPTT here, which smt+bptt shows; "
                "give --phases smt dmt"
            )
        if self.seeds < 1:
            raise UserError(f"seeds: {self.seeds} must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads: {self.threads} must be at least 1")
        if min(self.lengths, default=1) < 1:
            raise UserError(f"lengths: {min(self.lengths)} must be at least 1")
        for text in self.lrs:
            parse_factor(text)
        if self.sweep_budget is not None:
            parse_budget(self.sweep_budget, "sweep-budget")


def parse_factor(text: str) -> float:
    """Read '3', '0.3' or '1/3' as a number. Raises UserError."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"lrs: {text!r} is not a positive factor; write e.g. --lrs 1/3,1,3")
    return value
