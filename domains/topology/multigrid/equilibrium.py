"""Equilibrium of elastic structures and its adjoint by multigrid, sharing one hierarchy per design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.domains.topology.cut_off import refuse_cut_off
from sciopt.domains.topology.multigrid.hierarchy import Hierarchy, VCycle
from sciopt.domains.topology.multigrid.pcg import Outcome, dot, solve_fields
from sciopt.domains.topology.multigrid.placement import Placement
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.operator import LinearOperator
from sciopt.problem import Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["HierarchyCache", "MultigridAdjoint", "MultigridEquilibrium"]


class LatticeForm(Protocol):
    """A quadratic energy of elements on a grid: what multigrid asks of `ElasticEnergy` and `ConductionEnergy`."""

    @property
    def placement(self) -> Placement:
        """Elements, free unknowns and springs."""
        ...

    @property
    def size(self) -> int:
        """Number of free unknowns."""
        ...

    def moduli(self, state: Tensor, design: Tensor, /) -> Tensor:
        """Factor of each element's matrix, ``(*batch, elements)``."""
        ...


class HierarchyCache:
    """The last few hierarchies of one structure, found again by the moduli they belong to, with the last solution.

    Made for one run and passed to its solvers; it is the only thing here that changes. Memory: some 0.4 kB per cube and
    hierarchy in float32. Several right-hand sides of one stiffness (load cases) share a hierarchy and are solved
    together; so are several stiffnesses with a right-hand side each. With both, one stiffness follows the other.

    Args:
        energy: an `ElasticEnergy` or a `ConductionEnergy`, in two or three dimensions.
        cycle: the preconditioner.
        size: how many hierarchies to keep; more where one call needs more.

    Example:
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> cache = HierarchyCache(energy)
        >>> out = cache.solve(torch.ones(8, dtype=torch.float64), energy.load, rtol=1e-8)
        >>> out = cache.solve(torch.ones(8, dtype=torch.float64), energy.load, rtol=1e-8)
        >>> cache.hierarchies, out.num_steps.item()  # the second solve starts from the solution of the first
        (1, 0)
    """

    def __init__(self, energy: LatticeForm, cycle: VCycle | None = None, size: int = 1) -> None:
        self.energy = energy
        self.cycle = cycle or VCycle()
        self.size = size
        self.hierarchies = 0
        self.placement = energy.placement
        self._kept: list[tuple[Tensor, Hierarchy, list[tuple[Tensor, Tensor]]]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": []}

    def solve(
        self,
        moduli: Tensor,
        rhs: Tensor,
        *,
        rtol: float,
        atol: float = 0.0,
        max_steps: int = 200,
        start: Tensor | None = None,
    ) -> Outcome:
        """Solve ``K(moduli) u = rhs`` in float64.

        Args:
            moduli: ``(*batch, num_elements)``, or with trailing ones in the place of trailing dimensions of the batch.
            rhs: ``(*batch, n)``.
            rtol: relative tolerance on ``|rhs - K u| / |rhs|``.
            atol: absolute tolerance.
            max_steps: most steps of conjugate gradients.
            start: ``(*batch, n)``; without it the best multiple of the last solution for these moduli, which is the
                solution itself when a right-hand side comes back scaled, as for the adjoint of a compliance.

        Returns:
            `Outcome` with flat ``value`` ``(*batch, n)`` float64 and ``(*batch,)`` for the rest.
        """
        batch, place = tuple(rhs.shape[:-1]), self.placement
        flat = moduli.detach().reshape(-1, moduli.shape[-1]).double()
        if 1 < len(flat) < rhs.shape[:-1].numel():
            return self._one_by_one(flat, rhs, rtol, atol, max_steps, start)
        if not bool(torch.isfinite(flat).all()):
            nan = torch.full_like(rhs, torch.nan, dtype=torch.float64)
            code = torch.full(batch, int(Status.NONFINITE), device=rhs.device)
            return Outcome(value=nan, residual_norm=nan[..., 0], status_code=code, num_steps=torch.zeros_like(code))
        hierarchy, solved = self.hierarchy(flat)
        operator = place.operator(place.lattice.elements(flat.unflatten(-1, place.lattice.shape)), tied=True)
        load = place.field(rhs.detach().double())
        if start is not None:
            guess = place.field(start.detach().double())
        else:
            guess = best_multiple(load, solved)
        out = solve_fields(operator, hierarchy, load, guess, rtol=rtol, atol=atol, max_steps=max_steps)
        solved[:] = [(dot(load, out.value), out.value)]
        del load
        return Outcome(
            value=place.flat(out.value, batch),
            residual_norm=out.residual_norm.view(batch),
            status_code=out.status_code.view(batch),
            num_steps=out.num_steps.view(batch),
        )

    def _one_by_one(
        self, moduli: Tensor, rhs: Tensor, rtol: float, atol: float, max_steps: int, start: Tensor | None
    ) -> Outcome:
        """`solve` with several right-hand sides for each of several moduli ``(stiffnesses, num_elements)``."""
        self.size = max(self.size, len(moduli))
        loads = rhs.reshape(len(moduli), -1, rhs.shape[-1])
        starts = [None] * len(moduli) if start is None else start.reshape(loads.shape)
        outs = [
            self.solve(row, load, rtol=rtol, atol=atol, max_steps=max_steps, start=guess)
            for row, load, guess in zip(moduli, loads, starts, strict=True)
        ]
        batch = tuple(rhs.shape[:-1])
        return Outcome(
            value=torch.stack([out.value for out in outs]).view(rhs.shape),
            residual_norm=torch.stack([out.residual_norm for out in outs]).view(batch),
            status_code=torch.stack([out.status_code for out in outs]).view(batch),
            num_steps=torch.stack([out.num_steps for out in outs]).view(batch),
        )

    def hierarchy(self, moduli: Tensor) -> tuple[Hierarchy, list[tuple[Tensor, Tensor]]]:
        """The hierarchy for moduli ``(rows, num_elements)``, and the last solution with its work."""
        for i, (key, hierarchy, solved) in enumerate(self._kept):
            if key.shape == moduli.shape and key.device == moduli.device and torch.equal(key, moduli):
                self._kept.append(self._kept.pop(i))
                return hierarchy, solved
        self._kept = self._kept[1 - self.size :] if self.size > 1 else []  # make room before the set-up
        lattice = self.placement.lattice
        fine = self.placement.operator(lattice.elements(moduli.unflatten(-1, lattice.shape)), tied=True)
        hierarchy = Hierarchy.build(fine, self.cycle)
        self.hierarchies += 1
        self._kept.append((moduli.clone(), hierarchy, []))
        return hierarchy, self._kept[-1][2]


def best_multiple(load: Tensor, solved: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The multiple of an earlier solution that is nearest in energy to the one wanted."""
    if not solved or solved[0][1].shape != load.shape:
        return None
    work, value = solved[0]
    factor = torch.where(work > 0, dot(load, value) / work, 0.0)
    return value * factor[:, None, None]


@final
@dataclass(frozen=True, kw_only=True)
class MultigridEquilibrium(AbstractSolver):
    """Settle a linear elastic structure by multigrid-preconditioned conjugate gradients.

    The inner solver for `ElasticEnergy` and `ConductionEnergy` from some ten thousand unknowns on (see `settle`); time and
    memory grow in proportion to the elements. Warm: starts from the displacements given as ``init``. Loads that only void
    carries end as SINGULAR and are named (see `refuse_cut_off`).

    Args:
        cache: the structure with its hierarchies; share it with `MultigridAdjoint`.
        rtol: relative tolerance on ``|f - K u| / |f|``; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance, in units of force.
        max_steps: most steps of conjugate gradients.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=8, ny=4)), modulus=SIMP())
        >>> density = torch.ones(4, 8, dtype=torch.float64)
        >>> init = torch.zeros(energy.size, dtype=torch.float64)
        >>> solver = MultigridEquilibrium(cache=HierarchyCache(energy))
        >>> solution = best_response(Minimize(energy), density, init=init, solver=solver)
        >>> solution.status.name, round(energy.work(solution.value).item(), 3)
        ('CONVERGED', 36.857)
    """

    cache: HierarchyCache = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    solves = (Minimize,)

    def __post_init__(self) -> None:
        check_tolerances("MultigridEquilibrium", self.rtol, self.atol, self.max_steps)

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        if oracle.differentiable:
            raise TypeError(
                "MultigridEquilibrium: expected an implicit hypergradient, got one that differentiates through the solver. "
                "Its steps have no graph: use Implicit(MultigridAdjoint(cache=...))."
            )
        rtol = check_rtol_dtype("MultigridEquilibrium", self.rtol, x.dtype)
        with torch.no_grad():
            moduli = oracle.system.call(self.cache.energy.moduli, x, oracle.args).detach()
            force = -oracle.residual(torch.zeros_like(x))
            start = x if bool(x.any()) else None
            out = self.cache.solve(moduli, force, rtol=rtol, atol=self.atol, max_steps=self.max_steps, start=start)
            value = out.value.to(x.dtype)
            norm = torch.linalg.vector_norm(oracle.residual(value), dim=-1)
            solution = verdict(self.cache, out, value, norm, moduli, force, rtol, self.atol)
            limit = 1.01 * (self.atol + rtol * torch.linalg.vector_norm(force, dim=-1))
            return refuse_cut_off(self.cache.energy, solution, force, moduli, limit)


@final
@dataclass(frozen=True, kw_only=True)
class MultigridAdjoint(AbstractLinearSolver):
    """Solve the adjoint of an elastic equilibrium with the hierarchy its forward solve left in the cache.

    For use in ``Implicit(MultigridAdjoint(cache=cache))`` with the operator of a problem whose loss is the cache's
    energy; the residual it reports is measured on the operator itself. Free where the adjoint is a multiple of the
    displacements, as for the compliance.

    Args:
        cache: the one given to `MultigridEquilibrium`.
        rtol: relative tolerance on ``|b - K y| / |b|``; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance.
        max_steps: most steps of conjugate gradients.

    Raises:
        ValueError: in ``solve``, for an operator that does not come from a problem.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.hypergradients import Implicit
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever_3d
        >>> energy = ElasticEnergy(structure=cantilever_3d(Grid(nx=8, ny=4, nz=4)), modulus=SIMP())
        >>> cache = HierarchyCache(energy)
        >>> density = torch.ones(4, 4, 8, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(energy.size, dtype=torch.float64)
        >>> solution = best_response(Minimize(energy), density, init=init, solver=MultigridEquilibrium(cache=cache),
        ...                          hypergradient=Implicit(MultigridAdjoint(cache=cache)))
        >>> energy.work(solution.value).backward()
        >>> bool((density.grad < 0).all()), cache.hierarchies
        (True, 1)
    """

    tailored: ClassVar[bool] = True
    cache: HierarchyCache = field(repr=False)
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_tolerances("MultigridAdjoint", self.rtol, self.atol, self.max_steps)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        evaluate: Callable[..., Any] | None = operator.evaluate
        if evaluate is None:
            raise ValueError(
                "MultigridAdjoint: expected the `operator` of an elastic inner problem, got one without `evaluate`. Use it "
                "in Implicit(...) only, or take CG for operators of other kinds."
            )
        rtol = check_rtol_dtype("MultigridAdjoint", self.rtol, rhs.dtype)
        with torch.no_grad():
            moduli = evaluate(self.cache.energy.moduli).detach()
            out = self.cache.solve(moduli, rhs, rtol=rtol, atol=self.atol, max_steps=self.max_steps, start=x0)
            value = out.value.to(rhs.dtype)
            norm = torch.linalg.vector_norm(operator.mv(value).detach() - rhs, dim=-1)
        return verdict(self.cache, out, value, norm, moduli, rhs, rtol, self.atol)


def verdict(
    cache: HierarchyCache,
    out: Outcome,
    value: Tensor,
    norm: Tensor,
    moduli: Tensor,
    rhs: Tensor,
    rtol: float,
    atol: float,
) -> Solution:
    """`Solution` by the residual that the problem itself reports; what rounding of the value explains is no failure."""
    scale = torch.linalg.vector_norm(rhs, dim=-1)
    inside = moduli.amax(-1) * torch.linalg.matrix_norm(cache.placement.element.to(value))
    if cache.placement.springs is not None:
        inside = inside.clamp(min=float(cache.placement.springs.max()))
    floor = torch.finfo(value.dtype).eps * inside * torch.linalg.vector_norm(value, dim=-1)
    # the recurrence stops at the limit in its own arithmetic; the problem's may differ by its rounding
    done = norm <= 1.01 * torch.maximum(atol + rtol * scale, floor)
    unfinished = out.status_code.clamp(min=int(Status.MAX_STEPS))
    code = torch.where(done, int(Status.CONVERGED), unfinished)
    code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
    return Solution(value=value, status_code=code, residual_norm=norm, num_steps=out.num_steps, state={"scale": scale})
