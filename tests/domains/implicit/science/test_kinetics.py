"""Fits and plans for A -> B -> C, whose courses have a closed form: SciPy, autograd on it, brute force, refits."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from sciopt import Status
from sciopt.domains.implicit.optimization import curve_fit
from sciopt.domains.implicit.science import (
    Experiments,
    Noise,
    TimeWindow,
    fisher_information,
    fit_rates,
    identifiability,
    mass_action_model,
    plan_measurements,
    simulate,
)
from sciopt.domains.implicit.stiff import reactions, robertson
from sciopt.inner import GaussNewton
from sciopt.steppers import Rodas5P, Tsit5

F64 = torch.float64
CHAIN = mass_action_model(reactions("A -> B", "B -> C"), observed=("B", "C"), solver=Tsit5(rtol=1e-5, atol=1e-8))
TRUTH = torch.tensor([0.2, -1.1], dtype=F64)
START = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.4, 0.0]], dtype=F64)
NOISE = Noise(absolute=0.02)


def closed_form(log_rates: Tensor, init: Tensor, times: Tensor) -> Tensor:
    """B and C of the chain, ``(k, e, 2)`` for times ``(k,)``; also for rows of log-rates ``(b, 2)`` with b = e."""
    k1, k2 = log_rates.exp().unbind(-1)
    a0, b0 = init[:, 0], init[:, 1]
    t = times.unsqueeze(-1)
    a = a0 * torch.exp(-k1 * t)
    b = b0 * torch.exp(-k2 * t) + a0 * k1 / (k2 - k1) * (torch.exp(-k1 * t) - torch.exp(-k2 * t))
    return torch.stack([b, a0 + b0 - a - b], -1)


@pytest.fixture(scope="module")
def courses() -> Experiments:
    times = torch.linspace(0, 5, 9, dtype=F64)
    full = simulate(CHAIN, TRUTH, START, times, NOISE, torch.Generator().manual_seed(1))
    data = full.data.clone()
    data[3, 0, 1] = torch.nan  # a sample that was lost
    return replace(full, data=data)


@pytest.fixture(scope="module")
def fit(courses):
    return fit_rates(CHAIN, courses, start=TRUTH + torch.tensor([0.8, -0.6]))


def test_predictions_follow_the_closed_form(courses: Experiments) -> None:
    found = CHAIN.predict(TRUTH, START, courses.times)
    torch.testing.assert_close(found, closed_form(TRUTH, START, courses.times[1:]), rtol=0, atol=1e-5)


def test_a_fit_is_that_of_scipy(courses: Experiments, fit) -> None:
    there = courses.measured.numpy()

    def flat(_, *log_rates: float) -> np.ndarray:
        return closed_form(torch.tensor(log_rates, dtype=F64), START, courses.times[1:]).numpy()[there]

    value, covariance = scipy.optimize.curve_fit(
        flat, None, courses.data.numpy()[there], p0=[0.3, -0.8], sigma=np.full(there.sum(), 0.02), absolute_sigma=True
    )
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.log_rates.numpy(), value, atol=2e-4)
    np.testing.assert_allclose(fit.covariance_gauss_newton.numpy(), covariance, rtol=2e-3)
    assert fit.freedom == 31 - 2 and courses.count == 31
    assert 0.4 < fit.chi2 / fit.freedom < 1.7


def test_the_exact_hessian_is_that_of_the_closed_form(courses: Experiments, fit) -> None:
    def posterior(log_rates: Tensor) -> Tensor:
        return 0.5 * courses.residuals(closed_form(log_rates, START, courses.times[1:])).square().sum()

    expected = torch.func.hessian(posterior)(fit.log_rates)
    torch.testing.assert_close(fit.hessian, expected, rtol=1e-4, atol=0.1)
    assert (fit.fisher - expected).abs().max() > 5, "Gauss-Newton drops a visible term"
    torch.testing.assert_close(fit.covariance, torch.linalg.inv(expected), rtol=1e-3, atol=1e-8)
    assert "k1" in fit.table() and fit.identifiability.determined


def test_laplace_errors_are_those_of_refits() -> None:
    """The spread of 400 refits of the closed form, as one batch."""
    times = torch.linspace(0, 5, 9, dtype=F64)
    init = START[:1].expand(400, 3)
    clean = closed_form(TRUTH.expand(400, 2), init, times[1:])  # (k, 400, 2)
    data = clean + 0.02 * torch.randn(clean.shape, dtype=F64, generator=torch.Generator().manual_seed(2))

    def model(theta: Tensor, _: object) -> Tensor:
        return closed_form(theta, init, times[1:]).movedim(1, 0).flatten(1)

    refits = curve_fit(model, data.movedim(1, 0).flatten(1), init=TRUTH.expand(400, 2).clone(), sigma=0.02).value
    one = Experiments(init=START[:1], times=times, data=clean[:, :1], noise=NOISE)
    fit = fit_rates(CHAIN, one, start=TRUTH)
    np.testing.assert_allclose(fit.errors.numpy(), refits.std(0).numpy(), rtol=0.12)


def test_a_prior_pulls_and_narrows(courses: Experiments, fit) -> None:
    pulled = fit_rates(CHAIN, courses, start=TRUTH, prior=(torch.tensor([0.0, 0.0], dtype=F64), 0.02))
    assert (pulled.log_rates.abs() < fit.log_rates.abs()).all()
    assert (pulled.errors < fit.errors).all() and (pulled.errors < 0.02).all()


def test_what_the_data_cannot_tell_is_named() -> None:
    """At equilibrium only the ratio of both rate constants shows."""
    model = mass_action_model(reactions("A <-> B"), observed=("B",), solver=Rodas5P(rtol=1e-4, atol=1e-7))
    start = torch.tensor([[1.0, 0.0]], dtype=F64)
    late = torch.tensor([0.0, 30.0, 40.0], dtype=F64)
    rates = torch.tensor([0.3, 0.0], dtype=F64)
    courses = simulate(model, rates, start, late, Noise(absolute=1e-3), torch.Generator().manual_seed(0))
    prior = (rates, 3.0)
    found = fit_rates(model, courses, start=rates, prior=prior)
    told = found.identifiability
    assert told.sloppy.tolist() == [False, True] and not told.determined
    stiff = told.directions[:, 0] / told.directions[0, 0]
    assert float(stiff[1]) == pytest.approx(-1.0, abs=0.01)
    assert "sloppy" in told.describe()[1] and "sloppy" not in told.describe()[0]
    assert identifiability(torch.diag(torch.tensor([1.0, -1.0])), ("a", "b")).errors[1] == torch.inf


def test_stiff_rates_are_found_within_their_errors() -> None:
    example = robertson()
    stepper = Rodas5P(rtol=1e-5, atol=1e-9)
    model = mass_action_model(reactions("A -> B", "2 B -> B + C", "B + C -> A + C"), solver=stepper)
    assert example.network is not None
    truth = example.outer_params.log()
    times = torch.cat([torch.zeros(1), torch.logspace(-1, 1.5, 5)]).to(F64)
    init = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.5]], dtype=F64)
    noise = Noise(absolute=torch.tensor([0.01, 1e-6, 0.01], dtype=F64))
    courses = simulate(model, truth, init, times, noise, torch.Generator().manual_seed(0))
    found = fit_rates(model, courses, start=truth + torch.tensor([0.2, -0.2, 0.2]), change_atol=1e-3)
    assert found.status is Status.CONVERGED
    assert ((found.log_rates - truth).abs() < 4 * found.errors).all() and (found.errors < 0.3).all()


def information(times: Tensor) -> Tensor:
    """Of the closed form, for one experiment."""
    jacobian = torch.func.jacfwd(lambda p: closed_form(p, START[:1], times))(TRUTH) / 0.02
    return jacobian.flatten(0, -2).mT @ jacobian.flatten(0, -2)


def test_the_information_and_its_derivative_in_the_times_are_those_of_the_closed_form() -> None:
    times = torch.tensor([0.0, 0.7, 1.9], dtype=F64)
    found = fisher_information(CHAIN, TRUTH, START[:1], times, NOISE)
    torch.testing.assert_close(found, information(times[1:]), rtol=1e-4, atol=1e-2)
    leaf, other = times.clone().requires_grad_(), times[1:].clone().requires_grad_()
    torch.logdet(fisher_information(CHAIN, TRUTH, START[:1], leaf, NOISE)).backward()
    torch.logdet(information(other)).backward()
    assert leaf.grad is not None and other.grad is not None
    torch.testing.assert_close(leaf.grad[1:], other.grad, rtol=1e-4, atol=1e-5)


def test_a_plan_is_the_best_of_brute_force_and_tells_what_refits_show() -> None:
    window = TimeWindow(first=0.1, last=6.0, spacing=0.5)
    plan = plan_measurements(
        CHAIN, TRUTH, init=START[:1], window=window, count=2, noise=NOISE, candidates=25, max_steps=4
    )
    fine = torch.linspace(0.1, 6.0, 60, dtype=F64)
    pairs = torch.stack([torch.stack(p) for p in combinations(fine, 2) if p[1] - p[0] >= 0.5])
    values = torch.func.vmap(lambda pair: torch.logdet(information(pair)))(pairs)
    best = pairs[values.argmax()]
    assert plan.log_det[0] >= float(values.max()) - 2e-3 and plan.log_det[0] >= plan.log_det[1]
    np.testing.assert_allclose(plan.times[1:].numpy(), best.numpy(), atol=0.15)
    assert plan.times[2] - plan.times[1] >= 0.5 - 1e-9
    spreads = []
    for times in (plan.times[1:], torch.tensor([2.0, 5.0], dtype=F64)):
        init = START[:1].expand(500, 3)
        clean = closed_form(TRUTH.expand(500, 2), init, times)
        data = clean + 2e-3 * torch.randn(clean.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
        refits = curve_fit(
            lambda theta, _, t=times, i=init: closed_form(theta, i, t).movedim(1, 0).flatten(1),
            data.movedim(1, 0).flatten(1), init=TRUTH.expand(500, 2).clone(), sigma=2e-3,
            solver=GaussNewton(rtol=1e-6),
        ).value  # fmt: skip
        spreads.append(0.5 * float(torch.logdet(torch.cov(refits.mT))))
    expected = 0.5 * (plan.log_det[0] - float(torch.logdet(information(torch.tensor([2.0, 5.0], dtype=F64)))))
    assert spreads[1] - spreads[0] == pytest.approx(expected, abs=0.15) and expected > 0.3
    np.testing.assert_allclose(
        plan.errors.numpy(), np.sqrt(np.diag(np.linalg.inv(information(plan.times[1:])))), rtol=1e-2
    )


def test_amounts_and_what_is_known_enter_a_plan() -> None:
    window = TimeWindow(first=0.1, last=6.0)
    more = torch.tensor([[2.0, 0.0, 0.0]], dtype=F64)
    known = torch.diag(torch.tensor([1e8, 1.0], dtype=F64))  # k1 is known: the second alone is asked for
    plan = plan_measurements(
        CHAIN, TRUTH, init=START[:1], window=window, count=1, noise=NOISE, known=known, amounts=(START[:1], more),
        candidates=15, max_steps=5,
    )  # fmt: skip
    assert plan.init[0, 0] > 1.3 and plan.init[0, 1:].tolist() == [0.0, 0.0]
    fine = torch.linspace(0.1, 6.0, 200, dtype=F64)
    of_k2 = torch.stack([information(t.unsqueeze(0))[1, 1] for t in fine])
    assert float(plan.times[1]) == pytest.approx(float(fine[of_k2.argmax()]), abs=0.4)
    assert plan.gain > 2


def test_bad_input_is_said() -> None:
    with pytest.raises(ValueError, match="Noise: expected"):
        Noise()
    with pytest.raises(ValueError, match="mass_action_model: expected `observed`"):
        mass_action_model(reactions("A -> B"), observed=("X",))
    with pytest.raises(ValueError, match="TimeWindow: expected `first` < `last`"):
        TimeWindow(first=0.0, last=1.0, logarithmic=True)
    times = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(ValueError, match="Experiments: expected"):
        Experiments(init=START, times=times, data=torch.ones(2, 2, 2), noise=NOISE)
    with pytest.raises(ValueError, match="got none but NaN"):
        Experiments(init=START, times=times, data=torch.full((1, 2, 2), torch.nan), noise=NOISE)
    courses = Experiments(init=START, times=times, data=torch.ones(1, 2, 2, dtype=F64), noise=NOISE)
    with pytest.raises(ValueError, match="fit_rates: expected `start`"):
        fit_rates(CHAIN, courses, start=torch.zeros(3, dtype=F64))
    window = TimeWindow(first=0.0, last=1.0, spacing=0.5)
    with pytest.raises(ValueError, match="plan_measurements: expected `count`"):
        plan_measurements(CHAIN, TRUTH, init=START, window=window, count=4, noise=NOISE)
