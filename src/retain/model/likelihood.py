"""What the logits of a readout say of the numbers that come next: distributions, their losses and their samples.

Every likelihood has `size`, the logits (..., size) that it reads, and works on targets (..., 2 · C): C values, measured
by level and scale (`retain.ops.scale`) and NaN where one is missing, and their scales.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D

from retain.config.channels import Channels, Symbols
from retain.config.data import IGNORE
from retain.model.distributions import Classes, Logistic, Quantiles, Steps

SMALLEST = 1e-3
"""A distribution's scale is at least this part of the running scale."""
COMPONENTS = 3
"""Logistics of a mixture."""
RANK = 4
"""Factors of a low-rank Gaussian, at most; never more than there are values."""
TAUS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975, 0.99)
"""The quantiles of the head of quantiles."""


def is_asked(targets: Tensor) -> Tensor:
    """Which targets count: (...) of tokens that are not IGNORE, (..., 2 · C) of numbers if any is there."""
    if targets.is_floating_point():
        return ~targets[..., : targets.shape[-1] // 2].isnan().all(-1)
    return targets != IGNORE


def nothing(targets: Tensor) -> float | int:
    """Return the target that never counts, among targets like these."""
    return math.nan if targets.is_floating_point() else IGNORE


def positive(x: Tensor) -> Tensor:
    """Map any number to a scale."""
    return F.softplus(x) + SMALLEST


class Likelihood:
    """Scores values one by one: they are independent given what was read. A subclass says how each is distributed."""

    each: ClassVar[int]
    """Logits for each value."""
    measured: ClassVar[bool] = True
    """Whether the distribution is of measured values, as that of a density is. Else it is of the values themselves."""

    def __init__(self, channels: Channels):
        self.channels = channels
        self.size = channels.values * self.each

    def split(self, logits: Tensor) -> list[Tensor]:
        """Split logits (..., size) into `each` parts (..., C)."""
        return list(logits.unflatten(-1, (self.channels.values, -1)).unbind(-1))

    def of(self, logits: Tensor, scale: Tensor) -> Any:
        """Build the distribution of values (..., C), measured or not; `scale` (..., C) is that of values."""
        raise NotImplementedError

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Score targets (..., 2 · C): nats of each value in its own units, (..., C), and 0 where one is missing."""
        values, scale = targets.chunk(2, -1)
        missing = values.isnan()
        scale = scale.nan_to_num(1.0)
        values = values.masked_fill(missing, 0.0)
        nats: Tensor
        if self.measured:
            nats = scale.log() - self.of(logits, scale).log_prob(values)
        else:
            nats = -self.of(logits, scale).log_prob((values * scale).round())
        return nats.masked_fill(missing, 0.0)

    def of_steps(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Score all values of a step: nats (...) of targets (..., 2 · C)."""
        return self.nats(logits, targets).sum(-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is trained, (..., C) or (...): the nats, but for the head of quantiles."""
        return self.nats(logits, targets)

    def distribution(self, logits: Tensor, level: Tensor, scale: Tensor) -> Any:
        """Build the distribution of values (..., C) in their own units; level and scale (..., C)."""
        of = self.of(logits, scale)
        return Steps(of, level, scale) if self.measured else of


class Gaussian(Likelihood):
    """A normal distribution."""

    each = 2

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it, as `Likelihood.of` says."""
        loc, spread = self.split(logits)
        return D.Normal(loc, positive(spread), validate_args=False)


class Student(Likelihood):
    """Student's t with more than 2 degrees of freedom: a Gaussian that is not surprised by outliers."""

    each = 3

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it, as `Likelihood.of` says."""
        loc, spread, freedom = self.split(logits)
        return D.StudentT(2 + positive(freedom), loc, positive(spread), validate_args=False)


class Logistics(Likelihood):
    """A mixture of logistic distributions: several peaks, or a skewed one (Salimans et al. 2017)."""

    each = 3 * COMPONENTS

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it, as `Likelihood.of` says."""
        weight, loc, spread = logits.unflatten(-1, (self.channels.values, 3, COMPONENTS)).unbind(-2)
        loc = loc + torch.linspace(-1, 1, COMPONENTS, dtype=loc.dtype, device=loc.device)  # they start apart
        mixture = D.Categorical(logits=weight, validate_args=False)
        return D.MixtureSameFamily(mixture, Logistic(loc, positive(spread)), validate_args=False)


class QuantileHead(Likelihood):
    """Quantiles at TAUS, trained by the pinball loss (Koenker & Bassett 1978).

    Between them the density is constant, and beyond them it falls exponentially: by that, samples are drawn and nats
    counted.
    """

    each = len(TAUS)

    def of(self, logits: Tensor, scale: Tensor) -> Quantiles:
        """Build it, as `Likelihood.of` says."""
        parts = logits.unflatten(-1, (self.channels.values, -1))
        middle = len(TAUS) // 2
        steps = F.softplus(parts) * 0.2 + SMALLEST / len(TAUS)
        below = parts[..., middle : middle + 1] - steps[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = parts[..., middle : middle + 1] + steps[..., middle + 1 :].cumsum(-1)
        return Quantiles(torch.cat([below, parts[..., middle : middle + 1], above], -1), TAUS)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Twice the mean pinball loss over TAUS, (..., C), in running scales; 0 where a value is missing."""
        values, scale = targets.chunk(2, -1)
        missing = values.isnan()
        apart = values.masked_fill(missing, 0.0)[..., None] - self.of(logits, scale).at
        taus = torch.tensor(TAUS, dtype=apart.dtype, device=apart.device)
        return (2 * torch.maximum(taus * apart, (taus - 1) * apart)).mean(-1).masked_fill(missing, 0.0)


class LowRank(Likelihood):
    """One Gaussian of all values of a step, whose covariance is a diagonal plus a few factors."""

    @property
    def each(self) -> int:  # type: ignore[override]
        """Logits for each value."""
        return 2 + min(RANK, self.channels.values)

    def of(self, logits: Tensor, scale: Tensor) -> D.LowRankMultivariateNormal:
        """Build it over measured values."""
        loc, spread, *factors = self.split(logits)
        return D.LowRankMultivariateNormal(
            loc, torch.stack(factors, -1) / math.sqrt(len(factors)), positive(spread).square(), validate_args=False
        )

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Score targets (..., 2 · C) together, (...); values that are missing are integrated out."""
        values, scale = targets.chunk(2, -1)
        missing = values.isnan()
        of = self.of(logits, scale)
        # A missing value becomes a standard normal of its own, seen at its mean: all that it adds is known.
        there = D.LowRankMultivariateNormal(
            of.loc,
            of.cov_factor.masked_fill(missing[..., None], 0.0),
            of.cov_diag.masked_fill(missing, 1.0),
            validate_args=False,
        )
        added = missing.sum(-1) * (0.5 * math.log(2 * math.pi))
        scales = scale.nan_to_num(1.0).log().masked_fill(missing, 0.0).sum(-1)
        nats: Tensor = scales - there.log_prob(torch.where(missing, of.loc, values)) - added
        return nats

    def of_steps(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Score all values of a step, (...)."""
        return self.nats(logits, targets)


class NegativeBinomial(Likelihood):
    """Counts 0, 1, …, with a variance above their mean (as Salinas et al. 2020)."""

    each = 2
    measured = False

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it over the counts."""
        mean, spread = self.split(logits)
        mean = (F.softplus(mean) + 1e-5) * scale
        total = 1 / (F.softplus(spread) + 1e-3)
        return D.NegativeBinomial(total, logits=mean.log() - total.log(), validate_args=False)


class Bernoulli(Likelihood):
    """0 or 1."""

    each = 1
    measured = False

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it."""
        return D.Bernoulli(logits=self.split(logits)[0], validate_args=False)


class Categorical(Likelihood):
    """One of the classes 0 … V - 1."""

    measured = False

    @property
    def each(self) -> int:  # type: ignore[override]
        """Logits for each value."""
        return self.channels.classes

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build it."""
        return Classes(logits=logits.unflatten(-1, (self.channels.values, -1)), validate_args=False)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "student": Student,
    "gaussian": Gaussian,
    "logistics": Logistics,
    "quantiles": QuantileHead,
    "lowrank": LowRank,
    "negative_binomial": NegativeBinomial,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
}
"""The class of each of HEADS."""


def likelihood_of(symbols: Symbols) -> Likelihood | None:
    """Return what scores numbers; None for tokens, whose loss is the cross-entropy of their logits."""
    return LIKELIHOODS[symbols.head](symbols) if isinstance(symbols, Channels) else None


def count_scores(symbols: Symbols) -> int:
    """Return how many logits a readout has: V, or those of a likelihood of numbers."""
    likelihood = likelihood_of(symbols)
    return symbols if isinstance(symbols, int) else likelihood.size if likelihood else 0
