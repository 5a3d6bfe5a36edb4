"""Equilibrium layers against torchdeq: a hard layer by Broyden's method, an easy one by plain iteration; gradient included."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sciopt.domains.implicit.equilibrium import DEQ
from sciopt.hypergradients import Implicit, NeumannOrKrylov
from sciopt.inner import Anderson, Broyden, Picard
from sciopt.inner.abstract import AbstractSolver
from tests.benchmarks.measure import peak_bytes, side_by_side
from tests.benchmarks.table import Measured, bar, peer

HARD, EASY = 0.99, 0.3
SHAPES = {HARD: (64, 256), EASY: (128, 512)}  # samples, features
TOLERANCE = 1e-8  # of the peer: every sample's residual, in the 2-norm
# Ours, for the same error of the worst sample: samples that are done stop here, the peer goes on with all until the last is.
EQUAL_HARD, EQUAL_EASY = 8e-11, 2.5e-10
BUDGET = 180  # iterations that torchdeq makes room for; its Broyden needs about 160


class Cell(nn.Module):
    """``tanh(W z + x)``, W symmetric of a given norm: the spectral radius at small z."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        g, size = torch.Generator().manual_seed(0), SHAPES[radius][1]
        W = torch.randn(size, size, generator=g, dtype=torch.float64)
        W = W + W.T
        self.W = nn.Parameter(radius * W / torch.linalg.eigvalsh(W).abs().max())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(z, self.W) + x)


def shape(radius: float) -> str:
    """The task's size, for the table."""
    return " x ".join(map(str, SHAPES[radius]))


@dataclass(frozen=True)
class Task:
    """A layer, its inputs, and the answers to measure against."""

    cell: Cell
    x: Tensor
    z: Tensor
    grad: Tensor

    def error(self, found: tuple[Tensor, Tensor]) -> float:
        """The larger of the worst sample's relative error in z and in the gradient in x."""
        pairs = zip(found, (self.z, self.grad), strict=True)
        return max(float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max()) for a, b in pairs)


@functools.cache
def task(radius: float) -> Task:
    """Hard: samples from 1e-3 (nearly linear, so as hard as W) to 1 in size. Easy: all of one size."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(*SHAPES[radius], generator=g, dtype=torch.float64)
    first, last = (-3, 0) if radius == HARD else (-1, -1)
    x = x * torch.logspace(first, last, len(x), dtype=torch.float64).unsqueeze(-1)
    cell = Cell(radius)
    exact = DEQ(cell, solver=Anderson(history=30, rtol=1e-13), hypergradient=Implicit(NeumannOrKrylov(rtol=1e-13)))
    z, grad = gradient(lambda x: exact(x), cell, x)
    return Task(cell, x, z, grad)


def gradient(layer: Callable[[Tensor], Tensor], cell: Cell, x: Tensor) -> tuple[Tensor, Tensor]:
    """z* and the derivative of a smooth loss in x (that in the weights is computed too)."""
    leaf = x.clone().requires_grad_()
    cell.W.grad = None
    z = layer(leaf)
    (z.square().sum() / 2 + z.sum()).backward()
    assert leaf.grad is not None
    return z.detach(), leaf.grad


def ours(solver: AbstractSolver, cell: Cell, tolerance: float) -> Callable[[Tensor], Tensor]:
    return DEQ(cell, solver=solver, hypergradient=Implicit(NeumannOrKrylov(rtol=tolerance)))


def theirs(solver: str, budget: int, cell: Cell) -> Callable[[Tensor], Tensor]:
    limits = {"f_max_iter": budget, "b_max_iter": budget, "f_tol": TOLERANCE, "b_tol": TOLERANCE}
    layer = peer("torchdeq").get_deq(f_solver=solver, b_solver=solver, ift=True, **limits)

    def solve(x: Tensor) -> Tensor:
        return layer(lambda z: cell(z, x), torch.zeros_like(x))[0][-1]

    return solve


def compare(radius: float, mine: Picard | Anderson | Broyden, solver: str) -> tuple[dict[str, float], str, Any]:
    """Median seconds of one gradient, a note with both errors, and the two calls."""
    case = task(radius)
    layers = {"sciopt": ours(mine, case.cell, mine.atol), "torchdeq": theirs(solver, BUDGET, case.cell)}
    calls = {name: functools.partial(gradient, layer, case.cell, case.x) for name, layer in layers.items()}
    errors = {name: case.error(call()) for name, call in calls.items()}
    times = side_by_side(calls, repeat=25, max_seconds=30)
    note = f"sciopt {times['sciopt'] * 1e3:.0f} ms, torchdeq {times['torchdeq'] * 1e3:.0f} ms; worst sample's error "
    return times, note + f"{errors['sciopt']:.0e} and {errors['torchdeq']:.0e}", calls


@functools.cache
def hard() -> tuple[dict[str, float], str, Any]:
    return compare(HARD, Anderson(history=10, every=3, rtol=0.0, atol=EQUAL_HARD), "broyden")


@bar("hard equilibrium (radius 0.99) against torchdeq's Broyden: speed", tier="bench", bar=">= 4x")
def hard_speed() -> Measured:
    times, note, _ = hard()
    return Measured(times["torchdeq"] / times["sciopt"], f"Anderson(10), every third step, {shape(HARD)}: {note}")


@bar("hard equilibrium (radius 0.99) against torchdeq's Broyden: memory", tier="bench", bar="<= 0.25x")
def hard_memory() -> Measured:
    calls = hard()[2]
    mine, other = (peak_bytes(calls[name]) for name in ("sciopt", "torchdeq"))
    return Measured(
        mine / other, f"sciopt {mine / 1e6:.1f} MB, torchdeq {other / 1e6:.1f} MB (room for {BUDGET} steps)"
    )


@bar("hard equilibrium (radius 0.99): our Broyden against torchdeq's", tier="bench", bar=None)
def hard_broyden() -> Measured:
    times, note, _ = compare(HARD, Broyden(history=20, rtol=0.0, atol=EQUAL_HARD), "broyden")
    return Measured(times["torchdeq"] / times["sciopt"], f"Broyden(20), times faster: {note}")


@bar("easy equilibrium (radius 0.3) against torchdeq's fixed-point iteration", tier="bench", bar="<= 1.1x")
def easy() -> Measured:
    times, note, _ = compare(EASY, Picard(rtol=0.0, atol=EQUAL_EASY), "fixed_point_iter")
    return Measured(times["sciopt"] / times["torchdeq"], f"Picard, {shape(EASY)}: {note}")
