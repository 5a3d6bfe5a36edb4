"""Orders of convergence in value and gradient, and textbook problems against their solutions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq

from sciopt.steppers import Dopri5, Tsit5
from tests.steppers.cases import ADAPTIVE_CASES, F64, STEPPER_CASES, TEXTBOOK, solve, spiral


def growing(t, y, a):
    return a * torch.cos(t) * y


def pendulum(t, y, a):
    """Five driven, damped pendulums."""
    return torch.stack([y[:, 1], -a * torch.sin(y[:, 0]) - 0.1 * y[:, 1] + 0.2 * torch.cos(t).squeeze(-1)], -1)


def swung(solver):
    """Ends of the pendulums, and derivatives of a combination of them in the lengths and the starts."""
    start = torch.tensor([[1.0, 0.0], [0.5, 1.0], [2.0, -0.5], [-1.0, 1.0], [0.3, -1.0]], dtype=F64).requires_grad_()
    rate = torch.linspace(1, 2, 5, dtype=F64).requires_grad_()
    weights = torch.linspace(0.5, 1.5, 10, dtype=F64).reshape(5, 2)
    times = torch.tensor([0.0, 4.0], dtype=F64)
    value = solve(pendulum, times, start, rate, batch_ndim=1, solver=solver).value[-1]
    grads = torch.autograd.grad((value * weights).sum(), [rate, start])
    return value.detach(), torch.cat([g.flatten() for g in grads])


@pytest.fixture(scope="module")
def truth():
    return swung(Dopri5(num_steps=800))  # right to 1e-13


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_order_of_convergence_in_value_and_gradient(case, truth):
    errors = []
    for count in (case.coarse, case.fine):
        found = swung(case.fixed(count))
        errors.append([torch.linalg.vector_norm(a - b).item() for a, b in zip(found, truth, strict=True)])
    orders = [math.log(a / b) / math.log(case.fine / case.coarse) for a, b in zip(*errors, strict=True)]
    assert all(abs(order - case.kind.order) < 0.3 for order in orders), orders


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_dense_output_keeps_its_order(case):
    inside = torch.tensor([0.0, 0.37, 0.81, 1.29, 2.0], dtype=F64)
    errors = []
    for count in (12, 24):
        value = solve(growing, inside, torch.ones((), dtype=F64), solver=case.fixed(count)).value
        errors.append((value - torch.exp(torch.sin(inside)))[1:-1].abs().max().item())
    order = math.log2(errors[0] / errors[1])
    assert order > min(case.kind.order, case.kind.dense_order) - 0.5


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
@pytest.mark.parametrize("problem", TEXTBOOK, ids=str)
def test_textbook_problems_forwards_and_backwards(case, problem):
    rtol = 1e-6
    solver = case.adaptive(rtol=rtol, atol=rtol)
    times = torch.linspace(0, problem.end, 5, dtype=F64)
    for instants in (times, times.flip(0)):
        exact = problem.exact(instants)
        value = solve(lambda t, y, _: problem.slope(t, y), instants, exact[0].clone(), solver=solver).value
        scale = exact.abs().clamp(min=1.0)
        # going back the exponentially damped problems amplify what was lost: exp(3) of it
        amplified = 20.0 if instants[0] > 0 and problem.name in ("DETEST A1", "linear", "DETEST A4") else 1.0
        assert ((value - exact).abs() / scale).max() < 100 * rtol * amplified


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_detest_a5_stays_on_its_spiral(case):
    times = torch.linspace(0, 20, 5, dtype=F64)
    solver = case.adaptive(rtol=1e-6, atol=1e-6)
    value = solve(lambda t, y, _: (y - t) / (y + t), times, torch.tensor(4.0, dtype=F64), solver=solver).value
    assert spiral(times, value).abs().max() < 1e-4


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_detest_a5_runs_backwards_along_its_spiral(case):
    times = torch.linspace(20, 0, 5, dtype=F64)
    low = (1e-6 - times).tolist()  # the spiral winds on below y = -t
    on = lambda y, t: float(spiral(torch.tensor(t, dtype=F64), torch.tensor(y, dtype=F64)))  # noqa: E731
    exact = torch.tensor([brentq(on, a, 10.0, args=(t,)) for a, t in zip(low, times.tolist(), strict=True)], dtype=F64)
    assert exact[-1] == pytest.approx(4.0)
    solver = case.adaptive(rtol=1e-6, atol=1e-6)
    value = solve(lambda t, y, _: (y - t) / (y + t), times, exact[0].clone(), solver=solver).value
    assert ((value - exact).abs() / exact.abs().clamp(min=1.0)).max() < 1e-4


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_tolerance_is_honoured(case):
    times = torch.tensor([0.0, 3.0], dtype=F64)
    errors = []
    for rtol in (1e-4, 1e-7):
        value = solve(growing, times, torch.ones((), dtype=F64), solver=case.adaptive(rtol=rtol, atol=rtol)).value
        errors.append(abs(value[-1].item() - math.exp(math.sin(3.0))))
        assert errors[-1] < 100 * rtol
    assert errors[1] < 0.05 * errors[0]


def test_the_first_step_is_what_was_asked_for():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    few = solve(growing, times, torch.ones((), dtype=F64), solver=Tsit5(first_step=0.1))
    many = solve(growing, times, torch.ones((), dtype=F64), solver=Tsit5(first_step=1e-9))
    assert many.num_steps > few.num_steps
    torch.testing.assert_close(few.value, many.value, rtol=1e-6, atol=0)
