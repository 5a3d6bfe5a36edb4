"""Gradients of the equilibrium layer of first and second order against an unrolled truth in float64, under every transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

from sciopt.domains.implicit.equilibrium import DEQ
from sciopt.inner import Anderson, Broyden, Newton, Picard
from sciopt.inner.abstract import AbstractSolver
from tests.domains.implicit.deq_cases import SIZE, Cell, relative, unrolled
from tests.helpers import randn

SOLVERS = [Picard(rtol=1e-14), Anderson(rtol=1e-14), Broyden(rtol=1e-14), Newton(rtol=1e-14)]


@pytest.fixture
def cell(generator: torch.Generator) -> Cell:
    return Cell(generator)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return randn(4, SIZE, generator=generator)


def score(z: Tensor) -> Tensor:
    return (z**3).sum() + z.sin().sum()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_first_and_second_order_against_the_unrolled_truth(solver: AbstractSolver, cell: Cell, x: Tensor) -> None:
    leaves = [x.clone().requires_grad_(), *cell.parameters()]

    def derivatives(z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        first = torch.autograd.grad(score(z), leaves, create_graph=True)
        mixed = sum((g.cos() * torch.linspace(-1, 1, g.numel()).double().reshape(g.shape)).sum() for g in first)
        assert isinstance(mixed, Tensor)
        return list(first), list(torch.autograd.grad(mixed, leaves))

    truth = derivatives(unrolled(cell, leaves[0]))
    found = derivatives(DEQ(cell, solver=solver)(leaves[0]))
    for mine, right in zip(found[0], truth[0], strict=True):
        assert relative(mine, right) < 1e-10
    for mine, right in zip(found[1], truth[1], strict=True):
        assert relative(mine, right) < 1e-8


def test_func_grad_jvp_vjp_and_jacobians_of_functional_calls(cell: Cell, x: Tensor, generator: torch.Generator) -> None:
    layer = DEQ(cell, solver=Anderson(rtol=1e-14))
    params = {name: p.detach() for name, p in layer.named_parameters()}
    plain = {name.removeprefix("f."): p for name, p in params.items()}
    moved = {name: p + 0.01 * randn(*p.shape, generator=generator) for name, p in params.items()}

    def mine(p: dict[str, Tensor]) -> Tensor:
        return score(functional_call(layer, p, (x,)))

    def truth(p: dict[str, Tensor]) -> Tensor:
        return score(unrolled(lambda z, x: functional_call(cell, p, (z, x)), x))

    # at other parameters than the module's own: the adjoint must use those of the call
    found, right = grad(mine)(moved), grad(truth)({n.removeprefix("f."): p for n, p in moved.items()})
    for name, tensor in found.items():
        assert relative(tensor, right[name.removeprefix("f.")]) < 1e-10
    tangent = {name: torch.cos(p) for name, p in params.items()}
    short = {name.removeprefix("f."): t for name, t in tangent.items()}
    assert relative(jvp(mine, (params,), (tangent,))[1], jvp(truth, (plain,), (short,))[1]) < 1e-10
    hvp = jvp(grad(mine), (params,), (tangent,))[1]  # forward over reverse
    right = jvp(grad(truth), (plain,), (short,))[1]
    twice = grad(lambda p: sum((g * tangent[n]).sum() for n, g in grad(mine)(p).items()))(params)
    for name in params:
        assert relative(hvp[name], right[name.removeprefix("f.")]) < 1e-8
        assert relative(twice[name], right[name.removeprefix("f.")]) < 1e-8
    back = vjp(layer, x)[1](torch.ones_like(x))[0]
    assert relative(back, vjp(lambda y: unrolled(cell, y), x)[1](torch.ones_like(x))[0]) < 1e-10
    one = DEQ(cell, solver=Anderson(rtol=1e-14), per_sample=False)
    exact = jacrev(lambda y: unrolled(cell, y))(x[0])
    assert relative(jacrev(one)(x[0]), exact) < 1e-10 and relative(jacfwd(one)(x[0]), exact) < 1e-10


def test_vmap_and_per_sample_gradients(cell: Cell, x: Tensor) -> None:
    layer = DEQ(cell, solver=Anderson(rtol=1e-14), per_sample=False)
    truth = unrolled(cell, x)
    torch.testing.assert_close(vmap(layer)(x), truth, rtol=1e-11, atol=1e-12)
    params: dict[str, Tensor] = dict(layer.named_parameters())

    def sample(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return score(functional_call(layer, p, (row,)))

    found = vmap(grad(sample), in_dims=(None, 0))(params, x)
    for row in range(len(x)):
        leaf = [torch.autograd.grad(score(unrolled(cell, x[row])), p)[0] for p in cell.parameters()]
        for mine, right in zip(found.values(), leaf, strict=True):
            assert relative(mine[row], right) < 1e-10
    status = vmap(lambda row: layer(row, return_solution=True)[1].status_code)(x)
    assert status.tolist() == [0, 0, 0, 0]


def test_captured_tensors_get_gradients_whoever_owns_them(cell: Cell, x: Tensor) -> None:
    gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell
            self.layer = [DEQ(self.step, solver=Anderson(rtol=1e-14))]

        def step(self, z: Tensor, x: Tensor) -> Tensor:
            return gain * self.cell(z, x)

    # a function that closes over the module: the adjoint, which comes after the call, uses the call's parameters too
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            return DEQ(lambda z, x: self.cell(z, x), solver=Anderson(rtol=1e-14))(x)

    other = {name: 0.9 * p.detach() for name, p in Around().named_parameters()}
    got = grad(lambda p: score(functional_call(Around(), p, (x,))))(other)
    short = {name.removeprefix("cell."): p for name, p in other.items()}
    right = grad(lambda p: score(unrolled(lambda z, x: functional_call(cell, p, (z, x)), x)))(short)
    assert all(relative(got[f"cell.{name}"], tensor) < 1e-10 for name, tensor in right.items())

    wanted = [gain, cell.W]
    for layer in (Parent().layer[0], DEQ(lambda z, x: gain * cell(z, x), solver=Anderson(rtol=1e-14))):
        found = torch.autograd.grad(score(layer(x)), wanted)
        truth = torch.autograd.grad(score(unrolled(lambda z, y: gain * cell(z, y), x)), wanted)
        assert all(relative(a, b) < 1e-10 for a, b in zip(found, truth, strict=True))

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, w):
            ctx.save_for_backward(w)
            return z * w

        @staticmethod
        def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
            return g * ctx.saved_tensors[0], None

    with pytest.raises(TypeError, match="captured tensor that carries a gradient to enter through torch operations"):
        DEQ(lambda z, x: 0.5 * Hidden.apply(z, gain) + x)(x)


def test_trees_of_inputs_and_integers(cell: Cell, x: Tensor) -> None:
    table = torch.eye(3, SIZE, dtype=torch.float64, requires_grad=True)
    kinds = torch.tensor([0, 2, 1, 0])
    layer = DEQ(lambda z, x: cell(z, x["a"] + table[x["kind"]]), solver=Anderson(rtol=1e-14))
    a = x.clone().requires_grad_()
    z = layer({"kind": kinds, "a": a}, init=torch.zeros_like(x))
    truth = unrolled(cell, a + table[kinds])
    torch.testing.assert_close(z, truth, rtol=1e-11, atol=1e-12)
    for mine, right in zip(*(torch.autograd.grad(score(v), [a, table]) for v in (z, truth)), strict=True):
        assert relative(mine, right) < 1e-10
    lookup = DEQ(lambda z, k: 0.5 * torch.tanh(z) + table.to(z.dtype)[k], shape=(SIZE,))
    words = lookup(kinds)  # nothing but integers
    assert words.shape == (4, SIZE) and words.requires_grad
    with pytest.raises(
        TypeError, match="expected a function that keeps the dtype of the inner parameters, torch.float32"
    ):
        DEQ(lambda z, k: 0.5 * z + table[k], shape=(SIZE,))(kinds)


def hard(generator: torch.Generator, radius: float) -> tuple[Cell, Tensor]:
    """A nearly linear layer, whose spectral radius at the equilibrium is that of W to four digits."""
    cell = Cell(generator, radius=radius, size=40)
    with torch.no_grad():
        cell.b.zero_()
    return cell, 1e-3 * randn(3, 40, generator=generator)


@pytest.mark.parametrize("solver", [*SOLVERS, Anderson(history=20, rtol=1e-12)], ids=lambda s: type(s).__name__)
def test_a_hard_layer_is_right_or_says_that_it_is_not(solver: AbstractSolver, generator: torch.Generator) -> None:
    """Spectral radius 0.99: plain iteration needs 3,000 steps."""
    cell, x = hard(generator, 0.99)
    leaves = [x.requires_grad_(), *cell.parameters()]
    truth = torch.autograd.grad(score(unrolled(cell, x, 4_000)), leaves)
    layer = DEQ(cell, solver=solver, throw=False)
    z, solution = layer(x, return_solution=True)
    if isinstance(solver, Picard):  # 1,000 steps are not enough
        assert not bool(solution.converged.any()) and solution.status.name == "MAX_STEPS"
        with pytest.warns(UserWarning, match="DEQ: expected every sample to converge, got MAX_STEPS in rows"):
            layer(x)
        return
    assert bool(solution.converged.all())
    found = torch.autograd.grad(score(z), leaves)
    for mine, right in zip(found, truth, strict=True):
        assert relative(mine, right) < (1e-9 if solver.rtol == 1e-14 else 1e-7)  # pyright: ignore[reportAttributeAccessIssue]
