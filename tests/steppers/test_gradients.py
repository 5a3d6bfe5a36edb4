"""Derivatives of the frozen steps: against a plain unroll, closed forms, and each other under every transform."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from sciopt import BilevelProblem, InitialValue, best_response, hypergradient
from sciopt.hypergradients import ForwardUnrolled, Unrolled
from sciopt.params import ravel
from sciopt.problem.system import System
from sciopt.steppers import Tsit5
from sciopt.steppers.engine import march
from tests.helpers import randn
from tests.steppers.cases import ADAPTIVE_CASES, F64, STEPPER_CASES, solve

ROWS, SIZE = 3, 2


def swirl(t, y, phi):
    return torch.tanh(y @ phi["weight"]) * phi["rate"].unsqueeze(-1) - 0.3 * t * y


def inputs(generator, count=4):
    weight = randn(SIZE, SIZE, generator=generator)
    rate = torch.tensor([1.0, 3.0, 8.0], dtype=F64)
    times = torch.linspace(0, 1, count, dtype=F64)
    return [t.requires_grad_() for t in (weight, rate, randn(ROWS, SIZE, generator=generator), times)]


def observed(weight, rate, start, times, solver=None, **options):
    solver = Tsit5(rtol=1e-5) if solver is None else solver
    problem = InitialValue(swirl, times, batch_ndim=1)
    return best_response(problem, {"weight": weight, "rate": rate}, init=start, solver=solver, **options).value


def unrolled(solver, weight, rate, start, times):
    """The same frozen steps, written out with the table's numbers, one row after the other."""
    problem = InitialValue(swirl, times.detach(), batch_ndim=1)
    layout, x = ravel(start.detach(), 1)
    phi = {"rate": rate.detach(), "weight": weight.detach()}
    leaves, spec = pytree.tree_flatten(phi)
    system = System(problem=problem, layout=layout, outer_spec=spec, num_outer=2)
    tape = march(solver, system, leaves, x, keep=True, moving=True)[1]
    assert tape is not None
    grid, table = tape.grid(), solver.tableau
    out = []
    for r in range(ROWS):
        y, values = start[r], [start[r]]
        shift = times[0] - times[0].detach()
        for j in range(len(grid.t)):
            t, h = grid.t[j, r] + shift, grid.h[j, r]
            if h == 0:
                continue
            phi = {"weight": weight, "rate": rate[r]}
            ks = [swirl(t, y, phi)]
            for row, c in zip(table.a, table.c, strict=True):
                moved = y + h * sum(a * k for a, k in zip(row, ks, strict=True))
                ks.append(swirl(t + c * h, moved, phi))
            for k in range(1, len(times)):
                if grid.slot[k, r] == j:
                    s = (times[k] - t) / h
                    weights = [sum(w * s ** (p + 1) for p, w in enumerate(dense)) for dense in table.dense]
                    values.append(y + h * sum(w * k for w, k in zip(weights, ks, strict=True)))
            y = y + h * sum(b * k for b, k in zip(table.b, ks, strict=True))
        out.append(torch.stack(values))
    return torch.stack(out, 1)


@pytest.mark.parametrize("case", [c for c in ADAPTIVE_CASES if hasattr(c.kind, "tableau")], ids=str)
def test_gradients_are_those_of_the_frozen_steps(case, generator):
    given = inputs(generator)
    solver = case.adaptive(rtol=1e-5, atol=1e-7)
    mine, plain = observed(*given, solver=solver), unrolled(solver, *given)
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-13)
    cotangent = randn(*mine.shape, generator=generator)
    lean = torch.autograd.grad((mine * cotangent).sum(), given)
    again = torch.autograd.grad((observed(*given, solver=solver) * cotangent).sum(), given, create_graph=True)
    truth = torch.autograd.grad((plain * cotangent).sum(), given, create_graph=True)
    for a, b, c in zip(lean, again, truth, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-11)
    directions = [randn(*g.shape, generator=generator) for g in given]
    second, exact = (
        torch.autograd.grad(torch.stack([(g * d).sum() for g, d in zip(first, directions, strict=True)]).sum(), given)
        for first in (again, truth)
    )
    for a, b in zip(second, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", STEPPER_CASES, ids=str)
def test_gradients_of_equal_steps_agree_with_differences(case, generator):
    given = inputs(generator, 3)
    solver = case.fixed(12)  # coarse: the derivative is that of what was computed, however wrong
    cotangent = randn(3, ROWS, SIZE, generator=generator)
    directions = [randn(*g.shape, generator=generator) for g in given[:3]] + [torch.zeros_like(given[3])]
    grads = torch.autograd.grad((observed(*given, solver=solver) * cotangent).sum(), given)
    slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    step = 1e-5
    with torch.no_grad():
        moved = [
            (observed(*(g + s * d for g, d in zip(given, directions, strict=True)), solver=solver) * cotangent).sum()
            for s in (step, -step)
        ]
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / (2 * step), rtol=1e-7, atol=1e-8)


