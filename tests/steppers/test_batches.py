"""Rows of a batch know nothing of each other: errors, order, dropping, times of their own, failures."""

from __future__ import annotations

import math

import pytest
import torch

from sciopt import InitialValue, SolveError, Status, best_response
from sciopt.steppers import Euler, Tsit5
from tests.helpers import randn
from tests.steppers.cases import ADAPTIVE_CASES, F64, STEPPER_CASES, solve


def oscillators(frequency, times):
    """Rows ``(x, v)`` of their own frequencies, finished rows dropped."""

    def of(rows):
        own = frequency if rows is None else frequency.index_select(0, rows)

        def dynamics(t, y, damping):
            return torch.stack([own * y[:, 1], -own * y[:, 0]], -1) - damping * y

        return InitialValue(dynamics, times, batch_ndim=1, restrict=of if rows is None else None)

    return of(None)


def test_a_hard_row_among_easy_ones_keeps_its_accuracy():
    count, hard = 4096, 60.0
    frequency = torch.full((count,), 1.0, dtype=F64)
    frequency[1234] = hard
    times = torch.tensor([0.0, 2.0], dtype=F64)
    start = torch.tensor([[1.0, 0.0]], dtype=F64)
    zero, solver = torch.zeros((), dtype=F64), Tsit5(rtol=1e-5, atol=1e-7)
    exact = torch.tensor([math.cos(2 * hard), -math.sin(2 * hard)], dtype=F64)
    many = best_response(oscillators(frequency, times), zero, init=start.expand(count, 2), solver=solver)
    alone = best_response(oscillators(frequency[1234:1235], times), zero, init=start, solver=solver)
    errors = [(many.value[-1, 1234] - exact).abs().max(), (alone.value[-1, 0] - exact).abs().max()]
    assert errors[0] <= 2 * errors[1] and errors[1] < 1e-2
    assert many.num_steps[1234] > 10 * many.num_steps[0]
    assert many.aux["evaluations"][0] < many.aux["evaluations"][1234]


