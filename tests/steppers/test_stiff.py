"""Rodas5P and Kvaerno5: order conditions, order of convergence, exact gradients, invariants, DAEs, statuses."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from sciopt import InitialValue, Status, best_response
from sciopt.domains.implicit import hires, oregonator, robertson, robertson_dae, van_der_pol
from sciopt.hypergradients import ForwardUnrolled, Unrolled
from sciopt.inner import Newton
from sciopt.params import ravel
from sciopt.problem.system import System
from sciopt.steppers import Field, Kvaerno5, Rodas5P, Tsit5, consistent_start
from sciopt.steppers.engine import march
from tests.steppers.stiff_reference import kvaerno5_step, rodas5p_step, textbook_rodas5p

METHODS = (Rodas5P, Kvaerno5)
STEPS = {Rodas5P: rodas5p_step, Kvaerno5: kvaerno5_step}
each_method = pytest.mark.parametrize("method", METHODS)


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def wave(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
    """Not autonomous, not linear, two parameters."""
    t = t.squeeze(-1) if t.ndim else t
    u, v = y.unbind(-1)
    return torch.stack([phi[..., 0] * v * torch.cos(t) - u * u, torch.sin(2 * t) * v - phi[..., 1] * u], -1)


def test_order_conditions_of_rodas5p():
    table = textbook_rodas5p()
    alpha, beta = table["alpha"], table["alpha"] + table["gamma"]
    c, w, u = alpha.sum(1), beta.sum(1), alpha @ beta.sum(1)
    trees = {
        1: [(torch.ones(8, dtype=torch.float64), 1)],
        2: [(w, 2)],
        3: [(c**2, 3), (beta @ w, 6)],
        4: [(c**3, 4), (c * u, 8), (beta @ c**2, 12), (beta @ beta @ w, 24)],
        5: [
            *[(c**4, 5), (c**2 * u, 10), (u**2, 20), (c * (alpha @ c**2), 15), (c * (alpha @ beta @ w), 30)],
            *[(beta @ c**3, 20), (beta @ (c * u), 40), (beta @ beta @ c**2, 60), (beta @ beta @ beta @ w, 120)],
        ],
    }
    for order, conditions in trees.items():
        for vector, number in conditions:
            assert abs((table["b"] @ vector).item() - 1 / number) < 2e-14
            if order < 5:
                assert abs((table["embedded"] @ vector).item() - 1 / number) < 2e-14
    assert abs((table["embedded"] @ c**4).item() - 1 / 5) > 1e-3  # the pair is 5(4): the estimate sees order 5


@each_method
def test_order_of_the_dense_output(method):
    start, phi = double(1.0, 0.5), double(1.3, 0.7)
    errors = []
    for h in (0.2, 0.1):
        times = double(0.0, 0.37 * h, h)
        inside = best_response(InitialValue(wave, times), phi, init=start, solver=method(num_steps=1)).value[1]
        sure = best_response(InitialValue(wave, times[:2]), phi, init=start, solver=method(num_steps=20)).value[1]
        errors.append((inside - sure).norm().item())
    least = 4.7 if method is Rodas5P else 3.7  # local error: one power more than the order
    assert np.log2(errors[0] / errors[1]) > least


@each_method
def test_gradients_are_those_of_the_frozen_steps(method):
    """First order to 1e-10, second order to 1e-8, against a plain unroll of the steps as the papers write them."""
    problem = InitialValue(wave, double(0.0, 1.0))
    solver = method(rtol=1e-5, atol=1e-7)
    phi, start = double(1.3, 0.7).requires_grad_(), double(1.0, 0.5).requires_grad_()
    value = best_response(problem, phi, init=start, solver=solver).value[-1]
    first = torch.autograd.grad((value * double(1.0, 2.0)).sum() + value.prod(), [phi, start], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].prod(), [phi, start])

    y = start
    for t, h in frozen_steps(problem, solver, phi, start):
        y = STEPS[method](lambda t, y, phi: wave(t, y, phi), t, h, y, phi)
    torch.testing.assert_close(value, y, rtol=1e-10, atol=0)
    truth = torch.autograd.grad((y * double(1.0, 2.0)).sum() + y.prod(), [phi, start], create_graph=True)
    curved = torch.autograd.grad(truth[0].square().sum() + truth[1].prod(), [phi, start])
    for a, b in zip(first, truth, strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()
    for a, b in zip(second, curved, strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm()


def frozen_steps(problem, solver, phi, start) -> list[tuple[Tensor, Tensor]]:
    """The accepted steps of a run, as ``(t, h)``."""
    layout, flat = ravel(start.detach())
    system = System(problem=problem, layout=layout, outer_spec=ravel(phi)[0].spec, num_outer=1)
    tape = march(solver, system, [phi.detach()], flat, keep=True)[1]
    assert tape is not None
    grid = tape.grid()
    return [(t[0], h[0]) for t, h in zip(grid.t, grid.h, strict=True) if h[0] != 0]


@each_method
@pytest.mark.parametrize("moving", [True, False])
def test_one_step_recorded_in_both_ways(method, moving):
    """What a backward pass records against what a transform follows, whatever carries a derivative."""
    phi, start = double(1.3, 0.7).requires_grad_(), double(1.0, 0.5).requires_grad_(moving)
    layout, _ = ravel(start.detach())
    problem = InitialValue(wave, double(0.0, 1.0))
    system = System(problem=problem, layout=layout, outer_spec=ravel(phi)[0].spec, num_outer=1)
    wanted = [phi, start] if moving else [phi]
    found = []
    for lean in (True, False):
        field = Field(system, [phi], lean=lean)
        t = double(0.2)
        trial = method(rtol=1e-10, atol=1e-13).attempt(field, t, double(0.3), start.unsqueeze(0))
        inside = method().interpolate(trial, t, double(0.3), start.unsqueeze(0), double(0.4))
        found.append(torch.autograd.grad((trial.y * double(1.0, 2.0)).sum() + inside.sum(), wanted))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


@each_method
def test_transforms_agree(method):
    problem = InitialValue(wave, double(0.0, 0.5))
    start, direction = double(1.0, 0.5), double(0.3, -0.2)

    def end(phi: Tensor) -> Tensor:
        return best_response(problem, phi, init=start, solver=method(rtol=1e-5), hypergradient=Unrolled()).value[-1]

    phi = double(1.3, 0.7)
    jacobian = torch.autograd.functional.jacobian(end, phi)
    torch.testing.assert_close(torch.func.jacrev(end)(phi), jacobian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.func.jvp(end, (phi,), (direction,))[1], jacobian @ direction, rtol=1e-9, atol=1e-12
    )
    both = torch.stack([phi, 2 * phi])
    torch.testing.assert_close(torch.vmap(end)(both)[1], end(2 * phi), rtol=1e-9, atol=1e-12)
    forward = best_response(
        problem, phi.requires_grad_(), init=start, solver=method(rtol=1e-5), hypergradient=ForwardUnrolled()
    )
    (grad,) = torch.autograd.grad(forward.value[-1].sum(), phi)
    torch.testing.assert_close(grad, jacobian.sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [robertson, hires, oregonator, van_der_pol], ids=lambda f: f.__name__)
def test_the_test_set_is_met(make):
    """The published end states, by the default of the stiff methods."""
    example = make()
    scale = example.reference.abs().clamp_min(1e-12)
    tight = {"robertson": 1e-12, "hires": 1e-9, "oregonator": 1e-8, "van_der_pol": 1e-8}[make.__name__]
    solver = Rodas5P(rtol=1e-6, atol=tight)
    solution = best_response(example.problem, example.outer_params, init=example.init, solver=solver)
    error = ((solution.value[-1] - example.reference) / scale).abs().max()
    assert error < 5e-4, f"{error:.1e} in {int(solution.num_steps)} steps"


@each_method
def test_linear_invariants_to_rounding(method):
    example = robertson().at(double(0.0, 1.0, 1e3, 1e6))
    value = best_response(example.problem, example.outer_params, init=example.init, solver=method()).value
    assert (value.sum(-1) - 1).abs().max() < 1e-14
    pigment = hires()
    assert pigment.network is not None
    value = best_response(pigment.problem, pigment.outer_params, init=pigment.init, solver=method()).value
    torch.testing.assert_close(
        pigment.network.totals(value)[-1], pigment.network.totals(pigment.init), rtol=1e-12, atol=0
    )


@each_method
def test_differential_algebraic(method):
    """Robertson with a conservation law for its third equation: the same values and gradients as the plain equations."""
    times = double(0.0, 0.4, 40.0)
    answers = []
    for make in (robertson, robertson_dae):
        example = make().at(times)
        phi = example.outer_params.clone().requires_grad_()
        solver = method(rtol=1e-7, atol=1e-11)
        value = best_response(example.problem, phi, init=example.init, solver=solver).value
        (grad,) = torch.autograd.grad(value[-1, 1], phi)
        answers.append((value[[0, 2]].detach(), grad * phi.detach() / value[-1, 1].detach()))
        # known figures of this problem at t = 40
        torch.testing.assert_close(value[-1, 1], torch.tensor(9.185534764557e-6).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=1e-6, atol=0)


@each_method
def test_regular_mass_matrix_is_its_inverse(method):
    mass = double(2.0, 1.0, 0.5, 3.0).reshape(2, 2)
    inverse = torch.linalg.inv(mass)
    times, start, phi = double(0.0, 0.3, 1.0), double(1.0, 0.5), double(1.3, 0.7).requires_grad_()
    solver = method(rtol=1e-9, atol=1e-12)
    weighted = best_response(InitialValue(wave, times, mass=mass), phi, init=start, solver=solver).value
    plain = best_response(
        InitialValue(lambda t, y, p: inverse @ wave(t, y, p), times), phi, init=start, solver=solver
    ).value
    torch.testing.assert_close(weighted[-1], plain[-1], rtol=1e-8, atol=0)
    torch.testing.assert_close(weighted[1], plain[1], rtol=1e-3, atol=0)  # interpolated, to lower order
    grads = [torch.autograd.grad(v[-1].sum(), phi)[0] for v in (weighted, plain)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=0)


@each_method
def test_derivatives_in_the_mass_matrix(method):
    """y = exp(-M^-1 t) y0: against the matrix exponential, by backward passes of first and second order and by `jvp`."""
    start, mass = double(1.0, 2.0), double(2.0, 0.5, 0.3, 1.0).reshape(2, 2)
    times, weights = double(0.0, 0.7), double(1.0, -0.4)

    def ours(mass: Tensor) -> Tensor:
        problem = InitialValue(lambda t, y, phi: -phi * y, times, mass=mass)
        return best_response(problem, double(1.0), init=start, solver=method(rtol=1e-7, atol=1e-10)).value[-1] @ weights

    def exact(mass: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(-0.7 * torch.linalg.inv(mass)) @ start @ weights

    for transform in (torch.func.grad, lambda f: lambda m: torch.func.jvp(f, (m,), (torch.ones_like(m),))[1]):
        torch.testing.assert_close(transform(ours)(mass), transform(exact)(mass), rtol=1e-4, atol=1e-6)
    answers = []
    for function in (ours, exact):
        leaf = mass.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf), leaf)
        (again,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        answers.append((first, *torch.autograd.grad(again.square().sum(), leaf)))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="a problem without `mass`"):
        problem = InitialValue(lambda t, y, phi: -phi * y, times, mass=mass)
        best_response(problem, double(1.0), init=start, solver=Tsit5())


@each_method
def test_trees_without_a_batch(method):
    problem = InitialValue(lambda t, y, k: {"a": -k * y["a"], "b": k * y["a"] - y["b"]}, double(0.0, 0.5, 1.0))
    phi = double(1.5).requires_grad_()
    start = {"a": double(1.0), "b": double(0.0, 1.0)}
    value = best_response(problem, phi, init=start, solver=method(rtol=1e-9, atol=1e-12)).value

    def exact(k: Tensor) -> Tensor:
        return k / (k - 1) * (torch.exp(-problem.times) - torch.exp(-k * problem.times))

    torch.testing.assert_close(value["b"][:, 0], exact(phi), rtol=1e-7, atol=1e-9)
    ours, truth = (torch.autograd.grad(b.sum(), phi)[0] for b in (value["b"][:, 0], exact(phi)))
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=0)


def test_starts_that_are_not_consistent():
    example = robertson_dae(batch_ndim=1).at(double(0.0, 40.0))
    start = torch.stack([double(1.0, 0.0, 0.0), double(1.0, 0.1, 0.0)])
    solution = best_response(example.problem, example.outer_params, init=start, solver=Rodas5P(), throw=False)
    assert solution.status_code.tolist() == [int(Status.CONVERGED), int(Status.INFEASIBLE)]
    assert torch.equal(solution.value[-1, 1], start[1])
    phi = {"start": start, "outer_params": example.outer_params}
    fixed = best_response(consistent_start(example.problem), phi, init=start, solver=Newton()).value
    torch.testing.assert_close(fixed, torch.stack([start[0], double(1.0, 0.1, -0.1)]))
    assert best_response(example.problem, example.outer_params, init=fixed, solver=Rodas5P()).status == Status.CONVERGED
    with pytest.raises(ValueError, match="a `mass` matrix, got None"):
        consistent_start(robertson().problem)


def test_higher_index_is_named():
    """x' = z, 0 = x - sin t has index 2."""
    mass = torch.diag(double(1.0, 0.0))
    problem = InitialValue(lambda t, y, phi: torch.stack([y[1], y[0] - torch.sin(t)]), double(0.0, 1.0), mass=mass)
    solution = best_response(problem, double(1.0), init=double(0.0, 1.0), solver=Rodas5P(), throw=False)
    assert solution.status == Status.SINGULAR


