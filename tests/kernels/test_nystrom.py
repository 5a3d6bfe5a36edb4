"""Columns of a kernel matrix as a preconditioner: what it is, what it leaves, and how many steps it saves."""

from __future__ import annotations

import pytest
import torch

from sciopt.kernels import (
    NTK,
    RBF,
    ColumnNystrom,
    DenseNetwork,
    Hamming,
    Linear,
    gram,
    kernel_operator,
    pivoted_cholesky,
)
from sciopt.linsolve import CG, Tag, linear_solve, matrix_operator
from sciopt.solution import Status
from tests.helpers import randn

F64 = torch.float64


def test_factor_never_exceeds_the_matrix_and_leaves_what_it_says(generator: torch.Generator) -> None:
    x = randn(300, 3, generator=generator)
    K = gram(RBF(), x)
    factor, left = pivoted_cholesky(RBF(), x, 150, generator)
    rest = K - factor @ factor.mT
    assert factor.shape == (300, 150)
    torch.testing.assert_close(rest.diagonal().clamp(min=0), left, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(rest)[0]) > -1e-12  # the part that is left is a kernel too
    best = float(torch.linalg.eigvalsh(K)[:-150].sum())
    assert best <= float(left.sum()) < 20 * best  # no factor of this rank can leave less than the smallest eigenvalues


def test_exact_where_the_rank_suffices(generator: torch.Generator) -> None:
    x = randn(200, 5, generator=generator)
    factor, left = pivoted_cholesky(Linear(), x, 150, generator, tolerance=1e-10)
    assert factor.shape[1] <= 130  # one block of draws, not all that was allowed
    torch.testing.assert_close(factor @ factor.mT, gram(Linear(), x), rtol=0, atol=1e-12)
    assert float(left.max()) < 1e-12


def test_small_clusters_are_not_missed(generator: torch.Generator) -> None:
    centres = 100 * torch.arange(40, dtype=F64).unsqueeze(-1)
    crowd = 1e-3 * randn(4000, 1, generator=generator)  # 99 % of the points say the same
    x = torch.cat([crowd, centres])
    _, left = pivoted_cholesky(RBF(length_scale=10.0), x, 200, generator)
    assert float(left.max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_applies_the_inverse_it_names(generator: torch.Generator, dtype: torch.dtype) -> None:
    x = randn(120, 4, generator=generator).to(dtype)
    noise = torch.linspace(0.01, 0.2, 120, dtype=dtype)
    kernel = NTK(DenseNetwork(hidden_layers=2))
    factor, left = pivoted_cholesky(kernel, x, 30, torch.Generator().manual_seed(5))
    wanted = factor.double() @ factor.double().mT + torch.diag(noise.double() + left.double().mean())
    made = ColumnNystrom(kernel=kernel, points=x, noise=noise, rank=30, generator=torch.Generator().manual_seed(5))
    apply = made.build(kernel_operator(kernel, x, noise))
    vectors = randn(3, 120, generator=generator).to(dtype)
    found = apply(vectors)
    rounding = 1e-10 if dtype == F64 else 1e-3
    torch.testing.assert_close(
        found.double(), torch.linalg.solve(wanted, vectors.double().mT).mT, rtol=rounding, atol=rounding
    )
    torch.testing.assert_close(apply(vectors[1]), found[1])


def test_single_precision_keeps_the_directions_that_the_kernel_knows_best(generator: torch.Generator) -> None:
    x, noise = randn(3000, 4, generator=generator).float(), torch.full((3000,), 1e-3)
    kernel, ones = RBF(length_scale=6.0), torch.ones(3000)  # ones are an eigenvector of nearly 3e6 times the noise
    made = ColumnNystrom(kernel=kernel, points=x, noise=noise, rank=100, generator=generator)
    operator = kernel_operator(kernel, x, noise)
    found = made.build(operator)(ones)
    assert float(found @ ones) > 0 and float((operator.mv(found) - ones).norm() / ones.norm()) < 0.01
    solved = linear_solve(operator, ones, CG(rtol=1e-3, preconditioner=made), throw=False)
    assert float(solved.residual_norm / ones.norm()) < 0.01


@pytest.mark.parametrize("ridge", [1e-2, 1e-6])
def test_saves_most_steps(generator: torch.Generator, ridge: float) -> None:
    x, y = randn(1000, 6, generator=generator), randn(1000, generator=generator)
    kernel = NTK(DenseNetwork(hidden_layers=3))
    noise = torch.full_like(y, ridge)
    operator = matrix_operator(gram(kernel, x) + ridge * torch.eye(1000, dtype=F64), tags=(Tag.POSITIVE_DEFINITE,))
    made = ColumnNystrom(kernel=kernel, points=x, noise=noise, rank=200, generator=generator)
    plain = linear_solve(operator, y, CG(rtol=1e-8, max_steps=400), throw=False)
    helped = linear_solve(operator, y, CG(rtol=1e-8, preconditioner=made))
    assert int(helped.status) == Status.CONVERGED and 3 * int(helped.num_steps) < int(plain.num_steps)
    torch.testing.assert_close(operator.mv(helped.value), y, rtol=0, atol=1e-6)


def test_equal_points_and_equal_letters_do_no_harm(generator: torch.Generator) -> None:
    words = torch.nn.functional.one_hot(torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]]), 2).double().flatten(1)
    noise = torch.full((4,), 0.5, dtype=F64)
    kernel = Hamming(positions=2)
    made = ColumnNystrom(kernel=kernel, points=words, noise=noise, rank=9, generator=generator)
    apply, y = made.build(kernel_operator(kernel, words, noise)), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    torch.testing.assert_close(apply(y), torch.linalg.solve(gram(kernel, words) + 0.5 * torch.eye(4, dtype=F64), y))


def test_bad_calls_say_what_was_expected(generator: torch.Generator) -> None:
    x, noise = torch.eye(3, dtype=F64), torch.ones(3, dtype=F64)
    with pytest.raises(ValueError, match="ColumnNystrom: expected `rank` to be an int >= 1, got 0"):
        ColumnNystrom(kernel=RBF(), points=x, noise=noise, rank=0, generator=generator)
    for wrong in (-noise, noise[:2]):
        with pytest.raises(ValueError, match="expected `noise` one number >= 0 per point, got -1.0"):
            ColumnNystrom(kernel=RBF(), points=x, noise=wrong, rank=2, generator=generator)
    made = ColumnNystrom(kernel=RBF(), points=x, noise=noise, rank=2, generator=generator)
    with pytest.raises(ValueError, match="expected an operator on vectors of 3 numbers, one per point, got 2"):
        made.build(kernel_operator(RBF(), x[:2], noise[:2]))
    with pytest.raises(ValueError, match="pivoted_cholesky: expected `rank` >= 1, got 0"):
        pivoted_cholesky(RBF(), x, 0, generator)
    with pytest.raises(ValueError, match=r"expected `tolerance` in \[0, 1\), got 1.0"):
        pivoted_cholesky(RBF(), x, 2, generator, tolerance=1.0)
