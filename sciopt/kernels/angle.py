"""Kernels of wide leaky-ReLU networks without biases as polynomials in the angle between two points.

Layer by layer such a kernel takes an arc cosine, a root and a dozen multiplications per entry. But without biases it is ``|x|
|x'|`` times a function of the angle alone, whatever the depth, and that function is analytic on [0, pi]: a Chebyshev series
of degree 12 to 16 holds it to the rounding of float32, one of 20 to 30 to that of float64. The coefficients are computed once
per architecture; an entry then costs one arc cosine and one multiplication and addition per degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import final

import torch
from numpy.polynomial.chebyshev import cheb2poly
from torch import Tensor
from torch.nn.functional import threshold

from sciopt.kernels.abstract import COINCIDENT

__all__ = ["AngleSeries", "angle_series", "angular_slopes", "angular_value"]

NODES = 64
MAX_DEGREE = 40
MAX_GROWTH = 20.0  # of the sum of coefficients over the largest value: what Horner's rule may amplify rounding by


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class AngleSeries:
    """Coefficients, constant first, in ``t = 1 - 2 angle / pi``; kernels in units of the NNGP's norm.

    Args:
        correlation: of the NNGP.
        tangent: of the NTK.
        correlation_slope: of the NNGP's derivative in the cosine.
        tangent_slope: of the NTK's derivative in the cosine times the sine, which is regular at equal points.
    """

    correlation: tuple[Tensor, ...]
    tangent: tuple[Tensor, ...]
    correlation_slope: tuple[Tensor, ...]
    tangent_slope: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def angle_series(hidden_layers: int, leak: float, dtype: torch.dtype, device: torch.device) -> AngleSeries | None:
    """The series of an architecture; None where no short one is accurate to the rounding of ``dtype``.

    Example:
        >>> series = angle_series(1, 0.0, torch.float64, torch.device("cpu"))
        >>> round(float(evaluate(series.correlation, torch.tensor([0.0], dtype=torch.float64))), 12)  # a right angle: 1 / pi
        0.318309886184
    """
    if hidden_layers < 1 or dtype not in (torch.float32, torch.float64):
        return None
    nodes = torch.cos(pi * (2 * torch.arange(NODES, dtype=torch.float64) + 1) / (2 * NODES))
    found = []
    for values in _samples(0.5 * pi * (1 - nodes), hidden_layers, leak):
        coefficients = _fit(values, torch.finfo(dtype).eps)
        if coefficients is None:
            return None
        found.append(tuple(torch.tensor(c, dtype=dtype, device=device) for c in coefficients))
    return AngleSeries(correlation=found[0], tangent=found[1], correlation_slope=found[2], tangent_slope=found[3])


def angular_value(cosine: Tensor, hidden_layers: int, leak: float, tangent_kernel: bool) -> Tensor:
    """NTK or NNGP in units of the NNGP's norm, as a function of the cosine, which is overwritten; without graph.

    Example:
        >>> angular_value(torch.tensor([[1.0, 0.0]]), 1, 0.0, True)
        tensor([[2.0000, 0.3183]])
    """
    series = angle_series(hidden_layers, leak, cosine.dtype, cosine.device)
    if series is None:
        return _recursion(cosine, hidden_layers, leak, False)[int(tangent_kernel)]
    return evaluate(series.tangent if tangent_kernel else series.correlation, _position(cosine.clamp_(-1, 1)))


def angular_slopes(cosine: Tensor, hidden_layers: int, leak: float, tangent_kernel: bool) -> tuple[Tensor, Tensor]:
    """`angular_value` and its derivative in the cosine, which is taken as 0 where points coincide or oppose.

    Example:
        >>> angular_slopes(torch.tensor([[1.0, 0.0]]), 1, 0.0, False)
        (tensor([[1.0000, 0.3183]]), tensor([[1.0000, 0.5000]]))
    """
    series = angle_series(hidden_layers, leak, cosine.dtype, cosine.device)
    if series is None:
        both = _recursion(cosine.clone(), hidden_layers, leak, True)
        return both[int(tangent_kernel)], both[2 + int(tangent_kernel)]
    t = _position(cosine.clamp(-1, 1))
    if not tangent_kernel:
        return evaluate(series.correlation, t), evaluate(series.correlation_slope, t)
    square = _squared_sine(cosine, torch.empty_like(cosine))
    slope = evaluate(series.tangent_slope, t).mul_(_inverse(square.sqrt(), square))
    return evaluate(series.tangent, t), slope


def evaluate(coefficients: tuple[Tensor, ...], t: Tensor) -> Tensor:
    """The polynomial at each entry by Horner's rule, one pass per degree; without graph."""
    if len(coefficients) == 1:
        return coefficients[0].expand_as(t).clone()
    out = torch.mul(t, coefficients[-1]).add_(coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        torch.addcmul(coefficient, out, t, out=out)
    return out


def _position(cosine: Tensor) -> Tensor:
    """``1 - 2 angle / pi`` in place of the cosine; the angle of points that coincide up to rounding is 0.

    Fresh memory of a tile's size costs as much as two passes over it.
    """
    return threshold(cosine.acos_(), _close(cosine) ** 0.5, 0.0, inplace=True).mul_(-2 / pi).add_(1)


def _close(like: Tensor) -> float:
    """Squared sine below which points coincide or oppose up to rounding."""
    return 2 * COINCIDENT * torch.finfo(like.dtype).eps


def _squared_sine(cosine: Tensor, out: Tensor) -> Tensor:
    """``1 - cosine^2``, or 0 where points coincide or oppose; thresholds and clamps cost a tenth of masks."""
    torch.mul(cosine, cosine, out=out)
    return threshold(out.neg_().add_(1), _close(cosine), 0.0, inplace=True)


def _inverse(sine: Tensor, square: Tensor) -> Tensor:
    """``1 / sine``, or 0 where the sine is 0; overwrites the square."""
    return torch.div(sine, square.clamp_(min=torch.finfo(sine.dtype).tiny), out=square)


def _recursion(cosine: Tensor, hidden_layers: int, leak: float, slopes: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NNGP, NTK and their slopes layer by layer, for networks too deep for a short series; overwrites the cosine.

    Per layer one arc cosine and one root: ``f' = (1 - s)^2 (pi - angle) / (2 pi) + s`` and ``f = f' cos + (1 - s)^2 sin /
    (2 pi)``, both divided by their value at angle 0, so that cosines stay cosines.
    """
    gain = 0.5 * (1 + leak**2)
    bend = (1 - leak) ** 2 / (2 * pi * gain)
    close = _close(cosine)
    correlation, tangent = cosine.clamp(-1, 1), cosine
    correlation_s, tangent_s = (torch.ones_like(cosine), torch.ones_like(cosine)) if slopes else (cosine, cosine)
    square, sine, flat = (torch.empty_like(cosine) for _ in range(3))  # fresh memory costs more than the arithmetic
    for _ in range(hidden_layers):
        torch.sqrt(_squared_sine(correlation, square), out=sine)
        threshold(torch.acos(correlation, out=flat), close**0.5, 0.0, inplace=True).mul_(-bend).add_(1)
        if slopes:
            bending = _inverse(sine, square).mul_(bend)
            tangent_s.mul_(flat).addcmul_(bending.mul_(tangent), correlation_s)
            correlation_s.mul_(flat)
            tangent_s.add_(correlation_s)
        correlation.mul_(flat).add_(sine, alpha=bend).clamp_(-1, 1)
        tangent.mul_(flat).add_(correlation)
    return correlation, tangent, correlation_s, tangent_s


def _samples(angle: Tensor, hidden_layers: int, leak: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four functions at angles in (0, pi), without cancellation at small ones."""
    gain = 0.5 * (1 + leak**2)
    bend = (1 - leak) ** 2 / (2 * pi * gain)
    start = torch.sin(angle)
    correlation = torch.cos(angle)
    tangent, slope, tangent_slope = correlation, torch.ones_like(angle), start
    for _ in range(hidden_layers):
        sine, flat = torch.sin(angle), 1 - bend * angle
        # 1 - correlation = 2 sin^2(angle / 2) - bend (sin(angle) - angle cos(angle))
        half = torch.sin(0.5 * angle).square() - 0.5 * bend * _sine_minus(angle)
        tangent_slope = tangent_slope * flat + bend * (start / sine) * tangent * slope
        slope = slope * flat
        tangent_slope = tangent_slope + slope * start
        correlation = 1 - 2 * half
        tangent = tangent * flat + correlation
        angle = 2 * torch.asin(half.clamp(0, 1).sqrt())
    return correlation, tangent, slope, tangent_slope


def _sine_minus(angle: Tensor) -> Tensor:
    """``sin(a) - a cos(a)``, by its series where the two nearly cancel."""
    square = angle.square()
    series = torch.zeros_like(angle)
    for k in range(9, 0, -1):  # sum over k of (-1)^(k+1) 2k / (2k + 1)! a^(2k + 1)
        series = 2 * k / _factorial(2 * k + 1) * (-1) ** (k + 1) + square * series
    return torch.where(angle < 1.5, angle**3 * series, torch.sin(angle) - angle * torch.cos(angle))


def _factorial(n: int) -> float:
    return 1.0 if n < 2 else n * _factorial(n - 1)


def _fit(values: Tensor, rounding: float) -> list[float] | None:
    """Monomial coefficients of the truncated Chebyshev series through values at the Chebyshev nodes."""
    n = len(values)
    multiples = torch.arange(n).unsqueeze(-1) * (2 * torch.arange(n) + 1) % (4 * n)  # reduced before pi rounds them
    series = 2 / n * torch.cos(pi / (2 * n) * multiples.double()) @ values
    series[0] *= 0.5
    size = float(values.abs().max())
    tail = series.abs().flip(0).cummax(0).values.flip(0)  # a geometric series: the first term left out is the error
    short = torch.nonzero(tail[1:] <= max(0.25 * rounding, 4 * torch.finfo(torch.float64).eps) * size)
    if not bool(torch.isfinite(values).all()) or not len(short) or int(short[0]) > MAX_DEGREE:
        return None
    coefficients = cheb2poly(series[: int(short[0]) + 1].numpy())
    return None if abs(coefficients).sum() > MAX_GROWTH * size else coefficients.tolist()
