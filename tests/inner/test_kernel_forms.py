"""Kernel closed forms against dense solves, brute force, finite differences, and the routes of the core."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, best_response, hypergradcheck
from sciopt.hypergradients import ClosedForm, Implicit
from sciopt.inner import (
    NewtonCG,
    fit_kernel,
    gradient_flow,
    kernel_ridge,
    leave_one_out,
    merge_duplicates,
    weighted_kernel_ridge,
)
from sciopt.kernels import NTK, RBF, DenseNetwork, Erf, Linear, cross_matrix, gram, kernel_operator, kernel_product
from sciopt.linsolve import CG, NystromPreconditioner, linear_solve
from sciopt.solution import Status
from tests.helpers import randn

F64 = torch.float64


@pytest.fixture
def data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = randn(12, 3, generator=generator)
    return x, torch.sin(x.sum(-1)) + 0.1 * randn(12, generator=generator)


def test_weights_enter_as_in_a_dense_solve(data, generator: torch.Generator) -> None:
    x, y = data
    K = gram(RBF(), x)
    w = torch.rand(12, generator=generator, dtype=F64)
    expected = torch.linalg.solve(K + 0.3 * torch.diag(1 / w), y)
    torch.testing.assert_close(weighted_kernel_ridge(K, y, w, 0.3), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        weighted_kernel_ridge(K, y, torch.ones_like(w), 0.3), kernel_ridge(K, y, 0.3), rtol=1e-10, atol=1e-12
    )
    w[[2, 5]] = 0.0
    keep = w > 0
    alpha = weighted_kernel_ridge(K, torch.stack([y, 2 * y], -1), w, 0.3)
    assert float(alpha[~keep].abs().max()) < 1e-15
    reduced = torch.linalg.solve(K[keep][:, keep] + 0.3 * torch.diag(1 / w[keep]), y[keep])
    torch.testing.assert_close(alpha[keep], torch.stack([reduced, 2 * reduced], -1), rtol=1e-10, atol=1e-12)
    batched = weighted_kernel_ridge(
        torch.stack([K, 2 * K]), torch.stack([y, y]), torch.stack([w, w]), torch.tensor([[0.3], [1.0]]).double()
    )
    torch.testing.assert_close(batched[1], weighted_kernel_ridge(2 * K, y, w, 1.0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_is_brute_force(data, weighted: bool, generator: torch.Generator) -> None:
    x, y = data
    K = gram(NTK(DenseNetwork(hidden_layers=2)), x)
    w = torch.rand(12, generator=generator, dtype=F64) if weighted else None
    if w is not None:
        w[3] = 0.0
    expected = []
    for i in range(12):
        rest = torch.arange(12) != i
        alpha = weighted_kernel_ridge(
            K[rest][:, rest], y[rest], torch.ones(11).double() if w is None else w[rest], 0.05
        )
        expected.append(K[i, rest] @ alpha)
    torch.testing.assert_close(leave_one_out(K, y, 0.05, w), torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_gradient_flow_is_the_integral_and_ends_in_ridge(data) -> None:
    x, y = data
    K = gram(RBF(length_scale=2.0), x)
    values, vectors = torch.linalg.eigh(K)
    for time in (0.0, 0.1, 3.0, 200.0):
        phi = torch.where(values * time > 1e-12, -torch.expm1(-values * time) / values, time)
        torch.testing.assert_close(gradient_flow(K, y, time), vectors @ (phi * (vectors.mT @ y)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient_flow(K, y, 1e4, 0.01), kernel_ridge(K, y, 0.01), rtol=1e-8, atol=1e-9)
    # discrete gradient descent with a small step, on a kernel with equal rows and equal eigenvalues
    K = torch.block_diag(torch.ones(2, 2), torch.eye(3)).double()
    target, f, step = y[:5], torch.zeros(5, dtype=F64), 1e-4
    for _ in range(10_000):
        f = f - step * K @ (f - target)
    torch.testing.assert_close(K @ gradient_flow(K, target, 1.0), f, rtol=1e-3, atol=1e-4)


def test_derivatives_of_the_forms(data, generator: torch.Generator) -> None:
    x, y = data[0][:5], data[1][:5]
    w = torch.rand(5, generator=generator, dtype=F64)
    w[1] = 0.0  # the gradient there says whether the row should come in
    ls, lam, t = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (1.2, 0.1, 0.7))
    K = gram(RBF(), x)

    def weighted(w: Tensor, lam: Tensor, ls: Tensor, y: Tensor) -> Tensor:
        return weighted_kernel_ridge(gram(RBF(length_scale=ls), x), y, w, lam)

    def left_out(w: Tensor, lam: Tensor, ls: Tensor, y: Tensor) -> Tensor:
        return leave_one_out(gram(RBF(length_scale=ls), x), y, lam, w)

    args = (w.requires_grad_(), lam, ls, y.clone().requires_grad_())
    inside = (
        w.detach().clamp(min=0.1).requires_grad_(),
        *args[1:],
    )  # finite differences must not make weights negative
    for form in (weighted, left_out):
        assert torch.autograd.gradcheck(form, inside, fast_mode=True)
        assert torch.autograd.gradgradcheck(form, inside, fast_mode=True)
        (grad,) = torch.autograd.grad(form(*args)[0], w)
        up = w.detach().clone()
        up[1] = 1e-6
        slope = (form(up, *args[1:])[0] - form(*args)[0]).detach() / 1e-6
        assert float(grad[1]) == pytest.approx(slope.item(), rel=1e-3, abs=1e-8)  # one-sided
    assert torch.autograd.gradcheck(lambda t, y: gradient_flow(K, y, t), (t, args[3]), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t, y: gradient_flow(K, y, t), (t, args[3]), fast_mode=True)
    degenerate = torch.eye(5, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda K: gradient_flow(0.5 * (K + K.mT), y, 0.7), (degenerate,), fast_mode=True)


def network(phi: dict[str, Tensor]) -> NTK:
    return NTK(
        DenseNetwork(
            hidden_layers=2, activation=Erf(), weight_variance=phi["gain"].exp(), bias_variance=phi["bias"].exp()
        )
    )


def start() -> dict[str, Tensor]:
    return {
        "gain": torch.tensor([0.1, 0.3, -0.2], dtype=F64),
        "bias": torch.tensor(-1.0, dtype=F64),
        "ridge": torch.tensor(-3.0, dtype=F64),
        "weights": torch.linspace(-1, 1, 12, dtype=F64),
    }


def outer(x: Tensor, new: Tensor, target: Tensor):
    return lambda alpha, phi: ((cross_matrix(network(phi), new, x) @ alpha - target) ** 2).mean()


def test_hypergradients_of_weights_ridge_and_kernel_parameters(data, generator: torch.Generator) -> None:
    x, y = data
    new, target = randn(6, 3, generator=generator), randn(6, generator=generator)

    def loss(alpha: Tensor, phi: dict[str, Tensor]) -> Tensor:
        f = gram(network(phi), x) @ alpha
        return (phi["weights"].exp() * (f - y) ** 2).sum() + phi["ridge"].exp() * (alpha * f).sum()

    def formula(phi: dict[str, Tensor]) -> Tensor:
        return weighted_kernel_ridge(gram(network(phi), x), y, phi["weights"].exp(), phi["ridge"].exp())

    problem = BilevelProblem(inner=Minimize(loss), outer_loss=outer(x, new, target))
    report = hypergradcheck(
        problem, start(), init=torch.zeros(12, dtype=F64), hypergradient=ClosedForm(formula), rtol=1e-6
    )
    assert report.max_error <= 1e-6


def test_matrix_free_hypergradients_agree_with_the_formula(data, generator: torch.Generator) -> None:
    x, y = data
    new, target = randn(6, 3, generator=generator), randn(6, generator=generator)

    def energy(alpha: Tensor, phi: dict[str, Tensor]) -> Tensor:
        f = kernel_product(network(phi), x, None, alpha, tile=20)
        return 0.5 * (alpha * f).sum() + 0.5 * phi["ridge"].exp() * (alpha**2).sum() - (alpha * y).sum()

    grads = []
    for method in (
        ClosedForm(lambda phi: kernel_ridge(gram(network(phi), x), y, phi["ridge"].exp())),
        Implicit(CG(rtol=1e-12, preconditioner=NystromPreconditioner(6, generator, shift=0.05))),
    ):
        phi = {k: v.requires_grad_() for k, v in start().items() if k != "weights"}
        solver = NewtonCG(rtol=1e-12)
        alpha = best_response(
            Minimize(energy), phi, init=torch.zeros(12, dtype=F64), solver=solver, hypergradient=method
        )
        grads.append(torch.autograd.grad(outer(x, new, target)(alpha.value, phi), list(phi.values())))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("dense_points", "stored_points"), [(1000, 0), (10, 0), (10, 20)], ids=["dense", "free", "stored"]
)
def test_fit_merges_duplicates_and_gives_the_posterior(
    data, dense_points: int, stored_points: int, generator: torch.Generator
) -> None:
    x, y = data
    rows = torch.tensor([*range(12), 0, 0, 7])
    w = torch.linspace(0, 1, 15, dtype=F64)  # the first row is left out, its copies are not
    values = y[rows] + 0.1 * randn(15, generator=generator)
    kernel = NTK(DenseNetwork(hidden_layers=2, bias_variance=0.1))
    fit = fit_kernel(
        kernel,
        x[rows],
        values,
        0.2,
        w,
        dense_points=dense_points,
        stored_points=stored_points,
        rtol=1e-12,
        rank=5,
        generator=generator,
    )
    assert fit.status is Status.CONVERGED and len(fit.points) == 12 and (fit.factor is None) == (dense_points == 10)
    K = gram(kernel, x[rows[1:]])
    system = K + torch.diag(0.2 / w[1:])
    new = randn(6, 3, generator=generator)
    cross = cross_matrix(kernel, new, x[rows[1:]])
    torch.testing.assert_close(fit.mean(new), cross @ torch.linalg.solve(system, values[1:]), rtol=1e-8, atol=1e-8)
    covariance = gram(kernel, new) - cross @ torch.linalg.solve(system, cross.mT)
    torch.testing.assert_close(fit.covariance(new), covariance, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.variance(new), covariance.diagonal(), rtol=1e-8, atol=1e-8)
    draws = fit.sample(new, 40_000, generator)
    assert draws.shape == (40_000, 6)
    torch.testing.assert_close(draws.mean(0), fit.mean(new), rtol=0, atol=0.02)
    torch.testing.assert_close(draws.mT.cov(), covariance, rtol=0, atol=0.03 * float(covariance.max()))


def test_float32_and_many_targets(data) -> None:
    x, y = data
    fit = fit_kernel(RBF(), x, torch.stack([y, -y], -1), 0.1)
    torch.testing.assert_close(fit.mean(x)[:, 1], -fit.mean(x)[:, 0])
    assert fit.sample(x, 3, torch.Generator().manual_seed(0)).shape == (3, 12, 2)
    single = fit_kernel(RBF(), x.float(), y.float(), 0.1, dense_points=5, rank=5)
    assert single.mean(x.float()).dtype == torch.float32 and single.num_steps > 0
    torch.testing.assert_close(single.mean(x.float()).double(), fit.mean(x)[:, 0], rtol=1e-3, atol=1e-3)


def test_float32_without_a_matrix_sums_in_double_precision(generator: torch.Generator) -> None:
    x = randn(1000, 4, generator=generator)
    y, kernel = torch.sin(x[:, 0]) + x[:, 1], NTK(DenseNetwork(hidden_layers=3))
    exact = fit_kernel(kernel, x, y, 1e-3)
    single = fit_kernel(kernel, x.float(), y.float(), 1e-3, dense_points=5, rtol=1e-5)
    assert single.status is Status.CONVERGED and single.coefficients.dtype == torch.float32
    operator = kernel_operator(kernel, x.float(), 1e-3)
    rounded = linear_solve(operator, y.float(), CG(rtol=1e-5), throw=False)
    assert int(rounded.status) != Status.CONVERGED  # sums in float32 end at their rounding
    new = randn(200, 4, generator=generator)
    error = single.mean(new.float()).double() - exact.mean(new)
    assert float(error.norm() / exact.mean(new).norm()) < 1e-3


def test_merging_keeps_the_weighted_sums() -> None:
    x = torch.tensor([[2, 0], [1, 0], [2, 0], [1, 1]], dtype=F64)
    y = torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 3.0], [5.0, 0.0]], dtype=F64)
    points, targets, mass, rows = merge_duplicates(x, y, torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=F64))
    assert points.tolist() == [[1, 0], [1, 1], [2, 0]] and mass.tolist() == [1, 1, 3]
    assert targets.tolist() == [[2, 1], [5, 0], [3, 2]] and torch.equal(points[rows], x)


def test_bad_input_says_what_was_expected(data) -> None:
    x, y = data
    K = gram(RBF(), x)
    with pytest.raises(ValueError, match="expected `weights` not negative, got -1.0"):
        weighted_kernel_ridge(K, y, -torch.ones_like(y), 0.1)
    with pytest.raises(ValueError, match="expected `penalty` > 0, got 0.0"):
        leave_one_out(K, y, 0.0)
    with pytest.raises(ValueError, match="gradient_flow: expected `time` finite and >= 0"):
        gradient_flow(K, y, -1.0)
    with pytest.raises(ValueError, match="expected a square `kernel`"):
        gradient_flow(K[:3], y, 1.0)
    with pytest.raises(ValueError, match="expected finite `targets`"):
        fit_kernel(RBF(), x, torch.full_like(y, torch.nan), 0.1)
    with pytest.raises(ValueError, match="at least one row of positive weight"):
        fit_kernel(RBF(), x, y, 0.1, torch.zeros_like(y))
    with pytest.raises(ValueError, match="whose pivot 12 is not positive|whose pivot"):
        fit_kernel(Linear(), x, y, 1e-300)
    with pytest.raises(ValueError, match=r"expected `targets` of shape \(n,\) above 5 points"):
        fit_kernel(RBF(), x, torch.stack([y, y], -1), 0.1, dense_points=5)
