"""Explicit methods in batches and in company: rows equal single runs, under vmap, below and above other levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from sciopt import BilevelProblem, FixedPoint, Minimize, Recurrence, SolveError, best_response, hypergradient
from sciopt.hypergradients import FiniteDifference, FirstOrder, ForwardUnrolled, Implicit, OneStep, Unrolled
from sciopt.inner import LBFGS, Adam, Anderson, GradientDescent, Newton, NewtonCG

F64 = torch.float64
PHI = torch.tensor([0.5, -0.4, 0.9], dtype=F64)
ZERO = torch.zeros(3, dtype=F64)
STIFFNESS = torch.tensor([1.0, 3.0, 10.0], dtype=F64)


def loss(t: Tensor, o: Tensor, c: Tensor) -> Tensor:
    return (c.unsqueeze(-1) * (t - o) ** 2).sum(-1) + 0.1 * (t**4).sum(-1)


@pytest.mark.parametrize("method", [Unrolled(), Unrolled(truncate=4), Unrolled(checkpoints=3)], ids=str)
@pytest.mark.parametrize(
    "solver",
    [GradientDescent(step_size=0.04, rtol=1e-4), LBFGS(), NewtonCG(), Adam(step_size=0.1, rtol=1e-2)],
    ids=lambda s: type(s).__name__,
)
def test_rows_that_stop_at_different_steps_equal_single_runs(solver, method):
    phi = PHI.clone().requires_grad_()
    rows = Minimize(lambda t, o: loss(t, o, STIFFNESS), batch_ndim=1)
    batch = best_response(rows, phi, init=torch.zeros(3, 3, dtype=F64), solver=solver, hypergradient=method)
    assert len(set(batch.num_steps.tolist())) > 1
    for i, c in enumerate(STIFFNESS):
        one = Minimize(lambda t, o, c=c: loss(t, o, c))
        single = best_response(one, phi, init=ZERO, solver=solver, hypergradient=method).value
        expected = torch.autograd.grad(single.sum(), phi)[0]
        mine = torch.autograd.grad(batch.value[i].sum(), phi, retain_graph=True)[0]
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


def test_truncation_under_vmap_equals_single_runs():
    def h(p: Tensor, c: Tensor) -> Tensor:
        solver, method = GradientDescent(step_size=0.04, rtol=1e-4), Unrolled(truncate=4)
        return (
            best_response(Minimize(lambda t, o: loss(t, o, c)), p, init=ZERO, solver=solver, hypergradient=method).value
            @ PHI
        )

    expected = torch.stack([grad(h)(PHI, c) for c in STIFFNESS])
    torch.testing.assert_close(vmap(grad(h), in_dims=(None, 0))(PHI, STIFFNESS), expected)
    torch.testing.assert_close(grad(lambda p: vmap(h, in_dims=(None, 0))(p, STIFFNESS).sum())(PHI), expected.sum(0))


@pytest.mark.parametrize("solver", [Newton(), Anderson(history=2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("method", [Unrolled(num_steps=3), ForwardUnrolled(num_steps=3)], ids=str)
def test_dense_solves_inside_the_steps_under_every_transform(solver, method):
    problem = FixedPoint(lambda t, o: 0.3 * t.flip(-1).sin() + o)

    def h(p: Tensor) -> Tensor:
        return (
            best_response(problem, p, init=ZERO, solver=solver, hypergradient=method, throw=False).value.square().sum()
        )

    q = PHI.clone().requires_grad_()
    expected = torch.autograd.grad(h(q), q)[0]
    rows = torch.stack([PHI, PHI])
    for mine in (grad(h)(PHI), jacfwd(h)(PHI), vmap(grad(h))(rows)[1], vmap(jacfwd(h))(rows)[1]):
        torch.testing.assert_close(mine, expected)
    curve = jacrev(grad(h))(PHI)
    torch.testing.assert_close(jacfwd(grad(h))(PHI), curve)
    torch.testing.assert_close(jacrev(jacfwd(h))(PHI), curve)


@pytest.mark.parametrize("method", [Unrolled(), ForwardUnrolled()], ids=str)
@pytest.mark.parametrize("steps", [0, 3])
def test_trajectories_under_vmap(method, steps):
    problem = Recurrence(lambda t, o, k: 0.5 * t + o, num_steps=steps, trajectory=True)

    def path(p: Tensor) -> Tensor:
        return best_response(problem, p, init=ZERO, hypergradient=method).value

    rows = torch.stack([PHI, 2 * PHI])
    assert vmap(path)(rows).shape == (2, steps + 1, 3)
    torch.testing.assert_close(vmap(path)(rows)[1], path(2 * PHI))
    slopes = jacrev(path)(PHI)
    torch.testing.assert_close(slopes[-1], 2 * (1 - 0.5**steps) * torch.eye(3, dtype=F64))
    torch.testing.assert_close(vmap(jacrev(path))(rows)[1], slopes)
    torch.testing.assert_close(jacfwd(path)(PHI), slopes)
    torch.testing.assert_close(vmap(lambda p: jvp(path, (p,), (PHI,))[1])(rows)[0], slopes @ PHI)


@pytest.mark.parametrize(
    "method", [Unrolled(num_steps=4), Unrolled(num_steps=4, checkpoints=2), ForwardUnrolled(num_steps=4)], ids=str
)
def test_unrolled_level_below_another(method):
    def lower(t: Tensor, p: Tensor, z: Tensor) -> Tensor:
        return ((2 * z - t - p.exp()) ** 2).sum() + 0.1 * (z**4).sum()

    def middle(t: Tensor, p: Tensor, z: Tensor) -> Tensor:
        return ((z - 1) ** 2).sum() + 0.5 * ((t - p) ** 2).sum()

    def by_hand(p: Tensor) -> Tensor:
        def total(t: Tensor) -> Tensor:
            z = torch.zeros_like(t)
            for _ in range(5):
                z = z - 0.1 * grad(lambda z: lower(t, p, z))(z)
            return middle(t, p, z)

        t = torch.zeros_like(p)
        for _ in range(4):
            t = t - 0.2 * grad(total)(t)
        return t.square().sum()

    def nested(t: Tensor, p: Tensor) -> Tensor:
        inner = Minimize(lambda z, o: lower(o["t"], o["p"], z))
        solver, steps = GradientDescent(step_size=0.1), Unrolled(num_steps=5)
        z = best_response(inner, {"t": t, "p": p}, init=torch.zeros_like(t), solver=solver, hypergradient=steps).value
        return middle(t, p, z)

    def h(p: Tensor) -> Tensor:
        solver = GradientDescent(step_size=0.2)
        return (
            best_response(Minimize(nested), p, init=ZERO[:2], solver=solver, hypergradient=method).value.square().sum()
        )

    p = torch.tensor([0.3, -0.2], dtype=F64)
    q = p.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(h(q), q)[0], grad(by_hand)(p))
    torch.testing.assert_close(grad(h)(p), grad(by_hand)(p))
    torch.testing.assert_close(jacrev(grad(h))(p), hessian(by_hand)(p))


def test_unrolled_level_below_an_implicit_one():
    def value(t: Tensor, p: Tensor) -> Tensor:
        inner = Minimize(lambda z, o: ((z - o["t"] * o["p"]) ** 2).sum())
        solver, steps = GradientDescent(step_size=0.5), Unrolled(num_steps=1)  # exact in one step
        z = best_response(inner, {"t": t, "p": p}, init=torch.zeros_like(t), solver=solver, hypergradient=steps).value
        return (z - 1).square().sum() + t.square().sum()

    phi = PHI.clone().requires_grad_()
    best_response(Minimize(value), phi, init=ZERO, hypergradient=Implicit()).value.sum().backward()
    torch.testing.assert_close(phi.grad, (1 - PHI**2) / (1 + PHI**2) ** 2, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", [Implicit(), OneStep(), FirstOrder(), FiniteDifference()], ids=str)
def test_methods_that_need_an_equation_refuse_a_recurrence(method):
    problem = Recurrence(lambda t, o, k: 0.5 * t + o, num_steps=3)
    with pytest.raises(TypeError, match="Recurrence: expected a method that differentiates the steps"):
        best_response(problem, PHI.clone().requires_grad_(), init=ZERO, hypergradient=method)


def test_null_space_whose_rank_differs_between_the_rows():
    def energies(t: Tensor, o: Tensor) -> Tensor:
        return torch.stack([(t[0, 0] + t[0, 1] - o[0]) ** 2 + (t[0, 2] - o[1]) ** 2, ((t[1] - o) ** 2).sum()])

    modes = torch.tensor([[[1.0], [-1.0], [0.0]], [[0.0], [0.0], [0.0]]], dtype=F64)
    inner = Minimize(energies, batch_ndim=1, nullspace=lambda t, o: modes)
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, o: torch.stack([t[0, 0] + t[0, 1], t[1].sum()]))
    hg = hypergradient(problem, PHI, init=torch.zeros(2, 3, dtype=F64))
    torch.testing.assert_close(hg.grad, torch.tensor([2.0, 1.0, 1.0], dtype=F64))
    assert hg.error_bound < 1e-10


def test_null_space_of_wrong_shape():
    problem = Minimize(lambda t, o: ((t - o) ** 2).sum(), nullspace=lambda t, o: torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match=r"Minimize: expected `nullspace` to return .* got \(3,\)"):
        best_response(problem, PHI.clone().requires_grad_(), init=ZERO).value[0].backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recurrence(lambda t, o, k: t, num_steps=2.5), "expected `num_steps` to be an int"),  # pyright: ignore
        (lambda: Recurrence(lambda t, o, k: t, num_steps=2, data=3.0), "expected `data` .* got float"),
        (lambda: Recurrence(lambda t, o, k: t, num_steps=2, data=torch.tensor(1.0)), r"got shape \(\)"),
        (
            lambda: best_response(
                Recurrence(lambda t, o, k: t * o, num_steps=2, scheduled=True), torch.ones(9, 3, dtype=F64), init=ZERO
            ),
            r"expected `outer_params` with leading dimension num_steps = 2, got shape \(9, 3\)",
        ),
    ],
)
def test_lengths_of_recurrences(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [Unrolled, ForwardUnrolled])
def test_a_spent_budget_is_a_failure_unless_the_number_of_steps_was_asked_for(make):
    problem, solver = Minimize(lambda t, o: loss(t, o, STIFFNESS[0])), GradientDescent(step_size=0.1, max_steps=3)
    for phi in (PHI, PHI.clone().requires_grad_()):
        with pytest.raises(SolveError, match="got MAX_STEPS after 3 steps"):
            best_response(problem, phi, init=ZERO, solver=solver, hypergradient=make())
        asked = best_response(problem, phi, init=ZERO, solver=solver, hypergradient=make(num_steps=3))
        assert asked.status.name == "MAX_STEPS"


@pytest.mark.parametrize("method", [Implicit(), Unrolled(), ForwardUnrolled(num_steps=1)], ids=str)
def test_batched_captured_tensors_in_forward_mode(method):
    solver = GradientDescent(step_size=0.5)

    def settled(p: Tensor, scale: Tensor) -> Tensor:
        problem = Minimize(lambda t, o: ((t - scale * o) ** 2).sum())
        return best_response(problem, p, init=ZERO, solver=solver, hypergradient=method).value

    rows = torch.stack([PHI, PHI + 1])
    inside = vmap(lambda scale: jvp(lambda p: settled(p, scale), (PHI,), (PHI,))[1])(rows)
    outside = jvp(lambda p: vmap(lambda scale: settled(p, scale))(rows), (PHI,), (PHI,))[1]
    torch.testing.assert_close(inside, rows * PHI)
    torch.testing.assert_close(outside, rows * PHI)
