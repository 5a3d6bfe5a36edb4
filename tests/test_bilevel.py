"""hypergradient(): the value, its two terms, several tasks, the certificate and the cost."""

from __future__ import annotations

import math

import pytest
import torch

from sciopt import BilevelProblem, Minimize, Recurrence, best_response, hypergradient
from sciopt.hypergradients import Auto, ClosedForm, FirstOrder, HypergradientWarning, Implicit, OneStep, Unrolled
from sciopt.hypergradients.certificate import ErrorKind
from sciopt.inner import LBFGS, GradientDescent
from sciopt.linsolve import CG
from tests.helpers import randn, with_spectrum

F64 = torch.float64


@pytest.fixture
def quadratic(generator):
    """theta* = A^-1 B phi; outer 1/2 |M theta|^2 + 1/2 |phi|^2."""
    A = with_spectrum(torch.linspace(1, 50, 60, dtype=F64), generator)
    B, M, phi = randn(60, 4, generator=generator), randn(60, 60, generator=generator) / 8, randn(4, generator=generator)
    inner = Minimize(lambda t, p: 0.5 * t @ (A @ t) - t @ (B @ p))
    outer = BilevelProblem(inner=inner, outer_loss=lambda t, p: 0.5 * (M @ t).square().sum() + 0.5 * p.square().sum())
    inverse = torch.linalg.inv(A)
    return outer, phi, B.mT @ inverse @ M.mT @ M @ inverse @ B @ phi


def test_direct_and_indirect_terms(quadratic):
    problem, phi, indirect = quadratic
    hg = hypergradient(problem, phi, init=torch.zeros(60, dtype=F64), solver=LBFGS(rtol=1e-12))
    torch.testing.assert_close(hg.direct, phi)
    torch.testing.assert_close(hg.indirect, indirect, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(hg.grad, phi + indirect, rtol=1e-9, atol=1e-10)
    assert hg.status.name == "CONVERGED" and not hg.grad.requires_grad


def test_certificate_of_a_quadratic_is_a_bound_within_ten(quadratic):
    problem, phi, indirect = quadratic
    for rtol in (1e-1, 1e-3, 1e-6):
        for adjoint in (Implicit(CG(rtol=rtol)), Implicit()):
            solver = LBFGS(rtol=rtol)
            hg = hypergradient(problem, phi, init=torch.zeros(60, dtype=F64), solver=solver, hypergradient=adjoint)
            error = float((hg.grad - phi - indirect).norm())
            assert hg.certificate is not None and hg.certificate.kind is ErrorKind.BOUND
            assert error <= hg.error_bound <= 10 * error
            assert 0.99 <= float(hg.certificate.min_ritz) <= 1.5
            assert 49 <= float(hg.certificate.max_ritz) <= 50.01


def test_certificate_measures_the_bias_of_an_approximation(quadratic):
    problem, phi, indirect = quadratic
    for method in (OneStep(0.02), FirstOrder(), Unrolled(num_steps=3)):
        solver = GradientDescent(step_size=0.02, max_steps=3) if isinstance(method, Unrolled) else LBFGS()
        hg = hypergradient(problem, phi, init=torch.zeros(60, dtype=F64), solver=solver, hypergradient=method)
        error = float((hg.grad - phi - indirect).norm())
        assert error > 0.01
        assert error <= hg.error_bound <= 2 * error


def test_certificate_outside_quadratics_is_called_an_estimate_or_holds(generator):
    target = randn(5, generator=generator)
    inner = Minimize(lambda t, p: ((t - p) ** 2).sum() + (t**4).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: ((t - target) ** 2).sum())
    phi, init = randn(5, generator=generator), torch.zeros(5, dtype=F64)
    exact = hypergradient(problem, phi, init=init, solver=LBFGS(rtol=1e-13)).grad
    hg = hypergradient(problem, phi, init=init, solver=LBFGS(rtol=3e-2))
    error = float((hg.grad - exact).norm())
    assert hg.certificate is not None and hg.certificate.kind is ErrorKind.ESTIMATE
    assert 0.3 * error <= hg.error_bound <= 10 * error


def test_closed_form_is_certified_exact(generator):
    inner = Minimize(lambda t, p: ((t - 3 * p) ** 2).sum(), closed_form=lambda p: 3 * p)
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: 0.5 * t.square().sum())
    phi = randn(3, generator=generator)
    hg = hypergradient(problem, phi, init=torch.zeros(3, dtype=F64))
    torch.testing.assert_close(hg.grad, 9 * phi)
    assert hg.error_bound < 1e-12
    assert hg.notes == ["ClosedForm: the problem declares its solution as a formula"]


