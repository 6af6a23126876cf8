"""Likelihoods: the distribution of the next numbers that a readout's logits give, and the loss of each distribution.

A likelihood reads logits (..., size) and targets (..., 2 · C): C values, then their C scales. The values are measured,
as (value - level) / scale (`retain.ops.scale`). A missing value is NaN.
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
"""The smallest scale of a distribution, as a fraction of the running scale."""
COMPONENTS = 3
"""Logistic distributions in a mixture."""
RANK = 4
"""The most factors of a low-rank Gaussian, which never has more factors than values."""
TAUS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975, 0.99)
"""The probabilities at which `QuantileHead` gives quantiles."""


def is_asked(targets: Tensor) -> Tensor:
    """Whether each target counts, (...): a token (...) other than IGNORE; numbers (..., 2 · C) not all missing."""
    if targets.is_floating_point():
        return ~targets[..., : targets.shape[-1] // 2].isnan().all(-1)
    return targets != IGNORE


def nothing(targets: Tensor) -> float | int:
    """Return the target that never counts: NaN for numbers, IGNORE for tokens."""
    return math.nan if targets.is_floating_point() else IGNORE


def positive(x: Tensor) -> Tensor:
    """Map any number to a scale of at least SMALLEST."""
    return F.softplus(x) + SMALLEST


class Likelihood:
    """A likelihood under which values are independent given the memory. A subclass says how each is distributed."""

    each: ClassVar[int]
    """Logits for each value."""
    measured: ClassVar[bool] = True
    """Whether the distribution is over measured values, as densities are, or over the values themselves."""

    def __init__(self, channels: Channels):
        self.channels = channels
        self.size = channels.values * self.each

    def split(self, logits: Tensor) -> list[Tensor]:
        """Split logits (..., size) into `each` parts (..., C)."""
        return list(logits.unflatten(-1, (self.channels.values, -1)).unbind(-1))

    def of(self, logits: Tensor, scale: Tensor) -> Any:
        """Build the distribution of values (..., C), measured or not; `scale` (..., C) is that of the values."""
        raise NotImplementedError

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the nats (..., C) of each value of targets (..., 2 · C) in its own units; 0 for a missing value."""
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
        """Return the nats (...) of all values of a step together, given targets (..., 2 · C)."""
        return self.nats(logits, targets).sum(-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss, (..., C) or (...): the nats, except for `QuantileHead`."""
        return self.nats(logits, targets)

    def distribution(self, logits: Tensor, level: Tensor, scale: Tensor) -> Any:
        """Build the distribution of values (..., C) in their own units; level and scale (..., C)."""
        of = self.of(logits, scale)
        return Steps(of, level, scale) if self.measured else of


class Gaussian(Likelihood):
    """A normal distribution."""

    each = 2

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution; see `Likelihood.of`."""
        loc, spread = self.split(logits)
        return D.Normal(loc, positive(spread), validate_args=False)


class Student(Likelihood):
    """Student's t with more than 2 degrees of freedom, which is less sensitive to outliers than a Gaussian."""

    each = 3

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution; see `Likelihood.of`."""
        loc, spread, freedom = self.split(logits)
        return D.StudentT(2 + positive(freedom), loc, positive(spread), validate_args=False)


class Logistics(Likelihood):
    """A mixture of logistic distributions, which can be skewed or have several peaks (Salimans et al. 2017)."""

    each = 3 * COMPONENTS

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution; see `Likelihood.of`."""
        weight, loc, spread = logits.unflatten(-1, (self.channels.values, 3, COMPONENTS)).unbind(-2)
        loc = loc + torch.linspace(-1, 1, COMPONENTS, dtype=loc.dtype, device=loc.device)  # the components start apart
        mixture = D.Categorical(logits=weight, validate_args=False)
        return D.MixtureSameFamily(mixture, Logistic(loc, positive(spread)), validate_args=False)


class QuantileHead(Likelihood):
    """Quantiles at TAUS, trained by the pinball loss (Koenker & Bassett 1978).

    The density is constant between quantiles and falls exponentially beyond them. Samples and nats follow from it.
    """

    each = len(TAUS)

    def of(self, logits: Tensor, scale: Tensor) -> Quantiles:
        """Build the distribution; see `Likelihood.of`."""
        parts = logits.unflatten(-1, (self.channels.values, -1))
        middle = len(TAUS) // 2
        steps = F.softplus(parts) * 0.2 + SMALLEST / len(TAUS)
        below = parts[..., middle : middle + 1] - steps[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = parts[..., middle : middle + 1] + steps[..., middle + 1 :].cumsum(-1)
        return Quantiles(torch.cat([below, parts[..., middle : middle + 1], above], -1), TAUS)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return twice the mean pinball loss over TAUS, (..., C), in running scales; 0 for a missing value."""
        values, scale = targets.chunk(2, -1)
        missing = values.isnan()
        apart = values.masked_fill(missing, 0.0)[..., None] - self.of(logits, scale).at
        taus = torch.tensor(TAUS, dtype=apart.dtype, device=apart.device)
        return (2 * torch.maximum(taus * apart, (taus - 1) * apart)).mean(-1).masked_fill(missing, 0.0)


class LowRank(Likelihood):
    """One Gaussian over all values of a step, whose covariance is a diagonal plus a few factors."""

    @property
    def each(self) -> int:  # type: ignore[override]
        """Logits for each value."""
        return 2 + min(RANK, self.channels.values)

    def of(self, logits: Tensor, scale: Tensor) -> D.LowRankMultivariateNormal:
        """Build the distribution over measured values."""
        loc, spread, *factors = self.split(logits)
        return D.LowRankMultivariateNormal(
            loc, torch.stack(factors, -1) / math.sqrt(len(factors)), positive(spread).square(), validate_args=False
        )

    def nats(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the nats (...) of all values of targets (..., 2 · C) together. Missing values are integrated out."""
        values, scale = targets.chunk(2, -1)
        missing = values.isnan()
        of = self.of(logits, scale)
        # A missing value becomes an independent standard normal at its mean, whose nats are known and subtracted.
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
        """Return the nats (...) of all values of a step together."""
        return self.nats(logits, targets)


class NegativeBinomial(Likelihood):
    """Counts 0, 1, …, with a variance above their mean (as Salinas et al. 2020)."""

    each = 2
    measured = False

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution over the counts."""
        mean, spread = self.split(logits)
        mean = (F.softplus(mean) + 1e-5) * scale
        total = 1 / (F.softplus(spread) + 1e-3)
        return D.NegativeBinomial(total, logits=mean.log() - total.log(), validate_args=False)


class Bernoulli(Likelihood):
    """0 or 1."""

    each = 1
    measured = False

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution."""
        return D.Bernoulli(logits=self.split(logits)[0], validate_args=False)


class Categorical(Likelihood):
    """One of the classes 0 … V - 1."""

    measured = False

    @property
    def each(self) -> int:  # type: ignore[override]
        """Logits for each value."""
        return self.channels.classes

    def of(self, logits: Tensor, scale: Tensor) -> D.Distribution:
        """Build the distribution."""
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
"""The class of each head in HEADS."""


def likelihood_of(symbols: Symbols) -> Likelihood | None:
    """Return the likelihood of numbers; None for tokens, whose loss is the cross-entropy of their logits."""
    return LIKELIHOODS[symbols.head](symbols) if isinstance(symbols, Channels) else None


def count_scores(symbols: Symbols) -> int:
    """Return the number of logits of a readout: V, or the size of a likelihood of numbers."""
    likelihood = likelihood_of(symbols)
    return symbols if isinstance(symbols, int) else likelihood.size if likelihood else 0
