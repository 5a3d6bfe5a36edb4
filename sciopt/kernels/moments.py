"""Sums over rows of a kernel matrix and of its squares, with their gradient in the left points, in one pass over tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciopt.kernels.abstract import AbstractKernel, check_points
from sciopt.kernels.parameters import kernel_tensors
from sciopt.kernels.tiles import TILE, blocks, check_tile, cross_matrix
from sciopt.transforms import under_transform

__all__ = ["kernel_moments"]


def kernel_moments(
    kernel: AbstractKernel, left: Tensor, right: Tensor, columns: Tensor, squares: Tensor, *, tile: int = TILE
) -> tuple[Tensor, Tensor]:
    """``K columns`` and ``(K * K) squares`` (elementwise square) without storing K.

    What a squared error of many one-point models on the same data needs: ``sum_j w_j (a k_j - y_j)^2 = a^2 (K * K) w - 2 a K
    (w y) + const``. For kernels with `AbstractKernel.slopes` and a gradient in ``left`` alone, values and derivatives are
    made in the same pass while a tile is in the cache, and nothing of size ``n m`` is kept; otherwise K is stored.

    Args:
        kernel: the kernel.
        left: ``(n, *point)``.
        right: ``(m, *point)``, same dtype and device.
        columns: ``(m, k)``, same dtype and device.
        squares: ``(m, l)``, same dtype and device.
        tile: entries computed at a time.

    Returns:
        ``(n, k)`` and ``(n, l)``, differentiable to second order in everything.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> from sciopt.kernels import Linear
        >>> one = torch.ones(2, 1)
        >>> first, second = kernel_moments(Linear(), 2 * torch.eye(2), torch.eye(2), one, one)
        >>> first.flatten(), second.flatten()
        (tensor([1., 1.]), tensor([1., 1.]))
    """
    check_points("kernel_moments", left, right)
    check_tile(tile)
    for name, value in (("columns", columns), ("squares", squares)):
        if value.ndim != 2 or len(value) != len(right) or value.dtype != left.dtype:
            raise ValueError(
                f"kernel_moments: expected `{name}` of shape ({len(right)}, k) in {left.dtype}, got {tuple(value.shape)} in "
                f"{value.dtype}. Give one row per point of `right`."
            )
    others = (right, columns, squares, *kernel_tensors(kernel))
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in others)
    if under_transform() or graph or kernel.slopes(left[:1], right[:1]) is None:
        return _plain(kernel, left, right, columns, squares)
    want = torch.is_grad_enabled() and left.requires_grad
    first, second, *_ = _Moments.apply(left, right, columns, squares, _Request(kernel, tile, want))
    return first, second


def _plain(
    kernel: AbstractKernel, left: Tensor, right: Tensor, columns: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor]:
    matrix = cross_matrix(kernel, left, right)
    return matrix @ columns, matrix.square() @ squares


@dataclass(frozen=True)
class _Request:
    """What a call is about, besides its tensors."""

    kernel: AbstractKernel
    tile: int
    want_slopes: bool


class _Moments(torch.autograd.Function):
    """Each row of the results depends on one point alone: its Jacobian is a vector per result, kept from the forward pass."""

    @staticmethod
    def forward(left, right, columns, squares, request):
        n, d, k = len(left), left.shape[1], columns.shape[1]
        weights = torch.cat([columns, squares], 1)
        sums = left.new_zeros(n, weights.shape[1])
        if not request.want_slopes:
            for i, j in blocks(left, right, request.tile, False):
                value = request.kernel.pair(left[i], right[j])
                sums[i, :k].addmm_(value, columns[j])
                sums[i, k:].addmm_(value.square_(), squares[j])
            return sums[:, :k].clone(), sums[:, k:].clone(), None, None
        # one product per tile and kind: the points weighted by each column, and beside them the weights themselves
        weighted = (weights.unsqueeze(-1) * right.unsqueeze(1)).flatten(1)
        in_cross, in_own = left.new_zeros(n, weighted.shape[1]), left.new_zeros(n, weights.shape[1])
        for i, j in blocks(left, right, request.tile, False):
            value, cross, own = request.kernel.slopes(left[i], right[j])
            sums[i, :k].addmm_(value, columns[j])
            in_cross[i, : k * d].addmm_(cross, weighted[j, : k * d])
            in_own[i, :k].addmm_(own, columns[j])
            if k < weights.shape[1]:
                in_cross[i, k * d :].addmm_(cross.mul_(value), weighted[j, k * d :], alpha=2)
                in_own[i, k:].addmm_(own.mul_(value), squares[j], alpha=2)
                sums[i, k:].addmm_(value.square_(), squares[j])
        jacobian = in_cross.view(n, -1, d) + 2 * in_own.unsqueeze(-1) * left.unsqueeze(1)
        return sums[:, :k].clone(), sums[:, k:].clone(), jacobian[:, :k].clone(), jacobian[:, k:].clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        left, right, columns, squares, ctx.request = inputs
        kept = [t for t in output[2:] if t is not None]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(left, right, columns, squares, *kept)

    @staticmethod
    def backward(ctx, *grads):
        left, right, columns, squares, *jacobians = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: one plain, differentiable pass
            kernel = ctx.request.kernel
            pull = torch.func.vjp(lambda points: _plain(kernel, points, right, columns, squares), left)[1]
            return pull((grads[0], grads[1]))[0], None, None, None, None
        parts = [torch.einsum("nk,nkd->nd", g, j) for g, j in zip(grads[:2], jacobians, strict=True)]
        return parts[0] + parts[1], None, None, None, None
