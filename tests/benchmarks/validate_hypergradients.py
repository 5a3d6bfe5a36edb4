"""Accuracy of hypergradients and of their error bounds over many random problems."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sciopt import Minimize, best_response
from sciopt.hypergradients import AbstractHypergradient, Auto, Implicit, Unrolled
from sciopt.inner import LBFGS, NewtonCG
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve import CG, MINRES, Cholesky
from tests.benchmarks.quadratics import Trial, trials
from tests.benchmarks.table import Measured, bar

COUNT = 300


@functools.cache
def many() -> list[Trial]:
    """Full-size sample: 300 quadratics, n from 5 to 200, condition from 1 to 1e4."""
    return trials(COUNT)


def spread(values: list[float]) -> str:
    """Median and range."""
    ordered = sorted(values)
    return f"median {ordered[len(ordered) // 2]:.3g}, from {ordered[0]:.3g} to {ordered[-1]:.3g}"


@bar("error bound on random quadratics: share where it holds", tier="validate", bar=">= 100 %")
def bound_holds() -> Measured:
    kept = [trial.result.error_bound >= trial.error for trial in many()]
    errors = spread([trial.error for trial in many()])
    return Measured(100 * sum(kept) / len(kept), f"{len(kept)} quadratics; true errors: {errors}")


@bar("error bound on random quadratics: share within 10x of the true error", tier="validate", bar=">= 90 %")
def bound_is_tight() -> Measured:
    ratios = [trial.tightness for trial in many()]
    tight = sum(ratio <= 10 for ratio in ratios)
    return Measured(100 * tight / len(ratios), f"bound over error: {spread(ratios)}")


METHODS: list[tuple[AbstractSolver, AbstractHypergradient]] = [
    (LBFGS(rtol=1e-12), Auto()),
    (LBFGS(rtol=1e-12), Implicit(CG(rtol=1e-12))),
    (NewtonCG(rtol=1e-12), Implicit(MINRES(rtol=1e-12))),
    (NewtonCG(rtol=1e-12), Implicit(Cholesky())),
    (LBFGS(rtol=1e-12), Unrolled()),
]


def against_differences(index: int) -> float:
    """Relative error of a directional derivative against a central difference of the re-solved problem."""
    generator = torch.Generator().manual_seed(index)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, d = 5 + index % 30, 3 + index % 17
    rows, rows_val, shift = randn(n, d), randn(n, d), randn(d)
    phi, direction = 0.5 * randn(d) - 1, randn(d)

    def inner_loss(theta: Tensor, phi: Tensor) -> Tensor:
        return (
            softplus(rows @ theta).mean()
            + (phi.exp() * theta**2).sum()
            + 0.1 * torch.log(torch.cosh(theta - phi)).sum()
        )

    solver, method = METHODS[index % len(METHODS)]

    def outer(phi: Tensor) -> Tensor:
        theta = best_response(
            Minimize(inner_loss), phi, init=torch.zeros_like(phi), solver=solver, hypergradient=method
        ).value
        return softplus(-(rows_val @ theta)).mean() + (theta * shift).sin().sum() + (phi**3).sum()

    point = phi.clone().requires_grad_()
    (grad,) = torch.autograd.grad(outer(point), point)
    step = 2e-4
    weights = ((1, 8.0), (2, -1.0))  # five points, error of order step^4
    with torch.no_grad():
        sides = [w * (outer(phi + k * step * direction) - outer(phi - k * step * direction)) for k, w in weights]
    slope = float(sum(sides)) / (12 * step)
    return abs(slope - float(grad @ direction)) / float(grad.norm() * direction.norm())


@bar("hypergradients of 100 random problems against finite differences", tier="validate", bar="<= 1e-8")
def differences() -> Measured:
    errors = [against_differences(i) for i in range(100)]
    return Measured(max(errors), f"largest relative error; {spread(errors)}")