def test_every_transform_gives_the_same_derivatives(generator):
    given = [g.detach() for g in inputs(generator, 3)]
    cotangent = randn(3, ROWS, SIZE, generator=generator)

    def loss(weight, start, times):
        return (observed(weight, given[1], start, times) * cotangent).sum()

    point = (given[0], given[2], given[3])
    leaves = [p.clone().requires_grad_() for p in point]
    truth = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(torch.func.grad(loss, (0, 1, 2))(*point), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    directions = tuple(randn(*p.shape, generator=generator) for p in point)
    slope = torch.func.jvp(loss, point, directions)[1]
    expected = sum((g * d).sum() for g, d in zip(truth, directions, strict=True))
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(loss)(*point), truth[0], rtol=1e-10, atol=1e-12)
    starts = torch.stack([point[1], 0.5 * point[1]])
    mapped = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims=(None, 0, None))(point[0], starts, point[2])
    for lane in range(2):
        alone = torch.func.grad(loss, (0, 1))(point[0], starts[lane], point[2])
        for a, b in zip(mapped, alone, strict=True):
            torch.testing.assert_close(a[lane], b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_agree_in_every_mix():
    init = torch.tensor([0.3, 0.9], dtype=F64)
    times = torch.tensor([0.0, 1.0], dtype=F64)

    def loss(rate):
        value = solve(lambda t, y, a: a * y * (1 - y), times, init, rate, batch_ndim=1, solver=Tsit5(rtol=1e-4)).value
        return value[-1].square().sum()

    rate = torch.tensor([1.0, 2.0], dtype=F64)
    reverse = torch.func.jacrev(torch.func.jacrev(loss))(rate)
    for outer, inner in ((torch.func.jacfwd, torch.func.jacrev), (torch.func.jacrev, torch.func.jacfwd)):
        torch.testing.assert_close(outer(inner(loss))(rate), reverse, rtol=1e-8, atol=1e-10)
    step = 1e-5
    moved = [torch.func.grad(loss)(rate + s * torch.tensor([1.0, 0.0], dtype=F64)) for s in (step, -step)]
    torch.testing.assert_close(reverse[0], (moved[0] - moved[1]) / (2 * step), rtol=1e-4, atol=1e-4)
    with pytest.raises(NotImplementedError, match="at most one forward-mode transform"):
        torch.func.jacfwd(torch.func.jacfwd(loss))(rate)


def test_forward_mode_carries_the_same(generator):
    given = inputs(generator, 3)
    cotangent = randn(3, ROWS, SIZE, generator=generator)
    reverse = torch.autograd.grad((observed(*given) * cotangent).sum(), given)
    carried = torch.autograd.grad(
        (observed(*given, hypergradient=ForwardUnrolled(chunk_size=3)) * cotangent).sum(), given
    )
    for a, b in zip(carried, reverse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_captured_tensors_and_modules_get_their_gradients():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2, dtype=F64)
    speed = torch.tensor(1.7, dtype=F64, requires_grad=True)
    scale = speed**2  # not a leaf
    times = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    init = torch.ones(2, 2, dtype=F64)
    solver = Tsit5(rtol=1e-10, atol=1e-12)
    value = solve(lambda t, y, _: scale * net(y), times, init, batch_ndim=1, solver=solver).value
    wanted = [*net.parameters(), speed]
    grads = torch.autograd.grad(value[1:].sum(), wanted)
    assert net.bias is not None
    block = torch.cat([torch.cat([net.weight, net.bias.unsqueeze(1)], 1), torch.zeros(1, 3, dtype=F64)])
    start = torch.cat([init, torch.ones(2, 1, dtype=F64)], 1)
    ends = [(start @ torch.linalg.matrix_exp(speed**2 * t * block).mT)[:, :2].sum() for t in (0.5, 1.0)]
    exact = torch.stack(ends).sum()
    for a, b in zip(grads, torch.autograd.grad(exact, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_states_may_be_dicts():
    times = torch.tensor([0.0, torch.pi / 2, torch.pi], dtype=F64)
    stiffness = torch.tensor([1.0, 4.0], dtype=F64, requires_grad=True)
    init = {"x": torch.ones(2, 3, dtype=F64), "v": torch.zeros(2, 3, dtype=F64)}

    def spring(t, state, k):
        assert t.shape == (2, 1)
        return {"x": state["v"] + 0 * t, "v": -k.unsqueeze(-1) * state["x"]}

    solution = solve(spring, times, init, stiffness, batch_ndim=1, solver=Tsit5(rtol=1e-9, atol=1e-11))
    frequency = stiffness.sqrt()
    exact = torch.cos(frequency * times.unsqueeze(-1)).unsqueeze(-1).expand(3, 2, 3)
    torch.testing.assert_close(solution.value["x"], exact, rtol=1e-7, atol=1e-7)
    (mine,) = torch.autograd.grad(solution.value["x"][1].sum(), stiffness)
    (truth,) = torch.autograd.grad(exact[1].sum(), stiffness)
    torch.testing.assert_close(mine, truth, rtol=1e-6, atol=1e-7)


def test_hypergradient_and_its_report():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    inner = InitialValue(lambda t, y, rate: -rate * y, times)
    problem = BilevelProblem(inner=inner, outer_loss=lambda y, rate: (y[-1] - 0.5) ** 2 + 0.1 * rate)
    rate = torch.tensor(1.0, dtype=F64)
    found = hypergradient(problem, rate, init=torch.ones((), dtype=F64), solver=Tsit5(rtol=1e-10))
    end = torch.exp(-rate)
    torch.testing.assert_close(found.grad, -2 * (end - 0.5) * end + 0.1, rtol=1e-8, atol=0)
    assert found.certificate is None and found.status.name == "CONVERGED"
    assert found.notes[0].startswith("Unrolled") and found.cost["dynamics"] > 0


def test_options_that_mean_nothing_here_are_refused():
    times = torch.tensor([0.0, 1.0], dtype=F64)
    for method in (Unrolled(num_steps=3), Unrolled(checkpoints=2), ForwardUnrolled(num_steps=3)):
        with pytest.raises(ValueError, match="for an InitialValue"):
            solve(lambda t, y, _: y, times, torch.ones((), dtype=F64), hypergradient=method)
