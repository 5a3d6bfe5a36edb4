"""Loads that follow the surface they act on: they have no potential, so the equilibrium is a root, not a minimum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciopt.domains.topology.nonlinear.balance import AbstractBalance
from sciopt.domains.topology.nonlinear.energy import HyperelasticEnergy
from sciopt.domains.topology.nonlinear.quadrature import shape_gradients, shape_values

__all__ = ["AbstractSurfaceLoad", "FollowerBalance", "NormalForce", "Pressure"]


class AbstractSurfaceLoad(ABC):
    """A load on faces that turns with them."""

    faces: np.ndarray
    value: Callable[[Any], Tensor]

    @abstractmethod
    def forces(self, moved: Tensor, rest: Tensor, value: Tensor) -> Tensor:
        """Forces on the corners of one face ``(corners, dim)``, of its positions now and at rest, and its value ``()``."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pressure(AbstractSurfaceLoad):
    """A pressure against the deformed surface, per deformed area: air in a chamber, water on a wall.

    Args:
        faces: oriented outwards ``(k, 2)`` or ``(k, 4)``, see `Body.surface`.
        value: outer parameters to the pressure ``()`` or ``(k,)``, force per area, positive against the outward normal.

    Example:
        >>> edge = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # the material lies above
        >>> Pressure(faces=np.array([[0, 1]]), value=lambda p: p).forces(edge, edge, torch.tensor(3.0)).tolist()
        [[-0.0, 3.0], [-0.0, 3.0]]

    References:
        Bonet, Wood. "Nonlinear continuum mechanics for finite element analysis". 2nd ed. 2008. Section 8.5.2.
    """

    faces: np.ndarray
    value: Callable[[Any], Tensor]

    def forces(self, moved: Tensor, rest: Tensor, value: Tensor) -> Tensor:
        return -value * spread(normals(moved))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class NormalForce(AbstractSurfaceLoad):
    """A load of constant size against the deformed surface: its direction follows the surface, its resultant is per area at
    rest (a thruster, a follower force).

    Args:
        faces: as for `Pressure`.
        value: outer parameters to the load ``()`` or ``(k,)``, force per area at rest, positive against the outward normal.

    Example:
        >>> rest, moved = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
        >>> NormalForce(faces=np.array([[0, 1]]), value=lambda p: p).forces(moved, rest, torch.tensor(3.0)).sum(0).tolist()
        [-6.0, 0.0]
    """

    faces: np.ndarray
    value: Callable[[Any], Tensor]

    def forces(self, moved: Tensor, rest: Tensor, value: Tensor) -> Tensor:
        now, before = normals(moved), normals(rest)
        size = torch.linalg.vector_norm(before, dim=-1, keepdim=True) / torch.linalg.vector_norm(
            now, dim=-1, keepdim=True
        )
        return -value * spread(now * size)


def normals(corners: Tensor) -> Tensor:
    """Outward normals times area elements at the Gauss points of a face ``(corners, dim)``, ``(points, dim)``."""
    slopes = torch.from_numpy(shape_gradients(corners.shape[-1] - 1)).to(corners)
    tangents = torch.einsum("gcj,ci->gji", slopes, corners)
    if corners.shape[-1] == 2:
        along = tangents[:, 0]
        return torch.stack([along[:, 1], -along[:, 0]], -1)
    return torch.linalg.cross(tangents[:, 0], tangents[:, 1])


