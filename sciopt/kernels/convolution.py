"""Wide one-dimensional convolutional networks with pooling: their NNGP and NTK between sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractActivation, AbstractNetwork, check_points
from sciopt.kernels.activations import LeakyRelu
from sciopt.kernels.dense import check_variances, layer_variances

__all__ = ["ConvNetwork"]


@final
@dataclass(frozen=True, kw_only=True)
class ConvNetwork(AbstractNetwork):
    """``hidden_layers`` times (convolution, activation, average pooling), then a readout; all channels infinitely many.

    The convolution keeps the length and has ``sqrt(weight_variance / (width channels))`` times standard normal filters, the
    inputs' inner products are divided by their channels. The readout averages over positions (``global_pool``), which makes
    the kernel insensitive to where a pattern stands, or takes every position as a feature of its own. With any pooling
    ``n m length^2`` numbers are needed for a tile of n by m points, without it ``n m length``.

    Args:
        hidden_layers: number of convolutions, >= 1.
        width: positions a filter sees, odd.
        activation: the nonlinearity.
        weight_variance: a number or tensor ``()`` for all layers, or a tensor ``(hidden_layers + 1,)``, readout last; > 0.
        bias_variance: the same, >= 0.
        pool: window and stride of the average pooling after each activation; 1: none. Must divide the length.
        global_pool: average over positions before the readout.
        circular: sequences are rings; False: zeros beyond both ends.

    Raises:
        ValueError: for options out of range, or points that are no sequences of fitting length.

    Example:
        >>> network = ConvNetwork(hidden_layers=1, width=3, circular=True)
        >>> sequence = torch.eye(4).unsqueeze(0)
        >>> a, b = (network.covariance(s, sequence, tangent_kernel=True) for s in (sequence, sequence.roll(1, dims=1)))
        >>> bool(torch.isclose(a, b))
        True

    References:
        Novak et al. "Bayesian deep convolutional networks with many channels are Gaussian processes". ICLR 2019, eq. 9,
        section 3.2. Arora et al. "On exact computation with an infinitely wide neural net". NeurIPS 2019, section 4.
    """

    hidden_layers: int
    width: int = 3
    activation: AbstractActivation = field(default_factory=LeakyRelu)
    weight_variance: float | Tensor = 1.0
    bias_variance: float | Tensor = 0.0
    pool: int = 1
    global_pool: bool = True
    circular: bool = False

    def __post_init__(self) -> None:
        owner = "ConvNetwork"
        whole = isinstance(self.hidden_layers, int) and self.hidden_layers >= 1
        check_option(owner, "hidden_layers", self.hidden_layers, whole, "to be an int >= 1", "2 is a good start.")
        odd = isinstance(self.width, int) and self.width >= 1 and self.width % 2 == 1
        check_option(owner, "width", self.width, odd, "to be an odd int >= 1", "3 or 5 is common.")
        check_option(
            owner, "pool", self.pool, isinstance(self.pool, int) and self.pool >= 1, "to be an int >= 1", "1: none."
        )
        check_variances(owner, self.hidden_layers, self.weight_variance, self.bias_variance)

    def covariance(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> Tensor:
        """See `AbstractNetwork.covariance`; points are ``(n, length, channels)``."""
        self._check(left, right)
        own, other = self._own(left)[0], (self._own(right)[0])
        if self._full:
            cross = torch.einsum("npc,mqc->nmpq", left, right) / left.shape[2]
            own, other = [v[:, None, :, None] for v in own], [v[None, :, None, :] for v in other]
        else:
            cross = torch.einsum("npc,mpc->nmp", left, right) / left.shape[2]
            own, other = [v[:, None, :] for v in own], [v[None, :, :] for v in other]
        return self._climb(cross, own, other, left, False)[int(tangent_kernel)]

    def variances(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractNetwork.variances`."""
        self._check(points, points)
        return self._own(points)[1]

    def covariance_slopes(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> None:
        """None: autograd differentiates it."""
        return None

    @property
    def _full(self) -> bool:
        """Whether covariances between different positions matter."""
        return self.global_pool or self.pool > 1

    def _check(self, left: Tensor, right: Tensor) -> None:
        check_points("ConvNetwork", left, right, 3)
        length, need = left.shape[1], self.pool**self.hidden_layers
        if length % need:
            raise ValueError(
                f"ConvNetwork: expected sequences whose length is a multiple of pool^hidden_layers = {need}, got length "
                f"{length}. Pad them, or use a smaller `pool`."
            )

    def _own(self, points: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Variance of each position before each activation, and the kernels of each point with itself."""
        if self._full:
            cross = points @ points.mT / points.shape[2]
        else:
            cross = points.square().sum(-1) / points.shape[2]
        seen: list[Tensor] = []
        return seen, self._climb(cross, seen, seen, points, True)

    def _climb(
        self, cross: Tensor, own: list[Tensor], other: list[Tensor], like: Tensor, single: bool
    ) -> tuple[Tensor, Tensor]:
        """The recursion; ``single``: of each point with itself, where variances are noted on the way."""
        weights, biases = layer_variances(self.hidden_layers, self.weight_variance, self.bias_variance, like)
        tangent = torch.zeros_like(cross)
        for k in range(self.hidden_layers):
            cross = weights[k] * self._window(cross) + biases[k]
            tangent = cross + weights[k] * self._window(tangent)
            if not single:
                value, flat = self.activation.expectations(cross, own[k], other[k])
            elif self._full:
                variance = cross.diagonal(dim1=-2, dim2=-1)
                own.append(variance)
                value, flat = self.activation.expectations(cross, variance.unsqueeze(-1), variance.unsqueeze(-2))
                eye = torch.eye(cross.shape[-1], dtype=torch.bool, device=cross.device)
                exact = self.activation.coincident(variance)
                value, flat = (torch.where(eye, e.unsqueeze(-1), f) for e, f in zip(exact, (value, flat), strict=True))
            else:
                own.append(cross)
                value, flat = self.activation.coincident(cross)
            cross, tangent = self._pooled(value), self._pooled(tangent * flat)
        cross = weights[-1] * self._readout(cross) + biases[-1]
        return cross, cross + weights[-1] * self._readout(tangent)

    def _window(self, values: Tensor) -> Tensor:
        """Mean over the filter's positions, the same offset at both ends."""
        reach = self.width // 2
        if reach == 0:
            return values
        length = values.shape[-1]
        dims = (-2, -1) if self._full else (-1,)
        if self.circular:
            parts = [values.roll([offset] * len(dims), dims) for offset in range(-reach, reach + 1)]
            return torch.stack(parts).mean(0)
        padded = torch.nn.functional.pad(values, (reach, reach) * len(dims))
        total = torch.zeros_like(values)
        for offset in range(self.width):
            part = padded[..., offset : offset + length]
            total = total + (part[..., offset : offset + length, :] if self._full else part)
        return total / self.width

    def _pooled(self, values: Tensor) -> Tensor:
        if self.pool == 1:
            return values
        count = values.shape[-1] // self.pool
        return values.unflatten(-1, (count, self.pool)).mean(-1).unflatten(-2, (count, self.pool)).mean(-2)

    def _readout(self, values: Tensor) -> Tensor:
        if self.global_pool:
            return values.mean((-2, -1))
        return (values.diagonal(dim1=-2, dim2=-1) if self._full else values).mean(-1)
