"""Trusses: hypergradients, the optimum by linear programming, and motions that nothing resists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from sciopt import optimize
from sciopt.domains.topology import (
    DirectAdjoint,
    DirectEquilibrium,
    FactorCache,
    Truss,
    TrussProblem,
    truss_arch,
    truss_cantilever,
)
from sciopt.hypergradients import Implicit
from sciopt.outer import OptimalityCriteria
from tests.domains.topology.checks import assert_hypergradient, total


def strategies(problem: TrussProblem) -> dict:
    cache = FactorCache(problem.energy)
    return {"solver": DirectEquilibrium(cache=cache), "hypergradient": Implicit(DirectAdjoint(cache=cache))}


def two_cases() -> Truss:
    truss = truss_cantilever((3, 2))
    other = np.roll(truss.load, -1)
    return Truss(nodes=truss.nodes, bars=truss.bars, fixed=truss.fixed, load=np.stack([truss.load, other]))


TRUSSES = {"arch": truss_arch((4, 2)), "3d": truss_cantilever((2, 1, 1), 1), "cases": two_cases()}


@pytest.mark.parametrize("truss", TRUSSES.values(), ids=list(TRUSSES))
def test_hypergradient_of_trusses(truss: Truss) -> None:
    problem = TrussProblem(structure=truss, max_volume=3.0, young=2.0)
    problem.check(problem.start())
    assert_hypergradient(problem, **strategies(problem))


def test_two_bars_have_their_closed_form() -> None:
    """Symmetric pair at 45 degrees under a unit force across: c = L / (2 E a cos^2)."""
    nodes = np.array([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    pair = Truss(nodes=nodes, bars=np.array([[0, 2], [1, 2]]), fixed=np.arange(4), load=-np.eye(6)[5])
    problem = TrussProblem(structure=pair, max_volume=1.0)
    hg = total(problem, torch.ones(2, dtype=torch.float64), **strategies(problem))
    assert float(hg.value) == pytest.approx(np.sqrt(2) / (2 * 0.5), rel=1e-6)


@pytest.mark.parametrize("truss", [truss_arch((4, 2)), truss_cantilever((4, 2))], ids=["arch", "cantilever"])
def test_the_stiffest_truss_is_the_lightest_plastic_one(truss: Truss) -> None:
    """Least volume at unit stress by linear programming, min sum L |q| with B^T q = f; then c = V_p^2 / (E V)."""
    b = truss.compatibility.T
    lengths = np.concatenate([truss.lengths] * 2)
    plastic = linprog(lengths, A_eq=np.concatenate([b, -b], axis=1), b_eq=truss.load[truss.free])
    problem = TrussProblem(structure=truss, max_volume=5.0, area_max=2.0)
    x = problem.start()
    result = optimize(
        problem.bilevel,
        x,
        init=problem.rest(x),
        outer=OptimalityCriteria(),
        bounds=(0.0, 1.0),
        inequality=lambda u, sizes: problem.volume(sizes),
        max_steps=150,
        change_atol=1e-6,
        certificate=False,
        **strategies(problem),
    )
    assert result.value == pytest.approx(plastic.fun**2 / 5.0, rel=2e-3)
    assert result.value > plastic.fun**2 / 5.0 * (1 - 1e-6)  # the bound is a bound


def test_trusses_that_move_freely_name_the_motion() -> None:
    nodes = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    chain = np.array([[0, 1], [1, 2]])
    held = np.array([0, 1, 4, 5])
    with pytest.raises(ValueError, match="Truss 'truss': expected bars .* got 1 free: node 1 moves along y"):
        Truss(nodes=nodes, bars=chain, fixed=held, load=np.eye(6)[3])
    with pytest.raises(ValueError, match="expected `bars` of some length, got none in bar 1"):
        Truss(nodes=nodes, bars=np.array([[0, 1], [2, 2]]), fixed=held, load=np.eye(6)[2])
    with pytest.raises(ValueError, match="expected a `load` on at least one free unknown"):
        Truss(nodes=nodes, bars=chain, fixed=held, load=np.eye(6)[0])
    with pytest.raises(ValueError, match=r"expected `bars` \(m, 2\) with numbers in \[0, 3\)"):
        Truss(nodes=nodes, bars=np.array([[0, 7]]), fixed=held, load=np.eye(6)[2])
    arch = truss_arch((4, 2))
    for volume in (0.0, 1e9):
        with pytest.raises(ValueError, match="TrussProblem: expected `max_volume` in"):
            TrussProblem(structure=arch, max_volume=volume)
    with pytest.raises(ValueError, match="TrussProblem: expected `sizes` in"):
        TrussProblem(structure=arch, max_volume=1.0).check(torch.ones(3).double())
