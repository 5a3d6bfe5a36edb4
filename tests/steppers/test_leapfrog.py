"""Leapfrog: its order in value, gradient and between the steps, and what it asks of the state."""

from __future__ import annotations

import math

import pytest
import torch

from sciopt import InitialValue, best_response
from sciopt.steppers import Leapfrog


def swing(times, batch=0):
    def dynamics(t, y, w):
        return torch.cat([y[..., 1:], -w * w * torch.sin(y[..., :1]) + torch.cos(t)], -1)

    return InitialValue(dynamics, times, batch_ndim=batch)


def run(steps, w, times):
    start = torch.tensor([[0.3, 0.1], [1.0, -0.2]], dtype=torch.float64)
    return best_response(swing(times, 1), w, init=start, solver=Leapfrog(num_steps=steps)).value


@pytest.mark.parametrize("quantity", ["value", "between", "gradient"])
def test_the_order_is_two(quantity):
    times = torch.tensor([0.0, 0.777, 2.0], dtype=torch.float64)

    def measure(steps):
        w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        value = run(steps, w, times)
        if quantity == "gradient":
            return torch.autograd.grad(value[-1].square().sum(), w)[0]
        return value[-1 if quantity == "value" else 1].detach()

    truth = measure(800)
    errors = [float((measure(n) - truth).norm()) for n in (20, 40)]
    assert abs(math.log2(errors[0] / errors[1]) - 2.0) < 0.3


def test_transforms_agree_with_autograd():
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(run(6, w, times).sum(), w)
    plain = w.detach()
    torch.testing.assert_close(torch.func.grad(lambda w: run(6, w, times).sum())(plain), expected)
    torch.testing.assert_close(
        torch.func.jvp(lambda w: run(6, w, times).sum(), (plain,), (plain,))[1], expected * plain
    )
    assert torch.autograd.gradgradcheck(lambda w: run(3, w, times)[-1], (w,))


def test_an_odd_state_is_refused():
    problem = InitialValue(lambda t, y, w: -w * y, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="expected a state of positions and as many momenta, got 3 numbers"):
        best_response(problem, torch.ones(()), init=torch.ones(3), solver=Leapfrog(num_steps=3))
    with pytest.raises(ValueError, match="Leapfrog: expected `num_steps`"):
        Leapfrog()
