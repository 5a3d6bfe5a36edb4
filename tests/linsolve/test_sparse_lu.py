"""Sparse LU and the solver of linear problems: SciPy's answer, shared factors, derivatives, verdicts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from sciopt import Minimize, RootFind, SolveError, Status, best_response
from sciopt.hypergradients import Implicit, Unrolled
from sciopt.inner import LinearSolve
from sciopt.linsolve import CG, SparseFactors, SparseLU, Tag

N = 30
LEFT, RIGHT = torch.arange(N - 1), torch.arange(1, N)
ROWS = torch.cat([LEFT, RIGHT, LEFT, RIGHT, torch.arange(N)])
COLUMNS = torch.cat([RIGHT, LEFT, LEFT, RIGHT, torch.arange(N)])


def springs(x: Tensor, phi: Tensor) -> Tensor:
    """Entries of a chain of N masses with N - 1 springs phi, each held by a spring of one."""
    k = phi[..., : N - 1]
    return torch.cat([-k, -k, k, k, torch.ones_like(phi)], -1)


def chain(batch_ndim: int = 0) -> Minimize:
    def energy(x: Tensor, phi: Tensor) -> Tensor:
        stored = (phi[..., : N - 1] * (x[..., 1:] - x[..., :-1]) ** 2).sum(-1) + (x**2).sum(-1)
        return 0.5 * stored - (torch.linspace(-1, 2, N, dtype=x.dtype) * x).sum(-1)

    return Minimize(energy, batch_ndim=batch_ndim)


def direct() -> SparseLU:
    return SparseLU(factors=SparseFactors(ROWS, COLUMNS, N), entries=springs)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5


def test_solves_and_gradients_are_those_of_scipy_and_cg() -> None:
    phi, lu = draw(N), direct()
    leaf, other = phi.clone().requires_grad_(), phi.clone().requires_grad_()
    start = torch.zeros(N, dtype=torch.float64)
    x = best_response(chain(), leaf, init=start, solver=LinearSolve(lu), hypergradient=Implicit(lu)).value
    values = springs(start, phi).numpy()
    matrix = scipy.sparse.csc_matrix((values, (ROWS.numpy(), COLUMNS.numpy())), shape=(N, N))
    expected = np.asarray(scipy.sparse.linalg.spsolve(matrix, np.linspace(-1, 2, N)))
    np.testing.assert_allclose(x.detach(), expected, rtol=1e-10)
    (x**3).sum().backward()
    assert lu.factors.factorizations == 1, "the adjoint takes the factors of the solve"
    krylov = CG(rtol=1e-12)
    y = best_response(chain(), other, init=start, solver=LinearSolve(krylov), hypergradient=Implicit(krylov)).value
    (y**3).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-7, atol=1e-9)


def test_second_order_and_vmap() -> None:
    lu, start = direct(), torch.zeros(N, dtype=torch.float64)

    def loss(phi: Tensor) -> Tensor:
        found = best_response(chain(), phi, init=start, solver=LinearSolve(lu), hypergradient=Implicit(lu))
        return (found.value**3).sum()

    phi, direction = draw(N), draw(N, seed=1)
    product = torch.func.jvp(torch.func.grad(loss), (phi,), (direction,))[1]
    step = 1e-5
    ahead, behind = (torch.func.grad(loss)(phi + s * direction) for s in (step, -step))
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)
    many = torch.stack([phi, 2 * phi])
    together = torch.func.vmap(torch.func.grad(loss))(many)
    torch.testing.assert_close(together, torch.stack([torch.func.grad(loss)(p) for p in many]), rtol=1e-9, atol=1e-11)


def test_rows_of_one_matrix_share_factors_and_rows_of_many_do_not() -> None:
    for phi, expected in ((draw(N), 1), (draw(3, N), 3)):
        lu = direct()
        solution = best_response(chain(1), phi, init=torch.zeros(3, N, dtype=torch.float64), solver=LinearSolve(lu))
        assert solution.converged.all() and lu.factors.factorizations == expected


def test_verdicts() -> None:
    lu, start = direct(), torch.zeros(N, dtype=torch.float64)
    quartic = Minimize(lambda x, phi: ((x - phi) ** 4).sum() + chain().inner_loss(x, phi))
    assert best_response(quartic, draw(N), init=start, solver=LinearSolve(lu), throw=False).status is Status.STAGNATED
    loose = torch.zeros(N, dtype=torch.float64)
    singular = SparseLU(factors=SparseFactors(ROWS, COLUMNS, N), entries=lambda x, phi: 0 * springs(x, phi))
    free = RootFind(lambda x, phi: 0 * x + phi - 1, tags=frozenset({Tag.SYMMETRIC}))
    assert best_response(free, loose, init=start, solver=LinearSolve(singular), throw=False).status is Status.SINGULAR
    found = best_response(chain(), draw(N), init=start, solver=LinearSolve(lu))
    again = best_response(chain(), draw(N), init=found.value, solver=LinearSolve(lu))
    assert int(again.num_steps) == 0 and again.status is Status.CONVERGED
    with pytest.raises(SolveError, match="LinearSolve"):
        best_response(quartic, draw(N), init=start, solver=LinearSolve(lu))
    with pytest.raises(TypeError, match="expected an iterative inner solver, got LinearSolve"):
        best_response(chain(), draw(N).requires_grad_(), init=start, solver=LinearSolve(lu), hypergradient=Unrolled())
    with pytest.raises(TypeError, match="expected `linear_solver` to be a linear solver"):
        LinearSolve(lu.factors)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected `rows` and `columns`"):
        SparseFactors(ROWS, COLUMNS, N - 1)


def test_a_copy_factorises_anew() -> None:
    factors = SparseFactors(ROWS, COLUMNS, N)
    phi, rhs = draw(N), draw(N, seed=2)
    first = factors.solve(springs(rhs, phi), rhs)
    copy = pickle.loads(pickle.dumps(factors))
    torch.testing.assert_close(copy.solve(springs(rhs, phi), rhs), first, rtol=0, atol=0)
