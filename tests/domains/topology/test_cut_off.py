"""Loads that no material joins to the supports: named, by either solver and in either precision; nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sciopt import Minimize, Solution, SolveError, best_response, optimize
from sciopt.domains.topology import (
    SIMP,
    STRUCTURES,
    Box,
    Builder,
    ComplianceProblem,
    ConductionEnergy,
    DensityFilter,
    DirectEquilibrium,
    ElasticEnergy,
    FactorCache,
    Grid,
    Structure,
    bridge,
    cantilever,
    cantilever_3d,
    heat_sink,
    inverter,
    mbb,
    settle,
)
from sciopt.domains.topology.connectivity import joined_to_supports
from sciopt.domains.topology.multigrid import HierarchyCache, MultigridEquilibrium
from sciopt.outer import OptimalityCriteria

F32, F64 = torch.float32, torch.float64


def scattered(shape: tuple[int, ...], seed: int, share: float = 0.5) -> Tensor:
    """Random densities of 0 and 1."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) < share).double()


def settled(energy: ElasticEnergy | ConductionEnergy, density: Tensor, multigrid: bool, **options) -> Solution:
    solver = (
        MultigridEquilibrium(cache=HierarchyCache(energy))
        if multigrid
        else DirectEquilibrium(cache=FactorCache(energy))
    )
    options.setdefault("throw", False)
    batch = options.pop("batch_ndim", energy.load.ndim - 1)
    lead = density.shape[: batch - energy.load.ndim + 1]
    init = density.new_zeros(*lead, *energy.load.shape)
    return best_response(Minimize(energy, batch_ndim=batch), density, init=init, solver=solver, **options)


CUT: dict[str, Callable[[], Structure]] = {
    "63x65": lambda: cantilever(Grid(nx=63, ny=65)),
    "301x2": lambda: mbb(Grid(nx=301, ny=2)),
    "2x301": lambda: mbb(Grid(nx=2, ny=301)),
    "200x2x1": lambda: cantilever_3d(Grid(nx=200, ny=2, nz=1)),
}


