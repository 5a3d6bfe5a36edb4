"""Kernels that are formulas: RBF, Hamming, linear, and any of them on an embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractKernel, check_points
from sciopt.transforms import under_transform

__all__ = ["RBF", "Embedded", "Hamming", "Linear"]


def _positive(owner: str, name: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor) and under_transform():
        return
    number = float(value.detach().min()) if isinstance(value, Tensor) else float(value)
    check_option(owner, name, number, number > 0, "> 0", "Optimise its logarithm to keep it positive.")


@final
@dataclass(frozen=True, kw_only=True)
class RBF(AbstractKernel):
    """``variance exp(-|(x - x') / length_scale|^2 / 2)``, for smooth functions of continuous designs.

    Args:
        length_scale: a number, or a tensor ``()`` or ``(d,)``, one per input (automatic relevance); > 0.
        variance: value at coincident points, > 0.

    Example:
        >>> RBF(length_scale=1.0).pair(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[0.3679]])
    """

    length_scale: float | Tensor = 1.0
    variance: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _positive("RBF", "length_scale", self.length_scale)
        _positive("RBF", "variance", self.variance)

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`; points are ``(n, d)``."""
        check_points("RBF", left, right, 2)
        centre = right.detach().mean(0)  # distances by inner products lose what the points have in common
        one, two = (left - centre) / self.length_scale, (right - centre) / self.length_scale
        squares = one.square().sum(-1, keepdim=True) + two.square().sum(-1) - 2 * one @ two.mT
        return self.variance * torch.exp(-0.5 * squares.clamp(min=0))

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        return torch.ones_like(points[:, 0]) * self.variance

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Hamming(AbstractKernel):
    """``variance exp(-mismatches / length_scale)`` between one-hot sequences; relaxed designs count by inner products.

    With ``n_i`` the inner product at position i, the mismatches are ``positions - sum_i n_i``: the number of differing
    letters for one-hot rows, a multilinear interpolation of it for distributions over letters.

    Args:
        positions: length of the sequences.
        length_scale: in mismatches, > 0.
        variance: value at coincident one-hot points, > 0.

    Example:
        >>> a = torch.eye(2).reshape(1, 4)
        >>> Hamming(positions=2).pair(a, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
        tensor([[0.3679]])
    """

    positions: int
    length_scale: float | Tensor = 1.0
    variance: float | Tensor = 1.0

    def __post_init__(self) -> None:
        ok = isinstance(self.positions, int) and self.positions >= 1
        check_option("Hamming", "positions", self.positions, ok, "to be an int >= 1", "Pass the sequence length.")
        _positive("Hamming", "length_scale", self.length_scale)
        _positive("Hamming", "variance", self.variance)

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`; points are one-hot ``(n, positions * letters)`` or ``(n, positions, letters)``."""
        check_points("Hamming", left, right)
        return self.variance * torch.exp((left.flatten(1) @ right.flatten(1).mT - self.positions) / self.length_scale)

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        matches = points.flatten(1).square().sum(-1)
        return self.variance * torch.exp((matches - self.positions) / self.length_scale)

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Linear(AbstractKernel):
    """``variance <x, x'> / d + bias``: ridge regression on the coordinates.

    Args:
        variance: > 0.
        bias: variance of the constant, >= 0.

    Example:
        >>> Linear(bias=1.0).pair(torch.ones(1, 2), torch.ones(1, 2))
        tensor([[2.]])
    """

    variance: float | Tensor = 1.0
    bias: float | Tensor = 0.0

    def __post_init__(self) -> None:
        _positive("Linear", "variance", self.variance)

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`; points are ``(n, *point)`` and are flattened."""
        check_points("Linear", left, right)
        one, two = left.flatten(1), right.flatten(1)
        return self.variance * (one @ two.mT) / one.shape[1] + self.bias

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        flat = points.flatten(1)
        return self.variance * flat.square().sum(-1) / flat.shape[1] + self.bias

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Embedded(AbstractKernel):
    """A kernel on the features of a map: ``Linear()`` on a language model's embedding is the kernel of BIB.

    Gradients pass through the map where it is differentiable. Kernels that meet the same points often should be given
    features computed once instead.

    Args:
        embedding: ``(n, *point) -> (n, features)``, row by row.
        kernel: the kernel on features.

    Example:
        >>> kernel = Embedded(embedding=lambda x: x**2, kernel=Linear())
        >>> kernel.pair(torch.tensor([[3.0]]), torch.tensor([[1.0], [2.0]]))
        tensor([[ 9., 36.]])

    References:
        Chen et al. "Bidirectional learning for offline model-based biological sequence design". ICML 2023, section 3.
    """

    embedding: Callable[[Tensor], Tensor]
    kernel: AbstractKernel

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        check_points("Embedded", left, right)
        return self.kernel.pair(self._features(left), self._features(right))

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        return self.kernel.diagonal(self._features(points))

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None

    def _features(self, points: Tensor) -> Tensor:
        out = self.embedding(points)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(points):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"Embedded: expected `embedding` to return ({len(points)}, features), got {got}. Return one row per point."
            )
        return out
