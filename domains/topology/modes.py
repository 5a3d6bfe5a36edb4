"""Sparse direct solves of the lowest vibration mode and of its adjoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.domains.topology.direct import FactorCache
from sciopt.domains.topology.energy import ElasticEnergy
from sciopt.domains.topology.vibration import VibrationProblem
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.operator import LinearOperator
from sciopt.problem import Eigen
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["DirectEigenAdjoint", "DirectModes", "ModeMatrices"]

DISTINCT = 1e-8  # relative gap to the next eigenvalue below which a mode is not simple


class ModeMatrices:
    """K and M of one problem as sparse matrices, assembled on patterns found once.

    Args:
        problem: the vibrating structure.

    Example:
        >>> from sciopt.domains.topology import Grid, VibrationProblem, cantilever
        >>> problem = VibrationProblem(structure=cantilever(Grid(nx=4, ny=2)), volume_fraction=0.5)
        >>> k, m = ModeMatrices(problem).pencil(np.ones((2, 8)))
        >>> k.shape == m.shape == (24, 24)
        True
    """

    def __init__(self, problem: VibrationProblem) -> None:
        self.problem = problem
        self._stiffness = FactorCache(problem.energy)
        lumped = problem.lumped if problem.masses is not None else None
        self._mass = FactorCache(_MassForm(problem.energy, problem.element_mass, lumped))

    def pencil(self, weights: np.ndarray) -> tuple[Any, Any]:
        """K and M for the factors ``(2, elements)`` of the elements' matrices."""
        return self._stiffness.matrix(weights[0]), self._mass.matrix(weights[1])


@dataclass(frozen=True, eq=False)
class _MassForm:
    """The kinetic energy as a sum over elements, for the assembly."""

    energy: ElasticEnergy
    element: Tensor
    springs: Tensor | None

    @property
    def gather(self) -> Tensor:
        return self.energy.gather

    @property
    def size(self) -> int:
        return self.energy.size

    def moduli(self, state: Tensor, design: Tensor, /) -> Tensor:
        return torch.ones(self.energy.gather.shape[0], dtype=torch.float64)


