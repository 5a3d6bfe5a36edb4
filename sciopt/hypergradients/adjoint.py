"""The two linear solves A^-1 and A^-T of the implicit function theorem, each the other's derivative."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import Request, lift, to_front
from sciopt.hypergradients.precision import full_precision
from sciopt.hypergradients.products import jacobian_vector, pull_args, push
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, SolveError, Status

__all__ = ["HypergradientWarning", "JacobianSolve", "check_adjoint"]


class HypergradientWarning(UserWarning):
    """A hypergradient that should not be trusted as it stands; the text says why and what to do."""


def check_adjoint(request: Request, linear_solver: AbstractLinearSolver, solution: Solution) -> None:
    """Note the adjoint's solution; raise or warn when it failed.

    A spent budget of a solver with ``rtol=0, atol=0``, or of a record that says so, is a truncation on purpose, and no
    failure.
    """
    record = request.record
    record.adjoint, record.linear_solver = solution, linear_solver
    if "note" in solution.aux:
        record.notes.append(solution.aux["note"])
    component = solution.aux.get("nullspace_component")
    # what rounding leaves of an invariant loss's gradient is no leak: a few eps in single precision
    if component is not None and bool((component > max(1e-6, 200 * torch.finfo(component.dtype).eps)).any()):
        warnings.warn(
            "best_response: expected an outer loss that is constant along the declared `nullspace`, got a gradient with a "
            f"relative component {float(component.max()):.1e} along it, which was dropped. Use an invariant outer loss "
            "(align first, or compare distances).",
            HypergradientWarning,
            stacklevel=2,
        )
    status = solution.status
    on_purpose = getattr(linear_solver, "rtol", None) == 0 and getattr(linear_solver, "atol", None) == 0
    if status == Status.CONVERGED or (status == Status.MAX_STEPS and (on_purpose or record.truncated)):
        return
    if request.throw:
        raise SolveError("Implicit: adjoint", solution)
    warnings.warn(str(SolveError("Implicit: adjoint", solution)), HypergradientWarning, stacklevel=2)


class JacobianSolve(torch.autograd.Function):
    """``y = A(x, args)^-1 b`` (or with A^T), A = dF/dx; differentiable in b, x and args to any order."""

    @staticmethod
    def forward(
        linear_solver: AbstractLinearSolver, request: Request, transpose: bool, b: Tensor, x: Tensor, *args: Tensor
    ) -> Tensor:
        operator = Oracle(request.system, args).linearize(x)[1]
        with torch.no_grad():
            solution = linear_solver.solve(operator.transpose() if transpose else operator, b.detach())
        check_adjoint(request, linear_solver, solution)
        value = solution.value
        return value.clone() if value is b or value._is_view() else value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        linear_solver, request, transpose, _, x, *args = inputs
        ctx.config = (linear_solver, request, transpose)
        ctx.save_for_backward(output, x, *args)
        ctx.save_for_forward(output, x, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        linear_solver, request, transpose = ctx.config
        y, x, *args = ctx.saved_tensors

        def applied(x: Tensor, *args: Tensor) -> Tensor:
            return jacobian_vector(request.system, x, args, y, transpose=transpose)

        with full_precision(x):
            w = JacobianSolve.apply(linear_solver, request, not transpose, grad, x, *args)
            grads = pull_args(applied, (x, *args), -w, ctx.needs_input_grad[4:])
        return (None, None, None, w, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        linear_solver, request, transpose = ctx.config
        y, x, *args = ctx.saved_tensors
        rhs = tangents[3]

        def applied(x: Tensor, *args: Tensor) -> Tensor:
            return jacobian_vector(request.system, x, args, y, transpose=transpose)

        moved = push(applied, (x, *args), tangents[4:])
        rhs = -moved if rhs is None else rhs - moved
        return JacobianSolve.apply(linear_solver, request, transpose, rhs, x, *args)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: tuple[Any, ...],
        linear_solver: AbstractLinearSolver,
        request: Request,
        transpose: bool,
        b: Tensor,
        x: Tensor,
        *args: Tensor,
    ) -> Any:
        size = info.batch_size
        lifted = lift(request, in_dims[5:], size)
        b, x = to_front(b, in_dims[3], size), to_front(x, in_dims[4], size)
        return JacobianSolve.apply(linear_solver, lifted, transpose, b, x, *args), 0


def solve_jacobian(
    linear_solver: AbstractLinearSolver,
    request: Request,
    b: Tensor,
    x: Tensor,
    args: Sequence[Tensor],
    *,
    transpose: bool,
) -> Tensor:
    """``A^-1 b`` or ``A^-T b``."""
    return JacobianSolve.apply(linear_solver, request, transpose, b, x, *args)
