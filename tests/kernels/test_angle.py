"""The series in the angle against the recursion in fifty digits, values and slopes, and where it has to be refused."""

from __future__ import annotations

from collections.abc import Sequence

import mpmath
import pytest
import torch
from torch import Tensor

from sciopt.kernels.angle import _recursion, angle_series, angular_slopes, angular_value

CPU = torch.device("cpu")


def exact(cosine: float, layers: int, leak: float) -> tuple[float, float, float, float]:
    """NNGP, NTK and their derivatives in the cosine, layer by layer in fifty digits, by the chain rule."""
    with mpmath.workdps(50):
        c, s = mpmath.mpf(cosine), mpmath.mpf(leak)
        gain = (1 + s**2) / 2
        bend = (1 - s) ** 2 / (2 * mpmath.pi * gain)
        t, dc, dt = c, mpmath.mpf(1), mpmath.mpf(1)
        for _ in range(layers):
            angle = mpmath.acos(c)
            flat, dflat = 1 - bend * angle, bend / mpmath.sin(angle)
            dt = dt * flat + t * dflat * dc
            t = t * flat
            c, dc = flat * c + bend * mpmath.sin(angle), flat * dc
            t, dt = t + c, dt + dc
        return float(c), float(t), float(dc), float(dt)


def far(got: Tensor, want: Sequence[float], scale: float) -> float:
    return float((got.double().flatten() - torch.tensor(want, dtype=torch.float64)).abs().max()) / scale


@pytest.mark.parametrize("leak", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("layers", [1, 2, 5, 10])
def test_values_and_slopes_to_rounding(layers, leak) -> None:
    cosines = torch.cos(torch.linspace(0.05, 3.09, 41, dtype=torch.float64))
    want = list(zip(*(exact(float(c), layers, leak) for c in cosines), strict=True))
    assert angle_series(layers, leak, torch.float64, CPU) is not None
    for tangent in (False, True):
        value, slope = angular_slopes(cosines.unsqueeze(0), layers, leak, tangent)
        assert torch.equal(value, angular_value(cosines.unsqueeze(0).clone(), layers, leak, tangent))
        assert far(value, want[int(tangent)], 1 + layers) < 4e-15
        steepest = max(abs(v) for v in want[2 + int(tangent)])
        assert far(slope, want[2 + int(tangent)], steepest) < 2e-14


@pytest.mark.parametrize("layers", [1, 5])
def test_float32_keeps_its_digits(layers) -> None:
    cosines = torch.cos(torch.linspace(0.2, 2.9, 41)).unsqueeze(0)
    want = list(zip(*(exact(float(c), layers, 0.0) for c in cosines[0]), strict=True))
    value, slope = angular_slopes(cosines, layers, 0.0, True)
    assert value.dtype == slope.dtype == torch.float32
    assert far(value, want[1], 1 + layers) < 1e-6
    assert far(slope, want[3], max(want[3])) < 3e-6


def test_networks_without_a_short_series_take_the_recursion() -> None:
    cosines = torch.cos(torch.linspace(0.1, 3.0, 21, dtype=torch.float64)).unsqueeze(0)
    for layers, leak in ((40, 0.0), (3, -1.0), (5, 0.7)):
        assert angle_series(layers, leak, torch.float64, CPU) is None
        want = [exact(float(c), layers, leak) for c in cosines[0]]
        value, slope = angular_slopes(cosines, layers, leak, True)
        assert far(value, [w[1] for w in want], 1 + layers) < 1e-13
        assert far(slope, [w[3] for w in want], max(abs(w[3]) for w in want)) < 1e-11


def test_points_that_coincide_or_oppose() -> None:
    ends = torch.tensor([[1.0, 1.0 - 1e-16, -1.0]], dtype=torch.float64)
    value, slope = angular_slopes(ends, 5, 0.0, True)
    by_recursion = _recursion(ends.clone(), 5, 0.0, True)
    torch.testing.assert_close(value, by_recursion[1], rtol=0, atol=1e-14)
    assert float(value[0, 0]) == pytest.approx(6.0, abs=1e-14)
    assert bool(torch.isfinite(slope).all())
