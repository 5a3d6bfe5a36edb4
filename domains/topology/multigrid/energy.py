"""The potential energy of a lattice structure, matrix-free and differentiable to any order at constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sciopt.domains.topology.multigrid.box import BoxStructure
from sciopt.domains.topology.multigrid.elements import element_stiffness
from sciopt.domains.topology.multigrid.lattice import Lattice
from sciopt.domains.topology.multigrid.stiffness import StiffnessOperator

__all__ = ["LatticeEnergy", "Placement"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Where flat free displacements ``(*batch, n)`` stand in the fields of a lattice.

    Args:
        lattice: the elements.
        element: stiffness of an element of unit modulus, float64.
        place: number ``component * num_nodes + node`` of each free displacement, ``(n,)``.
        held: numbers of the others.
    """

    lattice: Lattice
    element: Tensor
    place: Tensor
    held: Tensor

    @staticmethod
    def of(lattice: Lattice, poisson: float, place: Tensor) -> Placement:
        """The placement with its element matrix and held displacements."""
        mask = torch.ones(lattice.num_dofs, dtype=torch.bool)
        mask[place] = False
        held = torch.nonzero(mask).reshape(-1)
        return Placement(lattice=lattice, element=element_stiffness(lattice.ndim, poisson), place=place, held=held)

    def field(self, flat: Tensor) -> Tensor:
        """The field ``(rows, d, num_nodes)`` of free displacements ``(*batch, n)``, zero where held."""
        rows = flat.reshape(-1, flat.shape[-1])
        out = flat.new_zeros(rows.shape[0], self.lattice.num_dofs)
        out[:, self.place.to(flat.device)] = rows
        return out.view(-1, self.lattice.ndim, self.lattice.num_nodes)

    def flat(self, field: Tensor, batch: tuple[int, ...]) -> Tensor:
        """The free displacements ``(*batch, n)`` of a field."""
        return field.flatten(1).index_select(1, self.place.to(field.device)).view(*batch, -1)

    def operator(self, moduli: Tensor) -> StiffnessOperator:
        """The stiffness for moduli by flat number, ``(rows or 1, last)``."""
        return StiffnessOperator(
            lattice=self.lattice, element=self.element.to(moduli), moduli=moduli, held=self.held.to(moduli.device)
        )


