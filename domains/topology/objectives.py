"""What makes a settled structure good, beyond its stiffness: outputs, targets, stresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_option
from sciopt.domains.topology.elements import elasticity, strain_at_centre
from sciopt.domains.topology.energy import ElasticEnergy
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.space import DesignSpace
from sciopt.domains.topology.structure import Structure
from sciopt.outer.abstract import AbstractOuterStep

__all__ = ["AbstractObjective", "DisplacementTarget", "ElasticProblem", "OutputDisplacement", "StressNorm"]


class AbstractObjective(ABC):
    """An outer loss of the settled displacements and the design, to be minimised."""

    @abstractmethod
    def check(self, structure: Structure) -> None:
        """Raise ValueError where the objective does not fit the structure."""

    @abstractmethod
    def __call__(self, problem: ComplianceProblem, displacements: Tensor, density: Tensor) -> Tensor:
        """The loss ``(*batch,)`` for displacements ``(*batch, n)``; load cases are part of the batch."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OutputDisplacement(AbstractObjective):
    """A weighted sum of displacements: what a mechanism moves when it is pushed.

    Args:
        weights: of every unknown, ``(num_dofs,)``; `Builder.unit` makes them. Negative ones ask for large displacements.

    Example:
        >>> OutputDisplacement(weights=np.eye(12)[3]).weights.sum().item()
        1.0

    References:
        Sigmund. "On the design of compliant mechanisms using topology optimization". 1997.
    """

    weights: np.ndarray

    def check(self, structure: Structure) -> None:
        shape, n = np.shape(self.weights), structure.grid.num_dofs
        if shape != (n,) or not np.isfinite(self.weights).all() or not np.any(self.weights[structure.free]):
            raise ValueError(
                f"OutputDisplacement: expected finite `weights` of shape ({n},), not zero on all free unknowns of structure "
                f"{structure.name!r}, got shape {shape}. Name an output that is not held."
            )

    def __call__(self, problem: ComplianceProblem, displacements: Tensor, density: Tensor) -> Tensor:
        weights = torch.from_numpy(self.weights[problem.structure.free]).to(displacements)
        return (displacements * weights).sum(-1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DisplacementTarget(AbstractObjective):
    """Half the squared distance of chosen displacements from their targets, ``1/2 sum_i (u_i - t_i)^2``.

    Args:
        unknowns: numbers of the observed unknowns ``(k,)`` (see `Grid`).
        target: their displacements, ``(k,)`` or one row per load case ``(cases, k)``.

    Example:
        >>> DisplacementTarget(unknowns=np.array([4, 5]), target=np.array([0.0, -1.0])).target.size
        2
    """

    unknowns: np.ndarray
    target: np.ndarray

    def check(self, structure: Structure) -> None:
        unknowns, shape = np.asarray(self.unknowns), np.shape(self.target)
        good = shape == unknowns.shape or shape == (structure.num_cases, *unknowns.shape)
        if unknowns.ndim != 1 or not good or not np.isfinite(self.target).all():
            raise ValueError(
                f"DisplacementTarget: expected a finite `target` of the shape of `unknowns`, or a row of them per load case "
                f"({structure.num_cases}), got {shape} for {unknowns.shape}. Give one target per observed unknown."
            )
        if not np.isin(unknowns, structure.free).all():
            raise ValueError(
                f"DisplacementTarget: expected free `unknowns` of structure {structure.name!r}, got "
                f"{unknowns[~np.isin(unknowns, structure.free)][0]}, which is held or does not exist. Observe others."
            )

    def residuals(self, problem: ComplianceProblem, displacements: Tensor) -> Tensor:
        """``u_i - t_i``, ``(*batch, k)``; for `sciopt.BilevelProblem`'s ``outer_residuals``."""
        at = torch.from_numpy(np.searchsorted(problem.structure.free, self.unknowns)).to(displacements.device)
        return displacements.index_select(-1, at) - torch.as_tensor(self.target).to(displacements)

    def __call__(self, problem: ComplianceProblem, displacements: Tensor, density: Tensor) -> Tensor:
        return 0.5 * self.residuals(problem, displacements).square().sum(-1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StressNorm(AbstractObjective):
    """p-norm of relaxed von Mises stresses at the elements' centres: a smooth stand-in for the largest one.

    The stress is that of the solid at the element's strain, times ``physical**relaxation`` (qp relaxation): at 0 density
    it vanishes, so that void carries no stress and vertices of the feasible set can be reached.

    Args:
        power: p, >= 2; the norm is at least the largest stress and at most ``elements**(1/p)`` times it.
        relaxation: exponent, SIMP's penalty minus q; >= 1/2 so that the derivative at zero density is finite.

    Raises:
        ValueError: for exponents out of range.

    Example:
        >>> StressNorm().power
        8.0

    References:
        Bruggi. "On an alternative approach to stress constraints relaxation in topology optimization". 2008. Le, Norato,
        Bruns, Ha, Tortorelli. "Stress-based topology optimization for continua". 2010. Eq. 12-15.
    """

    power: float = 8.0
    relaxation: float = 0.5

    def __post_init__(self) -> None:
        check_option("StressNorm", "power", self.power, self.power >= 2, ">= 2", "8 is a common choice.")
        ok = self.relaxation >= 0.5
        check_option("StressNorm", "relaxation", self.relaxation, ok, ">= 1/2", "1/2 is a common choice.")

    def check(self, structure: Structure) -> None:
        pass

    def squared(self, problem: ComplianceProblem, displacements: Tensor, density: Tensor) -> Tensor:
        """Squared relaxed von Mises stresses, ``(*batch, elements)``."""
        form = torch.from_numpy(von_mises_form(problem.structure.grid.ndim, problem.poisson)).to(displacements)
        local = problem.energy.element_displacements(displacements)
        solid = problem.material.young**2 * ((local @ form) * local).sum(-1)
        built = problem.physical(density).flatten(-problem.structure.grid.ndim)
        if problem.energy.batch_ndim:
            built = built.unsqueeze(-2)
        return solid * built ** (2 * self.relaxation)

    def __call__(self, problem: ComplianceProblem, displacements: Tensor, density: Tensor) -> Tensor:
        squared = self.squared(problem, displacements, density)
        largest = squared.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(squared.dtype).tiny)
        ratio = (squared / largest).clamp(min=0.0)
        norm = (ratio ** (self.power / 2)).sum(-1) ** (1 / self.power)
        return norm * largest.squeeze(-1).sqrt()


def von_mises_form(ndim: int, poisson: float) -> np.ndarray:
    """Matrix S with ``u_e^T S u_e`` the squared von Mises stress at the centre for a unit modulus.

    Example:
        >>> pull = np.array([0, 0, 1, 0, 1, 0, 0, 0]) * 1.0  # a strain of 1 along x, held across: plane stress
        >>> round(float(pull @ von_mises_form(2, 0.0) @ pull), 12)
        1.0
    """
    normal = 1.5 * np.eye(ndim) - 0.5
    count = ndim * (ndim + 1) // 2
    quadratic = 3.0 * np.eye(count)
    quadratic[:ndim, :ndim] = normal
    stress = elasticity(ndim, poisson) @ strain_at_centre(ndim)
    return stress.T @ quadratic @ stress


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ElasticProblem:
    """A compliance problem's structure and designs under another outer loss.

        inner:  u*(x) = argmin_u  1/2 u^T K(x) u - f^T u
        outer:  min_x objective(u*(x), x)   s.t.  the volume,   0 <= x <= 1

    Args:
        base: structure, material, filter, volume, and the inner problem.
        objective: the outer loss; summed over load cases.

    Raises:
        ValueError: when the objective does not fit the structure.

    Example:
        >>> from sciopt.domains.topology import Grid, cantilever
        >>> base = ComplianceProblem(structure=cantilever(Grid(nx=6, ny=4)), volume_fraction=0.5)
        >>> problem = ElasticProblem(base=base, objective=StressNorm())
        >>> problem.start().shape
        torch.Size([4, 6])
    """

    base: ComplianceProblem
    objective: AbstractObjective
    space: DesignSpace = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.objective.check(self.base.structure)
        object.__setattr__(self, "space", self.base.space)

    @property
    def structure(self) -> Structure:
        """Grid, supports, loads, springs."""
        return self.base.structure

    @property
    def energy(self) -> ElasticEnergy:
        """The inner loss."""
        return self.base.energy

    @cached_property
    def bilevel(self) -> BilevelProblem:
        """The statement in the core's nouns; with residuals when the objective has them."""
        residuals = self._residuals if isinstance(self.objective, DisplacementTarget) else None
        return BilevelProblem(inner=self.base.bilevel.inner, outer_loss=self.loss, outer_residuals=residuals)

    def _residuals(self, displacements: Tensor, density: Tensor) -> Tensor:
        assert isinstance(self.objective, DisplacementTarget)
        return self.objective.residuals(self.base, displacements).reshape(-1)

    def loss(self, displacements: Tensor, density: Tensor) -> Tensor:
        """The outer loss ``(*batch,)``, one per load case."""
        return self.objective(self.base, displacements, density)

    def physical(self, density: Tensor) -> Tensor:
        """The density that is built, of the grid's shape."""
        return self.base.physical(density)

    def volume(self, density: Tensor) -> Tensor:
        """Constraint ``(1,)``, <= 0 where the volume is kept."""
        return self.base.volume(density)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The even distribution of the allowed volume."""
        return self.base.start(dtype)

    def rest(self, density: Tensor) -> Tensor:
        """Zero displacements: the start of the inner solve."""
        return self.base.rest(density)

    def step(self, base: AbstractOuterStep) -> AbstractOuterStep:
        """``base``, driven by filtered sensitivities if the problem has a `SensitivityFilter`."""
        return self.base.step(base)

    def check(self, density: Tensor) -> None:
        """Check a design before a long solve; raises as `ComplianceProblem.check`."""
        self.base.check(density)
