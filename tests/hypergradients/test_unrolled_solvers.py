"""Every inner solver, unrolled: the derivative of exactly these steps, in phi and in the start, by every explicit method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt import Constrained, FixedPoint, LeastSquares, Minimize, RootFind, best_response
from sciopt.hypergradients import AbstractHypergradient, ForwardUnrolled, Unrolled
from sciopt.inner import (
    LBFGS,
    Adam,
    Anderson,
    Broyden,
    ConstrainedNewton,
    GaussNewton,
    GradientDescent,
    Newton,
    NewtonCG,
    Picard,
    ProximalGradient,
)

F64 = torch.float64
A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.5]], dtype=F64)
W = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
PHI = torch.tensor([0.5, -0.4, 0.9], dtype=F64)
START = torch.tensor([0.1, 0.2, -0.1], dtype=F64)


def energy(t: Tensor, o: Tensor) -> Tensor:
    return 0.5 * (t * (A @ t)).sum() - (o * t).sum()


SMOOTH = Minimize(lambda t, o: energy(t, o) + 0.05 * (t**4).sum() + 0.1 * (o.sin() * t.cos()).sum())
MAP = FixedPoint(lambda t, o: torch.tanh(0.2 * A @ t * o.cos() + o))
ROOT = RootFind(lambda t, o: A @ t + 0.1 * t**3 - o.exp())
SQUARES = LeastSquares(lambda t, o: torch.cat([A @ t - o, 0.3 * t * o, 0.2 * t.sin()]))
BOXED = Minimize(energy, box=lambda o: (-0.1 * o[0].exp(), 0.2 * o[1].exp()))
SPARSE = Minimize(energy, prox=lambda t, s, o: t.sign() * torch.relu(t.abs() - s * 0.1 * o.square().sum()))
BOUND = Constrained(
    energy,
    equality=lambda t, o: t.sum(-1, keepdim=True) - o[:1],
    inequality=lambda t, o: torch.stack([t[0] - 0.2 * o[1], -t[1] - 5]),
)
CASES = [
    (GradientDescent(step_size=0.1), SMOOTH),
    (GradientDescent(), SMOOTH),
    (GradientDescent(step_size=0.1, momentum=0.5), SMOOTH),
    (Adam(), SMOOTH),
    (LBFGS(), SMOOTH),
    (LBFGS(), SQUARES),
    (NewtonCG(), SMOOTH),
    (Picard(), MAP),
    (Anderson(history=2), MAP),
    (Anderson(history=2), ROOT),
    (Broyden(), MAP),
    (Broyden(), ROOT),
    (Newton(), MAP),
    (Newton(), ROOT),
    (Newton(), BOUND),
    (ConstrainedNewton(), BOUND),
    (GaussNewton(), SQUARES),
    (GaussNewton(dense_limit=0), SQUARES),
    (ProximalGradient(), SPARSE),
    (ProximalGradient(), BOXED),
]
NAMES = [f"{type(solver).__name__}-{type(problem).__name__}-{i}" for i, (solver, problem) in enumerate(CASES)]
STEPS = 4


def outer(solver, problem, phi: Tensor, start: Tensor, method) -> Tensor:
    return W @ best_response(problem, phi, init=start, solver=solver, hypergradient=method, throw=False).value


def slopes(solver, problem, method) -> tuple[Tensor, Tensor]:
    """Derivatives along fixed directions in phi and in the start."""
    phi, start = PHI.clone().requires_grad_(), START.clone().requires_grad_()
    grads = torch.autograd.grad(outer(solver, problem, phi, start, method), [phi, start], materialize_grads=True)
    return grads[0] @ W.cos(), grads[1] @ W.sin()


def differences(solver, problem) -> tuple[Tensor, Tensor]:
    h, method = 1e-6, Unrolled(num_steps=STEPS)
    by_phi = [outer(solver, problem, PHI + s * h * W.cos(), START, method) for s in (1, -1)]
    by_start = [outer(solver, problem, PHI, START + s * h * W.sin(), method) for s in (1, -1)]
    return (by_phi[0] - by_phi[1]) / (2 * h), (by_start[0] - by_start[1]) / (2 * h)


@pytest.mark.parametrize(("solver", "problem"), CASES, ids=NAMES)
def test_derivative_of_the_steps_taken(solver, problem):
    truth = differences(solver, problem)
    methods: list[AbstractHypergradient] = [Unrolled(num_steps=STEPS), Unrolled(num_steps=STEPS, checkpoints=3)]
    if isinstance(solver, (LBFGS, NewtonCG, Anderson, Adam)):  # one of each kind of state; the others share their code
        methods.append(ForwardUnrolled(num_steps=STEPS))
    for method in methods:
        torch.testing.assert_close(slopes(solver, problem, method), truth, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    "method", [Unrolled(), Unrolled(checkpoints=2), Unrolled(truncate=3), ForwardUnrolled()], ids=str
)
def test_a_run_that_takes_no_step_has_zero_derivatives(method):
    problem = Minimize(lambda t, o: ((t - o) ** 2).sum())
    phi, start = PHI.clone().requires_grad_(), PHI.clone().requires_grad_()
    value = best_response(problem, phi, init=start, solver=GradientDescent(), hypergradient=method).value
    grads = torch.autograd.grad(value.sum(), [phi, start])
    torch.testing.assert_close(grads, (torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)))
