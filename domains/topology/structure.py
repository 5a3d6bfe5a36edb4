"""What is held and what is loaded, checked before any solve, and the named benchmark structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import numpy as np

from sciopt.domains.topology.connectivity import describe_place, free_motions, loose_island
from sciopt.domains.topology.grid import Grid

__all__ = ["PRESETS", "Structure", "bridge", "cantilever", "mbb"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """A grid with supports and loads, and where material is prescribed.

    Args:
        grid: the elements.
        fixed: numbers of the unknowns that are held at zero (see `Grid`), any order.
        load: force on every unknown, ``(num_dofs,)``, or one row per load case, ``(cases, num_dofs)``; units of force,
            along x, y (and z).
        name: what messages and reports call it.
        solid: elements that are material in every design, bool of the grid's shape; None: none.
        void: elements that are empty in every design, likewise.
        springs: stiffness of a spring to the ground at every unknown, ``(num_dofs,)``, force per length; None: none.
        loaded_elsewhere: accept a zero ``load``, for structures that carry their own weight alone.

    Raises:
        ValueError: for unknowns out of range, loads that are not finite or do not act on a free unknown, masks of another
            shape or that overlap, supports that leave a rigid motion free (named in the message), and islands of
            material that are loaded or solid but not held.
        TypeError: for a load or springs that require a gradient.

    Example:
        >>> grid = Grid(nx=2, ny=1)
        >>> Structure(grid=grid, fixed=np.arange(4), load=np.eye(grid.num_dofs)[9], name="strip").free.size
        8
    """

    grid: Grid
    fixed: np.ndarray = field(repr=False)
    load: np.ndarray = field(repr=False)
    name: str = "structure"
    solid: np.ndarray | None = field(default=None, repr=False)
    void: np.ndarray | None = field(default=None, repr=False)
    springs: np.ndarray | None = field(default=None, repr=False)
    loaded_elsewhere: bool = False

    def __post_init__(self) -> None:
        n = self.grid.num_dofs
        for name in ("load", "springs"):
            refuse_gradient(f"Structure {self.name!r}", name, getattr(self, name))
        fixed = np.unique(np.asarray(self.fixed, dtype=np.int64).reshape(-1))
        load = np.array(self.load, dtype=np.float64)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "load", load)
        owner = f"Structure {self.name!r}"
        if fixed.size and not (fixed[0] >= 0 and fixed[-1] < n):
            raise ValueError(
                f"{owner}: expected `fixed` in [0, {n}), got {fixed[0]}..{fixed[-1]}. Number unknowns as Grid says."
            )
        if load.shape[-1:] != (n,) or load.ndim > 2 or not load.size:
            raise ValueError(
                f"{owner}: expected `load` of shape ({n},), got {load.shape}. Give one force per unknown of the grid, or a "
                "row of them per load case."
            )
        if not np.isfinite(load).all():
            bad = int(np.argwhere(~np.isfinite(load))[0][-1])
            value = load[~np.isfinite(load)][0]
            raise ValueError(f"{owner}: expected a finite `load`, got {value} on unknown {bad}. Correct the load.")
        self._check_masks(owner)
        self._check_springs(owner)
        motions = free_motions(self.grid, self.held)
        if motions:
            raise ValueError(
                f"{owner}: expected supports that hold every rigid motion, got `fixed` that leaves free: "
                f"{', '.join(motions)}. Hold unknowns in {'that direction' if len(motions) == 1 else 'those directions'}."
            )
        self._check_loads(owner)

    def _check_masks(self, owner: str) -> None:
        for name in ("solid", "void"):
            mask = getattr(self, name)
            if mask is None:
                continue
            mask = np.asarray(mask)
            if mask.shape != self.grid.shape or mask.dtype != bool:
                raise ValueError(
                    f"{owner}: expected `{name}` to be bool of shape {self.grid.shape}, got {mask.dtype} of shape "
                    f"{mask.shape}. Mark each element of the grid True or False."
                )
            object.__setattr__(self, name, mask.copy() if mask.any() else None)
        if self.solid is not None and self.void is not None and bool((self.solid & self.void).any()):
            raise ValueError(
                f"{owner}: expected `solid` and `void` apart, got {int((self.solid & self.void).sum())} elements in both. "
                "Take them out of one."
            )
        if not self.active.any():
            raise ValueError(
                f"{owner}: expected elements to design, got `solid` and `void` that take all of them. Leave some free."
            )

    def _check_springs(self, owner: str) -> None:
        if self.springs is None:
            return
        springs = np.array(self.springs, dtype=np.float64)
        if springs.shape != (self.grid.num_dofs,) or not (np.isfinite(springs) & (springs >= 0)).all():
            raise ValueError(
                f"{owner}: expected `springs` >= 0 of shape ({self.grid.num_dofs},), got shape {springs.shape} and a smallest "
                f"entry of {springs.min() if springs.size else 'none'}. Give one stiffness per unknown."
            )
        object.__setattr__(self, "springs", springs)

    def _check_loads(self, owner: str) -> None:
        rows = np.atleast_2d(self.load)
        idle = np.flatnonzero(~rows[:, self.free].any(axis=1))
        if idle.size and not self.loaded_elsewhere:
            case = f" in case {idle[0]}" if self.load.ndim == 2 else ""
            raise ValueError(
                f"{owner}: expected a `load` on at least one free unknown, got zero there{case}. "
                "Load a node that is not held."
            )
        if self.void is None:
            return  # one island, which `__post_init__` has looked at
        none = np.zeros(self.grid.shape, dtype=bool)
        loose = loose_island(
            self.grid, ~self.void, self.held, np.abs(rows).max(axis=0), none if self.solid is None else self.solid
        )
        if loose is None:
            return
        size, place, motions = loose
        if not size:
            raise ValueError(
                f"{owner}: expected loads on material, got one at {describe_place(place)}, which touches `void` elements "
                "only. Move the load, or the void."
            )
        raise ValueError(
            f"{owner}: expected every loaded or solid island to be held, got one of {size} elements at "
            f"{describe_place(place)} that `void` cuts off and that leaves free: {', '.join(motions)}. Hold it, or join it."
        )

    @property
    def held(self) -> np.ndarray:
        """Numbers of the unknowns that supports or springs hold, ascending."""
        return self.fixed if self.springs is None else np.union1d(self.fixed, np.flatnonzero(self.springs))

    @property
    def free(self) -> np.ndarray:
        """Numbers of the unknowns that are not fixed, ascending."""
        mask = np.ones(self.grid.num_dofs, dtype=bool)
        mask[self.fixed] = False
        return np.flatnonzero(mask)

    @property
    def num_cases(self) -> int | None:
        """Number of load cases; None when ``load`` is a single one without a leading dimension."""
        return None if self.load.ndim == 1 else len(self.load)

    @property
    def active(self) -> np.ndarray:
        """Elements whose density is designed, bool of the grid's shape."""
        active = np.ones(self.grid.shape, dtype=bool)
        for mask in (self.solid, self.void):
            if mask is not None:
                active &= ~mask
        return active