def spread(tractions: Tensor) -> Tensor:
    """Tractions at the Gauss points of a face to forces on its corners."""
    return torch.from_numpy(shape_values(tractions.shape[-1] - 1)).to(tractions).mT @ tractions


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FollowerBalance(AbstractBalance):
    """Internal minus external forces, ``dE/du(u, phi) - p(u, phi)``: the residual of `sciopt.RootFind`.

    Its Jacobian is not symmetric, so a load can do work around a closed path, and equilibria can be lost by flutter, which
    a static solve does not see.

    Args:
        energy: strain energy and dead loads.
        loads: what follows the surface.

    Example:
        >>> from sciopt import RootFind, best_response
        >>> from sciopt.domains.topology import Grid, cantilever
        >>> from sciopt.domains.topology.nonlinear import LoadStepping, NeoHookean, body_of
        >>> body = body_of(cantilever(Grid(nx=8, ny=2)))
        >>> energy = HyperelasticEnergy(body=body, material=NeoHookean(), modulus=lambda p: 100 * torch.ones_like(p)[None])
        >>> top = body.surface(lambda centre: centre[:, 1] == 2)
        >>> balance = FollowerBalance(energy=energy, loads=(Pressure(faces=top, value=lambda p: p),))
        >>> init = torch.zeros(energy.size, dtype=torch.float64)
        >>> solver = LoadStepping(balance=balance)
        >>> best_response(RootFind(balance), torch.tensor(0.1, dtype=torch.float64), init=init, solver=solver).status.name
        'CONVERGED'
    """

    energy: HyperelasticEnergy
    loads: tuple[AbstractSurfaceLoad, ...]
    gathers: tuple[Tensor, ...] = field(init=False, repr=False)
    rests: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        body = self.energy.body
        for load in self.loads:
            faces, corners = np.asarray(load.faces), 2 ** (body.dim - 1)
            if faces.ndim != 2 or faces.shape[1] != corners or not len(faces):
                raise ValueError(
                    f"FollowerBalance: expected `faces` of shape (k, {corners}) with k >= 1, got {faces.shape}. Pick them "
                    "with Body.surface(where)."
                )
        object.__setattr__(self, "gathers", tuple(body.unknowns(np.asarray(load.faces)) for load in self.loads))
        rests = tuple(torch.from_numpy(np.asarray(body.nodes)[np.asarray(load.faces)]) for load in self.loads)
        object.__setattr__(self, "rests", rests)

    @property
    def size(self) -> int:
        """Number of free displacements."""
        return self.energy.size

    @property
    def stacks(self) -> tuple[Tensor, ...]:
        return (*self.energy.stacks, *self.gathers)

    def __call__(self, displacements: Tensor, outer_params: Any) -> Tensor:
        """Forces out of balance ``(*batch, n)``."""
        total = torch.func.grad(lambda u: self.energy(u, outer_params).sum())(displacements)
        for load, gather, rest in zip(self.loads, self.gathers, self.rests, strict=True):
            forces = over_faces(load.forces, *self._arguments(load, gather, rest, displacements, outer_params))
            forces = forces.flatten(-2).flatten(-2)
            index = gather.reshape(-1).to(displacements.device)
            full = forces.new_zeros(*forces.shape[:-1], self.energy.body.num_dofs)
            total = total - full.index_add(-1, index, forces)[..., : self.size]
        return total

    def tangents(self, displacements: Tensor, outer_params: Any) -> tuple[Tensor, ...]:
        blocks = list(self.energy.tangents(displacements, outer_params))
        for load, gather, rest in zip(self.loads, self.gathers, self.rests, strict=True):
            arguments = self._arguments(load, gather, rest, displacements, outer_params)
            slopes = over_faces(torch.func.jacrev(load.forces), *arguments)
            blocks.append(-slopes.flatten(-2).flatten(-3, -2))
        return tuple(blocks)

    def _arguments(
        self, load: AbstractSurfaceLoad, gather: Tensor, rest: Tensor, displacements: Tensor, outer_params: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions now ``(*batch, k, corners, dim)``, at rest, and values, of one shape."""
        rest = rest.to(displacements)
        moved = rest + self.energy.body.local(displacements, gather)
        return moved, rest.expand(moved.shape), load.value(outer_params).expand(moved.shape[:-2])


def over_faces(function: Callable[..., Tensor], moved: Tensor, rest: Tensor, value: Tensor) -> Tensor:
    """A function of one face, for all faces of all problems at once."""
    shape, tail = moved.shape[:-2], moved.shape[-2:]
    out = torch.func.vmap(function)(moved.reshape(-1, *tail), rest.reshape(-1, *tail), value.reshape(-1))
    return out.reshape(*shape, *out.shape[1:])
