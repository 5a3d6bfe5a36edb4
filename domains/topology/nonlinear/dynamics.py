"""Soft bodies in motion: implicit Euler as one minimum per time step, the steps chained as a recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.topology.nonlinear.balance import AbstractBalance
from sciopt.domains.topology.nonlinear.energy import HyperelasticEnergy
from sciopt.domains.topology.nonlinear.factor import SparseAdjoint
from sciopt.domains.topology.nonlinear.stepping import LoadStepping
from sciopt.hypergradients import Implicit
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver
from sciopt.problem import Minimize, Recurrence
from sciopt.response import best_response

__all__ = ["IncrementalPotential", "SoftBody"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class IncrementalPotential(AbstractBalance):
    """``1/(2 h^2) (u - y)^T M (u - y) + energy(u, design)``: its minimum is the state after one step of implicit Euler.

    Outer parameters are ``{"design": ..., "predicted": y}``, y the free flight ``u + h v`` from the step before.

    Args:
        energy: of deformation and dead loads (gravity).
        mass: lumped mass of each free displacement ``(n,)``, float64.
        time_step: h, in units of time.
    """

    energy: HyperelasticEnergy
    mass: Tensor
    time_step: float

    @property
    def size(self) -> int:
        """Number of free displacements."""
        return self.energy.size

    @property
    def stacks(self) -> tuple[Tensor, ...]:
        return (*self.energy.stacks, torch.arange(self.size)[:, None])

    def __call__(self, displacements: Tensor, outer_params: Any) -> Tensor:
        """Value ``(*batch,)`` at free displacements ``(*batch, n)``."""
        away = displacements - outer_params["predicted"]
        inertia = (self.mass.to(away) * away.square()).sum(-1) / (2 * self.time_step**2)
        return inertia + self.energy(displacements, outer_params["design"])

    def tangents(self, displacements: Tensor, outer_params: Any) -> tuple[Tensor, ...]:
        inertia = (self.mass.to(displacements) / self.time_step**2)[:, None, None]
        blocks = self.energy.tangents(displacements, outer_params["design"])
        return (*blocks, inertia.expand(*displacements.shape[:-1], -1, 1, 1))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SoftBody:
    """A body that moves: ``M a = f - dE/du`` by implicit Euler, differentiable in material, actuation, start and loads.

    Each step is a `Minimize` of the `IncrementalPotential`, differentiated implicitly; `motion` chains them as a
    `Recurrence`, which `Unrolled` differentiates: the adjoint runs backwards through the steps, one linear solve each. The
    state is ``{"displacements": (n,), "velocities": (n,)}``. Implicit Euler dissipates in proportion to h.

    Args:
        energy: of deformation, muscles and dead loads; its body may fly freely.
        density: mass per volume.
        time_step: h, in units of time.
        control: outer parameters and the number of the step to the design that the energy takes; None: the outer
            parameters themselves, at every step.
        solver: of each step; None: `LoadStepping` on sparse LU.
        hypergradient: of each step; None: ``Implicit(SparseAdjoint(...))``.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.hypergradients import Unrolled
        >>> from sciopt.domains.topology.nonlinear import NeoHookean, block
        >>> energy = HyperelasticEnergy(body=block((3, 1), (3.0, 1.0)), material=NeoHookean(), modulus=lambda y: y[None])
        >>> soft = SoftBody(energy=energy, density=1.0, time_step=0.1)
        >>> young = torch.tensor(10.0, dtype=torch.float64)
        >>> flight = best_response(soft.motion(5), young, init=soft.start(velocity=(1.0, 0.0)), hypergradient=Unrolled())
        >>> round(flight.value["displacements"][-1, 0].item(), 12)
        0.5

    References:
        Rojas, Sifakis, Kavan. "Differentiable implicit soft-body physics". 2021. Sections 3-4. Martin, Thomaszewski,
        Grinspun, Gross. "Example-based elastic materials". ACM Trans. Graph. 30 (2011), eq. 6 (incremental potential).
    """

    energy: HyperelasticEnergy
    density: float
    time_step: float
    control: Callable[[Any, int], Any] | None = None
    solver: AbstractSolver | None = None
    hypergradient: AbstractHypergradient | None = None
    potential: IncrementalPotential = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_option("SoftBody", "density", self.density, self.density > 0, "> 0", "Give the mass per volume.")
        check_option("SoftBody", "time_step", self.time_step, self.time_step > 0, "> 0", "Give the time of one step.")
        body = self.energy.body
        mass = self.density * np.repeat(body.node_volumes(), body.dim)[body.free]
        potential = IncrementalPotential(energy=self.energy, mass=torch.from_numpy(mass), time_step=self.time_step)
        object.__setattr__(self, "potential", potential)
        if self.solver is None:
            object.__setattr__(self, "solver", LoadStepping(balance=potential))
        if self.hypergradient is None:
            object.__setattr__(self, "hypergradient", Implicit(SparseAdjoint(balance=potential)))

    def start(self, velocity: tuple[float, ...] | None = None, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The undeformed state, every node at one velocity (None: at rest), ``(n,)`` each."""
        body = self.energy.body
        speeds = np.zeros(body.dim) if velocity is None else np.asarray(velocity, dtype=float)
        if speeds.shape != (body.dim,):
            raise ValueError(
                f"SoftBody: expected `velocity` of {body.dim} numbers, got {velocity!r}. One per axis of the body."
            )
        everywhere = torch.from_numpy(np.tile(speeds, len(body.nodes))[body.free]).to(dtype)
        return {"displacements": torch.zeros(body.size, dtype=dtype), "velocities": everywhere}

    def design(self, outer_params: Any, t: int) -> Any:
        """What the energy takes in step t."""
        return outer_params if self.control is None else self.control(outer_params, t)

    def step(self, state: dict[str, Tensor], outer_params: Any, t: int) -> dict[str, Tensor]:
        """The state one time step later."""
        before = state["displacements"]
        predicted = before + self.time_step * state["velocities"]
        phi = {"design": self.design(outer_params, t), "predicted": predicted}
        after = best_response(
            Minimize(self.potential), phi, init=before.detach(), solver=self.solver, hypergradient=self.hypergradient
        ).value
        return {"displacements": after, "velocities": (after - before) / self.time_step}

    def motion(self, num_steps: int) -> Recurrence:
        """``num_steps`` steps as a problem of the core; its value is the trajectory, leaves ``(num_steps + 1, n)``."""
        return Recurrence(self.step, num_steps=num_steps, trajectory=True)

    def mechanical_energy(self, state: dict[str, Tensor], design: Any) -> Tensor:
        """Kinetic energy plus potential of deformation and loads, ``(*batch,)`` for states ``(*batch, n)``."""
        speeds = state["velocities"]
        kinetic = 0.5 * (self.potential.mass.to(speeds) * speeds.square()).sum(-1)
        return kinetic + self.energy(state["displacements"], design)