@pytest.mark.parametrize("multigrid", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", list(CUT))
def test_cut_off_loads_are_named(name: str, dtype: torch.dtype, multigrid: bool) -> None:
    structure = CUT[name]()
    energy = ElasticEnergy(structure=structure, modulus=SIMP())
    density = scattered(structure.grid.shape, 0)
    assert not joined_to_supports(structure.grid, density.numpy(), structure.fixed, structure.load)
    solution = settled(energy, density.to(dtype), multigrid)
    assert solution.status.name == "SINGULAR"
    assert "is cut off: no near-solid elements join it to supports" in solution.aux["advice"]


def test_random_designs_are_cut_off_or_converge_alike() -> None:
    """24 designs of every density: what is not joined is told by both solvers in both precisions, the rest converges."""
    seen = []
    for seed in range(24):
        made = (cantilever, mbb, cantilever_3d)[seed % 3]
        grid = Grid(nx=9 + seed, ny=4, nz=3) if made is cantilever_3d else Grid(nx=9 + seed, ny=5 + seed % 7)
        structure = made(grid)
        energy = ElasticEnergy(structure=structure, modulus=SIMP(young_min=(1e-9, 1e-12)[seed % 2]))
        density = scattered(grid.shape, seed, (0.4, 0.6, 0.85)[seed // 8])
        joined = joined_to_supports(grid, density.numpy(), structure.fixed, structure.load)
        found = [settled(energy, density.to(dtype), multigrid) for dtype in (F64, F32) for multigrid in (False, True)]
        codes, huge = {each.status.name for each in found}, float(energy.work(found[0].value)) > 1e7
        assert not (joined and huge)
        if made is cantilever_3d and huge:  # of a line load some may be joined; rounding then decides
            assert "SINGULAR" in codes and codes <= {"SINGULAR", "CONVERGED"}
        else:  # corners may make a stiff truss
            assert codes == {"SINGULAR" if huge else "CONVERGED"}
        seen.append(huge)
    assert 5 < sum(seen) < 19


@pytest.mark.parametrize("multigrid", [False, True])
def test_other_rows_of_a_batch_are_unharmed(multigrid: bool) -> None:
    energy = ElasticEnergy(structure=cantilever(Grid(nx=12, ny=6)), modulus=SIMP())
    designs = torch.full((3, 6, 12), 0.5, dtype=F64)
    designs[1, :, 5] = 0.0
    many = settled(energy, designs, multigrid, batch_ndim=1)
    assert many.status_code.tolist() == [0, 4, 0] and "load of design 1 at (12, 3)" in many.aux["advice"]
    one = settled(energy, designs[0], multigrid)
    for row in (0, 2):
        torch.testing.assert_close(many.value[row], one.value, rtol=0, atol=1e-7 * float(one.value.abs().max()))
    with pytest.raises(SolveError, match=r"got SINGULAR in 1 of 3 problems \(rows 1\).*load of design 1 at"):
        settled(energy, designs, multigrid, batch_ndim=1, throw=True)


@pytest.mark.parametrize("multigrid", [False, True])
def test_load_cases_are_named(multigrid: bool) -> None:
    made = Builder(grid=Grid(nx=12, ny=6)).hold(Box(x=0)).push(Box(x=4, y=6), (0, -1))
    energy = ElasticEnergy(structure=made.push(Box(x=12, y=3), (0, -1), case=1).build(), modulus=SIMP())
    density = torch.ones(6, 12, dtype=F64)
    density[:, 8] = 0.0
    solution = settled(energy, density, multigrid)
    assert solution.status_code.tolist() == [0, 4]
    assert solution.aux["advice"].startswith("The load of case 1 at (12, 3) is cut off")
    density[:, 2] = 0.0
    assert "load of case 0 at (4, 6), load of case 1 at" in settled(energy, density, multigrid).aux["advice"]


@pytest.mark.parametrize("multigrid", [False, True])
def test_heat_that_reaches_no_sink(multigrid: bool) -> None:
    energy = ConductionEnergy(conductor=heat_sink(Grid(nx=8, ny=8)), conductivity=SIMP())
    density = torch.ones(8, 8, dtype=F64)
    assert settled(energy, density, multigrid).status.name == "CONVERGED"
    sink = torch.ones(8, 8, dtype=F64)
    at_sink = energy.held(torch.zeros(64, dtype=torch.bool).numpy(), torch.ones(energy.size, dtype=torch.bool).numpy())
    assert not at_sink.any()
    sink[0] = sink[-1] = sink[:, 0] = sink[:, -1] = 0.0
    assert settled(energy, sink, multigrid).status.name == "SINGULAR"


def test_springs_hold() -> None:
    """Both ports of the inverter are sprung: void around them stretches no further than the spring."""
    mechanism = inverter(Grid(nx=12, ny=8))
    energy = ElasticEnergy(structure=mechanism.structure, modulus=SIMP())
    density = torch.ones(8, 12, dtype=F64)
    density[:, 0] = 0.0
    for multigrid in (False, True):
        assert settled(energy, density, multigrid).status.name == "CONVERGED"


def test_checkerboards_carry() -> None:
    """Corners alone join them, and yet they are stiff: no part of the work is left to void."""
    energy = ElasticEnergy(structure=bridge(Grid(nx=12, ny=8)), modulus=SIMP())
    density = torch.ones(8, 12, dtype=F64)
    density[:, 4:8] = (torch.arange(8)[:, None] + torch.arange(4)).remainder(2).double()
    for multigrid in (False, True):
        for dtype in (F32, F64):
            assert settled(energy, density.to(dtype), multigrid).status.name == "CONVERGED"


@pytest.mark.parametrize(
    ("name", "young_min"),
    [*((name, 1e-9) for name in STRUCTURES), ("bridge", 1e-4), ("bridge", 1e-14), ("tower", 1e-14)],
)
def test_no_false_alarm_in_ordinary_runs(name: str, young_min: float) -> None:
    """First steps at a tenth of the volume, where most is grey, then nearly void."""
    flat = name in ("mbb", "cantilever", "bridge", "michell", "l_bracket")
    grid = Grid(nx=20, ny=10) if flat else Grid(nx=8, ny=6, nz=8)
    share = {"bridge_3d": 0.2, "bracket_3d": 0.3}.get(name, 0.1)
    problem = ComplianceProblem(
        structure=STRUCTURES[name](grid),
        volume_fraction=share,
        material=SIMP(young_min=young_min),
        filter=DensityFilter(1.5, ndim=grid.ndim),
    )
    start = problem.start()
    for multigrid in (False, True):
        how = settle(problem.energy, multigrid=multigrid)
        result = optimize(
            problem.bilevel,
            start,
            init=problem.rest(start),
            solver=how.solver,
            hypergradient=how.hypergradient,
            outer=OptimalityCriteria(),
            bounds=(0.0, 1.0),
            inequality=lambda state, density: problem.volume(density),
            max_steps=5,
            certificate=False,
        )
        assert result.status.name == "MAX_STEPS"
        single = settled(problem.energy, result.outer_params.float(), multigrid)
        assert single.status.name == "CONVERGED"
