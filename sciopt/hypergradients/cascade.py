"""A linear solver that falls back: the cheapest method for the declared structure, then more general ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from sciopt.linsolve import CG, GMRES, LU, MINRES, Cholesky, LinearOperator
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.solution import Solution, Status

__all__ = ["DENSE_LIMIT", "Cascade", "select"]

DENSE_LIMIT = 48  # below this, n batched products and a factorisation beat a Krylov iteration
DENSE_FALLBACK = 2048  # up to this many unknowns a dense LU is worth its n products when everything else failed


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
    """Dense Cholesky or LU for small systems, CG, MINRES or GMRES for large ones; on failure the next more general one.

    Rows that were solved keep their solution. A row whose curvature proved negative stays `Status.INDEFINITE` even when a
    later method solves its system: the derivative is then that of a stationary point that is no minimum.

    Args:
        rtol: relative tolerance of the iterative ones; None: default of the dtype.

    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> Cascade().solve(matrix_operator(torch.diag(torch.tensor([1.0, 2.0]))), torch.tensor([1.0, 4.0])).value
        tensor([1., 2.])
    """

    rtol: float | None = None

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        solver = select(operator, self.rtol)
        solution = solver.solve(operator, rhs, x0=x0)
        for fallback in self._fallbacks(operator, solver):
            failed = ~solution.converged
            if not bool(failed.any()):
                break
            if operator.nullspace is None and isinstance(fallback, LU):
                operator = replace(operator, tags=frozenset(), rmv=operator.rmv)
            again = fallback.solve(operator, rhs)
            better = failed & (again.converged | (again.residual_norm < solution.residual_norm))
            indefinite = solution.status_code == int(Status.INDEFINITE)
            code = torch.where(better, again.status_code, solution.status_code)
            solution = Solution(
                value=torch.where(better.unsqueeze(-1), again.value, solution.value),
                status_code=torch.where(indefinite, int(Status.INDEFINITE), code),
                residual_norm=torch.where(better, again.residual_norm, solution.residual_norm),
                num_steps=solution.num_steps + again.num_steps,
                aux=solution.aux,
            )
            if not bool((failed & ~again.converged).any()):
                break
        return solution

    def _fallbacks(self, operator: LinearOperator, tried: AbstractLinearSolver) -> list[AbstractLinearSolver]:
        chain: list[AbstractLinearSolver] = []
        if operator.symmetric and not isinstance(tried, MINRES):
            chain.append(MINRES(rtol=self.rtol))
        if not isinstance(tried, GMRES):
            chain.append(GMRES(rtol=self.rtol))
        if operator.shape[1] <= DENSE_FALLBACK and not isinstance(tried, LU):
            chain.append(LU())
        return chain
