"""The adjoint that iterates where the map contracts and turns to Krylov where it does not; rows that are dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sciopt import FixedPoint, best_response
from sciopt.hypergradients import Implicit, NeumannOrKrylov
from sciopt.inner import Anderson, Broyden, Picard
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.linsolve import LinearOperator, matrix_operator
from sciopt.solution import Status
from tests.helpers import randn, with_spectrum

SIZE = 60


def contraction(radius: Tensor, generator: torch.Generator) -> Tensor:
    """Symmetric matrices ``(*batch, 60, 60)`` with spectral radii ``radius``."""
    return with_spectrum(radius.unsqueeze(-1) * torch.linspace(-1, 1, SIZE, dtype=torch.float64), generator)


def counted(matrix: Tensor, count: list[int]) -> LinearOperator:
    plain = matrix_operator(torch.eye(SIZE, dtype=matrix.dtype) - matrix)

    def mv(v: Tensor) -> Tensor:
        count.append(1)
        return plain.mv(v)

    return LinearOperator(
        mv=mv, rmv=plain.rmv, shape=plain.shape, batch_shape=plain.batch_shape, dtype=plain.dtype, device=plain.device
    )


@pytest.mark.parametrize(("radius", "method"), [(0.2, "Neumann"), (0.97, "BiCGSTAB"), (1.6, "BiCGSTAB")])
def test_the_observed_rate_decides(radius: float, method: str, generator: torch.Generator) -> None:
    M = contraction(torch.tensor(radius, dtype=torch.float64), generator)
    b = randn(SIZE, generator=generator)
    count: list[int] = []
    solution = NeumannOrKrylov(rtol=1e-10).solve(counted(M, count), b)
    assert solution.status is Status.CONVERGED
    exact = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - M, b)
    assert_close(solution.value, exact, rtol=1e-7, atol=1e-8)
    assert solution.aux["note"].startswith(f"NeumannOrKrylov: {method} at")
    rate = float(solution.aux["contraction_rate"])
    assert rate == pytest.approx(radius, rel=0.35)
    if method == "Neumann":
        assert len(count) <= 20  # log(1e-10) / log(0.2) = 14.3


def test_what_bicgstab_fails_on_is_left_to_the_cascade(generator: torch.Generator) -> None:
    """Rows with eigenvalues of ``I - M`` on the imaginary axis, where BiCGSTAB breaks down, beside one that contracts."""
    skew = randn(SIZE, SIZE, generator=generator)
    eye = torch.eye(SIZE, dtype=torch.float64)
    M = torch.stack([eye - (skew - skew.mT), contraction(torch.tensor(0.95, dtype=torch.float64), generator)])
    b = randn(2, SIZE, generator=generator)
    solution = NeumannOrKrylov(rtol=1e-10).solve(counted(M, []), b)
    assert solution.status is Status.CONVERGED
    assert solution.aux["note"].startswith("NeumannOrKrylov: Cascade at")
    assert_close(solution.value, torch.linalg.solve(eye - M, b), rtol=1e-6, atol=1e-7)


def test_rows_of_all_kinds_and_a_row_of_nan_share_a_batch(generator: torch.Generator) -> None:
    M = contraction(torch.tensor([0.1, 0.9, 0.3, 1.4], dtype=torch.float64), generator)
    b = randn(4, SIZE, generator=generator)
    b[2] = torch.nan
    solution = NeumannOrKrylov(rtol=1e-9).solve(counted(M, []), b)
    assert solution.status_code.tolist() == [0, 0, int(Status.NONFINITE), 0]
    for row in (0, 1, 3):
        exact = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - M[row], b[row])
        assert_close(solution.value[row], exact, rtol=1e-6, atol=1e-7)


def test_zero_right_hand_sides_need_nothing() -> None:
    M = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    count: list[int] = []
    solution = NeumannOrKrylov().solve(counted(M, count), torch.zeros(2, SIZE, dtype=torch.float64))
    assert solution.status is Status.CONVERGED and not count
    assert_close(solution.value, torch.zeros_like(solution.value))


def test_a_singular_adjoint_is_reported() -> None:
    A = torch.eye(SIZE, dtype=torch.float64)
    A[0, 0] = 0
    operator = matrix_operator(A)
    solution = NeumannOrKrylov(rtol=1e-9).solve(operator, torch.ones(SIZE, dtype=torch.float64))
    assert solution.status is not Status.CONVERGED


def test_implicit_sets_its_tolerance() -> None:
    problem = FixedPoint(lambda z, phi: 0.3 * torch.sin(z) + phi)
    phi = torch.linspace(0, 1, SIZE, dtype=torch.float64).requires_grad_()
    z = best_response(
        problem,
        phi,
        init=torch.zeros(SIZE, dtype=torch.float64),
        solver=Picard(rtol=1e-14),
        hypergradient=Implicit(NeumannOrKrylov()),
    ).value
    (grad,) = torch.autograd.grad(z.sum(), phi)
    assert_close(grad, 1 / (1 - 0.3 * torch.cos(z.detach())), rtol=1e-12, atol=0)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="NeumannOrKrylov: expected `trial`"):
        NeumannOrKrylov(trial=0)
    with pytest.raises(ValueError, match="FixedPoint: expected `restrict` with batch_ndim=1, got batch_ndim=0"):
        FixedPoint(lambda z, phi: z, restrict=lambda rows: FixedPoint(lambda z, phi: z))


def spread(seen: list[int], rows: Tensor | None = None) -> FixedPoint:
    """``z = rate * cos(z) + phi`` with rates from 0 to 0.98, row by row."""
    rates = torch.linspace(0, 0.98, 24, dtype=torch.float64).unsqueeze(-1)

    def step(z: Tensor, phi: Tensor) -> Tensor:
        seen.append(z.shape[0])
        rate, shift = (rates, phi) if rows is None else (rates[rows], phi[rows])
        return rate * torch.cos(z) + shift

    return FixedPoint(step, batch_ndim=1, restrict=lambda some: spread(seen, some))


@pytest.mark.parametrize(
    "solver", [Picard(rtol=1e-9), Anderson(rtol=1e-9), Broyden(rtol=1e-9)], ids=lambda s: type(s).__name__
)
def test_finished_rows_of_a_fixed_point_are_dropped(
    solver: AbstractIterativeSolver, generator: torch.Generator
) -> None:
    phi = 2 * randn(24, 5, generator=generator)
    seen: list[int] = []
    start = torch.zeros_like(phi)
    dropped = best_response(spread(seen), phi, init=start, solver=solver)
    plain = FixedPoint(spread([]).fixed_point_map, batch_ndim=1)
    whole = best_response(plain, phi, init=start, solver=solver)
    assert_close(dropped.value, whole.value, rtol=1e-12, atol=1e-12)
    assert torch.equal(dropped.num_steps, whole.num_steps)
    assert seen[0] == 24 and min(seen) < 12 and sum(seen) < 0.8 * len(seen) * 24
    loose = FixedPoint(spread([]).fixed_point_map, batch_ndim=1, restrict=lambda rows: 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="FixedPoint: expected `restrict` to return a FixedPoint"):
        best_response(loose, phi, init=start, solver=solver)


def test_the_first_residual_is_asked_once() -> None:
    """The look for captured tensors evaluates the map at the start: the solver does not ask again."""
    calls: list[Tensor] = []

    def step(z: Tensor, phi: Tensor) -> Tensor:
        calls.append(z.detach().clone())
        return 0.5 * torch.cos(z) + phi

    phi = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    init = torch.zeros(SIZE, dtype=torch.float64)
    solution = best_response(FixedPoint(step), phi, init=init, solver=Picard())
    assert len(calls) == int(solution.num_steps) + 1
    assert sum(torch.equal(z, init) for z in calls) == 1
    assert_close(solution.value, 0.5 * torch.cos(solution.value) + phi, rtol=1e-7, atol=0)
