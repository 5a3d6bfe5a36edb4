"""A network that was compiled serves in every layer as the one it was compiled from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sciopt.domains.implicit import DEQ, NeuralODE
from tests.helpers import randn


@pytest.mark.parametrize("layer", ["deq", "ode"])
def test_layers_take_compiled_networks(layer: str, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    compiled = torch.compile(net, backend="eager")  # what is captured and hooked is the same with every backend
    x = randn(4, 3, generator=generator).requires_grad_()

    def outcome(f: Any) -> tuple[Tensor, ...]:
        out = DEQ(lambda z, x: 0.5 * f(z) + x)(x) if layer == "deq" else NeuralODE(lambda t, z: f(z))(x)
        return out.detach(), *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])

    for ours, expected in zip(outcome(compiled), outcome(net), strict=True):
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)