def test_wrong_formula_is_found_out():
    inner = Minimize(lambda t, p: ((t - 3 * p) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: t.sum())
    wrong = ClosedForm(lambda p: 2.9 * p)
    hg = hypergradient(
        problem, torch.ones(2, dtype=F64), init=torch.zeros(2, dtype=F64), hypergradient=wrong, throw=False
    )
    assert hg.status.name == "STAGNATED"


@pytest.mark.parametrize("reduction", [torch.sum, torch.mean])
def test_batch_of_tasks(generator, reduction):
    """Eq. 4-5: M tasks share phi; the hypergradient is the sum or the mean of the tasks' own."""
    targets, phi = randn(3, 4, generator=generator), randn(4, generator=generator)

    def single(i):
        inner = Minimize(lambda t, p: ((t - targets[i]) ** 2).sum() + (p.exp() * t**2).sum())
        return BilevelProblem(inner=inner, outer_loss=lambda t, p: ((t - 1) ** 2).sum())

    inner = Minimize(lambda t, p: ((t - targets) ** 2).sum(-1) + (p.exp() * t**2).sum(-1), batch_ndim=1)
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: ((t - 1) ** 2).sum(-1), reduction=reduction)
    hg = hypergradient(problem, phi, init=torch.zeros(3, 4, dtype=F64), solver=LBFGS(rtol=1e-12))
    parts = [
        hypergradient(single(i), phi, init=torch.zeros(4, dtype=F64), solver=LBFGS(rtol=1e-12)).grad for i in range(3)
    ]
    torch.testing.assert_close(hg.grad, reduction(torch.stack(parts), dim=0), rtol=1e-9, atol=1e-10)
    assert hg.inner_residual.shape == hg.adjoint_residual.shape == (3,)


def test_start_that_depends_on_the_design(generator):
    A = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    inner = Minimize(lambda t, p: 0.5 * t @ (A @ t))
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: t.sum())
    hg = hypergradient(
        problem, torch.ones(2, dtype=F64), init=lambda p: p, solver=GradientDescent(step_size=0.1),
        hypergradient=Unrolled(num_steps=2), certificate=False,
    )  # fmt: skip
    torch.testing.assert_close(hg.grad, torch.tensor([0.81, 0.64], dtype=F64))
    assert hg.certificate is None and math.isnan(hg.error_bound)


def test_cost_counts_and_dict_of_designs(generator):
    inner = Minimize(lambda t, p: ((t - p["a"]) ** 2).sum() + (t**4).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: t.sum() + p["b"])
    phi = {"a": randn(3, generator=generator), "b": torch.tensor(1.0, dtype=F64)}
    hg = hypergradient(problem, phi, init=torch.zeros(3, dtype=F64), certificate=False)
    assert set(hg.grad) == {"a", "b"} and float(hg.grad["b"]) == 1.0
    assert hg.cost["gradient"] >= int(hg.solution.num_steps) and hg.cost["linearize"] == 1
    assert hg.cost["seconds"] > 0


def test_recurrence_has_no_residual_to_certify():
    problem = BilevelProblem(inner=Recurrence(lambda t, p, d: t * p, num_steps=3), outer_loss=lambda t, p: t.sum())
    hg = hypergradient(problem, torch.tensor(2.0, dtype=F64), init=torch.tensor(1.0, dtype=F64))
    assert float(hg.grad) == 12.0 and hg.certificate is None
    assert hg.notes[0].startswith("Unrolled: a recurrence of 3 steps")


def test_long_recurrence_is_checkpointed_by_auto():
    inner = Recurrence(lambda t, p, d: t - 0.1 * (t - p), num_steps=100)
    method, reason = Auto(memory=2**20).choose(inner, size=10_000, itemsize=8)
    assert method == Unrolled(checkpoints=10) and "recording 100 steps would take" in reason


def test_the_choice_and_a_fallback_are_said(generator):
    """CG meets negative curvature at a saddle, the dense fallback solves the system, and both stand in the notes."""
    signs = torch.ones(60, dtype=F64)
    signs[7] = -1.0
    inner = Minimize(lambda t, p: 0.5 * (signs * t * t).sum() + (t * t * p).sum() * 1e-3)
    problem = BilevelProblem(inner=inner, outer_loss=lambda t, p: t.sum())
    with pytest.warns(HypergradientWarning, match="INDEFINITE"):
        hg = hypergradient(problem, torch.ones(60, dtype=F64), init=torch.zeros(60, dtype=F64), throw=False)
    assert hg.notes == [
        "Implicit: the problem has an optimality residual",
        "Cascade: CG failed in 1 of 1 problems, fell back to LU",
    ]
    assert hg.status.name == "INDEFINITE" and float(hg.adjoint_residual) < 1e-10


def test_best_response_says_what_auto_picked():
    inner = Minimize(lambda t, p: ((t - p) ** 2).sum())
    sol = best_response(inner, torch.ones(2, dtype=F64), init=torch.zeros(2, dtype=F64))
    assert sol.aux["method"] == "Implicit: the problem has an optimality residual"


def test_an_outer_loss_of_neither_one_number_nor_one_per_task_is_refused():
    """A forgotten ``.mean()`` is not summed in silence."""
    ones = torch.ones(3, dtype=F64)
    problem = BilevelProblem(inner=Minimize(lambda t, p: ((t - p) ** 2).sum()), outer_loss=lambda t, p: t**2)
    with pytest.raises(ValueError, match=r"expected `outer_loss` of shape \(\).*got \(3,\). Reduce it"):
        hypergradient(problem, ones, init=ones)
