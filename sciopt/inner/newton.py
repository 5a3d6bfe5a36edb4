"""Newton's method for equations: a dense or Krylov solve and backtracking on the residual, for each problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_rtol_dtype, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.picard import equation_start
from sciopt.inner.rows import any_row, dot, norm, quotient, rounding_floor, select, solve_rows, verdict
from sciopt.linsolve import GMRES, LinearOperator
from sciopt.problem.constrained import Constrained
from sciopt.problem.equations import FixedPoint, RootFind
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["Newton"]

MAX_TRIALS = 30


@final
@dataclass(frozen=True, kw_only=True)
class Newton(AbstractIterativeSolver):
    """Newton's method ``x <- x - t J(x)^-1 F(x)`` with the length t found by backtracking on ``|F|``.

    Use it for fixed points and roots whose Jacobian is regular, contraction or not, and for constrained minima near their
    solution. A step costs one linearization and a dense LU (up to ``dense_limit`` unknowns, n products) or GMRES, and one
    evaluation per trial of the length. Where the Jacobian is singular the row takes the steepest-descent step of ``|F|^2``.

    Args:
        dense_limit: most unknowns for the dense solve.
        rtol: tolerance on ``|f(x) - x| / |x|`` (for other problems, on the residual over its norm at the start); None:
            1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on the residual norm.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import RootFind, best_response
        >>> problem = RootFind(lambda x, phi: x**3 - phi)
        >>> best_response(problem, torch.full((1,), 8.0), init=torch.ones(1), solver=Newton()).value
        tensor([2.0000])

    References:
        Kelley. "Iterative methods for linear and nonlinear equations" (1995), ch. 5-8 (three-point parabolic line search,
        eq. 8.9).
    """

    solves: ClassVar = (FixedPoint, RootFind, Constrained)
    dense_limit: int = 512
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_tolerances("Newton", self.rtol, self.atol, self.max_steps)
        check_option(
            "Newton", "dense_limit", self.dense_limit, self.dense_limit >= 0, ">= 0", "Use 0 for GMRES always."
        )

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        state = equation_start(oracle, x, oracle.residual(x))
        return {**state, "floor": torch.zeros_like(state["scale"]), "stale": torch.zeros_like(state["status_code"])}

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        residual, jacobian = oracle.linearize(x)
        size = norm(residual)
        if x.shape[-1] <= self.dense_limit:
            direction, bound, singular = dense_direction(jacobian, residual)
        else:
            rtol = check_rtol_dtype("Newton", self.rtol, x.dtype)
            tightest = 100 * torch.finfo(x.dtype).eps
            target = quotient(self.atol + rtol * state["scale"], size, 0.1)
            target = torch.where(torch.isfinite(target), target, 0.1).amin()  # one forcing term for all rows
            forcing = max(0.1 * float(target.clamp(tightest, 0.1)), tightest)
            direction = GMRES(rtol=forcing).solve(jacobian, -residual).value
            bound = quotient(norm(jacobian.mv(residual)), size)
            singular = ~torch.isfinite(norm(direction))
            direction = select(singular, torch.zeros_like(direction), direction)

        length = torch.ones_like(size)
        moved, reached = x, residual
        open_rows = torch.isfinite(size) & (norm(direction) > 0)
        for _ in range(MAX_TRIALS):
            trial = x + length.unsqueeze(-1) * direction
            fresh = oracle.residual(trial)
            new = norm(fresh)
            good = open_rows & (new <= (1 - 1e-4 * length) * size)
            moved, reached = select(good, trial, moved), select(good, fresh, reached)
            open_rows = open_rows & ~good
            if not any_row(open_rows):
                break
            # the parabola through |F|^2 at 0 and here, with slope -2 |F|^2 at 0
            shorter = quotient(length * size**2, new**2 + (2 * length - 1) * size**2)
            shorter = torch.where(torch.isfinite(shorter) & torch.isfinite(new), shorter.clamp(0.1, 0.5), 0.1)
            length = torch.where(open_rows, length * shorter, length)
        reached_norm = norm(reached)
        where = norm(moved)
        stale = torch.where(reached_norm < 0.99 * size, 0, state["stale"] + 1)
        stuck = stale >= 5
        stuck = stuck | (moved == x).all(-1)
        code = verdict(state["status_code"], stuck & singular, Status.SINGULAR)
        code = verdict(code, stuck, Status.STAGNATED)
        new_state = {
            **state,
            "residual": reached,
            "residual_norm": reached_norm,
            "status_code": code,
            "stale": stale,
            "floor": rounding_floor(bound, where),
        }
        if isinstance(oracle.problem, FixedPoint):
            new_state["scale"] = where
        return moved, new_state


def dense_direction(jacobian: LinearOperator, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton direction by LU, a bound of ``|J|`` from below, and the rows whose Jacobian is singular."""
    matrix = jacobian.as_matrix()
    finite = torch.isfinite(matrix).all(-1).all(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = select(finite, matrix, eye)
    bound = torch.linalg.vector_norm(matrix.detach(), dim=-2).amax(-1)
    regular = matrix
    if jacobian.nullspace is not None:
        regular = matrix + bound.unsqueeze(-1).unsqueeze(-1) * (jacobian.nullspace @ jacobian.nullspace.mT)
    direction, info = solve_rows(regular, -residual)
    length = norm(direction)
    # a direction that rounding alone could have made says that the matrix is singular
    wild = bound * length > norm(residual) / (10 * torch.finfo(matrix.dtype).eps)
    singular = (info != 0) | ~torch.isfinite(length) | wild
    slope = (matrix.mT @ residual.unsqueeze(-1)).squeeze(-1)
    image = (matrix @ slope.unsqueeze(-1)).squeeze(-1)
    steepest = -quotient(dot(slope, slope), dot(image, image)).unsqueeze(-1) * slope
    return select(singular, steepest, direction), bound, singular
