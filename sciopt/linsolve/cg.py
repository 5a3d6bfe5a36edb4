"""Conjugate gradients for symmetric positive definite systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.iteration import Product, Progress, dot, preconditioning, probe_norm, run
from sciopt.linsolve.operator import LinearOperator, format_tags
from sciopt.linsolve.ritz import Coefficients, cg_extremes
from sciopt.solution import Solution, Status

__all__ = ["CG"]


@final
@dataclass(frozen=True, kw_only=True)
class CG(AbstractLinearSolver):
    """Conjugate gradients, batched, with its own certificate of curvature.

    The method for positive definite systems: one product per step, four vectors of memory, error after k steps of
    order ``((sqrt(cond) - 1) / (sqrt(cond) + 1))^k``. A step of negative curvature ends the row as INDEFINITE, one of
    zero curvature as SINGULAR, each with the last good iterate. With ``rtol=0, atol=0`` it takes
    ``max_steps`` steps, a truncated solve, and says MAX_STEPS (or STAGNATED once rounding stops it earlier).

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|``, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: step budget; default ``10 n``, between 100 and 10,000.
        preconditioner: symmetric positive definite approximation of the inverse.
        ritz: compute the curvature seen; in large batches it costs about as much as the steps. Without it only
            INDEFINITE and SINGULAR rows tell theirs.
    Returns:
        From `solve`: `Solution`; ``aux["min_ritz"]`` and ``aux["max_ritz"]`` ``(*batch,)`` are the extreme curvatures
        of A that were seen: Ritz values (to 1e-3, from inside the spectrum), or with a preconditioner the extreme
        Rayleigh quotients of the search directions. NaN for rows without a step.
    Raises:
        ValueError: for options out of range, or an operator not tagged POSITIVE_DEFINITE.
    Example:
        >>> from sciopt.linsolve import Tag, matrix_operator
        >>> A = matrix_operator(torch.tensor([[4.0, 1.0], [1.0, 3.0]]), tags=(Tag.POSITIVE_DEFINITE,))
        >>> solution = CG().solve(A, torch.tensor([1.0, 2.0]))
        >>> solution.status.name, solution.value.round(decimals=4)
        ('CONVERGED', tensor([0.0909, 0.6364]))

    References:
        Hestenes, Stiefel. "Methods of conjugate gradients for solving linear systems". 1952.
        Saad. "Iterative methods for sparse linear systems". SIAM, 2003. Algorithm 6.18, section 6.7.3 (Lanczos).
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    preconditioner: AbstractPreconditioner | None = None
    ritz: bool = True

    def __post_init__(self) -> None:
        check_tolerances("CG", self.rtol, self.atol, self.max_steps)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        if not operator.positive_definite:
            raise ValueError(
                f"CG: expected an operator tagged POSITIVE_DEFINITE, got tags {format_tags(operator.tags)}. "
                "Use MINRES or GMRES, or tag the operator if you know it holds."
            )
        with torch.no_grad():
            apply = preconditioning(operator, self.preconditioner)

        def recurrence(progress: Progress, budget: int) -> None:
            iterate(operator, apply, progress, budget, self.ritz)

        return run(
            "CG", operator, rhs, x0, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, recurrence=recurrence
        )


def iterate(operator: LinearOperator, apply: Product | None, progress: Progress, budget: int, ritz: bool) -> None:
    """One run of the recurrence over the running rows.

    Rows that stop get a zero residual and direction, so that they take part at no risk; the host learns of the
    number of running rows once per step.
    """
    eps = torch.finfo(progress.x.dtype).eps
    x, r = progress.x, progress.residual
    d = apply(r).clone() if apply else r.clone()
    rz = dot(r, d)
    active = progress.reject(torch.isfinite(rz), r, d) if apply else progress.running
    length2 = rz  # |d|^2 in the norm of the preconditioner: residuals are orthogonal to earlier directions
    top = torch.zeros_like(rz)
    coefficients = Coefficients(rz)
    low, high = torch.full_like(rz, torch.nan), torch.full_like(rz, torch.nan)
    count = int(active.sum())
    for k in range(budget):
        if not count:
            break
        q = progress.guard(operator.project(operator.mv(d)))
        curvature = dot(d, q)
        top = torch.fmax(top, curvature / length2)
        ok = active & (curvature > eps * top * length2)
        alpha = torch.where(ok, rz / curvature, 0)
        step = alpha.unsqueeze(-1)
        if apply and ritz:
            rayleigh = curvature / dot(d, d)
            low, high = torch.fmin(low, rayleigh), torch.fmax(high, rayleigh)
        x.addcmul_(step, d)
        r.addcmul_(step, q, value=-1)
        rr = dot(r, r)
        norm = rr.sqrt()
        go = ok & (norm > progress.threshold)
        if apply:
            z = progress.guard(apply(r))
            rz_new = dot(r, z)
            go = go & (rz_new > 0)
        else:
            z, rz_new = r, rr
        beta = torch.where(go, rz_new / rz, 0)
        if ritz and not apply:
            coefficients.add(alpha, beta)
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            done = ok & (norm <= progress.threshold)
            progress.settle(stopped & done, Status.CONVERGED, k + 1)
            progress.settle(stopped & ok & ~done, Status.BREAKDOWN, k + 1)
            refused = stopped & ~ok
            scale = top if apply else torch.fmax(top, probe_norm(operator, d))
            progress.settle(refused, Status.SINGULAR, k)
            progress.settle(refused & (curvature < -10 * eps * scale * length2), Status.INDEFINITE)
            spent = norm <= 10 * eps * progress.rhs_norm  # nothing is left to reduce
            progress.settle(refused & spent, Status.STAGNATED)
            low = torch.where(refused & ~spent, torch.fmin(low, curvature / dot(d, d)), low)
            broken = stopped & ~(torch.isfinite(curvature) & (torch.isfinite(rz_new) | ~ok))
            progress.settle(broken, Status.NONFINITE)
            progress.poison(broken)
            still = ~go.unsqueeze(-1)
            r.masked_fill_(still, 0)
            d.masked_fill_(still, 0)
            z = z.masked_fill(still, 0) if apply else r
            active, count = go, running
        d.mul_(beta.unsqueeze(-1)).add_(z)
        length2 = torch.addcmul(rz_new, beta * beta, length2)
        rz = rz_new
    else:
        progress.steps = torch.where(active, progress.steps + budget, progress.steps)
    if coefficients.rows:
        alphas, betas = coefficients.stacked()
        first, last = cg_extremes(alphas, betas)
        low, high = torch.fmin(low, first), torch.fmax(high, last)
    progress.note(min_ritz=low, max_ritz=high)