@each_method
def test_rows_that_fail_harm_no_other(method):
    """Blow-up in finite time, NaN from the field, and a row that is fine."""

    def dynamics(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        growth, limit = phi.unsqueeze(-1).unbind(1)
        return growth * y * y * (limit - t).sqrt()

    problem = InitialValue(dynamics, double(0.0, 2.0), batch_ndim=1)
    phi = double(0.01, 1e4, -1.0, 1.2, -0.01, 1e4).reshape(3, 2)
    solution = best_response(problem, phi, init=torch.ones(3, 1).double(), solver=method(rtol=1e-4), throw=False)
    codes = [Status(c) for c in solution.status_code.tolist()]
    assert codes[0] in (Status.DIVERGED, Status.STAGNATED) and codes[1] in (Status.NONFINITE, Status.STAGNATED)
    assert codes[2] == Status.CONVERGED and torch.isfinite(solution.value).all()
    integral = 0.01 * 2 / 3 * (1e4**1.5 - (1e4 - 2.0) ** 1.5)
    torch.testing.assert_close(solution.value[-1, 2], double(1 / (1 + integral)), rtol=1e-3, atol=0)
    # the gradient of the healthy row does not notice the others
    shared = double(1.0).requires_grad_()
    scaled = InitialValue(
        lambda t, y, a: dynamics(t, y, torch.cat([phi[:1], a * phi[1:]])), double(0.0, 2.0), batch_ndim=1
    )
    loose = method(rtol=1e-3, max_steps=60)
    value = best_response(scaled, shared, init=torch.ones(3, 1).double(), solver=loose, throw=False).value
    (grad,) = torch.autograd.grad(value[-1, 2].sum(), shared)
    alone = InitialValue(lambda t, y, a: dynamics(t, y, a * phi[2:]), double(0.0, 2.0), batch_ndim=1)
    value = best_response(alone, shared, init=torch.ones(1, 1).double(), solver=loose).value
    torch.testing.assert_close(grad, torch.autograd.grad(value[-1].sum(), shared)[0], rtol=1e-9, atol=0)
    few = best_response(problem, phi, init=torch.ones(3, 1).double(), solver=method(max_steps=2), throw=False)
    assert few.status_code[2] == int(Status.MAX_STEPS)


def test_nonnegative_rejects_instead_of_clipping():
    """A decay that a large step overshoots below zero."""
    problem = InitialValue(lambda t, y, phi: -phi * y.sqrt(), double(0.0, 1.9))
    solver = partial(Rodas5P, rtol=1e-1, atol=1e-3, first_step=1.5)
    strict = best_response(problem, double(1.0), init=double(1.0), solver=solver(nonnegative=True), throw=False)
    assert strict.value.min() >= -1e-3
    # a field that leads below zero cannot be followed
    sink = InitialValue(lambda t, y, phi: -phi + 0 * y, double(0.0, 2.0))
    blocked = best_response(sink, double(1.0), init=double(1.0), solver=Rodas5P(nonnegative=True), throw=False)
    assert blocked.status in (Status.STAGNATED, Status.NONFINITE) and blocked.value.min() >= -1e-9
    free = best_response(sink, double(1.0), init=double(1.0), solver=Rodas5P())
    torch.testing.assert_close(free.value[-1], double(-1.0))


@each_method
def test_batch_is_its_rows_and_drops_the_finished(method):
    example = robertson(batch_ndim=1, log_rates=True)
    times = torch.stack([torch.zeros(3), torch.tensor([1e-3, 1.0, 1e2])]).double()
    batch = example.at(times)
    phi = (example.outer_params + 0.1 * torch.arange(3).double().unsqueeze(-1)).requires_grad_()
    start = example.init.expand(3, 3).clone()
    solution = best_response(batch.problem, phi, init=start, solver=method())
    (grad,) = torch.autograd.grad(solution.value[-1, :, 0].sum(), phi)
    for i in range(3):
        own = robertson(log_rates=True).at(times[:, i])
        one = phi[i].detach().requires_grad_()
        single = best_response(own.problem, one, init=own.init, solver=method())
        torch.testing.assert_close(solution.value[:, i], single.value, rtol=1e-9, atol=1e-14)
        assert solution.num_steps[i] == single.num_steps
        (truth,) = torch.autograd.grad(single.value[-1, 0], one)
        torch.testing.assert_close(grad[i], truth, rtol=1e-7, atol=1e-14)


@each_method
def test_backwards_in_time_and_float32(method):
    problem = InitialValue(lambda t, y, phi: phi * torch.cos(t) * y, double(2.0, 0.0))
    value = best_response(problem, double(0.7), init=double(1.0), solver=method(rtol=1e-8, atol=1e-10)).value[-1]
    torch.testing.assert_close(value, torch.exp(-0.7 * torch.sin(double(2.0))), rtol=1e-6, atol=0)
    single = InitialValue(lambda t, y, phi: -phi * y, torch.tensor([0.0, 1.0]))
    value = best_response(single, torch.tensor(50.0), init=torch.ones(2), solver=method()).value[-1]
    assert value.dtype == torch.float32 and value.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Kvaerno5(newton_steps=0), "`newton_steps` to be an int >= 1"),
        (lambda: Kvaerno5(newton_tolerance=1.0), "`newton_tolerance` in \\(0, 1\\)"),
        (lambda: Rodas5P(rtol=0.0, atol=0.0), "`rtol` or `atol` above 0"),
        (lambda: Rodas5P(num_steps=0), "`num_steps` to be an int >= 1"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
