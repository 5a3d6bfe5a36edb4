"""Operators: products, transposes, matrices, trees, declared structure."""

import pytest
import torch

from sciopt.linsolve import CG, LSMR, LinearOperator, Tag, function_operator, matrix_operator
from tests.helpers import PD, SYMMETRIC, randn


def test_products_of_a_matrix(dtype, device, generator):
    A = randn(2, 3, 5, generator=generator, dtype=dtype, device=device)
    x, y = (randn(2, k, generator=generator, dtype=dtype, device=device) for k in (5, 3))
    operator = matrix_operator(A)
    torch.testing.assert_close(operator.mv(x), torch.einsum("bij,bj->bi", A, x))
    torch.testing.assert_close(operator.transpose().mv(y), torch.einsum("bij,bi->bj", A, y))
    assert operator.transpose().shape == (5, 3) and operator.batch_shape == (2,)
    assert torch.equal(operator.as_matrix(), A) and torch.equal(operator.transpose().as_matrix(), A.mT)


@pytest.mark.parametrize("how", ["plain", "autograd", "host"])
def test_matrix_of_a_function(how, generator):
    """By vmap, by vmap over a retained graph, and column by column where neither is possible."""
    A = randn(2, 4, 4, generator=generator)
    A = A + A.mT
    theta = randn(2, 4, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * torch.einsum("bi,bij,bj", theta, A, theta), theta, create_graph=True)

    def product(v):
        if how == "autograd":
            return torch.autograd.grad(gradient, theta, v, retain_graph=True)[0]
        if how == "host" and float(v.sum()) == torch.inf:
            raise AssertionError
        return (A @ v.unsqueeze(-1)).squeeze(-1)

    operator = function_operator(product, theta.detach(), tags=SYMMETRIC)
    torch.testing.assert_close(operator.as_matrix(), A)


def test_matmat_in_blocks(generator, monkeypatch):
    monkeypatch.setattr("sciopt.linsolve.operator.CHUNK_ELEMENTS", 8)
    A = randn(3, 4, generator=generator)
    X = randn(4, 7, generator=generator)
    torch.testing.assert_close(matrix_operator(A).matmat(X), A @ X)
    torch.testing.assert_close(function_operator(lambda x: A @ x, X[:, 0], out_like=A[:, 0]).matmat(X), A @ X)


@pytest.mark.parametrize("inside", [False, True], ids=["eager", "under grad"])
def test_transpose_by_autograd(inside, generator):
    A = randn(3, 4, generator=generator)
    x, y = randn(4, generator=generator), randn(3, generator=generator)
    operator = function_operator(lambda v: A @ v, x, out_like=y)
    assert operator.shape == (3, 4)
    if inside:
        got = torch.func.grad(lambda y: (operator.transpose().mv(y) ** 2).sum())(y)
        torch.testing.assert_close(got, 2 * A @ (A.mT @ y))
    else:
        for _ in range(2):  # the recorded graph is used again
            torch.testing.assert_close(operator.transpose().mv(y), A.mT @ y)
        torch.testing.assert_close(operator.transpose().transpose().mv(x), A @ x)


def test_transpose_of_a_product_without_graph_is_refused(generator):
    theta = randn(3, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
    operator = function_operator(
        lambda v: torch.autograd.grad(gradient, theta, v.detach(), retain_graph=True)[0], theta.detach()
    )
    with pytest.raises(ValueError, match="expected an `mv` that autograd can transpose.*Pass rmv="):
        operator.transpose().mv(torch.ones(3, dtype=torch.float64))


def test_transpose_unknown():
    operator = LinearOperator(mv=lambda x: x, shape=(2, 2), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="expected `rmv` for a transpose, got None"):
        LSMR().solve(operator, torch.ones(2))


def test_symmetric_operators_are_their_own_transpose():
    operator = function_operator(lambda x: 2 * x, torch.zeros(3), tags=SYMMETRIC)
    assert operator.transpose() is operator and operator.rmv is operator.mv


def test_trees(generator):
    like = {"a": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    operator = function_operator(lambda t: {"a": 2 * t["a"].mT, "b": t["b"]}, like)
    flat = randn(7, generator=generator)
    assert operator.shape == (7, 7) and operator.batch_shape == ()
    assert torch.equal(operator.mv(flat), torch.cat([2 * flat[:4].reshape(2, 2).mT.reshape(-1), flat[4:]]))
    batched = function_operator(
        lambda t: {"a": 2 * t["a"], "b": 3 * t["b"]}, {**like, "a": like["a"][:, 0]}, batch_ndim=0
    )
    assert batched.shape == (5, 5)
    rows = {"a": torch.zeros(2, 4), "b": torch.zeros(2, 2, 2)}
    many = function_operator(lambda t: {"a": 2 * t["a"], "b": 3 * t["b"]}, rows, batch_ndim=1, tags=PD)
    assert many.batch_shape == (2,) and many.shape == (8, 8)
    assert torch.equal(many.as_matrix()[1].diagonal(), torch.tensor([2.0] * 4 + [3.0] * 4))
    assert CG().solve(many, torch.ones(2, 8)).value[0, 7] == pytest.approx(1 / 3)


def test_wrong_products_are_named():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"expected `mv` to return shape \(2, 3\), got \(2, 1\)"):
        CG().solve(function_operator(lambda v: v.sum(-1, keepdim=True), x, tags=PD), x)
    with pytest.raises(TypeError, match=r"expected `mv` to return torch.float32, got torch.float64"):
        CG().solve(function_operator(lambda v: v.double(), x, tags=PD), x)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: matrix_operator(torch.ones(3)), ValueError, r"expected `A` of shape \(\*batch, m, n\), got \(3,\)"),
        (lambda: matrix_operator(torch.ones(2, 2, dtype=torch.int64)), TypeError, "real floating-point dtype"),
        (lambda: matrix_operator([[1.0]]), TypeError, "expected `A` to be a tensor"),  # type: ignore[arg-type]
        (lambda: matrix_operator(torch.ones(2, 3), tags=SYMMETRIC), ValueError, r"square operator for `tags` \{SYM"),
        (
            lambda: matrix_operator(torch.eye(2), nullspace=torch.ones(2, 1)),
            ValueError, r"SYMMETRIC operator with `nullspace`",
        ),
        (
            lambda: matrix_operator(torch.eye(2), tags=PD, nullspace=torch.ones(2)),
            ValueError, r"expected `nullspace` of shape .* got \(2,\)",
        ),
        (
            lambda: matrix_operator(torch.eye(2), tags=PD, nullspace=torch.ones(2, 1)),
            ValueError, "expected `nullspace` to be orthonormal",
        ),
        (lambda: function_operator(lambda x: x, torch.tensor(1.0)), ValueError, "expected `batch_ndim`"),
        (lambda: function_operator(lambda x: x, {}), ValueError, "to hold at least one tensor"),
    ],
)  # fmt: skip
def test_misuse(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_rectangular_operators_want_lsmr():
    with pytest.raises(ValueError, match=r"CG|expected a square operator") as info:
        from sciopt.linsolve import GMRES

        GMRES().solve(matrix_operator(torch.ones(3, 2)), torch.ones(3))
    assert "Use LSMR" in str(info.value)
    assert Tag.SYMMETRIC not in matrix_operator(torch.ones(3, 2)).tags
