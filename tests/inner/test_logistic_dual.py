"""The dual Newton formula against the primal one, its derivatives, batches and failing edges."""

import pytest
import torch

from sciopt import Minimize, SolveError, best_response
from sciopt.hypergradients import ClosedForm, Implicit
from sciopt.inner import LBFGS, logistic_dual, logistic_newton
from tests.helpers import randn, tol


def make(generator, *batch, n=6, d=11, dtype=torch.float64):
    features = randn(*batch, n, d, generator=generator, dtype=dtype)
    labels = (randn(*batch, n, generator=generator) > 0).to(dtype)
    return features, labels, randn(*batch, d, generator=generator, dtype=dtype).exp()


def test_equals_the_primal_newton(generator, dtype):
    features, labels, penalty = make(generator, dtype=dtype)
    weights = torch.rand(6, generator=generator).to(dtype) + 0.1
    expected = logistic_newton(features, labels, penalty, weights, num_steps=30)
    torch.testing.assert_close(logistic_dual(features, labels, penalty, weights), expected, **tol(dtype))


def test_far_start_of_separable_rows_is_a_stationary_point(generator):
    features, labels, _ = make(generator)
    features = 30 * features
    w = logistic_dual(features, labels, 1e-4)
    slopes = torch.sigmoid(features @ w) - labels
    miss = features.T @ slopes + 1e-4 * w
    assert miss.norm() <= 1e-9 * (features.abs().T @ slopes.abs()).norm()


def test_derivatives_of_first_and_second_order(generator):
    features, labels, penalty = make(generator, n=4, d=6)
    leaves = [
        t.clone().requires_grad_() for t in (features, penalty, torch.rand(4, generator=generator).double() + 0.1)
    ]

    def solve(features, penalty, weights):
        return logistic_dual(features, labels, penalty, weights)

    assert torch.autograd.gradcheck(solve, leaves)
    assert torch.autograd.gradgradcheck(solve, leaves)


def test_one_step_is_exact_to_first_order_only(generator):
    features, labels, penalty = make(generator, n=4, d=6)

    def slope_and_bend(order):
        point = penalty.clone().requires_grad_()
        value = logistic_dual(features, labels, point, order=order).square().sum()
        (slope,) = torch.autograd.grad(value, point, create_graph=True)
        return slope.detach(), torch.autograd.grad(slope.sum(), point)[0]

    (first, wrong), (second, right) = slope_and_bend(1), slope_and_bend(2)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
    assert (wrong - right).norm() > 1e-3 * right.norm()


def test_batch_equals_singles_and_vmap(generator):
    features, labels, penalty = make(generator, 3)
    found = logistic_dual(features, labels, penalty)
    singles = torch.stack([logistic_dual(features[i], labels[i], penalty[i]) for i in range(3)])
    torch.testing.assert_close(found, singles, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.vmap(logistic_dual)(features, labels, penalty), singles, rtol=1e-10, atol=1e-12)


def test_as_closed_form_it_gives_the_implicit_hypergradient(generator):
    features, labels, penalty = make(generator)

    def loss(theta, phi):
        score = features @ theta
        return (torch.nn.functional.softplus(score) - labels * score).sum() + 0.5 * (phi.exp() * theta**2).sum()

    grads = []
    for method in (ClosedForm(lambda phi: logistic_dual(features, labels, phi.exp())), Implicit()):
        phi = penalty.log().requires_grad_()
        solver = LBFGS(rtol=1e-12)
        solution = best_response(Minimize(loss), phi, init=torch.zeros_like(phi), solver=solver, hypergradient=method)
        grads.append(torch.autograd.grad(solution.value.sin().sum(), phi)[0])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


def test_spent_budget_is_told(generator):
    features, labels, penalty = make(generator)
    method = ClosedForm(lambda phi: logistic_dual(features, labels, phi, max_steps=0, order=1))
    problem = Minimize(lambda theta, phi: torch.nn.functional.softplus(features @ theta * (1 - 2 * labels)).sum()
                       + 0.5 * (phi * theta**2).sum())  # fmt: skip
    with pytest.raises(SolveError, match="STAGNATED"):
        best_response(problem, penalty, init=torch.zeros_like(penalty), hypergradient=method)


def test_bad_input_is_named(generator):
    features, labels, penalty = make(generator)
    with pytest.raises(ValueError, match="one label per row"):
        logistic_dual(features, labels[:-1], penalty)
    with pytest.raises(ValueError, match="`order`"):
        logistic_dual(features, labels, penalty, order=0)
