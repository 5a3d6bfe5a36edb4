"""Quadratic programs by the interior point: independent answers, verdicts, gradients by differences, hard batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from sciopt import Constrained, SolveError, Status, best_response
from sciopt.hypergradients import Implicit, Unrolled
from sciopt.inner import InteriorPoint
from sciopt.linsolve import LU
from sciopt.problem import Program, QuadraticProgram

EYE = torch.eye(2, dtype=torch.float64)
FLAT = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
BATCH = QuadraticProgram(lambda outer: Program(**outer), batch_ndim=1)


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_programs(batch: int, n: int, q: int, m: int, seed: int = 0) -> dict[str, Tensor]:
    """Feasible programs with a positive definite Q."""
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=gen)

    root, x = draw(batch, n, n), draw(batch, n, 1)
    data = {
        "Q": root @ root.mT + 0.1 * torch.eye(n),
        "p": draw(batch, n),
        "G": draw(batch, q, n),
        "A": draw(batch, m, n),
    }
    data["h"] = (data["G"] @ x).squeeze(-1) + torch.rand(batch, q, dtype=torch.float64, generator=gen)
    data["b"] = (data["A"] @ x).squeeze(-1)
    return data


def solve(data: dict[str, Tensor], throw: bool = False):
    problem = QuadraticProgram(lambda outer: Program(**outer), batch_ndim=data["p"].ndim - 1)
    return best_response(problem, data, init=torch.zeros_like(data["p"]), throw=throw)


def test_agrees_with_scipy_on_random_programs() -> None:
    data = random_programs(5, 6, 8, 2)
    found = solve(data)
    assert found.converged.all()
    for row in range(5):
        Q, p, G, h, A, b = (data[k][row].numpy() for k in "QpGhAb")
        reference = minimize(
            lambda x, Q=Q, p=p: 0.5 * x @ Q @ x + p @ x,
            np.zeros(6),
            jac=lambda x, Q=Q, p=p: Q @ x + p,
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda x, G=G, h=h: h - G @ x, "jac": lambda x, G=G: -G},
                {"type": "eq", "fun": lambda x, A=A, b=b: A @ x - b, "jac": lambda x, A=A: A},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(found.value[row].numpy(), reference.x, atol=2e-5)  # SLSQP's accuracy


def test_multipliers_fulfil_the_optimality_conditions() -> None:
    data = random_programs(3, 12, 10, 4, seed=1)
    found = solve(data)
    y, z = found.aux["equality_multipliers"], found.aux["inequality_multipliers"]
    slack = data["h"] - (data["G"] @ found.value.unsqueeze(-1)).squeeze(-1)
    balance = (data["Q"] @ found.value.unsqueeze(-1)).squeeze(-1) + data["p"]
    balance = balance + (data["A"].mT @ y.unsqueeze(-1) + data["G"].mT @ z.unsqueeze(-1)).squeeze(-1)
    assert balance.abs().max() < 1e-5 and slack.min() > -1e-6 and z.min() >= 0
    assert (z * slack).abs().max() < 1e-6
    assert (z > 1e-3).any(-1).all(), "some constraint should hold each solution"


def test_a_constrained_problem_gives_the_same_as_its_matrices() -> None:
    data = random_programs(3, 6, 8, 2)

    def times(M: Tensor, x: Tensor) -> Tensor:
        return (M @ x.unsqueeze(-1)).squeeze(-1)

    stated = Constrained(
        lambda x, o: (x * (0.5 * times(o["Q"], x) + o["p"])).sum(-1),
        equality=lambda x, o: times(o["A"], x) - o["b"],
        inequality=lambda x, o: times(o["G"], x) - o["h"],
        batch_ndim=1,
    )
    grads = []
    for problem in (stated, BATCH):
        leaves = {k: v.clone().requires_grad_() for k, v in data.items()}
        solver = InteriorPoint(rtol=1e-10)
        solution = best_response(problem, leaves, init=torch.zeros(3, 6, dtype=torch.float64), solver=solver)
        solution.value.sin().sum().backward()
        grads.append([leaves[k].grad for k in "pGhAb"])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", list("QpGhAb"))
def test_gradients_agree_with_differences(name: str) -> None:
    data = random_programs(3, 6, 8, 2, seed=1)
    gen = torch.Generator().manual_seed(3)
    direction = torch.randn(data[name].shape, dtype=torch.float64, generator=gen)

    def outcome(data: dict[str, Tensor]) -> Tensor:
        init = torch.zeros(3, 6, dtype=torch.float64)
        solver = InteriorPoint(rtol=1e-11, atol=1e-10)
        solution = best_response(BATCH, data, init=init, solver=solver, hypergradient=Implicit(LU()))
        multipliers = solution.aux["inequality_multipliers"].sum() + solution.aux["equality_multipliers"].sum()
        return solution.value.sin().sum() + 0.1 * multipliers

    leaf = data[name].clone().requires_grad_()
    outcome({**data, name: leaf}).backward()
    assert leaf.grad is not None
    step = 1e-5
    forward, back = (float(outcome({**data, name: data[name] + s * direction})) for s in (step, -step))
    assert float((leaf.grad * direction).sum()) == pytest.approx((forward - back) / (2 * step), rel=1e-5, abs=1e-6)


def test_second_order_and_transforms() -> None:
    data = random_programs(1, 4, 5, 1, seed=2)
    fixed = {k: v[0] for k, v in data.items()}
    problem = QuadraticProgram(lambda outer: Program(**outer))

    def loss(p: Tensor) -> Tensor:
        solver = InteriorPoint(rtol=1e-11, atol=1e-11)
        found = best_response(problem, {**fixed, "p": p}, init=torch.zeros_like(p), solver=solver)
        return (found.value**3).sum()

    p = fixed["p"]
    hessian = torch.func.jacrev(torch.func.grad(loss))(p)
    also = torch.func.jacfwd(torch.func.grad(loss))(p)
    torch.testing.assert_close(hessian, also, rtol=1e-8, atol=1e-8)
    step = 1e-5
    columns = [
        (torch.func.grad(loss)(p + step * e) - torch.func.grad(loss)(p - step * e)) / (2 * step)
        for e in torch.eye(4, dtype=torch.float64)
    ]
    torch.testing.assert_close(hessian, torch.stack(columns, -1), rtol=1e-5, atol=1e-6)
    many = torch.stack([p, p + 0.1, p - 0.2])
    together = torch.func.vmap(torch.func.grad(loss))(many)
    torch.testing.assert_close(
        together, torch.stack([torch.func.grad(loss)(row) for row in many]), rtol=1e-6, atol=1e-7
    )


def test_unrolling_comes_to_the_same_derivative() -> None:
    data = random_programs(2, 4, 5, 1, seed=4)
    grads = []
    for method in (Implicit(LU()), Unrolled()):
        p = data["p"].clone().requires_grad_()
        init = torch.zeros(2, 4, dtype=torch.float64)
        found = best_response(BATCH, {**data, "p": p}, init=init, solver=InteriorPoint(), hypergradient=method)
        found.value.sin().sum().backward()
        grads.append(p.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"Q": EYE, "G": tensor([1.0, 0.0], [-1.0, 0.0]), "h": tensor(-1.0, -1.0)}, Status.INFEASIBLE),
        ({"Q": EYE, "A": tensor([1.0, 0.0], [1.0, 0.0]), "b": tensor(0.0, 1.0)}, Status.INFEASIBLE),
        ({"Q": EYE, "A": tensor([1.0, 0.0], [1.0, 0.0]), "b": tensor(1.0, 1.0)}, Status.CONVERGED),
        ({"Q": 0 * EYE, "p": tensor(-1.0, -1.0), "G": -EYE, "h": tensor(0.0, 0.0)}, Status.DIVERGED),
        ({"Q": 0 * EYE, "p": tensor(1.0, 1.0), "G": -EYE, "h": tensor(0.0, 0.0)}, Status.CONVERGED),
        ({"Q": FLAT, "p": tensor(0.0, -1.0), "A": tensor([1.0, 0.0]), "b": tensor(1.0)}, Status.DIVERGED),
        ({"Q": torch.diag(tensor(1.0, -1.0)), "G": tensor([1.0, 0.0]), "h": tensor(1.0)}, Status.INDEFINITE),
        ({"Q": torch.diag(tensor(1.0, -1.0)), "A": tensor([0.0, 1.0]), "b": tensor(1.0)}, Status.CONVERGED),
        ({"Q": EYE}, Status.CONVERGED),
    ],
    ids=[
        "bounds cross", "equalities contradict", "equalities repeat", "linear, unbounded", "linear, at a vertex",
        "flat direction", "concave", "concave but held", "no constraint",
    ],
)  # fmt: skip
def test_verdicts(data: dict[str, Tensor], status: Status) -> None:
    found = solve({"p": tensor(1.0, 1.0), **data})
    assert found.status is status
    assert torch.isfinite(found.value).all() and torch.isfinite(found.residual_norm)


def test_verdicts_on_infeasibility_are_those_of_linear_programming() -> None:
    data = random_programs(6, 6, 10, 2, seed=5)
    seen = set()
    for shift in (0.0, 0.2, 0.4, 0.8):
        tight = {**data, "h": data["h"] - shift}
        codes = solve(tight).status_code.tolist()
        for row in range(6):
            G, h, A, b = (tight[k][row].numpy() for k in "GhAb")
            empty = linprog(np.zeros(6), G, h, A, b, bounds=(None, None)).status == 2
            assert codes[row] == int(Status.INFEASIBLE if empty else Status.CONVERGED)
            seen.add(empty)
    assert seen == {True, False}


def test_one_bad_row_harms_no_other() -> None:
    Q, G = torch.stack([EYE] * 3), torch.stack([tensor([1.0, 0.0], [-1.0, 0.0])] * 3)
    h = tensor([1.0, 1.0], [-1.0, -1.0], [0.5, 1.0])
    p = tensor([1.0, 1.0], [1.0, 2.0], [-1.0, 3.0])
    data = {"Q": Q, "p": p, "G": G, "h": h}
    found = solve(data)
    assert found.status_code.tolist() == [0, int(Status.INFEASIBLE), 0]
    torch.testing.assert_close(found.value[[0, 2]], tensor([-1.0, -1.0], [0.5, -3.0]), rtol=0, atol=1e-7)
    with pytest.raises(SolveError, match="INFEASIBLE in 1 of 3 problems .rows 1."):
        solve(data, throw=True)


def test_problems_that_are_not_quadratic_are_refused() -> None:
    init = torch.ones(2, dtype=torch.float64)
    quartic = Constrained(lambda x, phi: ((x - phi) ** 4).sum(), inequality=lambda x, phi: -x)
    curved = Constrained(lambda x, phi: ((x - phi) ** 2).sum(), inequality=lambda x, phi: x**2 - 1)
    for problem in (quartic, curved):
        with pytest.raises(ValueError, match="InteriorPoint: expected a quadratic `inner_loss` and affine constraints"):
            best_response(problem, init, init=init, solver=InteriorPoint())


def test_shapes_that_do_not_fit_are_said() -> None:
    with pytest.raises(ValueError, match=r"QuadraticProgram: expected `G` of shape"):
        ones = torch.ones(1, 3, dtype=torch.float64)
        solve({"Q": EYE, "p": tensor(1.0, 1.0), "G": ones, "h": ones[:, 0]})
    with pytest.raises(ValueError, match=r"QuadraticProgram: expected `b` of shape"):
        solve({"Q": EYE, "p": tensor(1.0, 1.0), "A": EYE, "b": torch.ones(4, 2, dtype=torch.float64)})
