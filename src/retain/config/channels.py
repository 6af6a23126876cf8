"""What a step of a stream of numbers holds: to a model of numbers what the size of a vocabulary is to one of tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from retain.errors import UserError

HEADS = (
    *("student", "gaussian", "logistics", "quantiles", "lowrank"),
    *("negative_binomial", "bernoulli", "categorical"),
)
"""What the next values can be distributed as."""
OF_VALUE = 5
"""Numbers of a token for each value: the value, whether it is missing, level, scale, and how many came before."""


@dataclass(frozen=True)
class Channels:
    """What a step of a stream of numbers holds, and how what comes next is scored.

    A step reads C values and the Q covariates of the step that comes next, real numbers first and categories last.
    The model reads it as a token of F numbers, which `retain.ops.scale` makes of it.
    """

    names: tuple[str, ...]
    """Names of the C values, which are both read and predicted."""
    head: str
    """One of HEADS."""
    scale: str
    """What values are measured by: "level", "mean" or "fixed" (see `retain.ops.scale`)."""
    steps: int
    """About so many values make up the running level and scale."""
    level: tuple[float, ...]
    """What the level of each value is before any is read."""
    spread: tuple[float, ...]
    """What its scale is then."""
    least: tuple[float, ...]
    """What the scale is in a stream that moves little. After one value of a stream the scale is at least that."""
    ratio: tuple[float, ...]
    """What the scale is after one value, as a part of that value."""
    covariates: tuple[str, ...] = ()
    """Names of the covariates that are numbers."""
    shift: tuple[float, ...] = ()
    """Their means, and then their standard deviations, over the training split."""
    stretch: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    """Names of the covariates that are categories."""
    kinds: tuple[tuple[str, ...], ...] = ()
    """What each of them can be; code 0 is anything else, and 1 the first of these."""
    classes: int = 0
    """Of a categorical head: values are 0 … classes - 1."""
    frequency: str | None = None
    """The time from one step to the next, as "h" or "15min"; None: steps are only counted."""

    @property
    def values(self) -> int:
        """C, values of a step."""
        return len(self.names)

    @property
    def row(self) -> int:
        """C + Q, the numbers of a step as they are given."""
        return self.values + len(self.covariates) + len(self.categories)

    @property
    def numbers(self) -> int:
        """Numbers of a token that are no codes."""
        return (0 if self.classes else OF_VALUE * self.values) + 2 * len(self.covariates)

    @property
    def codes(self) -> tuple[int, ...]:
        """For each code at a token's end, how many values it can take; 0 is "unknown" or "missing"."""
        own = (self.classes + 1,) * self.values if self.classes else ()
        return (*(len(kinds) + 1 for kinds in self.kinds), *own)

    @property
    def token(self) -> int:
        """F, the numbers of a token."""
        return self.numbers + len(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Channels:
        """Build what `to_dict` gave. Raises UserError for anything else."""

        def tupled(value: Any) -> Any:
            return tuple(map(tupled, value)) if isinstance(value, list) else value

        try:
            return cls(**{name: tupled(value) for name, value in values.items()})
        except TypeError as error:
            raise UserError(f"channels: state.json is not as retain writes it ({error})") from None


Symbols = int | Channels
"""What a model is built for: V, the size of a vocabulary, or the channels of a stream of numbers."""
