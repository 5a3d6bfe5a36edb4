"""Mechanisms, displacement targets, stresses and heat: hypergradients, closed forms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciopt.domains.topology import (
    Box,
    Builder,
    ComplianceProblem,
    Conductor,
    DensityFilter,
    DirectAdjoint,
    DirectEquilibrium,
    DisplacementTarget,
    ElasticProblem,
    FactorCache,
    Grid,
    HeatProblem,
    OutputDisplacement,
    StressNorm,
    cantilever,
    gripper,
    heat_sink,
    inverter,
    tower,
)
from sciopt.hypergradients import Implicit
from tests.domains.topology.checks import assert_hypergradient, random_design, total

F64 = torch.float64


def strategies(problem) -> dict:
    cache = FactorCache(problem.energy)
    return {"solver": DirectEquilibrium(cache=cache), "hypergradient": Implicit(DirectAdjoint(cache=cache))}


def base_of(structure, **kwargs) -> ComplianceProblem:
    smooth = DensityFilter(1.5, structure.grid.ndim)
    return ComplianceProblem(structure=structure, volume_fraction=0.5, filter=smooth, **kwargs)


@pytest.mark.parametrize("mechanism", [inverter(Grid(nx=8, ny=4)), gripper(Grid(nx=8, ny=8))])
def test_hypergradients_of_mechanisms(mechanism) -> None:
    problem = mechanism.problem(volume_fraction=0.4, filter=DensityFilter(1.5))
    hg = assert_hypergradient(problem, **strategies(problem))
    at_output = problem.energy.full_displacements(hg.inner_params).reshape(-1).numpy() @ mechanism.output
    assert float(hg.value) == pytest.approx(float(at_output), rel=1e-12)


def test_an_output_is_the_work_of_its_unit_load() -> None:
    """The output of the input's own place is the compliance, and reciprocal (Maxwell-Betti) between two places."""
    grid = Grid(nx=6, ny=3)
    made = Builder(grid=grid).hold(Box(x=0))
    a, b = Box(x=6, y=0), Box(x=4, y=3)
    values = []
    for enter, leave in ((a, b), (b, a), (a, a)):
        base = base_of(made.push(enter, (0, 1)).build())
        problem = ElasticProblem(base=base, objective=OutputDisplacement(weights=made.unit(leave, "y")))
        x = random_design(problem)
        values.append(float(total(problem, x, **strategies(problem)).value))
    compliance = base_of(made.push(a, (0, 1)).build())
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert values[2] == pytest.approx(
        float(total(compliance, random_design(compliance), **strategies(compliance)).value), rel=1e-12
    )
    with pytest.raises(ValueError, match=r"OutputDisplacement: expected finite `weights` of shape \(56,\)"):
        ElasticProblem(base=compliance, objective=OutputDisplacement(weights=made.unit(Box(x=0), "y")))


