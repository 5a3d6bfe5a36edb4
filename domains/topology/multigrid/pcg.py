"""Conjugate gradients in float64 around a V-cycle in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.topology.multigrid.hierarchy import Hierarchy
from sciopt.domains.topology.multigrid.stiffness import StiffnessOperator
from sciopt.solution import Status

__all__ = ["Outcome", "solve_fields"]

ROUNDS = 4  # restarts from the true residual, where the recurrence has drifted from it


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Fields and what became of each right-hand side, ``(batch,)``."""

    value: Tensor
    residual_norm: Tensor
    status_code: Tensor
    num_steps: Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of fields, ``(batch,)``, without a temporary."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def solve_fields(
    operator: StiffnessOperator,
    hierarchy: Hierarchy,
    rhs: Tensor,
    start: Tensor | None,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Outcome:
    """Solve ``K u = f`` for fields ``(batch, d, num_nodes)``, each to ``|f - K u| <= atol + rtol |f|``.

    Both ``rhs`` and ``start`` are zero where displacements are held; the memory of ``start`` is used for the result.
    The polynomial of the cycle is fixed but its rounding is not: directions are made conjugate by the flexible
    (Polak-Ribiere) formula, which needs no further vector. Rows that have ended move no more; the host looks once per
    step. At the end the residual is computed anew, and the recurrence restarted if it had drifted.

    References:
        Notay. "Flexible conjugate gradients". 2000.
    """
    x = torch.zeros_like(rhs) if start is None else start
    limit = atol + rtol * torch.linalg.vector_norm(rhs.flatten(1), dim=1)
    steps = torch.zeros(rhs.shape[0], dtype=torch.int64, device=rhs.device)
    norm = best = torch.full_like(limit, torch.inf)
    improving = torch.ones_like(limit, dtype=torch.bool)
    budget = max_steps
    for k in range(ROUNDS + 1):
        residual = rhs.clone()
        if start is not None or k:
            operator.clear(operator.add(residual, x, -1.0))
        norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)
        improving &= norm < 0.5 * best
        best = torch.minimum(best, norm)
        active = (norm > limit) & torch.isfinite(norm) & improving
        if k == ROUNDS or budget <= 0 or not bool(active.any()):
            break
        budget -= run(operator, hierarchy, x, residual, active, limit, steps, budget)
    code = torch.where(steps < max_steps, int(Status.STAGNATED), int(Status.MAX_STEPS))
    code = torch.where(norm <= limit, int(Status.CONVERGED), code)
    code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
    return Outcome(value=x, residual_norm=norm, status_code=code, num_steps=steps)


def run(
    operator: StiffnessOperator,
    hierarchy: Hierarchy,
    x: Tensor,
    r: Tensor,
    active: Tensor,
    limit: Tensor,
    steps: Tensor,
    budget: int,
) -> int:
    """One run of the recurrence on ``x``, ``r`` and ``steps``, in place; the number of steps of the longest row."""
    z = precondition(hierarchy, r)
    d = z.clone()
    rz = dot(r, z)
    q = torch.empty_like(d)
    for k in range(budget):
        operator.clear(operator.add(q.zero_(), d))
        curvature = dot(d, q)
        active = active & (curvature > 0) & (rz > 0)
        steps += active
        alpha = torch.where(active, rz / curvature, 0.0)[:, None, None]
        x.addcmul_(alpha, d)
        r.addcmul_(alpha, q, value=-1)
        norm = torch.linalg.vector_norm(r.flatten(1), dim=1)
        active = active & (norm > limit) & torch.isfinite(norm)
        if not bool(active.any()):  # the one look of the step
            return k + 1
        z = precondition(hierarchy, r)
        beta = torch.where(active, -alpha[:, 0, 0] * dot(z, q) / rz, 0.0)
        rz = dot(r, z)
        d.mul_(beta[:, None, None]).add_(z)
    return budget


def precondition(hierarchy: Hierarchy, residual: Tensor) -> Tensor:
    """A cycle in its own precision, on a residual of norm one."""
    norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)[:, None, None]
    unit = (residual / norm.clamp_min(torch.finfo(residual.dtype).tiny)).to(hierarchy.config.dtype)
    return hierarchy.cycle(unit).to(residual.dtype).mul_(norm)
