"""32 sine tasks, MLP 1-40-40-1, five inner steps of gradient descent, second order: the meta-gradient of the start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import linear

from sciopt import Minimize, best_response
from sciopt.hypergradients import Unrolled
from sciopt.inner import GradientDescent
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, PeerMissing, bar, peer

TASKS, SHOTS, STEPS, STEP_SIZE = 32, 10, 5, 0.01
Gradient = dict[str, Tensor]


@final
@dataclass(frozen=True)
class Sines:
    """Support and query sets ``(32, 10, 1)``, the network (for `higher`) and its start."""

    net: nn.Module
    start: Gradient
    x: Tensor
    y: Tensor
    x_query: Tensor
    y_query: Tensor

    def loss(self, params: Gradient, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of one task, written for one task."""
        for i in (0, 2, 4):
            x = linear(x, params[f"{i}.weight"], params[f"{i}.bias"])
            x = torch.relu(x) if i < 4 else x
        return ((x - y) ** 2).mean()

    def leaves(self) -> Gradient:
        """A fresh copy of the start that asks for gradients."""
        return {name: value.clone().requires_grad_() for name, value in self.start.items()}


@functools.cache
def make_sines(dtype: torch.dtype = torch.float64, seed: int = 0) -> Sines:
    """Amplitudes 0.1 to 5, phases 0 to pi, inputs -5 to 5, as in Finn et al. (2017)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    amplitude, phase = uniform(0.1, 5, TASKS, 1, 1), uniform(0, 3.14159, TASKS, 1, 1)
    x, query = uniform(-5, 5, TASKS, SHOTS, 1), uniform(-5, 5, TASKS, SHOTS, 1)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)).to(dtype)
    start = {n: uniform(-1, 1, *p.shape) / max(p.shape[-1], 1) ** 0.5 for n, p in net.named_parameters()}
    return Sines(net, start, x, amplitude * torch.sin(x - phase), query, amplitude * torch.sin(query - phase))


def batched_losses(theta: Gradient, x: Tensor, y: Tensor) -> Tensor:
    """Losses ``(32,)`` with every layer written as a batched matrix product."""
    for i in (0, 2, 4):
        x = torch.baddbmm(theta[f"{i}.bias"].unsqueeze(1), x, theta[f"{i}.weight"].mT)
        x = torch.relu(x) if i < 4 else x
    return ((x - y) ** 2).mean((1, 2))


def ours(data: Sines, losses: Callable[[Gradient, Tensor, Tensor], Tensor]) -> Gradient:
    """The documented recipe: a loss per task, ``batch_ndim=1``, the start broadcast to the tasks, five unrolled steps."""
    phi = data.leaves()
    inner = Minimize(lambda theta, phi: losses(theta, data.x, data.y), batch_ndim=1)
    init = {name: value.expand(TASKS, *value.shape) for name, value in phi.items()}
    solver = GradientDescent(step_size=STEP_SIZE)
    theta = best_response(inner, phi, init=init, solver=solver, hypergradient=Unrolled(num_steps=STEPS)).value
    losses(theta, data.x_query, data.y_query).mean().backward()
    return collect(phi)


def ours_batched(data: Sines) -> Gradient:
    """With the loss of `by_hand`."""
    return ours(data, batched_losses)


def ours_vmapped(data: Sines) -> Gradient:
    """With a loss written for one task."""
    return ours(data, vmap(data.loss))


def by_hand(data: Sines) -> Gradient:
    """Plain torch on the same batched loss."""
    phi = data.leaves()
    theta = {name: value.expand(TASKS, *value.shape) for name, value in phi.items()}
    for _ in range(STEPS):
        loss = batched_losses(theta, data.x, data.y).sum()
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: t - STEP_SIZE * g for (n, t), g in zip(theta.items(), grads, strict=True)}
    batched_losses(theta, data.x_query, data.y_query).mean().backward()
    return collect(phi)


def looped(data: Sines) -> Gradient:
    """One task after the other in plain torch: what the gradient has to equal."""
    phi = data.leaves()
    total = data.x.new_zeros(())
    for i in range(TASKS):
        theta: Gradient = phi
        for _ in range(STEPS):
            grads = torch.autograd.grad(data.loss(theta, data.x[i], data.y[i]), list(theta.values()), create_graph=True)
            theta = {n: t - STEP_SIZE * g for (n, t), g in zip(theta.items(), grads, strict=True)}
        total = total + data.loss(theta, data.x_query[i], data.y_query[i])
    (total / TASKS).backward()
    return collect(phi)


def with_higher(data: Sines) -> Gradient:
    """higher, one task after the other, as its examples do."""
    higher = peer("higher")
    net = data.net
    net.load_state_dict(data.start)
    net.zero_grad()
    optimizer = torch.optim.SGD(net.parameters(), lr=STEP_SIZE)
    for i in range(TASKS):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (functional, stepper):
            for _ in range(STEPS):
                stepper.step(((functional(data.x[i]) - data.y[i]) ** 2).mean())
            (((functional(data.x_query[i]) - data.y_query[i]) ** 2).mean() / TASKS).backward()
    return collect(dict(net.named_parameters()))


def collect(params: Any) -> Gradient:
    """The gradients of the leaves."""
    return {name: value.grad.clone() for name, value in params.items()}


def difference(a: Gradient, b: Gradient) -> float:
    """Largest difference of two gradients relative to the largest entry."""
    scale = max(float(value.abs().max()) for value in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in b) / scale


@functools.cache
def race() -> tuple[dict[str, float], dict[str, float], str]:
    """Median seconds of each way in float32, its error in float64, and what was missing; on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data, precise = make_sines(torch.float32), make_sines()
        runs: dict[str, Callable[[Sines], Gradient]] = {
            "sciopt": ours_batched,
            "sciopt, vmapped": ours_vmapped,
            "by hand": by_hand,
            "higher": with_higher,
        }
        missing, exact = "", looped(precise)
        errors: dict[str, float] = {}
        for name in list(runs):
            try:
                errors[name] = difference(runs[name](precise), exact)
            except PeerMissing as error:
                missing = str(error)
                del runs[name]
        times = side_by_side({name: functools.partial(run, data) for name, run in runs.items()}, repeat=61, warmup=5)
        return times, errors, missing
    finally:
        torch.set_num_threads(threads)


