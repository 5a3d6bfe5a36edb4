"""Rectangular grids of square or cubic elements: numbering of nodes, unknowns and elements."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np

from sciopt.checks import check_option

__all__ = ["Grid"]


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """``nx`` by ``ny`` (by ``nz``) elements of side 1: squares, or cubes when ``nz`` is given.

    In two dimensions fields over elements are ``(ny, nx)`` images, row 0 on top, and nodes are numbered down the
    columns, columns from left to right, as in the 88-line code. In three dimensions fields are ``(nz, ny, nx)``, every
    index grows with its coordinate, z points upwards, and nodes are numbered with x fastest. Node k has the unknowns
    ``d k, ..., d k + d - 1``: displacements along x, y (and z).

    Args:
        nx: elements from left to right.
        ny: elements from top to bottom; in three dimensions from front to back.
        nz: elements from bottom to top; None for two dimensions.

    Raises:
        ValueError: for fewer than two elements.

    Example:
        >>> grid = Grid(nx=3, ny=2)
        >>> grid.num_elements, grid.num_nodes, int(grid.node(3, 2))
        (6, 12, 11)
        >>> Grid(nx=3, ny=2, nz=1).shape
        (1, 2, 3)

    References:
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Fig. 2.
    """

    nx: int
    ny: int
    nz: int | None = None

    def __post_init__(self) -> None:
        for name in ("nx", "ny", "nz")[: self.ndim]:
            size = getattr(self, name)
            ok = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            check_option("Grid", name, size, ok, "to be an int >= 1", "Give the number of elements along each side.")
        if self.num_elements < 2:
            sizes = "`nx` = 1 and `ny` = 1" if self.ndim == 2 else "`nx` = `ny` = `nz` = 1"
            raise ValueError(
                f"Grid: expected at least two elements, got {sizes}. There is nothing to design in one "
                "element; refine the grid."
            )

    @property
    def ndim(self) -> int:
        """Dimensions: 2 or 3."""
        return 2 if self.nz is None else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a field over the elements, ``(ny, nx)`` or ``(nz, ny, nx)``."""
        return (self.ny, self.nx) if self.nz is None else (self.nz, self.ny, self.nx)

    @property
    def sides(self) -> tuple[int, ...]:
        """Length of the domain along x, y (and z), in element sides."""
        return self.shape[::-1]

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return prod(n + 1 for n in self.shape)

    @property
    def num_dofs(self) -> int:
        """Number of displacement unknowns, supports included."""
        return self.ndim * self.num_nodes

    def node(self, column: int | np.ndarray, row: int | np.ndarray, layer: int | np.ndarray = 0) -> np.ndarray:
        """Numbers of the nodes in these columns (0 on the left), rows (2D: 0 on top; 3D: 0 at y = 0) and, in three
        dimensions, layers (0 at the bottom); arrays broadcast."""
        if self.nz is None:
            return np.asarray(column) * (self.ny + 1) + np.asarray(row)
        return (np.asarray(layer) * (self.ny + 1) + np.asarray(row)) * (self.nx + 1) + np.asarray(column)

    def positions(self) -> np.ndarray:
        """Node coordinates ``(num_nodes, d)`` in element sides, origin at the lower left (front), last axis upwards."""
        if self.nz is None:
            column, row = np.divmod(np.arange(self.num_nodes), self.ny + 1)
            return np.stack([column, self.ny - row], axis=-1).astype(float)
        index = np.unravel_index(np.arange(self.num_nodes), tuple(n + 1 for n in self.shape))
        return np.stack(index[::-1], axis=-1).astype(float)

    def centres(self) -> np.ndarray:
        """Coordinates of the elements' centres, ``(*shape, d)``."""
        index = np.moveaxis(np.indices(self.shape)[::-1], 0, -1) + 0.5
        if self.nz is None:
            index[..., 1] = self.ny - index[..., 1]
        return index

    def element_nodes(self) -> np.ndarray:
        """Corners of each element ``(num_elements, 2^d)``: counter-clockwise from the lower left in two dimensions, x
        fastest, then y, then z in three."""
        if self.nz is None:
            row, column = np.divmod(np.arange(self.num_elements), self.nx)
            return np.stack(
                [
                    self.node(column, row + 1),
                    self.node(column + 1, row + 1),
                    self.node(column + 1, row),
                    self.node(column, row),
                ],
                axis=-1,
            )
        z, y, x = np.unravel_index(np.arange(self.num_elements), self.shape)
        return np.stack([self.node(x + i, y + j, z + k) for k in (0, 1) for j in (0, 1) for i in (0, 1)], axis=-1)

    def element_dofs(self) -> np.ndarray:
        """Unknowns of each element ``(num_elements, d 2^d)``: corners as in `element_nodes`, x before y before z."""
        d = self.ndim
        return (d * self.element_nodes()[:, :, None] + np.arange(d)).reshape(self.num_elements, -1)
