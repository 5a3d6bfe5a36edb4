"""Quadratic programs as a layer: a batch, gradients to every matrix included, against qpth."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sciopt.domains.implicit.optimization import quadratic_program
from sciopt.inner import InteriorPoint
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, bar, peer

BATCH, UNKNOWNS, INEQUALITIES, EQUALITIES = 64, 50, 50, 10


def programs() -> dict[str, Tensor]:
    """Feasible, strictly convex programs with about half of the inequalities active."""
    gen = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=gen)

    root, x = draw(BATCH, UNKNOWNS, UNKNOWNS), draw(BATCH, UNKNOWNS, 1)
    data = {"Q": root @ root.mT / UNKNOWNS + 0.1 * torch.eye(UNKNOWNS), "p": draw(BATCH, UNKNOWNS)}
    data |= {"G": draw(BATCH, INEQUALITIES, UNKNOWNS), "A": draw(BATCH, EQUALITIES, UNKNOWNS)}
    data["h"] = (data["G"] @ x).squeeze(-1) + torch.rand(BATCH, INEQUALITIES, dtype=torch.float64, generator=gen)
    data["b"] = (data["A"] @ x).squeeze(-1)
    return data


def gradients(layer: Callable[..., Tensor], data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Solutions and the gradient of a loss of them in p."""
    leaves = {name: value.clone().requires_grad_() for name, value in data.items()}
    x = layer(*(leaves[name] for name in "QpGhAb"))
    x.sin().sum().backward()
    assert leaves["p"].grad is not None
    return x.detach(), leaves["p"].grad


@functools.cache
def race() -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Median seconds, and the worst errors of value and gradient of each."""
    qpth = peer("qpth.qp")
    data = programs()

    def ours(*matrices: Tensor) -> Tensor:
        return quadratic_program(*matrices).value

    def theirs(*matrices: Tensor) -> Tensor:
        return qpth.QPFunction(verbose=-1, check_Q_spd=False)(*matrices)

    def tight(*matrices: Tensor) -> Tensor:
        return quadratic_program(*matrices, solver=InteriorPoint(rtol=1e-11, atol=1e-10)).value

    truth = gradients(tight, data)
    runs = {"sciopt": ours, "qpth": theirs}
    errors = {}
    for name, layer in runs.items():
        found = gradients(layer, data)
        value, grad = (float((f - t).abs().max()) for f, t in zip(found, truth, strict=True))
        errors[name] = (value, grad)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return side_by_side({name: lambda f=layer: gradients(f, data) for name, layer in runs.items()}), errors
    finally:
        torch.set_num_threads(threads)


@bar("64 quadratic programs with gradients, qpth / sciopt", tier="bench", bar=None)
def against_qpth() -> Measured:
    """Same device, one thread, each at its own default tolerance; errors against a tighter solve in the note."""
    times, errors = race()
    notes = [
        f"{name} {1e3 * times[name]:.0f} ms, worst error of x {errors[name][0]:.0e}, of the gradient {errors[name][1]:.0e}"
        for name in times
    ]
    return Measured(times["qpth"] / times["sciopt"], "; ".join(notes))
