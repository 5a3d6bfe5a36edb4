"""The list that every contract test of the inner solvers runs over, and problems with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.inner import (
    LBFGS,
    AbstractSolver,
    Adam,
    Anderson,
    Broyden,
    ConstrainedNewton,
    EigenSolve,
    GaussNewton,
    GradientDescent,
    InteriorPoint,
    Newton,
    NewtonCG,
    Picard,
    ProximalGradient,
)
from sciopt.params import ravel
from sciopt.problem import (
    AbstractProblem,
    Constrained,
    Eigen,
    FixedPoint,
    LeastSquares,
    Minimize,
    Program,
    QuadraticProgram,
    RootFind,
)
from sciopt.problem.system import Oracle, System
from sciopt.solution import Solution

SIZE = 6


def bind(problem: AbstractProblem, init: Any, outer: Any, *, differentiable: bool = False) -> tuple[Oracle, Tensor]:
    """The oracle and flat start of a problem, as `best_response` makes them."""
    layout, x = ravel(problem.start(init, outer), problem.batch_ndim)
    leaves, spec = pytree.tree_flatten(outer)
    return Oracle(System(problem, layout, spec, len(leaves)), leaves, differentiable=differentiable), x


def solve(solver: AbstractSolver, problem: AbstractProblem, init: Any, outer: Any) -> Solution:
    """Solve and return the solution with the value in the caller's structure."""
    solver.check(problem)
    oracle, x = bind(problem, init, outer)
    return solver.solve(oracle, x)


def matrix(dtype: torch.dtype) -> Tensor:
    """A fixed symmetric positive definite matrix with eigenvalues between 1 and 20."""
    grid = torch.arange(SIZE * SIZE, dtype=torch.float64).reshape(SIZE, SIZE)
    basis = torch.linalg.qr(torch.sin(grid * 1.7 + 0.3))[0]
    return ((basis * torch.logspace(0, 1.3, SIZE, dtype=torch.float64)) @ basis.mT).to(dtype)


def quadratic(batch_ndim: int) -> AbstractProblem:
    """``1/2 x.A x - phi.x + sum x^4 / 4``: strictly convex, not quadratic."""

    def loss(x: Tensor, phi: Tensor) -> Tensor:
        return 0.5 * ((x @ matrix(x.dtype)) * x).sum(-1) - (phi * x).sum(-1) + 0.25 * (x**4).sum(-1)

    return Minimize(loss, batch_ndim=batch_ndim)


def quadratic_error(x: Tensor, phi: Tensor) -> Tensor:
    return x @ matrix(x.dtype) - phi + x**3


def curve(batch_ndim: int) -> AbstractProblem:
    return LeastSquares(lambda x, phi: torch.cat([torch.sinh(x) - phi, 0.1 * x], -1), batch_ndim=batch_ndim)


def curve_error(x: Tensor, phi: Tensor) -> Tensor:
    return torch.cosh(x) * (torch.sinh(x) - phi) + 0.01 * x


def contraction(batch_ndim: int) -> AbstractProblem:
    def step(x: Tensor, phi: Tensor) -> Tensor:
        return torch.tanh(x @ matrix(x.dtype)) * 0.04 + 0.5 * torch.cos(x) + phi

    return FixedPoint(step, batch_ndim=batch_ndim)


def contraction_error(x: Tensor, phi: Tensor) -> Tensor:
    return torch.tanh(x @ matrix(x.dtype)) * 0.04 + 0.5 * torch.cos(x) + phi - x


def root(batch_ndim: int) -> AbstractProblem:
    return RootFind(lambda x, phi: quadratic_error(x, phi), batch_ndim=batch_ndim)


def boxed(batch_ndim: int) -> AbstractProblem:
    def loss(x: Tensor, phi: Tensor) -> Tensor:
        return 0.5 * ((x @ matrix(x.dtype)) * x).sum(-1) - (phi * x).sum(-1)

    return Minimize(loss, batch_ndim=batch_ndim, box=(0.0, 0.3))


def boxed_error(x: Tensor, phi: Tensor) -> Tensor:
    return x - (x - (x @ matrix(x.dtype) - phi)).clamp(0.0, 0.3)


def program(batch_ndim: int) -> AbstractProblem:
    def loss(x: Tensor, phi: Tensor) -> Tensor:
        return 0.5 * ((x @ matrix(x.dtype)) * x).sum(-1) - (phi * x).sum(-1)

    return Constrained(
        loss,
        equality=lambda x, phi: x.sum(-1, keepdim=True) - 0.2,
        inequality=lambda x, phi: torch.cat([-x, x - 0.3], -1),
        batch_ndim=batch_ndim,
    )


