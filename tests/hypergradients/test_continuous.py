"""Continuous adjoints: near the exact discrete derivative, nearer with the tolerance, and labelled for what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sciopt import BilevelProblem, InitialValue, Minimize, SolveError, best_response, hypergradient
from sciopt.hypergradients import Backsolve, HypergradientWarning, InterpolatedAdjoint, TorchDiffEqAdjoint, Unrolled
from sciopt.hypergradients.interpolated import backwards
from sciopt.steppers import RK4, Dopri5, Kvaerno5, Rodas5P, TorchDiffEq, TorchDiffEqMethod, Tsit5

TIGHT = Tsit5(rtol=1e-9, atol=1e-11)
TORCH = TorchDiffEq(rtol=1e-9, atol=1e-11)
CASES = [
    (InterpolatedAdjoint(), TIGHT),
    (Backsolve(), TIGHT),
    (TorchDiffEqAdjoint(), TORCH),
    (TorchDiffEqAdjoint(seminorm=True), TORCH),
]
NAMES = ["interpolated", "backsolve", "torchdiffeq", "seminorm"]


class Case:
    """A small network as a right-hand side that captures one of its tensors."""

    def __init__(self, generator):
        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weight = (0.7 * draw(3, 3)).requires_grad_()
        self.bias = draw(3).requires_grad_()
        self.start = draw(4, 3).requires_grad_()
        self.times = torch.tensor([0.0, 0.3, 0.3, 1.0], dtype=torch.float64)

    def problem(self, times=None):
        times = self.times if times is None else times

        def dynamics(t, y, weight):
            return torch.tanh(y @ weight) * (1 + t) + self.bias

        def of(rows=None):
            return InitialValue(dynamics, times, batch_ndim=1, restrict=of if rows is None else None)

        return of()

    def gradient(self, method, solver, times=None, *more):
        problem = self.problem(times)
        value = best_response(problem, self.weight, init=self.start, solver=solver, hypergradient=method).value
        return torch.autograd.grad(value.square().cumsum(0).sum(), [self.weight, self.bias, self.start, *more])


def assert_near(found, expected, atol):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(("method", "solver"), CASES, ids=NAMES)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_near_the_exact_derivative(method, solver, backwards, generator):
    case = Case(generator)
    times = case.times.flip(0) if backwards else case.times
    assert_near(case.gradient(method, solver, times), case.gradient(Unrolled(), TIGHT, times), 2e-6)


@pytest.mark.parametrize("method", [InterpolatedAdjoint(), Backsolve()], ids=["interpolated", "backsolve"])
def test_times_of_each_row_and_their_gradients(method, generator):
    case = Case(generator)
    times = (case.times.unsqueeze(1) * torch.tensor([1.0, 2.0, 0.5, 0.1])).requires_grad_()
    assert_near(case.gradient(method, TIGHT, times, times), case.gradient(Unrolled(), TIGHT, times, times), 2e-6)


@pytest.mark.parametrize("method", [InterpolatedAdjoint, Backsolve])
def test_the_error_falls_with_the_tolerance_and_is_measured(method, generator):
    case, errors = Case(generator), []
    outer = BilevelProblem(inner=case.problem(), outer_loss=lambda theta, phi: theta.square().sum())
    for rtol in (1e-4, 1e-7):
        solver = Tsit5(rtol=rtol, atol=rtol)
        options = {"init": case.start.detach(), "solver": solver}
        found = hypergradient(outer, case.weight.detach(), hypergradient=method(measure=True), **options)
        exact = hypergradient(outer, case.weight.detach(), hypergradient=Unrolled(), **options)
        assert "approximation of the derivative of the steps" in found.notes[0]
        (measured,) = [note for note in found.notes if "measured relative error" in note]
        errors.append(float(measured.split("relative error ")[1].split()[0]))
        gap = (found.grad - exact.grad).norm() / exact.grad.norm()
        assert (
            1e-12 < errors[-1] < 1.0 and float(gap) < 10 * errors[-1]
        )  # the note speaks of the start and captures too
    assert errors[1] < 0.02 * errors[0]


def test_solving_back_a_contracting_flow_is_worse_than_going_along_it():
    decay = InitialValue(
        lambda t, y, p: -p * (y - torch.cos(t)), torch.tensor([0.0, 2.0], dtype=torch.float64), batch_ndim=1
    )
    rate, start = torch.tensor(40.0, dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    outer = BilevelProblem(inner=decay, outer_loss=lambda theta, phi: theta[-1].sum())
    error = {}
    for method in (InterpolatedAdjoint(measure=True), Backsolve(measure=True)):
        notes = hypergradient(outer, rate, init=start, solver=Tsit5(rtol=1e-5), hypergradient=method).notes
        error[type(method)] = float(notes[1].split("relative error ")[1].split()[0])
    assert error[Backsolve] > 10 * error[InterpolatedAdjoint]


@pytest.mark.parametrize(
    ("forwards", "back", "atol"),  # of gradients around 10; Kvaerno5's dense output is of order 3
    [
        (Rodas5P(rtol=1e-6), TIGHT, 2e-5),
        (Kvaerno5(rtol=1e-5), None, 1e-3),
        (Dopri5(rtol=1e-7), None, 5e-6),
        (RK4(num_steps=60), None, 1e-6),
    ],
    ids=["rodas", "kvaerno", "dopri", "rk4"],
)
def test_any_one_step_method_will_do(forwards, back, atol, generator):
    case = Case(generator)
    exact = case.gradient(Unrolled(), TIGHT)
    assert_near(case.gradient(InterpolatedAdjoint(solver=back), forwards), exact, atol)


@pytest.mark.parametrize(("method", "solver"), CASES[:3], ids=NAMES[:3])
def test_transforms_of_first_order_work_and_others_are_refused(method, solver, generator):
    case = Case(generator)
    start, weights = case.start.detach(), torch.stack([case.weight.detach(), 0.5 * case.weight.detach()])

    def loss(weight, method: Any = method, solver: Any = solver):
        problem = case.problem()
        return best_response(problem, weight, init=start, solver=solver, hypergradient=method).value.square().sum()

    case.bias.requires_grad_(False)
    expected = torch.stack([torch.func.grad(lambda w: loss(w, Unrolled(), TIGHT))(w) for w in weights])
    torch.testing.assert_close(torch.func.grad(loss)(weights[0]), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(weights), expected, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(loss(case.weight), case.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"expected first derivatives, got a second. Use Unrolled\(\)"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="expected reverse mode"):
        torch.func.jvp(loss, (weights[0],), (weights[1],))


def test_a_failed_backward_solve_is_told():
    problem = InitialValue(lambda t, y, p: -p * torch.sin(y), torch.tensor([0.0, 1.0], dtype=torch.float64))
    start = torch.tensor([1.5], dtype=torch.float64)
    tired = Tsit5(max_steps=2, rtol=1e-9)
    for throw in (True, False):
        rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        method = InterpolatedAdjoint(solver=tired)
        value = best_response(problem, rate, init=start, hypergradient=method, throw=throw).value[-1]
        if throw:
            with pytest.raises(
                SolveError, match="InterpolatedAdjoint: adjoint: expected status CONVERGED, got MAX_STEPS"
            ):
                value.backward()
        else:
            with pytest.warns(HypergradientWarning, match="InterpolatedAdjoint: adjoint"):
                value.backward()
    budget = TorchDiffEq(max_steps=6, rtol=1e-3)
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    method = TorchDiffEqAdjoint(rtol=1e-11, atol=1e-12)
    value = best_response(problem, rate, init=start, solver=budget, hypergradient=method).value[-1]
    with pytest.raises(SolveError, match="TorchDiffEqAdjoint: adjoint: expected status CONVERGED, got MAX_STEPS"):
        value.backward()


def test_a_failed_row_leaves_the_others_gradient_right():
    problem = InitialValue(lambda t, y, p: p * y**2, torch.tensor([0.0, 1.0], dtype=torch.float64), batch_ndim=1)
    start = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    for method in (InterpolatedAdjoint(), Backsolve()):
        rate = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
        best_response(problem, rate, init=start, hypergradient=method, throw=False).value[-1].sum().backward()
        assert rate.grad is not None and bool(torch.isfinite(rate.grad).all())
        torch.testing.assert_close(rate.grad[0], torch.tensor([0.01 / 0.81]).double(), rtol=1e-4, atol=0)


def test_what_does_not_fit_is_refused():
    times, one = torch.tensor([0.0, 1.0]), torch.ones(1)
    problem = InitialValue(lambda t, y, p: -p * y, times)
    with pytest.raises(TypeError, match="InterpolatedAdjoint: expected `solver` to be one of the project's one-step"):
        best_response(problem, one, init=one, solver=TorchDiffEq(), hypergradient=InterpolatedAdjoint())
    with pytest.raises(TypeError, match="TorchDiffEqAdjoint: expected `solver` to be a TorchDiffEq, got Tsit5"):
        best_response(problem, one, init=one, hypergradient=TorchDiffEqAdjoint())
    with pytest.raises(TypeError, match="Backsolve: expected"):
        best_response(Minimize(lambda t, p: (t - p).square().sum()), one, init=one, hypergradient=Backsolve())
    ended = InitialValue(lambda t, y, p: -p * y, times, event=lambda t, y, p: y.sum() - 0.5)
    with pytest.raises(TypeError, match="expected an InitialValue without `event`"):
        best_response(ended, one, init=one, hypergradient=Backsolve())


def test_fixed_steps_of_torchdiffeq_have_an_adjoint_too(generator):
    case, solver = Case(generator), TorchDiffEq(method=TorchDiffEqMethod.RK4, num_steps=100)
    assert_near(case.gradient(TorchDiffEqAdjoint(), solver), case.gradient(Unrolled(), TIGHT), 1e-5)


def test_the_adjoint_of_a_rosenbrock_state_goes_by_another_stepper() -> None:
    """Rosenbrock methods are slow across an interpolant's kinks: the default is Kvaerno5 at the same tolerances."""
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)
    decay = InitialValue(lambda t, y, rate: -rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
    solver = Rodas5P(rtol=1e-7, atol=1e-9, max_steps=500)
    assert backwards(solver) == Kvaerno5(rtol=1e-7, atol=1e-9, max_steps=500)
    assert backwards(Tsit5()) == Tsit5()
    best_response(decay, rate, init=one, solver=solver, hypergradient=InterpolatedAdjoint()).value[-1].backward()
    assert rate.grad is not None
    torch.testing.assert_close(rate.grad, -torch.exp(-rate.detach()), rtol=1e-5, atol=0)
