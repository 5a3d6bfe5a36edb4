"""Projections: KKT conditions, SciPy, brute force, derivatives, infeasible rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.autograd import gradcheck, gradgradcheck

from sciopt.constraints import project_box, project_l1_ball, project_simplex, project_volume
from tests.constraints.helpers import F64, normal

numbers = st.floats(-5, 5, allow_nan=False, width=32)
vectors = st.lists(numbers, min_size=1, max_size=7)
fast = settings(max_examples=60, deadline=None, derandomize=True)


def brute_force(x, volume, lower, upper, weights):
    """Smallest distance over every choice of active bounds."""
    best, where = np.inf, None
    for choice in product((0, 1, 2), repeat=len(x)):
        choice = np.array(choice)
        y = np.where(choice == 1, lower, np.where(choice == 2, upper, x))
        free = choice == 0
        norm = (weights[free] ** 2).sum()
        gap = weights @ y - volume
        if norm > 0:
            y = np.where(free, x - gap / norm * weights, y)
        elif abs(gap) > 1e-9:
            continue
        if (y < lower - 1e-9).any() or (y > upper + 1e-9).any():
            continue
        distance = ((y - x) ** 2).sum()
        if distance < best:
            best, where = distance, y
    return where


@fast
@given(
    vectors, st.floats(0, 1), st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 1.0, 3.0]), min_size=7, max_size=7)
)
def test_volume_projection_satisfies_its_kkt_conditions(entries, fraction, weights):
    x = torch.tensor(entries, dtype=F64)
    w = torch.tensor(weights[: len(entries)], dtype=F64)
    lower, upper = -torch.ones_like(x), 0.5 * torch.ones_like(x)
    ends = torch.stack([w * lower, w * upper])
    goal = ends.amin(0).sum() * (1 - fraction) + ends.amax(0).sum() * fraction
    y = project_volume(x, goal, lower=lower, upper=upper, weights=w)
    assert bool((y >= lower).all() and (y <= upper).all())
    torch.testing.assert_close((w * y).sum(), goal, rtol=0, atol=1e-12)
    # y is the projection iff (x - y).(z - y) <= 0 for every feasible z; a multiplier tau shows it: y = clip(x - tau w).
    taus = ((x - y) / w)[(w != 0) & (y > lower) & (y < upper)]
    if taus.numel():
        torch.testing.assert_close(y, project_box(x - taus[0] * w, -1.0, 0.5), rtol=0, atol=1e-9)
    else:
        candidates = torch.cat(
            [(x - lower)[w != 0] / w[w != 0], (x - upper)[w != 0] / w[w != 0], torch.zeros(1, dtype=F64)]
        )
        clipped = project_box(x - candidates.unsqueeze(-1) * w, -1.0, 0.5)
        assert float((clipped - y).abs().amax(-1).min()) < 1e-9


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(numbers, min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_volume_projection_equals_brute_force(entries, fraction):
    x = np.array(entries)
    w = np.array([1.0, -2.0, 0.5, 3.0, 1.0])[: len(x)]
    lower, upper = np.zeros_like(x) - 0.5, np.ones_like(x)
    goal = (1 - fraction) * np.minimum(w * lower, w * upper).sum() + fraction * np.maximum(w * lower, w * upper).sum()
    expected = brute_force(x, goal, lower, upper, w)
    got = project_volume(*(torch.tensor(v) for v in (x, goal)), lower=-0.5, upper=1.0, weights=torch.tensor(w))
    assert expected is not None
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)


@fast
@given(vectors, st.floats(0.1, 4))
def test_simplex_and_l1_ball_properties(entries, radius):
    x = torch.tensor(entries, dtype=F64)
    y = project_simplex(x, radius)
    torch.testing.assert_close(y.sum(), torch.tensor(radius, dtype=F64), rtol=1e-12, atol=1e-12)
    shift = (x - y)[y > 0]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-10)
    assert bool((y >= 0).all()) and bool(((x - shift[0])[y == 0] <= 1e-10).all())
    torch.testing.assert_close(project_simplex(y, radius), y, rtol=0, atol=1e-12)

    z = project_l1_ball(x, radius)
    assert float(z.abs().sum()) <= radius * (1 + 1e-12)
    if float(x.abs().sum()) <= radius:
        assert torch.equal(z, x)
    else:
        torch.testing.assert_close(z, x.sign() * project_simplex(x.abs(), radius))


@pytest.mark.parametrize("equality", [True, False])
def test_agrees_with_slsqp(equality):
    x = normal(6, seed=3).numpy()
    w = np.array([1.0, 2.0, 0.5, 1.0, 1.5, 1.0])
    for goal in (0.4, 2.0, 6.0):
        sign = -1.0 if not equality else 1.0
        constraint = {"type": "eq" if equality else "ineq", "fun": lambda y, s=sign, g=goal: s * (w @ y - g)}
        result = minimize(
            lambda y: 0.5 * ((y - x) ** 2).sum(),
            np.full(6, 0.3),
            jac=lambda y: y - x,
            bounds=[(0, 1)] * 6,
            constraints=constraint,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 200},
        )
        got = project_volume(torch.tensor(x), goal, weights=torch.tensor(w), equality=equality)
        np.testing.assert_allclose(got.numpy(), result.x, atol=1e-6)


def test_capped_simplex_known_answers():
    x = torch.tensor([[3.0, 1.0, 0.0], [0.2, 0.2, 0.2]], dtype=F64)
    expected = torch.tensor([[0.6, 0.4, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    torch.testing.assert_close(project_simplex(x, upper=0.6), expected)
    assert project_simplex(x, 2.0, upper=0.6).isnan().all()
    torch.testing.assert_close(project_simplex(x, 3 * 0.6, upper=0.6), torch.full((2, 3), 0.6, dtype=F64))
    torch.testing.assert_close(project_simplex(x, 0.0), torch.zeros(2, 3, dtype=F64))


@pytest.mark.parametrize("equality", [True, False])
def test_derivatives_in_every_argument(equality):
    x = torch.tensor([[0.3, 0.8, -1.0, 0.9, 1.4], [0.1, 0.1, 0.2, -0.1, 0.3]], dtype=F64, requires_grad=True)
    goal = torch.tensor([1.2, 0.7], dtype=F64, requires_grad=True)
    lower = torch.full((5,), -0.3, dtype=F64, requires_grad=True)
    upper = torch.linspace(0.6, 1.1, 5, dtype=F64).requires_grad_()
    weights = torch.tensor([1.0, 2.0, -0.5, 1.5, 0.0], dtype=F64, requires_grad=True)

    def value(x, goal, lower, upper, weights):
        return project_volume(x, goal, lower=lower, upper=upper, weights=weights, equality=equality)

    y = value(x, goal, lower, upper, weights)
    assert bool((y == lower).any() and (y == upper).any() and ((y > lower) & (y < upper)).any())
    leaves = (x, goal, lower, upper, weights)
    assert gradcheck(value, leaves, check_forward_ad=True)
    assert gradgradcheck(value, leaves)


def test_derivatives_of_the_other_projections():
    x = (1.5 * normal(2, 6, seed=4)).requires_grad_()
    radius = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    assert gradcheck(project_simplex, (x, radius), check_forward_ad=True)
    assert gradcheck(project_l1_ball, (x, radius), check_forward_ad=True)
    bounds = (
        torch.full((6,), -0.5, dtype=F64, requires_grad=True),
        torch.full((6,), 0.4, dtype=F64, requires_grad=True),
    )
    assert gradcheck(project_box, (x, *bounds), check_forward_ad=True)
    inside = torch.tensor([0.2, 0.0, -0.3], dtype=F64)
    torch.testing.assert_close(torch.func.jacrev(project_l1_ball)(inside), torch.eye(3, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_equals_loop_and_vmap(dtype):
    x, goal = normal(3, 2, 8, dtype=dtype), torch.tensor([1.0, 3.0], dtype=dtype)
    batched = project_volume(x, goal)
    assert batched.dtype == dtype
    torch.testing.assert_close(batched.sum(-1), goal.expand(3, 2))
    for i, j in product(range(3), range(2)):
        torch.testing.assert_close(batched[i, j], project_volume(x[i, j], goal[j]))
    torch.testing.assert_close(
        torch.vmap(project_volume)(x, goal[:1].expand(3)[:, None].expand(3, 2)), project_volume(x, 1.0)
    )
    torch.testing.assert_close(project_volume(x[0, 0], goal), torch.stack([project_volume(x[0, 0], g) for g in goal]))


def test_hostile_rows_are_nan_and_harm_no_other():
    x = normal(4, 5)
    x[1, 2] = torch.nan
    y = project_volume(x, torch.tensor([2.0, 2.0, 9.0, -1.0], dtype=F64))
    assert y.isnan().all(-1).tolist() == [False, True, True, True]
    slack = project_volume(x, 9.0, equality=False)
    torch.testing.assert_close(slack[2], x[2].clamp(0.0, 1.0))
    assert project_box(x[0], 1.0, 0.0).isnan().all()
    grad = torch.func.grad(lambda x: project_volume(x, 2.0)[0].sum())(x)
    assert grad[0].isfinite().all()


def test_ties_extremes_and_infinite_bounds():
    same = torch.full((5,), 0.3, dtype=F64)
    torch.testing.assert_close(project_volume(same, 2.0), torch.full((5,), 0.4, dtype=F64))
    assert torch.equal(project_volume(same, 5.0), torch.ones(5, dtype=F64))
    assert torch.equal(project_volume(same, 0.0), torch.zeros(5, dtype=F64))
    plane = project_volume(same, 3.0, lower=-torch.inf, upper=torch.inf)
    torch.testing.assert_close(plane, torch.full((5,), 0.6, dtype=F64))
    large = 1e6 * normal(1000)
    torch.testing.assert_close(project_simplex(large).sum(), torch.tensor(1.0, dtype=F64), rtol=1e-9, atol=0)
