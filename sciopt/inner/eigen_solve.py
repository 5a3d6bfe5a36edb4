"""One eigenpair of a symmetric pencil: dense up to a limit, block iteration beyond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sciopt.checks import check_option, check_rtol_dtype, check_tolerances
from sciopt.inner.abstract import AbstractSolver
from sciopt.inner.block_eigen import lobpcg
from sciopt.inner.rows import dot, norm, select
from sciopt.linsolve import LinearOperator, Tag
from sciopt.problem.eigen import Eigen
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["EigenSolve"]


@final
@dataclass(frozen=True, kw_only=True)
class EigenSolve(AbstractSolver):
    """The eigenpair that `Eigen` asks for, with the sign of the vector taken from the start.

    Use it for vibration modes, buckling, principal components. Up to ``dense_limit`` unknowns the matrix is formed (n
    products) and decomposed; beyond, a block of vectors iterates (LOBPCG), which reaches extreme eigenvalues only. An
    eigenvalue that is not simple ends as `Status.SINGULAR`, for its vector is not a function of the data.

    Args:
        dense_limit: most unknowns for the dense decomposition.
        rtol: tolerance on ``|A v - lambda M v| / |lambda v|`` in the iteration; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on the residual norm.
        max_steps: step budget of the iteration.

    Raises:
        ValueError: for options out of range, an index out of range, or an operator that is not symmetric.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.problem import Eigen
        >>> problem = Eigen(lambda v, phi: phi * v)
        >>> best_response(problem, torch.tensor([5.0, 3.0]), init=torch.ones(2), solver=EigenSolve()).value["value"]
        tensor([3.])

    References:
        Golub, Van Loan. "Matrix Computations", 4th ed., sec. 8.7 (reduction by Cholesky).
    """

    solves: ClassVar = (Eigen,)
    dense_limit: int = 1_500
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1_000

    def __post_init__(self) -> None:
        check_tolerances("EigenSolve", self.rtol, self.atol, self.max_steps)
        check_option("EigenSolve", "dense_limit", self.dense_limit, self.dense_limit >= 0, ">= 0", "Use 1500.")

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        problem = oracle.problem
        assert isinstance(problem, Eigen)
        tree = oracle.system.layout.unflatten(torch.arange(x.shape[-1], device=x.device))
        at, where = tree["vector"].reshape(-1), tree["value"].reshape(-1)
        n = at.shape[0]
        check_option(
            "EigenSolve", "index", problem.index, -n <= problem.index < n, f"in [{-n}, {n})", "Count from 0 or -1."
        )
        rtol = check_rtol_dtype("EigenSolve", self.rtol, x.dtype)
        start = x[..., at]
        stiffness = pencil_side(oracle, x, at, mass=False)
        mass = None if problem.mass is None else pencil_side(oracle, x, at, mass=True)
        with torch.set_grad_enabled(oracle.differentiable):
            if n <= self.dense_limit:
                value, vector, code, largest, steps = dense_pair(stiffness, mass, problem.index)
            else:
                index = problem.index
                sign = 1.0 if index >= 0 else -1.0
                rank = index if index >= 0 else -index - 1
                found = lobpcg(stiffness, mass, start, sign, rank, rtol=rtol, atol=self.atol, max_steps=self.max_steps)
                value, vector, code, largest, steps = found
            image = vector if mass is None else mass.mv(vector)
            flip = torch.where(dot(start, image) < 0, -1.0, 1.0).to(x.dtype).unsqueeze(-1)
            solution = torch.zeros_like(x).index_copy(-1, at, flip * vector).index_copy(-1, where, value.unsqueeze(-1))
        size = norm(oracle.residual(solution))
        eps = torch.finfo(x.dtype).eps
        scale = torch.maximum(value.detach().abs(), n * eps * largest / rtol if rtol else value.detach().abs())
        done = size <= self.atol + torch.maximum(rtol * scale, 10 * n * eps * largest)
        code = torch.where(done | (code != int(Status.CONVERGED)), code, int(Status.STAGNATED))
        code = torch.where(torch.isfinite(size), code, int(Status.NONFINITE))
        state = {"residual_norm": size, "scale": scale, "status_code": code}
        return Solution(value=solution, status_code=code, residual_norm=size, num_steps=steps, state=state)


def pencil_side(oracle: Oracle, x: Tensor, at: Tensor, *, mass: bool) -> LinearOperator:
    """A or M as an operator on ``(*batch, n)``."""
    problem = oracle.problem
    assert isinstance(problem, Eigen)
    apply = problem.apply_mass if mass else problem.operator

    def mv(v: Tensor) -> Tensor:
        oracle.counter["product"] += 1
        full = torch.zeros_like(x).index_copy(-1, at, v)
        with torch.set_grad_enabled(oracle.differentiable):
            return oracle.system.call(lambda tree, outer: apply(tree["vector"], outer), full, oracle.args)

    return LinearOperator(
        mv=mv,
        shape=(at.shape[0], at.shape[0]),
        batch_shape=tuple(x.shape[:-1]),
        dtype=x.dtype,
        device=x.device,
        tags=frozenset({Tag.SYMMETRIC}),
    )


def dense_pair(
    stiffness: LinearOperator, mass: LinearOperator | None, index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalue, M-normalised vector, status codes, size of the spectrum, and steps (one)."""
    a = stiffness.as_matrix()
    n = a.shape[-1]
    eps = torch.finfo(a.dtype).eps
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    finite = torch.isfinite(a).all(-1).all(-1)
    a = select(finite, a, eye)
    _check_symmetric("operator", a)
    a = 0.5 * (a + a.mT)
    definite = finite
    factor = None
    if mass is not None:
        m = mass.as_matrix()
        finite = finite & torch.isfinite(m).all(-1).all(-1)
        m = select(finite, m, eye)
        _check_symmetric("mass", m)
        factor, info = torch.linalg.cholesky_ex(0.5 * (m + m.mT))
        definite = info == 0
        factor = select(definite, factor, eye)
        half = torch.linalg.solve_triangular(factor, a, upper=False)
        a = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        a = 0.5 * (a + a.mT)
    values, vectors = torch.linalg.eigh(a)
    value, vector = values[..., index], vectors[..., index]
    if factor is not None:
        vector = torch.linalg.solve_triangular(factor.mT, vector.unsqueeze(-1), upper=True).squeeze(-1)
    largest = values.detach().abs().amax(-1)
    distance = (values - value.unsqueeze(-1)).detach().abs()
    position = torch.arange(n, device=a.device) == index % n
    gap = torch.where(position, torch.inf, distance).amin(-1) if n > 1 else torch.full_like(largest, torch.inf)
    code = torch.full_like(largest, int(Status.CONVERGED), dtype=torch.int64)
    code = torch.where(gap <= eps ** (2 / 3) * largest, int(Status.SINGULAR), code)
    code = torch.where(definite, code, int(Status.INDEFINITE))
    code = torch.where(finite, code, int(Status.NONFINITE))
    value = torch.where(finite, value, torch.nan)
    return value, vector, code, largest, torch.ones_like(code)


def _check_symmetric(name: str, matrix: Tensor) -> None:
    skew = (matrix - matrix.mT).detach().abs().amax((-2, -1))
    size = matrix.detach().abs().amax((-2, -1))
    bad = skew > torch.finfo(matrix.dtype).eps ** 0.5 * size
    if not is_functorch_wrapped_tensor(bad) and bool(bad.any()):
        raise ValueError(
            f"EigenSolve: expected a symmetric `{name}`, got one with |A - A^T| up to {float(skew.max()):.1e}. "
            "Symmetrise it: an unsymmetric eigenproblem is outside of `Eigen`."
        )
