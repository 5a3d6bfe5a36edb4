"""Preconditioners: what they apply, and that they pay."""

import pickle

import pytest
import torch

from sciopt.linsolve import (
    CG,
    GMRES,
    MINRES,
    BiCGSTAB,
    Jacobi,
    NystromPreconditioner,
    function_operator,
    matrix_operator,
)
from sciopt.solution import Status
from tests.helpers import PD, randn, with_spectrum


@pytest.mark.parametrize("solver", [CG, MINRES, GMRES, BiCGSTAB])
def test_jacobi_reduces_the_steps_of_a_badly_scaled_system(solver, generator):
    A = with_spectrum(torch.linspace(1.0, 3.0, 30, dtype=torch.float64), generator)
    scale = torch.logspace(0, 3, 30, dtype=torch.float64)
    A = scale.unsqueeze(-1) * A * scale
    b = randn(30, generator=generator)
    operator = matrix_operator(A, tags=PD)
    plain, better = (solver(rtol=1e-6, max_steps=3000, preconditioner=p).solve(operator, b) for p in (None, Jacobi()))
    assert better.status is Status.CONVERGED and (b - A @ better.value).norm() <= 1.01e-6 * b.norm()
    assert better.num_steps * 2 < plain.num_steps


@pytest.mark.parametrize("solver", [CG, MINRES])
def test_nystrom_reduces_the_steps_of_a_decaying_spectrum(solver, dtype, device, generator):
    sizes = (100.0 * 0.5 ** torch.arange(60, dtype=torch.float64) + 0.1).expand(2, 60)
    A = with_spectrum(sizes, generator).to(dtype=dtype, device=device)
    b = randn(2, 60, generator=generator, dtype=dtype, device=device)
    operator = matrix_operator(A, tags=PD)
    nystrom = NystromPreconditioner(20, generator, shift=0.1)
    plain, better = (solver(preconditioner=p).solve(operator, b) for p in (None, nystrom))
    assert better.status is Status.CONVERGED
    assert better.num_steps.max() <= 12 and 2 * better.num_steps.max() < plain.num_steps.max()


def test_nystrom_of_full_rank_is_the_inverse_up_to_scale(generator):
    A = with_spectrum(torch.linspace(1.0, 5.0, 12, dtype=torch.float64), generator)
    apply = NystromPreconditioner(12, generator).build(matrix_operator(A, tags=PD))
    v = randn(12, generator=generator)
    torch.testing.assert_close(apply(v), 1.0 * torch.linalg.solve(A, v), rtol=1e-8, atol=1e-10)


def test_nystrom_condition_number(generator):
    """Theorem 5.1: the preconditioned condition number is small once the rank exceeds twice the effective dimension."""
    shift = 1e-3
    sizes = 1 / torch.arange(1, 101, dtype=torch.float64) ** 4
    effective = float((sizes / (sizes + shift)).sum())
    A = with_spectrum(sizes + shift, generator)
    rank = 2 * int(1.5 * effective) + 1
    apply = NystromPreconditioner(rank, generator, shift=shift).build(matrix_operator(A, tags=PD))
    P = torch.stack([apply(column) for column in torch.eye(100, dtype=torch.float64)])
    values = torch.linalg.eigvals(P @ A).real
    assert values.max() / values.min() < 28 < float(torch.linalg.cond(A))
    torch.testing.assert_close(P, P.mT)


def test_nystrom_of_a_bad_row_spares_the_others(generator):
    A = torch.stack([torch.eye(6), torch.eye(6), torch.zeros(6, 6), -torch.eye(6)]).double()
    A[0, 0, 0] = torch.nan
    b = randn(4, 6, generator=generator)
    solution = CG(preconditioner=NystromPreconditioner(3, generator)).solve(matrix_operator(A, tags=PD), b)
    codes = [Status.NONFINITE, Status.CONVERGED, Status.SINGULAR, Status.INDEFINITE]
    assert solution.status_code.tolist() == codes
    torch.testing.assert_close(solution.value[1], b[1], rtol=1e-7, atol=1e-8)


def test_generator_and_pickle(generator):
    A = matrix_operator(with_spectrum(torch.linspace(1.0, 5.0, 12, dtype=torch.float64), generator), tags=PD)
    one = NystromPreconditioner(4, torch.Generator().manual_seed(1))
    two = pickle.loads(pickle.dumps(one))
    v = randn(12, generator=generator)
    first = one.build(A)(v)
    assert torch.equal(first, two.build(A)(v)) and not torch.equal(first, one.build(A)(v))


def test_a_preconditioner_that_returns_nan_harms_its_row_only():
    class Broken(Jacobi.__mro__[1]):
        def build(self, operator):
            return lambda r: torch.stack([r[0] * torch.nan, r[1]])

    b = torch.ones(2, 3, dtype=torch.float64)
    operator = matrix_operator(2 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3), tags=PD)
    for solver in (CG, MINRES, GMRES, BiCGSTAB):
        solution = solver(preconditioner=Broken()).solve(operator, b)
        assert solution.status_code.tolist() == [Status.NONFINITE, 0], solver
        torch.testing.assert_close(solution.value[1], b[1] / 2)
        assert solution.value.isfinite().all(), solver


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: NystromPreconditioner(0, g), "expected `rank` to be an int >= 1, got 0"),
        (lambda g: NystromPreconditioner(3, g, shift=-1.0), "expected `shift` >= 0, got -1"),
        (
            lambda g: NystromPreconditioner(3, g).build(matrix_operator(torch.eye(2))),
            r"NystromPreconditioner: expected an operator tagged POSITIVE_DEFINITE, got tags \{\}",
        ),
        (
            lambda g: Jacobi().build(function_operator(lambda x: x, torch.ones(2))),
            "Jacobi: expected an operator with `diagonal`, got None",
        ),
    ],
)
def test_misuse(call, message, generator):
    with pytest.raises(ValueError, match=message):
        call(generator)