def matrix_program(batch_ndim: int) -> AbstractProblem:
    def build(phi: Tensor) -> Program:
        eye, one = torch.eye(SIZE).to(phi), torch.ones(1, SIZE).to(phi)
        bounds = torch.cat([torch.zeros(SIZE), torch.full((SIZE,), 0.3)]).to(phi)
        return Program(Q=matrix(phi.dtype), p=-phi, G=torch.cat([-eye, eye]), h=bounds, A=one, b=0.2 * one[:, 0])

    return QuadraticProgram(build, batch_ndim=batch_ndim)


def program_error(z: Tensor, phi: Tensor) -> Tensor:
    x, y, lower, upper = z.split([SIZE, 1, SIZE, SIZE], -1)
    stationarity = x @ matrix(z.dtype) - phi + y - lower + upper
    complementarity = torch.cat([torch.minimum(lower, x), torch.minimum(upper, 0.3 - x)], -1)
    return torch.cat([stationarity, x.sum(-1, keepdim=True) - 0.2, complementarity], -1)


def mode(batch_ndim: int) -> AbstractProblem:
    return Eigen(lambda v, phi: v @ matrix(v.dtype) + phi * v, index=1, batch_ndim=batch_ndim)


def mode_error(z: Tensor, phi: Tensor) -> Tensor:
    value, v = z[..., :1], z[..., 1:]
    residual = v @ matrix(v.dtype) + phi * v - value * v
    return torch.cat([(v * v).sum(-1, keepdim=True) - 1, residual], -1)


@dataclass(frozen=True)
class Case:
    """A solver, a family of problems by ``batch_ndim``, and the equation that a solution satisfies."""

    name: str
    solver: AbstractSolver
    problem: Callable[[int], AbstractProblem]
    error: Callable[[Tensor, Tensor], Tensor]
    slack: float = 10.0  # |error| allowed in units of rtol * scale of order one


def _both(solver: AbstractSolver, slack: float = 10.0) -> list[Case]:
    name = type(solver).__name__
    smooth = Case(f"{name}-minimum", solver, quadratic, quadratic_error, slack)
    return [smooth, Case(f"{name}-least_squares", solver, curve, curve_error, slack)]


def _equations(solver: AbstractSolver) -> list[Case]:
    name = type(solver).__name__
    fixed = Case(f"{name}-fixed_point", solver, contraction, contraction_error)
    return [fixed, Case(f"{name}-root", solver, root, quadratic_error, 30.0)]


CASES = [
    *_both(LBFGS()),
    *_both(NewtonCG()),
    *_both(GradientDescent()),
    Case("GradientDescent-momentum", GradientDescent(momentum=0.5), quadratic, quadratic_error),
    Case("GradientDescent-fixed", GradientDescent(step_size=0.04), quadratic, quadratic_error),
    Case(
        "GradientDescent-nesterov",
        GradientDescent(step_size=0.02, momentum=0.8, nesterov=True),
        quadratic,
        quadratic_error,
    ),
    Case("Adam-minimum", Adam(step_size=0.1, betas=(0.5, 0.9), eps=1.0, max_steps=3000), quadratic, quadratic_error),
    Case("ProximalGradient-box", ProximalGradient(), boxed, boxed_error),
    Case("ProximalGradient-plain", ProximalGradient(accelerated=False), boxed, boxed_error),
    Case("ProximalGradient-fixed", ProximalGradient(step_size=0.05), boxed, boxed_error),
    Case("GaussNewton-dense", GaussNewton(), curve, curve_error),
    Case("GaussNewton-iterative", GaussNewton(dense_limit=0), curve, curve_error),
    Case("Picard-fixed_point", Picard(), contraction, contraction_error),
    Case("Picard-damped", Picard(damping=0.7), contraction, contraction_error),
    Case("Anderson-fixed_point", Anderson(), contraction, contraction_error),
    *_equations(Broyden()),
    *_equations(Newton()),
    Case("Newton-gmres", Newton(dense_limit=0), root, quadratic_error, 30.0),
    Case("ConstrainedNewton-program", ConstrainedNewton(), program, program_error),
    Case("InteriorPoint-program", InteriorPoint(), program, program_error),
    Case("InteriorPoint-matrices", InteriorPoint(), matrix_program, program_error),
    Case("EigenSolve-dense", EigenSolve(), mode, mode_error, 30.0),
    Case("EigenSolve-iterative", EigenSolve(dense_limit=0), mode, mode_error, 30.0),
]
IDS = [case.name for case in CASES]
