"""Batches of small random networks, with their gradients in factors: what designs and data are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["NetworkFamily", "Tangent", "features", "loss_gradient", "predict", "tangent"]

Weights = dict[str, Tensor]
GAIN = 2.8  # 1 / E[silu(z)^2] for a standard normal z: the variance is kept from layer to layer


@final
@dataclass(frozen=True, kw_only=True)
class NetworkFamily:
    """Fully connected networks with SiLU units and one output, drawn at random.

    SiLU is smooth, so that losses of gradients have gradients. A small output scale starts networks near zero: their gradients
    then say what the labels ask for, not what the random start happens to predict.

    Args:
        count: number of networks.
        hidden_layers: 0 makes them linear.
        width: of the hidden layers.
        output_scale: factor of the last layer's weights.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> family = NetworkFamily(count=2, hidden_layers=1, width=3)
        >>> weights = family.draw(5, generator=torch.Generator().manual_seed(0), like=torch.zeros(()))
        >>> {name: tuple(w.shape) for name, w in weights.items()}
        {'layer0': (1, 2, 6, 3), 'layer1': (1, 2, 4, 1)}
    """

    count: int = 8
    hidden_layers: int = 2
    width: int = 64
    output_scale: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("hidden_layers", 0), ("width", 1)):
            value = getattr(self, name)
            check_option("NetworkFamily", name, value, value >= least, f">= {least}", "Leave the default.")

    def draw(self, dimension: int, *, generator: torch.Generator, like: Tensor) -> Weights:
        """Weights ``(1, count, inputs + 1, outputs)`` of each layer, biases (the last row) zero.

        Args:
            dimension: of the points.
            generator: source of the weights.
            like: tensor whose dtype and device they take.
        """
        sizes = (dimension, *(self.width,) * self.hidden_layers, 1)
        weights: Weights = {}
        for k, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            shape = (1, self.count, inputs, outputs)
            draw = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
            draw = draw * ((GAIN if k else 1.0) / inputs) ** 0.5
            if k == self.hidden_layers:
                draw = draw * self.output_scale
            weights[f"layer{k}"] = torch.cat([draw, torch.zeros_like(draw[..., :1, :])], -2).to(like)
        return weights


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Tangent:
    """Outputs of networks at points, and their gradients in the weights as outer products, layer by layer.

    The gradient of point m's output in a layer's weights is ``inputs[m] deltas[m]^T``: it is never stored.

    Args:
        outputs: ``(sets, networks, m)``.
        inputs: of each layer, with a last entry 1 for the bias, ``(sets, networks, m, inputs + 1)``.
        deltas: derivative of the output in each layer's result, ``(sets, networks, m, outputs)``.
    """

    outputs: Tensor
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]


def _layers(weights: Weights, points: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and results of each layer; sets of 1 broadcast, without copies, on either side."""
    value, inputs, results = points.unsqueeze(1), [], []
    for layer in weights.values():
        inputs.append(torch.cat([value, torch.ones_like(value[..., :1])], -1))
        results.append(torch.einsum("skmi,skio->skmo", inputs[-1], layer))
        value = torch.nn.functional.silu(results[-1])
    return tuple(inputs), tuple(results)


def predict(weights: Weights, points: Tensor) -> Tensor:
    """Outputs ``(sets, networks, m)`` at points ``(sets, m, d)``.

    Example:
        >>> weights = {"layer0": torch.ones(1, 2, 4, 1)}
        >>> predict(weights, torch.ones(1, 1, 3))
        tensor([[[4.],
                 [4.]]])
    """
    return _layers(weights, points)[1][-1].squeeze(-1)


def features(weights: Weights, points: Tensor) -> Tensor:
    """What the last layer sees ``(sets, networks, m, width)`` of points ``(sets, m, d)``; the points, of linear networks.

    Example:
        >>> bool((features({"layer0": torch.ones(1, 1, 4, 1)}, torch.eye(3).unsqueeze(0)) == torch.eye(3)).all())
        True
    """
    return _layers(weights, points)[0][-1][..., :-1]


def tangent(weights: Weights, points: Tensor) -> Tangent:
    """Outputs and gradient factors at points ``(sets, m, d)`` of weights ``(sets or 1, networks, ...)``.

    Example:
        >>> weights = {"layer0": torch.ones(1, 1, 3, 1)}
        >>> tangent(weights, torch.ones(1, 1, 2)).deltas[0]
        tensor([[[[1.]]]])
    """
    inputs, results = _layers(weights, points)
    delta = torch.ones_like(results[-1])
    deltas = [delta]
    for layer, result in zip(list(weights.values())[:0:-1], results[-2::-1], strict=True):
        gate = torch.sigmoid(result)
        slope = gate * (1 + result * (1 - gate))
        delta = torch.einsum("skmo,skio->skmi", delta, layer[..., :-1, :]) * slope
        deltas.append(delta)
    return Tangent(outputs=results[-1].squeeze(-1), inputs=inputs, deltas=tuple(deltas[::-1]))


def loss_gradient(weights: Weights, points: Tensor, labels: Tensor | float, shares: Tensor | float) -> Weights:
    """Gradient in the weights of ``sum_m shares[m] (f(points[m]) - labels[m])^2 / 2``, ``(sets, networks, ...)``.

    Args:
        weights: ``(sets or 1, networks, ...)``.
        points: ``(sets or 1, m, d)``.
        labels: ``(m,)`` or a number.
        shares: ``(m,)`` or a number.

    Example:
        >>> weights = {"layer0": torch.zeros(1, 1, 3, 1)}
        >>> loss_gradient(weights, torch.ones(1, 2, 2), 3.0, 0.5)["layer0"].flatten()
        tensor([-3., -3., -3.])
    """
    at = tangent(weights, points)
    pull = shares * (at.outputs - labels)
    return {
        name: torch.einsum("skm,skmi,skmo->skio", pull, left, right)
        for name, left, right in zip(weights, at.inputs, at.deltas, strict=True)
    }
