"""Meta-gradients of batched tasks against the loop over tasks, layer by layer, at second order in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from sciopt import Minimize, best_response
from sciopt.hypergradients import Unrolled
from sciopt.inner import GradientDescent
from tests.helpers import randn

TASKS, SHOTS, STEPS, STEP_SIZE = 4, 6, 3, 0.1


def batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, track_running_stats=False)


NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 2)),
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2)),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    ),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), batch_norm(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
}


def make(name, generator):
    net = NETS[name]().double()
    start = {n: 0.5 * randn(*p.shape, generator=generator) for n, p in net.named_parameters()}
    shape = (18,) if name == "mlp" else (2, 3, 3)
    x, query = (randn(TASKS, SHOTS, *shape, generator=generator) for _ in range(2))
    y, target = (randn(TASKS, SHOTS, 2, generator=generator) for _ in range(2))

    def loss(params, x, y):
        return ((functional_call(net, params, (x,)) - y) ** 2).mean()

    return loss, start, (x, y), (query, target)


def batched(loss, start, support, query):
    """The recipe: vmap the loss of one task, set ``batch_ndim=1``, broadcast the start."""
    phi = {n: p.clone().requires_grad_() for n, p in start.items()}
    inner = Minimize(lambda theta, phi: vmap(loss)(theta, *support), batch_ndim=1)
    init = {n: p.expand(TASKS, *p.shape) for n, p in phi.items()}
    solver = GradientDescent(step_size=STEP_SIZE)
    theta = best_response(inner, phi, init=init, solver=solver, hypergradient=Unrolled(num_steps=STEPS)).value
    return torch.autograd.grad(vmap(loss)(theta, *query).mean(), list(phi.values()))


def one_by_one(loss, start, support, query):
    """Plain torch, one task after the other."""
    phi = {n: p.clone().requires_grad_() for n, p in start.items()}
    total = torch.zeros((), dtype=torch.float64)
    for i in range(TASKS):
        theta = phi
        for _ in range(STEPS):
            grads = torch.autograd.grad(loss(theta, *(t[i] for t in support)), list(theta.values()), create_graph=True)
            theta = {n: t - STEP_SIZE * g for (n, t), g in zip(theta.items(), grads, strict=True)}
        total = total + loss(theta, *(t[i] for t in query)) / TASKS
    return torch.autograd.grad(total, list(phi.values()))


@pytest.mark.parametrize("name", NETS)
def test_batched_meta_gradient_equals_the_looped_one(name, generator):
    case = make(name, generator)
    found, expected = batched(*case), one_by_one(*case)
    scale = max(float(e.abs().max()) for e in expected)
    assert scale > 1e-3
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) <= 1e-10 * scale
