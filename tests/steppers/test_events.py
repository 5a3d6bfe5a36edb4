"""Events: where they lie, and the derivatives of their time and state."""

from __future__ import annotations

import math

import pytest
import torch

from sciopt import InitialValue, best_response
from sciopt.steppers import Tsit5
from tests.steppers.cases import ADAPTIVE_CASES, F64

TIGHT = Tsit5(rtol=1e-10, atol=1e-12)


def threshold(rate, start, times=(0.0, 0.2, 3.0), solver=TIGHT, **options):
    problem = InitialValue(
        lambda t, y, a: a * y,
        torch.tensor(times, dtype=F64),
        batch_ndim=1,
        event=lambda t, y, level: y - 2,
        **options,
    )
    return best_response(problem, rate, init=start, solver=solver)


@pytest.mark.parametrize("case", ADAPTIVE_CASES, ids=str)
def test_growth_to_a_threshold(case):
    rate = torch.tensor([0.5, 1.0, 4.0], dtype=F64, requires_grad=True)
    start = torch.ones(3, dtype=F64, requires_grad=True)
    solution = threshold(rate, start, solver=case.adaptive(rtol=1e-9, atol=1e-11))
    time = solution.aux["event_time"]
    exact = torch.log(2 / start) / rate
    torch.testing.assert_close(time, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(solution.aux["event_state"], torch.full((3,), 2.0, dtype=F64), rtol=1e-7, atol=0)
    assert solution.value[1, 2] == solution.value[2, 2]  # held from the event on
    torch.testing.assert_close(solution.value[1, :2], torch.exp(0.2 * rate[:2]), rtol=1e-6, atol=0)
    grads = torch.autograd.grad(time.sum(), [rate, start], retain_graph=True)
    again = torch.autograd.grad(time.sum(), [rate, start], create_graph=True)
    truth = torch.autograd.grad(exact.sum(), [rate, start], create_graph=True)
    for a, b, c in zip(grads, again, truth, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=0)
        torch.testing.assert_close(b, c, rtol=1e-5, atol=0)
    for a, b in zip(torch.autograd.grad(again[0].sum(), rate), torch.autograd.grad(truth[0].sum(), rate), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)


def test_without_a_crossing_the_end_counts():
    rate = torch.tensor([0.01, 1.0], dtype=F64, requires_grad=True)
    solution = threshold(rate, torch.ones(2, dtype=F64))
    torch.testing.assert_close(solution.aux["event_time"][0], torch.tensor(3.0, dtype=F64))
    torch.testing.assert_close(solution.aux["event_state"][0], torch.exp(3 * rate[0]), rtol=1e-8, atol=0)
    (grad,) = torch.autograd.grad(solution.aux["event_state"][0] + solution.aux["event_time"][0], rate)
    torch.testing.assert_close(grad, torch.tensor([3 * math.exp(0.03), 0.0], dtype=F64), rtol=1e-7, atol=0)


def test_direction_of_the_crossing():
    start = torch.tensor([3.0], dtype=F64)
    shrink = torch.tensor([-1.0], dtype=F64)
    torch.testing.assert_close(
        threshold(shrink, start, event_direction=-1).aux["event_time"], torch.log(start / 2), rtol=1e-8, atol=0
    )
    assert threshold(shrink, start, event_direction=1).aux["event_time"].item() == 3.0


def test_derivatives_in_the_times_with_and_without_an_event():
    times = torch.tensor([[0.0, 0.0], [0.2, 0.3], [0.5, 2.0]], dtype=F64, requires_grad=True)
    rate = torch.ones(2, dtype=F64)
    problem = InitialValue(lambda t, y, a: a * y, times, batch_ndim=1, event=lambda t, y, a: y - 2)
    solution = best_response(problem, rate, init=torch.ones(2, dtype=F64), solver=TIGHT)
    total = solution.value.sum() + (solution.aux["event_time"] + 3 * solution.aux["event_state"]).sum()
    start, inner, last = times
    end = torch.stack([last[0] - start[0], torch.tensor(math.log(2.0), dtype=F64)])
    exact = torch.exp(inner - start).sum() + 4 * torch.exp(end).sum() + last[0] + start[1] + math.log(2.0)
    for record in (False, True):
        grads = torch.autograd.grad(total, times, retain_graph=True, create_graph=record)
        torch.testing.assert_close(grads, torch.autograd.grad(exact, times, retain_graph=True), rtol=1e-6, atol=1e-8)


def fall(height, gravity, speed=0.0):
    """A ball until it hits the ground: solution, with gradients of the time of impact."""
    problem = InitialValue(
        lambda t, y, g: {"height": y["speed"], "speed": -g + 0 * y["speed"]},
        torch.tensor([0.0, 10.0], dtype=F64),
        event=lambda t, y, g: y["height"],
        event_direction=-1,
    )
    init = {"height": height, "speed": torch.as_tensor(speed, dtype=F64)}
    return best_response(problem, gravity, init=init, solver=TIGHT)


def test_a_bouncing_ball():
    height = torch.tensor(2.0, dtype=F64, requires_grad=True)
    gravity = torch.tensor(9.81, dtype=F64, requires_grad=True)
    first = fall(height, gravity)
    second = fall(torch.zeros((), dtype=F64) * height, gravity, -0.8 * first.aux["event_state"]["speed"])
    time = first.aux["event_time"] + second.aux["event_time"]
    exact = (2 * height / gravity).sqrt() * (1 + 2 * 0.8)
    torch.testing.assert_close(time, exact, rtol=1e-9, atol=0)
    for a, b in zip(*(torch.autograd.grad(t, [height, gravity]) for t in (time, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=0)


def test_events_under_transforms():
    start = torch.ones(2, dtype=F64)

    def time(rate):
        return threshold(rate, start).aux["event_time"].sum()

    rate = torch.tensor([1.0, 2.0], dtype=F64)
    expected = -math.log(2.0) / rate**2
    torch.testing.assert_close(torch.func.grad(time)(rate), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.func.jacfwd(time)(rate), expected, rtol=1e-7, atol=0)
    mapped = torch.func.vmap(torch.func.grad(time))(torch.stack([rate, 2 * rate]))
    torch.testing.assert_close(mapped, torch.stack([expected, expected / 4]), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        torch.func.jacrev(torch.func.grad(time))(rate),
        torch.diag(2 * math.log(2.0) / rate**3),
        rtol=1e-6,
        atol=1e-9,
    )


def test_an_event_of_the_wrong_shape_is_refused():
    problem = InitialValue(
        lambda t, y, _: y, torch.tensor([0.0, 1.0], dtype=F64), batch_ndim=1, event=lambda t, y, _: y
    )
    with pytest.raises(ValueError, match="expected `event` to return one number per problem"):
        best_response(problem, torch.ones((), dtype=F64), init=torch.ones(2, 3, dtype=F64))
