"""A Poisson problem with a permittivity field: finite volumes on the unit square."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt import Minimize
from sciopt.linsolve import SparseFactors, SparseLU

__all__ = ["Poisson"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Poisson:
    """``-div(exp(m) grad u) = f`` on the unit square with u = 0 on its border, in n x n cells.

    The outer parameter is m, the logarithm of the permittivity, ``(n, n)``, one value per cell; between two cells the
    harmonic mean counts, so that the flux is right across jumps. The state u ``(s, n n)`` has one row per source, rows of
    cells one after the other. Second order in 1/n for smooth fields.

    Args:
        cells: n, along each side.
        sources: f ``(s, n n)``, charge per area.

    Raises:
        ValueError: for sources of another size.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.inner import LinearSolve
        >>> box = Poisson(cells=32, sources=torch.ones(1, 1024, dtype=torch.float64))
        >>> field, zero = torch.zeros(32, 32, dtype=torch.float64), torch.zeros(1, 1024, dtype=torch.float64)
        >>> u = best_response(box.problem(), field, init=zero, solver=LinearSolve(box.direct)).value
        >>> round(u.max().item(), 3)  # 0.0737 of the torsion of a square bar
        0.074

    References:
        Patankar. "Numerical Heat Transfer and Fluid Flow" (1980), section 4.2.
    """

    cells: int
    sources: Tensor

    def __post_init__(self) -> None:
        if self.sources.ndim != 2 or self.sources.shape[1] != self.cells**2 or self.cells < 2:
            raise ValueError(
                f"Poisson: expected `sources` of shape (s, {self.cells**2}), got {tuple(self.sources.shape)}. Give one row of "
                "cells for each source."
            )

    def conductances(self, log_field: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Between neighbours in x ``(n, n - 1)`` and in y ``(n - 1, n)``, and to the border ``(n, n)``."""
        k = log_field.exp()
        across = 2 / (1 / k[:, 1:] + 1 / k[:, :-1])
        along = 2 / (1 / k[1:] + 1 / k[:-1])
        return across, along, 2 * k * self._border.to(k)  # half a cell to the border

    @cached_property
    def _border(self) -> Tensor:
        """How many sides of each cell lie on the border ``(n, n)``."""
        n = self.cells
        sides = torch.zeros(n, n, dtype=torch.float64)
        for edge in (sides[0], sides[-1], sides[:, 0], sides[:, -1]):
            edge += 1
        return sides

    def energy(self, u: Tensor, log_field: Tensor) -> Tensor:
        """``1/2 int exp(m) |grad u|^2 - int f u`` of each source ``(s,)``."""
        n = self.cells
        across, along, border = self.conductances(log_field)
        v = u.reshape(-1, n, n)
        stored = (across * (v[:, :, 1:] - v[:, :, :-1]).square()).sum((-2, -1))
        stored = stored + (along * (v[:, 1:] - v[:, :-1]).square()).sum((-2, -1)) + (border * v.square()).sum((-2, -1))
        return 0.5 * stored - (self.sources.to(u) * u).sum(-1) / n**2

    def problem(self) -> Minimize:
        """The inner problem: the state of least energy, one row per source."""
        return Minimize(self.energy, batch_ndim=1)

    def entries(self, u: Tensor, log_field: Tensor) -> Tensor:
        """Entries ``(nnz,)`` of the matrix at the places of `direct`: both signs of each coupling, then the diagonal."""
        across, along, border = self.conductances(log_field)
        side, up = across.reshape(-1), along.reshape(-1)
        return torch.cat([-side, -side, side, side, -up, -up, up, up, border.reshape(-1)])

    @cached_property
    def direct(self) -> SparseLU:
        """The sparse direct solver of this problem, for `LinearSolve` and `Implicit`; keeps the last factors."""
        n = self.cells
        index = torch.arange(n * n).reshape(n, n)
        left, right = index[:, :-1].reshape(-1), index[:, 1:].reshape(-1)
        low, high = index[:-1].reshape(-1), index[1:].reshape(-1)
        rows = torch.cat([left, right, left, right, low, high, low, high, index.reshape(-1)])
        columns = torch.cat([right, left, left, right, high, low, low, high, index.reshape(-1)])
        return SparseLU(factors=SparseFactors(rows, columns, n * n), entries=self.entries)
