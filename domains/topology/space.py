"""The designs of a problem: which densities are chosen, what is built of them, and how much of it is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_finite, check_option, check_tree
from sciopt.domains.topology.filters import AbstractDensityMap, Chain, SensitivityFilter, Symmetry
from sciopt.domains.topology.filters.abstract import check_axes, check_reach
from sciopt.outer.abstract import AbstractOuterStep
from sciopt.outer.transformed import TransformedGradient

__all__ = ["DesignSpace"]

START = 1e-9  # relative error of the start's volume that is rounding
START_HALVINGS = 50


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DesignSpace:
    """Densities in [0, 1] on a grid, with passive regions, maps from design to structure, and a bound on the volume.

    A design is a field of the grid's shape; with passive regions it is the vector of the densities of the other
    elements, in the order of ``field[active]``, so that outer steps see no variable without effect.

    Args:
        owner: class that messages name.
        shape: of a field over the elements.
        volume_fraction: share of the elements outside ``void`` that may be filled, those of ``solid`` included.
        filter: a map of densities (`DensityFilter`, `HelmholtzFilter`, ..., or a `Chain` of several) is part of the
            problem; a `SensitivityFilter` alters the outer step (see `step`).
        solid: elements that are always material, bool; None: none.
        void: elements that are always empty, bool; None: none.

    Raises:
        ValueError: for a volume fraction outside (0, 1) or below the share of ``solid``, a filter for another number of
            axes, a `SensitivityFilter` with passive regions, or passive regions without the symmetry of the design.

    Example:
        >>> solid = np.array([[True, False, False, False]])
        >>> space = DesignSpace(owner="Doc", shape=(1, 4), volume_fraction=0.5, solid=solid)
        >>> space.physical(space.start()).round(decimals=3)
        tensor([[1.0000, 0.3330, 0.3330, 0.3330]], dtype=torch.float64)
        >>> from sciopt.domains.topology import Chain, DensityFilter, Heaviside
        >>> built = Chain(DensityFilter(1.5), Heaviside(beta=8.0))
        >>> space = DesignSpace(owner="Doc", shape=(1, 4), volume_fraction=0.4, filter=built)
        >>> space.start().round(decimals=3), round(space.volume(space.start()).item(), 9)
        (tensor([[0.4750, 0.4750, 0.4750, 0.4750]], dtype=torch.float64), -0.0)
    """

    owner: str
    shape: tuple[int, ...]
    volume_fraction: float
    filter: AbstractDensityMap | SensitivityFilter | None = None
    solid: np.ndarray | None = None
    void: np.ndarray | None = None
    place: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        v = self.volume_fraction
        advice = "0 leaves nothing to carry the load and 1 nothing to design."
        check_option(self.owner, "volume_fraction", v, 0 < v < 1, "in (0, 1)", advice)
        if isinstance(self.filter, SensitivityFilter):
            check_axes(self.owner, self.filter, len(self.filter.shape), self.shape)
            check_reach(self.owner, self.filter, self.filter.radius, self.shape)
        elif self.filter is not None:
            self.filter.check(self.owner, self.shape)
        object.__setattr__(self, "place", None)
        if self.solid is None and self.void is None:
            return
        if isinstance(self.filter, SensitivityFilter):
            raise ValueError(
                f"{self.owner}: expected a DensityFilter with `solid` or `void` regions, got {self.filter}. The heuristic "
                "on gradients is stated for whole fields; use DensityFilter."
            )
        self._check_symmetry()
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

    def _check_symmetry(self) -> None:
        maps = self.filter.maps if isinstance(self.filter, Chain) else (self.filter,)
        for each in (each for each in maps if isinstance(each, Symmetry)):
            for name in ("solid", "void"):
                mask = getattr(self, name)
                if mask is None:
                    continue
                field = torch.from_numpy(mask.astype(np.float64))
                if not torch.equal(each(field), field):
                    raise ValueError(
                        f"{self.owner}: expected `{name}` with the symmetry of the design, {each}, got a region without. Make "
                        "the region symmetric, or leave the symmetry out."
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
        """The density that is built, ``(*batch, *shape)``: the design's, through the maps if there are any, with the passive
        regions as prescribed; these are what the maps see there, too.

        Raises:
            ValueError: for designs of another shape.
        """
        wanted = self.design_shape
        if tuple(design.shape[-len(wanted) :]) != wanted:
            raise ValueError(
                f"{self.owner}: expected `density` of shape {wanted}, after batch axes if there are any, got "
                f"{tuple(design.shape)}. Resample the field, or transpose it."
            )
        if self.place is None:
            return self._filtered(design)
        place = self.place.to(design.device)
        ends = torch.stack([design.new_zeros(design.shape[:-1]), design.new_ones(design.shape[:-1])], dim=-1)
        spread = torch.cat([design, ends], dim=-1).index_select(-1, place.reshape(-1)).unflatten(-1, self.shape)
        built = self._filtered(spread)
        count = self.design_shape[0]
        return torch.where(place < count, built, (place == count + 1).to(built))

    def _filtered(self, density: Tensor) -> Tensor:
        if not isinstance(self.filter, AbstractDensityMap):
            return density
        built = self.filter(density)
        # A mean of zeros may be rounding below zero, whose powers are not real; the derivative stays that of the mean.
        return built + (built.clamp(min=0.0) - built).detach()

    def volume(self, design: Tensor) -> Tensor:
        """Constraint ``(1,)``, <= 0 where the volume is kept: filled elements minus allowed ones."""
        return (self.physical(design).sum() - self.allowed).reshape(1)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The even design of which just the allowed volume is built.

        Raises:
            ValueError: where even designs are built too large at any density, as by a dilation.
        """
        shape = self.design_shape
        share = self.volume_fraction if self.place is None else (self.allowed - self.num_solid) / shape[0]
        start = torch.full(shape, share, dtype=dtype)
        with torch.no_grad():
            # Means keep the volume; projections, and any map next to passive regions, need not.
            if (
                not isinstance(self.filter, AbstractDensityMap)
                or abs(float(self.volume(start))) <= START * self.allowed
            ):
                return start
            low, high = torch.zeros_like(start), torch.ones_like(start)
            if float(self.volume(low)) > 0:
                raise ValueError(
                    f"{self.owner}: expected a `filter` that builds at most {self.allowed:g} elements of an empty design, got "
                    f"{float(self.volume(low)) + self.allowed:g} from {self.filter}. Raise `volume_fraction`."
                )
            for _ in range(START_HALVINGS):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if float(self.volume(middle)) <= 0 else (low, middle)
        return low

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
