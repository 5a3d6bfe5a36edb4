"""The public entry: default solvers, trees, errors, derivatives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sciopt.linsolve import (
    CG,
    GMRES,
    LSMR,
    LU,
    MINRES,
    BiCGSTAB,
    Cholesky,
    default_solver,
    function_operator,
    linear_solve,
    matrix_operator,
)
from sciopt.solution import SolveError, Status
from tests.helpers import LINEAR_CASES, PD, SYMMETRIC, randn


@pytest.mark.parametrize(
    "shape, tags, expected",
    [
        ((5, 3), (), LSMR),
        ((128, 128), PD, Cholesky),
        ((128, 128), SYMMETRIC, LU),
        ((129, 129), PD, CG),
        ((129, 129), SYMMETRIC, MINRES),
        ((129, 129), (), GMRES),
    ],
)
def test_default_solver_follows_tags_and_size(shape, tags, expected):
    assert type(default_solver(matrix_operator(torch.ones(shape), tags=tags))) is expected


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_derivatives(case, generator):
    A = case.matrix(2, n=4, generator=generator)
    operator = case.operator(A)
    solver = case.solver if case.direct else replace(case.solver, rtol=1e-13, max_steps=400)
    b = randn(2, 4, generator=generator).requires_grad_()

    def solve(rhs):
        return linear_solve(operator, rhs, solver, throw=False).value

    # a Krylov solve is not exactly linear in b: allow what its tolerance leaves
    torch.autograd.gradcheck(solve, b, nondet_tol=1e-10, check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda rhs: solve(rhs) ** 2, b, nondet_tol=1e-10)
    g = randn(2, 4, generator=generator)
    (grad,) = torch.autograd.grad(solve(b), b, g)
    torch.testing.assert_close(grad, torch.linalg.solve(A.mT, g), rtol=1e-9, atol=1e-10)


def test_functional_transforms(generator):
    A = randn(3, 3, generator=generator) + 3 * torch.eye(3)
    operator = matrix_operator(A)
    b = randn(3, generator=generator)

    def energy(rhs):
        return (linear_solve(operator, rhs).value ** 2).sum()

    inverse = torch.linalg.inv(A)
    torch.testing.assert_close(torch.func.grad(energy)(b), 2 * inverse.mT @ inverse @ b)
    tangent = torch.func.jvp(lambda rhs: linear_solve(operator, rhs).value, (b,), (b,))[1]
    torch.testing.assert_close(tangent, inverse @ b)
    with pytest.raises(NotImplementedError, match="expected a call outside torch.func.vmap"):
        torch.func.vmap(lambda rhs: linear_solve(operator, rhs).value)(torch.eye(3, dtype=torch.float64))


def test_rectangular_derivative_is_the_pseudo_inverse(generator):
    A = randn(6, 3, generator=generator)
    b = randn(6, generator=generator).requires_grad_()
    solution = linear_solve(matrix_operator(A), b, LSMR(rtol=1e-13))
    (grad,) = torch.autograd.grad(solution.value.sum(), b)
    torch.testing.assert_close(grad, torch.linalg.pinv(A).sum(0), rtol=1e-8, atol=1e-9)


def test_nullspace_derivative_is_the_pseudo_inverse():
    A = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    basis = torch.full((2, 1), 0.5**0.5, dtype=torch.float64)
    b = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    operator = matrix_operator(A, tags=PD, nullspace=basis)
    for solver in (CG(), Cholesky(), MINRES()):
        jacobian = torch.autograd.functional.jacobian(lambda rhs, s=solver: linear_solve(operator, rhs, s).value, b)
        torch.testing.assert_close(jacobian, torch.linalg.pinv(A), rtol=1e-9, atol=1e-12)


def test_trees_in_trees_out(generator):
    like = {"w": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    rhs = {"w": randn(2, 3, generator=generator).requires_grad_(), "b": randn(2, generator=generator)}
    operator = function_operator(lambda t: {"w": 2 * t["w"], "b": 4 * t["b"]}, like, tags=PD)
    solution = linear_solve(operator, rhs, CG(), x0=like)
    torch.testing.assert_close(solution.value, {"w": rhs["w"] / 2, "b": rhs["b"] / 4})
    (grad,) = torch.autograd.grad(solution.value["w"].sum(), rhs["w"])
    torch.testing.assert_close(grad, torch.full_like(grad, 0.5))
    with pytest.raises(ValueError, match="Layout: expected a tree .*structure"):
        linear_solve(operator, {"w": rhs["w"]})


def test_failure_raises_or_returns(generator):
    operator = matrix_operator(torch.zeros(2, 3, 3) + torch.diag(torch.tensor([1.0, 2.0, 0.0])))
    b = torch.ones(2, 3)
    b[0, 2] = 0
    with pytest.raises(
        SolveError, match=r"GMRES: expected status CONVERGED, got SINGULAR in 1 of 2 problems \(rows 1\)"
    ):
        linear_solve(operator, b, GMRES())
    solution = linear_solve(operator, b, GMRES(), throw=False)
    assert solution.status_code.tolist() == [0, Status.SINGULAR]


def test_failure_of_the_transposed_solve_raises():
    A = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    value = linear_solve(matrix_operator(A), b, BiCGSTAB()).value
    with pytest.raises(SolveError, match="BiCGSTAB: expected status CONVERGED"):
        value.sum().backward()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda A: linear_solve(A.mv, torch.ones(2)), TypeError, "expected `operator` to be a LinearOperator"),
        (lambda A: linear_solve(A, [1.0, 2.0]), TypeError, "expected `rhs` to be a tensor or a dict of tensors"),
        (lambda A: linear_solve(A, torch.ones(3)), ValueError, r"LU: expected `rhs` of shape \(2,\), got \(3,\)"),
        (lambda A: linear_solve(A, torch.ones(2), rtol=1e-3), TypeError, "rtol"),  # pyright: ignore[reportCallIssue]
    ],
)
def test_misuse(call: Callable[[Any], Any], error, message):
    with pytest.raises(error, match=message):
        call(matrix_operator(torch.eye(2)))
