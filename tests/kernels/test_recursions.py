"""Wide-network kernels against quadrature of the Gaussian expectations, wide finite networks and each other."""

from __future__ import annotations

from math import pi, sqrt

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciopt.kernels import NNGP, NTK, ConvNetwork, DenseNetwork, EmpiricalNTK, Erf, LeakyRelu, gram
from tests.helpers import randn

ACTIVATIONS = [LeakyRelu(), LeakyRelu(slope=0.2), LeakyRelu(slope=-1.0), Erf()]
mpmath.mp.dps = 30


def by_angle(slope: float, cross: float, left: float, right: float) -> tuple[float, float]:
    """``E[f f]`` and ``E[f' f']`` of a leaky ReLU: the radius integrates to 2 and 1, the angle numerically."""
    theta = mpmath.acos(mpmath.mpf(cross) / mpmath.sqrt(mpmath.mpf(left) * right))

    def f(c, steep):
        return (1 if steep else c) * (1 if c > 0 else mpmath.mpf(slope))

    kinks = sorted({k * mpmath.pi / 2 + shift for k in (-3, -2, -1, 1, 2) for shift in (0, theta)})
    kinks = [k for k in kinks if -mpmath.pi <= k <= mpmath.pi]
    out = []
    for steep, radius in ((False, 2), (True, 1)):
        integral = mpmath.quad(lambda a, steep=steep: f(mpmath.cos(a), steep) * f(mpmath.cos(a - theta), steep), kinks)
        out.append(radius * integral / (2 * mpmath.pi))
    return float(out[0] * mpmath.sqrt(mpmath.mpf(left) * right)), float(out[1])


