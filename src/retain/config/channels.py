"""Channels of a stream of numbers. A model of numbers is built for channels, as one of tokens is for a vocabulary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from retain.errors import UserError

HEADS = (
    *("student", "gaussian", "logistics", "quantiles", "lowrank"),
    *("negative_binomial", "bernoulli", "categorical"),
)
"""Distributions of the next values."""
OF_VALUE = 5
"""Numbers in a token per value: the value, whether it is missing, level, scale, and how many values came before."""


@dataclass(frozen=True)
class Channels:
    """Values and covariates of a step, and the distribution of the next values.

    A step has C values and the Q covariates of the next step. Numeric covariates come first, categories last.
    `retain.ops.scale` turns a step into the token of F numbers that the model reads.
    """

    names: tuple[str, ...]
    """Names of the C values, which are read and predicted."""
    head: str
    """One of HEADS."""
    scale: str
    """How values are normalised: "level", "mean" or "fixed" (see `retain.ops.scale`)."""
    steps: int
    """About how many values the running level and scale average over."""
    level: tuple[float, ...]
    """Level of each value at the start of a stream."""
    spread: tuple[float, ...]
    """Scale of each value at the start of a stream."""
    least: tuple[float, ...]
    """Scale of each value in a stream that changes little. It is the least scale after the first value of a stream."""
    ratio: tuple[float, ...]
    """Scale after the first value of a stream, as a fraction of the size of that value."""
    covariates: tuple[str, ...] = ()
    """Names of the numeric covariates."""
    shift: tuple[float, ...] = ()
    """Means of the numeric covariates over the training split; `stretch` has their standard deviations."""
    stretch: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    """Names of the categorical covariates."""
    kinds: tuple[tuple[str, ...], ...] = ()
    """Values of each categorical covariate. Code 1 is the first of them, and code 0 any other value."""
    classes: int = 0
    """Number of classes of a categorical head, whose values are 0 … classes - 1; 0 for other heads."""
    frequency: str | None = None
    """Time between steps, such as "h" or "15min". None: steps are only counted."""

    @property
    def values(self) -> int:
        """C, the number of values in a step."""
        return len(self.names)

    @property
    def row(self) -> int:
        """C + Q, the raw numbers of a step."""
        return self.values + len(self.covariates) + len(self.categories)

    @property
    def numbers(self) -> int:
        """How many numbers of a token are not codes."""
        return (0 if self.classes else OF_VALUE * self.values) + 2 * len(self.covariates)

    @property
    def codes(self) -> tuple[int, ...]:
        """How many values each code at the end of a token can take. Value 0 is "unknown" or "missing"."""
        own = (self.classes + 1,) * self.values if self.classes else ()
        return (*(len(kinds) + 1 for kinds in self.kinds), *own)

    @property
    def token(self) -> int:
        """F, how many numbers a token has."""
        return self.numbers + len(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Channels:
        """Build channels from the result of `to_dict`. Raises UserError for anything else."""

        def tupled(value: Any) -> Any:
            return tuple(map(tupled, value)) if isinstance(value, list) else value

        try:
            return cls(**{name: tupled(value) for name, value in values.items()})
        except TypeError as error:
            raise UserError(f"channels: state.json has wrong fields ({error})") from None


Symbols = int | Channels
"""What a model is built for: the vocabulary size V, or the channels of a stream of numbers."""
