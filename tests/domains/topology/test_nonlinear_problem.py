"""Topology design at large deformations: gradients, the linear limit, and a few steps downhill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sciopt import best_response, hypergradcheck, optimize
from sciopt.domains.topology import SIMP, DensityFilter, Grid, Structure, cantilever
from sciopt.domains.topology.nonlinear import LargeDeformationProblem, LinearElastic, NeoHookean
from sciopt.outer import OptimalityCriteria


def problem_of(size: float, law=None) -> LargeDeformationProblem:
    structure = cantilever(Grid(nx=8, ny=4))
    structure = replace(structure, load=size * structure.load)
    return LargeDeformationProblem(
        structure=structure,
        volume_fraction=0.5,
        law=NeoHookean() if law is None else law,
        material=SIMP(young=1.0, young_min=1e-6),
        filter=DensityFilter(radius=1.5),
    )


def test_hypergradient_of_the_end_compliance_is_a_central_difference(generator):
    problem = problem_of(5e-3)
    density = 0.3 + 0.6 * torch.rand(4, 8, generator=generator, dtype=torch.float64)
    solver = replace(problem.solver(), rtol=1e-12)
    check = hypergradcheck(
        problem.bilevel, density, init=problem.rest(density), solver=solver, hypergradient=problem.hypergradient(),
        directions=1, eps=0.02, rtol=1e-6,
    )  # fmt: skip
    assert check.max_error <= 1e-6


def test_small_loads_give_the_linear_compliance():
    density = problem_of(1.0).start()
    values = []
    for law in (NeoHookean(), LinearElastic()):
        problem = problem_of(1e-6, law)
        u = best_response(problem.bilevel.inner, density, init=problem.rest(density), solver=problem.solver()).value
        values.append(problem.compliance(u, density))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)


def test_optimality_criteria_stiffen_a_cantilever_that_bends_far():
    problem = problem_of(4e-3)
    start = problem.start()
    result = optimize(
        problem.bilevel, start, init=problem.rest(start), solver=problem.solver(), hypergradient=problem.hypergradient(),
        outer=OptimalityCriteria(), inequality=lambda u, x: problem.volume(x), bounds=(0.0, 1.0), max_steps=8,
    )  # fmt: skip
    assert result.value < 0.6 * result.history["value"][0]
    assert float(problem.volume(result.outer_params)) < 1e-3
    assert problem.energy.body.nodal(result.inner_params)[..., 1].min() < -0.5


def test_several_load_cases_ask_for_a_choice():
    structure = cantilever(Grid(nx=4, ny=2))
    cases = replace(structure, load=np.stack([structure.load, 2 * structure.load]))
    assert isinstance(cases, Structure)
    with pytest.raises(ValueError, match="body_of: expected `case` for a structure with several load cases"):
        LargeDeformationProblem(structure=cases, volume_fraction=0.5)
    problem = LargeDeformationProblem(structure=cases, volume_fraction=0.5, case=1)
    assert problem.energy.body.force.min() == -2
