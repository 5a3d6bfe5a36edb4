"""Optimization layers: closed forms, SciPy, Sinkhorn's own iteration, differences; kinks and bad input are said."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from sciopt import SolveError
from sciopt.domains.implicit.optimization import DegenerateWarning, curve_fit, entropic_transport, quadratic_program

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_projection_onto_the_simplex() -> None:
    """The closed form by sorting: x = max(v - tau, 0)."""
    v = draw(7, 5)
    leaf = v.clone().requires_grad_()
    one = torch.ones(1, 5, dtype=F64)
    eye = torch.eye(5, dtype=F64)
    x = quadratic_program(eye, -leaf, G=-eye, h=torch.zeros(5, dtype=F64), A=one, b=one[:, 0]).value
    ordered = v.sort(-1, descending=True).values
    sums = (ordered.cumsum(-1) - 1) / torch.arange(1, 6)
    tau = torch.where(ordered > sums, sums, -torch.inf).gather(-1, (ordered > sums).sum(-1, keepdim=True) - 1)
    expected = (v - tau).clamp_min(0.0)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)
    weights = draw(7, 5, seed=1)
    (x * weights).sum().backward()
    support = (expected > 0).to(F64)
    mean = (weights * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    torch.testing.assert_close(leaf.grad, support * (weights - mean), rtol=0, atol=1e-7)


def test_a_kink_is_warned_of_and_a_clear_active_set_is_not() -> None:
    eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)
    p = torch.tensor([[1.0, -2.0], [0.0, 1.0]], dtype=F64, requires_grad=True)
    with pytest.warns(DegenerateWarning, match=r"in 1 of 2 programs \(rows 1\)"):
        quadratic_program(eye, p, G=-eye, h=zero)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quadratic_program(eye, p.detach()[:1].requires_grad_(), G=-eye, h=zero)


def test_programs_say_what_is_missing() -> None:
    eye, one = torch.eye(2, dtype=F64), torch.ones(2, dtype=F64)
    with pytest.raises(ValueError, match="quadratic_program: expected `G` and `h` together"):
        quadratic_program(eye, one, G=eye)
    with pytest.raises(SolveError, match="INFEASIBLE"):
        quadratic_program(eye, one, G=torch.cat([eye, -eye]), h=-torch.ones(4, dtype=F64))


def test_redundant_equality_rows_have_a_value_and_no_silent_derivative() -> None:
    """x = p shifted onto the line x1 + x2 = 1, which two equal rows state; their multipliers are not unique."""
    eye, one = torch.eye(2, dtype=F64), torch.ones(2, 2, dtype=F64)
    p = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    x = quadratic_program(eye, p, A=one, b=one[0]).value
    torch.testing.assert_close(x, torch.tensor([0.25, 0.75], dtype=F64), rtol=0, atol=1e-8)
    with pytest.raises(SolveError, match="SINGULAR"):
        x[0].backward()
    x = quadratic_program(eye, p, A=one[:1], b=one[0, :1]).value
    (grad,) = torch.autograd.grad(x[0], p)
    torch.testing.assert_close(grad, torch.tensor([-0.5, 0.5], dtype=F64), rtol=0, atol=1e-8)


def decay(theta: Tensor, _: object = None) -> Tensor:
    t = torch.linspace(0, 3, 12, dtype=F64)
    return theta[..., :1] * torch.exp(-theta[..., 1:2] * t) + theta[..., 2:3]


def test_fits_are_those_of_scipy_with_their_covariance() -> None:
    truth = torch.tensor([[2.0, 1.0, 0.3], [1.0, 2.0, -0.2], [3.0, 0.7, 0.0]], dtype=F64)
    sigma = torch.linspace(0.02, 0.05, 12, dtype=F64)
    data = decay(truth) + sigma * draw(3, 12)
    fit = curve_fit(decay, data, init=torch.ones(3, 3, dtype=F64), sigma=sigma)
    t = np.linspace(0, 3, 12)
    for row in range(3):
        value, covariance = scipy.optimize.curve_fit(
            lambda t, a, k, c: a * np.exp(-k * t) + c, t, data[row].numpy(), p0=[1, 1, 1], sigma=sigma.numpy(),
            absolute_sigma=True, xtol=1e-14, ftol=1e-14, gtol=1e-14,
        )  # fmt: skip
        np.testing.assert_allclose(fit.value[row].numpy(), value, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(fit.covariance[row].numpy(), covariance, rtol=1e-5)


@pytest.mark.parametrize("name", ["targets", "sigma"])
def test_gradients_of_a_fit_agree_with_differences(name: str) -> None:
    """With residuals that do not vanish, so that Gauss-Newton's approximation would be seen."""
    data = {
        "targets": decay(torch.tensor([[2.0, 1.0, 0.3]], dtype=F64)) + 0.2 * draw(1, 12),
        "sigma": 1 + draw(12) ** 2,
    }

    def outcome(data: dict[str, Tensor]) -> Tensor:
        start = torch.tensor([[2.0, 1.0, 0.3]], dtype=F64)
        return curve_fit(decay, data["targets"], init=start, sigma=data["sigma"]).value.square().sum()

    leaf = data[name].clone().requires_grad_()
    outcome({**data, name: leaf}).backward()
    assert leaf.grad is not None
    direction = draw(*leaf.shape, seed=5)
    step = 1e-4
    forward, back = (float(outcome({**data, name: data[name] + s * direction})) for s in (step, -step))
    assert float((leaf.grad * direction).sum()) == pytest.approx((forward - back) / (2 * step), rel=1e-5)


