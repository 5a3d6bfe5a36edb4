"""Histories that are written in place give the steps of those that autograd could follow, on every device's branch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sciopt.inner import Anderson, Broyden, rank_one
from sciopt.inner import anderson as anderson_module
from sciopt.inner import broyden as broyden_module
from sciopt.inner.abstract import run
from sciopt.problem import FixedPoint, RootFind
from tests.helpers import randn
from tests.inner.cases import bind

SOLVERS = [
    Anderson(history=3),
    Anderson(history=9, damping=0.6),
    Anderson(history=4, every=3),
    Anderson(history=2, every=5, damping=0.7),
    Broyden(history=4),
    Broyden(),
]
each = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{s.history}")


class Failing:
    """A batch of contractions; the fourth evaluation is infinite in row 2."""

    def __init__(self, generator: torch.Generator) -> None:
        self.W = randn(12, 12, generator=generator) / 12**0.5
        self.calls = 0

    def __call__(self, z: Tensor, phi: Tensor) -> Tensor:
        self.calls += 1
        out = 0.9 * torch.tanh(z @ self.W.T) + phi
        row = torch.arange(len(z)).unsqueeze(-1) == 2
        return torch.where(row, torch.inf, out) if self.calls == 4 else out


def cases(generator: torch.Generator) -> list[tuple[FixedPoint | RootFind, Tensor, Tensor]]:
    """Contractions, one row of which fails once, and roots with hills between."""
    phi, start = randn(5, 12, generator=generator), 0.3 * randn(5, 12, generator=generator)
    roots = RootFind(lambda z, phi: z + 2.5 * torch.sin(2 * z) - phi, batch_ndim=1)
    return [(FixedPoint(Failing(generator), batch_ndim=1), start, phi), (roots, start, 3 * phi)]


def again(problem: FixedPoint | RootFind) -> None:
    """The failure comes anew."""
    if isinstance(problem, FixedPoint) and isinstance(problem.fixed_point_map, Failing):
        problem.fixed_point_map.calls = 0


@each
def test_in_place_steps_equal_recorded_ones(solver: Anderson | Broyden, generator: torch.Generator) -> None:
    for problem, start, phi in cases(generator):
        oracle, x = bind(problem, start, phi)
        for count in (1, 2, 6, 11):
            again(problem)
            recorded = run(solver, oracle, x, num_steps=count)
            again(problem)
            state = solver.init(mine := owned(oracle), x)
            y = x
            for _ in range(count):
                y, state = solver.step(mine, y, state)
            assert_close(y, recorded.value, rtol=1e-6, atol=1e-8)


@each
def test_the_branches_of_other_devices_give_the_same(
    solver: Anderson | Broyden, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for problem, start, phi in cases(generator):
        oracle, x = bind(problem, start, phi)
        again(problem)
        here = solver.solve(oracle, x)
        again(problem)
        if isinstance(problem, FixedPoint):
            assert here.converged.all()  # also the row that met an infinite trial
        with monkeypatch.context() as patch:
            for module in (anderson_module, broyden_module, rank_one):
                patch.setattr(module, "unset", lambda mask: False)
            there = solver.solve(oracle, x)
        assert torch.equal(here.status_code, there.status_code) and torch.equal(here.num_steps, there.num_steps)
        assert_close(there.value, here.value, rtol=1e-12, atol=1e-12)


def owned(oracle):
    """An oracle whose run owns its state."""
    mine = type(oracle)(oracle.system, oracle.args)
    mine.in_place = True
    return mine