def refuse_gradient(owner: str, name: str, value: object) -> None:
    """Raise TypeError for a tensor that requires a gradient, where numbers are copied and it would be lost.

    Example:
        >>> refuse_gradient("Doc", "load", np.ones(3))
    """
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{owner}: expected numbers for `{name}`, got a tensor that requires a gradient, which would be lost. Detach it; "
            "to differentiate in it, state it as outer parameters: Minimize(lambda u, f: energy.strain_energy(u, density) - "
            "(f * u).sum()) for a load, a `modulus` that depends on the design for a material."
        )


def mbb(grid: Grid) -> Structure:
    """Right half of the Messerschmitt-Boelkow-Blohm beam: symmetry on the left edge, a roller at the lower right, a unit
    force down at the upper left.

    Example:
        >>> mbb(Grid(nx=60, ny=20)).load[1].item()
        -1.0

    References:
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Fig. 1.
    """
    symmetry = 2 * grid.node(0, np.arange(grid.ny + 1))
    roller = 2 * grid.node(grid.nx, grid.ny) + 1
    load = np.zeros(grid.num_dofs)
    load[2 * grid.node(0, 0) + 1] = -1.0
    return Structure(grid=grid, fixed=np.append(symmetry, roller), load=load, name="mbb")


def cantilever(grid: Grid) -> Structure:
    """Clamped along the left edge, a unit force down at the middle of the right edge.

    Example:
        >>> cantilever(Grid(nx=4, ny=2)).fixed.size
        6
    """
    edge = grid.node(0, np.arange(grid.ny + 1))
    load = np.zeros(grid.num_dofs)
    load[2 * grid.node(grid.nx, grid.ny // 2) + 1] = -1.0
    return Structure(grid=grid, fixed=np.concatenate([2 * edge, 2 * edge + 1]), load=load, name="cantilever")


def bridge(grid: Grid) -> Structure:
    """Pinned at both lower corners, a total unit force down spread evenly over the lower edge (the deck).

    Example:
        >>> round(bridge(Grid(nx=4, ny=2)).load.sum().item(), 12)
        -1.0
    """
    corners = grid.node(np.array([0, grid.nx]), grid.ny)
    load = np.zeros(grid.num_dofs)
    load[2 * grid.node(np.arange(grid.nx + 1), grid.ny) + 1] = -1.0 / grid.nx
    load[2 * corners + 1] /= 2
    return Structure(grid=grid, fixed=np.concatenate([2 * corners, 2 * corners + 1]), load=load, name="bridge")


PRESETS: dict[str, Callable[[Grid], Structure]] = {"mbb": mbb, "cantilever": cantilever, "bridge": bridge}