def marginals(batch: int, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    cost = torch.cdist(draw(batch, n, 2), draw(batch, m, 2, seed=1)) ** 2
    return cost, torch.softmax(draw(batch, n, seed=2), -1), torch.softmax(draw(batch, m, seed=3), -1)


def test_two_points_have_a_closed_form() -> None:
    """The odds of staying are exp(d / eps) for symmetric costs d."""
    half = torch.full((2,), 0.5, dtype=F64)
    for epsilon in (2.0, 0.3, 0.02):
        plan = entropic_transport(1 - torch.eye(2, dtype=F64), half, half, epsilon).plan
        assert float(plan[0, 1]) == pytest.approx(0.5 / (1 + math.exp(1 / epsilon)), rel=1e-9, abs=1e-13)


def test_plans_are_those_of_sinkhorn_iteration() -> None:
    cost, source, target = marginals(3, 12, 15)
    found = entropic_transport(cost, source, target, 0.3)
    f, g = torch.zeros_like(source), torch.zeros_like(target)
    for _ in range(3000):
        g = -0.3 * torch.logsumexp(source.log().unsqueeze(-1) + (f.unsqueeze(-1) - cost) / 0.3, -2)
        f = -0.3 * torch.logsumexp(target.log().unsqueeze(-2) + (g.unsqueeze(-2) - cost) / 0.3, -1)
    plan = source.unsqueeze(-1) * target.unsqueeze(-2) * ((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / 0.3).exp()
    torch.testing.assert_close(found.plan, plan, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(found.plan.sum(-1), source, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.plan.sum(-2), target, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.source_potential, f - f.mean(-1, keepdim=True), rtol=1e-7, atol=1e-8)


def test_small_epsilon_comes_to_linear_programming() -> None:
    cost, source, target = (v[0] for v in marginals(1, 6, 7))
    found = entropic_transport(cost, source, target, 2e-3)
    rows, columns = np.kron(np.eye(6), np.ones(7)), np.kron(np.ones(6), np.eye(7))
    bounds = np.concatenate([source.numpy(), target.numpy()])
    exact = scipy.optimize.linprog(cost.numpy().ravel(), A_eq=np.concatenate([rows, columns]), b_eq=bounds).fun
    assert exact <= float(found.cost) + 1e-9
    assert float(found.cost) == pytest.approx(exact, rel=5e-3)


def test_the_regularised_cost_has_the_plan_as_gradient() -> None:
    """Danskin: d/dC of the optimal value is P; the masses' gradients are the potentials, up to a constant."""
    cost, source, target = marginals(2, 5, 6)
    leaves = [t.clone().requires_grad_() for t in (cost, source, target)]
    found = entropic_transport(leaves[0], leaves[1], leaves[2], 0.4)
    relative = found.plan / (leaves[1].unsqueeze(-1) * leaves[2].unsqueeze(-2))
    value = (found.cost + 0.4 * (found.plan * relative.log()).sum((-2, -1))).sum()
    value.backward()
    grads = [leaf.grad for leaf in leaves]
    assert all(g is not None for g in grads)
    torch.testing.assert_close(grads[0], found.plan.detach(), rtol=1e-6, atol=1e-9)
    for grad, potential in ((grads[1], found.source_potential), (grads[2], found.target_potential)):
        assert grad is not None
        gap = grad - potential.detach()
        torch.testing.assert_close(gap - gap.mean(-1, keepdim=True), torch.zeros_like(gap), rtol=0, atol=1e-6)


def test_derivatives_of_plans_to_second_order() -> None:
    cost, source, target = (v[0] for v in marginals(1, 3, 4))
    epsilon = torch.tensor(0.5, dtype=F64)

    def plan(cost: Tensor, raw: Tensor, epsilon: Tensor) -> Tensor:
        return entropic_transport(cost, raw / raw.sum(), target, epsilon).plan

    inputs = tuple(t.clone().requires_grad_() for t in (cost, source, epsilon))
    assert torch.autograd.gradcheck(plan, inputs, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(plan, inputs, nondet_tol=1e-10)
    costs = torch.stack([cost, 2 * cost])
    together = torch.func.vmap(lambda c: plan(c, source, epsilon))(costs)
    torch.testing.assert_close(together, torch.stack([plan(c, source, epsilon) for c in costs]), rtol=1e-8, atol=1e-10)


def test_transport_refuses_what_has_no_plan() -> None:
    cost, source, target = marginals(2, 3, 4)
    for bad, message in (
        ((cost, source, 2 * target, 0.1), "of the same sum"),
        ((cost, source, target, 0.0), "`epsilon` > 0"),
        ((cost, source.clone().fill_(0.0), target, 0.1), "positive masses"),
        ((cost[:1], source, target, 0.1), "expected `cost`"),
    ):
        with pytest.raises(ValueError, match=message):
            entropic_transport(*bad)