def test_order_of_the_rows_changes_nothing(generator):
    count = 40
    frequency = 1 + 10 * torch.rand(count, generator=generator, dtype=F64)
    start = randn(count, 2, generator=generator)
    times = torch.linspace(0, 1, 4, dtype=F64)
    order = torch.randperm(count, generator=generator)

    def run(frequency, start):
        damping = torch.tensor(0.1, dtype=F64, requires_grad=True)
        start = start.clone().requires_grad_()
        value = best_response(oscillators(frequency, times), damping, init=start, solver=Tsit5(rtol=1e-7)).value
        return value.detach(), *torch.autograd.grad(value.sum(), [damping, start])

    here, there = run(frequency, start), run(frequency[order], start[order])
    torch.testing.assert_close(here[0][:, order], there[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(here[1], there[1], rtol=1e-11, atol=0)
    torch.testing.assert_close(here[2][order], there[2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("outputs", [2, 6])
def test_dropping_finished_rows_changes_no_derivative(outputs, generator):
    frequency = torch.logspace(0, 1.2, 12, dtype=F64)
    times = torch.linspace(0, 1, outputs, dtype=F64)
    start = randn(12, 2, generator=generator)
    cotangent = randn(outputs, 12, 2, generator=generator)
    dropping = oscillators(frequency, times)
    carrying = InitialValue(dropping.dynamics, times, batch_ndim=1)
    found = []
    for problem in (dropping, carrying):
        damping, init = torch.tensor(0.2, dtype=F64, requires_grad=True), start.clone().requires_grad_()
        solution = best_response(problem, damping, init=init, solver=Tsit5(rtol=1e-4))
        first = torch.autograd.grad((solution.value * cotangent).sum(), [damping, init], retain_graph=True)
        again = torch.autograd.grad((solution.value * cotangent).sum(), [damping, init], create_graph=True)
        (second,) = torch.autograd.grad(again[0], damping)
        found.append([solution.value.detach(), *first, *again, second, solution.num_steps])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_a_batch_is_its_single_runs(case, generator):
    times = torch.linspace(0, 1, 3, dtype=F64)
    rates = torch.tensor([0.5, 2.0, -1.0], dtype=F64)
    start = randn(3, generator=generator)
    solver = case.adaptive(rtol=1e-6) if case.kind.error_order else case.fixed(20)

    def dynamics(t, y, rate):
        return torch.sin(rate * y) + t

    batch = solve(dynamics, times, start, rates, batch_ndim=1, solver=solver)
    for r in range(3):
        single = solve(dynamics, times, start[r], rates[r], solver=solver)
        torch.testing.assert_close(batch.value[:, r], single.value, rtol=1e-12, atol=1e-13)
        assert batch.num_steps[r] == single.num_steps


def test_every_row_may_have_its_own_times():
    ends = torch.tensor([1.0, 3.0, -2.0, 0.0], dtype=F64)
    times = (torch.tensor([0.0, 0.25, 0.25, 0.7, 1.0], dtype=F64).unsqueeze(1) * ends).requires_grad_()
    solution = solve(lambda t, y, _: torch.cos(t) * y, times, torch.ones(4, dtype=F64), batch_ndim=1)
    exact = torch.exp(torch.sin(times))
    torch.testing.assert_close(solution.value, exact, rtol=1e-5, atol=1e-6)
    mine, truth = (torch.autograd.grad(v.sum(), times)[0] for v in (solution.value, exact))
    # at the start moving the time moves the whole trajectory, which the closed form does not know
    torch.testing.assert_close(mine[1:, :3], truth[1:, :3], rtol=1e-4, atol=1e-4)
    assert solution.num_steps[3] == 0


def test_two_batch_dimensions_and_times_without_dimensions_to_spare(generator):
    start = randn(2, 3, 2, generator=generator)
    times = torch.tensor([0.0, 1.0], dtype=F64)
    seen = []

    def dynamics(t, y, _):
        seen.append(tuple(t.shape))
        return -y * (1 + t)

    value = solve(dynamics, times, start, batch_ndim=2).value
    torch.testing.assert_close(value[-1], start * math.exp(-1.5), rtol=1e-5, atol=0)
    assert set(seen) == {(2, 3, 1)}

    def mixed(t, state, _):
        assert t.shape == (2,)
        return {"a": -state["a"], "b": -state["b"] * t}

    init = {"a": torch.ones(2, 3, dtype=F64), "b": torch.ones(2, dtype=F64)}
    value = solve(mixed, times, init, batch_ndim=1).value
    torch.testing.assert_close(value["b"][-1], torch.full((2,), math.exp(-0.5), dtype=F64), rtol=1e-5, atol=0)


def rough(t, y, phi):
    """Rows: blows up at t = 0.5; NaN from t = 0.5 on; healthy; undefined at its start; too stiff for the budget."""
    nan = torch.full_like(y[1], torch.nan)
    return torch.stack(
        [y[0] ** 2, torch.where(t[1] > 0.5, nan, -y[1]), -y[2] * phi, torch.sqrt(y[3]), -1e5 * (y[4] - torch.cos(t[4]))]
    )


# the implicit methods have no trouble with the stiff row, and a test of their own
@pytest.mark.parametrize("case", [c for c in ADAPTIVE_CASES if not c.kind.takes_mass], ids=str)
def test_every_failure_has_its_status_and_harms_no_other_row(case):
    times = torch.tensor([0.0, 0.2, 1.0], dtype=F64)
    phi = torch.tensor(1.0, dtype=F64, requires_grad=True)
    start = torch.tensor([2.0, 1.0, 1.0, -1.0, 2.0], dtype=F64)
    solver = case.adaptive(rtol=1e-4, max_steps=300)
    solution = solve(rough, times, start, phi, batch_ndim=1, solver=solver, throw=False)
    names = [Status(code).name for code in solution.status_code.tolist()]
    assert names[0] == "DIVERGED" or (names[0] == "MAX_STEPS" and case.kind.order == 3)  # small steps near the blow-up
    assert names[1:] == ["NONFINITE", "CONVERGED", "NONFINITE", "MAX_STEPS"]
    assert torch.isfinite(solution.value).all() and torch.isfinite(solution.residual_norm).all()
    torch.testing.assert_close(
        solution.value[1, :3], torch.tensor([2 / 0.6, math.exp(-0.2), math.exp(-0.2)], dtype=F64), rtol=1e-3, atol=0
    )
    (grad,) = torch.autograd.grad(solution.value[-1, 2], phi)
    torch.testing.assert_close(grad, torch.tensor(-math.exp(-1), dtype=F64), rtol=1e-3, atol=0)
    alone = solve(lambda t, y, p: -y * p, times, start[2], phi, solver=solver)
    torch.testing.assert_close(solution.value[:, 2], alone.value, rtol=1e-12, atol=0)
    with pytest.raises(SolveError, match="expected status CONVERGED, got NONFINITE in 4 of 5 problems"):
        solve(rough, times, start, phi, batch_ndim=1, solver=solver)


def test_a_row_that_is_undefined_spoils_no_gradient():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    phi = torch.tensor(1.3, dtype=F64, requires_grad=True)
    start = torch.tensor([1.0, -1.0, 4.0], dtype=F64)
    solution = solve(lambda t, y, p: p * torch.sqrt(y), times, start, phi, batch_ndim=1, throw=False)
    assert solution.status_code.tolist() == [0, int(Status.NONFINITE), 0]
    exact = (start[::2].sqrt() + phi * times.unsqueeze(-1) / 2) ** 2
    (truth,) = torch.autograd.grad(exact.sum(), phi, create_graph=True)
    for record in (False, True):
        total = solution.value.sum()
        (grad,) = torch.autograd.grad(total, phi, retain_graph=True, create_graph=record)
        torch.testing.assert_close(grad, truth, rtol=1e-5, atol=0)
    (second,) = torch.autograd.grad(grad, phi)
    torch.testing.assert_close(second, torch.autograd.grad(truth, phi)[0], rtol=1e-5, atol=0)


def test_a_step_that_vanishes_is_told():
    times = torch.tensor([0.0, 2.0], dtype=F64)  # y = sqrt(1 - t) ends at t = 1
    solution = solve(lambda t, y, _: -0.5 / y, times, torch.ones((), dtype=F64), throw=False)
    assert solution.status is Status.STAGNATED and solution.num_steps < 1_000
    assert torch.isfinite(solution.value).all()


def test_times_that_turn_back_fail_their_row_alone():
    times = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, torch.nan], [2.0, 0.5, 1.0]], dtype=F64)
    solution = solve(lambda t, y, _: y, times, torch.ones(3, dtype=F64), batch_ndim=1, throw=False)
    assert solution.status_code.tolist() == [0, int(Status.INFEASIBLE), int(Status.INFEASIBLE)]
    torch.testing.assert_close(solution.value[:, 0], torch.exp(times[:, 0]), rtol=1e-5, atol=0)
    assert torch.isfinite(solution.value).all()


@pytest.mark.parametrize(("end", "rows"), [(1.0, 0), (0.0, 3)])
def test_an_empty_batch_and_times_that_all_agree(end, rows):
    times = torch.tensor([0.0, 0.5, 1.0], dtype=F64) * end
    rate = torch.tensor(1.5, dtype=F64, requires_grad=True)
    start = torch.ones(rows, 2, dtype=F64)

    def run(rate):
        return solve(lambda t, y, a: -a * y, times, start, rate, batch_ndim=1)

    solution = run(rate)
    assert solution.value.shape == (3, rows, 2) and solution.status is Status.CONVERGED
    for record in (False, True):
        assert torch.autograd.grad(solution.value.sum(), rate, retain_graph=True, create_graph=record)[0] == 0
    for derivative in (torch.func.grad, torch.func.jacfwd):
        assert derivative(lambda a: run(a).value.sum())(rate.detach()) == 0


def test_bad_statements_are_refused():
    two = torch.tensor([0.0, 1.0], dtype=F64)
    for times in (torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="expected `times` to be a monotone"):
            InitialValue(lambda t, y, _: y, times)
    with pytest.raises(ValueError, match="expected `batch_ndim=1` with `restrict`"):
        InitialValue(lambda t, y, _: y, two, restrict=lambda rows: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="with batch \\(3,\\)"):
        solve(lambda t, y, _: y, torch.zeros(2, 4, dtype=F64), torch.ones(3, dtype=F64), batch_ndim=1)
    with pytest.raises(ValueError, match="expected a leaf of shape"):
        solve(lambda t, y, _: y[:1], two, torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match="expected `num_steps`, got None"):
        Euler()
    with pytest.raises(ValueError, match="rtol"):
        Tsit5(rtol=2.0)
    with pytest.raises(ValueError, match="above 0"):
        Tsit5(rtol=0.0, atol=0.0)
