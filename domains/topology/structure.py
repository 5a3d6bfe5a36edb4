"""What is held and what is loaded, checked before any solve, and the named benchmark structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from sciopt.domains.topology.grid import Grid

__all__ = ["PRESETS", "Structure", "bridge", "cantilever", "mbb"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """A grid with supports and a load.

    Args:
        grid: the elements.
        fixed: numbers of the unknowns that are held at zero (see `Grid`), any order.
        load: force on every unknown, ``(num_dofs,)``, in units of force; x to the right, y upwards.
        name: what messages and reports call it.

    Raises:
        ValueError: for unknowns out of range, loads that are not finite or do not act on a free unknown, and supports
            that leave a rigid motion free (named in the message).

    Example:
        >>> grid = Grid(nx=2, ny=1)
        >>> Structure(grid=grid, fixed=np.arange(4), load=np.eye(grid.num_dofs)[9], name="strip").free.size
        8
    """

    grid: Grid
    fixed: np.ndarray
    load: np.ndarray
    name: str = "structure"

    def __post_init__(self) -> None:
        n = self.grid.num_dofs
        fixed = np.unique(np.asarray(self.fixed, dtype=np.int64).reshape(-1))
        load = np.array(self.load, dtype=np.float64)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "load", load)
        owner = f"Structure {self.name!r}"
        if fixed.size and not (fixed[0] >= 0 and fixed[-1] < n):
            raise ValueError(
                f"{owner}: expected `fixed` in [0, {n}), got {fixed[0]}..{fixed[-1]}. Number unknowns as Grid says."
            )
        if load.shape != (n,):
            raise ValueError(
                f"{owner}: expected `load` of shape ({n},), got {load.shape}. Give one force per unknown of the grid."
            )
        if not np.isfinite(load).all():
            bad = int(np.flatnonzero(~np.isfinite(load))[0])
            raise ValueError(f"{owner}: expected a finite `load`, got {load[bad]} on unknown {bad}. Correct the load.")
        motions = free_motions(self.grid, fixed)
        if motions:
            raise ValueError(
                f"{owner}: expected supports that hold every rigid motion, got `fixed` that leaves free: "
                f"{', '.join(motions)}. Hold unknowns in {'that direction' if len(motions) == 1 else 'those directions'}."
            )
        if not np.any(load[self.free]):
            raise ValueError(
                f"{owner}: expected a `load` on at least one free unknown, got zero there. Load a node that is not held."
            )

    @property
    def free(self) -> np.ndarray:
        """Numbers of the unknowns that are not held, ascending."""
        return np.setdiff1d(np.arange(self.grid.num_dofs), self.fixed, assume_unique=True)


def free_motions(grid: Grid, fixed: np.ndarray) -> list[str]:
    """Names of the rigid motions that the held unknowns leave free.

    Example:
        >>> free_motions(Grid(nx=2, ny=1), np.array([0, 2]))
        ['translation in y']
    """
    node, axis = np.divmod(fixed, 2)
    x, y = grid.positions()[node].T
    held = np.stack([axis == 0, axis == 1, np.where(axis == 0, -y, x)], axis=-1).astype(float)
    names = [f"translation in {name}" for i, name in enumerate("xy") if not held[:, i].any()]
    rank = int(np.linalg.matrix_rank(held)) if fixed.size else 0
    return [*names, "rotation"] if 3 - rank > len(names) else names


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
