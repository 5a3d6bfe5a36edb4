"""Closed forms against optimality conditions, each other, loops over the batch, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt.inner import kernel_ridge, logistic_newton, ridge, ridge_dual, ridge_primal, weighted_least_squares
from tests.helpers import randn


@pytest.fixture
def data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return randn(3, 7, 4, generator=generator), randn(3, 7, generator=generator)


def stationarity(X: Tensor, y: Tensor, penalty: Tensor, w: Tensor) -> Tensor:
    return (X.mT @ ((X @ w.unsqueeze(-1)).squeeze(-1) - y).unsqueeze(-1)).squeeze(-1) + penalty * w


@pytest.mark.parametrize("solver", [ridge, ridge_primal, ridge_dual])
def test_ridge_is_stationary_with_a_penalty_for_each_weight(solver, data, dtype: torch.dtype) -> None:
    X, y = data[0].to(dtype), data[1].to(dtype)
    for penalty in (torch.tensor(0.3), torch.tensor([[0.1], [1.0], [10.0]]), torch.tensor([0.1, 0.2, 3.0, 40.0])):
        penalty = penalty.to(dtype)
        w = solver(X, y, penalty)
        assert w.shape == (3, 4) and w.dtype == dtype
        limit = 1e-11 if dtype == torch.float64 else 1e-3
        assert float(stationarity(X, y, penalty, w).abs().max()) < limit


def test_primal_and_dual_agree_and_the_smaller_system_is_taken(generator: torch.Generator) -> None:
    for n, d in ((5, 9), (9, 5)):
        X, y = randn(n, d, generator=generator), randn(n, 2, generator=generator)
        primal, dual = ridge_primal(X, y, 0.1), ridge_dual(X, y, 0.1)
        torch.testing.assert_close(primal, dual, rtol=1e-10, atol=1e-11)
        assert torch.equal(ridge(X, y, 0.1), primal if d <= n else dual)
    assert torch.isfinite(ridge_dual(randn(3, 8, generator=generator), torch.ones(3).double(), 1e-12)).all()


def test_kernel_ridge_predicts_as_dual_ridge(data) -> None:
    X, y = data
    alpha = kernel_ridge(X @ X.mT, y, 0.5)
    torch.testing.assert_close((X.mT @ alpha.unsqueeze(-1)).squeeze(-1), ridge(X, y, 0.5), rtol=1e-10, atol=1e-11)


def test_weights_count_rows_with_multiplicity(data) -> None:
    X, y = data[0][0], data[1][0]
    counts = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    repeated = counts.long()
    expected = ridge(X.repeat_interleave(repeated, 0), y.repeat_interleave(repeated), 0.2)
    torch.testing.assert_close(weighted_least_squares(X, y, counts, 0.2), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("n", "d"), [(20, 4), (6, 12)])
def test_logistic_newton_is_stationary(n: int, d: int, generator: torch.Generator) -> None:
    X, labels = 3 * randn(2, n, d, generator=generator), (randn(2, n, generator=generator) > 0).double()
    weights = randn(2, n, generator=generator).abs()
    penalty = torch.linspace(0.1, 1, d, dtype=torch.float64)
    w = logistic_newton(X, labels, penalty, weights)
    p = torch.sigmoid((X @ w.unsqueeze(-1)).squeeze(-1))
    slope = (X.mT @ (weights * (p - labels)).unsqueeze(-1)).squeeze(-1) + penalty * w
    assert float(slope.abs().max()) < 1e-10


def test_logistic_newton_from_a_far_start_does_not_overshoot(generator: torch.Generator) -> None:
    X, labels = randn(30, 3, generator=generator), (randn(30, generator=generator) > 0).double()
    far = torch.full((3,), 8.0, dtype=torch.float64)
    w = logistic_newton(X, labels, 0.1, init=far, num_steps=30)
    torch.testing.assert_close(w, logistic_newton(X, labels, 0.1), rtol=1e-9, atol=1e-10)


def functions():
    return {
        "ridge_primal": lambda X, y, p: ridge_primal(X, y, p.exp()),
        "ridge_dual": lambda X, y, p: ridge_dual(X, y, p.exp()),
        "weighted": lambda X, y, p: weighted_least_squares(X, y, torch.sigmoid(y), p.exp()),
        "kernel": lambda X, y, p: kernel_ridge(X @ X.mT, y, p[..., :1].exp()),
        "logistic": lambda X, y, p: logistic_newton(X, torch.sigmoid(y), p.exp(), num_steps=6),
        "logistic_dual": lambda X, y, p: logistic_newton(
            X[..., :3, :], torch.sigmoid(y[..., :3]), p.exp(), num_steps=6
        ),
    }


@pytest.mark.parametrize("name", functions())
def test_first_and_second_derivatives_pass_gradcheck(name: str, generator: torch.Generator) -> None:
    function = functions()[name]
    X, y, p = (randn(*s, generator=generator).requires_grad_() for s in ((5, 4), (5,), (4,)))
    assert torch.autograd.gradcheck(function, (X, y, p))
    assert torch.autograd.gradgradcheck(function, (X, y, p), atol=1e-4)


@pytest.mark.parametrize("name", functions())
def test_batched_equals_looped_and_vmapped(name: str, data) -> None:
    function = functions()[name]
    X, y = data
    p = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    batched = function(X, y, p)
    for row in range(3):
        torch.testing.assert_close(batched[row], function(X[row], y[row], p[row]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(function)(X, y, p), batched, rtol=1e-11, atol=1e-12)
    jacobian = torch.func.vmap(torch.func.jacrev(function, argnums=2))(X, y, p)
    assert torch.isfinite(jacobian).all()


def test_rank_deficient_data_without_penalty_is_refused_by_name() -> None:
    X = torch.ones(4, 2, dtype=torch.float64)
    y = torch.ones(4, dtype=torch.float64)
    for call in (lambda: ridge_primal(X, y, 0.0), lambda: weighted_least_squares(X, y, torch.ones_like(y))):
        with pytest.raises(ValueError, match="expected a positive definite system, got a singular one.*`penalty`"):
            call()
    with pytest.raises(ValueError, match="kernel_ridge: expected a positive definite system"):
        kernel_ridge(torch.ones(4, 4, dtype=torch.float64), y, 0.0)
    badly_scaled = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    torch.testing.assert_close(
        ridge_primal(badly_scaled, torch.tensor([1.0, 1e-9]).double(), 0.0), torch.ones(2).double()
    )


def test_shapes_that_do_not_fit_are_named() -> None:
    X, y = torch.ones(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="ridge_primal: expected `targets` of shape"):
        ridge(X, y[:3], 1.0)
    with pytest.raises(ValueError, match="ridge_primal: expected `penalty` to be a scalar or to have 2 entries"):
        ridge(X, y, torch.ones(3))
    with pytest.raises(ValueError, match="weighted_least_squares: expected `weights` of shape"):
        weighted_least_squares(X, y, y[:2])
    with pytest.raises(ValueError, match="kernel_ridge: expected a square `kernel`"):
        kernel_ridge(X, y, 1.0)
    with pytest.raises(TypeError, match="expected `targets` all in torch.float64"):
        ridge(X, y.float(), 1.0)
    with pytest.raises(ValueError, match="expected `num_steps` >= 1"):
        logistic_newton(X, y, 1.0, num_steps=0)
