"""The filter by a differential equation, solved exactly in the basis of cosines."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.topology.filters.abstract import AbstractDensityMap, check_axes, check_ndim, check_reach

__all__ = ["HelmholtzFilter"]


@final
@dataclass(frozen=True)
class HelmholtzFilter(AbstractDensityMap):
    """Filtered densities as the solution of ``-r^2 lap(y) + y = x`` with no flux through the boundary.

    It smooths about as the density filter of the same radius does (along a line both means have the same second moment),
    at a cost that does not grow with the radius, and keeps the sum of the densities, next to boundaries too. On a box of equal
    elements the cosine transform is the inverse: exact to rounding, linear and its own adjoint, O(n log n).

    Args:
        radius: R of the density filter that it stands for, in element sides, > 0; ``r = R / (2 sqrt(3))``.
        ndim: axes of the grid, 2 or 3.
        nodal: the finite elements of the paper, whose nodal field is averaged from and back to the elements, in place
            of finite volumes. Both agree where the radius spans several elements; below, the nodal form blurs by one
            element more and may leave [0, 1].

    Raises:
        ValueError: for a radius that is not positive.

    Example:
        >>> x = torch.zeros(1, 5, dtype=torch.float64)
        >>> x[0, 2] = 1.0
        >>> y = HelmholtzFilter(2.0)(x)
        >>> y.round(decimals=3), round(y.sum().item(), 12)
        (tensor([[0.0340, 0.1380, 0.6550, 0.1380, 0.0340]], dtype=torch.float64), 1.0)

    References:
        Lazarov, Sigmund. "Filters in topology optimization based on Helmholtz-type differential equations". 2011. Eq. 3,
        4 and 7 (r), section 3 (finite elements).
    """

    radius: float
    ndim: int = 2
    nodal: bool = False

    def __post_init__(self) -> None:
        advice = "2.4 is a common start."
        check_option(
            "HelmholtzFilter",
            "radius",
            self.radius,
            0 < self.radius < float("inf"),
            "finite and > 0 element sides",
            advice,
        )
        check_ndim("HelmholtzFilter", self.ndim)

    @property
    def length(self) -> float:
        """The length r of the equation, in element sides."""
        return self.radius / (2 * sqrt(3))

    def check(self, owner: str, shape: tuple[int, ...]) -> None:
        check_axes(owner, self, self.ndim, shape)
        check_reach(owner, self, self.radius, shape)

    def __call__(self, density: Tensor) -> Tensor:
        """Filtered field; ``(*batch, *grid.shape)`` to the same shape."""
        axes = range(-self.ndim, 0)
        out = density
        for axis in axes:
            out = _cosines(out, axis)
        out = out * self._multiplier(density)
        for axis in axes:
            out = _from_cosines(out, axis, density.shape[axis])
        return out

    def _multiplier(self, like: Tensor) -> Tensor:
        """What each product of cosines is multiplied with, ``grid.shape``."""
        stiffness, mass, mean = [], [], []
        for axis in range(-self.ndim, 0):
            n = like.shape[axis]
            cosine = torch.cos(torch.arange(n, dtype=like.dtype, device=like.device) * (pi / n))
            cosine = cosine.reshape(-1, *[1] * (-1 - axis))
            stiffness.append(2 - 2 * cosine)
            mass.append((2 + cosine) / 3 if self.nodal else torch.ones_like(cosine))
            mean.append((1 + cosine) / 2 if self.nodal else torch.ones_like(cosine))
        below, above = _product(mass), _product(mean)
        for axis in range(self.ndim):
            below = below + self.length**2 * _product([*mass[:axis], stiffness[axis], *mass[axis + 1 :]])
        return above / below


def _product(factors: list[Tensor]) -> Tensor:
    out = factors[0]
    for factor in factors[1:]:
        out = out * factor
    return out


def _phase(n: int, like: Tensor) -> Tensor:
    """Half-sample shift of the coefficients of a mirrored signal."""
    angle = torch.arange(n, dtype=like.dtype, device=like.device) * (pi / (2 * n))
    return torch.polar(torch.ones_like(angle), angle)


def _cosines(field: Tensor, axis: int) -> Tensor:
    """Coefficients ``2 sum_i x_i cos(pi k (i + 1/2) / n)`` along one axis: the transform of the mirrored field."""
    field = field.movedim(axis, -1)
    n = field.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([field, field.flip(-1)], dim=-1))[..., :n]
    return (spectrum * _phase(n, field).conj()).real.movedim(-1, axis)


def _from_cosines(coefficients: Tensor, axis: int, n: int) -> Tensor:
    """The field with these coefficients; the highest one of a mirrored signal is zero."""
    coefficients = coefficients.movedim(axis, -1)
    spectrum = torch.nn.functional.pad(coefficients * _phase(n, coefficients), (0, 1))
    return torch.fft.irfft(spectrum, n=2 * n)[..., :n].movedim(-1, axis)
