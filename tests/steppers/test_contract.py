"""What every one-step method promises, as other solvers do."""

from __future__ import annotations

import pickle

import pytest
import torch

from sciopt import Status
from sciopt.inner import LBFGS
from sciopt.steppers import Tsit5
from tests.steppers.cases import ADAPTIVE_CASES, F64, STEPPER_CASES, solve


def relax(t, y, rate):
    return rate * (torch.cos(t) - y)


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_pickles_repeats_and_leaves_its_inputs_alone(case):
    solver = case.adaptive() if case.kind.error_order else case.fixed(30)
    assert pickle.loads(pickle.dumps(solver)) == solver
    times, start, rate = torch.tensor([0.0, 1.0], dtype=F64), torch.ones(3, dtype=F64), torch.tensor(2.0, dtype=F64)
    before = [t.clone() for t in (times, start, rate)]
    runs = [solve(relax, times, start, rate, batch_ndim=1, solver=solver).value for _ in range(2)]
    assert torch.equal(*runs)
    assert all(torch.equal(a, b) for a, b in zip((times, start, rate), before, strict=True))


def relaxed(rate):
    """State at t = 1 from 1."""
    one = torch.ones((), dtype=F64)
    return (rate**2 * torch.cos(one) + rate * torch.sin(one) + torch.exp(-rate)) / (1 + rate**2)


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_both_precisions(case, dtype):
    solver = case.adaptive() if case.kind.error_order else case.fixed(200)
    times = torch.tensor([0.0, 1.0], dtype=dtype)
    rate = torch.tensor(2.0, dtype=dtype, requires_grad=True)
    solution = solve(relax, times, torch.ones(2, dtype=dtype), rate, batch_ndim=1, solver=solver)
    reference = torch.tensor(2.0, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(relaxed(reference), reference)
    (grad,) = torch.autograd.grad(solution.value[-1, 0], rate)
    loose = 2e-2 if case.kind.order == 1 else 1e-3 if dtype == torch.float32 or case.kind.order < 3 else 1e-4
    assert solution.value.dtype == dtype and grad.dtype == dtype
    torch.testing.assert_close(solution.value[-1, 0].to(F64), relaxed(reference), rtol=loose, atol=0)
    torch.testing.assert_close(grad.to(F64), slope, rtol=10 * loose, atol=loose)


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_a_spent_budget_is_told(case):
    times = torch.tensor([0.0, 50.0], dtype=F64)
    solution = solve(relax, times, torch.ones((), dtype=F64), solver=case.adaptive(max_steps=5), throw=False)
    assert solution.status is Status.MAX_STEPS
    assert solution.num_steps + solution.aux["rejected"] == 5


def test_only_steppers_solve_initial_values():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(TypeError, match="LBFGS: expected a problem of class"):
        solve(relax, times, torch.ones((), dtype=F64), solver=LBFGS())


def test_nothing_is_kept_when_nothing_is_differentiated():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    solution = solve(relax, times, torch.ones((), dtype=F64), solver=Tsit5())
    assert not solution.value.requires_grad and solution.aux["evaluations"] > 6
