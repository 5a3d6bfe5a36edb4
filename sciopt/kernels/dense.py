"""Wide fully connected networks: the NNGP and NTK recursions, with slopes in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractActivation, AbstractNetwork, check_points
from sciopt.kernels.activations import LeakyRelu
from sciopt.kernels.angle import angular_slopes, angular_value
from sciopt.transforms import under_transform

__all__ = ["DenseNetwork", "layer_variances"]


@final
@dataclass(frozen=True, kw_only=True)
class DenseNetwork(AbstractNetwork):
    """``hidden_layers`` times (affine, activation), then an affine readout, all layers infinitely wide.

    NTK parametrisation, as the layers of neural-tangents' ``stax``: an affine map is ``sqrt(weight_variance / fan_in) W x +
    sqrt(bias_variance) b`` with standard normal W and b, and the inputs' inner products are divided by their dimension.

    Args:
        hidden_layers: number of activations, >= 0; the network has one affine map more.
        activation: the nonlinearity.
        weight_variance: a number or tensor ``()`` for all affine maps, or a tensor ``(hidden_layers + 1,)``; > 0.
        bias_variance: the same, >= 0.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> network = DenseNetwork(hidden_layers=1)
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> network.variances(x)
        (tensor([0.5000]), tensor([1.]))

    References:
        Jacot, Gabriel, Hongler. "Neural tangent kernel". NeurIPS 2018, theorem 1. Lee et al. "Wide neural networks of any
        depth evolve as linear models". NeurIPS 2019, appendix E.
    """

    hidden_layers: int
    activation: AbstractActivation = field(default_factory=LeakyRelu)
    weight_variance: float | Tensor = 1.0
    bias_variance: float | Tensor = 0.0

    def __post_init__(self) -> None:
        count = self.hidden_layers
        ok = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        check_option("DenseNetwork", "hidden_layers", count, ok, "to be an int >= 0", "2 to 5 is common.")
        check_variances("DenseNetwork", count, self.weight_variance, self.bias_variance)

    def covariance(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> Tensor:
        """See `AbstractNetwork.covariance`; points are ``(n, d)``."""
        check_points("DenseNetwork", left, right, 2)
        if self._is_angular and not under_transform() and not _needs_graph(left, right, self.weight_variance):
            one, two, cosine = _polar(left, right)
            value = angular_value(cosine, self.hidden_layers, self._leak, tangent_kernel)
            return value.mul_(one * self._gain(left)).mul_(two.mT)
        weights, biases = layer_variances(self.hidden_layers, self.weight_variance, self.bias_variance, left)
        cross = weights[0] / left.shape[1] * (left @ right.mT) + biases[0]
        tangent = cross
        one, two = self._first(left, weights, biases), self._first(right, weights, biases)
        for w, b in zip(weights[1:], biases[1:], strict=True):
            value, flat = self.activation.expectations(cross, one.unsqueeze(-1), two)
            cross = w * value + b
            tangent = cross + w * tangent * flat
            one, two = (w * self.activation.coincident(v)[0] + b for v in (one, two))
        return tangent if tangent_kernel else cross

    def variances(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `AbstractNetwork.variances`."""
        check_points("DenseNetwork", points, points, 2)
        weights, biases = layer_variances(self.hidden_layers, self.weight_variance, self.bias_variance, points)
        variance = self._first(points, weights, biases)
        tangent = variance
        for w, b in zip(weights[1:], biases[1:], strict=True):
            value, flat = self.activation.coincident(variance)
            variance = w * value + b
            tangent = variance + w * tangent * flat
        return variance, tangent

    def covariance_slopes(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `AbstractNetwork.covariance_slopes`."""
        check_points("DenseNetwork", left, right, 2)
        left, right = left.detach(), right.detach()
        if self._is_angular:
            return self._angular_slopes(left, right, tangent_kernel)
        weights, biases = layer_variances(self.hidden_layers, self.weight_variance, self.bias_variance, left)
        weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        unit = weights[0] / left.shape[1]
        cross = unit * (left @ right.mT) + biases[0]
        one, two = self._first(left, weights, biases), self._first(right, weights, biases)
        # suffix _s: slope in <x, x'>; _q: slope in <x, x>
        cross_s, cross_q, one_q = unit.expand_as(cross), torch.zeros_like(cross), unit.expand_as(one)
        tangent, tangent_s, tangent_q = cross, cross_s, cross_q
        for w, b in zip(weights[1:], biases[1:], strict=True):
            value, flat, value_q, flat_s, flat_q = self.activation.curvatures(cross, one.unsqueeze(-1), two)
            column = one_q.unsqueeze(-1)
            grown_s = w * (tangent_s * flat + tangent * flat_s * cross_s)
            grown_q = w * (tangent_q * flat + tangent * (flat_s * cross_q + flat_q * column))
            cross_s, cross_q = w * flat * cross_s, w * (flat * cross_q + value_q * column)
            cross = w * value + b
            tangent, tangent_s, tangent_q = cross + w * tangent * flat, cross_s + grown_s, cross_q + grown_q
            one_q = w * self.activation.coincident_slopes(one)[0] * one_q
            one, two = (w * self.activation.coincident(v)[0] + b for v in (one, two))
        return (tangent, tangent_s, tangent_q) if tangent_kernel else (cross, cross_s, cross_q)

    def _first(self, points: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        return weights[0] / points.shape[1] * points.square().sum(-1) + biases[0]

    @property
    def _leak(self) -> float:
        assert isinstance(self.activation, LeakyRelu)
        return self.activation.slope

    @property
    def _is_angular(self) -> bool:
        """Homogeneous of degree one: the kernel is ``|x| |x'|`` times a function of the angle alone."""
        return isinstance(self.activation, LeakyRelu) and isinstance(self.bias_variance, float | int) and (
            self.bias_variance == 0
        )  # fmt: skip

    def _gain(self, like: Tensor) -> float | Tensor:
        """NNGP of a point of norm 1; without tensors where it can be, as it is asked for with each tile."""
        shared = (0.5 * (1 + self._leak**2)) ** self.hidden_layers / like.shape[1]
        if not isinstance(self.weight_variance, Tensor):
            return shared * float(self.weight_variance) ** (self.hidden_layers + 1)
        weights, _ = layer_variances(self.hidden_layers, self.weight_variance, 0.0, like)
        return shared * torch.stack([w.detach() for w in weights]).prod()

    def _angular_slopes(self, left: Tensor, right: Tensor, tangent_kernel: bool) -> tuple[Tensor, Tensor, Tensor]:
        one, two, cosine = _polar(left, right)
        value, slope = angular_slopes(cosine, self.hidden_layers, self._leak, tangent_kernel)
        gain = self._gain(left)
        # k = |x| |x'| f(cosine): Euler's relation gives the slope in <x, x>
        inverse = torch.where(one > 0, 1 / one, 0.0)
        own = torch.addcmul(value, slope, cosine, value=-1, out=cosine).mul_(0.5 * gain * inverse).mul_(two.mT)
        return value.mul_(one * gain).mul_(two.mT), slope.mul_(gain), own


def check_variances(owner: str, hidden_layers: int, weights: float | Tensor, biases: float | Tensor) -> None:
    """Ranges and shapes of the two families of variances."""
    for name, value, low in (("weight_variance", weights, "> 0"), ("bias_variance", biases, ">= 0")):
        if isinstance(value, Tensor):
            ok = tuple(value.shape) in ((), (hidden_layers + 1,))
            check_option(
                owner,
                name,
                tuple(value.shape),
                ok,
                f"of shape () or ({hidden_layers + 1},)",
                "One entry per affine map.",
            )
            if under_transform():
                continue
            number = float(value.detach().min())
        else:
            number = float(value)
        ok = number > 0 if low == "> 0" else number >= 0
        check_option(owner, name, number, ok, low, "It is the square of the standard deviation.")


def layer_variances(
    hidden_layers: int, weights: float | Tensor, biases: float | Tensor, like: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """One weight and one bias variance per affine map, in the dtype of ``like``."""
    w = torch.as_tensor(weights, dtype=like.dtype, device=like.device).expand(hidden_layers + 1)
    b = torch.as_tensor(biases, dtype=like.dtype, device=like.device).expand(hidden_layers + 1)
    return list(w.unbind()), list(b.unbind())


def _needs_graph(*values: float | Tensor) -> bool:
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _polar(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms ``(n, 1)`` and ``(m, 1)``, and the cosine between all points; that of a point at the origin is 0."""
    one, two = (torch.linalg.vector_norm(p, dim=-1, keepdim=True) for p in (left, right))
    unit, other = (p / torch.where(n > 0, n, 1.0) for p, n in ((left, one), (right, two)))
    return one, two, unit @ other.mT