@final
@dataclass(frozen=True, kw_only=True)
class DirectModes(AbstractSolver):
    """The lowest eigenpair by shift-inverted Lanczos iteration on a sparse factorization: inner solver of a vibration.

    A mode whose eigenvalue is not simple ends as `Status.SINGULAR`: its derivative does not exist. The sign of the
    vector is taken from the start.

    Args:
        matrices: of the problem.
        rtol: tolerance on ``|K v - w^2 M v|`` relative to ``|K| |v|``; None: 1e-10 in float64, 1e-4 in float32.
        atol: absolute tolerance.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.domains.topology import Grid, VibrationProblem, cantilever
        >>> problem = VibrationProblem(structure=cantilever(Grid(nx=6, ny=2)), volume_fraction=0.5)
        >>> x = torch.ones(2, 6, dtype=torch.float64)
        >>> solver = DirectModes(matrices=ModeMatrices(problem))
        >>> best_response(problem.bilevel.inner, x, init=problem.rest(x), solver=solver).status.name
        'CONVERGED'
    """

    solves: ClassVar = (Eigen,)
    matrices: ModeMatrices = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("DirectModes", self.rtol, self.atol)

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        if oracle.differentiable:
            raise TypeError(
                "DirectModes: expected an implicit hypergradient, got one that differentiates through the solver. "
                "Use Implicit(DirectEigenAdjoint(matrices=...))."
            )
        rtol = check_rtol_dtype("DirectModes", self.rtol, x.dtype)
        problem = self.matrices.problem
        at, where = places(oracle.system.layout, x)
        with torch.no_grad():
            weights = oracle.system.call(problem.weights, x, oracle.args).detach()
            keys = weights.expand(*x.shape[:-1], *weights.shape[-2:]).reshape(-1, *weights.shape[-2:])
            starts = x.reshape(-1, x.shape[-1])[:, at]
            rows, codes, sizes = [], [], []
            for key, start in zip(keys, starts, strict=True):  # ARPACK takes one pencil at a time
                value, vector, simple, size = self._pair(key, start)
                rows.append(torch.zeros_like(x.reshape(-1, x.shape[-1])[0]))
                rows[-1][at], rows[-1][where] = torch.from_numpy(vector).to(x), value
                codes.append(int(Status.CONVERGED) if simple else int(Status.SINGULAR))
                sizes.append(size)
            found = torch.stack(rows).reshape(x.shape)
            norm = torch.linalg.vector_norm(oracle.residual(found), dim=-1)
            scale = x.new_tensor(sizes).reshape(x.shape[:-1]) * torch.linalg.vector_norm(found[..., at], dim=-1)
        code = torch.tensor(codes, device=x.device).reshape(x.shape[:-1])
        code = torch.where(
            (norm > self.atol + rtol * scale) & (code == int(Status.CONVERGED)), int(Status.STAGNATED), code
        )
        code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
        return Solution(
            value=found, status_code=code, residual_norm=norm, num_steps=torch.ones_like(code), state={"scale": scale}
        )

    def _pair(self, weights: Tensor, start: Tensor) -> tuple[float, np.ndarray, bool, float]:
        from scipy.sparse.linalg import eigsh, splu

        key = weights.to("cpu", torch.float64).numpy()
        first = start.to("cpu", torch.float64).numpy()
        if not np.isfinite(key).all() or not np.isfinite(first).all():
            return float("nan"), np.full(first.shape, np.nan), True, float("nan")
        k, m = self.matrices.pencil(key)
        size = float(np.abs(k).sum(axis=1).max())
        if k.shape[0] <= 12:
            from scipy.linalg import eigh

            values, vectors = eigh(k.toarray(), m.toarray())
        else:
            from scipy.sparse.linalg import LinearOperator as ScipyOperator

            factors = splu(k, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            inverse: Any = ScipyOperator(k.shape, matvec=factors.solve, dtype=np.float64)  # type: ignore[call-arg]
            values, vectors = eigsh(k, k=3, M=m, sigma=0.0, OPinv=inverse, v0=first, tol=0)
            order = np.argsort(values)
            values, vectors = values[order], vectors[:, order]
        vector = vectors[:, 0] / np.sqrt(vectors[:, 0] @ (m @ vectors[:, 0]))
        sign = -1.0 if vector @ (m @ first) < 0 else 1.0
        simple = len(values) < 2 or values[1] - values[0] > DISTINCT * abs(values[1])
        return float(values[0]), sign * vector, bool(simple), size


@final
@dataclass(frozen=True, kw_only=True)
class DirectEigenAdjoint(AbstractLinearSolver):
    """Solve the adjoint of an eigenpair by one sparse LU of the bordered matrix (Nelson's method).

    Args:
        matrices: those given to `DirectModes`.
        rtol: tolerance on the residual relative to the right-hand side and ``|K| |u|``; None: 1e-8 in float64.
        atol: absolute tolerance.

    Raises:
        ValueError: in ``solve``, for an operator that does not come from a problem.

    Example:
        >>> from sciopt.bilevel import hypergradient
        >>> from sciopt.hypergradients import Implicit
        >>> from sciopt.domains.topology import Grid, VibrationProblem, cantilever
        >>> problem = VibrationProblem(structure=cantilever(Grid(nx=6, ny=2)), volume_fraction=0.5)
        >>> matrices, x = ModeMatrices(problem), torch.full((2, 6), 0.5, dtype=torch.float64)
        >>> hg = hypergradient(problem.bilevel, x, init=problem.rest(x), solver=DirectModes(matrices=matrices),
        ...                    hypergradient=Implicit(DirectEigenAdjoint(matrices=matrices)), certificate=False)
        >>> bool(hg.grad[0, 0] < 0 < hg.grad[0, -1])  # stiffness helps at the clamp, mass hurts at the tip
        True

    References:
        Nelson. "Simplified calculation of eigenvector derivatives". AIAA Journal 14 (1976).
    """

    direct: ClassVar[bool] = True
    matrices: ModeMatrices = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_tolerances("DirectEigenAdjoint", self.rtol, self.atol)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        evaluate: Any = operator.evaluate
        if evaluate is None:
            raise ValueError(
                "DirectEigenAdjoint: expected the `operator` of a vibration, got one without `evaluate`. Use it in "
                "Implicit(...) only."
            )
        rtol = check_rtol_dtype("DirectEigenAdjoint", self.rtol, rhs.dtype)
        problem = self.matrices.problem
        with torch.no_grad():
            weights = evaluate(problem.weights).detach()
            pairs = evaluate(lambda pair, density: torch.cat([pair["value"], pair["vector"]], dim=-1)).detach()
            flat = rhs.reshape(-1, rhs.shape[-1]).to("cpu", torch.float64).numpy()
            keys = weights.expand(*rhs.shape[:-1], *weights.shape[-2:]).reshape(-1, *weights.shape[-2:])
            keys, states = keys.to("cpu", torch.float64).numpy(), pairs.reshape(-1, pairs.shape[-1]).to("cpu").numpy()
            rows = [self._bordered(k, s, f) for k, s, f in zip(keys, states, flat, strict=True)]
            value = torch.from_numpy(np.stack([row for row, _ in rows])).reshape(rhs.shape).to(rhs)
            size = rhs.new_tensor([size for _, size in rows]).reshape(rhs.shape[:-1])
            norm = torch.linalg.vector_norm(operator.mv(value).detach() - rhs, dim=-1)
            scale = torch.linalg.vector_norm(rhs, dim=-1) + size * torch.linalg.vector_norm(value, dim=-1)
        code = torch.where(norm <= self.atol + rtol * scale, int(Status.CONVERGED), int(Status.STAGNATED))
        code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
        return Solution(
            value=value, status_code=code, residual_norm=norm, num_steps=torch.ones_like(code), state={"scale": scale}
        )

    def _bordered(self, weights: np.ndarray, pair: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, float]:
        """Solve ``[[0, -(M v)^T], [-M v, K - w^2 M]] u = rhs``, value first as in the problem's tree."""
        from scipy.sparse import bmat, csc_matrix
        from scipy.sparse.linalg import splu

        k, m = self.matrices.pencil(weights)
        border = -csc_matrix(m @ pair[1:]).T
        matrix = bmat([[None, border.T], [border, k - pair[0] * m]], format="csc")
        size = float(np.abs(k).sum(axis=1).max())
        if not np.isfinite(matrix.data).all():
            return np.full_like(rhs, np.nan), size
        try:
            return splu(matrix).solve(rhs), size
        except RuntimeError:  # exactly singular: the eigenvalue is not simple
            return np.full_like(rhs, np.nan), size


def places(layout: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the vector and of the value in the flat unknown."""
    tree = layout.unflatten(torch.arange(x.shape[-1], device=x.device))
    return tree["vector"].reshape(-1), tree["value"].reshape(-1)
