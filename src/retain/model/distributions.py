"""Distributions that `torch.distributions` lacks, each with what a forecast needs: log_prob, sample and mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D


class Logistic(D.Distribution):
    """The logistic distribution with mean `loc` and standard deviation `scale` · π / √3, each (...)."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor):
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return (self.scale * math.pi).square() / 3

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density."""
        z = (value - self.loc) / self.scale
        return -z - 2 * F.softplus(-z) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability that a sample is at most `value`."""
        return ((value - self.loc) / self.scale).sigmoid()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples."""
        drawn = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * drawn.clamp(1e-6, 1 - 1e-6).logit()


class Quantiles(D.Distribution):
    """The distribution with quantiles `at` (..., Q) at the ascending probabilities `taus`; see `QuantileHead`."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, at: Tensor, taus: Sequence[float]):
        self.at, self.taus = at, torch.tensor(taus, dtype=at.dtype, device=at.device)
        super().__init__(at.shape[:-1], validate_args=False)

    def icdf(self, probability: Tensor) -> Tensor:
        """Return the quantiles at `probability`, whose last axes are those of the distribution."""
        at = self.at.expand(*probability.shape, -1)
        where = torch.searchsorted(self.taus, probability.contiguous()).clamp(1, len(self.taus) - 1)
        low, high = (at.gather(-1, (where - i)[..., None])[..., 0] for i in (1, 0))
        share = (probability - self.taus[where - 1]) / (self.taus[where] - self.taus[where - 1])
        inner = low + share * (high - low)
        left, right = self._tails()
        below = self.at[..., 0] + (probability / self.taus[0]).clamp_min(1e-12).log() / left
        above = self.at[..., -1] - ((1 - probability) / (1 - self.taus[-1])).clamp_min(1e-12).log() / right
        return torch.where(probability < self.taus[0], below, torch.where(probability > self.taus[-1], above, inner))

    def _tails(self) -> tuple[Tensor, Tensor]:
        """Return the decay rates of the two exponential tails, at which the density is continuous."""
        density = self.taus.diff() / self.at.diff(dim=-1)
        return density[..., 0] / self.taus[0], density[..., -1] / (1 - self.taus[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density."""
        density = (self.taus.diff() / self.at.diff(dim=-1)).log()
        where = (value[..., None] > self.at).sum(-1)  # how many quantiles lie below
        between = (where - 1).clamp(0, len(self.taus) - 2)[..., None]
        inner = density.expand(*where.shape, -1).gather(-1, between)[..., 0]
        left, right = self._tails()
        below = density[..., 0] + left * (value - self.at[..., 0])
        above = density[..., -1] - right * (value - self.at[..., -1])
        return torch.where(where == 0, below, torch.where(where == len(self.taus), above, inner))

    @property
    def mean(self) -> Tensor:
        """The mean, tails included."""
        left, right = self._tails()
        inner = ((self.at[..., 1:] + self.at[..., :-1]) / 2 * self.taus.diff()).sum(-1)
        below = self.taus[0] * (self.at[..., 0] - 1 / left)
        return inner + below + (1 - self.taus[-1]) * (self.at[..., -1] + 1 / right)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.at.dtype, device=self.at.device))


class Classes(D.Categorical):
    """`Categorical` whose samples and means are floating-point numbers, like the values of a stream."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the probability."""
        logits = self.logits.log_softmax(-1)
        return logits.gather(-1, value.long().clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples."""
        drawn: Tensor = super().sample(sample_shape)  # type: ignore[no-untyped-call]
        return drawn.to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """The likeliest class, because classes have no mean."""
        return self.logits.argmax(-1).to(self.logits.dtype)


class Steps(D.Distribution):
    """The distribution of values in their own units: of `level` + `scale` · z in float64, with z distributed as `base`.

    Unlike `TransformedDistribution` it has a mean. `base` may be a joint distribution of all values of a step (..., C).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base: Any, level: Tensor, scale: Tensor):
        self.base, self.level, self.scale = base, level.double(), scale.double()
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        mean: Tensor = self.level + self.scale * self.base.mean.double()
        return mean

    @property
    def variance(self) -> Tensor:
        """The variance."""
        variance: Tensor = self.scale.square() * self.base.variance.double()
        return variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples."""
        drawn: Tensor = self.level + self.scale * self.base.sample(torch.Size(sample_shape)).double()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density."""
        z = ((value - self.level) / self.scale).to(self.base.mean.dtype)
        scales = self.scale.log()
        found: Tensor = self.base.log_prob(z).double() - (scales.sum(-1) if self.event_shape else scales)
        return found
