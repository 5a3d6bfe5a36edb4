"""One weight decay for every weight of a network with a million weights."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciopt import Minimize, best_response
from sciopt.hypergradients import Implicit
from sciopt.inner import LBFGS
from sciopt.linsolve import CG
from tests.benchmarks.measure import peak_bytes
from tests.benchmarks.table import Measured, bar

ROWS, INPUTS, HIDDEN, OUTPUTS = 256, 100, 840, 10
LOG_DECAY = -3.5


@bar("a million weight decays: memory of an implicit hypergradient / one training gradient", tier="bench", bar=None)
def million_decays() -> Measured:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    net = nn.Sequential(
        *(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()),
        *(nn.Linear(HIDDEN, HIDDEN // 3), nn.Tanh(), nn.Linear(HIDDEN // 3, OUTPUTS)),
    )
    x, x_val = randn(ROWS, INPUTS), randn(ROWS, INPUTS)
    teacher = randn(INPUTS, OUTPUTS)
    y, y_val = (torch.tanh(inputs @ teacher / INPUTS**0.5) for inputs in (x, x_val))
    start = {name: randn(*p.shape) / max(p.shape[-1], 1) ** 0.5 for name, p in net.named_parameters()}
    phi = {name: torch.full_like(p, LOG_DECAY).requires_grad_() for name, p in start.items()}
    size = sum(p.numel() for p in start.values())

    def fit(theta: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return ((functional_call(net, theta, (inputs,)) - targets) ** 2).mean()

    def inner_loss(theta: dict[str, Tensor], phi: dict[str, Tensor]) -> Tensor:
        decay = sum(((phi[name].exp() * value**2).sum() for name, value in theta.items()), x.new_zeros(()))
        return fit(theta, x, y) + 0.5 * decay

    def training_gradient() -> None:
        leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
        inner_loss(leaves, phi).backward(inputs=list(leaves.values()))

    seen: dict[str, float] = {}

    def hypergradient() -> None:
        begin = time.perf_counter()
        method = Implicit(CG(rtol=1e-2))
        solution = best_response(Minimize(inner_loss), phi, init=start, solver=LBFGS(history=5), hypergradient=method)
        fit(solution.value, x_val, y_val).backward()
        seen["seconds"] = time.perf_counter() - begin
        seen["steps"] = float(solution.num_steps)

    training, implicit = peak_bytes(training_gradient), peak_bytes(hypergradient)
    note = (
        f"{size:,} weights in float32: {implicit / 2**20:.0f} MiB against {training / 2**20:.0f} MiB; "
        f"LBFGS(history=5) converged in {seen['steps']:.0f} steps, CG to 1e-2: {seen['seconds']:.1f} s"
    )
    return Measured(implicit / training, note)
