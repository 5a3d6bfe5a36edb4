"""Rigid motions: the null space of every energy that depends on relative positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["connected_fragments", "rigid_modes", "rigid_nullspace"]


def rigid_modes(
    positions: Tensor, fragments: Tensor | Sequence[int] | None = None, *, linear_rtol: float | None = None
) -> Tensor:
    """Infinitesimal translations and rotations of a body, or of each of its fragments.

    The columns are of unit length or zero, and orthogonal up to rounding: rotations are taken about the principal axes
    of each fragment. A rotation that moves nothing (about the axis of a linear molecule, of a single atom, of
    coincident atoms) is a zero column, so a shape with 5 or 3 rigid motions keeps its 6 columns. The result carries no
    derivative: a null space is a frame, not a quantity; non-finite positions give finite columns.

    The columns span the kernel of the Hessian at a *stationary* point. Away from it a rotation ``m`` has
    ``|H m| ~ |gradient| / |m|``; that is why a nearly linear shape, whose axial rotation is made of rounding and
    convergence noise, must count as linear.

    Args:
        positions: ``(*batch, N, d)`` with d = 1, 2 or 3, any unit, floating dtype and device.
        fragments: integer labels ``(N,)``, equal for sites that move as one body; None for one body.
        linear_rtol: a rotation counts as absent when its lever arm is below this fraction of the fragment's largest;
            default 1e-5 in float64 and 1e-3 in lower precision.

    Returns:
        ``(*batch, N d, k)``, rows in the flat order of ``positions``; k = 6, 3 or 1 per fragment for d = 3, 2 or 1.

    Raises:
        ValueError: for positions of another shape, or labels that do not number the sites.

    Example:
        >>> water = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
        >>> modes = rigid_modes(water)
        >>> modes.shape, int(torch.linalg.matrix_rank(modes))
        (torch.Size([9, 6]), 6)
        >>> carbon_dioxide = torch.tensor([[-1.16, 0.0, 0.0], [0.0, 0.0, 0.0], [1.16, 0.0, 0.0]])
        >>> int(torch.linalg.matrix_rank(rigid_modes(carbon_dioxide)))
        5

    References:
        Wilson, Decius, Cross. "Molecular Vibrations". McGraw-Hill, 1955, ch. 2 (Eckart frame).
    """
    if positions.ndim < 2 or positions.shape[-1] not in (1, 2, 3):
        raise ValueError(
            f"rigid_modes: expected `positions` of shape (*batch, N, d) with d = 1, 2 or 3, got "
            f"{tuple(positions.shape)}. Reshape the flat vector to one row per site."
        )
    num_sites, dim = positions.shape[-2:]
    x = positions.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    mask = _membership(fragments, num_sites, x)  # (F, N)
    count = mask.sum(-1)
    centre = (mask @ x) / count.unsqueeze(-1)  # (*batch, F, d)
    arm = (x.unsqueeze(-3) - centre.unsqueeze(-2)) * mask.unsqueeze(-1)  # (*batch, F, N, d)

    unit = (mask / count.sqrt().unsqueeze(-1))[..., None, None]
    shift = unit * torch.eye(dim, dtype=x.dtype, device=x.device)  # (F, N, d, d): site, component, column
    columns = [shift.expand(*arm.shape[:-2], num_sites, dim, dim)]
    if dim == 2:
        columns.append(torch.stack([-arm[..., 1], arm[..., 0]], dim=-1).unsqueeze(-1))
    if dim == 3:
        axes = torch.linalg.eigh(arm.mT @ arm).eigenvectors  # (*batch, F, 3, axis)
        columns.append(torch.linalg.cross(axes.unsqueeze(-3).expand(*arm.shape, 3), arm.unsqueeze(-1), dim=-2))
    if dim > 1:
        columns[1] = _normalised(columns[1], x, linear_rtol)
    modes = torch.cat(columns, dim=-1)  # (*batch, F, N, d, modes)
    modes = modes.movedim(-4, -2)  # (*batch, N, d, F, modes)
    return modes.reshape(*positions.shape[:-2], num_sites * dim, mask.shape[0] * modes.shape[-1])


def _normalised(rotation: Tensor, x: Tensor, linear_rtol: float | None) -> Tensor:
    """Unit columns; zero where the lever arm is negligible against the fragment, or is rounding of the coordinates."""
    if linear_rtol is None:
        linear_rtol = 1e-5 if x.dtype == torch.float64 else 1e-3
    length = rotation.square().sum((-3, -2), keepdim=True).sqrt()
    rounding = 100 * torch.finfo(x.dtype).eps * x.abs().amax((-2, -1))[..., None, None, None, None]
    keep = (length > linear_rtol * length.amax(-1, keepdim=True)) & (length > rounding)
    return torch.where(keep, rotation / torch.where(keep, length, 1.0), 0.0)


def _membership(fragments: Tensor | Sequence[int] | None, num_sites: int, like: Tensor) -> Tensor:
    """``(F, N)`` matrix of zeros and ones."""
    if fragments is None:
        return like.new_ones(1, num_sites)
    labels = torch.as_tensor(fragments, device=like.device)
    if labels.is_floating_point() or tuple(labels.shape) != (num_sites,):
        raise ValueError(
            f"rigid_modes: expected `fragments` as integer labels of shape ({num_sites},), one per site, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}. Use connected_fragments(pairs, num_sites) for a pair list."
        )
    values = torch.unique(labels)
    return (values.unsqueeze(-1) == labels).to(like.dtype)


def rigid_nullspace(fragments: Tensor | Sequence[int] | None = None) -> Callable[[Tensor, Any], Tensor]:
    """`rigid_modes` in the form that ``Minimize(..., nullspace=...)`` takes.

    Args:
        fragments: as for `rigid_modes`.

    Returns:
        A function ``(positions, outer_params) -> (*batch, N d, k)`` that ignores the outer parameters.

    Example:
        >>> rigid_nullspace()(torch.rand(2, 4, 3), None).shape
        torch.Size([2, 12, 6])
    """

    def nullspace(positions: Tensor, outer_params: Any) -> Tensor:
        return rigid_modes(positions, fragments)

    return nullspace


def connected_fragments(pairs: Tensor, num_sites: int) -> Tensor:
    """Labels of the connected parts of a pair list, the ``fragments`` of `rigid_modes`.

    A connected part need not be rigid: a chain of four atoms with three bonds turns about its middle bond. Only the
    rigid motions of each part are certain.

    Args:
        pairs: integer tensor ``(P, 2)``.
        num_sites: number of sites N; sites in no pair are fragments of their own.

    Returns:
        Integer tensor ``(N,)``: 0, 1, ... in the order of each part's first site.

    Example:
        >>> connected_fragments(torch.tensor([[0, 2], [1, 3]]), 5).tolist()
        [0, 1, 0, 1, 2]
    """
    labels = torch.arange(num_sites, device=pairs.device)
    here, there = torch.cat([pairs[:, 0], pairs[:, 1]]), torch.cat([pairs[:, 1], pairs[:, 0]])
    while True:
        lower = labels.scatter_reduce(0, here, labels[there], reduce="amin")
        lower = lower[lower]  # jump to the label's own label: rounds grow with the logarithm of the diameter
        if torch.equal(lower, labels):
            return torch.unique(labels, return_inverse=True)[1]
        labels = lower
