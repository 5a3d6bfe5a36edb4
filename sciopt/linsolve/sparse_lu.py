"""Sparse LU of symmetric matrices whose entries a problem gives by formula, through SciPy's SuperLU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.operator import LinearOperator, format_tags
from sciopt.solution import Solution, Status

__all__ = ["SparseFactors", "SparseLU"]


class SparseFactors:
    """The last few factorisations of matrices of one sparsity pattern, found again by their entries.

    Made for one run and given to its solvers, so that the adjoint finds the factors of the forward solve.

    Args:
        rows: row of each entry, int64 ``(nnz,)``; entries at one place add up.
        columns: column of each entry ``(nnz,)``.
        size: number n of unknowns.
        keep: how many factorisations are kept.

    Raises:
        ValueError: for indices out of range or of different lengths.

    Example:
        >>> factors = SparseFactors(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)
        >>> factors.solve(torch.tensor([2.0, 4.0]), torch.tensor([[2.0, 2.0], [1.0, 0.0]])), factors.factorizations
        (tensor([[1.0000, 0.5000],
                [0.5000, 0.0000]]), 1)
    """

    def __init__(self, rows: Tensor, columns: Tensor, size: int, keep: int = 4) -> None:
        ok = rows.shape == columns.shape and rows.ndim == 1
        if not ok or (rows.numel() and not 0 <= int(torch.stack([rows, columns]).max()) < size):
            raise ValueError(
                f"SparseFactors: expected `rows` and `columns` of one length within 0 ... {size - 1}, got shapes "
                f"{tuple(rows.shape)} and {tuple(columns.shape)}. Give one place for each entry."
            )
        self.size, self.keep, self.factorizations = size, keep, 0
        place = (columns.cpu() * size + rows.cpu()).numpy()
        unique, self._slot = np.unique(place, return_inverse=True)
        self._row = (unique % size).astype(np.int32)
        self._start = np.searchsorted(unique, np.arange(size + 1) * size).astype(np.int32)
        self._kept: list[tuple[np.ndarray, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": []}  # SuperLU objects cannot be pickled; a copy factorises anew

    def factor(self, entries: np.ndarray) -> Any:
        """LU factors, kept from an earlier call if the entries are the same to the bit; None where there are none."""
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import splu

        for i, (key, factors) in enumerate(self._kept):
            if np.array_equal(key, entries):
                self._kept.append(self._kept.pop(i))
                return factors
        if not np.isfinite(entries).all():
            return None
        data = np.bincount(self._slot, weights=entries, minlength=self._row.size)
        matrix: Any = csc_matrix((data, self._row, self._start), shape=(self.size, self.size))
        try:
            factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        except RuntimeError:  # exactly singular
            return None
        self.factorizations += 1
        self._kept = [*self._kept, (entries.copy(), factors)][-self.keep :]
        return factors

    def solve(self, entries: Tensor, rhs: Tensor) -> Tensor:
        """``A^-1 rhs`` for ``(nnz,)`` or ``(*batch, nnz)`` and ``(*batch, n)``; NaN where A has no factors."""
        keys = entries.detach().to("cpu", torch.float64)
        loads = rhs.detach().to("cpu", torch.float64).reshape(-1, self.size).numpy()
        out = np.full_like(loads, np.nan)
        many = keys.expand(*rhs.shape[:-1], keys.shape[-1]).reshape(-1, keys.shape[-1]) if keys.ndim > 1 else keys[None]
        same = len(many) == 1 or bool((many == many[:1]).all())
        if same:  # one matrix, all right-hand sides together
            factors = self.factor(many[0].numpy())
            if factors is not None:
                out = factors.solve(np.ascontiguousarray(loads.T)).T
        else:
            for i, key in enumerate(many.numpy()):
                factors = self.factor(np.ascontiguousarray(key))
                if factors is not None:
                    out[i] = factors.solve(loads[i])
        return torch.from_numpy(np.ascontiguousarray(out)).reshape(rhs.shape).to(rhs)


@final
@dataclass(frozen=True, kw_only=True)
class SparseLU(AbstractLinearSolver):
    """Sparse direct solves of the symmetric Jacobian of a problem that can write down its entries.

    Use it below some ten thousand unknowns (grids and meshes in the plane, networks), where nothing iterative is as fast;
    give the same one to the inner solver and to `Implicit`. SuperLU works on the CPU: tensors of other devices are copied.

    Args:
        factors: the pattern with its factorisations.
        entries: ``(inner_params, outer_params) -> (nnz,)`` or ``(*batch, nnz)``: the Jacobian's entries.
        rtol: relative tolerance on ``|b - A x| / |b|`` by which the answer is judged; None: 1e-8 in float64, 1e-4 in
            float32.
        atol: absolute tolerance, in units of b.

    Raises:
        ValueError: while solving, for an operator that is not symmetric or belongs to no problem.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.hypergradients import Implicit
        >>> from sciopt.inner import LinearSolve
        >>> place = torch.arange(2)
        >>> lu = SparseLU(factors=SparseFactors(place, place, 2), entries=lambda x, phi: phi)
        >>> problem = Minimize(lambda x, phi: (0.5 * phi * x**2 - x).sum())
        >>> phi, x = torch.tensor([2.0, 4.0], dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.float64)
        >>> best_response(problem, phi, init=x, solver=LinearSolve(lu), hypergradient=Implicit(lu)).value.sum().backward()
        >>> phi.grad, lu.factors.factorizations
        (tensor([-0.2500, -0.0625], dtype=torch.float64), 1)

    References:
        Li. "An overview of SuperLU". ACM Trans. Math. Software 31 (2005).
    """

    direct: ClassVar[bool] = True
    tailored: ClassVar[bool] = True
    factors: SparseFactors = field(repr=False)
    entries: Callable[[Any, Any], Tensor]
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("SparseLU", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        if operator.evaluate is None or not operator.symmetric:
            raise ValueError(
                f"SparseLU: expected the symmetric Jacobian of a problem, got an operator with tags "
                f"{format_tags(operator.tags)}. Use it in LinearSolve(...) and Implicit(...), or take LU."
            )
        rtol = check_rtol_dtype("SparseLU", self.rtol, rhs.dtype)
        with torch.no_grad():
            entries = operator.evaluate(self.entries).detach()
            value = self.factors.solve(entries, rhs)
            miss = rhs - operator.mv(value).detach()
            better = value + self.factors.solve(entries, miss)
            again = rhs - operator.mv(better).detach()
            norm, refined = (torch.linalg.vector_norm(v, dim=-1) for v in (miss, again))
            value = torch.where((refined < norm).unsqueeze(-1), better, value)
            norm = torch.fmin(norm, refined)
            scale = torch.linalg.vector_norm(rhs, dim=-1)
        code = torch.where(norm <= self.atol + rtol * scale, int(Status.CONVERGED), int(Status.STAGNATED))
        code = torch.where(torch.isfinite(norm), code, int(Status.SINGULAR))
        return Solution(value=value, status_code=code, residual_norm=norm, num_steps=torch.ones_like(code))
