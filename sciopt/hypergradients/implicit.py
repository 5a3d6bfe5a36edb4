"""Implicit differentiation: d theta*/d phi = -A^-1 dF/dphi at the solution, whatever path led there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option, default_rtol
from sciopt.hypergradients.abstract import AbstractReattached, Request, ignored, run_solver
from sciopt.hypergradients.adjoint import check_adjoint, solve_jacobian
from sciopt.hypergradients.cascade import Cascade
from sciopt.hypergradients.contraction import NeumannOrKrylov
from sciopt.hypergradients.products import pull_args, push
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.params import under_transform
from sciopt.problem.system import Oracle
from sciopt.solution import Solution

__all__ = ["Implicit"]


@final
@dataclass(frozen=True)
class Implicit(AbstractReattached):
    """Implicit function theorem with one (adjoint or tangent) linear solve; memory does not grow with the inner steps.

    Use it whenever the inner problem is solved well and its Jacobian is regular (on the complement of a declared null
    space). Costs one linear solve, each product of which is two gradient evaluations; exact to the inner and adjoint
    tolerances, to any order. An unconverged inner solve biases it in proportion to the inner residual.

    Args:
        linear_solver: for the adjoint; None: `Cascade`, which picks from the problem's declared structure and falls back,
            with a tolerance a tenth of the relative inner residual (a tighter one would be wasted).
        accuracy: relative accuracy of the hypergradient that the outer step needs; loosens the default tolerance.

    Example:
        >>> import torch
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.inner import LBFGS
        >>> problem = Minimize(lambda theta, phi: ((theta - 3 * phi) ** 2).sum())
        >>> phi = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(2, dtype=torch.float64)
        >>> best_response(problem, phi, init=init, solver=LBFGS(), hypergradient=Implicit()).value.sum().backward()
        >>> phi.grad
        tensor([3., 3.], dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 36-38. Pedregosa.
        "Hyperparameter optimization with approximate gradient". ICML 2016 (tolerances).
    """

    linear_solver: AbstractLinearSolver | None = None
    _: KW_ONLY
    accuracy: float | None = None

    def __post_init__(self) -> None:
        solver = self.linear_solver
        if solver is not None and not isinstance(solver, AbstractLinearSolver):
            raise TypeError(
                f"Implicit: expected `linear_solver` to be a linear solver, got {solver!r}. Pass one of sciopt.linsolve, "
                "for example Implicit(CG(rtol=1e-8))."
            )
        if self.accuracy is not None:
            check_option("Implicit", "accuracy", self.accuracy, 0 < self.accuracy < 1, "in (0, 1)", "Leave None.")

    def adjoint_rtol(self, request: Request, dtype: torch.dtype) -> float:
        """A tenth of the relative inner residual, or of the accuracy asked for if that is looser."""
        floor = 100 * torch.finfo(dtype).eps
        inner = request.record.inner
        relative = default_rtol(dtype)
        if inner is not None and isinstance(inner.state, dict) and "scale" in inner.state:
            scale = inner.state["scale"].detach()
            ratio = torch.where(scale > 0, inner.residual_norm / scale.clamp_min(torch.finfo(dtype).tiny), 0.0)
            relative = float(ratio.max()) if ratio.numel() else 0.0
        return min(max(0.1 * relative, 0.1 * (self.accuracy or 0.0), floor), 1e-2)

    def pick(self, request: Request, dtype: torch.dtype) -> AbstractLinearSolver:
        """The linear solver of this request."""
        chosen = Cascade() if self.linear_solver is None else self.linear_solver
        if isinstance(chosen, (Cascade, NeumannOrKrylov)) and chosen.rtol is None:
            return replace(chosen, rtol=self.adjoint_rtol(request, dtype))
        return chosen

    @property
    def tolerates_budget(self) -> bool:
        return False

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        return run_solver(request, x0, args)

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if not any(needs[1:]):
            return (None,) * (1 + len(args))
        linear_solver = self.pick(request, x.dtype)
        if not torch.is_grad_enabled() and not under_transform():
            return (None, *first_order(linear_solver, request, x, args, cotangent, needs[1:]))
        u = solve_jacobian(linear_solver, request, cotangent, x, args, transpose=True)
        return (None, *pull_args(lambda *a: request.system.residual(x, a), args, -u, needs[1:]))

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        moved = push(lambda *a: request.system.residual(x, a), args, tangents[1:])
        return solve_jacobian(self.pick(request, x.dtype), request, -moved, x, args, transpose=False)


def first_order(
    linear_solver: AbstractLinearSolver,
    request: Request,
    x: Tensor,
    args: Sequence[Tensor],
    cotangent: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The vjp when no higher derivative is wanted: one retained graph serves the adjoint solve and the mixed product."""
    leaves = [a.detach().requires_grad_(need) for a, need in zip(args, needs, strict=True)]
    oracle = Oracle(request.system, leaves)
    oracle.args = tuple(leaves)
    residual, operator = oracle.linearize(x, attached=True)
    record, rhs = request.record, cotangent.detach()
    with torch.no_grad():
        solution = linear_solver.solve(operator.transpose(), rhs, x0=record.adjoint_start(rhs))
    if record.truncated:
        record.adjoints.append(solution.value)
    check_adjoint(request, linear_solver, solution)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(
        torch.autograd.grad(residual, wanted, -solution.value, allow_unused=True) if residual.requires_grad else ()
    )
    out = [next(grads, None) if leaf.requires_grad else None for leaf in leaves]
    if all(g is None for g in out) and x.numel() and any(leaf.numel() for leaf in wanted):
        raise ignored(request.system.problem)
    return tuple(
        torch.zeros_like(leaf) if g is None and leaf.requires_grad else g for g, leaf in zip(out, leaves, strict=True)
    )
