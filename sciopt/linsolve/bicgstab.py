"""BiCGSTAB for general square systems in little memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.iteration import Product, Progress, dot, preconditioning, run
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["BiCGSTAB"]


@final
@dataclass(frozen=True, kw_only=True)
class BiCGSTAB(AbstractLinearSolver):
    """Stabilised bi-conjugate gradients, batched, with right preconditioning.

    For general square systems whose Krylov basis would not fit in memory: two products per step, eight vectors of
    memory, no transpose. It breaks down on eigenvalues near the imaginary axis; rows that made progress are restarted,
    the others end as BREAKDOWN: then use GMRES.

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|``, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: step budget (two products each); default ``10 n``, between 100 and 10,000.
        preconditioner: approximation of the inverse.
    Returns:
        From `solve`: `Solution` with the true residual norm.
    Raises:
        ValueError: for options out of range, or an operator that is not square.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> A = matrix_operator(torch.tensor([[3.0, 2.0], [1.0, 4.0]]))
        >>> BiCGSTAB().solve(A, torch.tensor([5.0, 5.0])).value.round(decimals=3)
        tensor([1., 1.])

    References:
        van der Vorst. "Bi-CGSTAB". SIAM J. Sci. Stat. Comput. 13, 1992.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    preconditioner: AbstractPreconditioner | None = None

    def __post_init__(self) -> None:
        check_tolerances("BiCGSTAB", self.rtol, self.atol, self.max_steps)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        with torch.no_grad():
            apply = preconditioning(operator, self.preconditioner)

        def recurrence(progress: Progress, budget: int) -> None:
            iterate(operator, apply, progress, budget)

        return run(
            "BiCGSTAB", operator, rhs, x0, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps,
            recurrence=recurrence,
        )  # fmt: skip


def iterate(operator: LinearOperator, apply: Product | None, progress: Progress, budget: int) -> None:
    """One run of the recurrence over the running rows; stopped rows have zero vectors."""
    eps = torch.finfo(progress.x.dtype).eps
    active = progress.running
    x, r = progress.x, progress.residual
    shadow = r.clone()
    shadow_norm = torch.linalg.vector_norm(shadow, dim=-1)
    p, v = torch.zeros_like(r), torch.zeros_like(r)
    rho = alpha = omega = torch.ones_like(shadow_norm)
    norm = shadow_norm
    count = int(active.sum())
    for k in range(budget):
        if not count:
            break
        new_rho = dot(shadow, r)
        healthy = new_rho.abs() > eps * shadow_norm * norm
        beta = torch.where(active, (new_rho / rho) * (alpha / omega), 0)
        p.addcmul_(v, omega.unsqueeze(-1), value=-1).mul_(beta.unsqueeze(-1)).add_(r)
        forward = progress.guard(apply(p)) if apply else p
        v = progress.guard(operator.project(operator.mv(forward)))
        along = dot(shadow, v)
        size = torch.linalg.vector_norm(v, dim=-1)
        healthy = healthy & (along.abs() > eps * shadow_norm * size)
        ok = active & healthy & torch.isfinite(size)
        v = torch.where(ok.unsqueeze(-1), v, 0)
        if apply:
            forward = torch.where(ok.unsqueeze(-1), forward, 0)
        alpha = torch.where(ok, new_rho / along, 0)
        x.addcmul_(forward, alpha.unsqueeze(-1))
        r.addcmul_(v, alpha.unsqueeze(-1), value=-1)
        half = torch.linalg.vector_norm(r, dim=-1)
        smooth = progress.guard(apply(r)) if apply else r
        t = progress.guard(operator.project(operator.mv(smooth)))
        tt = dot(t, t)
        if apply:
            smooth = torch.where(torch.isfinite(tt).unsqueeze(-1), smooth, 0)
        rest = ok & (half > progress.threshold)
        omega = torch.where(rest & (tt > 0), dot(t, r) / tt, 0)
        turns = omega.abs() * tt.sqrt() > eps * half
        x.addcmul_(smooth, torch.where(torch.isfinite(omega), omega, 0).unsqueeze(-1))
        r.addcmul_(t, torch.where(torch.isfinite(omega), omega, 0).unsqueeze(-1), value=-1)
        norm = torch.linalg.vector_norm(r, dim=-1)
        rho = new_rho
        go = rest & turns & (norm > progress.threshold)
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            progress.settle(stopped, Status.BREAKDOWN, k + 1)
            done = ok & ((norm <= progress.threshold) | (half <= progress.threshold))
            progress.settle(stopped & done, Status.CONVERGED)
            broken = ~torch.isfinite(size) | (ok & ~done & ~(torch.isfinite(tt) & torch.isfinite(norm)))
            progress.settle(stopped & broken, Status.NONFINITE)
            progress.poison(stopped & broken)
            still = ~go.unsqueeze(-1)
            for vector in (r, p, shadow):
                vector.masked_fill_(still, 0)
            v.masked_fill_(still, 0)
            active, count = go, running
    else:
        progress.steps = torch.where(active, progress.steps + budget, progress.steps)
