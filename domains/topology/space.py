"""The designs of a problem: which densities are chosen, what is built of them, and how much of it is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_finite, check_option, check_tree
from sciopt.domains.topology.filters import DensityFilter, SensitivityFilter
from sciopt.outer.abstract import AbstractOuterStep
from sciopt.outer.transformed import TransformedGradient

__all__ = ["DesignSpace"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DesignSpace:
    """Densities in [0, 1] on a grid, with passive regions, a filter and a bound on the volume.

    A design is a field of the grid's shape; with passive regions it is the vector of the densities of the other
    elements, in the order of ``field[active]``, so that outer steps see no variable without effect.

    Args:
        owner: class that messages name.
        shape: of a field over the elements.
        volume_fraction: share of the elements outside ``void`` that may be filled, those of ``solid`` included.
        filter: a `DensityFilter` is part of the problem; a `SensitivityFilter` alters the outer step (see `step`).
        solid: elements that are always material, bool; None: none.
        void: elements that are always empty, bool; None: none.

    Raises:
        ValueError: for a volume fraction outside (0, 1) or below the share of ``solid``, a filter for another number of
            axes, or a `SensitivityFilter` with passive regions.

    Example:
        >>> solid = np.array([[True, False, False, False]])
        >>> space = DesignSpace(owner="Doc", shape=(1, 4), volume_fraction=0.5, solid=solid)
        >>> space.physical(space.start()).round(decimals=3)
        tensor([[1.0000, 0.3330, 0.3330, 0.3330]], dtype=torch.float64)
    """

    owner: str
    shape: tuple[int, ...]
    volume_fraction: float
    filter: DensityFilter | SensitivityFilter | None = None
    solid: np.ndarray | None = None
    void: np.ndarray | None = None
    place: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        v = self.volume_fraction
        advice = "0 leaves nothing to carry the load and 1 nothing to design."
        check_option(self.owner, "volume_fraction", v, 0 < v < 1, "in (0, 1)", advice)
        axes = len(self.filter.shape) if isinstance(self.filter, SensitivityFilter) else None
        axes = self.filter.ndim if isinstance(self.filter, DensityFilter) else axes
        if axes not in (None, len(self.shape)):
            raise ValueError(
                f"{self.owner}: expected `filter` for {len(self.shape)} axes, got {self.filter} for {axes}. "
                "Pass `ndim=grid.ndim` (or the grid's shape) to it."
            )
        object.__setattr__(self, "place", None)
        if self.solid is None and self.void is None:
            return
        if isinstance(self.filter, SensitivityFilter):
            raise ValueError(
                f"{self.owner}: expected a DensityFilter with `solid` or `void` regions, got {self.filter}. The heuristic "
                "on gradients is stated for whole fields; use DensityFilter."
            )
        active = np.ones(self.shape, dtype=bool)
        place = np.zeros(self.shape, dtype=np.int64)
        for mask in (self.solid, self.void):
            if mask is not None:
                active &= ~mask
        count = int(active.sum())
        place[active] = np.arange(count)
        place[~active] = count  # after the designed ones: an empty element, then a solid one
        if self.solid is not None:
            place[self.solid] = count + 1
        object.__setattr__(self, "place", torch.from_numpy(place))
        low = (self.allowed - self.num_solid) / count
        if not 0 < low < 1:
            raise ValueError(
                f"{self.owner}: expected `volume_fraction` to leave material for the design, got {v} with {self.num_solid} "
                f"solid and {count} free elements ({self.allowed:g} may be filled). Choose it between."
            )

    @property
    def num_solid(self) -> int:
        """Number of elements that are always material."""
        return 0 if self.solid is None else int(self.solid.sum())

    @property
    def domain_elements(self) -> int:
        """Number of elements outside ``void``."""
        return int(np.prod(self.shape)) - (0 if self.void is None else int(self.void.sum()))

    @property
    def allowed(self) -> float:
        """Number of elements that may be filled."""
        return self.volume_fraction * self.domain_elements

    @property
    def design_shape(self) -> tuple[int, ...]:
        """Shape of a design."""
        if self.place is None:
            return self.shape
        return (int(np.prod(self.shape)) - int((self._passive).sum()),)

    @property
    def _passive(self) -> np.ndarray:
        masks = [mask for mask in (self.solid, self.void) if mask is not None]
        return np.logical_or.reduce(masks)

    def physical(self, design: Tensor) -> Tensor:
        """The density that is built, ``(*batch, *shape)``: the design's, through the density filter if there is one, with
        the passive regions as prescribed."""
        if self.place is None:
            return self._filtered(design)
        place = self.place.to(design.device)
        ends = torch.stack([design.new_zeros(design.shape[:-1]), design.new_ones(design.shape[:-1])], dim=-1)
        spread = torch.cat([design, ends], dim=-1).index_select(-1, place.reshape(-1)).unflatten(-1, self.shape)
        built = self._filtered(spread)
        count = self.design_shape[0]
        return torch.where(place < count, built, (place == count + 1).to(built))

    def _filtered(self, density: Tensor) -> Tensor:
        if not isinstance(self.filter, DensityFilter):
            return density
        built = self.filter(density)
        # A mean of zeros may be rounding below zero, whose powers are not real; the derivative stays that of the mean.
        return built + (built.clamp(min=0.0) - built).detach()

    def volume(self, design: Tensor) -> Tensor:
        """Constraint ``(1,)``, <= 0 where the volume is kept: filled elements minus allowed ones."""
        return (self.physical(design).sum() - self.allowed).reshape(1)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The even distribution of the allowed volume; next to passive regions a filter changes its volume a little."""
        shape = self.design_shape
        if self.place is None:
            return torch.full(shape, self.volume_fraction, dtype=dtype)
        return torch.full(shape, (self.allowed - self.num_solid) / shape[0], dtype=dtype)

    def step(self, base: AbstractOuterStep) -> AbstractOuterStep:
        """``base``, driven by filtered sensitivities if there is a `SensitivityFilter`."""
        return TransformedGradient(base, self.filter) if isinstance(self.filter, SensitivityFilter) else base

    def check(self, density: Tensor) -> None:
        """Check a design before a long solve.

        Raises:
            TypeError: for something else than a floating-point tensor.
            ValueError: for a wrong shape, NaN or Inf, or densities outside [0, 1].
        """
        check_tree(self.owner, "density", density)
        if tuple(density.shape) != self.design_shape:
            names = "(ny, nx) = " if len(self.design_shape) == 2 else ""
            raise ValueError(
                f"{self.owner}: expected `density` of shape {names}{self.design_shape}, got "
                f"{tuple(density.shape)}. Resample the field, or transpose it."
            )
        check_finite(self.owner, "density", [density])
        low, high = float(density.min()), float(density.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"{self.owner}: expected `density` in [0, 1], got values from {low} to {high}. Clip or rescale it."
            )
