"""The layer against closed forms, against plain backpropagation, and where it could go wrong."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sciopt import SolveError, Status
from sciopt.domains.implicit.ode import KineticEnergy, NeuralODE
from sciopt.hypergradients import Backsolve, ForwardUnrolled, InterpolatedAdjoint, TorchDiffEqAdjoint
from sciopt.steppers import RK4, Dopri5, TorchDiffEq, Tsit5

TIGHT = Tsit5(rtol=1e-10, atol=1e-12)


class Linear(nn.Module):
    """dz/dt = z A^T."""

    def __init__(self, generator, n=3):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(n, n, generator=generator, dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.T


class Net(nn.Module):
    """A small network of time, state and, if given, context."""

    def __init__(self, generator, n=3, middle=None, dtype=torch.float64):
        super().__init__()
        self.first, self.last = nn.Linear(n + 1, 8), nn.Linear(8, n)
        self.middle = nn.Tanh() if middle is None else middle
        self.to(dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype))

    def forward(self, t, z, x=None):
        moved = torch.tanh(self.middle(self.first(torch.cat([z, t.expand(len(z), 1)], -1))))
        out = self.last(moved)
        return out if x is None else out * x["gain"]


def draw(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=dtype)


def test_a_linear_field_is_the_matrix_exponential_for_times_of_each_row(generator):
    field, z0 = Linear(generator), draw(generator, 6, 3)
    times = torch.stack([torch.zeros(6), 0.1 + 0.3 * torch.arange(6.0)]).double()
    node = NeuralODE(field, solver=TIGHT, with_solution=True)
    value, solution = node(z0, times)
    expected = torch.einsum("bij,bj->bi", torch.linalg.matrix_exp(times[1].reshape(-1, 1, 1) * field.matrix), z0)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    evaluations = solution.aux["evaluations"]
    assert bool((evaluations.diff() >= 0).all()) and int(evaluations[-1]) > 2 * int(evaluations[0])
    back = node(value, times.flip(0))[0]
    torch.testing.assert_close(back, z0, rtol=1e-7, atol=1e-7)


def test_a_trajectory_starts_at_the_input_and_ends_at_the_output(generator):
    net, z0, times = Net(generator), draw(generator, 4, 3), torch.linspace(0, 1, 5, dtype=torch.float64)
    path = NeuralODE(net, solver=TIGHT, times=times, trajectory=True)(z0)
    assert path.shape == (5, 4, 3) and torch.equal(path[0], z0)
    torch.testing.assert_close(path[-1], NeuralODE(net, solver=TIGHT)(z0), rtol=1e-8, atol=1e-10)


def by_hand(net, z, steps, x=None):
    """Classical Runge-Kutta from 0 to 1, recorded by autograd as it goes."""
    h = 1 / steps
    rest = () if x is None else (x,)

    def f(t, z):
        return net(torch.full((len(z), 1), t, dtype=z.dtype), z, *rest)

    for k in range(steps):
        t = k * h
        a = f(t, z)
        b = f(t + h / 2, z + h / 2 * a)
        c = f(t + h / 2, z + h / 2 * b)
        d = f(t + h, z + h * c)
        z = z + h / 6 * (a + 2 * b + 2 * c + d)
    return z


@pytest.mark.parametrize("hypergradient", [None, ForwardUnrolled()], ids=["reverse", "forward"])
def test_the_gradient_is_that_of_direct_backpropagation(generator, hypergradient):
    net, z0 = Net(generator), draw(generator, 4, 3).requires_grad_()
    x = {"gain": draw(generator, 4, 3).requires_grad_()}
    node = NeuralODE(net, solver=RK4(num_steps=4), hypergradient=hypergradient)
    inputs = [z0, x["gain"], *net.parameters()]
    found = torch.autograd.grad(node(z0, None, x).square().sum(), inputs)
    expected = torch.autograd.grad(by_hand(net, z0, 4, x).square().sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_second_derivatives_agree_with_direct_backpropagation(generator):
    net, z0, v = Net(generator), draw(generator, 2, 3).requires_grad_(), draw(generator, 2, 3)
    node = NeuralODE(net, solver=RK4(num_steps=4))

    def twice(run):
        (grad,) = torch.autograd.grad(run(z0).pow(3).sum(), z0, create_graph=True)
        return torch.autograd.grad((grad * v).sum(), [z0, *net.parameters()])

    for one, other in zip(twice(node), twice(lambda z: by_hand(net, z, 4)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_transforms_agree_with_autograd(generator):
    net, z0, v = Net(generator), draw(generator, 4, 3), draw(generator, 4, 3)
    node = NeuralODE(net, solver=Tsit5(rtol=1e-6))
    params = dict(node.named_parameters())

    def loss(params, z):
        return torch.func.functional_call(node, params, (z,)).square().sum()

    value = node(z0).square().sum()
    expected = dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))
    # the parameters are out of the module again when the derivative is asked for
    for name, grad in torch.func.grad(loss)(params, z0).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-11)
    slope = torch.func.jvp(lambda z: node(z).square().sum(), (z0,), (v,))[1]
    leaf = z0.clone().requires_grad_()
    (along,) = torch.autograd.grad(node(leaf).square().sum(), leaf)
    torch.testing.assert_close(slope, (along * v).sum(), rtol=1e-10, atol=1e-11)
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, z0.unsqueeze(1))
    for name, grad in each.items():
        torch.testing.assert_close(grad.sum(0), expected[name], rtol=1e-9, atol=1e-10)


def test_parameters_put_in_by_a_functional_call_get_the_gradient_later(generator):
    node, z0 = NeuralODE(Net(generator)), draw(generator, 2, 3)
    put = {name: (2 * p.detach()).requires_grad_() for name, p in node.named_parameters()}
    value = torch.func.functional_call(node, put, (z0,)).sum()  # the module is itself again from here on
    grads = torch.autograd.grad(value, list(put.values()))
    with torch.no_grad():
        for p in node.parameters():
            p.mul_(2)
    expected = torch.autograd.grad(node(z0).sum(), list(node.parameters()))
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_output_times_get_gradients(generator):
    field, z0 = Linear(generator, 2), draw(generator, 3, 2)
    times = torch.tensor([[0.0, 0.1, 0.2], [0.5, 1.0, 0.7]], dtype=torch.float64, requires_grad=True)
    NeuralODE(field, solver=TIGHT)(z0, times).sum().backward()
    span = times.detach()[1] - times.detach()[0]
    slope = torch.linalg.matrix_exp(span.reshape(-1, 1, 1) * field.matrix.detach()) @ field.matrix.detach()
    expected = torch.einsum("bij,bj->b", slope, z0)
    assert times.grad is not None
    torch.testing.assert_close(times.grad, torch.stack([-expected, expected]), rtol=1e-6, atol=1e-7)


def test_rows_do_not_feel_one_another(generator):
    net, z0 = Net(generator), draw(generator, 8, 3)
    speed = torch.logspace(0, 1.5, 8, dtype=torch.float64).unsqueeze(-1)
    node = NeuralODE(lambda t, z, x: x["speed"] * net(t, z) + x["push"], solver=Tsit5(rtol=1e-7))

    def run(z0, speed, push):
        push = push.clone().requires_grad_()  # differentiable context is cut anew, the other once
        value = node(z0, None, {"speed": speed, "push": push})
        return value.detach(), torch.autograd.grad(value.square().sum(), push)[0]

    push = draw(generator, 8, 3)
    together = run(z0, speed, push)
    alone = [run(z0[i : i + 1], speed[i : i + 1], push[i : i + 1]) for i in range(8)]
    order = torch.randperm(8, generator=generator)
    permuted = run(z0[order], speed[order], push[order])
    for whole, rows, again in zip(together, zip(*alone, strict=True), permuted, strict=True):
        torch.testing.assert_close(whole, torch.cat(rows), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(again, whole[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "hypergradient"),
    [
        (TIGHT, InterpolatedAdjoint()),
        (TIGHT, Backsolve()),
        (TorchDiffEq(rtol=1e-9), None),
        (TorchDiffEq(rtol=1e-9), TorchDiffEqAdjoint()),
        (TorchDiffEq(rtol=1e-9), TorchDiffEqAdjoint(seminorm=True)),
    ],
    ids=["interpolated", "backsolve", "torchdiffeq", "adjoint", "seminorm"],
)
def test_other_engines_and_adjoints_give_nearly_the_same(generator, solver, hypergradient):
    net, z0 = Net(generator, middle=nn.Dropout(0.3)), draw(generator, 4, 3).requires_grad_()
    x = {"gain": draw(generator, 4, 3).requires_grad_()}
    inputs = [z0, x["gain"], *net.parameters()]

    def run(solver, hypergradient):
        node = NeuralODE(net, solver=solver, hypergradient=hypergradient)
        return torch.autograd.grad(node(z0, None, x, generator=torch.Generator().manual_seed(0)).sum(), inputs)

    for one, other in zip(run(solver, hypergradient), run(TIGHT, None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_dropout_is_drawn_once_a_solve_and_differentiated_as_drawn(generator):
    net = Net(generator, middle=nn.Dropout(0.4))
    speed = torch.logspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)  # the slow rows are dropped on the way

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, z, x):
            return x * self.net(t, z)

    node, z0 = NeuralODE(Scaled(), solver=Tsit5(rtol=1e-8)), draw(generator, 6, 3)

    def run(z, seed=1):
        return node(z, None, speed, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(z0), run(z0)) and not torch.equal(run(z0), run(z0, 2))
    assert net.middle.training and "forward" not in vars(net.middle)
    z = z0.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(z).square().sum(), z)
    v, eps = draw(generator, 6, 3), 1e-5
    with torch.no_grad():
        slope = (run(z0 + eps * v).square().sum() - run(z0 - eps * v).square().sum()) / (2 * eps)
    torch.testing.assert_close((grad * v).sum(), slope, rtol=1e-5, atol=1e-6)
    node.eval()
    net.middle = nn.Identity()
    torch.testing.assert_close(
        node(z0, None, speed), NeuralODE(Scaled().eval(), solver=Tsit5(rtol=1e-8))(z0, None, speed)
    )


def test_batch_norm_moves_once_a_solve_and_is_held(generator):
    net, z0 = Net(generator, middle=nn.BatchNorm1d(8).double()), draw(generator, 16, 3)
    norm, node = net.middle, NeuralODE(net)
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    before = norm.running_mean.clone()
    first, value = net.first(torch.cat([z0, torch.zeros(16, 1).double()], -1)).mean(0).detach(), node(z0)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * first)
    assert int(norm.num_batches_tracked or 0) == 1 and norm.training
    expected = torch.autograd.grad(value.sum(), net.first.weight, retain_graph=True)[0]
    held = node.eval()(z0)  # the same statistics
    torch.testing.assert_close(value, held)
    node.train()(5 * z0)  # moves the statistics; the derivative of the first solve stays what it was
    torch.testing.assert_close(torch.autograd.grad(value.sum(), net.first.weight)[0], expected)


def test_what_cannot_be_held_still_is_refused(generator):
    z0 = draw(generator, 4, 3)
    with pytest.raises(TypeError, match="got AlphaDropout in training mode"):
        NeuralODE(Net(generator, middle=nn.AlphaDropout(0.5)))(z0)
    with pytest.raises(ValueError, match="draws random numbers"):
        NeuralODE(lambda t, z: nn.functional.dropout(z, 0.0) + 1e-9 * torch.randn_like(z))(z0)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3).double())
    with pytest.raises(TypeError, match="changes them at each evaluation"):
        NeuralODE(lambda_module(spectral))(z0)


def lambda_module(layer):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, t, z):
            return self.layer(z)

    return Wrapped()


def test_a_field_that_mixes_rows_needs_one_system(generator):
    z0 = draw(generator, 4, 3)

    def mixing(t: Tensor, z: Tensor) -> Tensor:
        return z.mean(0) - z

    with pytest.raises(ValueError, match="expected a `field` whose rows stand alone"):
        NeuralODE(mixing)(z0)
    value = NeuralODE(mixing, solver=TIGHT, rowwise=False)(z0)
    mean = z0.mean(0)
    torch.testing.assert_close(
        value, mean + (z0 - mean) * torch.exp(-torch.ones((), dtype=z0.dtype)), rtol=1e-8, atol=1e-9
    )


def test_a_row_that_fails_is_named_and_harms_no_other(generator):
    z0 = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    node = NeuralODE(lambda t, z: z**2, with_solution=True, throw=False)
    value, solution = node(z0)
    assert solution.status_code.tolist()[0] == Status.CONVERGED and solution.status_code.tolist()[1] != Status.CONVERGED
    torch.testing.assert_close(value[0], torch.tensor([1 / 9]).double(), rtol=1e-5, atol=1e-6)
    assert bool(torch.isfinite(value).all())
    with pytest.raises(SolveError, match=r"in 1 of 2 problems \(rows 1\)"):
        NeuralODE(lambda t, z: z**2)(z0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: NeuralODE(cast(Any, 3)), "expected `field` to be a module or a function"),
        (lambda z: NeuralODE(torch.tanh, solver=cast(Any, Tsit5)), "expected `solver` to be a stepper"),
        (lambda z: NeuralODE(lambda t, z: z[:, :2])(z), r"expected `field` to return dz/dt of shape \(4, 3\)"),
        (lambda z: NeuralODE(lambda t, z, x: z)(z, None, z[:2]), r"expected `x` to be tensors \(4, ...\), got"),
        (lambda z: NeuralODE(lambda t, z: z)(torch.ones(())), "expected `z0` to be a tensor"),
    ],
)
def test_mistakes_are_named(call, message, generator):
    with pytest.raises((TypeError, ValueError), match=message):
        call(draw(generator, 4, 3))


def test_a_training_loop_in_single_precision_under_autocast(generator):
    torch.manual_seed(0)
    angle = torch.linspace(0, 6, 64)
    data = torch.stack([angle.cos(), angle.sin()], -1)
    target = torch.stack([-angle.sin(), angle.cos()], -1)  # a quarter turn
    net = Net(generator, n=2, middle=nn.Dropout(0.05), dtype=torch.float32)
    node = NeuralODE(net, solver=Dopri5(rtol=1e-3, atol=1e-4))
    optimizer = torch.optim.Adam(node.parameters(), lr=0.05)
    losses, out = [], data
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = node(data.bfloat16())
            loss = (out - target).square().mean()
            loss.backward()  # inside on purpose: the replay must not see autocast either
        optimizer.step()
        losses.append(float(loss.detach()))
    assert out.dtype == torch.float32 and losses[-1] < 0.2 * losses[0]


def test_edges_of_the_batch_and_of_time(generator):
    net, z0 = Net(generator), draw(generator, 2, 3)
    node = NeuralODE(net)
    none = node(z0[:0])
    assert none.shape == (0, 3)
    assert all(not g.any() for g in torch.autograd.grad(none.sum(), list(net.parameters())))
    still = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    assert torch.equal(node(z0, still), z0)
    with torch.no_grad():
        assert not node(z0).requires_grad
    with pytest.raises(ValueError, match="finite"):
        node(z0 * float("nan"))
    with pytest.raises(ValueError, match="monotone"):
        node(z0, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))


def test_images_and_precision(generator):
    layer = nn.Conv2d(2, 2, 3, padding=1)
    node = NeuralODE(lambda t, z: torch.tanh(layer(z)) * t, integrals=(KineticEnergy(),), with_solution=True)
    z0 = draw(generator, 3, 2, 5, 5, dtype=torch.float32)
    value, solution = node(z0)
    assert value.shape == z0.shape and value.dtype == torch.float32 and solution.aux["integrals"].shape == (3, 1)
    value.sum().backward()
    assert layer.weight.grad is not None and float(layer.weight.grad.abs().sum()) > 0
    wide = torch.ones(2, 2, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # nothing is narrowed
        assert NeuralODE(lambda t, z: -z)(wide).dtype == torch.float64
