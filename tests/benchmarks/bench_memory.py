"""Memory of unrolled and implicit hypergradients."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.hypergradients import AbstractHypergradient, Implicit, Unrolled
from sciopt.inner import GradientDescent
from sciopt.linsolve import CG
from tests.benchmarks.measure import peak_bytes, side_by_side
from tests.benchmarks.table import Measured, bar

STEPS, SIZE, ROWS = 1000, 20_000, 4
CHECKPOINTS = 32


@functools.cache
def data(size: int) -> tuple[Tensor, Tensor]:
    """A few dense rows and targets of a penalised least-squares fit."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, size, generator=generator, dtype=torch.float64) / size**0.5
    return rows, torch.randn(ROWS, generator=generator, dtype=torch.float64)


def gradient(method: AbstractHypergradient, steps: int, size: int = SIZE) -> Tensor:
    """The hypergradient of one log-penalty per weight after ``steps`` steps of gradient descent."""
    rows, targets = data(size)

    def inner_loss(theta: Tensor, phi: Tensor) -> Tensor:
        return ((rows @ theta - targets) ** 2).sum() + 0.1 * (phi.exp() * torch.log(torch.cosh(theta))).sum()

    phi = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    solver = GradientDescent(step_size=0.1, rtol=0.0, atol=1e-300, max_steps=steps)
    solution = best_response(
        Minimize(inner_loss), phi, init=torch.zeros_like(phi), solver=solver, hypergradient=method, throw=False
    )
    (solution.value**2).sum().backward()
    assert phi.grad is not None
    return phi.grad


def plain() -> Unrolled:
    return Unrolled(num_steps=STEPS)


def checkpointed() -> Unrolled:
    return Unrolled(num_steps=STEPS, checkpoints=CHECKPOINTS)


@bar("Unrolled(checkpoints=32), T = 1,000, d = 20,000: memory / plain unroll", tier="bench", bar="<= 0.2x")
def checkpoint_memory() -> Measured:
    small, large = peak_bytes(lambda: gradient(checkpointed(), STEPS)), peak_bytes(lambda: gradient(plain(), STEPS))
    return Measured(small / large, f"{small / 2**20:.0f} MiB against {large / 2**20:.0f} MiB of tensors")


@bar("Unrolled(checkpoints=32), T = 1,000, d = 20,000: time / plain unroll", tier="bench", bar="<= 2.5x")
def checkpoint_time() -> Measured:
    runs = {"checkpoints": lambda: gradient(checkpointed(), STEPS), "plain": lambda: gradient(plain(), STEPS)}
    times = side_by_side(runs, repeat=5, max_seconds=60)
    differ = float((gradient(checkpointed(), STEPS) - gradient(plain(), STEPS)).abs().max())
    note = f"{times['checkpoints']:.2f} s against {times['plain']:.2f} s; the gradients differ by {differ:.0e}"
    return Measured(times["checkpoints"] / times["plain"], note)


@bar("Implicit: peak memory at T = 1,000 / at T = 10", tier="bench", bar="<= 1.01x")
def implicit_is_flat() -> Measured:
    short, long = (peak_bytes(lambda t=t: gradient(Implicit(CG(rtol=1e-8)), t)) for t in (10, STEPS))
    return Measured(long / short, f"{long / 2**20:.2f} MiB against {short / 2**20:.2f} MiB of tensors")
