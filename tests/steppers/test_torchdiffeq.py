"""torchdiffeq behind the project's interface: its answers, its failures as statuses, what it cannot do."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from sciopt import InitialValue, SolveError, Status, best_response
from sciopt.hypergradients import ForwardUnrolled
from sciopt.steppers import TorchDiffEq, TorchDiffEqMethod, Tsit5

METHOD = TorchDiffEqMethod


def oscillator(times):
    return InitialValue(lambda t, y, w: torch.stack([y[..., 1], -w * w * y[..., 0]], -1), times, batch_ndim=1)


@pytest.mark.parametrize("method", list(METHOD), ids=lambda m: m.name)
def test_every_method_solves_an_oscillator_and_its_gradient(method):
    if method.fixed:
        stepper = TorchDiffEq(method=method, num_steps=4000 if method == METHOD.EULER else 400)
    else:
        stepper = TorchDiffEq(method=method, rtol=1e-8 if method in (METHOD.DOPRI5, METHOD.DOPRI8) else 1e-6)
    times = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    init = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    solution = best_response(oscillator(times), w, init=init, solver=stepper)
    expected = init[:, :1] * torch.cos(2.0 * times).reshape(-1, 1, 1)
    # outputs between the steps are interpolated, by torchdiffeq's fourth-order polynomial also for DOPRI8
    low = {METHOD.EULER: 3e-3, METHOD.MIDPOINT: 2e-5, METHOD.DOPRI8: 2e-5}
    error = low.get(method, 1e-6 if method.fixed or method == METHOD.DOPRI5 else 3e-4)
    torch.testing.assert_close(solution.value[..., :1].detach(), expected, rtol=0, atol=2 * error)
    (grad,) = torch.autograd.grad(solution.value[-1, 0, 0], w)
    assert abs(float(grad) + math.sin(2.0)) < 5 * error
    assert bool((solution.num_steps > 0).all()) and bool((solution.aux["evaluations"] >= solution.num_steps).all())


def test_backwards_in_time_and_single_precision():
    times = torch.tensor([1.0, 0.0])
    init = torch.tensor([[math.cos(2.0), -2 * math.sin(2.0)]])
    solution = best_response(oscillator(times), torch.tensor(2.0), init=init, solver=TorchDiffEq())
    torch.testing.assert_close(solution.value[-1], torch.tensor([[1.0, 0.0]]), rtol=0, atol=2e-3)
    assert solution.value.dtype == torch.float32


@pytest.mark.parametrize(
    ("dynamics", "options", "status"),
    [
        (lambda t, y, p: torch.sqrt(1 - y), {}, Status.NONFINITE),
        (lambda t, y, p: 1 / (1 - t - p + p) ** 2 + 0 * y, {}, Status.STAGNATED),
        (lambda t, y, p: -1e4 * (y - torch.cos(t)), {"max_steps": 20}, Status.MAX_STEPS),
        (lambda t, y, p: y**2 + 1e200, {"method": METHOD.RK4, "num_steps": 5}, Status.NONFINITE),
    ],
    ids=["nan", "underflow", "budget", "overflow"],
)
def test_failures_are_statuses(dynamics, options, status):
    problem = InitialValue(dynamics, torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64))
    one, start = torch.ones((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    solution = best_response(problem, one, init=start, solver=TorchDiffEq(**options), throw=False)
    assert solution.status == status and bool(torch.isfinite(solution.value).all())
    assert torch.equal(solution.value[0], start)
    with pytest.raises(SolveError, match=f"TorchDiffEq: expected status CONVERGED, got {status.name}"):
        best_response(problem, one, init=start, solver=TorchDiffEq(**options))


def test_what_it_cannot_do_is_refused():
    times, one = torch.tensor([0.0, 1.0]), torch.ones(())
    init = torch.ones(2, 2)
    solver = TorchDiffEq()
    with pytest.raises(TypeError, match="expected output times shared by all problems"):
        best_response(oscillator(times.unsqueeze(-1).expand(2, 2)), one, init=init, solver=solver)
    with pytest.raises(TypeError, match="expected `times` without a derivative"):
        best_response(oscillator(times.clone().requires_grad_()), one, init=init, solver=solver)
    with pytest.raises(TypeError, match="expected a call outside torch.func transforms"):
        torch.func.grad(lambda w: best_response(oscillator(times), w, init=init, solver=solver).value.sum())(one)
    with pytest.raises(TypeError, match="ForwardUnrolled: expected a one-step method"):
        best_response(oscillator(times), one, init=init, solver=solver, hypergradient=ForwardUnrolled())
    wrong: list[dict[str, Any]] = [{"method": "dopri5"}, {"num_steps": 5}, {"method": METHOD.RK4}, {"first_step": 0.0}]
    for options in wrong:
        with pytest.raises(ValueError, match="TorchDiffEq: expected"):
            TorchDiffEq(**options)


def test_it_is_loaded_when_it_is_first_used_and_pickles():
    code = "import sys, sciopt.steppers, sciopt.hypergradients; print('torchdiffeq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    stepper = TorchDiffEq(method=METHOD.DOPRI8, rtol=1e-5)
    assert pickle.loads(pickle.dumps(stepper)) == stepper


def test_one_step_size_for_all_is_what_per_sample_steps_avoid():
    # a hard oscillator among easy ones: the shared norm hides its error
    w = torch.full((64, 1), 0.5, dtype=torch.float64)
    w[0] = 40.0
    problem = InitialValue(
        lambda t, y, w: torch.stack([y[..., 1], -(w[:, 0] ** 2) * y[..., 0]], -1),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        batch_ndim=1,
    )
    init = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(64, 2).contiguous()
    error = {}
    for stepper in (Tsit5(rtol=1e-5, atol=1e-5), TorchDiffEq(rtol=1e-5, atol=1e-5)):
        solution = best_response(problem, w, init=init, solver=stepper)
        error[type(stepper).__name__] = float((solution.value[-1, 0, 0] - math.cos(40.0)).abs())
    assert error["Tsit5"] < 0.25 * error["TorchDiffEq"]
