"""Averages over a neighbourhood, which keep designs free of checkerboards and give them a length scale.

On a regular grid the sparse matrix of weights is a convolution with a cone; as one it needs no memory, takes batches and
works on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

DIRECT_WIDTH = 15  # wider kernels go through the Fourier transform
DIRECT_WIDTH_3D = 7

__all__ = ["DensityFilter", "SensitivityFilter", "cone_sum"]


def cone_kernel(radius: float, like: Tensor, ndim: int = 2) -> Tensor:
    """Weights ``max(0, radius - distance)`` around an element, ``2 k + 1`` along each of ``ndim`` axes."""
    k = ceil(radius) - 1
    offset = torch.arange(-k, k + 1, dtype=like.dtype, device=like.device)
    distance = offset
    for _ in range(ndim - 1):
        distance = torch.hypot(distance[..., None], offset)
    return (radius - distance.abs()).clamp(min=0.0)


def cone_sum(field: Tensor, radius: float, ndim: int = 2) -> Tensor:
    """``sum_j max(0, radius - dist(i, j)) field_j`` for each element i: the product with the matrix H of the literature.

    Args:
        field: ``(*batch, ny, nx)`` or, with ``ndim=3``, ``(*batch, nz, ny, nx)``, floating point.
        radius: in element sides, >= 1.
        ndim: axes of the grid, 2 or 3.

    Returns:
        As ``field``.

    Example:
        >>> cone_sum(torch.ones(1, 3), 1.5)
        tensor([[2.0000, 2.5000, 2.0000]])
    """
    kernel = cone_kernel(radius, field, ndim)
    if kernel.shape[-1] > (DIRECT_WIDTH if ndim == 2 else DIRECT_WIDTH_3D):
        return _sum_by_transform(field, kernel)
    images = field.reshape(-1, 1, *field.shape[-ndim:])
    convolve = torch.nn.functional.conv2d if ndim == 2 else torch.nn.functional.conv3d
    out = convolve(images, kernel[None, None], padding=kernel.shape[-1] // 2)
    return out.reshape(field.shape)


def _sum_by_transform(field: Tensor, kernel: Tensor) -> Tensor:
    """The same by the fast Fourier transform, for wide kernels; sums of zeros may come out as rounding, of either sign."""
    ndim, k = kernel.ndim, kernel.shape[-1] // 2
    shape, axes = field.shape[-ndim:], tuple(range(-ndim, 0))
    size = tuple(max(n, k + 1) + k for n in shape)  # what wraps around meets the padding
    padding = [end for n in reversed(size) for end in (0, n - 2 * k - 1)]
    wrapped = torch.nn.functional.pad(kernel, padding).roll((-k,) * ndim, axes)
    spectrum = torch.fft.rfftn(field, s=size, dim=axes) * torch.fft.rfftn(wrapped, s=size, dim=axes)
    return torch.fft.irfftn(spectrum, s=size, dim=axes)[(..., *(slice(n) for n in shape))]


def cone_weights(field: Tensor, radius: float, ndim: int = 2) -> Tensor:
    """`cone_sum` of a field of ones, from cumulative sums of the kernel: exact and cheap for any radius."""
    total = cone_kernel(radius, field.new_zeros((), dtype=torch.float64, device="cpu"), ndim)
    k = total.shape[-1] // 2
    for axis in range(ndim):
        total = total.cumsum(axis)
    total = torch.nn.functional.pad(total, (1, 0) * ndim)
    for axis in reversed(range(ndim)):
        size = field.shape[axis - ndim]
        place = torch.arange(size)
        low, high = (k - place).clamp(min=0), (k + size - place).clamp(max=2 * k + 1)
        total = total.index_select(axis, high) - total.index_select(axis, low)
    return total.to(field)


def _check_radius(owner: str, radius: float) -> None:
    check_option(owner, "radius", radius, radius >= 1, ">= 1 element side", "1 filters nothing; 2.4 is a common start.")


@final
@dataclass(frozen=True)
class DensityFilter:
    """Physical densities as the weighted mean of the design's: linear, so its hypergradient is exact.

    Args:
        radius: in element sides, >= 1.
        ndim: axes of the grid, 2 or 3.

    Example:
        >>> DensityFilter(2.0)(torch.ones(3, 4)).allclose(torch.ones(3, 4))
        True

    References:
        Bruns, Tortorelli. "Topology optimization of non-linear elastic structures and compliant mechanisms". 2001.
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Eq. 9.
    """

    radius: float
    ndim: int = 2

    def __post_init__(self) -> None:
        _check_radius("DensityFilter", self.radius)
        check_option("DensityFilter", "ndim", self.ndim, self.ndim in (2, 3), "to be 2 or 3", "Pass `grid.ndim`.")

    def __call__(self, density: Tensor) -> Tensor:
        """Filtered field; ``(*batch, *grid.shape)`` to the same shape."""
        return cone_sum(density, self.radius, self.ndim) / cone_weights(density, self.radius, self.ndim)


@final
@dataclass(frozen=True, kw_only=True)
class SensitivityFilter:
    """Smooths the objective's gradient instead of the design: a heuristic, no gradient of any function.

    Use it as the transform of a `sciopt.outer.TransformedGradient`, as the 88-line code does; the hypergradient of the
    core stays exact, only the outer step sees the altered one.

    Args:
        radius: in element sides, >= 1.
        shape: ``(ny, nx)`` or ``(nz, ny, nx)`` of the fields.
        floor: densities below this count as this in the denominator.

    Example:
        >>> smooth = SensitivityFilter(radius=1.5, shape=(1, 3))
        >>> smooth(torch.ones(3), torch.tensor([0.0, 1.0, 0.0]))
        tensor([0.2500, 0.6000, 0.2500])

    References:
        Sigmund. "On the design of compliant mechanisms using topology optimization". 1997. Andreassen et al. "Efficient
        topology optimization in MATLAB using 88 lines of code". 2011. Eq. 7.
    """

    radius: float
    shape: tuple[int, ...]
    floor: float = 1e-3

    def __post_init__(self) -> None:
        _check_radius("SensitivityFilter", self.radius)

    def __call__(self, density: Tensor, grad: Tensor) -> Tensor:
        """Filtered gradient; both arguments ``(elements,)``."""
        density, grad = density.reshape(self.shape), grad.reshape(self.shape)
        ndim = len(self.shape)
        weights = cone_weights(density, self.radius, ndim)
        return (cone_sum(density * grad, self.radius, ndim) / weights / density.clamp(min=self.floor)).reshape(-1)
