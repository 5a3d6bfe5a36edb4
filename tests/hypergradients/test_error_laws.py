"""Methods that are biased by nature: each has the error that theory gives it, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.hypergradients import FiniteDifference, FirstOrder, Implicit, OneStep, Unrolled
from sciopt.inner import LBFGS, GradientDescent
from sciopt.linsolve import Neumann
from tests.helpers import randn, with_spectrum

ETA = 0.08
CONDITION = 20.0


@pytest.fixture
def quadratic():
    """theta* = A^-1 B phi, outer loss c.theta: the indirect term is B^T A^-1 c, and (I - eta A) rules every method."""
    g = torch.Generator().manual_seed(3)
    A = with_spectrum(torch.linspace(1.0, CONDITION, 9, dtype=torch.float64), g)
    B, c, phi = randn(9, 3, generator=g), randn(9, generator=g), randn(3, generator=g)
    problem = Minimize(lambda theta, p: 0.5 * theta @ (A @ theta) - theta @ (B @ p))
    return problem, A, B, c, phi


def gradient(problem, c: Tensor, phi: Tensor, method, solver=None, init=None, throw=True) -> Tensor:
    phi = phi.clone().requires_grad_()
    start = torch.zeros_like(c) if init is None else init
    sol = best_response(problem, phi, init=start, solver=solver or LBFGS(rtol=1e-13), hypergradient=method, throw=throw)
    return torch.autograd.grad(c @ sol.value, phi)[0]


def series(A: Tensor, terms: int) -> Tensor:
    """eta * sum of the first powers of (I - eta A): what K steps see of the inverse."""
    M = torch.eye(len(A), dtype=A.dtype) - ETA * A
    return ETA * torch.stack([torch.linalg.matrix_power(M, k) for k in range(terms)]).sum(0)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_unrolled_sees_as_many_terms_as_steps(quadratic, steps):
    problem, A, B, c, phi = quadratic
    solver = GradientDescent(step_size=ETA, max_steps=steps)
    actual = gradient(problem, c, phi, Unrolled(num_steps=steps), solver)
    torch.testing.assert_close(actual, B.mT @ (series(A, steps) @ c), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kept", [1, 3, 20])
def test_truncation_drops_the_early_terms(quadratic, kept):
    problem, A, B, c, phi = quadratic
    solver = GradientDescent(step_size=ETA, max_steps=200)
    actual = gradient(problem, c, phi, Unrolled(num_steps=200, truncate=kept), solver)
    torch.testing.assert_close(actual, B.mT @ (series(A, kept) @ c), rtol=1e-12, atol=1e-13)


def test_truncation_error_falls_at_the_contraction_rate(quadratic):
    problem, A, B, c, phi = quadratic
    exact = B.mT @ torch.linalg.inv(A) @ c
    solver = GradientDescent(step_size=ETA, max_steps=400)
    errors = [
        (gradient(problem, c, phi, Unrolled(num_steps=300, truncate=k), solver) - exact).norm()
        for k in (60, 61, 120, 121)
    ]
    slowest = 1 - ETA * 1.0  # the smallest eigenvalue of A is 1
    assert errors[1] / errors[0] == pytest.approx(slowest, rel=2e-2)
    assert errors[3] / errors[2] == pytest.approx(slowest, rel=1e-3)


@pytest.mark.parametrize("terms", [1, 4, 25])
def test_neumann_sums_its_terms(quadratic, terms):
    problem, A, B, c, phi = quadratic
    method = Implicit(Neumann(step_size=ETA, rtol=0.0, max_steps=terms))
    torch.testing.assert_close(gradient(problem, c, phi, method), B.mT @ (series(A, terms) @ c), rtol=1e-11, atol=1e-12)


def test_one_step_replaces_the_inverse_by_the_step_size(quadratic):
    problem, A, B, c, phi = quadratic
    torch.testing.assert_close(gradient(problem, c, phi, OneStep(ETA)), ETA * B.mT @ c, rtol=1e-12, atol=1e-13)


def test_one_step_equals_the_last_unrolled_step(quadratic):
    problem, A, B, c, phi = quadratic
    solver = GradientDescent(step_size=ETA, max_steps=400)
    last = gradient(problem, c, phi, Unrolled(num_steps=300, truncate=1), solver)
    torch.testing.assert_close(gradient(problem, c, phi, OneStep(ETA)), last, rtol=1e-10, atol=1e-12)


def test_finite_difference_is_one_step_on_quadratics(quadratic):
    problem, A, B, c, phi = quadratic
    torch.testing.assert_close(gradient(problem, c, phi, FiniteDifference(ETA)), ETA * B.mT @ c, rtol=1e-10, atol=1e-10)


def test_finite_difference_error_is_quadratic_in_the_step():
    problem = Minimize(lambda theta, phi: (0.5 * theta**2 - theta * phi + 0.05 * torch.exp(theta) * phi).sum())
    c, phi = torch.ones(3, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    exact = gradient(problem, c, phi, OneStep(0.5))
    errors = [(gradient(problem, c, phi, FiniteDifference(0.5, scale=s)) - exact).norm() for s in (0.4, 0.2, 0.1)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_first_order_drops_the_indirect_term_and_follows_the_start(quadratic):
    problem, A, B, c, phi = quadratic
    assert gradient(problem, c, phi, FirstOrder()).abs().max() == 0
    start = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    solver = GradientDescent(step_size=ETA, max_steps=5)
    sol = best_response(problem, phi, init=start, solver=solver, hypergradient=FirstOrder())
    torch.testing.assert_close(torch.autograd.grad(c @ sol.value, start)[0], c)


def test_implicit_error_is_linear_in_the_inner_residual():
    """With an outer loss quadratic in theta the hypergradient is off by B^T A^-1 M A^-1 r, r the inner residual."""
    g = torch.Generator().manual_seed(5)
    A, M = with_spectrum(torch.linspace(1.0, 9.0, 6, dtype=torch.float64), g), randn(6, 6, generator=g)
    B, phi, inverse = randn(6, 2, generator=g), randn(2, generator=g), torch.linalg.inv(A)
    problem = Minimize(lambda theta, p: 0.5 * theta @ (A @ theta) - theta @ (B @ p))
    solver = GradientDescent(step_size=0.1, max_steps=7, rtol=0.0)
    for steps in (7, 20):
        p = phi.clone().requires_grad_()
        solver = GradientDescent(step_size=0.1, max_steps=steps, rtol=0.0)
        sol = best_response(
            problem, p, init=torch.zeros(6, dtype=torch.float64), solver=solver, hypergradient=Implicit(), throw=False
        )
        assert sol.status.name == "MAX_STEPS"
        actual = torch.autograd.grad(0.5 * (M @ sol.value).square().sum(), p)[0]
        exact = B.mT @ inverse @ (M.mT @ M) @ inverse @ B @ phi
        residual = A @ sol.value.detach() - B @ phi
        torch.testing.assert_close(
            actual - exact, B.mT @ inverse @ (M.mT @ M) @ inverse @ residual, rtol=1e-8, atol=1e-12
        )


def test_checkpoints_change_memory_not_numbers(quadratic):
    problem, A, B, c, phi = quadratic
    for count in (1, 4, 30):
        solver = GradientDescent(step_size=ETA, max_steps=30, momentum=0.5)
        plain = gradient(problem, c, phi, Unrolled(num_steps=30), solver)
        torch.testing.assert_close(gradient(problem, c, phi, Unrolled(num_steps=30, checkpoints=count), solver), plain)
