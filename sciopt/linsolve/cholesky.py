"""Cholesky factorisation of the dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.dense import solve_dense
from sciopt.linsolve.operator import LinearOperator, format_tags
from sciopt.solution import Solution, Status

__all__ = ["Cholesky"]


@final
@dataclass(frozen=True, kw_only=True)
class Cholesky(AbstractLinearSolver):
    """Dense Cholesky with one step of refinement, batched.

    For positive definite systems of up to a few thousand unknowns: n products to form the matrix, ``1/3 n^3``
    operations, ``n^2`` memory per problem. A matrix that is not positive definite is the status INDEFINITE, or
    SINGULAR when it is semi-definite to rounding; such rows return zero. ``x0`` is not used.

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|`` by which the answer is judged; default 1e-8 in float64,
            1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
    Returns:
        From `solve`: `Solution`; for n <= 512 ``aux`` holds ``min_ritz`` and ``max_ritz`` ``(*batch,)``.
    Raises:
        ValueError: for options out of range, or an operator not tagged POSITIVE_DEFINITE.
    Example:
        >>> from sciopt.linsolve import Tag, matrix_operator
        >>> A = matrix_operator(torch.diag(torch.tensor([2.0, 4.0])), tags=(Tag.POSITIVE_DEFINITE,))
        >>> Cholesky().solve(A, torch.tensor([2.0, 2.0])).value.round(decimals=3)
        tensor([1.0000, 0.5000])

    References:
        Higham. "Accuracy and stability of numerical algorithms". SIAM, 2002. Chapters 10 and 12.
    """

    direct: ClassVar[bool] = True
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("Cholesky", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        if not operator.positive_definite:
            raise ValueError(
                f"Cholesky: expected an operator tagged POSITIVE_DEFINITE, got tags {format_tags(operator.tags)}. "
                "Use LU, or tag the operator if you know it holds."
            )
        return solve_dense("Cholesky", operator, rhs, x0, rtol=self.rtol, atol=self.atol, factor=factor)


def factor(matrix: Tensor):
    """Inverse product and trouble codes of a batch of symmetric matrices."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    n = matrix.shape[-1]
    failed = info > 0
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    codes = torch.zeros(failed.shape, dtype=torch.int64, device=matrix.device)
    pivots = torch.where(failed.unsqueeze(-1), 1, lower.diagonal(dim1=-2, dim2=-1)).square()
    floor = n * torch.finfo(matrix.dtype).eps
    codes = codes.masked_fill(pivots.amin(-1) <= floor * pivots.amax(-1), int(Status.SINGULAR))
    if bool(failed.any()):
        values = torch.linalg.eigvalsh(torch.where(failed[..., None, None], matrix, eye))
        negative = values[..., 0] < -floor * values.abs().amax(-1)
        codes = torch.where(failed, torch.where(negative, int(Status.INDEFINITE), int(Status.SINGULAR)), codes)
    lower = torch.where(failed[..., None, None], eye, lower)

    def inverse(vector: Tensor) -> Tensor:
        x = torch.cholesky_solve(vector.unsqueeze(-1), lower).squeeze(-1)
        return x.masked_fill(failed.unsqueeze(-1), 0)

    return inverse, codes
