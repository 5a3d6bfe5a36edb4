"""What runs inside an implicit layer is found wherever it is kept, and held still; what cannot be found is refused."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciopt.domains.implicit.equilibrium import DEQ
from sciopt.domains.implicit.frozen import Frozen
from sciopt.domains.implicit.modules import modules_of
from sciopt.domains.implicit.ode import NeuralODE
from sciopt.inner import Anderson

SIZE = 4
GLOBAL: dict[str, Any] = {}


class Holder:
    """No module, but it has one."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, z: Tensor) -> Tensor:
        return self.inner["net"][0](z)

    def apply(self, z: Tensor) -> Tensor:
        return self(z)


def nested(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def first() -> Callable[[Tensor], Tensor]:
        def second(z: Tensor) -> Tensor:
            def third(z: Tensor) -> Tensor:
                return net(z)

            return third(z)

        return lambda z: second(z)

    inner = first()
    return lambda z: inner(z)


def defaulted(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z, nets=(net,): nets[0](z)


def by_global(net: nn.Module) -> Callable[[Tensor], Tensor]:
    GLOBAL["net"] = net
    return lambda z: [GLOBAL["net"](z) for _ in range(1)][0]


def unregistered(net: nn.Module) -> nn.Module:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [net]

        def forward(self, z: Tensor) -> Tensor:
            return self.layers[0](z)

    return Outer()


HIDDEN: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "closures": nested,
    "slots": lambda net: Holder({"net": [net]}),
    "method": lambda net: Holder({"net": (net,)}).apply,
    "partial": lambda net: functools.partial(lambda table, z: table.net(z), SimpleNamespace(net=net)),
    "default": defaulted,
    "global": by_global,
    "unregistered": unregistered,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_modules_are_found_where_they_are_kept(name: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(SIZE), nn.Dropout(0.5)).double()
    f = HIDDEN[name](net)
    z = torch.ones(3, SIZE, dtype=torch.float64)
    f(z)
    found = modules_of(f)
    assert all(any(part is m for m in found) for part in net.modules())
    assert len(found) == len(set(map(id, found)))


def test_a_library_or_data_is_not_searched() -> None:
    rows = [nn.Linear(1, 1)] + [0.0] * 10_001
    assert modules_of(lambda z: nn.functional.relu(z) + len(rows)) == []


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_batch_norm_and_dropout_are_held_still(name: str, generator: torch.Generator) -> None:
    norm, dropout = nn.BatchNorm1d(SIZE).double(), nn.Dropout(0.5)
    f = HIDDEN[name](nn.Sequential(norm, dropout))
    z = torch.randn(6, SIZE, generator=generator, dtype=torch.float64)
    DEQ(lambda z, x: torch.tanh(0.2 * f(z) + x))(z)
    assert int(norm.num_batches_tracked or 0) == 1
    out = NeuralODE(lambda t, z: -f(z))(z)
    assert int(norm.num_batches_tracked or 0) == 2 and bool(torch.isfinite(out).all())
    frozen = Frozen(f)
    frozen.begin(z)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(frozen.restricted(rows)(z[rows]), frozen(z)[rows])
    assert bool((frozen(z) == 0).any()) and norm.training and "forward" not in vars(dropout)


@pytest.mark.parametrize("name", HIDDEN)
def test_parameters_put_in_far_below_get_their_gradient(name: str, generator: torch.Generator) -> None:
    net = nn.Linear(SIZE, SIZE).double()
    f = HIDDEN[name](net)
    x = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    layers = {
        "deq": DEQ(lambda z, x: torch.tanh(0.3 * f(z) + x), solver=Anderson(rtol=1e-13)),
        "ode": NeuralODE(lambda t, z: torch.tanh(f(z))),
    }

    class Around(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.net, self.layer = net, [layer]

        def forward(self, x: Tensor) -> Tensor:
            return self.layer[0](x)

    for layer in layers.values():
        around = Around(layer)
        put = {key: (0.5 * p.detach()).requires_grad_() for key, p in around.named_parameters()}
        found = torch.autograd.grad(functional_call(around, put, (x,)).square().sum(), list(put.values()))
        kept = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
        truth = torch.autograd.grad(layer(x).square().sum(), list(net.parameters()))
        with torch.no_grad():
            for p, old in zip(net.parameters(), kept, strict=True):
                p.copy_(old)
        for one, other in zip(found, truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_found_is_refused() -> None:
    net, norm, dropout = nn.Linear(SIZE, SIZE).double(), nn.BatchNorm1d(SIZE).double(), nn.Dropout(0.5)
    x = torch.zeros(3, SIZE, dtype=torch.float64)
    for part in (net, norm):
        far = weakref.ref(part)  # pointing at it, and nothing that a search follows
        hidden = lambda z, far=far: far()(z)  # noqa: E731  # pyright: ignore[reportOptionalCall]
        for layer, owner in (
            (DEQ(lambda z, x, f=hidden: torch.tanh(0.2 * f(z) + x)), "DEQ"),
            (NeuralODE(lambda t, z, f=hidden: f(z)), "NeuralODE"),
        ):
            kind = type(part).__name__
            with pytest.raises(TypeError, match=f"{owner}: expected `f` whose modules can be found, got {kind}"):
                layer(x)
    assert int(norm.num_batches_tracked or 0) == 0
    far = weakref.ref(dropout)
    with pytest.raises(TypeError, match="expected `f` whose modules can be found, got Dropout"):
        NeuralODE(lambda t, z: far()(z))(x)  # pyright: ignore[reportOptionalCall]
    # a layer without tensors may be made on the spot
    torch.testing.assert_close(DEQ(lambda z, x: nn.Tanh()(0.0 * z + x))(x + 1), torch.tanh(x + 1))


def test_layers_that_do_not_run_may_be_what_they_are(generator: torch.Generator) -> None:
    idle = SimpleNamespace(net=nn.Linear(SIZE, SIZE).double(), odd=nn.AlphaDropout(0.5))
    x = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    assert NeuralODE(lambda t, z: idle.net(z))(x).shape == x.shape
