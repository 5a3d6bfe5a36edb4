"""Monotone maps of scores to what a Gaussian process can model, with slopes and inverses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = [
    "AbstractScoreTransform",
    "Logarithm",
    "PlainScores",
    "ShiftedLogarithm",
    "YeoJohnson",
    "fit_shifted_logarithm",
    "fit_yeo_johnson",
    "log_likelihood",
    "suggested_transforms",
]

OFFSETS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)  # of the range of the scores


class AbstractScoreTransform(ABC):
    """An increasing map of scores to latent values. Concrete ones are frozen dataclasses."""

    @abstractmethod
    def forward(self, scores: Tensor) -> Tensor:
        """Latent values, elementwise."""

    @abstractmethod
    def inverse(self, latent: Tensor) -> Tensor:
        """Scores, elementwise; values beyond the map's range become its end."""

    @abstractmethod
    def log_slope(self, scores: Tensor) -> Tensor:
        """Logarithm of the derivative of `forward`."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""


@final
@dataclass(frozen=True)
class PlainScores(AbstractScoreTransform):
    """The scores themselves.

    Example:
        >>> PlainScores().forward(torch.tensor([2.0]))
        tensor([2.])
    """

    def forward(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.forward`."""
        return scores

    def inverse(self, latent: Tensor) -> Tensor:
        """See `AbstractScoreTransform.inverse`."""
        return latent

    def log_slope(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.log_slope`."""
        return torch.zeros_like(scores)

    def describe(self) -> str:
        """See `AbstractScoreTransform.describe`."""
        return "the scores as they are"


@final
@dataclass(frozen=True)
class Logarithm(AbstractScoreTransform):
    """The logarithm of positive scores: errors are ratios.

    Example:
        >>> Logarithm().inverse(Logarithm().forward(torch.tensor([2.0])))
        tensor([2.])
    """

    def forward(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.forward`."""
        return scores.log()

    def inverse(self, latent: Tensor) -> Tensor:
        """See `AbstractScoreTransform.inverse`."""
        return latent.exp()

    def log_slope(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.log_slope`."""
        return -scores.log()

    def describe(self) -> str:
        """See `AbstractScoreTransform.describe`."""
        return "the logarithm of the scores"


@final
@dataclass(frozen=True, kw_only=True)
class ShiftedLogarithm(AbstractScoreTransform):
    """``log(score - low + offset)``: large scores differ by ratios, those near the lowest by amounts.

    For scores that are products of what parts contribute, where many designs hardly score at all: the offset is about the
    noise of theirs, so that their differences do not count more than they are worth.

    Args:
        low: the lowest score.
        offset: in units of the scores, > 0.

    Raises:
        ValueError: for an offset that is not positive.

    Example:
        >>> transform = ShiftedLogarithm(low=0.0, offset=1.0)
        >>> transform.inverse(transform.forward(torch.tensor([0.0, 2.0])))
        tensor([0., 2.])
    """

    low: float
    offset: float

    def __post_init__(self) -> None:
        check_option("ShiftedLogarithm", "offset", self.offset, self.offset > 0, "> 0", "Pass the noise of low scores.")

    def forward(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.forward`."""
        return self._above(scores).log()

    def inverse(self, latent: Tensor) -> Tensor:
        """See `AbstractScoreTransform.inverse`."""
        return latent.exp() + (self.low - self.offset)

    def log_slope(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.log_slope`."""
        return -self._above(scores).log()

    def describe(self) -> str:
        """See `AbstractScoreTransform.describe`."""
        return f"the logarithm of the scores above {self.low:.3g}, plus {self.offset:.3g}"

    def _above(self, scores: Tensor) -> Tensor:
        return (scores - self.low).clamp(min=0) + self.offset


@final
@dataclass(frozen=True, kw_only=True)
class YeoJohnson(AbstractScoreTransform):
    """A power of standardised scores that draws in one tail and stretches the other, for scores of either sign.

    With ``z = (score - centre) / scale``: ``((1 + z)^power - 1) / power`` for z >= 0 and ``-((1 - z)^(2 - power) - 1) / (2 -
    power)`` for z < 0. Both ends are open for ``power`` in (0, 2).

    Args:
        power: in [0, 2]; 1 changes nothing.
        centre: in units of the scores.
        scale: in units of the scores, > 0.

    Example:
        >>> transform = YeoJohnson(power=0.5, centre=0.0, scale=1.0)
        >>> transform.forward(torch.tensor([3.0])), transform.inverse(torch.tensor([2.0]))
        (tensor([2.]), tensor([3.]))

    References:
        Yeo, Johnson. "A new family of power transformations to improve normality or symmetry". Biometrika 87, 2000.
    """

    power: float
    centre: float
    scale: float

    def __post_init__(self) -> None:
        check_option("YeoJohnson", "power", self.power, 0 < self.power < 2, "in (0, 2)", "1 changes nothing.")
        check_option("YeoJohnson", "scale", self.scale, self.scale > 0, "> 0", "Pass a standard deviation.")

    def forward(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.forward`."""
        z, a, b = (scores - self.centre) / self.scale, self.power, 2 - self.power
        high = ((1 + z.clamp(min=0)) ** a - 1) / a
        low = ((1 - z.clamp(max=0)) ** b - 1) / b
        return torch.where(z >= 0, high, -low)

    def inverse(self, latent: Tensor) -> Tensor:
        """See `AbstractScoreTransform.inverse`."""
        a, b = self.power, 2 - self.power
        high = (1 + a * latent.clamp(min=0)) ** (1 / a) - 1
        low = (1 - b * latent.clamp(max=0)) ** (1 / b) - 1
        return self.centre + self.scale * torch.where(latent >= 0, high, -low)

    def log_slope(self, scores: Tensor) -> Tensor:
        """See `AbstractScoreTransform.log_slope`."""
        z = (scores - self.centre) / self.scale
        power = torch.where(z >= 0, self.power - 1, 1 - self.power)
        return power * torch.log1p(z.abs()) - torch.log(torch.as_tensor(self.scale).to(z))

    def describe(self) -> str:
        """See `AbstractScoreTransform.describe`."""
        return f"a power of the scores (Yeo-Johnson, {self.power:.2f})"


def fit_yeo_johnson(scores: Tensor) -> YeoJohnson:
    """The power in [0.1, 1.9] under which the scores look most like normal ones (maximum likelihood on a grid of 37).

    Args:
        scores: ``(n,)``, not constant.

    Returns:
        `YeoJohnson`, centred at the median.

    Example:
        >>> scores = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
        >>> fit_yeo_johnson(scores).power < 0.6
        True
    """
    centre, scale = float(scores.median()), float(scores.std(correction=0))
    candidates = [YeoJohnson(power=k / 20, centre=centre, scale=scale) for k in range(2, 39)]
    return max(candidates, key=lambda transform: log_likelihood(transform, scores))


def fit_shifted_logarithm(scores: Tensor) -> ShiftedLogarithm:
    """The offset, of 0.1 to 0.001 of the scores' range, under which they look most like normal ones (maximum likelihood).

    Where several scores equal the lowest, it is not less than the step from there to the next one, below which nothing was
    resolved: the likelihood of a logarithm has no bound at a mass of equal scores.

    Args:
        scores: ``(n,)``, not constant.

    Returns:
        `ShiftedLogarithm`, above the lowest score.

    Example:
        >>> scores = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).exp()
        >>> fit_shifted_logarithm(scores).offset / float(scores.max()) < 0.01
        True
        >>> fit_shifted_logarithm(torch.tensor([0.0, 0.0, 0.0, 0.25, 0.5])).offset
        0.25
    """
    low, span = float(scores.min()), float(scores.max() - scores.min())
    above = scores[scores > low]
    least = float(above.min()) - low if len(scores) > len(above) + 1 else 0.0
    candidates = [ShiftedLogarithm(low=low, offset=max(least, share * span)) for share in OFFSETS]
    return max(candidates, key=lambda transform: log_likelihood(transform, scores))


def log_likelihood(transform: AbstractScoreTransform, scores: Tensor) -> float:
    """Mean log density of scores whose transforms are normal, with their own mean and variance, up to a constant.

    Example:
        >>> log_likelihood(PlainScores(), torch.tensor([-1.0, 1.0]))
        0.0
    """
    return float(transform.log_slope(scores).mean() - transform.forward(scores).std(correction=0).log())


def suggested_transforms(scores: Tensor, gain: float = 3.0) -> list[AbstractScoreTransform]:
    """The scores as they are, and what else their distribution suggests.

    Args:
        scores: ``(n,)``, not constant.
        gain: nats of likelihood that a shifted logarithm has to bring above the others.

    Example:
        >>> [type(transform).__name__ for transform in suggested_transforms(torch.tensor([1.0, 2.0, 3.0, 4.0]))]
        ['PlainScores']
    """
    found: list[AbstractScoreTransform] = [PlainScores()]
    low, high = float(scores.min()), float(scores.max())
    if low > 0 and high / low >= 10:
        found.append(Logarithm())
    power = fit_yeo_johnson(scores)
    if abs(power.power - 1) >= 0.15:
        found.append(power)
    shifted = fit_shifted_logarithm(scores)
    best = max(log_likelihood(other, scores) for other in found)
    return [*found, shifted] if log_likelihood(shifted, scores) > best + gain / len(scores) else found
