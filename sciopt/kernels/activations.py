"""Nonlinearities with closed Gaussian expectations: leaky ReLU (ReLU, absolute value, identity) and erf."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractActivation, same_points

__all__ = ["Erf", "LeakyRelu"]


@final
@dataclass(frozen=True, kw_only=True)
class LeakyRelu(AbstractActivation):
    """``max(x, 0) + slope min(x, 0)``: ReLU at slope 0, the absolute value at -1, the identity at 1.

    Two inputs whose cosine is 1 up to rounding count as coincident: their expectations are exact, and the slope of
    ``E[f' f']``, which is infinite there, is taken as 0.

    Args:
        slope: gain of negative inputs, unitless.

    Example:
        >>> LeakyRelu().coincident(torch.tensor(2.0))
        (tensor(1.), tensor(0.5000))

    References:
        Cho, Saul. "Kernel methods for deep learning". NeurIPS 2009, eq. 6 (orders 1 and 0).
    """

    slope: float = 0.0

    def __post_init__(self) -> None:
        ok = -1e6 < self.slope < 1e6
        check_option("LeakyRelu", "slope", self.slope, ok, "to be a finite number", "0 gives the ReLU.")

    @property
    def gain(self) -> float:
        """``E[f^2] / E[u^2]``."""
        return 0.5 * (1 + self.slope**2)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(x, self.slope)

    def expectations(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.expectations`."""
        return self._all(cross, left, right)[:2]

    def coincident(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.coincident`."""
        return self.gain * variance, torch.full_like(variance, self.gain)

    def curvatures(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `AbstractActivation.curvatures`."""
        value, flat, sine, scale, regular = self._all(cross, left, right)
        bend = (1 - self.slope) ** 2
        safe = torch.where(left > 0, left, 1.0)
        value_left = torch.where(regular, bend / (4 * pi) * scale * sine / safe, 0.0)
        flat_cross = torch.where(regular, bend / (2 * pi) / (sine * scale), 0.0)
        return value, flat, value_left, flat_cross, -0.5 * flat_cross * cross / safe

    def coincident_slopes(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.coincident_slopes`."""
        return torch.full_like(variance, self.gain), torch.zeros_like(variance)

    def _all(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Both expectations, the sine of the angle, the scale, and where the angle is regular (not 0, not pi)."""
        product = left * right
        positive = product > 0
        scale = torch.where(positive, product, 1.0).sqrt()
        cosine = cross / scale
        aligned, opposed = same_points(cosine), same_points(-cosine)
        ends = aligned | opposed
        cosine = torch.where(ends, 0.0, cosine)  # away from the singular ends, so that no gradient is infinite
        angle, sine = torch.acos(cosine), (1 - cosine * cosine).sqrt()
        bend = (1 - self.slope) ** 2
        limit = torch.where(aligned, torch.full_like(cosine, self.gain), self.slope)
        flat = torch.where(ends, limit, bend / (2 * pi) * (pi - angle) + self.slope)
        regular = positive & ~ends
        value = torch.where(regular, scale * (bend / (2 * pi) * sine), 0.0) + cross * flat
        return value, flat, sine, scale, regular


@final
@dataclass(frozen=True)
class Erf(AbstractActivation):
    """The error function, ``2 / sqrt(pi) int_0^x exp(-t^2) dt``: a smooth, bounded sigmoid.

    Example:
        >>> Erf().coincident(torch.tensor(0.0))[1]
        tensor(1.2732)

    References:
        Williams. "Computing with infinite networks". NeurIPS 1996, eq. 11.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def expectations(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.expectations`."""
        root = _root(cross, left, right)
        return 2 / pi * torch.atan2(2 * cross, root), 4 / pi / root

    def coincident(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.coincident`."""
        root = (1 + 4 * variance).sqrt()
        return 2 / pi * torch.atan2(2 * variance, root), 4 / pi / root

    def curvatures(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `AbstractActivation.curvatures`."""
        root = _root(cross, left, right)
        value, flat = 2 / pi * torch.atan2(2 * cross, root), 4 / pi / root
        cubed = flat / (root * root)
        return value, flat, -flat * cross / (1 + 2 * left), 4 * cross * cubed, -(1 + 2 * right) * cubed

    def coincident_slopes(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractActivation.coincident_slopes`."""
        inner = 1 + 4 * variance
        return 4 / pi / ((1 + 2 * variance) * inner.sqrt()), -8 / pi * inner**-1.5


def _root(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``sqrt((1 + 2 left)(1 + 2 right) - 4 cross^2)``, which is at least 1, without cancellation."""
    return (1 + 2 * (left + right) + 4 * (left * right - cross * cross).clamp(min=0)).sqrt()
