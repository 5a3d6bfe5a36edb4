"""Rectangular grids of square elements: numbering of nodes, unknowns and elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from sciopt.checks import check_option

__all__ = ["Grid"]


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """``nx`` by ``ny`` square elements of side 1; fields over elements are ``(ny, nx)`` images, row 0 on top.

    Nodes are numbered down the columns, columns from left to right. Node k has the unknowns 2k (displacement to the
    right) and 2k + 1 (upwards), as in the 88-line code.

    Args:
        nx: elements from left to right.
        ny: elements from top to bottom.

    Raises:
        ValueError: for fewer than two elements.

    Example:
        >>> grid = Grid(nx=3, ny=2)
        >>> grid.num_elements, grid.num_nodes, int(grid.node(3, 2))
        (6, 12, 11)

    References:
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Fig. 2.
    """

    nx: int
    ny: int

    def __post_init__(self) -> None:
        for name in ("nx", "ny"):
            size = getattr(self, name)
            ok = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            check_option("Grid", name, size, ok, "to be an int >= 1", "Give the number of elements along each side.")
        if self.nx * self.ny < 2:
            raise ValueError(
                "Grid: expected at least two elements, got `nx` = 1 and `ny` = 1. There is nothing to design in one "
                "element; refine the grid."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a field over the elements, ``(ny, nx)``."""
        return self.ny, self.nx

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return self.nx * self.ny

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return (self.nx + 1) * (self.ny + 1)

    @property
    def num_dofs(self) -> int:
        """Number of displacement unknowns, supports included."""
        return 2 * self.num_nodes

    def node(self, column: int | np.ndarray, row: int | np.ndarray) -> np.ndarray:
        """Numbers of the nodes in these columns (0 on the left) and rows (0 on top); arrays broadcast."""
        return np.asarray(column) * (self.ny + 1) + np.asarray(row)

    def positions(self) -> np.ndarray:
        """Node coordinates ``(num_nodes, 2)`` in element sides, origin at the lower left, y upwards."""
        column, row = np.divmod(np.arange(self.num_nodes), self.ny + 1)
        return np.stack([column, self.ny - row], axis=-1).astype(float)

    def element_dofs(self) -> np.ndarray:
        """Unknowns of each element ``(num_elements, 8)``: corners counter-clockwise from the lower left, x before y."""
        row, column = np.divmod(np.arange(self.num_elements), self.nx)
        corners = np.stack(
            [
                self.node(column, row + 1),
                self.node(column + 1, row + 1),
                self.node(column + 1, row),
                self.node(column, row),
            ],
            axis=-1,
        )
        return (2 * corners[:, :, None] + np.arange(2)).reshape(-1, 8)
