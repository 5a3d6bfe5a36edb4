"""The error bound over random quadratics, at reduced size (`make validate` runs the full one), and where it must not bound."""

import math

import pytest
import torch

from sciopt import BilevelProblem, Minimize, hypergradient
from sciopt.hypergradients import Implicit, OneStep, Unrolled
from sciopt.hypergradients.certificate import ErrorKind
from sciopt.inner import LBFGS, GradientDescent
from sciopt.linsolve import CG
from tests.benchmarks.quadratics import random_quadratics, trials
from tests.benchmarks.validate_hypergradients import METHODS, against_differences


def test_bound_holds_on_all_quadratics_and_is_within_ten_times_on_most():
    found = trials(40, sizes=(5, 100), seed=7)
    assert all(t.result.error_bound >= t.error for t in found)
    assert sum(t.tightness <= 10 for t in found) >= 0.9 * len(found)
    assert all(t.result.certificate is not None and t.result.certificate.kind is ErrorKind.BOUND for t in found)
    errors = [t.error for t in found]
    assert min(errors) < 1e-5 and max(errors) > 1e-3  # both ends of the tolerances were tried


@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-6])
def test_bound_follows_a_loose_adjoint(rtol):
    case = next(random_quadratics(1, (60, 60), seed=3))
    result = hypergradient(
        BilevelProblem(inner=Minimize(case.inner_loss), outer_loss=case.outer_loss),
        case.phi,
        init=torch.zeros_like(case.phi),
        solver=LBFGS(rtol=1e-12),
        hypergradient=Implicit(CG(rtol=rtol)),
    )
    error = float((result.grad - case.exact()).norm())
    assert error <= result.error_bound <= 10 * error


@pytest.mark.parametrize("method", [OneStep(), Unrolled(num_steps=3)])
def test_bound_covers_biased_methods(method):
    case = next(random_quadratics(1, (20, 20), seed=5))
    result = hypergradient(
        BilevelProblem(inner=Minimize(case.inner_loss), outer_loss=case.outer_loss),
        case.phi,
        init=torch.zeros_like(case.phi),
        solver=GradientDescent(step_size=0.3, max_steps=3),
        hypergradient=method,
        throw=False,
    )
    error = float((result.grad - case.exact()).norm())
    assert error <= result.error_bound <= 10 * error


def test_elsewhere_it_is_called_an_estimate():
    inner = Minimize(lambda theta, phi: torch.cosh(theta - phi).sum() + (theta**4).sum())
    result = hypergradient(
        BilevelProblem(inner=inner, outer_loss=lambda theta, phi: (theta**2).sum()),
        torch.ones(60, dtype=torch.float64),
        init=torch.zeros(60, dtype=torch.float64),
        solver=LBFGS(rtol=1e-2),
        hypergradient=Implicit(),
    )
    assert result.certificate is not None and result.certificate.kind is ErrorKind.ESTIMATE
    assert math.isfinite(result.error_bound) and result.error_bound > 0


@pytest.mark.parametrize("index", range(len(METHODS)))
def test_hypergradient_equals_a_finite_difference(index):
    assert against_differences(index + 20) < 1e-8
