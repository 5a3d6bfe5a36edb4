"""How wrong is this hypergradient? One Newton correction of the state, one refined adjoint, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import final

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import Record
from sciopt.hypergradients.cascade import Cascade
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.problem import InitialValue, Recurrence
from sciopt.problem.system import Oracle
from sciopt.solution import Solution

__all__ = ["Certificate", "ErrorKind", "certify"]


class ErrorKind(Enum):
    """Whether ``error_bound`` bounds the error or estimates it."""

    BOUND = "bound"
    ESTIMATE = "estimate"
    UNKNOWN = "unknown"


@final
@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is known about the error of a hypergradient and the curvature of the inner problem.

    Args:
        error_bound: bound or estimate of ``|grad - true hypergradient|`` (2-norm over all outer numbers); NaN if unknown.
        kind: a bound when the curvature seen is positive and the inner problem is quadratic between the computed and the
            corrected state, to rounding; else an estimate, first order in the inner error.
        min_ritz: smallest curvature seen, ``(*batch,)``; NaN if none was measured.
        max_ritz: largest curvature seen, ``(*batch,)``.
    """

    error_bound: float
    kind: ErrorKind
    min_ritz: Tensor
    max_ritz: Tensor


def certify(
    outer: Callable[[Tensor, Sequence[Tensor]], Tensor],
    record: Record,
    grad: Sequence[Tensor],
    *,
    pull: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda cotangents: cotangents,
) -> Certificate | None:
    """Certificate of ``grad``, the total derivative in the outer leaves.

    With x the computed state, A = dF/dx: x1 = x - A^-1 F(x) corrects the state, u1 solves A(x1)^T u1 = dL_out/dx(x1), and the
    hypergradient h1 assembled from them is exact up to second order in F(x) and the tolerance of the two solves. The error
    is then ``|grad - h1|`` plus what these solves leave over and what rounding allows.

    Args:
        outer: ``(x, outer leaves) -> ()`` on the flat state.
        record: what `best_response` noted.
        grad: the hypergradient to judge, one tensor for each outer leaf.
        pull: from derivatives in the outer leaves to those in what ``grad`` refers to, where that is something else.
    """
    request, inner = record.request, record.inner
    if request is None or inner is None or isinstance(request.system.problem, (Recurrence, InitialValue)):
        return None
    system = request.system
    args = [a.detach() for a in record.args]
    x, count = inner.value.detach(), system.num_outer
    eps = torch.finfo(x.dtype).eps
    residual, first = Oracle(system, args).linearize(x)
    low, high = curvature(record.adjoint, x)
    condition = condition_of(low, high)
    fine = max(min(1e-2, 0.05 / condition), 100 * eps)
    with torch.no_grad():
        correction = solver_of(record, fine).solve(first, residual)
    corrected = x - correction.value
    leaves = [a.clone().requires_grad_(i < count) for i, a in enumerate(args)]
    point = corrected.clone().requires_grad_()
    with torch.enable_grad():
        value = outer(point, leaves[:count])
        seeds = torch.autograd.grad(value, [point, *leaves[:count]], materialize_grads=True, allow_unused=True)
    oracle = Oracle(system, leaves)
    oracle.args = tuple(leaves)
    after, _ = oracle.linearize(corrected, attached=True)
    _, operator = Oracle(system, args).linearize(corrected)  # products that keep no graph: a long solve makes many
    known = record.adjoint if record.adjoint is not None and record.adjoint.value.shape == x.shape else None
    guess = None if known is None else known.value
    left = 1.0 if known is None else relative_residual(known, seeds[0])
    with torch.no_grad():
        tight = max(min(fine, 0.05 * left / condition**0.5), 100 * eps)
        adjoint = solver_of(record, tight).solve(operator.transpose(), seeds[0], x0=guess)
    low, high = curvature(adjoint, x, low, high)
    if after.requires_grad:
        pulled = torch.autograd.grad(after, leaves[:count], -adjoint.value, materialize_grads=True, allow_unused=True)
    else:
        pulled = [torch.zeros_like(leaf) for leaf in leaves[:count]]
    refined = pull([d + p for d, p in zip(seeds[1:], pulled, strict=True)])
    error = norm_of([g - r for g, r in zip(grad, refined, strict=True)])
    size = norm_of(pull(seeds[1:])) + norm_of(pull(pulled))
    solved = correction.converged.all() & adjoint.converged.all()
    # For a quadratic the corrected residual is the residual of the linear solve, to rounding.
    with torch.no_grad():
        predicted = residual - first.mv(correction.value)
        reach = (
            float(high.nan_to_num(0.0).max()) * (norm_of([x]) + norm_of([correction.value])) if high.numel() else 0.0
        )
        noise = 100 * eps * (norm_of([residual]) + norm_of([first.mv(x)]) + reach)
    settled = norm_of([after.detach() - predicted]) <= noise
    positive = bool((low > 0).all()) if bool(torch.isfinite(low).all()) else False
    if not bool(solved) or not all(bool(torch.isfinite(r).all()) for r in refined):
        return Certificate(error_bound=float("nan"), kind=ErrorKind.UNKNOWN, min_ritz=low, max_ritz=high)
    rounding = 4 * eps * condition_of(low, high) ** 0.5 * size
    kind = ErrorKind.BOUND if settled and positive else ErrorKind.ESTIMATE
    return Certificate(error_bound=1.5 * error + rounding, kind=kind, min_ritz=low, max_ritz=high)


def solver_of(record: Record, rtol: float) -> AbstractLinearSolver:
    """The caller's linear solver when it is direct, or at the tolerance needed when it is tailored; else `Cascade`."""
    known = record.linear_solver
    if known is not None and known.direct:
        return known
    if known is not None and known.tailored and is_dataclass(known):
        return replace(known, rtol=rtol)
    return Cascade(rtol=rtol)


def condition_of(low: Tensor, high: Tensor) -> float:
    """Largest condition number seen, within [1, 1e8]; 1e4 where nothing was measured."""
    ratio = (high / low).nan_to_num(1e4, 1e4, 1e4).clamp(1.0, 1e8)
    return float(ratio.max()) if ratio.numel() else 1.0


def norm_of(tensors: Sequence[Tensor]) -> float:
    """2-norm over all entries of several tensors."""
    return float(torch.stack([t.square().sum() for t in tensors]).sum().sqrt()) if tensors else 0.0


def relative_residual(adjoint: Solution, rhs: Tensor) -> float:
    """Largest adjoint residual of the batch relative to its right-hand side."""
    norms = torch.linalg.vector_norm(rhs, dim=-1).clamp_min(torch.finfo(rhs.dtype).tiny)
    ratio = adjoint.residual_norm / norms if adjoint.residual_norm.shape == norms.shape else torch.ones_like(norms)
    return float(ratio.max()) if ratio.numel() else 0.0


def curvature(
    solution: Solution | None, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Extreme Ritz values ``(*batch,)`` that a linear solve saw, joined with those known; NaN where none."""
    unknown = torch.full_like(x[..., 0], float("nan"))
    aux = {} if solution is None else solution.aux
    new_low, new_high = aux.get("min_ritz", unknown), aux.get("max_ritz", unknown)
    new_low = new_low if new_low.shape == unknown.shape else unknown
    new_high = new_high if new_high.shape == unknown.shape else unknown
    if low is not None and high is not None:
        new_low = torch.fmin(new_low, low)
        new_high = torch.fmax(new_high, high)
    return new_low, new_high
