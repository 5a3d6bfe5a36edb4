"""Steps as differentiable maps: textbook formulas, torch.optim, finite differences, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt.inner import LBFGS, Adam, Anderson, Broyden, GaussNewton, GradientDescent, Newton, NewtonCG, Picard, run
from sciopt.problem import Minimize, RootFind
from sciopt.solution import Status
from tests.helpers import randn, with_spectrum
from tests.inner.cases import bind, contraction, curve, quadratic

PHI = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.2], dtype=torch.float64)
START = torch.tensor([0.3, -0.2, 0.1, 0.4, 0.2, -0.1], dtype=torch.float64)


def unrolled(solver, problem, phi: Tensor, num_steps: int) -> Tensor:
    oracle, x = bind(problem, START, phi, differentiable=True)
    return run(solver, oracle, x, num_steps=num_steps).value


def test_gradient_descent_is_the_textbook_formula_with_one_gradient_per_step() -> None:
    phi = PHI.clone().requires_grad_()
    problem = quadratic(0)
    oracle, x = bind(problem, START, phi, differentiable=True)
    solution = run(GradientDescent(step_size=0.03), oracle, x, num_steps=5)
    assert oracle.counter["gradient"] == 6
    theta = START
    for _ in range(5):
        theta = theta - 0.03 * torch.func.grad(problem.objective)(theta, phi)
    torch.testing.assert_close(solution.value, theta, rtol=1e-15, atol=1e-16)
    (mine,) = torch.autograd.grad(solution.value.sin().sum(), phi)
    (theirs,) = torch.autograd.grad(theta.sin().sum(), phi)
    torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_gradient_descent_equals_torch_sgd(momentum: float, nesterov: bool) -> None:
    problem = quadratic(0)
    oracle, x = bind(problem, START, PHI)
    mine = run(GradientDescent(step_size=0.02, momentum=momentum, nesterov=nesterov), oracle, x, num_steps=7).value
    theta = START.clone().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.02, momentum=momentum, nesterov=nesterov)
    for _ in range(7):
        optimizer.zero_grad()
        problem.objective(theta, PHI).backward()
        optimizer.step()
    torch.testing.assert_close(mine, theta.detach(), rtol=1e-14, atol=1e-15)


def test_adam_equals_torch_adam() -> None:
    problem = quadratic(0)
    oracle, x = bind(problem, START, PHI)
    mine = run(Adam(step_size=0.05, betas=(0.8, 0.99)), oracle, x, num_steps=20).value
    theta = START.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05, betas=(0.8, 0.99))
    for _ in range(20):
        optimizer.zero_grad()
        problem.objective(theta, PHI).backward()
        optimizer.step()
    torch.testing.assert_close(mine, theta.detach(), rtol=1e-12, atol=1e-13)


def test_adam_has_finite_derivatives_at_zero_gradients() -> None:
    phi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    problem = Minimize(lambda x, phi: ((x - phi) ** 2).sum())
    oracle, _ = bind(problem, START, phi, differentiable=True)
    value = run(Adam(step_size=0.1), oracle, torch.zeros_like(START), num_steps=3).value
    (first,) = torch.autograd.grad(value.sum(), phi, create_graph=True)
    assert torch.isfinite(first).all()


UNROLLED = [
    (GradientDescent(step_size=0.03), quadratic(0)),
    (GradientDescent(step_size=0.02, momentum=0.8, nesterov=True), quadratic(0)),
    (GradientDescent(), quadratic(0)),
    (Adam(step_size=0.05), quadratic(0)),
    (LBFGS(history=3), quadratic(0)),
    (NewtonCG(), quadratic(0)),
    (GaussNewton(), curve(0)),
    (GaussNewton(dense_limit=0), curve(0)),
    (Picard(damping=0.8), contraction(0)),
    (Anderson(history=2), contraction(0)),
    (Broyden(), contraction(0)),
    (Newton(), contraction(0)),
]
each = pytest.mark.parametrize(("solver", "problem"), UNROLLED, ids=[type(s).__name__ for s, _ in UNROLLED])


@each
def test_unrolled_derivative_equals_finite_differences(solver, problem) -> None:
    phi = PHI.clone().requires_grad_()
    (grad,) = torch.autograd.grad(unrolled(solver, problem, phi, 3).sin().sum(), phi)
    direction = torch.cos(torch.arange(6.0, dtype=torch.float64))
    h = 1e-5
    ends = [float(unrolled(solver, problem, PHI + s * h * direction, 3).detach().sin().sum()) for s in (1, -1)]
    # truncated conjugate gradients depend on data through their stopping too: a percent is their law
    truncated = isinstance(solver, NewtonCG)
    assert float(grad @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6 if not truncated else 1e-4)


@each
def test_unrolling_past_convergence_keeps_derivatives_finite(solver, problem) -> None:
    phi = PHI.clone().requires_grad_()
    steps = 60 if isinstance(solver, (GradientDescent, Adam, Picard, LBFGS, Anderson, Broyden)) else 12
    (grad,) = torch.autograd.grad(unrolled(solver, problem, phi, steps).sum(), phi)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("solver", [GradientDescent(step_size=0.03), GradientDescent(), Adam(), LBFGS(history=3)])
def test_unrolling_under_torch_func_equals_autograd(solver) -> None:
    def outer(phi: Tensor) -> Tensor:
        return unrolled(solver, quadratic(0), phi, 4).sin().sum()

    phi = PHI.clone().requires_grad_()
    (reference,) = torch.autograd.grad(outer(phi), phi, create_graph=True)
    torch.testing.assert_close(torch.func.grad(outer)(PHI), reference.detach(), rtol=1e-11, atol=1e-12)
    (second,) = torch.autograd.grad(reference @ PHI.cos(), phi)
    twice = torch.func.grad(lambda p: torch.func.grad(outer)(p) @ PHI.cos())(PHI)
    torch.testing.assert_close(twice, second, rtol=1e-9, atol=1e-10)


SETTLING = [(NewtonCG(rtol=1e-10), 1e-6), (LBFGS(rtol=1e-10, exact_unroll=False), 0.1)]


@pytest.mark.parametrize(("solver", "limit"), SETTLING, ids=["NewtonCG", "LBFGS"])
def test_the_unrolled_derivative_of_a_long_run_settles(solver, limit: float, generator: torch.Generator) -> None:
    """At condition 1e3 the exact derivative of hundreds of quasi-Newton steps is off by many powers of ten."""
    A = with_spectrum(torch.logspace(0, 3, 40, dtype=torch.float64), generator)
    problem = Minimize(lambda x, phi: 0.5 * (x * (A @ x)).sum() - (x * phi).sum())
    phi = randn(40, generator=generator).requires_grad_()
    oracle, x = bind(problem, torch.zeros(40, dtype=torch.float64), phi, differentiable=True)
    steps = int(solver.solve(*bind(problem, x, phi.detach())).num_steps)
    (grad,) = torch.autograd.grad(run(solver, oracle, x, num_steps=steps).value.sum(), phi)
    exact = torch.linalg.solve(A, torch.ones(40, dtype=torch.float64))
    assert float((grad - exact).norm()) < limit * float(exact.norm())


def test_a_fixed_run_takes_its_steps_and_reports_the_residual_there() -> None:
    oracle, x = bind(RootFind(lambda x, phi: x - phi), START, PHI)
    solution = run(Picard(damping=0.5), oracle, x, num_steps=4)
    assert int(solution.num_steps) == 4
    assert solution.status is Status.MAX_STEPS
    torch.testing.assert_close(solution.residual_norm, (START - PHI).norm() / 16, rtol=1e-12, atol=0)


def test_batched_unroll_equals_looped(generator: torch.Generator) -> None:
    phis = randn(4, 6, generator=generator).requires_grad_()
    oracle, x = bind(quadratic(1), START.expand(4, 6), phis, differentiable=True)
    for solver in (GradientDescent(step_size=0.03), LBFGS(history=3)):
        batch = run(solver, oracle, x, num_steps=4).value
        (grad,) = torch.autograd.grad(batch.sin().sum(), phis)
        for row in range(4):
            phi = phis[row].detach().requires_grad_()
            (single,) = torch.autograd.grad(unrolled(solver, quadratic(0), phi, 4).sin().sum(), phi)
            torch.testing.assert_close(grad[row], single, rtol=1e-10, atol=1e-12)
