"""Extreme Ritz values by each of the three ways that compute them."""

import pytest
import torch

from sciopt.linsolve import CG, MINRES, matrix_operator
from sciopt.linsolve.ritz import Coefficients, cg_extremes, lanczos_extremes
from tests.helpers import PD, SYMMETRIC, randn, with_spectrum


@pytest.mark.parametrize("rows, steps", [(1, 5), (1, 400), (5, 60), (40, 20)])
@pytest.mark.parametrize("definite", [True, False])
def test_against_dense_eigenvalues(rows, steps, definite, generator):
    diagonal, beside = randn(rows, steps, generator=generator), randn(rows, steps, generator=generator)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], -1) + torch.diag_embed(beside[:, :-1], 1)
    if definite:
        diagonal = diagonal - torch.linalg.eigvalsh(matrix)[:, :1] + 1e-5
        matrix = torch.diag_embed(diagonal) + matrix - torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))
    low, high = lanczos_extremes(diagonal, beside, torch.ones_like(diagonal) > 0, positive=definite)
    values = torch.linalg.eigvalsh(matrix)
    size = values.abs().amax(-1)
    torch.testing.assert_close(high, values[:, -1], rtol=1e-3, atol=1e-6)
    assert (high <= values[:, -1] + 1e-12 * size).all() and (low >= values[:, 0] - 1e-12 * size).all()
    if definite:
        torch.testing.assert_close(low, values[:, 0], rtol=1e-3, atol=0.0)
    else:
        torch.testing.assert_close(low, values[:, 0], rtol=0.0, atol=1e-6 * float(size.max()))


@pytest.mark.parametrize("rows", [3, 50])
def test_rows_that_stop_early(rows, dtype, generator):
    alpha = 0.5 + torch.rand(rows, 30, generator=generator, dtype=dtype)
    beta = torch.rand(rows, 30, generator=generator, dtype=dtype)
    whole = cg_extremes(alpha[:, :4], beta[:, :4])
    alpha[0], alpha[1, 4:] = 0, 0
    low, high = cg_extremes(alpha, beta)
    assert low[0].isnan() and high[0].isnan() and low[1:].isfinite().all()
    torch.testing.assert_close(low[1], whole[0][1], rtol=2e-3, atol=0.0)
    torch.testing.assert_close(high[1], whole[1][1], rtol=2e-3, atol=0.0)


def test_bounded_memory():
    kept = Coefficients(torch.zeros(4), steps=2)
    for k in range(5):
        kept.add(torch.full((4,), float(k)))
    assert kept.stacked()[0].shape == (4, 2)


@pytest.mark.parametrize("solver, tags", [(CG, PD), (MINRES, SYMMETRIC)], ids=["CG", "MINRES"])
def test_long_batched_runs_find_the_spectrum(solver, tags, generator):
    A = with_spectrum(torch.logspace(-4, 0, 40, dtype=torch.float64).expand(20, 40), generator)
    operator, b = matrix_operator(A, tags=tags), randn(20, 40, generator=generator)
    aux = solver(rtol=1e-9).solve(operator, b).aux
    torch.testing.assert_close(aux["min_ritz"], torch.full((20,), 1e-4, dtype=torch.float64), rtol=5e-3, atol=0.0)
    torch.testing.assert_close(aux["max_ritz"], torch.ones(20, dtype=torch.float64), rtol=2e-3, atol=0.0)
    assert solver(ritz=False).solve(operator, b).aux["min_ritz"].isnan().all()
