"""Minimum compliance as a bi-level problem: the structure settles (inner), its material is distributed (outer)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_finite, check_option, check_tree
from sciopt.domains.topology.energy import ElasticEnergy
from sciopt.domains.topology.filters import DensityFilter, SensitivityFilter
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.structure import Structure
from sciopt.outer.abstract import AbstractOuterStep
from sciopt.outer.transformed import TransformedGradient
from sciopt.problem import Minimize

__all__ = ["ComplianceProblem"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ComplianceProblem:
    """The stiffest structure of a given volume: minimise the work of the load at equilibrium.

        inner:  u*(x) = argmin_u  1/2 u^T K(x) u - f^T u        potential energy over the free displacements
        outer:  min_x f^T u*(x)   s.t.  sum(physical(x)) <= volume_fraction * elements,   0 <= x <= 1

    The design x is a field of densities ``(ny, nx)`` in [0, 1], row 0 on top; what is built is `physical` of it.

    Args:
        structure: grid, supports and load.
        volume_fraction: share of the domain that may be filled, in (0, 1).
        material: modulus of an intermediate density.
        filter: a `DensityFilter` is part of the problem; a `SensitivityFilter` alters the outer step (see `step`).
        poisson: Poisson's ratio.

    Raises:
        ValueError: for a volume fraction outside (0, 1).

    Example:
        >>> from sciopt.domains.topology import Grid, cantilever
        >>> problem = ComplianceProblem(structure=cantilever(Grid(nx=6, ny=4)), volume_fraction=0.5)
        >>> problem.start().shape, problem.volume(problem.start())
        (torch.Size([4, 6]), tensor([0.], dtype=torch.float64))

    References:
        Bendsoe, Sigmund. "Topology Optimization: Theory, Methods and Applications". 2003, ch. 1. Andreassen et al.
        "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Eq. 2.
    """

    structure: Structure
    volume_fraction: float
    material: SIMP = field(default_factory=SIMP)
    filter: DensityFilter | SensitivityFilter | None = None
    poisson: float = 0.3

    def __post_init__(self) -> None:
        v = self.volume_fraction
        advice = "0 leaves nothing to carry the load and 1 nothing to design."
        check_option("ComplianceProblem", "volume_fraction", v, 0 < v < 1, "in (0, 1)", advice)

    def physical(self, density: Tensor) -> Tensor:
        """The density that is built, ``(*batch, ny, nx)``: the design's, through the density filter if there is one."""
        if not isinstance(self.filter, DensityFilter):
            return density
        built = self.filter(density)
        # A mean of zeros may be rounding below zero, whose powers are not real; the derivative stays that of the mean.
        return built + (built.clamp(min=0.0) - built).detach()

    def modulus(self, density: Tensor) -> Tensor:
        """Young's modulus of each element for a design ``(*batch, ny, nx)``."""
        return self.material(self.physical(density))

    @cached_property
    def energy(self) -> ElasticEnergy:
        """The inner loss."""
        return ElasticEnergy(structure=self.structure, modulus=self.modulus, poisson=self.poisson)

    @cached_property
    def bilevel(self) -> BilevelProblem:
        """The statement in the core's nouns."""
        return BilevelProblem(inner=Minimize(self.energy), outer_loss=self.compliance)

    def compliance(self, displacements: Tensor, density: Tensor) -> Tensor:
        """``f^T u``, force times length, shape ``(*batch,)``."""
        return self.energy.work(displacements)

    def volume(self, density: Tensor) -> Tensor:
        """Constraint ``(1,)``, <= 0 where the volume is kept: filled elements minus allowed ones."""
        allowed = self.volume_fraction * self.structure.grid.num_elements
        return (self.physical(density).sum() - allowed).reshape(1)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The even distribution of the allowed volume, ``(ny, nx)``."""
        return torch.full(self.structure.grid.shape, self.volume_fraction, dtype=dtype)

    def rest(self, density: Tensor) -> Tensor:
        """Zero displacements ``(n,)`` in dtype and device of a design: the start of the inner solve."""
        return density.new_zeros(self.energy.size)

    def step(self, base: AbstractOuterStep) -> AbstractOuterStep:
        """``base``, driven by filtered sensitivities if the problem has a `SensitivityFilter`."""
        return TransformedGradient(base, self.filter) if isinstance(self.filter, SensitivityFilter) else base

    def check(self, density: Tensor) -> None:
        """Check a design before a long solve.

        Raises:
            TypeError: for something else than a floating-point tensor.
            ValueError: for a wrong shape, NaN or Inf, or densities outside [0, 1].
        """
        check_tree("ComplianceProblem", "density", density)
        if tuple(density.shape) != self.structure.grid.shape:
            raise ValueError(
                f"ComplianceProblem: expected `density` of shape (ny, nx) = {self.structure.grid.shape}, got "
                f"{tuple(density.shape)}. Resample the field, or transpose it."
            )
        check_finite("ComplianceProblem", "density", [density])
        low, high = float(density.min()), float(density.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"ComplianceProblem: expected `density` in [0, 1], got values from {low} to {high}. Clip or rescale it."
            )