def test_hypergradient_of_displacement_targets_of_load_cases() -> None:
    structure = tower(Grid(nx=2, ny=1, nz=3))
    seen = structure.free[[3, 10, 20]]
    target = np.random.default_rng(0).normal(size=(3, 3))
    problem = ElasticProblem(base=base_of(structure), objective=DisplacementTarget(unknowns=seen, target=target))
    hg = assert_hypergradient(problem, **strategies(problem))
    residuals = problem.bilevel.outer_residuals
    assert residuals is not None
    assert float(hg.value) == pytest.approx(0.5 * float(residuals(hg.inner_params, None).square().sum()), rel=1e-12)
    full = problem.energy.full_displacements(hg.inner_params).reshape(3, -1).numpy()
    assert float(hg.value) == pytest.approx(0.5 * float(((full[:, seen] - target) ** 2).sum()), rel=1e-12)
    with pytest.raises(ValueError, match="DisplacementTarget: expected free `unknowns` of structure 'tower', got 0"):
        ElasticProblem(base=problem.base, objective=DisplacementTarget(unknowns=np.array([0]), target=np.zeros(1)))
    with pytest.raises(ValueError, match="DisplacementTarget: expected a finite `target`"):
        ElasticProblem(base=problem.base, objective=DisplacementTarget(unknowns=seen, target=np.zeros(2)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_stress_of_a_pulled_bar(ndim: int) -> None:
    """Even tension: every element has the stress F / A; its relaxed value at density r is F / A r^(1/2 - 3)."""
    grid = Grid(nx=4, ny=2, nz=None if ndim == 2 else 2)
    corner = Box(x=0, y=0, z=0)
    made = Builder(grid=grid).hold(Box(x=0), "x").hold(corner, "xyz"[1:ndim])
    if ndim == 3:
        made = made.hold(Box(x=0, y=2, z=0), "z")
    area = 2.0 ** (ndim - 1)
    base = ComplianceProblem(structure=made.push(Box(x=4), (1.0, 0, 0)[:ndim]).build(), volume_fraction=0.5)
    objective = StressNorm(power=8.0)
    problem = ElasticProblem(base=base, objective=objective)
    for r in (1.0, 0.5):
        density = torch.full(grid.shape, r, dtype=F64)
        hg = total(problem, density, **strategies(problem))
        squared = objective.squared(base, hg.inner_params, density)
        expected = torch.full_like(squared, r**-5 / area**2)
        torch.testing.assert_close(squared, expected, rtol=1e-7, atol=0)
        assert float(hg.value) == pytest.approx(grid.num_elements ** (1 / 8) * r**-2.5 / area, rel=1e-7)
    empty = density.clone()
    empty[..., 0, 1] = 0.0  # void has neither stress nor an infinite slope
    hg = total(ElasticProblem(base=base, objective=objective), empty.clamp(min=0.0), **strategies(problem))
    assert bool(torch.isfinite(hg.grad).all())


def test_bad_stress_options_are_refused() -> None:
    with pytest.raises(ValueError, match="StressNorm: expected `power` >= 2"):
        StressNorm(power=1.0)
    with pytest.raises(ValueError, match="StressNorm: expected `relaxation` >= 1/2"):
        StressNorm(relaxation=0.2)


@pytest.mark.parametrize("grid", [Grid(nx=6, ny=5), Grid(nx=3, ny=2, nz=2)])
def test_hypergradient_of_heat_conduction(grid: Grid) -> None:
    problem = HeatProblem(structure=heat_sink(grid), volume_fraction=0.4, filter=DensityFilter(1.5, grid.ndim))
    problem.check(problem.start())
    assert problem.structure.heat.sum() == pytest.approx(1.0)
    assert_hypergradient(problem, **strategies(problem))


def test_a_rod_between_heat_and_sink_has_its_closed_form() -> None:
    """Heat 1 through L elements of area 1 and conductivities k_e in a row: compliance sum 1 / k_e."""
    grid = Grid(nx=4, ny=1)
    right = grid.node(4, np.arange(2))
    heat = np.zeros(grid.num_nodes)
    heat[right] = 0.5
    rod = Conductor(grid=grid, sinks=grid.node(0, np.arange(2)), heat=heat)
    problem = HeatProblem(structure=rod, volume_fraction=0.5)
    density = torch.tensor([[0.3, 1.0, 0.7, 0.5]], dtype=F64)
    hg = total(problem, density, **strategies(problem))
    assert float(hg.value) == pytest.approx(float((1 / problem.material(density)).sum()), rel=1e-12)
    # 1/k along the row, so that the temperature after the first element is 1/k_1
    assert float(hg.inner_params[0]) == pytest.approx(float(1 / problem.material(density)[0, 0]), rel=1e-12)


def test_conductors_without_sink_or_heat_are_refused() -> None:
    grid = Grid(nx=2, ny=2)
    with pytest.raises(ValueError, match="leaves free: the level of temperature"):
        Conductor(grid=grid, sinks=np.array([], dtype=int), heat=np.ones(9))
    with pytest.raises(ValueError, match="expected `heat` at a node that is no sink, got zero"):
        Conductor(grid=grid, sinks=np.array([0]), heat=np.eye(9)[0])
    with pytest.raises(ValueError, match=r"expected a finite `heat` of shape \(9,\)"):
        Conductor(grid=grid, sinks=np.array([0]), heat=np.ones(4))
    with pytest.raises(ValueError, match="HeatProblem: expected `volume_fraction`"):
        HeatProblem(structure=heat_sink(grid), volume_fraction=1.0)
    assert cantilever(grid).held.size == 6
