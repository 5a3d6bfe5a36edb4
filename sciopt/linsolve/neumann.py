"""Neumann series, alias Richardson iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.iteration import Product, Progress, preconditioning, run
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["Neumann"]

RUNAWAY = 1e8  # growth of the residual that ends a row


@final
@dataclass(frozen=True, kw_only=True)
class Neumann(AbstractLinearSolver):
    """Neumann series ``x <- x + step_size (b - A x)``: K steps from zero sum K terms of ``(I - step_size A)^k``.

    The cheapest biased inverse: no inner products, any operator, contracts only if the eigenvalues of ``step_size A``
    lie within 1 of 1. For ``(I - M) x = b`` pass the operator ``I - M`` and ``step_size=1``.
    For a truncation on purpose set ``rtol=0, atol=0, max_steps=K``: exactly K terms, without reading values on the
    host; the status is MAX_STEPS (or DIVERGED, when the residual has grown), and ``residual_norm`` tells the bias.

    Args:
        step_size: factor of each correction, > 0, in units of 1 / A.
        rtol: relative tolerance on ``|b - A x| / |b|``, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: number of terms at most; default ``10 n``, between 100 and 10,000.
        preconditioner: approximation M of the inverse, for ``x + step_size M (b - A x)``.
    Returns:
        From `solve`: `Solution` with the true residual norm.
    Raises:
        ValueError: for options out of range, or an operator that is not square.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> A = matrix_operator(torch.tensor([[0.5]]).repeat(2, 2) * torch.eye(2))
        >>> solution = Neumann(rtol=0.0, max_steps=3).solve(A, torch.ones(2))
        >>> solution.status.name, solution.value
        ('MAX_STEPS', tensor([1.7500, 1.7500]))

    References:
        Lorraine, Vicol, Duvenaud. "Optimizing millions of hyperparameters by implicit differentiation". AISTATS, 2020.
        Chen et al. "Gradient-based bi-level optimization for deep learning: a survey". Equation 44.
    """

    step_size: float = 1.0
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    preconditioner: AbstractPreconditioner | None = None

    def __post_init__(self) -> None:
        check_tolerances("Neumann", self.rtol, self.atol, self.max_steps)
        check_option(
            "Neumann", "step_size", self.step_size, self.step_size > 0, "> 0",
            "Use 1 / L, with L the largest eigenvalue of A.",
        )  # fmt: skip

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        with torch.no_grad():
            apply = preconditioning(operator, self.preconditioner)
        checks = self.rtol != 0 or self.atol > 0

        def recurrence(progress: Progress, budget: int) -> None:
            iterate(operator, apply, progress, budget, self.step_size, checks)

        return run(
            "Neumann", operator, rhs, x0, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps,
            recurrence=recurrence,
        )  # fmt: skip


def iterate(
    operator: LinearOperator, apply: Product | None, progress: Progress, budget: int, step_size: float, checks: bool
) -> None:
    """At most ``budget`` terms; ``progress.residual`` ends as the true residual, of the rows that ran at least."""
    active = progress.running
    x, r = progress.x, progress.residual
    whole = r
    start = torch.linalg.vector_norm(r, dim=-1)
    norm = start
    count = int(active.sum()) if checks else 1
    taken = 0
    for k in range(budget):
        if not count:
            break
        x.add_(progress.guard(apply(r)) if apply else r, alpha=step_size)
        r = whole = progress.rhs - operator.project(operator.mv(x))  # stopped rows stand still: theirs stays true too
        taken = k + 1
        if not checks:
            continue
        norm = torch.linalg.vector_norm(r, dim=-1)
        go = active & (norm > progress.threshold) & (norm <= RUNAWAY * start)
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            progress.settle(stopped, Status.CONVERGED, taken)
            progress.settle(stopped & (norm > RUNAWAY * start), Status.DIVERGED)
            progress.settle(stopped & ~torch.isfinite(norm), Status.NONFINITE)
            if apply:
                progress.poison(stopped & ~torch.isfinite(norm))
            active, count = go, running
        r = torch.where(active.unsqueeze(-1), r, 0)
    progress.steps = torch.where(active, progress.steps + taken, progress.steps)
    progress.residual, progress.fresh = whole, taken > 0
    if not checks:
        norm = torch.linalg.vector_norm(r, dim=-1)
    progress.settle(active & (norm > start), Status.DIVERGED)
