"""Rows that fail where their right-hand side has no derivative count for nothing in the gradients of what is shared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt import InitialValue, best_response
from sciopt.hypergradients import HypergradientWarning, InterpolatedAdjoint
from sciopt.solution import Solution, Status
from sciopt.steppers import AbstractOneStep, Kvaerno5, Rodas5P, Tsit5

F64 = torch.float64
EDGE = torch.tensor([9.0, 1.2, 7.0], dtype=F64)  # row i is defined until then
START = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.5, 3.0]], dtype=F64)
TIMES = torch.linspace(0, 2, 5, dtype=F64)
HEALTHY = torch.tensor([0, 2])
SOLVERS = [Tsit5(), Rodas5P(), Kvaerno5(), Tsit5(num_steps=20), Rodas5P(num_steps=20), Kvaerno5(num_steps=20)]


def decay(
    rows: Tensor, solver: AbstractOneStep, rate: Tensor, start: Tensor, times: Tensor = TIMES, *, restrict: bool = False
) -> Solution:
    """``y' = -rate sqrt(edge - t) y`` in some of the rows."""

    def of(edge: Tensor) -> InitialValue:
        def slope(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
            return -rate * torch.sqrt(edge.unsqueeze(-1) - t) * y

        return InitialValue(slope, times, batch_ndim=1, restrict=(lambda some: of(edge[some])) if restrict else None)

    return best_response(of(EDGE[rows]), rate, init=start[rows], solver=solver, throw=False)


@pytest.mark.parametrize(("restrict", "last"), [(False, True), (True, False)])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{s.num_steps}")
def test_a_failed_row_is_cut_off_and_the_others_are_exact(solver: AbstractOneStep, restrict: bool, last: bool) -> None:
    def gradients(rows: Tensor) -> tuple[Tensor, ...]:
        rate, start, times = torch.tensor(0.7, dtype=F64), START.clone(), TIMES.clone()
        leaves = [leaf.requires_grad_() for leaf in (rate, start, times)]
        solution = decay(rows, solver, *leaves, restrict=restrict)
        assert torch.isfinite(solution.value).all()
        codes = dict(zip(rows.tolist(), solution.status_code.tolist(), strict=True))
        assert codes.pop(1, int(Status.NONFINITE)) == int(Status.NONFINITE) and set(codes.values()) == {0}
        value = solution.value[-1] if last else solution.value
        return torch.autograd.grad(value.square().sum(), leaves)

    rate, start, times = gradients(torch.arange(3))
    truth = gradients(HEALTHY)
    assert (start[1] == 0).all()
    for one, other in zip((rate, start[HEALTHY], times), (truth[0], truth[1][HEALTHY], truth[2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "solver", [Tsit5(num_steps=8), Rodas5P(num_steps=8), Kvaerno5(num_steps=4)], ids=lambda s: type(s).__name__
)
def test_every_other_way_to_differentiate_agrees(solver: AbstractOneStep) -> None:
    """A step of row 1 ends, and the next would begin, exactly where its derivative is infinite."""
    rate, one = torch.tensor(0.7, dtype=F64), torch.ones((), dtype=F64)

    def derivatives(rows: Tensor) -> list[Tensor]:
        edge, start = torch.tensor([9.0, 1.0, 7.0], dtype=F64)[rows].unsqueeze(-1), START[rows]
        problem = InitialValue(lambda t, y, rate: -rate * torch.sqrt(edge - t) * y, TIMES, batch_ndim=1)

        def loss(rate: Tensor) -> Tensor:
            return best_response(problem, rate, init=start, solver=solver, throw=False).value.square().sum()

        leaf = rate.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf)
        pushed = torch.func.jvp(loss, (rate,), (one,))[1]
        each = torch.vmap(torch.func.grad(loss))(torch.stack([rate, 2 * rate]))
        return [first.detach(), second, torch.func.grad(loss)(rate), pushed, each]

    for found, truth in zip(derivatives(torch.arange(3)), derivatives(HEALTHY), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS[:3], ids=lambda s: type(s).__name__)
def test_an_event_beside_a_failed_row_keeps_its_derivative(solver: AbstractOneStep) -> None:
    """Row 0 stops at its event; row 1 fails before it."""

    def time(rows: Tensor, rate: Tensor) -> Tensor:
        edge = EDGE[rows].unsqueeze(-1)
        problem = InitialValue(
            lambda t, y, rate: -rate * torch.sqrt(edge - t) * y,
            TIMES,
            batch_ndim=1,
            event=lambda t, y, rate: y[:, 0] - 0.2,
        )
        solution = best_response(problem, rate, init=START[rows], solver=solver, throw=False)
        assert solution.status_code.tolist() == [0, int(Status.NONFINITE)][: len(rows)]
        return torch.autograd.grad(solution.aux["event_state"].sum() + solution.aux["event_time"].sum(), rate)[0]

    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    torch.testing.assert_close(time(torch.tensor([0, 1]), rate), time(torch.tensor([0]), rate), rtol=1e-10, atol=0)


def test_when_all_rows_fail_the_gradient_is_zero() -> None:
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    value = decay(torch.tensor([1]), Kvaerno5(), rate, START).value
    assert torch.autograd.grad(value.sum(), rate)[0] == 0


@pytest.mark.parametrize("solver", [Tsit5(), Tsit5(compiled=True)], ids=["eager", "compiled"])
def test_a_row_that_fails_at_once_where_its_derivative_is_infinite(solver: AbstractOneStep) -> None:
    """Row 1 starts at zero under a root and is not defined just above: its slope is finite there, its derivative is not."""
    start = torch.tensor([[1.0], [0.0], [2.0]], dtype=F64)
    row = torch.tensor([[False], [True], [False]])

    def gradients(rows: Tensor) -> tuple[Tensor, Tensor]:
        rate, y0 = torch.tensor(0.7, dtype=F64, requires_grad=True), start.clone().requires_grad_()
        wall = row[rows]

        def slope(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
            return torch.sqrt(rate * y) + torch.where(wall, torch.where((y > 0) & (y < 0.5), torch.nan, 1.0), 0.0)

        problem = InitialValue(slope, TIMES, batch_ndim=1)
        solution = best_response(problem, rate, init=y0[rows], solver=solver, throw=False)
        assert bool((solution.status_code[wall.squeeze(-1)] != 0).all()) and bool(solution.converged[0])
        rate_bar, y_bar = torch.autograd.grad(solution.value.square().sum(), [rate, y0])
        return rate_bar, y_bar

    rate, y0 = gradients(torch.arange(3))
    true_rate, true_y0 = gradients(HEALTHY)
    assert y0[1] == 0
    torch.testing.assert_close(rate, true_rate, rtol=1e-11, atol=0)
    torch.testing.assert_close(y0[HEALTHY], true_y0[HEALTHY], rtol=1e-11, atol=0)


def test_continuous_adjoints_drop_what_comes_from_failed_rows() -> None:
    rate, start = torch.tensor(0.7, dtype=F64), START.clone().requires_grad_()

    def of(edge: Tensor) -> InitialValue:
        return InitialValue(lambda t, y, rate: -rate * torch.sqrt(edge.unsqueeze(-1) - t) * y, TIMES, batch_ndim=1)

    method = InterpolatedAdjoint(measure=False)
    solution = best_response(of(EDGE), rate, init=start, solver=Tsit5(), hypergradient=method, throw=False)
    with pytest.warns(HypergradientWarning, match=r"1 of 3 problems \(rows 1\)"):
        (grad,) = torch.autograd.grad(solution.value.square().sum(), start)
    assert int(solution.status_code[1]) == int(Status.NONFINITE)
    assert (grad[1] == 0).all() and bool((grad[HEALTHY].abs() > 0.1).all())
