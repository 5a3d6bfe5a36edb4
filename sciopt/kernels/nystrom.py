"""Nystrom approximation of a kernel matrix from some of its columns, and the preconditioner made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractKernel
from sciopt.kernels.tiles import cross_matrix
from sciopt.linsolve.abstract import AbstractPreconditioner
from sciopt.linsolve.operator import LinearOperator

__all__ = ["ColumnNystrom", "pivoted_cholesky"]

BLOCK = 128  # columns chosen at a time: fewer follow what is left more closely, more multiply faster
ROWS = 512  # rows of a product at a time


def pivoted_cholesky(
    kernel: AbstractKernel, points: Tensor, rank: int, generator: torch.Generator, *, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``F`` with ``F F^T`` close to K, from at most ``rank`` of its columns; without graph.

    Columns are drawn in proportion to what is left of the diagonal, a block at a time, so that clusters of points are neither
    missed nor drawn from twice. ``rank * n`` kernel values and ``rank^2 n`` operations.

    Args:
        kernel: the kernel.
        points: ``(n, *point)``.
        rank: columns, >= 1.
        generator: draws the columns.
        tolerance: share of the trace at which to stop early.

    Returns:
        F ``(n, r)``, and what is left of the diagonal ``(n,)``, not negative; both in units of the kernel.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.kernels import Linear
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> factor, left = pivoted_cholesky(Linear(), x, 10, torch.Generator().manual_seed(0), tolerance=1e-9)
        >>> factor.shape[1] <= 10, bool((factor @ factor.mT - x @ x.mT / 3).abs().max() < 1e-9)
        (True, True)

    References:
        Chen, Epperly, Tropp, Webber. "Randomly pivoted Cholesky". Comm. Pure Appl. Math. 78, 2025, algorithm 4 (blocks).
    """
    owner, n = "pivoted_cholesky", len(points)
    check_option(owner, "rank", rank, rank >= 1, ">= 1", "500 is a good start.")
    check_option(owner, "tolerance", tolerance, 0 <= tolerance < 1, "in [0, 1)", "0 stops at rounding.")
    with torch.no_grad():
        left = kernel.diagonal(points).clamp(min=0)
        trace, eps = float(left.sum()), torch.finfo(left.dtype).eps
        factor = left.new_empty(n, min(rank, n))
        done = 0
        while done < factor.shape[1] and float(left.sum()) > max(tolerance, 4 * eps) * trace:
            count = min(BLOCK, factor.shape[1] - done)
            chosen = _drawn(left, count, generator)
            known = factor[:, :done]
            columns = cross_matrix(kernel, points, points[chosen]).addmm_(known, known[chosen].mT, alpha=-1)
            core = columns[chosen]
            core = 0.5 * (core + core.mT)
            # where two points of a block are alike, what the first explains is left to rounding in the second
            values, vectors = torch.linalg.eigh(core)
            kept = values > 100 * eps * len(chosen) * float(left.max())
            if not bool(kept.any()):
                break
            grown = columns @ (vectors[:, kept] / values[kept].sqrt())
            factor[:, done : done + grown.shape[1]] = grown
            left = (left - torch.linalg.vecdot(grown, grown)).clamp_(min=0)
            left[chosen] = 0
            done += grown.shape[1]
    return factor[:, :done], left


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnNystrom(AbstractPreconditioner):
    """Preconditioner of ``K + diag(noise)``: the inverse of ``F F^T + diag(noise) + t I``.

    F is made of ``rank`` columns of K (`pivoted_cholesky`), t is the mean of what they leave of the diagonal: the part of the
    spectrum that no low rank holds acts like noise. Where a product with K costs much, as when it is never stored, more rank
    pays than a random sketch could afford: that needs ``rank`` products with K, this ``rank / n`` of one, and ``rank^2 n``
    operations.

    Args:
        kernel: the kernel.
        points: ``(n, *point)``.
        noise: ``(n,)``, >= 0, in units of the kernel.
        rank: columns, >= 1; memory is ``rank * n``.
        generator: draws the columns.

    Raises:
        ValueError: for options out of range; from `build`, for an operator of another size.

    Example:
        >>> from sciopt.kernels import RBF, kernel_operator
        >>> from sciopt.linsolve import CG, linear_solve
        >>> x = torch.linspace(0, 1, 200, dtype=torch.float64).unsqueeze(-1)
        >>> noise = torch.full((200,), 1e-4, dtype=torch.float64)
        >>> made = ColumnNystrom(kernel=RBF(), points=x, noise=noise, rank=20, generator=torch.Generator().manual_seed(0))
        >>> int(linear_solve(kernel_operator(RBF(), x, noise), x[:, 0], CG(preconditioner=made)).num_steps) < 5
        True

    References:
        Diaz, Epperly, Frangella, Tropp, Webber. "Robust, randomized preconditioning for kernel ridge regression".
        arXiv:2304.12465, section 2.1.
    """

    kernel: AbstractKernel
    points: Tensor
    noise: Tensor
    rank: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        ok = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        check_option("ColumnNystrom", "rank", self.rank, ok, "to be an int >= 1", "500 is a good start.")
        least = float(self.noise.min()) if len(self.noise) == len(self.points) else -1.0
        check_option("ColumnNystrom", "noise", least, least >= 0, "one number >= 0 per point", "Pass penalties.")

    def build(self, operator: LinearOperator) -> Callable[[Tensor], Tensor]:
        """See `AbstractPreconditioner.build`."""
        n = len(self.points)
        if operator.shape[-1] != n:
            raise ValueError(
                f"ColumnNystrom: expected an operator on vectors of {n} numbers, one per point, got {operator.shape[-1]}. "
                "Build it for `kernel_operator` of the same points."
            )
        with torch.no_grad():
            own = self.kernel.diagonal(self.points)
        least = float(self.noise.mean()) / max(float(own.mean()), 1e-300)
        factor, left = pivoted_cholesky(self.kernel, self.points, self.rank, self.generator, tolerance=0.1 * least)
        dtype = factor.dtype
        noise = self.noise.to(dtype) + left.mean()
        noise = noise.clamp(min=4 * torch.finfo(dtype).eps * float(own.max()))
        small = torch.eye(factor.shape[1], dtype=torch.float64, device=factor.device)
        exact = noise.to(torch.float64)
        for part, spread in zip(factor.split(ROWS), exact.sqrt().split(ROWS), strict=True):
            wide = part.to(torch.float64) / spread.unsqueeze(-1)
            small.addmm_(wide.mT, wide)
        lower = torch.linalg.cholesky(small)

        def apply(vector: Tensor) -> Tensor:
            # in double precision: the two terms cancel by a factor of the condition number where K is large, and what single
            # precision leaves of that is not even positive definite
            scaled = vector.to(torch.float64) / exact
            inside = scaled.new_zeros(*scaled.shape[:-1], factor.shape[1])
            for part, chunk in zip(factor.split(ROWS), scaled.split(ROWS, -1), strict=True):
                inside += chunk @ part.to(torch.float64)
            inside = torch.cholesky_solve(inside.unsqueeze(-1), lower).squeeze(-1)
            taken = torch.cat([inside @ part.to(torch.float64).mT for part in factor.split(ROWS)], -1)
            return (scaled - taken / exact).to(vector.dtype)

        return apply


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Different rows, drawn in proportion to their weights, at most ``count``."""
    total = weights.to(torch.float64).cumsum(0)
    spots = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).to(total.device)
    return torch.unique(torch.searchsorted(total, spots * total[-1]).clamp(max=len(weights) - 1))
