"""Weighted means over a neighbourhood, which keep designs free of checkerboards and give them a length scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sciopt.domains.topology.filters.abstract import (
    AbstractDensityMap,
    check_axes,
    check_ndim,
    check_radius,
    check_reach,
)
from sciopt.domains.topology.filters.cone import cone_sum, cone_weights

__all__ = ["DensityFilter"]


@final
@dataclass(frozen=True)
class DensityFilter(AbstractDensityMap):
    """Physical densities as the weighted mean of the design's: linear, so its hypergradient is exact.

    Args:
        radius: in element sides, >= 1.
        ndim: axes of the grid, 2 or 3.

    Example:
        >>> import torch
        >>> DensityFilter(2.0)(torch.ones(3, 4)).allclose(torch.ones(3, 4))
        True

    References:
        Bruns, Tortorelli. "Topology optimization of non-linear elastic structures and compliant mechanisms". 2001.
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Eq. 9.
    """

    radius: float
    ndim: int = 2

    def __post_init__(self) -> None:
        check_radius("DensityFilter", self.radius)
        check_ndim("DensityFilter", self.ndim)

    def check(self, owner: str, shape: tuple[int, ...]) -> None:
        check_axes(owner, self, self.ndim, shape)
        check_reach(owner, self, self.radius, shape)

    def __call__(self, density: Tensor) -> Tensor:
        """Filtered field; ``(*batch, *grid.shape)`` to the same shape."""
        return cone_sum(density, self.radius, self.ndim) / cone_weights(density, self.radius, self.ndim)
