"""Problems that are linear in the unknown: one Newton step by any linear solver."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.inner.abstract import AbstractSolver
from sciopt.inner.rows import norm
from sciopt.linsolve import LinearOperator
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.problem.equations import RootFind
from sciopt.problem.minimize import Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["LinearSolve"]


@final
@dataclass(frozen=True)
class LinearSolve(AbstractSolver):
    """One Newton step ``x - A^-1 F(x)`` with the linear solver named: exact where F is linear in x.

    Use it for discretised linear differential equations and other quadratic energies, with the linear solver that suits the
    matrix, and give the same one to `Implicit`. A start that solves the problem is returned as it is. A residual that
    stays, because the problem is not linear or the linear solve failed, is a status.

    Args:
        linear_solver: solves with the Jacobian, for example ``CG(rtol=1e-10)`` or a `SparseLU`.
        rtol: tolerance on the residual relative to that at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on it.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.linsolve import CG
        >>> problem = Minimize(lambda x, phi: 0.5 * (x[1:] - x[:-1]).square().sum() + 0.5 * (x**2).sum() - (phi * x).sum())
        >>> phi = torch.ones(3, dtype=torch.float64)
        >>> best_response(problem, phi, init=0 * phi, solver=LinearSolve(CG(rtol=1e-12))).value
        tensor([1., 1., 1.], dtype=torch.float64)

    References:
        Saad. "Iterative methods for sparse linear systems". SIAM, 2003.
    """

    solves: ClassVar = (Minimize, RootFind)
    linear_solver: AbstractLinearSolver
    _: KW_ONLY
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("LinearSolve", self.rtol, self.atol)
        if not isinstance(self.linear_solver, AbstractLinearSolver):
            raise TypeError(
                f"LinearSolve: expected `linear_solver` to be a linear solver, got {self.linear_solver!r}. Pass one of "
                "sciopt.linsolve, for example LinearSolve(CG(rtol=1e-10))."
            )

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        rtol = check_rtol_dtype("LinearSolve", self.rtol, x.dtype)
        residual, operator = oracle.linearize(x)
        start = norm(residual)
        origin = norm(oracle.residual(torch.zeros_like(x)))  # what the residual is measured by, wherever one starts
        scale = origin
        done = start <= self.atol + rtol * scale
        rhs = torch.where(done.unsqueeze(-1), torch.zeros_like(residual), -residual)
        step = self._step(operator, rhs, bool(done.all()))
        value = torch.where(done.unsqueeze(-1), x, x + step.value)
        final_norm = norm(oracle.residual(value))
        good = final_norm <= self.atol + rtol * scale
        failed = torch.where(step.status_code > 0, step.status_code, int(Status.STAGNATED))
        code = torch.where(good, int(Status.CONVERGED), failed)
        code = torch.where(torch.isfinite(start), code, int(Status.NONFINITE))
        return Solution(
            value=value,
            status_code=code,
            residual_norm=final_norm,
            num_steps=torch.where(done, 0, 1),
            state={"scale": scale},
        )

    def _step(self, operator: LinearOperator, rhs: Tensor, idle: bool) -> Solution:
        """The linear solve; nothing to do for rows that start at their solution."""
        if idle:
            code = torch.zeros(rhs.shape[:-1], dtype=torch.int64, device=rhs.device)
            return Solution(value=rhs, status_code=code, residual_norm=code.to(rhs), num_steps=code)
        with torch.no_grad():
            return self.linear_solver.solve(operator, rhs)
