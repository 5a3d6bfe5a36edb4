"""LU factorisation of the dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.dense import solve_dense
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["LU"]


@final
@dataclass(frozen=True, kw_only=True)
class LU(AbstractLinearSolver):
    """Dense LU with partial pivoting and one step of refinement, batched.

    For general square systems of up to a few thousand unknowns: n products to form the matrix, ``2/3 n^3``
    operations, ``n^2`` memory per problem. ``x0`` is not used.

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|`` by which the answer is judged; default 1e-8 in float64,
            1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
    Returns:
        From `solve`: `Solution`; a singular matrix is the status SINGULAR (unless the answer fits all the same), a
        residual that rounding keeps above the tolerance STAGNATED. For n <= 512 ``aux`` holds ``min_ritz`` and
        ``max_ritz`` (symmetric) or ``min_singular`` and ``max_singular``, ``(*batch,)``.
    Raises:
        ValueError: for options out of range, or an operator that is not square.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> LU().solve(matrix_operator(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), torch.tensor([2.0, 3.0])).value
        tensor([3., 1.])

    References:
        Higham. "Accuracy and stability of numerical algorithms". SIAM, 2002. Chapters 9 and 12.
    """

    direct: ClassVar[bool] = True
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("LU", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        return solve_dense("LU", operator, rhs, x0, rtol=self.rtol, atol=self.atol, factor=factor)


def factor(matrix: Tensor):
    """Inverse product and trouble codes of a batch of square matrices."""
    packed, pivots, info = torch.linalg.lu_factor_ex(matrix)
    diagonal = packed.diagonal(dim1=-2, dim2=-1).abs()
    n = matrix.shape[-1]
    smallest, largest = diagonal.amin(-1), diagonal.amax(-1)
    singular = (info > 0) | (smallest <= n * torch.finfo(matrix.dtype).eps * largest)
    exact = (info > 0)[..., None, None]
    packed = torch.where(exact, torch.eye(n, dtype=matrix.dtype, device=matrix.device), packed)
    codes = torch.where(singular, int(Status.SINGULAR), int(Status.CONVERGED))

    def inverse(vector: Tensor) -> Tensor:
        return torch.linalg.lu_solve(packed, pivots, vector.unsqueeze(-1)).squeeze(-1)

    return inverse, codes