class Force(torch.autograd.Function):
    """``K(moduli) u``: moduli ``(*batch, last)`` or ``(last,)``, free displacements ``(*batch, n)``."""

    @staticmethod
    def forward(placement: Placement, moduli: Tensor, u: Tensor) -> Tensor:
        operator = placement.operator(moduli.reshape(-1, moduli.shape[-1]))
        field = placement.field(u)
        return placement.flat(operator.add(torch.zeros_like(field), field), tuple(u.shape[:-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.placement = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = ctx.saved_tensors
        by_moduli = by_u = None
        if ctx.needs_input_grad[1]:
            by_moduli = Energies.apply(ctx.placement, grad, u).sum_to_size(moduli.shape)
        if ctx.needs_input_grad[2]:
            by_u = Force.apply(ctx.placement, moduli, grad)
        return None, by_moduli, by_u

    @staticmethod
    def jvp(ctx: Any, _: None, moduli_dot: Tensor | None, u_dot: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = ctx.saved_tensors
        parts = []
        if moduli_dot is not None:
            parts.append(Force.apply(ctx.placement, moduli_dot, u))
        if u_dot is not None:
            parts.append(Force.apply(ctx.placement, moduli, u_dot))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], placement: Placement, moduli: Tensor, u: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = lanes(info.batch_size, (moduli, in_dims[1]), (u, in_dims[2]))
        return Force.apply(placement, moduli, u), 0


class Energies(torch.autograd.Function):
    """``left_e^T K_0 right_e`` of every element, ``(*batch, last)``, for free displacements ``(*batch, n)``."""

    @staticmethod
    def forward(placement: Placement, left: Tensor, right: Tensor) -> Tensor:
        operator = placement.operator(left.new_ones(1, placement.lattice.last))
        a = placement.field(left)
        b = a if right is left else placement.field(right)
        return operator.energies(a, b).view(*left.shape[:-1], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.placement = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = ctx.saved_tensors
        by_left = Force.apply(ctx.placement, grad, right) if ctx.needs_input_grad[1] else None
        by_right = Force.apply(ctx.placement, grad, left) if ctx.needs_input_grad[2] else None
        return None, by_left, by_right

    @staticmethod
    def jvp(ctx: Any, _: None, left_dot: Tensor | None, right_dot: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = ctx.saved_tensors
        parts = []
        if left_dot is not None:
            parts.append(Energies.apply(ctx.placement, left_dot, right))
        if right_dot is not None:
            parts.append(Energies.apply(ctx.placement, left, right_dot))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], placement: Placement, left: Tensor, right: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = lanes(info.batch_size, (left, in_dims[1]), (right, in_dims[2]))
        return Energies.apply(placement, left, right), 0


class Strain(torch.autograd.Function):
    """``1/2 u^T K(moduli) u``, ``(*batch,)``; arguments as for `Force`."""

    @staticmethod
    def forward(placement: Placement, moduli: Tensor, u: Tensor) -> Tensor:
        operator = placement.operator(moduli.reshape(-1, moduli.shape[-1]))
        field = placement.field(u)
        force = operator.add(torch.zeros_like(field), field)
        return 0.5 * torch.linalg.vecdot(field.flatten(1), force.flatten(1)).view(u.shape[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.placement = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = ctx.saved_tensors
        by_moduli = by_u = None
        if ctx.needs_input_grad[1]:
            energies = grad.unsqueeze(-1) * Energies.apply(ctx.placement, u, u)
            by_moduli = 0.5 * energies.sum_to_size(moduli.shape)
        if ctx.needs_input_grad[2]:
            by_u = grad.unsqueeze(-1) * Force.apply(ctx.placement, moduli, u)
        return None, by_moduli, by_u

    @staticmethod
    def jvp(ctx: Any, _: None, moduli_dot: Tensor | None, u_dot: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = ctx.saved_tensors
        parts = []
        if moduli_dot is not None:
            parts.append(0.5 * (moduli_dot * Energies.apply(ctx.placement, u, u)).sum(-1))
        if u_dot is not None:
            parts.append((u_dot * Force.apply(ctx.placement, moduli, u)).sum(-1))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], placement: Placement, moduli: Tensor, u: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        moduli, u = lanes(info.batch_size, (moduli, in_dims[1]), (u, in_dims[2]))
        return Strain.apply(placement, moduli, u), 0


def lanes(size: int, *pairs: tuple[Tensor, int | None]) -> list[Tensor]:
    """Tensors with the mapped dimension in front and the same batch behind it."""
    moved = [t.unsqueeze(0) if dim is None else t.movedim(dim, 0) for t, dim in pairs]
    ndim = max(t.ndim for t in moved)
    moved = [t.reshape(t.shape[0], *(1,) * (ndim - t.ndim), *t.shape[1:]) for t in moved]
    batch = torch.broadcast_shapes((size,), *([t.shape[:-1] for t in moved] if ndim > 1 else []))
    return [t.expand(*batch, t.shape[-1]) for t in moved]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LatticeEnergy:
    """``1/2 u^T K(density) u - f^T u`` over the free displacements u of a box of cubes, matrix-free.

    A callable ``(displacements, density) -> energy`` for `sciopt.Minimize`, in two or three dimensions. Its derivatives
    of every order are products of the same kind, so that autograd keeps a few vectors and no element matrices.

    Args:
        structure: elements, supports and load.
        modulus: Young's modulus of each element from the design, ``(*batch, nz, ny, nx)`` to the same shape.
        poisson: Poisson's ratio of every element.

    Example:
        >>> from sciopt.domains.topology import SIMP
        >>> from sciopt.domains.topology.multigrid import Box, box_cantilever
        >>> energy = LatticeEnergy(structure=box_cantilever(Box(nx=4, ny=2, nz=2)), modulus=SIMP())
        >>> energy(torch.zeros(energy.size), torch.ones(2, 2, 4)).item()
        0.0
    """

    structure: BoxStructure
    modulus: Callable[[Tensor], Tensor]
    poisson: float = 0.3
    placement: Placement = field(init=False, repr=False)
    load: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        free = self.structure.free
        placement = Placement.of(self.structure.box.lattice, self.poisson, torch.from_numpy(free))
        object.__setattr__(self, "placement", placement)
        object.__setattr__(self, "load", torch.from_numpy(self.structure.load[free]))

    @property
    def size(self) -> int:
        """Number of free displacements."""
        return self.load.numel()

    def moduli(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Young's modulus of each element, flat ``(*batch, num_elements)``; arguments as for the energy."""
        return self.modulus(density).flatten(-3)

    def strain_energy(self, displacements: Tensor, density: Tensor) -> Tensor:
        """``1/2 u^T K u``, shape ``(*batch,)``."""
        moduli = self.placement.lattice.elements(self.modulus(density))
        return Strain.apply(self.placement, moduli, displacements)

    def work(self, displacements: Tensor) -> Tensor:
        """``f^T u``, the work of the load, shape ``(*batch,)``; at equilibrium the compliance."""
        return (displacements * self.load.to(displacements)).sum(-1)

    def __call__(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Potential energy ``(*batch,)`` of displacements ``(*batch, n)`` for densities ``(*batch, nz, ny, nx)``."""
        return self.strain_energy(displacements, density) - self.work(displacements)

    def full_displacements(self, displacements: Tensor) -> Tensor:
        """Displacements of all nodes ``(*batch, nz + 1, ny + 1, nx + 1, 3)``, held ones zero."""
        nodes = self.placement.lattice.node_shape
        return self.placement.field(displacements).view(*displacements.shape[:-1], 3, *nodes).movedim(-4, -1)
