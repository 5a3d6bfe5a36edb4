"""Hypergradients of every registered problem and energy, by every solver, against central differences of new solves.

What is special to one kind of problem (closed forms, other losses) is tested beside it; here nothing may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sciopt import BilevelProblem, hypergradcheck
from sciopt.domains.topology import (
    RAMP,
    Chain,
    ComplianceProblem,
    DensityFilter,
    DirectEigenAdjoint,
    DirectModes,
    DisplacementTarget,
    ElasticProblem,
    Extrusion,
    Grid,
    HeatProblem,
    Heaviside,
    HelmholtzFilter,
    ModeMatrices,
    Overhang,
    RobustProblem,
    SensitivityFilter,
    StressNorm,
    Symmetry,
    TrussProblem,
    VibrationProblem,
    bridge,
    bridge_3d,
    cantilever,
    cantilever_3d,
    gripper,
    heat_sink,
    inverter,
    l_bracket,
    mbb,
    michell,
    settle,
    tower,
    truss_arch,
)
from sciopt.domains.topology.jobs import problems
from sciopt.domains.topology.networks import (
    ConvolutionalPrior,
    CoordinateNetwork,
    ElementLogits,
    ParametrizedProblem,
)
from sciopt.domains.topology.nonlinear.finger_jobs import PneumaticOptions, finger_of
from sciopt.domains.topology.nonlinear.jobs import LAWS, LargeDeformationOptions, large_deformation_of
from sciopt.domains.topology.nonlinear.soft_jobs import SoftArm, SoftBodyOptions
from sciopt.domains.topology.uncertainty import (
    Combined,
    RandomDirection,
    RandomStiffness,
    Sampling,
    StochasticProblem,
    settle_scenarios,
)
from sciopt.hypergradients import Implicit, Unrolled
from sciopt.outer import CVaR
from tests.domains.topology.checks import assert_hypergradient

F64 = torch.float64
PLANE, BOX = Grid(nx=7, ny=5), Grid(nx=4, ny=2, nz=3)  # odd sizes: multigrid pads them
both = pytest.mark.parametrize("multigrid", [False, True], ids=["lu", "multigrid"])


def stiff(structure: Any, *maps: Any, volume: float = 0.5, **options: Any) -> ComplianceProblem:
    """A compliance problem with a density filter and what follows it."""
    smooth = Chain(DensityFilter(1.5, structure.grid.ndim), *maps) if maps else DensityFilter(1.5, structure.grid.ndim)
    return ComplianceProblem(structure=structure, volume_fraction=volume, filter=smooth, **options)


def aimed() -> ElasticProblem:
    """Displacements under three load cases that are to come near given ones."""
    structure = tower(Grid(nx=2, ny=1, nz=3))
    target = np.random.default_rng(0).normal(size=(3, 3))
    objective = DisplacementTarget(unknowns=structure.free[[3, 10, 20]], target=target)
    return ElasticProblem(base=stiff(structure), objective=objective)


# Name, with the registered problem before the colon, and what makes the problem: those that settle in the elastic or the
# thermal energy, by factorization and by multigrid.
LINEAR: dict[str, Callable[[], Any]] = {
    "compliance: unfiltered": lambda: ComplianceProblem(structure=mbb(PLANE), volume_fraction=0.5),
    "compliance: sensitivity filter": lambda: ComplianceProblem(
        structure=cantilever(PLANE), volume_fraction=0.5, filter=SensitivityFilter(radius=1.5, shape=PLANE.shape)
    ),
    "compliance: helmholtz": lambda: ComplianceProblem(
        structure=bridge(PLANE), volume_fraction=0.5, filter=HelmholtzFilter(1.7)
    ),
    "compliance: projected": lambda: stiff(michell(PLANE), Heaviside(beta=4.0, eta=0.4)),
    "compliance: mirrored and printed": lambda: ComplianceProblem(
        structure=cantilever(Grid(nx=8, ny=6)),
        volume_fraction=0.5,
        filter=Chain(Symmetry("y"), DensityFilter(1.5), Heaviside(beta=2.0), Overhang(direction="+y")),
    ),
    "compliance: void region": lambda: stiff(l_bracket(Grid(nx=10, ny=10))),
    "compliance: 3D": lambda: stiff(cantilever_3d(BOX)),
    "compliance: 3D, extruded": lambda: ComplianceProblem(
        structure=cantilever_3d(BOX), volume_fraction=0.5, filter=Chain(Extrusion("y"), DensityFilter(1.5, 3))
    ),
    "compliance: 3D, solid deck": lambda: stiff(bridge_3d(BOX)),
    "compliance: 3D, load cases": lambda: stiff(tower(BOX), case_weights=(1.0, 0.5, 2.0)),
    "compliance: own weight": lambda: stiff(mbb(PLANE), material=RAMP(), gravity=0.05),
    "compliance: own weight, 3D, load cases": lambda: stiff(tower(BOX), material=RAMP(), gravity=0.05),
    "compliance: robust": lambda: RobustProblem(base=stiff(cantilever(PLANE), Heaviside(beta=3.0)), delta=0.2),
    "mechanism: inverter": lambda: inverter(PLANE).problem(volume_fraction=0.4, filter=DensityFilter(1.5)),
    "mechanism: gripper": lambda: gripper(Grid(nx=8, ny=8)).problem(volume_fraction=0.4, filter=HelmholtzFilter(1.5)),
    "mechanism: robust": lambda: RobustProblem(
        base=inverter(PLANE).problem(volume_fraction=0.4, filter=Chain(DensityFilter(1.5), Heaviside(beta=3.0))),
        delta=0.2,
    ),
    "target: load cases": aimed,
    "stress: void region": lambda: ElasticProblem(
        base=stiff(l_bracket(Grid(nx=10, ny=10))), objective=StressNorm(power=6.0)
    ),
    "stress: 3D, load cases": lambda: ElasticProblem(
        base=stiff(tower(Grid(nx=1, ny=1, nz=3))), objective=StressNorm(power=6.0)
    ),
    "heat: plane": lambda: HeatProblem(structure=heat_sink(PLANE), volume_fraction=0.4, filter=DensityFilter(1.5)),
    "heat: box": lambda: HeatProblem(structure=heat_sink(BOX), volume_fraction=0.4, filter=DensityFilter(1.5, 3)),
}


@both
@pytest.mark.parametrize("name", list(LINEAR))
def test_linear(name: str, multigrid: bool) -> None:
    problem = LINEAR[name]()
    # The residual of the hinged mechanisms stagnates below 1e-12 of the load.
    made = settle(problem.energy, multigrid=multigrid, rtol=1e-11 if multigrid else None)
    sharp = "robust" in name or "projected" in name
    assert_hypergradient(
        problem,
        solver=made.solver,
        hypergradient=made.hypergradient,
        step=2e-5 if sharp else 1e-4,  # the error of the difference grows with the sharpness
        seeds=1,
    )


SCENARIOS = {
    "loads": RandomDirection(angle=20.0, magnitude=0.2),
    "stiffness": RandomStiffness(spread=0.3, length=3.0, modes=3),
    "both": Combined(load=RandomDirection(angle=20.0), material=RandomStiffness(spread=0.3, length=3.0, modes=3)),
}


@both
@pytest.mark.parametrize("kind", list(SCENARIOS))
def test_uncertain(kind: str, multigrid: bool, generator: torch.Generator) -> None:
    base = stiff(bridge(Grid(nx=7, ny=4)))
    scenarios = Sampling(count=4).draw(SCENARIOS[kind], base.structure, generator)
    problem = StochasticProblem(base=base, scenarios=scenarios, risk=CVaR(level=0.5, smoothing=5.0))
    how = settle_scenarios(problem, multigrid=multigrid)
    check = hypergradcheck(
        problem.bilevel,
        base.start() + 0.2 * torch.rand(base.start().shape, generator=generator, dtype=F64),
        init=problem.rest(base.start()),
        solver=how.solver,
        hypergradient=how.hypergradient,
        directions=1,
        eps=0.02,
        rtol=1e-6,
    )
    assert check.max_error <= 1e-6


@pytest.mark.parametrize("grid", [Grid(nx=6, ny=3), Grid(nx=3, ny=1, nz=2)], ids=["plane", "box"])
def test_eigenfrequency(grid: Grid) -> None:
    structure = (cantilever if grid.ndim == 2 else cantilever_3d)(grid)
    masses = 3.0 * np.abs(structure.load) if grid.ndim == 2 else None
    problem = VibrationProblem(
        structure=structure, volume_fraction=0.5, filter=DensityFilter(1.4, grid.ndim), masses=masses
    )
    made = ModeMatrices(problem)
    assert_hypergradient(
        problem,
        solver=DirectModes(matrices=made),
        hypergradient=Implicit(DirectEigenAdjoint(matrices=made)),
        seeds=1,
    )


def test_truss() -> None:
    problem = TrussProblem(structure=truss_arch((4, 2)), max_volume=3.0, young=2.0)
    made = settle(problem.energy)
    assert_hypergradient(problem, solver=made.solver, hypergradient=made.hypergradient, seeds=1)


@both
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("law", list(LAWS))
def test_large_deformation(law: str, ndim: int, multigrid: bool) -> None:
    flat: dict[str, Any] = {"preset": "cantilever", "nx": 5, "ny": 3}
    deep: dict[str, Any] = {"preset": "cantilever_3d", "nx": 3, "ny": 2, "nz": 2}
    options: dict[str, Any] = {"law": law, "load": 0.01} | (flat if ndim == 2 else deep)
    problem = large_deformation_of(LargeDeformationOptions(**options))
    made = problem.settling(multigrid=multigrid, rtol=1e-12)
    assert_hypergradient(problem, solver=made.solver, hypergradient=made.hypergradient, seeds=1)


def test_pneumatic() -> None:
    """Loads that follow the wall: a root, not a minimum, with a Jacobian that is not symmetric."""
    problem = finger_of(PneumaticOptions(nx=8, ny=6, pressure=0.01, volume_fraction=0.8))
    assert_hypergradient(problem, solver=problem.solver(1e-12), hypergradient=problem.hypergradient(), seeds=1)


def test_soft_body(generator: torch.Generator) -> None:
    """A chain of minima in time, in a modulus and a tension for each of its steps."""
    arm = SoftArm(options=SoftBodyOptions(nx=3, steps=3))
    wanted = torch.randn(arm.soft.start()["displacements"].shape, generator=generator, dtype=F64)
    problem = BilevelProblem(
        inner=arm.soft.motion(3), outer_loss=lambda path, phi: (path["displacements"][1:] - wanted).square().sum()
    )
    phi = {"log_young": torch.tensor(2.0, dtype=F64), "tension": torch.tensor([2.0, 0.5, 1.0], dtype=F64)}
    check = hypergradcheck(
        problem, phi, init=arm.soft.start(), hypergradient=Unrolled(), directions=1, eps=0.02, rtol=1e-6
    )
    assert check.max_error <= 1e-6


PRIORS = {
    "elements": ElementLogits(),
    "conv": ConvolutionalPrior(latent_size=4, dense_channels=3, upsampling=(1, 2), channels=(4, 1), kernel_size=3),
    "coordinate": CoordinateNetwork(width=5, depth=2),
}


@pytest.mark.parametrize(("prior", "multigrid"), [*((name, False) for name in PRIORS), ("elements", True)])
def test_network(prior: str, multigrid: bool, generator: torch.Generator) -> None:
    base = stiff(bridge_3d(BOX) if prior != "conv" else l_bracket(Grid(nx=10, ny=10)))
    weights = PRIORS[prior].initial(base.space.shape, generator)
    moved = {n: w + 0.3 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()}
    problem = ParametrizedProblem(base=base, parametrization=PRIORS[prior], weights=moved)
    made = settle(problem.energy, multigrid=multigrid, rtol=1e-11 if multigrid else None)
    check = hypergradcheck(
        problem.bilevel,
        moved,
        init=problem.rest(moved),
        solver=made.solver,
        hypergradient=made.hypergradient,
        directions=1,
        eps=0.01,
        rtol=1e-6,
    )
    assert check.max_error <= 1e-6


def test_no_registered_problem_is_missing() -> None:
    # meshfree is sampled at random: the envelope theorem is checked in test_meshfree; layout has no gradient
    elsewhere = {"meshfree", "layout"}
    here = {name.split(":")[0] for name in LINEAR} | {
        name.removeprefix("test_") for name, value in globals().items() if name.startswith("test_") and callable(value)
    }
    assert {kind.name.removeprefix("topology.") for kind in problems()} <= here | elsewhere