def ratio(above: str, below: str) -> Measured:
    """Time of one way over that of another."""
    times, errors, missing = race()
    if above not in times:
        raise PeerMissing(missing)
    speed = ", ".join(f"{name} {1e3 * times[name]:.1f} ms" for name in (above, below))
    wrong = max(errors[above], errors[below])
    return Measured(times[above] / times[below], f"{speed} in float32; {wrong:.0e} from the looped gradient in float64")


@bar("MAML, 32 tasks, 5 steps, second order: sciopt / by hand, same batched loss", tier="bench", bar="<= 2x")
def against_hand_batched() -> Measured:
    return ratio("sciopt", "by hand")


@bar("MAML, 32 tasks, 5 steps, second order: higher / sciopt", tier="bench", bar=">= 10x")
def against_higher() -> Measured:
    return ratio("higher", "sciopt")


@bar("MAML with a vmapped loss of one task: sciopt / by hand with a batched loss", tier="bench", bar=None)
def vmapped_against_hand_batched() -> Measured:
    return ratio("sciopt, vmapped", "by hand")


@bar("MAML with a vmapped loss of one task: higher / sciopt", tier="bench", bar=None)
def vmapped_against_higher() -> Measured:
    return ratio("higher", "sciopt, vmapped")


@bar("MAML gradient, batched against looped, float64", tier="validate", bar="<= 1e-10")
def batched_equals_looped() -> Measured:
    data = make_sines()
    exact = looped(data)
    worst = max(difference(way(data), exact) for way in (ours_batched, ours_vmapped))
    return Measured(worst, "second order, relative; a batched and a vmapped loss")
