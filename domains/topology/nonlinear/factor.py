"""Sparse LU of assembled tangents, one matrix per row of a batch, and the linear solver for the adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.domains.topology.nonlinear.balance import AbstractBalance
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["SparseAdjoint", "SparseFactors", "factorize"]


@final
class SparseFactors:
    """LU factors of one sparse matrix.

    Args:
        matrix: SciPy CSC matrix ``(n, n)``.
        symmetric: order by its own pattern and pivot on the diagonal, and count the negative pivots.
    """

    def __init__(self, matrix: Any, *, symmetric: bool) -> None:
        from scipy.sparse.linalg import splu

        self.largest = float(np.abs(matrix.data).max(initial=0.0))
        self.lu: Any = None
        self.indefinite = False
        if not np.isfinite(self.largest):
            return
        options = {"SymmetricMode": True} if symmetric else {}
        ordering = "MMD_AT_PLUS_A" if symmetric else "COLAMD"
        try:
            self.lu = splu(matrix, permc_spec=ordering, diag_pivot_thresh=0.0 if symmetric else 1.0, options=options)
        except RuntimeError:  # exactly singular
            return
        if symmetric and np.array_equal(
            self.lu.perm_r, self.lu.perm_c
        ):  # then U's diagonal has the signs of the pivots
            self.indefinite = bool((self.lu.U.diagonal() < 0).any())

    def solve(self, rhs: np.ndarray, *, transpose: bool = False) -> np.ndarray:
        """``A^-1 rhs`` (or ``A^-T``); NaN where A is singular or not finite."""
        if self.lu is None:
            return np.full_like(rhs, np.nan)
        return self.lu.solve(rhs, trans="T" if transpose else "N")


def host(tensor: Tensor, ndim: int) -> np.ndarray:
    """A tensor as float64 NumPy with its leading dimensions flattened into one; ``ndim`` are kept."""
    array = tensor.detach().to("cpu", torch.float64)
    return array.reshape(-1, *array.shape[array.ndim - ndim :]).numpy()


def factorize(
    balance: AbstractBalance, blocks: Sequence[Tensor], rows: Sequence[int], *, symmetric: bool
) -> dict[int, SparseFactors]:
    """Factors of the assembled matrices of some rows of a batch; blocks without a batch serve every row."""
    stacks = [host(block, 3) for block in blocks]
    out: dict[int, SparseFactors] = {}
    for row in rows:  # SuperLU takes one matrix at a time
        matrix = balance.pattern.matrix([stack[row if len(stack) > 1 else 0] for stack in stacks])
        out[row] = SparseFactors(matrix, symmetric=symmetric)
    return out


@final
@dataclass(frozen=True, kw_only=True)
class SparseAdjoint(AbstractLinearSolver):
    """Solve the adjoint of a balance by assembling its Jacobian at the solution and factorizing it once (sparse LU).

    For ``Implicit(SparseAdjoint(balance=energy))``: exact, symmetric or not, on the CPU, up to some ten thousand unknowns.
    Beyond that take CG (minima) or GMRES, which need no matrix. The residual it reports is measured on the operator.

    Args:
        balance: the energy or force balance of the inner problem.
        rtol: tolerance on the residual relative to ``|b| + |A| |x|``; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance.

    Raises:
        ValueError: in ``solve``, for an operator that does not come from a problem.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.hypergradients import Implicit
        >>> from sciopt.domains.topology import Grid, cantilever
        >>> from sciopt.domains.topology.nonlinear import HyperelasticEnergy, LoadStepping, NeoHookean, body_of
        >>> energy = HyperelasticEnergy(body=body_of(cantilever(Grid(nx=4, ny=2))), material=NeoHookean(),
        ...                             modulus=lambda young: young[None])
        >>> young = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
        >>> u = best_response(Minimize(energy), young, init=young.new_zeros(energy.size),
        ...                   solver=LoadStepping(balance=energy), hypergradient=Implicit(SparseAdjoint(balance=energy)))
        >>> energy.work(u.value).backward()
        >>> bool(young.grad < 0)
        True
    """

    direct: ClassVar[bool] = True
    balance: AbstractBalance = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("SparseAdjoint", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        if operator.evaluate is None:
            raise ValueError(
                "SparseAdjoint: expected the `operator` of an inner problem, got one without `evaluate`. Use it in "
                "Implicit(...) only, or take LU or GMRES for operators of other kinds."
            )
        rtol = check_rtol_dtype("SparseAdjoint", self.rtol, rhs.dtype)
        with torch.no_grad():
            blocks = operator.evaluate(self.balance.tangents)
            right = host(rhs, 1)
            factors = factorize(self.balance, blocks, range(len(right)), symmetric=operator.symmetric)
            # The operator may be the Jacobian or its transpose, which `evaluate` cannot tell: the smaller residual can.
            best, norm = self._try(operator, rhs, right, factors, transpose=False)
            if not operator.symmetric:
                other, size = self._try(operator, rhs, right, factors, transpose=True)
                best = torch.where((size < norm).unsqueeze(-1), other, best)
                norm = torch.minimum(torch.where(norm.isnan(), size, norm), torch.where(size.isnan(), norm, size))
            largest = rhs.new_tensor([factors[row].largest for row in range(len(right))]).reshape(norm.shape)
            flags = [factors[row].indefinite for row in range(len(right))]
            scale = torch.linalg.vector_norm(rhs, dim=-1) + largest * torch.linalg.vector_norm(best, dim=-1)
        indefinite = torch.tensor(flags, device=rhs.device).reshape(norm.shape)
        code = torch.where(norm <= self.atol + rtol * scale, int(Status.CONVERGED), int(Status.STAGNATED))
        code = torch.where(indefinite, int(Status.INDEFINITE), code)
        code = torch.where(torch.isfinite(norm), code, int(Status.SINGULAR))
        return Solution(
            value=best, status_code=code, residual_norm=norm, num_steps=torch.ones_like(code), state={"scale": scale}
        )

    def _try(
        self,
        operator: LinearOperator,
        rhs: Tensor,
        right: np.ndarray,
        factors: dict[int, SparseFactors],
        *,
        transpose: bool,
    ) -> tuple[Tensor, Tensor]:
        """The solution by the matrix or its transpose, and the residual norm the operator gives it."""
        solved = np.stack([factors[row].solve(b, transpose=transpose) for row, b in enumerate(right)])
        value = torch.from_numpy(solved).reshape(rhs.shape).to(rhs)
        return value, torch.linalg.vector_norm(operator.mv(value).detach() - rhs, dim=-1)
