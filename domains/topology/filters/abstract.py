"""What is built of a design: maps from fields of densities to fields of densities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AXES", "AbstractDensityMap", "check_axes", "check_ndim", "check_radius", "check_reach"]

AXES = "xyz"  # x is the last dimension of a field


class AbstractDensityMap(ABC):
    """One step on the way from the designed densities to the built ones, differentiable at any order.

    Maps are part of the problem: hypergradients go through them. `Chain` applies several, `DesignSpace` takes them.
    """

    @abstractmethod
    def check(self, owner: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError, in the name of ``owner``, where the map does not fit fields of this shape."""

    @abstractmethod
    def __call__(self, density: Tensor, /) -> Tensor:
        """Densities ``(*batch, *shape)``, floating point on any device, to densities of the same shape in [0, 1] up to
        rounding."""


def check_axes(owner: str, map: Any, axes: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a map for so many axes fits fields of this shape.

    Example:
        >>> check_axes("Doc", "a map", 2, (3, 4))
    """
    if axes != len(shape):
        raise ValueError(
            f"{owner}: expected `filter` for {len(shape)} axes, got {map} for {axes}. Pass `ndim=grid.ndim` (or the grid's "
            "shape) to it."
        )


def check_ndim(owner: str, ndim: int) -> None:
    """Raise ValueError for a number of axes other than 2 or 3."""
    check_option(owner, "ndim", ndim, ndim in (2, 3), "to be 2 or 3", "Pass `grid.ndim`.")


def check_radius(owner: str, radius: float) -> None:
    """Raise ValueError for a radius below one element."""
    check_option(
        owner,
        "radius",
        radius,
        1 <= radius < float("inf"),
        ">= 1 element side and finite",
        "2.4 is a common start; 1 filters nothing.",
    )


def check_reach(owner: str, map: Any, radius: float, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a radius beyond the longest side of the domain, which leaves one mean for all elements.

    Example:
        >>> check_reach("Doc", "a map", 4.0, (3, 4))
    """
    if radius > max(shape):
        raise ValueError(
            f"{owner}: expected a `filter` whose radius is at most the longest side of the domain, {max(shape)}, got {map}. "
            "Nothing but a mean is left of a design; lower the radius, 1.5 to 3 element sides are usual."
        )
