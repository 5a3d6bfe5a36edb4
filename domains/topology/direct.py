"""Sparse direct solves of the equilibrium and of its adjoint, which share one factorization.

Below some ten thousand unknowns nothing beats SciPy's sparse LU. SciPy works on the CPU, one matrix at a time: batches
are solved row by row, and tensors of other devices are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.domains.topology.assembly import QuadraticEnergy
from sciopt.domains.topology.cut_off import refuse_cut_off
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.operator import LinearOperator
from sciopt.problem import Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["DirectAdjoint", "DirectEquilibrium", "FactorCache"]


class FactorCache:
    """The last few factorizations of one structure's stiffness matrix, found again by the moduli they belong to.

    Made for one run and passed to its solvers; it is the only thing here that changes.

    Args:
        energy: the structure's energy: an `ElasticEnergy`, or another one of elements with moduli.
        size: how many factorizations to keep for each row of a batch of moduli.

    Example:
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> cache = FactorCache(energy)
        >>> u = cache.solve(torch.ones(8, dtype=torch.float64), energy.load)
        >>> u = cache.solve(torch.ones(8, dtype=torch.float64), energy.load)
        >>> cache.factorizations
        1
    """

    def __init__(self, energy: QuadraticEnergy, size: int = 2) -> None:
        self.energy = energy
        self.size = size
        self.factorizations = 0
        self._rows = 1  # of the largest batch seen
        self._kept: list[tuple[np.ndarray, Any]] = []
        # Column-compressed pattern of K: entry s of (element, local pair) adds to nonzero slot[s]; held ones are dropped.
        n, gather = energy.size, energy.gather.numpy()
        k = gather.shape[1]
        rows, columns = np.repeat(gather, k, axis=1), np.tile(gather, (1, k))
        self._pairs = ((rows < n) & (columns < n)).reshape(-1)
        place = (columns * n + rows).reshape(-1)[self._pairs]
        unique, self._slot = np.unique(place, return_inverse=True)
        self._row = (unique % n).astype(np.int32)
        self._start = np.searchsorted(unique, np.arange(n + 1) * n).astype(np.int32)
        self._diagonal = np.searchsorted(unique, np.arange(n) * (n + 1))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": []}  # SuperLU objects cannot be pickled; a copy factorizes anew

    def matrix(self, moduli: np.ndarray) -> Any:
        """K as a SciPy CSC matrix over the free displacements."""
        from scipy.sparse import csc_matrix

        element = self.energy.element.numpy()
        values = (moduli[:, None] * element.reshape(-1, element.shape[-1] ** 2)).reshape(-1)[self._pairs]
        data = np.bincount(self._slot, weights=values, minlength=self._row.size)
        if self.energy.springs is not None:
            data[self._diagonal] += self.energy.springs.numpy()
        return csc_matrix((data, self._row, self._start), shape=(self.energy.size,) * 2)

    def factor(self, moduli: np.ndarray) -> Any:
        """LU factors of K for these moduli, kept from an earlier call if the moduli are the same to the bit."""
        from scipy.sparse.linalg import splu

        for i, (key, factors) in enumerate(self._kept):
            if np.array_equal(key, moduli):
                self._kept.append(self._kept.pop(i))
                return factors
        # K is symmetric positive definite: order its own pattern and pivot on the diagonal.
        factors = splu(
            self.matrix(moduli), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        self.factorizations += 1
        self._kept = [*self._kept, (moduli.copy(), factors)][-self.size * self._rows :]
        return factors

    def solve(self, moduli: Tensor, rhs: Tensor) -> Tensor:
        """``K(moduli)^-1 rhs`` for ``(*batch, num_elements)`` and ``(*batch, n)``, which broadcast; NaN where K has no
        factors. Right-hand sides of the same K are solved together."""
        keys, lead = moduli, ()
        if moduli.ndim > 1:  # a dimension of one before the last stands for load cases of one K
            many = moduli.shape[-2] > 1
            keys, lead = (moduli, rhs.shape[:-1]) if many else (moduli.squeeze(-2), rhs.shape[:-2])
        keys = keys.expand(*lead, keys.shape[-1]).detach().to("cpu", torch.float64).reshape(-1, keys.shape[-1]).numpy()
        loads = rhs.detach().to("cpu", torch.float64).reshape(len(keys), -1, rhs.shape[-1]).numpy()
        out = np.empty_like(loads)
        self._rows = max(self._rows, len(keys))  # the adjoint of a batch finds all of its factors again
        for row, load in enumerate(loads):  # SuperLU takes one matrix at a time
            out[row] = self._solve_one(keys[row], load)
        return torch.from_numpy(out).reshape(rhs.shape).to(rhs)

    def _solve_one(self, moduli: np.ndarray, load: np.ndarray) -> np.ndarray:
        if not np.isfinite(moduli).all():
            return np.full_like(load, np.nan)
        try:
            factors = self.factor(moduli)
        except RuntimeError:  # SuperLU: the matrix is exactly singular
            return np.full_like(load, np.nan)
        return factors.solve(load[0])[None] if len(load) == 1 else factors.solve(np.ascontiguousarray(load.T)).T


@final
@dataclass(frozen=True, kw_only=True)
class DirectEquilibrium(AbstractSolver):
    """Settle a linear elastic structure by one sparse LU solve: the inner solver for `ElasticEnergy`.

    One Newton step from zero, exact because the energy is quadratic. Converged means that the gradient of the energy is
    below ``atol + rtol * (|f| + E_max |K_e| |u|)``: small against the forces inside the structure, which rounding of u
    disturbs. Loads that only void carries end as SINGULAR and are named (see `refuse_cut_off`).

    Args:
        cache: the structure with its factorizations; share it with `DirectAdjoint`.
        rtol: relative tolerance; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance, in units of force.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=8, ny=4)), modulus=SIMP())
        >>> density = torch.ones(4, 8, dtype=torch.float64)
        >>> init = torch.zeros(energy.size, dtype=torch.float64)
        >>> solution = best_response(Minimize(energy), density, init=init, solver=DirectEquilibrium(cache=FactorCache(energy)))
        >>> solution.status.name, round(energy.work(solution.value).item(), 3)
        ('CONVERGED', 36.857)
    """

    cache: FactorCache = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0

    solves = (Minimize,)

    def __post_init__(self) -> None:
        check_tolerances("DirectEquilibrium", self.rtol, self.atol)

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        if oracle.differentiable:
            raise TypeError(
                "DirectEquilibrium: expected an implicit hypergradient, got one that differentiates through the solver. "
                "SciPy's factorization has no graph: use Implicit(DirectAdjoint(cache=...))."
            )
        rtol = check_rtol_dtype("DirectEquilibrium", self.rtol, x.dtype)
        energy = self.cache.energy
        with torch.no_grad():
            moduli = oracle.system.call(energy.moduli, x, oracle.args).detach()
            force = -oracle.residual(torch.zeros_like(x))
            value = self.cache.solve(moduli, force)
            residual = oracle.residual(value)
            norm = torch.linalg.vector_norm(residual, dim=-1)
            size = torch.linalg.vector_norm(force, dim=-1)
            if x.dtype == torch.float64 and bool((norm > self.atol + rtol * size).any()):  # huge displacements
                refined = value - self.cache.solve(moduli, residual)
                again = torch.linalg.vector_norm(oracle.residual(refined), dim=-1)
                value = torch.where((again < norm).unsqueeze(-1), refined, value)
                norm = torch.fmin(again, norm)
            inside = largest_stiffness(energy, moduli)
            scale = size + inside * torch.linalg.vector_norm(value, dim=-1)
            solution = verdict(value, norm, scale, self.atol + rtol * scale)
            return refuse_cut_off(energy, solution, force, moduli, self.atol + rtol * size)


@final
@dataclass(frozen=True, kw_only=True)
class DirectAdjoint(AbstractLinearSolver):
    """Solve the adjoint of an elastic equilibrium with the factorization its forward solve left in the cache.

    Costs two triangular solves. For use in ``Implicit(DirectAdjoint(cache=cache))`` with the operator of a problem whose
    loss is the cache's energy; the residual it reports is measured on the operator itself.

    Args:
        cache: the one given to `DirectEquilibrium`.
        rtol: relative tolerance, measured as by `DirectEquilibrium`; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance.

    Raises:
        ValueError: in ``solve``, for an operator that does not come from a problem.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.hypergradients import Implicit
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=8, ny=4)), modulus=SIMP())
        >>> cache = FactorCache(energy)
        >>> density = torch.ones(4, 8, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(energy.size, dtype=torch.float64)
        >>> solution = best_response(Minimize(energy), density, init=init, solver=DirectEquilibrium(cache=cache),
        ...                          hypergradient=Implicit(DirectAdjoint(cache=cache)))
        >>> energy.work(solution.value).backward()
        >>> bool((density.grad < 0).all()), cache.factorizations
        (True, 1)
    """

    direct: ClassVar[bool] = True
    cache: FactorCache = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("DirectAdjoint", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        evaluate: Callable[..., Any] | None = operator.evaluate
        if evaluate is None:
            raise ValueError(
                "DirectAdjoint: expected the `operator` of an elastic inner problem, got one without `evaluate`. Use it in "
                "Implicit(...) only, or take CG for operators of other kinds."
            )
        rtol = check_rtol_dtype("DirectAdjoint", self.rtol, rhs.dtype)
        energy = self.cache.energy
        with torch.no_grad():
            moduli = evaluate(energy.moduli).detach()
            value = self.cache.solve(moduli, rhs)
            norm = torch.linalg.vector_norm(operator.mv(value).detach() - rhs, dim=-1)
            inside = largest_stiffness(energy, moduli)
            scale = torch.linalg.vector_norm(rhs, dim=-1) + inside * torch.linalg.vector_norm(value, dim=-1)
        return verdict(value, norm, scale, self.atol + rtol * scale)


def largest_stiffness(energy: QuadraticEnergy, moduli: Tensor) -> Tensor:
    """Norm of the stiffest element's matrix, ``(*batch,)``, a spring counting as an element."""
    norm = torch.linalg.matrix_norm(energy.element.to(moduli))
    largest = (moduli * norm).amax(-1) if norm.ndim else moduli.amax(-1) * norm
    return largest if energy.springs is None else largest.clamp(min=float(energy.springs.max()))


def verdict(value: Tensor, norm: Tensor, scale: Tensor, tolerance: Tensor) -> Solution:
    """One-step `Solution` with a status per row: converged, stagnated (rounding), or not finite."""
    code = torch.where(norm <= tolerance, int(Status.CONVERGED), int(Status.STAGNATED))
    code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
    return Solution(
        value=value, status_code=code, residual_norm=norm, num_steps=torch.ones_like(code), state={"scale": scale}
    )
