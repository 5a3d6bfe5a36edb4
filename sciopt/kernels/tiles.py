"""Kernel matrices and products in tiles: bounded memory, both triangles from one, gradients without a stored graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractKernel, check_points
from sciopt.kernels.parameters import kernel_tensors, with_kernel_tensors
from sciopt.linsolve.operator import LinearOperator, Tag
from sciopt.transforms import under_transform

__all__ = ["blocks", "check_tile", "cross_matrix", "gram", "kernel_operator", "kernel_product"]

TILE = 1 << 16  # entries of a tile: a dozen temporaries of it stay in the cache of a core
SAVED = 1 << 24  # entries up to which slopes are kept from the forward pass for the backward pass


def cross_matrix(kernel: AbstractKernel, left: Tensor, right: Tensor, *, tile: int = TILE) -> Tensor:
    """``k(x, x')`` between two sets of points.

    Evaluated in tiles, so that nothing but the result needs ``n m`` numbers. Gradients, in both sets and in the kernel's
    tensors, are computed tile by tile in the backward pass; for kernels with `AbstractKernel.slopes` and a gradient in
    ``left`` alone, value and slope come from one pass. Inside `torch.func` transforms and in second derivatives, tiles
    are not used.

    Args:
        kernel: the kernel.
        left: ``(n, *point)``.
        right: ``(m, *point)``, same dtype and device.
        tile: entries computed at a time.

    Returns:
        ``(n, m)``.

    Raises:
        ValueError: for points of different shape.

    Example:
        >>> from sciopt.kernels import Linear
        >>> cross_matrix(Linear(), torch.eye(2), torch.ones(1, 2))
        tensor([[0.5000],
                [0.5000]])
    """
    check_points("cross_matrix", left, right)
    check_tile(tile)
    if under_transform():
        return kernel.pair(left, right)
    tensors = kernel_tensors(kernel)
    alone = torch.is_grad_enabled() and left.requires_grad and not any(t.requires_grad for t in (right, *tensors))
    if alone and len(left) * len(right) <= SAVED and kernel.slopes(left[:1], right[:1]) is not None:
        return _Sloped.apply(left, right, _Request(kernel, tile))[0]
    return _Kernel.apply(left, right, None, _Request(kernel, tile), *tensors)


def gram(kernel: AbstractKernel, points: Tensor, *, tile: int = TILE) -> Tensor:
    """``k(x, x')`` among the points of one set: exactly symmetric, the diagonal by its own formula.

    Only tiles on and below the diagonal are evaluated. Gradients as for `cross_matrix`.

    Args:
        kernel: the kernel.
        points: ``(n, *point)``.
        tile: entries computed at a time.

    Returns:
        ``(n, n)``.

    Example:
        >>> from sciopt.kernels import RBF
        >>> gram(RBF(), torch.tensor([[0.0], [1.0]]))
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]])
    """
    check_points("gram", points, points)
    check_tile(tile)
    if under_transform():
        return _plain_gram(kernel, points)
    return _Kernel.apply(points, None, None, _Request(kernel, tile), *kernel_tensors(kernel))


def kernel_product(
    kernel: AbstractKernel, left: Tensor, right: Tensor | None, columns: Tensor, *, tile: int = TILE
) -> Tensor:
    """``K columns`` without storing K.

    Args:
        kernel: the kernel.
        left: ``(n, *point)``.
        right: ``(m, *point)``; None: the points of ``left``, with the exact diagonal and half the work.
        columns: ``(m,)`` or ``(m, k)``, same dtype and device.
        tile: entries computed at a time.

    Returns:
        ``(n,)`` or ``(n, k)``, differentiable in the points, the columns and the kernel's tensors.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> from sciopt.kernels import Linear
        >>> kernel_product(Linear(), torch.eye(2), None, torch.tensor([1.0, 2.0]))
        tensor([0.5000, 1.0000])
    """
    check_points("kernel_product", left, left if right is None else right)
    check_tile(tile)
    other = left if right is None else right
    if columns.ndim not in (1, 2) or len(columns) != len(other) or columns.dtype != left.dtype:
        raise ValueError(
            f"kernel_product: expected `columns` of shape ({len(other)},) or ({len(other)}, k) in {left.dtype}, got "
            f"{tuple(columns.shape)} in {columns.dtype}. Give one row per point."
        )
    if under_transform():
        matrix = _plain_gram(kernel, left) if right is None else kernel.pair(left, right)
        return matrix @ columns
    wide = columns if columns.ndim == 2 else columns.unsqueeze(-1)
    out = _Kernel.apply(left, right, wide, _Request(kernel, tile), *kernel_tensors(kernel))
    return out if columns.ndim == 2 else out.squeeze(-1)


def kernel_operator(
    kernel: AbstractKernel,
    points: Tensor,
    shift: float | Tensor,
    *,
    tile: int = TILE,
    dtype: torch.dtype | None = None,
) -> LinearOperator:
    """``K + diag(shift)`` as an operator for `sciopt.linsolve.CG` that never stores K.

    Args:
        kernel: the kernel.
        points: ``(n, *point)``.
        shift: a number or ``(n,)``, > 0.
        tile: entries computed at a time.
        dtype: of the vectors; None: that of the points. Vectors in float64 over points in float32 nearly halve the cost
            of a product: entries of K are rounded to about 1e-7, their sums are not.

    Returns:
        `LinearOperator` ``(n, n)``, positive definite, without gradients in the points.

    Example:
        >>> from sciopt.kernels import Linear
        >>> from sciopt.linsolve import linear_solve
        >>> operator = kernel_operator(Linear(), torch.eye(2), 0.5)
        >>> linear_solve(operator, torch.tensor([1.0, 2.0])).value
        tensor([1., 2.])
    """
    points = points.detach()
    vectors = points.dtype if dtype is None else dtype
    amount = torch.as_tensor(shift, dtype=vectors, device=points.device).detach()
    check_option(
        "kernel_operator", "shift", shift, bool((amount > 0).all()), "> 0", "1e-6 of the mean diagonal is small."
    )

    def product(vector: Tensor) -> Tensor:
        columns = vector.reshape(-1, len(points)).mT.to(vectors)
        with torch.no_grad():
            if vectors == points.dtype:
                out = kernel_product(kernel, points, None, columns, tile=tile)
            else:  # what single precision leaves of long sums would be the end of conjugate gradients
                out = _Kernel.forward(points, None, columns, _Request(kernel, tile))
        return out.mT.reshape(vector.shape) + amount * vector

    return LinearOperator(
        mv=product,
        shape=(len(points), len(points)),
        dtype=vectors,
        device=points.device,
        tags=frozenset({Tag.POSITIVE_DEFINITE}),
        diagonal=lambda: kernel.diagonal(points).detach().to(vectors) + amount,
        broadcasts=True,
    )


def check_tile(tile: int) -> None:
    """A tile of at least one entry."""
    check_option("kernels", "tile", tile, tile >= 1, ">= 1 entries", "Leave the default.")


def _plain_gram(kernel: AbstractKernel, points: Tensor) -> Tensor:
    matrix = kernel.pair(points, points)
    eye = torch.eye(len(points), dtype=torch.bool, device=points.device)
    return torch.where(eye, kernel.diagonal(points), 0.5 * (matrix + matrix.mT))


@dataclass(frozen=True)
class _Request:
    """What a call is about, besides its tensors."""

    kernel: AbstractKernel
    tile: int


def blocks(left: Tensor, right: Tensor, tile: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Tiles of a matrix, or of its lower triangle in square tiles; smaller ones for sequences, whose positions pair up."""
    rows, columns = len(left), len(right)
    if not rows or not columns:
        return
    tile = max(1, tile // (left.shape[1] ** 2 if left.ndim == 3 else 1))
    if symmetric:
        side = max(1, int(tile**0.5))
        for i in range(0, rows, side):
            for j in range(0, i + 1, side):
                yield slice(i, min(i + side, rows)), slice(j, min(j + side, rows))
        return
    wide = min(columns, max(1, tile // min(rows, max(1, int(tile**0.5)))))
    high = max(1, tile // max(wide, 1))
    for i in range(0, rows, high):
        for j in range(0, columns, wide):
            yield slice(i, min(i + high, rows)), slice(j, min(j + wide, columns))


class _Sloped(torch.autograd.Function):
    """``K`` with the slopes in the left points kept: value and derivative in one pass over the tiles."""

    @staticmethod
    def forward(left, right, request):
        value, cross, own = (left.new_empty(len(left), len(right)) for _ in range(3))
        for i, j in blocks(left, right, request.tile, False):
            slopes = request.kernel.slopes(left[i], right[j])
            for whole, block in zip((value, cross, own), slopes, strict=True):
                whole[i, j] = block
        return value, cross, own

    @staticmethod
    def setup_context(ctx, inputs, output):
        left, right, ctx.request = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(left, right, *output)

    @staticmethod
    def backward(ctx, *grads):
        left, right, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_plain_backward(ctx.request.kernel, left, right, None, [], grads[0])[:2], None
        return _pull(tuple(slopes), grads[0], left, right), None, None


class _Kernel(torch.autograd.Function):
    """``K`` or ``K columns``; ``right`` None: of one set of points."""

    @staticmethod
    def forward(left, right, columns, request, *tensors):
        kernel, other = request.kernel, left if right is None else right
        if columns is None:
            out = left.new_empty(len(left), len(other))
        else:
            out = columns.new_zeros(len(left), columns.shape[1])
        exact = kernel.diagonal(left) if right is None else None
        for i, j in blocks(left, other, request.tile, right is None):
            block = kernel.pair(left[i], other[j])
            mirrored = right is None and i != j
            if right is None and i == j and exact is not None:
                block = 0.5 * (block + block.mT)
                block.diagonal().copy_(exact[i])
            if columns is None:
                out[i, j] = block
                if mirrored:
                    out[j, i] = block.mT
            else:
                block = block.to(columns.dtype)
                out[i].addmm_(block, columns[j])
                if mirrored:
                    out[j].addmm_(block.mT, columns[i])
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        left, right, columns, ctx.request, *tensors = inputs
        ctx.save_for_backward(left, right, columns, *tensors)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        left, right, columns, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative is wanted: one plain, differentiable pass
            return _plain_backward(ctx.request.kernel, left, right, columns, tensors, grad)
        points, others, kernel_grads = _tile_gradients(ctx.request, left, right, columns, tensors, grad, needs)
        column_grad = None
        if columns is not None and needs[2]:
            if right is None:
                column_grad = _Kernel.forward(left, None, grad, ctx.request, *tensors)
            else:
                column_grad = _Kernel.forward(right, left, grad, ctx.request, *tensors)
        return points, others, column_grad, None, *kernel_grads


def _plain_backward(
    kernel: AbstractKernel, left: Tensor, right: Tensor | None, columns: Tensor | None, tensors: Any, grad: Tensor
) -> tuple[Any, ...]:
    def value(points: Tensor, others: Tensor | None, weights: Tensor | None, numbers: list[Tensor]) -> Tensor:
        made = with_kernel_tensors(kernel, numbers)
        matrix = _plain_gram(made, points) if others is None else made.pair(points, others)
        return matrix if weights is None else matrix @ weights

    present = [t for t in (left, right, columns) if t is not None]

    def packed(*args: Tensor) -> Tensor:
        some = iter(args)
        first = [None if t is None else next(some) for t in (left, right, columns)]
        assert first[0] is not None
        return value(first[0], first[1], first[2], list(some))

    pulled = iter(torch.func.vjp(packed, *present, *tensors)[1](grad))
    head = [None if t is None else next(pulled) for t in (left, right, columns)]
    return *head, None, *pulled


def _tile_gradients(
    request: _Request,
    left: Tensor,
    right: Tensor | None,
    columns: Tensor | None,
    tensors: Any,
    grad: Tensor,
    needs: Any,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients in the points and in the kernel's tensors, one tile at a time."""
    symmetric, other = right is None, left if right is None else right
    want_left, want_right, want_tensors = needs[0], needs[1] and not symmetric, [bool(n) for n in needs[4:]]
    totals: list[Tensor | None] = [
        torch.zeros_like(t) if n else None for t, n in zip(tensors, want_tensors, strict=True)
    ]
    points = torch.zeros_like(left) if want_left else None
    others = torch.zeros_like(other) if want_right else None
    if not (want_left or want_right or any(want_tensors)):
        return points, others, totals
    made = with_kernel_tensors(request.kernel, [t.detach().requires_grad_() for t in tensors])
    numbers = [t for t, n in zip(kernel_tensors(made), want_tensors, strict=True) if n]
    places = [k for k, n in enumerate(want_tensors) if n]

    def collect(value: Tensor, cotangent: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
        if not value.requires_grad:  # the diagonal of an RBF kernel, say, depends on nothing
            return [None] * len(leaves)
        pulled = torch.autograd.grad(value, [*leaves, *numbers], cotangent, allow_unused=True)
        for place, part in zip(places, pulled[len(leaves) :], strict=True):
            total = totals[place]
            if part is not None and total is not None:
                total.add_(part)
        return list(pulled[: len(leaves)])

    def add(total: Tensor | None, rows: slice, part: Tensor | None) -> None:
        if total is not None and part is not None:
            total[rows] += part

    by_slopes = not any(want_tensors)
    for i, j in blocks(left, other, request.tile, symmetric):
        cotangent = grad[i, j] if columns is None else grad[i] @ columns[j].mT
        if symmetric and i != j:
            cotangent = cotangent + (grad[j, i] if columns is None else grad[j] @ columns[i].mT).mT
        elif symmetric:
            cotangent = 0.5 * (cotangent + cotangent.mT)
            cotangent.diagonal().zero_()
        one, two = left[i].detach(), other[j].detach()
        both = want_right or (symmetric and want_left)
        slopes = request.kernel.slopes(one, two) if by_slopes else None
        if slopes is not None:
            add(points, i, _pull(slopes, cotangent, one, two))
            if both:
                mirrored = request.kernel.slopes(two, one)
                assert mirrored is not None
                add(points if symmetric else others, j, _pull(mirrored, cotangent.mT, two, one))
            continue
        with torch.enable_grad():
            one.requires_grad_(want_left)
            two.requires_grad_(both)
            leaves = [t for t in (one, two) if t.requires_grad]
            parts = iter(collect(made.pair(one, two), cotangent, leaves))
        if one.requires_grad:
            add(points, i, next(parts))
        if two.requires_grad:
            add(points if symmetric else others, j, next(parts))
    if symmetric:
        weights = grad.diagonal() if columns is None else (grad * columns).sum(-1)
        with torch.enable_grad():
            own = left.detach().requires_grad_(want_left)
            parts = collect(made.diagonal(own), weights, [own] if want_left else [])
        if want_left:
            add(points, slice(None), parts[0])
    return points, others, totals


def _pull(slopes: tuple[Tensor, Tensor, Tensor], cotangent: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """Gradient in the left points of a function of inner products."""
    _, cross, own = slopes
    return (cotangent * cross) @ two + 2 * (cotangent * own).sum(-1, keepdim=True) * one
