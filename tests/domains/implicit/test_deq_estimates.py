"""Estimates against dense Jacobians, approximate gradients against the exact one and their laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt.domains.implicit.equilibrium import (
    DEQ,
    MonotoneDEQ,
    gradient_error,
    jacobian_penalty,
    phantom_gradient,
    spectral_radius,
)
from sciopt.hypergradients import FirstOrder, OneStep, Unrolled
from sciopt.inner import Anderson, Picard
from tests.domains.implicit.deq_cases import SIZE, Cell, relative, unrolled
from tests.helpers import randn


def jacobians(f, z: Tensor, x: Tensor) -> Tensor:
    return torch.stack(
        [torch.func.jacrev(lambda y, r=r: f(y, x[r : r + 1]))(z[r : r + 1])[0, :, 0] for r in range(len(z))]
    )


def test_jacobian_penalty_is_unbiased_and_differentiable(generator: torch.Generator) -> None:
    cell, x = Cell(generator), randn(3, SIZE, generator=generator)
    z = DEQ(cell)(x)
    exact = jacobians(cell, z, x).square().sum((-2, -1)) / SIZE
    found = jacobian_penalty(cell, z, x, generator=generator, num_samples=3000)
    torch.testing.assert_close(found, exact, rtol=0.06, atol=0)
    few = torch.Generator().manual_seed(1)
    again = torch.Generator().manual_seed(1)
    (first,) = torch.autograd.grad(jacobian_penalty(cell, z, x, generator=few).sum(), cell.W)
    with torch.no_grad():
        step = 1e-6 * torch.sin(torch.arange(SIZE * SIZE, dtype=torch.float64)).reshape(SIZE, SIZE)

        def at(sign: int) -> float:
            cell.W.add_(step, alpha=sign)
            value = float(jacobian_penalty(cell, DEQ(cell, solver=Anderson(rtol=1e-13))(x), x, generator=again).sum())
            cell.W.sub_(step, alpha=sign)
            again.manual_seed(1)
            return value

        slope = (at(1) - at(-1)) / 2
    assert float((first * step).sum()) == pytest.approx(slope, rel=1e-5)  # through z* as well
    with pytest.raises(ValueError, match="jacobian_penalty: expected `num_samples`"):
        jacobian_penalty(cell, z, x, generator=generator, num_samples=0)


def test_spectral_radius_of_real_complex_and_defective_maps(generator: torch.Generator) -> None:
    general = randn(3, SIZE, SIZE, generator=generator) / SIZE**0.5
    nilpotent = torch.diag(torch.ones(SIZE - 1, dtype=torch.float64), 1).unsqueeze(0)
    matrices = torch.cat(
        [general, nilpotent, torch.zeros_like(nilpotent), -0.7 * torch.eye(SIZE).double().unsqueeze(0)]
    )
    z = torch.zeros(len(matrices), SIZE, dtype=torch.float64)
    f = lambda z, x: (matrices @ z.unsqueeze(-1)).squeeze(-1) + x  # noqa: E731
    found = spectral_radius(f, z, z, generator=generator, rtol=1e-6, max_steps=2000)
    exact = torch.linalg.eigvals(matrices).abs().amax(-1)
    torch.testing.assert_close(found[[0, 1, 2, 4, 5]], exact[[0, 1, 2, 4, 5]], rtol=2e-3, atol=1e-12)
    assert float(found[3]) < 1e-6  # nilpotent: exactly zero after six steps
    cell, x = Cell(generator, radius=0.95), 0.01 * randn(2, SIZE, generator=generator)
    z = DEQ(cell)(x)
    exact = torch.linalg.eigvals(jacobians(cell, z, x)).abs().amax(-1)
    torch.testing.assert_close(spectral_radius(cell, z, x, generator=generator, rtol=1e-5), exact, rtol=1e-3, atol=0)
    assert spectral_radius(lambda z, x: x, z.detach(), x, generator=generator).tolist() == [0, 0]
    for option in ({"rtol": 0.0}, {"max_steps": 1}):
        with pytest.raises(ValueError, match="spectral_radius: expected"):
            spectral_radius(cell, z, x, generator=generator, **option)  # pyright: ignore[reportArgumentType]


def test_approximations_are_labelled_and_their_error_follows_its_law(generator: torch.Generator) -> None:
    cell, x = Cell(generator, radius=0.7), randn(5, SIZE, generator=generator)
    loss = lambda z: z.sin().sum()  # noqa: E731
    errors = []
    for steps in (1, 4, 16):
        layer = DEQ(cell, hypergradient=phantom_gradient(steps, damping=1.0))
        _, solution = layer(x, return_solution=True)
        assert solution.aux["gradient"] == f"approximate: phantom gradient of {steps} terms"
        errors.append(gradient_error(layer, x, loss).relative)
    assert errors[0] > errors[1] > errors[2] > 0 and errors[2] < 0.7**11
    one = gradient_error(DEQ(cell, hypergradient=OneStep()), x, loss)
    assert one.relative == pytest.approx(errors[0], rel=1e-6)  # the same thing, written differently
    assert 0.2 < one.relative < 0.9 and 0 < one.cosine < 1
    assert set(one.by_name) == {"x.0", "f.W", "f.U", "f.b"} and max(one.by_name.values()) > one.relative > 0
    nothing = gradient_error(DEQ(cell, hypergradient=FirstOrder()), x, loss)
    assert nothing.relative == pytest.approx(1.0) and nothing.cosine == 0
    assert gradient_error(DEQ(cell), x, loss).relative < 1e-7
    assert "gradient" not in DEQ(cell)(x, return_solution=True)[1].aux
    short = DEQ(cell, solver=Picard(), hypergradient=Unrolled(truncate=2))(x, return_solution=True)[1]
    assert short.aux["gradient"] == "approximate: the last 2 iterations only"
    # measured by hand at one step: the right-hand side of the adjoint instead of its solution
    z = DEQ(cell, solver=Anderson(rtol=1e-13))(x).detach()
    held = torch.autograd.grad(loss(cell(z, x)), cell.b)[0]
    leaf = torch.autograd.grad(loss(DEQ(cell, solver=Anderson(rtol=1e-13), hypergradient=OneStep())(x)), cell.b)[0]
    torch.testing.assert_close(leaf, held, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="phantom_gradient: expected `damping` in"):
        phantom_gradient(3, damping=0.0)


def test_measuring_an_error_leaves_no_trace(generator: torch.Generator) -> None:
    norm = torch.nn.BatchNorm1d(SIZE).double()
    dropout = torch.nn.Dropout(0.3)
    body = torch.nn.Sequential(norm, dropout)

    class Body(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.3 * self.body(z) + x)

    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    state = torch.get_rng_state()
    error = gradient_error(DEQ(Body(), hypergradient=OneStep()), randn(8, SIZE, generator=generator), torch.sum)
    assert 0 < error.relative < 0.5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_monotone_layer_has_its_equilibrium_whatever_the_parameters(scale: float, generator: torch.Generator) -> None:
    layer = MonotoneDEQ(4, 7, margin=0.2, solver=Picard(max_steps=20_000), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.A.mul_(scale)
        layer.B.mul_(scale)
    x = randn(5, 4, generator=generator)
    z, solution = layer(x, return_solution=True)
    assert bool(solution.converged.all())
    W = layer.weight().detach()
    bound = torch.linalg.eigvalsh(torch.eye(7, dtype=torch.float64) - (W + W.T) / 2)[0]
    assert float(bound) >= 0.2 - 1e-9
    if scale > 1:
        assert float(torch.linalg.eigvals(W).abs().max()) > 2  # plain iteration of the layer would run away
    torch.testing.assert_close(torch.relu(z @ W.T + layer.inject(x)), z, rtol=1e-5, atol=1e-6 * scale)


def test_gradients_of_a_monotone_layer_against_the_unrolled_truth(generator: torch.Generator) -> None:
    layer = MonotoneDEQ(4, 7, margin=0.5, solver=Anderson(rtol=1e-14), generator=generator, dtype=torch.float64)
    x = randn(5, 4, generator=generator).requires_grad_()
    leaves = [x, *layer.parameters()]

    def forward_backward(z: Tensor, x: Tensor) -> Tensor:
        return torch.relu(0.7 * z + 0.3 * (z @ layer.weight().T + layer.inject(x)))

    truth = unrolled(forward_backward, x, 400, torch.zeros(5, 7, dtype=torch.float64))
    z = layer(x)
    torch.testing.assert_close(z, truth, rtol=1e-11, atol=1e-12)
    assert 0 < int((z > 0).sum()) < z.numel()

    def derivatives(z: Tensor) -> list[Tensor]:
        first = torch.autograd.grad((z**3).sum(), leaves, create_graph=True)
        total = torch.stack([(g * g.cos().detach()).sum() for g in first]).sum()
        return [*first, *torch.autograd.grad(total, leaves)]

    found, right = derivatives(z), derivatives(truth)
    for place, (a, b) in enumerate(zip(found, right, strict=True)):
        assert relative(a, b) < (1e-10 if place < len(leaves) else 1e-8)
    _, cold = layer(x, return_solution=True)
    _, warm = layer(x, init=z.detach(), return_solution=True)
    assert int(warm.num_steps.max()) <= 1 < int(cold.num_steps.min())
    with pytest.raises(ValueError, match="MonotoneDEQ: expected `margin` > 0"):
        MonotoneDEQ(2, 2, margin=0.0)