def by_hermite(cross: float, left: float, right: float) -> tuple[float, float]:
    """The same for erf, by Gauss-Hermite quadrature of 180 by 180 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    weights = weights / weights.sum()
    u = sqrt(left) * nodes[:, None]
    v = cross / sqrt(left) * nodes[:, None] + sqrt(max(right - cross**2 / left, 0.0)) * nodes
    erf = torch.erf(torch.as_tensor(np.broadcast_to(u, v.shape).copy())).numpy(), torch.erf(torch.as_tensor(v)).numpy()
    joint = weights[:, None] * weights
    steep = 4 / pi * np.exp(-(u**2) - v**2)
    return float((joint * erf[0] * erf[1]).sum()), float((joint * steep).sum())


def reference(activation, cross: float, left: float, right: float) -> tuple[float, float]:
    if isinstance(activation, LeakyRelu):
        return by_angle(activation.slope, cross, left, right)
    return by_hermite(cross, left, right)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("variances", [(0.3, 0.5, 0.8), (-0.4, 1.1, 0.2), (0.0, 1.0, 1.0), (0.45, 0.5, 0.42)])
def test_expectations_agree_with_quadrature(activation, variances) -> None:
    cross, left, right = (torch.tensor(v, dtype=torch.float64) for v in variances)
    value, flat = activation.expectations(cross, left, right)
    expected = reference(activation, *variances)
    np.testing.assert_allclose([float(value), float(flat)], expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        activation.coincident(left), reference(activation, variances[1], *[variances[1]] * 2), strict=True
    ):
        assert float(got) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_deep_recursion_against_quadrature_at_every_layer(activation, generator: torch.Generator) -> None:
    x, z = randn(2, 5, generator=generator)
    weights, biases = [1.3, 0.7, 1.9, 1.1], [0.1, 0.0, 0.3, 0.2]
    network = DenseNetwork(
        hidden_layers=3,
        activation=activation,
        weight_variance=torch.tensor(weights, dtype=torch.float64),
        bias_variance=torch.tensor(biases, dtype=torch.float64),
    )
    s, q, p = (weights[0] * float(a @ b) / 5 + biases[0] for a, b in ((x, z), (x, x), (z, z)))
    t = s
    for w, b in zip(weights[1:], biases[1:], strict=True):
        value, flat = reference(activation, s, q, p)
        s, t, q, p = (
            w * value + b,
            w * value + b + w * t * flat,
            w * reference(activation, q, q, q)[0] + b,
            w * reference(activation, p, p, p)[0] + b,
        )
    assert float(NNGP(network).pair(x[None], z[None])) == pytest.approx(s, rel=1e-11)
    assert float(NTK(network).pair(x[None], z[None])) == pytest.approx(t, rel=1e-11)


NETWORKS = [
    *(DenseNetwork(hidden_layers=3, activation=a, weight_variance=1.4, bias_variance=0.1) for a in ACTIVATIONS),
    DenseNetwork(hidden_layers=5),
    DenseNetwork(hidden_layers=0, bias_variance=0.5),
    ConvNetwork(hidden_layers=2, global_pool=False),
    ConvNetwork(hidden_layers=1, pool=2, bias_variance=0.2, activation=Erf()),
    ConvNetwork(hidden_layers=2, circular=True, weight_variance=1.5, width=5),
]


def points_for(network, n: int, generator: torch.Generator) -> Tensor:
    return randn(n, 6, 4, generator=generator) if isinstance(network, ConvNetwork) else randn(n, 6, generator=generator)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{type(n).__name__}-{n.activation}-{n.hidden_layers}")
@pytest.mark.parametrize("kind", [NTK, NNGP])
def test_symmetric_positive_and_exact_where_points_coincide(kind, network, generator: torch.Generator) -> None:
    kernel, points = kind(network), points_for(network, 12, generator)
    matrix = gram(kernel, points, tile=40)
    assert torch.equal(matrix, matrix.mT)
    torch.testing.assert_close(matrix.diagonal(), kernel.diagonal(points), rtol=0, atol=0)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-12 * float(matrix.trace())
    coincident = kernel.pair(points, points.clone()).diagonal()
    torch.testing.assert_close(coincident, kernel.diagonal(points), rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel.pair(points, points), matrix, rtol=1e-11, atol=1e-11)


def test_coincident_points_are_exact_in_float32_too(generator: torch.Generator) -> None:
    points = randn(50, 24, generator=generator)
    kernel = NTK(DenseNetwork(hidden_layers=5))
    exact = kernel.diagonal(points)
    torch.testing.assert_close(
        kernel.pair(points.float(), points.float()).diagonal().double(), exact, rtol=2e-6, atol=0
    )


def test_the_angular_route_equals_the_general_one(generator: torch.Generator) -> None:
    x, z = randn(6, 4, generator=generator), randn(5, 4, generator=generator)
    x[0], z[1], z[2] = 2 * z[0], -x[1], 0.0
    for slope in (0.0, 0.3):
        activation = LeakyRelu(slope=slope)
        fast = DenseNetwork(hidden_layers=4, activation=activation, weight_variance=1.7)
        slow = DenseNetwork(
            hidden_layers=4, activation=activation, weight_variance=1.7, bias_variance=torch.zeros((), dtype=x.dtype)
        )
        for kind in (NTK, NNGP):
            torch.testing.assert_close(kind(fast).pair(x, z), kind(slow).pair(x, z), rtol=1e-13, atol=1e-14)
            one, two = kind(fast).slopes(x, z), kind(slow).slopes(x, z)
            assert one is not None and two is not None
            for got, want in zip(one, two, strict=True):
                torch.testing.assert_close(got[:, 3:], want[:, 3:], rtol=1e-11, atol=1e-13)


def test_ridge_less_identity_network_is_linear(generator: torch.Generator) -> None:
    x = randn(5, 3, generator=generator)
    network = DenseNetwork(hidden_layers=2, activation=LeakyRelu(slope=1.0), weight_variance=2.0)
    torch.testing.assert_close(NNGP(network).pair(x, x), 8 * x @ x.mT / 3)
    torch.testing.assert_close(NTK(network).pair(x, x), 24 * x @ x.mT / 3)


class Wide(nn.Module):
    """A finite network in NTK parametrisation."""

    def __init__(self, sizes: list[int], activation, weight: float, bias: float, generator: torch.Generator) -> None:
        super().__init__()
        self.activation, self.weight, self.bias = activation, weight, bias
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.w = nn.ParameterList([nn.Parameter(randn(b, a, generator=generator)) for a, b in pairs])
        self.b = nn.ParameterList([nn.Parameter(randn(b, generator=generator)) for _, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        for k, (w, b) in enumerate(zip(self.w, self.b, strict=True)):
            x = sqrt(self.weight / w.shape[1]) * x @ w.mT + sqrt(self.bias) * b
            x = self.activation(x) if k + 1 < len(self.w) else x
        return x


@pytest.mark.parametrize("activation", [LeakyRelu(), LeakyRelu(slope=0.2), Erf()], ids=str)
def test_wide_finite_network_has_nearly_this_tangent_kernel(activation, generator: torch.Generator) -> None:
    points = randn(4, 3, generator=generator)
    network = DenseNetwork(hidden_layers=2, activation=activation, weight_variance=1.5, bias_variance=0.2)
    limit = NTK(network).pair(points, points)
    errors = []
    for width in (64, 1024):
        finite = EmpiricalNTK(Wide([3, width, width, 1], activation, 1.5, 0.2, generator))
        errors.append(float((finite.pair(points, points) - limit).abs().max() / limit.abs().max()))
    assert errors[1] < 0.12 and errors[1] < errors[0]  # falls as 1 / sqrt(width)


class WideConv(nn.Module):
    """A finite convolutional network of one layer in NTK parametrisation, with pooling and a readout."""

    def __init__(self, channels: int, pool: int, global_pool: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.pool, self.global_pool = pool, global_pool
        self.filters = nn.Parameter(randn(channels, 4, 3, generator=generator))
        self.offset = nn.Parameter(randn(channels, generator=generator))
        self.head = nn.Parameter(randn(channels, 1 if global_pool else 6 // pool, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.conv1d(x.mT, self.filters, padding=1) * sqrt(1.5 / 12) + sqrt(0.2) * self.offset[:, None]
        h = nn.functional.avg_pool1d(torch.relu(h), self.pool)
        h = h.mean(-1, keepdim=True) if self.global_pool else h
        return (sqrt(1.5 / self.head.numel()) * (h * self.head)).sum((-2, -1))[:, None]


@pytest.mark.parametrize(("pool", "global_pool"), [(1, True), (1, False), (2, True), (2, False)])
def test_wide_convolution_has_nearly_this_tangent_kernel(pool, global_pool, generator: torch.Generator) -> None:
    points = randn(3, 6, 4, generator=generator)
    biases = torch.tensor([0.2, 0.0], dtype=torch.float64)
    network = ConvNetwork(
        hidden_layers=1, weight_variance=1.5, bias_variance=biases, pool=pool, global_pool=global_pool
    )
    limit = NTK(network).pair(points, points)
    finite = EmpiricalNTK(WideConv(30000, pool, global_pool, generator)).pair(points, points)
    torch.testing.assert_close(finite, limit, rtol=0.05, atol=0.02 * float(limit.max()))  # 1 / sqrt(channels)


def test_a_convolution_over_one_position_is_a_dense_layer(generator: torch.Generator) -> None:
    x, z = randn(4, 1, 5, generator=generator), randn(3, 1, 5, generator=generator)
    dense = DenseNetwork(hidden_layers=3, weight_variance=1.3, bias_variance=0.1)
    for pooled in (True, False):
        conv = ConvNetwork(hidden_layers=3, width=1, weight_variance=1.3, bias_variance=0.1, global_pool=pooled)
        for kind in (NTK, NNGP):
            torch.testing.assert_close(
                kind(conv).pair(x, z), kind(dense).pair(x[:, 0], z[:, 0]), rtol=1e-12, atol=1e-14
            )


def test_bad_options_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="DenseNetwork: expected `weight_variance` > 0, got 0.0"):
        DenseNetwork(hidden_layers=1, weight_variance=0.0)
    with pytest.raises(ValueError, match=r"expected `bias_variance` of shape \(\) or \(3,\), got \(2,\)"):
        DenseNetwork(hidden_layers=2, bias_variance=torch.ones(2))
    with pytest.raises(ValueError, match="multiple of pool"):
        ConvNetwork(hidden_layers=2, pool=2).covariance(torch.ones(1, 6, 2), torch.ones(1, 6, 2), True)
    with pytest.raises(ValueError, match=r"DenseNetwork: expected `left` of shape \(n, d\)"):
        NTK(DenseNetwork(hidden_layers=1)).pair(torch.ones(1, 6, 2), torch.ones(1, 6, 2))
    with pytest.raises(ValueError, match="expected `module` to return"):
        EmpiricalNTK(nn.Sequential(nn.Linear(2, 1), nn.Unflatten(1, (1, 1)))).pair(torch.ones(1, 2), torch.ones(1, 2))
