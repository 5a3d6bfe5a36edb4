"""What a kernel is: values between two sets of points, and an exact diagonal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

COINCIDENT = 16  # in units of the rounding of 1: how near the cosine of two equal points may come to 1

__all__ = ["AbstractActivation", "AbstractKernel", "AbstractNetwork", "check_points", "same_points"]


class AbstractKernel(ABC):
    """A symmetric positive semi-definite function of two points, evaluated on sets of points.

    Concrete kernels are frozen dataclasses. Their numbers may be tensors, through which gradients flow; to vary them, make
    the kernel inside the loss: ``RBF(length_scale=phi["length"])``. `gram`, `cross_matrix` and `kernel_operator` evaluate
    them in tiles.
    """

    @abstractmethod
    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """Values between all points of two sets, in plain differentiable operations.

        Args:
            left: ``(n, *point)``, floating point.
            right: ``(m, *point)``, same dtype and device.

        Returns:
            ``(n, m)``.
        """

    @abstractmethod
    def diagonal(self, points: Tensor) -> Tensor:
        """``k(x, x)`` of each point by formula, without the rounding of two coincident inputs.

        Args:
            points: ``(n, *point)``.

        Returns:
            ``(n,)``.
        """

    @abstractmethod
    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Values and slopes in one pass, for kernels of inner products; None for others, which autograd differentiates.

        Args:
            left: ``(n, d)``.
            right: ``(m, d)``.

        Returns:
            ``k``, ``dk/d<x, x'>`` and ``dk/d<x, x>`` (of the left point), each ``(n, m)``, without graph.
        """


class AbstractActivation(ABC):
    """A pointwise nonlinearity with its Gaussian expectations, of which the kernels of wide networks are made."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The nonlinearity itself."""

    @abstractmethod
    def expectations(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """``E[f(u) f(v)]`` and ``E[f'(u) f'(v)]`` for centred Gaussian u, v.

        Args:
            cross: covariance of u and v.
            left: variance of u, broadcastable to ``cross``, positive.
            right: variance of v, the same.
        """

    @abstractmethod
    def coincident(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The same for v = u, by formula."""

    @abstractmethod
    def curvatures(self, cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`expectations` with slopes: ``V = E[f f]``, ``D = E[f' f']``, ``dV/dleft``, ``dD/dcross``, ``dD/dleft``.

        ``dV/dcross`` is D (Price's theorem).
        """

    @abstractmethod
    def coincident_slopes(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of `coincident` in the variance."""


class AbstractNetwork(ABC):
    """An architecture whose infinite-width limit has a kernel by recursion."""

    @abstractmethod
    def covariance(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> Tensor:
        """The NTK, or the NNGP, between all points of two sets ``(n, m)``."""

    @abstractmethod
    def variances(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonals of both by formula, each ``(n,)``."""

    @abstractmethod
    def covariance_slopes(
        self, left: Tensor, right: Tensor, tangent_kernel: bool
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of the NTK or the NNGP: value, slope in ``<x, x'>``, slope in ``<x, x>``; None where autograd has to do it."""


def check_points(owner: str, left: Tensor, right: Tensor, ndim: int | None = None) -> None:
    """Two sets of points of the same kind."""
    for name, value in (("left", left), ("right", right)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{owner}: expected `{name}` as a floating-point tensor, got {got}. Convert it first.")
        if (ndim is not None and value.ndim != ndim) or value.ndim < 2:
            shape = "(n, d)" if ndim in (None, 2) else "(n, length, channels)"
            raise ValueError(
                f"{owner}: expected `{name}` of shape {shape}, got {tuple(value.shape)}. Add the dimension."
            )
    if left.shape[1:] != right.shape[1:] or left.dtype != right.dtype or left.device != right.device:
        raise ValueError(
            f"{owner}: expected `left` and `right` with points of one shape, dtype and device, got {tuple(left.shape)} "
            f"{left.dtype} and {tuple(right.shape)} {right.dtype}. Convert one of them."
        )


def same_points(cosine: Tensor) -> Tensor:
    """Where the cosine says that two points coincide, up to the rounding of an inner product.

    Arc-cosine kernels have a square-root singularity there: rounding of eps becomes an error of sqrt(eps).
    """
    return cosine >= 1 - COINCIDENT * torch.finfo(cosine.dtype).eps
