"""A small builder of structures: a box of elements, what is held, loaded, prescribed, and where, by coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.structure import Structure

__all__ = ["Box", "Builder"]

AXES = "xyz"
Extent = float | tuple[float, float] | None


@final
@dataclass(frozen=True, kw_only=True)
class Box:
    """A region by coordinates in element sides: on each axis a number, a range ``(low, high)``, or None for all of it.

    The origin is the lower left corner of the domain, the last axis points upwards. Nodes have whole coordinates,
    elements are where their centre is.

    Args:
        x: extent to the right.
        y: extent upwards (2D), to the back (3D).
        z: extent upwards (3D).

    Example:
        >>> grid = Grid(nx=4, ny=2)
        >>> Box(x=4).nodes(grid).size, int(Box(x=(0, 2), y=(1, 2)).elements(grid).sum())
        (3, 2)
    """

    x: Extent = None
    y: Extent = None
    z: Extent = None

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Which points ``(..., d)`` lie inside, bounds included."""
        keep = np.ones(points.shape[:-1], dtype=bool)
        for axis, extent in enumerate((self.x, self.y, self.z)[: points.shape[-1]]):
            if extent is not None:
                low, high = extent if isinstance(extent, tuple) else (extent, extent)
                keep &= (points[..., axis] >= low - 1e-9) & (points[..., axis] <= high + 1e-9)
        return keep

    def nodes(self, grid: Grid) -> np.ndarray:
        """Numbers of the nodes inside."""
        return np.flatnonzero(self.inside(grid.positions()))

    def elements(self, grid: Grid) -> np.ndarray:
        """Elements whose centre is inside, bool of the grid's shape."""
        return self.inside(grid.centres())

    def node_shares(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Nodes inside and their shares of an even load over the box (ends of a line carry half), which sum to 1."""
        nodes = self.nodes(grid)
        share = np.ones(nodes.size)
        for values in grid.positions()[nodes].T:
            if nodes.size and values.min() < values.max():
                share[(values == values.min()) | (values == values.max())] /= 2
        return nodes, share / max(share.sum(), 1e-300)


@final
@dataclass(frozen=True, kw_only=True)
class Builder:
    """Build a `Structure` step by step; every step returns a new builder, `build` checks all of it.

    Args:
        grid: the elements.
        name: what messages and reports call the structure.

    Raises:
        ValueError: in the steps for regions without nodes or elements, unknown directions and forces of another length;
            in `build` for everything that `Structure` refuses.

    Example:
        >>> shelf = (
        ...     Builder(grid=Grid(nx=8, ny=6), name="shelf")
        ...     .hold(Box(x=0))
        ...     .push(Box(x=(2, 8), y=6), force=(0, -1))
        ...     .push(Box(x=8, y=6), force=(1, 0), case=1)
        ...     .solid(Box(y=(5, 6)))
        ...     .void(Box(x=(3, 5), y=(2, 4)))
        ...     .build()
        ... )
        >>> shelf.num_cases, int(shelf.active.sum()), shelf.load.sum(axis=1).round(12).tolist()
        (2, 36, [-1.0, 1.0])
    """

    grid: Grid
    name: str = "structure"
    held: tuple[np.ndarray, ...] = ()
    forces: tuple[tuple[int, np.ndarray], ...] = ()
    spring_rows: tuple[np.ndarray, ...] = ()
    solid_masks: tuple[np.ndarray, ...] = ()
    void_masks: tuple[np.ndarray, ...] = ()

    def hold(self, region: Box, directions: str = "") -> Builder:
        """Hold the nodes of a region along ``directions``, e.g. ``"x"`` or ``"yz"``; empty: along all of them."""
        nodes = self._nodes("hold", region)
        axes = self._axes("hold", directions or AXES[: self.grid.ndim])
        return replace(self, held=(*self.held, (nodes[:, None] * self.grid.ndim + axes).reshape(-1)))

    def push(self, region: Box, force: Sequence[float], case: int = 0) -> Builder:
        """Spread a total ``force`` (one entry per axis) evenly over a region, in load case ``case`` (from 0)."""
        self._nodes("push", region)
        d = self.grid.ndim
        ok = len(force) == d
        check_option(self._owner, "force", tuple(force), ok, f"to have {d} entries", "Give one per axis, last one up.")
        check_option(self._owner, "case", case, case >= 0, ">= 0", "Count load cases from 0.")
        nodes, share = region.node_shares(self.grid)
        load = np.zeros((self.grid.num_nodes, d))
        load[nodes] = share[:, None] * np.asarray(force, dtype=float)
        return replace(self, forces=(*self.forces, (case, load.reshape(-1))))

    def spring(self, region: Box, direction: str, stiffness: float) -> Builder:
        """Tie a region to the ground by springs of this total stiffness along ``direction``, spread evenly."""
        self._nodes("spring", region)
        nodes, share = region.node_shares(self.grid)
        ok = stiffness > 0 and np.isfinite(stiffness)
        check_option(self._owner, "stiffness", stiffness, ok, "> 0", "Leave a spring of no stiffness out.")
        row = np.zeros(self.grid.num_dofs)
        for axis in self._axes("spring", direction):
            row[nodes * self.grid.ndim + axis] = share * stiffness
        return replace(self, spring_rows=(*self.spring_rows, row))

    def solid(self, region: Box | np.ndarray) -> Builder:
        """Prescribe material in a region, a `Box` or a bool mask of the grid's shape."""
        return replace(self, solid_masks=(*self.solid_masks, self._mask("solid", region)))

    def void(self, region: Box | np.ndarray) -> Builder:
        """Keep a region empty, a `Box` or a bool mask of the grid's shape."""
        return replace(self, void_masks=(*self.void_masks, self._mask("void", region)))

    def build(self, *, loaded_elsewhere: bool = False) -> Structure:
        """The checked structure; ``loaded_elsewhere`` accepts one without loads (its own weight, prescribed output)."""
        n = self.grid.num_dofs
        cases = 1 + max((case for case, _ in self.forces), default=0)
        load = np.zeros((cases, n))
        for case, force in self.forces:
            load[case] += force
        return Structure(
            grid=self.grid,
            fixed=np.concatenate([np.zeros(0, dtype=np.int64), *self.held]),
            load=load if cases > 1 else load[0],
            name=self.name,
            solid=np.logical_or.reduce(self.solid_masks) if self.solid_masks else None,
            void=np.logical_or.reduce(self.void_masks) if self.void_masks else None,
            springs=np.sum(self.spring_rows, axis=0) if self.spring_rows else None,
            loaded_elsewhere=loaded_elsewhere,
        )

    def unit(self, region: Box, direction: str) -> np.ndarray:
        """Weights ``(num_dofs,)`` that average the displacement along ``direction`` over a region, for objectives."""
        self._nodes("unit", region)
        nodes, share = region.node_shares(self.grid)
        row = np.zeros(self.grid.num_dofs)
        for axis in self._axes("unit", direction):
            row[nodes * self.grid.ndim + axis] = share
        return row

    @property
    def _owner(self) -> str:
        return f"Builder {self.name!r}"

    def _nodes(self, step: str, region: Box) -> np.ndarray:
        nodes = region.nodes(self.grid)
        if not nodes.size:
            raise ValueError(
                f"{self._owner}: expected a `{step}` region with nodes, got {region} with none in a domain of "
                f"{' x '.join(map(str, self.grid.sides))}. Nodes have whole coordinates from 0 to these."
            )
        return nodes

    def _axes(self, step: str, directions: str) -> np.ndarray:
        known = AXES[: self.grid.ndim]
        ok = bool(directions) and all(name in known for name in directions)
        check_option(self._owner, f"directions of {step}", directions, ok, f"out of {known!r}", "Name the axes.")
        return np.array([known.index(name) for name in directions])

    def _mask(self, step: str, region: Box | np.ndarray) -> np.ndarray:
        mask = region.elements(self.grid) if isinstance(region, Box) else np.asarray(region)
        if mask.shape != self.grid.shape or mask.dtype != bool:
            raise ValueError(
                f"{self._owner}: expected a `{step}` mask, bool of shape {self.grid.shape}, got {mask.dtype} of shape "
                f"{mask.shape}. Mark each element of the grid True or False."
            )
        if not mask.any():
            raise ValueError(
                f"{self._owner}: expected a `{step}` region with elements, got {region} with none in a domain of "
                f"{' x '.join(map(str, self.grid.sides))}. Elements have their centres at halves."
            )
        return mask
