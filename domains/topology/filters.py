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

__all__ = ["DensityFilter", "SensitivityFilter", "cone_sum"]


def cone_kernel(radius: float, like: Tensor) -> Tensor:
    """Weights ``max(0, radius - distance)`` around an element, ``(2 k + 1, 2 k + 1)``."""
    k = ceil(radius) - 1
    offset = torch.arange(-k, k + 1, dtype=like.dtype, device=like.device)
    return (radius - torch.hypot(offset[:, None], offset[None, :])).clamp(min=0.0)


def cone_sum(field: Tensor, radius: float) -> Tensor:
    """``sum_j max(0, radius - dist(i, j)) field_j`` for each element i: the product with the matrix H of the literature.

    Args:
        field: ``(*batch, ny, nx)``, floating point.
        radius: in element sides, >= 1.

    Returns:
        As ``field``.

    Example:
        >>> cone_sum(torch.ones(1, 3), 1.5)
        tensor([[2.0000, 2.5000, 2.0000]])
    """
    kernel = cone_kernel(radius, field)
    if kernel.shape[-1] > DIRECT_WIDTH:
        return _sum_by_transform(field, kernel)
    images = field.reshape(-1, 1, *field.shape[-2:])
    out = torch.nn.functional.conv2d(images, kernel[None, None], padding=kernel.shape[-1] // 2)
    return out.reshape(field.shape)


def _sum_by_transform(field: Tensor, kernel: Tensor) -> Tensor:
    """The same by the fast Fourier transform, for wide kernels; sums of zeros may come out as rounding, of either sign."""
    k = kernel.shape[-1] // 2
    ny, nx = field.shape[-2:]
    size = (max(ny, k + 1) + k, max(nx, k + 1) + k)  # what wraps around meets the padding
    wrapped = torch.nn.functional.pad(kernel, (0, size[1] - 2 * k - 1, 0, size[0] - 2 * k - 1)).roll((-k, -k), (0, 1))
    spectrum = torch.fft.rfft2(field, s=size) * torch.fft.rfft2(wrapped)
    return torch.fft.irfft2(spectrum, s=size)[..., :ny, :nx]


def cone_weights(field: Tensor, radius: float) -> Tensor:
    """`cone_sum` of a field of ones ``(ny, nx)``, from cumulative sums of the kernel: exact and cheap for any radius."""
    kernel = cone_kernel(radius, field.new_zeros((), dtype=torch.float64, device="cpu"))
    k = kernel.shape[-1] // 2
    total = torch.nn.functional.pad(kernel.cumsum(0).cumsum(1), (1, 0, 1, 0))
    (top, bottom), (left, right) = (
        ((k - place).clamp(min=0), (k + size - place).clamp(max=2 * k + 1))
        for size in field.shape[-2:]
        for place in (torch.arange(size),)
    )
    upper, lower = total[top][:, right] - total[top][:, left], total[bottom][:, right] - total[bottom][:, left]
    return (lower - upper).to(field)


def _check_radius(owner: str, radius: float) -> None:
    check_option(owner, "radius", radius, radius >= 1, ">= 1 element side", "1 filters nothing; 2.4 is a common start.")


@final
@dataclass(frozen=True)
class DensityFilter:
    """Physical densities as the weighted mean of the design's: linear, so its hypergradient is exact.

    Args:
        radius: in element sides, >= 1.

    Example:
        >>> DensityFilter(2.0)(torch.ones(3, 4)).allclose(torch.ones(3, 4))
        True

    References:
        Bruns, Tortorelli. "Topology optimization of non-linear elastic structures and compliant mechanisms". 2001.
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Eq. 9.
    """

    radius: float

    def __post_init__(self) -> None:
        _check_radius("DensityFilter", self.radius)

    def __call__(self, density: Tensor) -> Tensor:
        """Filtered field; ``(*batch, ny, nx)`` to the same shape."""
        return cone_sum(density, self.radius) / cone_weights(density, self.radius)


@final
@dataclass(frozen=True, kw_only=True)
class SensitivityFilter:
    """Smooths the objective's gradient instead of the design: a heuristic, no gradient of any function.

    Use it as the transform of a `sciopt.outer.TransformedGradient`, as the 88-line code does; the hypergradient of the
    core stays exact, only the outer step sees the altered one.

    Args:
        radius: in element sides, >= 1.
        shape: ``(ny, nx)`` of the fields.
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
    shape: tuple[int, int]
    floor: float = 1e-3

    def __post_init__(self) -> None:
        _check_radius("SensitivityFilter", self.radius)

    def __call__(self, density: Tensor, grad: Tensor) -> Tensor:
        """Filtered gradient; both arguments ``(ny * nx,)``."""
        density, grad = density.reshape(self.shape), grad.reshape(self.shape)
        weights = cone_weights(density, self.radius)
        return (cone_sum(density * grad, self.radius) / weights / density.clamp(min=self.floor)).reshape(-1)
