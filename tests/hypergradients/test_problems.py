"""Every problem class: its hypergradient against a truth that does not know the core, first and second order, batched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from sciopt import Constrained, Eigen, FixedPoint, LeastSquares, Minimize, RootFind, best_response
from sciopt.inner import Anderson, Broyden, GaussNewton, Newton, NewtonCG, ProximalGradient
from tests.helpers import randn, with_spectrum

F64 = torch.float64


def check(h, truth, phi: Tensor, *, second: bool = True, rtol: float = 1e-8) -> None:
    """h through the core equals an independent truth in value, gradient and Hessian, alone and under vmap."""
    torch.testing.assert_close(h(phi), truth(phi), rtol=rtol, atol=1e-10)
    torch.testing.assert_close(grad(h)(phi), grad(truth)(phi), rtol=rtol, atol=1e-9)
    p = phi.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(h(p), p)[0], grad(truth)(phi), rtol=rtol, atol=1e-9)
    if second:
        curve = jacrev(grad(truth))(phi)
        torch.testing.assert_close(jacrev(grad(h))(phi), curve, rtol=10 * rtol, atol=1e-8)
        torch.testing.assert_close(jacfwd(grad(h))(phi), curve, rtol=10 * rtol, atol=1e-8)
    phis = torch.stack([phi, 1.01 * phi])
    torch.testing.assert_close(vmap(grad(h))(phis), torch.stack([grad(truth)(q) for q in phis]), rtol=rtol, atol=1e-9)


def test_least_squares_with_gauss_newton(generator):
    """Exponential fit y = a exp(-b x) through exact data of (a, b) = phi: theta* = phi."""
    x = torch.linspace(0, 2, 12, dtype=F64)
    w = randn(2, generator=generator)
    problem = LeastSquares(lambda t, p: t[0] * torch.exp(-t[1] * x) - p[0] * torch.exp(-p[1] * x))
    start = torch.tensor([1.0, 1.0], dtype=F64)

    def h(phi):
        sol = best_response(problem, phi, init=start, solver=GaussNewton(rtol=1e-12))
        return (w * sol.value).sum() + sol.value.prod()

    check(h, lambda phi: (w * phi).sum() + phi.prod(), torch.tensor([1.5, 0.7], dtype=F64))


@pytest.mark.parametrize("solver", [Newton(rtol=1e-13), Broyden(rtol=1e-12)], ids=["Newton", "Broyden"])
def test_root_of_a_system_without_a_potential(solver):
    """t0^3 = p0, t1 = p1 + t0: an unsymmetric Jacobian with a closed solution."""
    problem = RootFind(lambda t, p: torch.stack([t[0] ** 3 - p[0], t[1] - p[1] - t[0]]))

    def h(phi):
        t = best_response(problem, phi, init=torch.ones(2, dtype=F64), solver=solver).value
        return t[0] * t[1]

    check(h, lambda p: p[0] ** (1 / 3) * (p[1] + p[0] ** (1 / 3)), torch.tensor([1.7, 0.4], dtype=F64))


def test_scalar_root():
    problem = RootFind(lambda t, p: t**2 - p)

    def h(phi):
        return best_response(problem, phi, init=torch.tensor(1.0, dtype=F64), solver=Newton(rtol=1e-14)).value

    check(h, torch.sqrt, torch.tensor(2.0, dtype=F64))


def test_fixed_point_with_anderson():
    problem = FixedPoint(lambda t, p: torch.cos(p * t))

    def truth(p):
        t = torch.full_like(p, 0.7)
        for _ in range(6):
            t = t - (t - torch.cos(p * t)) / (1 + p * torch.sin(p * t))
        return t.sum()

    def h(phi):
        return best_response(problem, phi, init=torch.ones(3, dtype=F64), solver=Anderson(rtol=1e-13)).value.sum()

    check(h, truth, torch.tensor([0.5, 0.9, 1.2], dtype=F64))


def test_box_moves_only_what_is_free(generator):
    A = with_spectrum(torch.linspace(1, 4, 5, dtype=F64), generator)
    c = randn(5, generator=generator)

    def h(phi):
        problem = Minimize(lambda t, p: 0.5 * t @ (A @ t) - t @ p, box=(0.0, None))
        t = best_response(
            problem, phi, init=torch.ones(5, dtype=F64), solver=ProximalGradient(rtol=1e-13, max_steps=4000)
        )
        return (c * t.value).sum() + t.value.square().sum()

    phi = 2 * randn(5, generator=generator)
    problem = Minimize(lambda t, p: 0.5 * t @ (A @ t) - t @ p, box=(0.0, None))
    found = best_response(
        problem, phi, init=torch.ones(5, dtype=F64), solver=ProximalGradient(rtol=1e-13, max_steps=4000)
    )
    free = found.value > 1e-6
    assert 0 < int(free.sum()) < 5

    def truth(p):
        inverse = torch.linalg.inv(A[free][:, free])
        t = torch.zeros(5, dtype=p.dtype).index_put((torch.nonzero(free)[:, 0],), inverse @ p[free])
        return (c * t).sum() + t.square().sum()

    check(h, truth, phi, rtol=1e-7)


def test_bounds_that_depend_on_the_outer_variable():
    problem = Minimize(lambda t, p: ((t - 3.0) ** 2).sum(), box=lambda p: (None, p))

    def h(phi):
        return best_response(problem, phi, init=torch.zeros(2, dtype=F64)).value.square().sum()

    phi = torch.tensor([1.0, 5.0], dtype=F64)  # the first bound is active, the second is not
    torch.testing.assert_close(grad(h)(phi), torch.tensor([2.0, 0.0], dtype=F64), rtol=1e-8, atol=1e-9)


def test_lasso_by_its_active_set(generator):
    X, y = randn(30, 8, generator=generator), randn(30, generator=generator)

    def soft(t, step, p):
        return torch.sign(t) * torch.relu(t.abs() - step * p)

    problem = Minimize(lambda t, p: 0.5 * (X @ t - y).square().sum(), prox=soft)
    solver = ProximalGradient(rtol=1e-13, max_steps=4000)

    def h(phi):
        return best_response(problem, phi, init=torch.zeros(8, dtype=F64), solver=solver).value.square().sum()

    phi = torch.tensor(3.0, dtype=F64)
    t = best_response(problem, phi, init=torch.zeros(8, dtype=F64), solver=solver).value
    active = t.abs() > 1e-7
    assert 0 < int(active.sum()) < 8
    gram, sign = X[:, active].mT @ X[:, active], torch.sign(t[active])

    def truth(p):
        return (torch.linalg.inv(gram) @ (X[:, active].mT @ y - p * sign)).square().sum()

    check(h, truth, phi, rtol=1e-7)


def test_equality_and_inequality_constraints():
    """Projection onto the simplex: with the active set known, t = p + (1 - sum p_free) / |free| on the free entries."""
    problem = Constrained(
        lambda t, p: 0.5 * (t - p).square().sum(),
        equality=lambda t, p: t.sum(-1, keepdim=True) - 1,
        inequality=lambda t, p: -t,
    )
    phi = torch.tensor([0.9, 0.5, -0.8, 0.1], dtype=F64)
    w = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)
    start = torch.full((4,), 0.25, dtype=F64)
    sol = best_response(problem, phi, init=start)
    free = sol.value > 1e-5
    assert free.tolist() == [True, True, False, False]
    torch.testing.assert_close(
        sol.aux["inequality_multipliers"][~free], torch.tensor([1.0, 0.1], dtype=F64), rtol=1e-6, atol=1e-6
    )

    def h(p):
        return (w * best_response(problem, p, init=start).value.square()).sum()

    def truth(p):
        t = p[free] + (1 - p[free].sum()) / 2
        return (w[free] * t.square()).sum()

    check(h, truth, phi, rtol=1e-6)


def test_multipliers_are_differentiable():
    """min x^2 with x = p: the multiplier is -2 p."""
    problem = Constrained(lambda t, p: t.square().sum(), equality=lambda t, p: t - p)
    phi = torch.tensor([0.7], dtype=F64, requires_grad=True)
    sol = best_response(problem, phi, init=torch.zeros(1, dtype=F64))
    multiplier = sol.aux["equality_multipliers"]
    torch.testing.assert_close(multiplier, -2 * phi)
    torch.testing.assert_close(torch.autograd.grad(multiplier.sum(), phi)[0], torch.tensor([-2.0], dtype=F64))


@pytest.mark.parametrize("index", [0, 2, -1])
def test_simple_eigenpair(generator, index):
    A = randn(5, 5, generator=generator)
    A, M = A + A.mT, with_spectrum(torch.linspace(1, 3, 5, dtype=F64), generator)
    problem = Eigen(lambda v, p: A @ v + p * v, mass=lambda v, p: M @ v, index=index)
    start = randn(5, generator=generator)

    def h(phi):
        pair = best_response(problem, phi, init=start).value
        return pair["value"].sum() ** 2 + pair["vector"].square()[1]

    root = torch.linalg.cholesky(M)
    inverse = torch.linalg.inv(root)

    def truth(phi):
        values, vectors = torch.linalg.eigh(inverse @ (A + torch.diag(phi)) @ inverse.mT)
        return values[index] ** 2 + (inverse.mT @ vectors[:, index]).square()[1]

    check(h, truth, randn(5, generator=generator), rtol=1e-7)


def test_newton_cg_and_a_dict_of_unknowns(generator):
    A = with_spectrum(torch.linspace(1, 3, 4, dtype=F64), generator)
    problem = Minimize(lambda t, p: 0.5 * t["x"] @ (A @ t["x"]) - (t["x"] * p).sum() + (t["y"] - t["x"].sum()) ** 2)

    def h(phi):
        init = {"x": torch.zeros(4, dtype=F64), "y": torch.zeros((), dtype=F64)}
        value = best_response(problem, phi, init=init, solver=NewtonCG(rtol=1e-12)).value
        return value["y"] ** 2 + value["x"].sum()

    def truth(p):
        x = torch.linalg.inv(A) @ p
        return x.sum() ** 2 + x.sum()

    check(h, truth, randn(4, generator=generator))
