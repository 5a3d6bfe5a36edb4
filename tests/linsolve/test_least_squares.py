"""LSMR on every shape and rank."""

import pytest
import torch

from sciopt.linsolve import LSMR, function_operator, matrix_operator
from sciopt.solution import Status
from tests.helpers import randn


def low_rank(m: int, n: int, rank: int, generator) -> torch.Tensor:
    left = torch.linalg.qr(randn(m, rank, generator=generator))[0]
    right = torch.linalg.qr(randn(n, rank, generator=generator))[0]
    return (left * torch.linspace(1.0, 3.0, rank).double()) @ right.mT


@pytest.mark.parametrize(
    "m, n, rank, code",
    [
        (12, 5, 5, Status.CONVERGED),
        (12, 5, 3, Status.CONVERGED),
        (5, 12, 5, Status.CONVERGED),
        (5, 12, 3, Status.SINGULAR),
        (6, 6, 4, Status.SINGULAR),
    ],
)
def test_pseudo_inverse(m, n, rank, code, device, generator):
    A = torch.stack([low_rank(m, n, rank, generator) for _ in range(2)]).to(device)
    b = randn(2, m, generator=generator, device=device)
    solution = LSMR(rtol=1e-12).solve(matrix_operator(A), b)
    assert solution.status_code.tolist() == [code, code]
    expected = (torch.linalg.pinv(A, rtol=1e-10) @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solution.value, expected, rtol=1e-6, atol=1e-8)
    r = b - (A @ solution.value.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solution.residual_norm, r.norm(dim=-1), rtol=1e-9, atol=1e-12)
    assert (solution.aux["normal_residual_norm"] <= 1e-9 * b.norm(dim=-1)).all()


def test_start_and_transpose_by_autograd(generator):
    A = low_rank(9, 4, 4, generator)
    x = randn(4, generator=generator)
    operator = function_operator(lambda v: A @ v, x, out_like=A[:, 0])
    assert LSMR().solve(operator, A @ x, x0=x).num_steps == 0
    torch.testing.assert_close(LSMR().solve(operator, A @ x, x0=x + 1).value, x, rtol=1e-6, atol=1e-7)


def test_rows_are_independent(generator):
    A = torch.stack([low_rank(8, 3, 3, generator) for _ in range(4)])
    b = randn(4, 8, generator=generator)
    A[0, 1, 1], b[1, 0], b[2] = torch.nan, torch.inf, 0
    solution = LSMR().solve(matrix_operator(A), b)
    assert solution.status_code.tolist() == [Status.NONFINITE, Status.NONFINITE, 0, 0]
    assert torch.equal(solution.value[2], torch.zeros(3, dtype=torch.float64))
    expected = torch.linalg.lstsq(A[3], b[3].unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(solution.value[3], expected, rtol=1e-6, atol=1e-7)
