"""A linear solver that falls back: the cheapest method for the declared structure, then more general ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from sciopt.linsolve import CG, GMRES, LU, MINRES, BiCGSTAB, Cholesky, LinearOperator
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.solution import Solution, Status

__all__ = ["DENSE_LIMIT", "Cascade", "select"]

DENSE_LIMIT = 48  # below this, n batched products and a factorisation beat a Krylov iteration
DENSE_FALLBACK = 2048  # up to this many unknowns a dense LU is worth its n products when the first choice failed


def select(operator: LinearOperator, rtol: float | None) -> AbstractLinearSolver:
    """The first choice for the structure that the operator declares."""
    if operator.shape[1] <= DENSE_LIMIT:
        return Cholesky() if operator.positive_definite else LU()
    if operator.positive_definite:
        return CG(rtol=rtol)
    return MINRES(rtol=rtol) if operator.symmetric else GMRES(rtol=rtol)


@final
@dataclass(frozen=True, kw_only=True)
class Cascade(AbstractLinearSolver):
    """Dense Cholesky or LU for small systems, CG, MINRES or GMRES for large ones; on failure a more general one.

    The fallback is a dense LU up to 2,048 unknowns, beyond that MINRES (after CG) or BiCGSTAB (after GMRES). Rows
    that were solved keep their solution. A row whose curvature proved negative stays `Status.INDEFINITE` even when the
    fallback solves its system: the derivative is then that of a stationary point that is no minimum.

    Args:
        rtol: relative tolerance of the iterative ones; None: default of the dtype.

    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> Cascade().solve(matrix_operator(torch.diag(torch.tensor([1.0, 2.0]))), torch.tensor([1.0, 4.0])).value
        tensor([1., 2.])
    """

    rtol: float | None = None

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        first = select(operator, self.rtol)
        solution = first.solve(operator, rhs, x0=x0)
        failed = ~solution.converged
        second = self._fallback(operator, first)
        if second is None or not bool(failed.any()):
            return solution
        plain = replace(operator, tags=frozenset()) if operator.nullspace is None else operator
        again = second.solve(plain if isinstance(second, LU) else operator, rhs)
        better = failed & (again.converged | (again.residual_norm < solution.residual_norm))
        indefinite = solution.status_code == int(Status.INDEFINITE)
        code = torch.where(better, again.status_code, solution.status_code)
        names = f"{type(first).__name__} failed in {int(failed.sum())} of {failed.numel()} problems"
        return Solution(
            value=torch.where(better.unsqueeze(-1), again.value, solution.value),
            status_code=torch.where(indefinite, int(Status.INDEFINITE), code),
            residual_norm=torch.where(better, again.residual_norm, solution.residual_norm),
            num_steps=solution.num_steps + again.num_steps,
            aux={**solution.aux, "note": f"Cascade: {names}, fell back to {type(second).__name__}"},
        )

    def _fallback(self, operator: LinearOperator, tried: AbstractLinearSolver) -> AbstractLinearSolver | None:
        """The surest method that is affordable and was not tried."""
        if isinstance(tried, LU):
            return None
        if operator.shape[1] <= DENSE_FALLBACK:
            return LU()
        if isinstance(tried, CG):
            return MINRES(rtol=self.rtol)
        return BiCGSTAB(rtol=self.rtol) if isinstance(tried, GMRES) else None
