"""Optimal superposition (Kabsch) with derivatives that stay finite and right where the SVD's do not exist."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciopt.constraints.common import safe_sqrt

__all__ = ["Alignment", "kabsch"]

_CHORD_STEPS = 3  # each re-attached step makes one more order of derivatives of the rotation exact


class Alignment(NamedTuple):
    """Result of `kabsch`; ``aligned = mobile @ rotation.mT + translation``.

    Attributes:
        rotation: proper rotation ``(*batch, d, d)``, acting on column vectors.
        translation: ``(*batch, d)``, unit of the positions.
        aligned: ``(*batch, N, d)``.
        rmsd: root of ``msd``, ``(*batch,)``; zero with zero gradient, where it has a kink, at a superposition that is
            exact up to rounding.
        msd: smallest weighted mean square deviation, ``(*batch,)``, smooth at an exact superposition.

    Example:
        >>> corner = torch.eye(3, dtype=torch.float64)
        >>> kabsch(corner + 5.0, corner).translation.round()
        tensor([-5., -5., -5.], dtype=torch.float64)
    """

    rotation: Tensor
    translation: Tensor
    aligned: Tensor
    rmsd: Tensor
    msd: Tensor


def kabsch(mobile: Tensor, target: Tensor, weights: Tensor | None = None) -> Alignment:
    """Rotation and translation of ``mobile`` that bring it closest to ``target``; reflections are excluded.

    No derivative of the SVD is taken. By the envelope theorem the gradient of ``msd`` needs no derivative of the
    rotation at all, so it is exact at degenerate singular values, for planar and linear sets and at an exact
    superposition. The rotation itself follows from its optimality condition ``R^T H`` symmetric: differentiating gives
    the Sylvester equation ``P W + W P = antisymmetric right-hand side``, ``P = sym(R^T H)``, whose eigenvalues are the
    sums ``s_i + s_j`` of (signed) singular values of the covariance ``H``. Equal singular values do no harm; only where
    ``s_i + s_j`` is below 100 eps of the largest one is the rotation undetermined (about the axis of a linear set; at
    the border where a mirror image fits as well), and the derivative about that axis is taken as zero.
    There ``msd`` has a kink too, unless both sets are linear, and its gradient is that of the superposition found.

    Right in derivatives of the rotation up to third order and of ``msd`` up to fourth, in forward and reverse mode and
    under every `torch.func` transform.

    Args:
        mobile: ``(*batch, N, d)``, d = 2 or 3, any floating dtype and device.
        target: same trailing shape; batch dimensions broadcast.
        weights: non-negative ``(*batch, N)`` or ``(N,)``, not all zero (NaN otherwise); None for equal weights.

    Returns:
        `Alignment`: ``rotation, translation, aligned, rmsd, msd``, all differentiable in the three arguments.

    Raises:
        ValueError: for points that are not in two or three dimensions, or two sets of different size.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
        >>> quarter_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> fit = kabsch(square, square @ quarter_turn.mT + 5.0)
        >>> torch.allclose(fit.rotation, quarter_turn), bool(fit.rmsd < 1e-12)
        (True, True)

    References:
        Kabsch. "A solution for the best rotation to relate two sets of vectors". Acta Crystallographica A, 1976.
        Umeyama. "Least-squares estimation of transformation parameters between two point patterns". IEEE TPAMI, 1991,
        eq. 43 (the sign that excludes reflections).
    """
    if mobile.ndim < 2 or target.ndim < 2 or mobile.shape[-1] not in (2, 3) or mobile.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            "kabsch: expected `mobile` and `target` of the same shape (*batch, N, d) with d = 2 or 3, got "
            f"{tuple(mobile.shape)} and {tuple(target.shape)}. Match the points one to one."
        )
    if weights is None:
        share = mobile.new_full((mobile.shape[-2], 1), 1.0 / mobile.shape[-2])
    else:
        share = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
    centre, goal = (share * mobile).sum(-2, keepdim=True), (share * target).sum(-2, keepdim=True)
    x, y = mobile - centre, target - goal
    covariance = (share * y).mT @ x  # H = sum_i w_i y_i x_i^T; the rotation maximises tr(R^T H)

    base, inverse = _frame(covariance.detach())
    local = base.mT @ covariance
    local = local - (0.5 * (local - local.mT)).detach()  # exactly symmetric in value: the optimality condition
    turn = _implicit_turn(local, inverse)
    rotation = base @ turn

    deviation = x @ base.mT - y
    # The turn's value is the identity: the last term has value and gradient zero and completes the second derivative.
    identity = torch.eye(mobile.shape[-1], dtype=mobile.dtype, device=mobile.device)
    msd = (share * deviation.square()).sum((-2, -1)) + 2.0 * ((identity - turn) * local).sum((-2, -1))

    translation = goal.squeeze(-2) - (centre @ rotation.mT).squeeze(-2)
    aligned = x @ rotation.mT + goal
    size = (mobile.square().sum(-1).mean(-1) + target.square().sum(-1).mean(-1)).detach()
    noise = msd <= (4.0 * torch.finfo(msd.dtype).eps) ** 2 * size  # what rounding leaves has no direction
    return Alignment(rotation, translation, aligned, safe_sqrt(torch.where(noise, 0.0, msd)), msd)


def _frame(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The optimal rotation, and the inverse of the Sylvester operator on rotation vectors (zero where undetermined)."""
    dim = covariance.shape[-1]
    u, s, vt = torch.linalg.svd(covariance.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    last = torch.arange(dim, device=s.device) == dim - 1
    proper = torch.linalg.det(u @ vt) >= 0
    sign = torch.where(last & ~proper.unsqueeze(-1), -1.0, 1.0).to(s.dtype)
    base = (u * sign.unsqueeze(-2)) @ vt
    signed = s * sign
    sums = signed.sum(-1, keepdim=True)  # d = 2: the one eigenvalue s_1 + s_2
    if dim == 3:
        sums = sums - signed  # about axis k turns the plane of the other two
    safe = sums > 100 * torch.finfo(s.dtype).eps * s[..., :1]
    reciprocal = torch.where(safe, 1.0 / torch.where(safe, sums, 1.0), 0.0)
    if dim == 2:
        return base, reciprocal.unsqueeze(-1)
    return base, (vt.mT * reciprocal.unsqueeze(-2)) @ vt


def _implicit_turn(local: Tensor, inverse: Tensor) -> Tensor:
    """The rotation E near the identity with ``E^T local`` symmetric: the identity in value, implicit in derivative.

    Chord iterations with the detached inverse: from an exact solution each one makes one more order of derivatives
    right, by plain tensor operations. Cayley's map keeps E orthogonal to every order.
    """
    dim = local.shape[-1]
    generators = _generators(dim, local)
    turn = torch.eye(dim, dtype=local.dtype, device=local.device)
    for _ in range(_CHORD_STEPS):
        seen = turn.mT @ local
        torque = -torch.einsum("kij,...ji->...k", generators, seen)
        half = 0.5 * (inverse @ torque.unsqueeze(-1)).squeeze(-1)
        cross = torch.einsum("...k,kij->...ij", half, generators)
        scale = 2.0 / (1.0 + half.square().sum(-1))
        turn = turn @ (
            torch.eye(dim, dtype=local.dtype, device=local.device) + scale[..., None, None] * (cross + cross @ cross)
        )
    return turn


def _generators(dim: int, like: Tensor) -> Tensor:
    """Antisymmetric matrices of the unit rotations: ``(3, 3, 3)`` in space, ``(1, 2, 2)`` in the plane."""
    if dim == 2:
        return like.new_tensor([[[0.0, -1.0], [1.0, 0.0]]])
    return like.new_tensor(
        [
            [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
            [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]],
            [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ]
    )
