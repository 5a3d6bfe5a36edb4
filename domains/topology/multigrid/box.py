"""Boxes of cubes: numbering, supports and loads of three-dimensional structures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.multigrid.lattice import Lattice

__all__ = ["Box", "BoxStructure", "box_cantilever"]


@final
@dataclass(frozen=True, kw_only=True)
class Box:
    """``nx`` by ``ny`` by ``nz`` cubes of side 1; fields over elements are ``(nz, ny, nx)``, each axis from low to high.

    Node (i, j, k) has the number ``(k (ny + 1) + j) (nx + 1) + i``, its displacement along axis c the number
    ``c num_nodes + node``.

    Args:
        nx: elements along x.
        ny: elements along y.
        nz: elements along z.

    Raises:
        ValueError: for sizes that are not positive ints.

    Example:
        >>> box = Box(nx=3, ny=2, nz=1)
        >>> box.shape, box.num_elements, int(box.node(3, 2, 1)), int(box.dof(box.node(0, 0, 0), 2))
        ((1, 2, 3), 6, 23, 48)
    """

    nx: int
    ny: int
    nz: int

    def __post_init__(self) -> None:
        for name in ("nx", "ny", "nz"):
            size = getattr(self, name)
            ok = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            check_option("Box", name, size, ok, "to be an int >= 1", "Give the number of elements along each side.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a field over the elements, ``(nz, ny, nx)``."""
        return self.nz, self.ny, self.nx

    @cached_property
    def lattice(self) -> Lattice:
        """The elements as a `Lattice`."""
        return Lattice(self.shape)

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return self.nx * self.ny * self.nz

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.lattice.num_nodes

    def node(self, i: int | np.ndarray, j: int | np.ndarray, k: int | np.ndarray) -> np.ndarray:
        """Numbers of the nodes at these places along x, y, z; arrays broadcast."""
        return (np.asarray(k) * (self.ny + 1) + np.asarray(j)) * (self.nx + 1) + np.asarray(i)

    def dof(self, node: int | np.ndarray, axis: int) -> np.ndarray:
        """Numbers of the displacements of nodes along an axis (0 is x)."""
        return axis * self.num_nodes + np.asarray(node)

    def face(self, axis: int, end: int) -> np.ndarray:
        """Numbers of the nodes of a face: ``axis`` 0 is x, ``end`` 0 the low and 1 the high one."""
        nodes = np.arange(self.num_nodes).reshape(self.lattice.node_shape)
        return np.take(nodes, -end, axis=2 - axis).reshape(-1)

    def positions(self, node: np.ndarray) -> np.ndarray:
        """Coordinates x, y, z of nodes ``(..., 3)``, in element sides."""
        k, j, i = np.unravel_index(node, self.lattice.node_shape)
        return np.stack([i, j, k], axis=-1).astype(float)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BoxStructure:
    """A box with supports and a load.

    Args:
        box: the elements.
        fixed: numbers of the displacements that are held at zero, any order.
        load: force on every displacement, ``(3 num_nodes,)``, in units of force.
        name: what messages and reports call it.

    Raises:
        ValueError: for numbers out of range, a load of wrong shape, not finite or zero on all free displacements, and
            supports that leave a rigid motion free (named in the message).

    Example:
        >>> structure = box_cantilever(Box(nx=4, ny=2, nz=2))
        >>> structure.fixed.size, structure.free.size
        (27, 108)
    """

    box: Box
    fixed: np.ndarray
    load: np.ndarray
    name: str = "box"

    def __post_init__(self) -> None:
        n, owner = 3 * self.box.num_nodes, f"BoxStructure {self.name!r}"
        fixed = np.unique(np.asarray(self.fixed, dtype=np.int64).reshape(-1))
        load = np.array(self.load, dtype=np.float64)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "load", load)
        if fixed.size and not (fixed[0] >= 0 and fixed[-1] < n):
            raise ValueError(
                f"{owner}: expected `fixed` in [0, {n}), got {fixed[0]}..{fixed[-1]}. Number displacements by Box.dof."
            )
        if load.shape != (n,):
            raise ValueError(f"{owner}: expected `load` of shape ({n},), got {load.shape}. Give one force per number.")
        if not np.isfinite(load).all():
            bad = int(np.flatnonzero(~np.isfinite(load))[0])
            raise ValueError(f"{owner}: expected a finite `load`, got {load[bad]} on number {bad}. Correct the load.")
        motions = free_motions(self.box, fixed)
        if motions:
            raise ValueError(
                f"{owner}: expected supports that hold every rigid motion, got `fixed` that leaves free: "
                f"{', '.join(motions)}. Hold displacements that resist them."
            )
        if not np.any(load[self.free]):
            raise ValueError(
                f"{owner}: expected a `load` on at least one free displacement, got zero there. Load a node that is free."
            )

    @property
    def free(self) -> np.ndarray:
        """Numbers of the displacements that are not held, ascending."""
        mask = np.ones(3 * self.box.num_nodes, dtype=bool)
        mask[self.fixed] = False
        return np.flatnonzero(mask)


def free_motions(box: Box, fixed: np.ndarray) -> list[str]:
    """Names of the rigid motions that the held displacements leave free.

    Example:
        >>> box = Box(nx=2, ny=1, nz=1)
        >>> free_motions(box, box.dof(box.face(0, 0), 0))
        ['translation in y', 'translation in z', 'rotation']
    """
    axis, node = np.divmod(fixed, box.num_nodes)
    x, y, z = box.positions(node).T
    zero = np.zeros_like(x)
    turns = [np.choose(axis, turn) for turn in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    held = np.stack([*(axis == c for c in range(3)), *turns], axis=-1).astype(float)
    names = [f"translation in {name}" for c, name in enumerate("xyz") if not held[:, c].any()]
    rank = int(np.linalg.matrix_rank(held.T @ held)) if fixed.size else 0
    return [*names, "rotation"] if 6 - rank > len(names) else names


def box_cantilever(box: Box) -> BoxStructure:
    """Clamped at the face x = 0; a total unit force in -z spread evenly over the middle line of the opposite face.

    Example:
        >>> round(box_cantilever(Box(nx=4, ny=2, nz=2)).load.sum().item(), 12)
        -1.0
    """
    face = box.face(0, 0)
    fixed = np.concatenate([box.dof(face, axis) for axis in range(3)])
    load = np.zeros(3 * box.num_nodes)
    weight = np.ones(box.ny + 1)
    weight[[0, -1]] = 0.5
    load[box.dof(box.node(box.nx, np.arange(box.ny + 1), box.nz // 2), 2)] = -weight / box.ny
    return BoxStructure(box=box, fixed=fixed, load=load, name="cantilever")
