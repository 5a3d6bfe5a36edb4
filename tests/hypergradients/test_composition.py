"""best_response as a building block: captured tensors, several levels, dicts, batches, modules, certificates under vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from sciopt import FixedPoint, Minimize, Recurrence, Solution, SolveError, best_response
from sciopt.hypergradients import Auto, ForwardUnrolled, HypergradientWarning, Implicit, OneStep, Unrolled
from sciopt.inner import LBFGS, GradientDescent, Picard
from sciopt.linsolve import CG
from tests.helpers import randn, tol

TIGHT = LBFGS(rtol=1e-13, max_steps=300)
F64 = torch.float64
ATTACHED = [
    Implicit(),
    Implicit(CG(rtol=1e-12)),
    OneStep(0.5),
    Unrolled(),
    Unrolled(checkpoints=3),
    ForwardUnrolled(),
    Auto(),
]


def ids(methods):
    return [repr(m).split("(_")[0] for m in methods]


@pytest.mark.parametrize("method", ATTACHED, ids=ids(ATTACHED))
def test_captured_tensor_gets_its_gradient(method):
    scale = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    phi = torch.tensor([1.0, -1.0], dtype=F64, requires_grad=True)
    problem = Minimize(lambda theta, p: ((theta - scale * p) ** 2).sum())
    unrolled = isinstance(method, (Unrolled, ForwardUnrolled))  # the path must converge, not only its end
    solver = GradientDescent(step_size=0.3, max_steps=60) if unrolled else TIGHT
    sol = best_response(problem, phi, init=torch.zeros(2, dtype=F64), solver=solver, hypergradient=method)
    sol.value.sum().backward()
    torch.testing.assert_close(scale.grad, phi.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(phi.grad, scale.detach(), rtol=1e-7, atol=1e-9)


def test_captured_tensor_under_transforms():
    def h(scale: Tensor) -> Tensor:
        problem = Minimize(lambda theta, p: ((theta - scale * p) ** 2).sum())
        sol = best_response(problem, torch.ones(2, dtype=F64), init=torch.zeros(2, dtype=F64), solver=TIGHT)
        return sol.value.square().sum()

    a = torch.tensor([2.0, 3.0], dtype=F64)
    torch.testing.assert_close(grad(h)(a), 2 * a)
    torch.testing.assert_close(jvp(h, (a,), (torch.ones_like(a),))[1], 2 * a.sum())
    torch.testing.assert_close(jacfwd(grad(h))(a), 2 * torch.eye(2, dtype=F64))
    torch.testing.assert_close(vmap(grad(h))(torch.stack([a, -a])), torch.stack([2 * a, -2 * a]))


def test_parameters_of_a_captured_module():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3, dtype=F64)
    x = torch.linspace(-1, 1, 3, dtype=F64)
    problem = FixedPoint(lambda z, p: torch.tanh(0.2 * layer(z) + p * x))
    phi = torch.ones((), dtype=F64, requires_grad=True)
    sol = best_response(
        problem, phi, init=torch.zeros(3, dtype=F64), solver=Picard(rtol=1e-14), hypergradient=Implicit()
    )
    sol.value.sum().backward()
    z = torch.zeros(3, dtype=F64)
    for _ in range(100):
        z = torch.tanh(0.2 * layer(z) + x)
    truth = torch.autograd.grad(z.sum(), [layer.weight, layer.bias])
    torch.testing.assert_close([layer.weight.grad, layer.bias.grad], list(truth), rtol=1e-9, atol=1e-12)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * ctx.saved_tensors[0] * g


@pytest.mark.parametrize("used", [lambda a, p: Square.apply(a) * p, lambda a, p: Square.apply(a)])
def test_tensor_out_of_sight_is_refused(used):
    a = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    problem = Minimize(lambda theta, p: ((theta - used(a, p)) ** 2).sum() + (p**2).sum())
    phi = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.raises(TypeError, match="cannot be lifted .* Pass it in `outer_params`"):
        best_response(problem, phi, init=torch.zeros(2, dtype=F64), solver=TIGHT, hypergradient=Implicit())


def middle(theta: Tensor, p: Tensor) -> Tensor:
    """Third level: z*(theta, p) inside the loss of the second."""
    lowest = Minimize(lambda z, o: ((2 * z - o["theta"] - o["p"].exp()) ** 2).sum() + 0.1 * (z**4).sum())
    z = best_response(lowest, {"theta": theta, "p": p}, init=torch.zeros_like(theta), solver=TIGHT).value
    return ((z - 1) ** 2).sum() + 0.5 * ((theta - p) ** 2).sum()


@pytest.mark.parametrize("captured", [False, True])
def test_three_levels(captured):
    def h(p: Tensor) -> Tensor:
        problem = Minimize((lambda theta, o: middle(theta, p)) if captured else middle)
        outer = torch.zeros(1, dtype=F64) if captured else p
        return best_response(problem, outer, init=torch.zeros(2, dtype=F64), solver=TIGHT).value.square().sum()

    p = torch.tensor([0.3, -0.2], dtype=F64)
    eye, eps = torch.eye(2, dtype=F64), 1e-5
    slopes = torch.stack([(h(p + eps * e) - h(p - eps * e)) / (2 * eps) for e in eye])
    torch.testing.assert_close(grad(h)(p), slopes, rtol=1e-8, atol=1e-9)
    q = p.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(h(q), q)[0], slopes, rtol=1e-8, atol=1e-9)
    if not captured:
        torch.testing.assert_close(vmap(grad(h))(torch.stack([p, p])), slopes.expand(2, 2), rtol=1e-8, atol=1e-9)
        curve = torch.stack([(grad(h)(p + eps * e) - grad(h)(p - eps * e)) / (2 * eps) for e in eye])
        torch.testing.assert_close(jacrev(grad(h))(p), curve, rtol=1e-7, atol=1e-8)


def test_module_through_functional_call(generator):
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = randn(16, 2, generator=generator), randn(16, 1, generator=generator)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def loss(theta, phi):
        fit = (functional_call(net, theta, (x,)) - y).square().mean()
        return fit + sum((phi[k].exp() * v.square()).sum() for k, v in theta.items())

    phi = {k: torch.full_like(v, -1.0).requires_grad_() for k, v in params.items()}
    sol = best_response(Minimize(loss), phi, init=params, solver=TIGHT, hypergradient=Implicit())
    assert set(sol.value) == set(params)
    value = functional_call(net, sol.value, (x,)).square().sum()
    grads = dict(zip(phi, torch.autograd.grad(value, list(phi.values())), strict=True))
    key, eps = "0.weight", 1e-5

    def resolved(sign):
        moved = {k: v.detach() + (sign * eps if k == key else 0.0) for k, v in phi.items()}
        start = {k: v.detach() for k, v in sol.value.items()}
        s = best_response(Minimize(loss), moved, init=start, solver=TIGHT)
        return functional_call(net, s.value, (x,)).square().sum()

    with torch.no_grad():
        slope = (resolved(1) - resolved(-1)) / (2 * eps)
    torch.testing.assert_close(grads[key].sum(), slope, rtol=1e-6, atol=1e-8)


def tasks(generator):
    A = randn(4, 5, 5, generator=generator)
    A = A @ A.mT + torch.eye(5, dtype=F64)
    return A, randn(4, 5, generator=generator), torch.tensor(0.2, dtype=F64)


def task_loss(A: Tensor):
    def loss(theta: Tensor, p) -> Tensor:
        quad = 0.5 * torch.einsum("...i,...ij,...j->...", theta, A, theta)
        return quad - (theta * p["b"]).sum(-1) + 0.1 * (theta**4).sum(-1) * p["s"].exp()

    return loss


@pytest.mark.parametrize(
    "method", [Implicit(), Implicit(CG(rtol=1e-13)), Unrolled(num_steps=12), OneStep(0.1)], ids=repr
)
def test_batch_equals_loop(generator, method):
    A, b, s = tasks(generator)
    solver = GradientDescent(step_size=0.02, momentum=0.5) if isinstance(method, Unrolled) else TIGHT
    phi = {"b": b.clone().requires_grad_(), "s": s.clone().requires_grad_()}
    sol = best_response(
        Minimize(task_loss(A), batch_ndim=1),
        phi,
        init=torch.zeros(4, 5, dtype=F64),
        solver=solver,
        hypergradient=method,
    )
    assert sol.status_code.shape == sol.num_steps.shape == sol.residual_norm.shape == (4,)
    sol.value.square().sum().backward()
    rows, shared = [], torch.zeros((), dtype=F64)
    for i in range(4):
        one = {"b": b[i].clone().requires_grad_(), "s": s.clone().requires_grad_()}
        single = best_response(
            Minimize(task_loss(A[i])), one, init=torch.zeros(5, dtype=F64), solver=solver, hypergradient=method
        )
        assert abs(int(single.num_steps) - int(sol.num_steps[i])) <= 5  # sums of another order, at 1e-13
        single.value.square().sum().backward()
        assert one["s"].grad is not None
        rows.append(one["b"].grad)
        shared = shared + one["s"].grad
    torch.testing.assert_close(phi["b"].grad, torch.stack(rows), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(phi["s"].grad, shared, rtol=1e-9, atol=1e-11)


def test_one_bad_row_harms_no_other(generator):
    A, b, s = tasks(generator)

    def loss(theta, p):
        return task_loss(A)(theta, p) + torch.stack(
            [theta[0].sum() * 0, (theta[1].sum() - 1e9).sqrt(), *(0 * theta[2:].sum(-1))]
        )

    phi = {"b": b.clone().requires_grad_(), "s": s.clone()}
    with pytest.raises(SolveError, match=r"NONFINITE in 1 of 4 problems \(rows 1\)"):
        best_response(Minimize(loss, batch_ndim=1), phi, init=torch.zeros(4, 5, dtype=F64), solver=TIGHT)
    sol = best_response(
        Minimize(loss, batch_ndim=1),
        phi,
        init=torch.zeros(4, 5, dtype=F64),
        solver=TIGHT,
        hypergradient=Implicit(),
        throw=False,
    )
    assert sol.failed_rows == [1]
    with pytest.warns(HypergradientWarning, match="NONFINITE in 1 of 4"):
        torch.autograd.grad(sol.value.exp().sum(), phi["b"], retain_graph=True)
    sol.value[[0, 2, 3]].square().sum().backward()
    clean = {"b": b[[0, 2, 3]].clone().requires_grad_(), "s": s}
    good = best_response(
        Minimize(task_loss(A[[0, 2, 3]]), batch_ndim=1), clean, init=torch.zeros(3, 5, dtype=F64), solver=TIGHT,
        hypergradient=Implicit(),
    )  # fmt: skip
    good.value.square().sum().backward()
    assert phi["b"].grad is not None
    torch.testing.assert_close(phi["b"].grad[[0, 2, 3]], clean["b"].grad, rtol=1e-9, atol=1e-11)


def test_solution_leaves_vmap_with_its_certificate():
    def solve(phi: Tensor) -> Solution:
        return best_response(
            Minimize(lambda t, p: ((t - p) ** 2).sum() + (t**4).sum()),
            phi,
            init=torch.zeros(2, dtype=F64),
            solver=TIGHT,
        )

    out = vmap(solve)(torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 1.0]], dtype=F64))
    assert out.status.name == "CONVERGED"
    assert out.value.shape == (3, 2) and out.num_steps.shape == (3,)
    assert int(out.num_steps[1]) == 0 < int(out.num_steps[0])
    with pytest.raises(RuntimeError, match="read outside torch.func transforms"):
        vmap(lambda phi: torch.tensor(float(solve(phi).status)))(torch.ones(2, 2, dtype=F64))


def test_start_as_outer_variable_reaches_through_the_steps(generator):
    """MAML: phi is the start; its derivative is the product of the step Jacobians (eq. 7-9)."""
    A = torch.diag(torch.linspace(0.5, 2.0, 4, dtype=F64))
    phi = randn(4, generator=generator).requires_grad_()
    problem = Minimize(lambda theta, p: 0.5 * theta @ (A @ theta))
    for method in (Unrolled(num_steps=5), Unrolled(num_steps=5, checkpoints=2), ForwardUnrolled(num_steps=5)):
        sol = best_response(problem, phi, init=phi, solver=GradientDescent(step_size=0.1), hypergradient=method)
        (g,) = torch.autograd.grad(sol.value.square().sum(), phi)
        M = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - 0.1 * A, 5)
        torch.testing.assert_close(g, 2 * M @ M @ phi.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", [Unrolled(), Unrolled(checkpoints=2), ForwardUnrolled(), Auto()], ids=repr)
def test_recurrence_with_schedule_data_and_momentum(generator, method):
    data, rates = randn(6, 3, generator=generator), torch.full((6,), 0.1, dtype=F64)

    def step(state, phi, x):
        velocity = 0.9 * state["velocity"] + (state["theta"] - x)
        return {"theta": state["theta"] - phi["rate"] * velocity, "velocity": velocity}

    problem = Recurrence(step, num_steps=6, data=data, scheduled=True)
    init = {"theta": torch.zeros(3, dtype=F64), "velocity": torch.zeros(3, dtype=F64)}

    def h(rate):
        return best_response(problem, {"rate": rate}, init=init, hypergradient=method).value["theta"].square().sum()

    def loop(rate):
        state = init
        for t in range(6):
            state = step(state, {"rate": rate[t]}, data[t])
        return state["theta"].square().sum()

    p = rates.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(h(p), p)[0], grad(loop)(rates), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        jvp(h, (rates,), (torch.ones_like(rates),))[1], grad(loop)(rates).sum(), rtol=1e-10, atol=0
    )


def test_recurrence_gives_its_whole_trajectory():
    problem = Recurrence(lambda theta, phi, t: theta * phi, num_steps=3, trajectory=True)
    phi = torch.tensor(2.0, dtype=F64, requires_grad=True)
    sol = best_response(problem, phi, init=torch.tensor(1.0, dtype=F64))
    torch.testing.assert_close(sol.value, torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64))
    torch.testing.assert_close(torch.autograd.grad(sol.value.sum(), phi)[0], torch.tensor(1.0 + 4.0 + 12.0, dtype=F64))


def test_float32_and_its_defaults(dtype, device):
    phi = torch.linspace(0, 1, 5, dtype=dtype, device=device).requires_grad_()
    problem = Minimize(lambda theta, p: ((theta - p.sin()) ** 2).sum() + (theta**4).sum())
    sol = best_response(problem, phi, init=torch.zeros_like(phi))
    assert sol.value.dtype == dtype and sol.value.device == phi.device
    sol.value.sum().backward()
    theta = sol.value.detach()
    expected = phi.detach().cos() * 2 / (2 + 12 * theta**2)
    torch.testing.assert_close(phi.grad, expected, **tol(dtype))


def test_no_gradient_asked_for_means_a_plain_solve():
    sol = best_response(Minimize(lambda t, p: ((t - p) ** 2).sum()), torch.ones(2), init=torch.zeros(2))
    assert not sol.value.requires_grad
    with torch.no_grad():
        phi = torch.ones(2, requires_grad=True)
        assert not best_response(
            Minimize(lambda t, p: ((t - p) ** 2).sum()), phi, init=torch.zeros(2)
        ).value.requires_grad
