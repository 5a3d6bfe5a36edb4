"""The public entry: pick a solver, solve, say whether it worked, stay differentiable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sciopt.checks import check_tree
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.cg import CG
from sciopt.linsolve.cholesky import Cholesky
from sciopt.linsolve.gmres import GMRES
from sciopt.linsolve.lsmr import LSMR
from sciopt.linsolve.lu import LU
from sciopt.linsolve.minres import MINRES
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, SolveError

__all__ = ["default_solver", "linear_solve"]

DENSE_SIZE = 128  # up to here forming the matrix costs less than the overhead of iterating


def default_solver(operator: LinearOperator) -> AbstractLinearSolver:
    """The solver that the declared structure and the size suggest.

    LSMR for rectangular operators; up to n = 128 Cholesky (positive definite) or LU; above it CG, MINRES (symmetric)
    or GMRES.

    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> default_solver(matrix_operator(torch.eye(3)))
        LU(rtol=None, atol=0.0)
    """
    m, n = operator.shape
    if m != n:
        return LSMR()
    if n <= DENSE_SIZE:
        return Cholesky() if operator.positive_definite else LU()
    if operator.positive_definite:
        return CG()
    return MINRES() if operator.symmetric else GMRES()


def linear_solve(
    operator: LinearOperator,
    rhs: Any,
    solver: AbstractLinearSolver | None = None,
    *,
    x0: Any = None,
    throw: bool = True,
) -> Solution:
    """Solve ``A x = b``, differentiable in b to any order, in reverse and forward mode.

    The derivative is a solve with the transposed operator by the same solver. It does not reach parameters inside the
    operator: those are the business of `sciopt.best_response`. With ``throw=False`` a failed solve in the backward
    pass shows in nothing but its values.

    Args:
        operator: the system; with one built on trees, ``rhs`` and ``x0`` are trees.
        rhs: ``(*batch, m)``, or a tree shaped as the operator's result.
        solver: default: see `default_solver`.
        x0: start, shaped as the solution; default zero. Gradients do not pass through it.
        throw: raise `SolveError` when a row fails, in the backward pass too.
    Returns:
        `Solution`; ``value`` is ``(*batch, n)`` or a tree shaped as the operator's argument.
    Raises:
        SolveError: with ``throw=True``, when a row has not converged.
        ValueError, TypeError: for shapes, dtypes, devices, tags or options that do not fit.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> b = torch.tensor([2.0, 4.0], requires_grad=True)
        >>> x = linear_solve(matrix_operator(torch.diag(torch.tensor([1.0, 2.0]))), b).value
        >>> torch.autograd.grad(x.sum(), b)
        (tensor([1.0000, 0.5000]),)
    """
    if not isinstance(operator, LinearOperator):
        raise TypeError(
            f"linear_solve: expected `operator` to be a LinearOperator, got {type(operator).__name__}. "
            "Wrap it with matrix_operator or function_operator."
        )
    check_tree("linear_solve", "rhs", rhs)
    if operator.out_layout is not None:
        rhs = operator.out_layout.flatten(rhs)
    if x0 is not None:
        check_tree("linear_solve", "x0", x0)
        x0 = (x0 if operator.layout is None else operator.layout.flatten(x0)).detach()
    if solver is None:
        solver = default_solver(operator)
    record = _Record()
    value = _Solve.apply(rhs, x0, operator, solver, throw, record)
    if operator.layout is not None:
        value = operator.layout.unflatten(value)
    return replace(record.solution, value=value)


class _Record:
    """Carries the whole `Solution` out of the autograd function, which returns its value alone."""

    solution: Solution


class _Solve(torch.autograd.Function):
    """``A^-1 b`` as a linear function of b."""

    @staticmethod
    def forward(rhs, x0, operator, solver, throw, record) -> Tensor:
        solution = solver.solve(operator, rhs, x0=x0)
        record.solution = solution
        if throw and bool((~solution.converged).any()):
            raise SolveError(type(solver).__name__, solution)
        return solution.value

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.operator, ctx.solver, ctx.throw = inputs[2:5]

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        return _Solve.apply(grad, None, ctx.operator.transpose(), ctx.solver, ctx.throw, _Record()), *[None] * 5

    @staticmethod
    def jvp(ctx, *tangents):
        if tangents[0] is None:
            return None
        return _Solve.apply(tangents[0], None, ctx.operator, ctx.solver, ctx.throw, _Record())

    @staticmethod
    def vmap(info, in_dims, *args):
        raise NotImplementedError(
            "linear_solve: expected a call outside torch.func.vmap, got one under it. Build the operator with a batch "
            "shape and pass a batched right-hand side."
        )
