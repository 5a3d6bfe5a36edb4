"""Mechanisms, heat sinks, low stresses and high frequencies as jobs for campaigns and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.design import DesignRun, DesignStage
from sciopt.domains.topology.filters import DensityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.heat import HeatProblem, heat_sink
from sciopt.domains.topology.map_options import MapOptions, density_map, map_metrics, stages_of
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.mechanisms import MECHANISMS, Mechanism
from sciopt.domains.topology.modes import DirectEigenAdjoint, DirectModes, ModeMatrices
from sciopt.domains.topology.objectives import ElasticProblem, StressNorm
from sciopt.domains.topology.pictures import draw_conductor, draw_density
from sciopt.domains.topology.presets import l_bracket
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.settling import Settling
from sciopt.domains.topology.solver_options import SolverOptions, check_size, settled_by, solver_metrics
from sciopt.domains.topology.structure import cantilever
from sciopt.domains.topology.vibration import VibrationProblem
from sciopt.hypergradients import Implicit
from sciopt.outer import GCMMA, MMA, OptimizeResult

__all__ = [
    "DesignOptions",
    "EigenfrequencyOptions",
    "HeatOptions",
    "MechanismOptions",
    "StressOptions",
    "further_problems",
]


CLOSE = 0.1  # distance of the first asymptotes for stresses and frequencies, in ranges of the density
CAUTIOUS = 0.02  # distance of the first asymptotes of mechanisms, in ranges of the density


class DesignOptions(BaseModel):
    """What all density problems share.

    Example:
        >>> DesignOptions(nx=10, ny=5).filter_radius
        1.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    nx: int = Field(default=60, ge=2, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=30, ge=2, le=2000, description="elements from bottom to top [elements]")
    volume_fraction: float = Field(default=0.3, gt=0, lt=1, description="share of the domain that may be filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    filter_radius: float = Field(default=1.5, ge=1, le=100, description="radius of the density filter [element sides]")
    move: float = Field(default=0.2, gt=0, le=1, description="largest change of a density in one step of MMA [1]")
    max_steps: int = Field(default=300, ge=1, le=100_000, description="largest number of design steps")
    change_tolerance: float = Field(
        default=0.01, gt=0, lt=1, description="end when no density moved by more than this in a step [1]"
    )


class MechanismOptions(DesignOptions, MapOptions, SolverOptions):
    """Options of ``topology.mechanism``.

    Example:
        >>> MechanismOptions().preset
        'inverter'
    """

    preset: Literal["inverter", "gripper"] = Field(
        default="inverter", description="mechanism: half a force inverter, or half a gripper"
    )
    filter: Literal["density", "helmholtz"] = Field(
        default="density", description="filter: means over a cone, or by a differential equation"
    )

    @model_validator(mode="after")
    def _structure_exists(self) -> MechanismOptions:
        if check_size(self, (self.nx, self.ny)):  # what the problem refuses is said here, not by a worker
            mechanism_of(self)
        return self


class HeatOptions(DesignOptions, SolverOptions):
    """Options of ``topology.heat``.

    Example:
        >>> HeatOptions().nz is None
        True
    """

    nz: int | None = Field(default=None, ge=2, le=2000, description="elements from bottom to top, in 3D [elements]")
    volume_fraction: float = Field(default=0.4, gt=0, lt=1, description="share of the domain that may be filled [1]")
    contrast: float = Field(
        default=1e-3, ge=1e-12, lt=1, description="conductivity of the bad conductor, relative to the good one [1]"
    )

    @model_validator(mode="after")
    def _size_is_sensible(self) -> HeatOptions:
        sides = (self.nx, self.ny) if self.nz is None else (self.nx, self.ny, self.nz)
        check_size(self, sides)
        DensityFilter(self.filter_radius, len(sides)).check("topology.heat", sides)
        return self


class StressOptions(DesignOptions, SolverOptions):
    """Options of ``topology.stress``.

    Example:
        >>> StressOptions().power
        8.0
    """

    nx: int = Field(default=40, ge=5, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=40, ge=5, le=2000, description="elements from bottom to top [elements]")
    volume_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="share of the L-shaped domain that may be filled [1]"
    )
    optimizer: Literal["mma", "gcmma"] = Field(
        default="mma",
        description="outer step: moving asymptotes, or their globally convergent form (every step lowers the objective; about "
        "two evaluations for each)",
    )
    power: float = Field(default=8.0, ge=2, le=40, description="exponent of the norm of stresses [1]")
    relaxation: float = Field(default=0.5, ge=0.5, le=3, description="exponent of density in the stress [1]")

    @model_validator(mode="after")
    def _size_is_sensible(self) -> StressOptions:
        check_size(self, (self.nx, self.ny))
        DensityFilter(self.filter_radius).check("topology.stress", (self.nx, self.ny))
        return self


class EigenfrequencyOptions(DesignOptions):
    """Options of ``topology.eigenfrequency``.

    Example:
        >>> EigenfrequencyOptions().tip_mass
        50.0
    """

    nx: int = Field(default=48, ge=2, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=24, ge=2, le=2000, description="elements from bottom to top [elements]")
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the domain that may be filled [1]")
    optimizer: Literal["mma", "gcmma"] = Field(
        default="mma",
        description="outer step: moving asymptotes, or their globally convergent form (every step lowers the objective; about "
        "two evaluations for each)",
    )
    tip_mass: float = Field(
        default=50.0, ge=0, le=1e9, description="mass at the middle of the free end [masses of a full element]"
    )

    @model_validator(mode="after")
    def _size_is_sensible(self) -> EigenfrequencyOptions:
        check_size(SolverOptions(solver="direct"), (self.nx, self.ny))  # modes are found by factorizations alone
        DensityFilter(self.filter_radius).check("topology.eigenfrequency", (self.nx, self.ny))
        return self


def mechanism_of(options: MechanismOptions) -> tuple[Mechanism, ElasticProblem]:
    """The mechanism that these options name, and its problem.

    Example:
        >>> mechanism_of(MechanismOptions(nx=8, ny=4))[0].structure.name
        'inverter'
    """
    mechanism = MECHANISMS[options.preset](Grid(nx=options.nx, ny=options.ny))
    problem = mechanism.problem(
        volume_fraction=options.volume_fraction,
        material=SIMP(penalty=options.penalty),
        filter=density_map(options, options.filter, options.filter_radius, 2),
    )
    return mechanism, problem


def run_mechanism(options: MechanismOptions, context: JobContext) -> JobResult:
    """Make the output move as far as it can, against the sense of its axis."""
    mechanism, base = mechanism_of(options)
    before, problem = stages_of(base, options, options.penalty, multigrid=options.multigrid)
    made = settled_by(options, problem.energy)
    title = f"{options.preset} {options.nx}x{options.ny}, volume {options.volume_fraction:g}"

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        work = base.energy.work(result.inner_params)
        entered = float(work[1] if work.ndim else work)  # of a robust problem, of the intermediate design
        found = {"input displacement [length]": entered, "geometric advantage [1]": -result.value / entered}
        return found | solver_metrics(made, result) | map_metrics(problem, options, result)

    # From an even start the output moves with the push, and the steepest way to no motion at all is to cut it off: there
    # every derivative vanishes. Small first steps, which MMA widens by itself, leave time for levers to form.
    outer = MMA(move=options.move, first_distance=CAUTIOUS)
    result = replace(_run(problem, options, made, title, "output displacement", "length", before), outer=outer).run(
        context, extra
    )
    joined = mechanism.joined(result.arrays["density"])
    warnings = list(result.warnings)
    if not joined:
        warnings.append(
            "No path of material joins the input, the output and the supports: this is no mechanism. Lower `move`, raise "
            "volume_fraction or lower filter_radius."
        )
    certificate = {**result.certificate, "input_joined_to_output": int(joined)}
    return replace(result, certificate=certificate, warnings=warnings)


def run_heat(options: HeatOptions, context: JobContext) -> JobResult:
    """Lead the heat of a box to its sink."""
    grid = Grid(nx=options.nx, ny=options.ny, nz=options.nz)
    problem = HeatProblem(
        structure=heat_sink(grid),
        volume_fraction=options.volume_fraction,
        material=SIMP(young_min=options.contrast, penalty=options.penalty),
        filter=DensityFilter(options.filter_radius, grid.ndim),
    )
    made = settled_by(options, problem.energy)
    title = f"heat sink {'x'.join(map(str, grid.sides))}, volume {options.volume_fraction:g}"

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        return {
            "largest temperature [temperature]": float(result.inner_params.max()),
            **solver_metrics(made, result),
        }

    return _run(problem, options, made, title, "thermal compliance", "heat * temperature").run(context, extra)


def run_stress(options: StressOptions, context: JobContext) -> JobResult:
    """Lower the peak stress of the L-bracket."""
    base = ComplianceProblem(
        structure=l_bracket(Grid(nx=options.nx, ny=options.ny)),
        volume_fraction=options.volume_fraction,
        material=SIMP(penalty=options.penalty),
        filter=DensityFilter(options.filter_radius),
    )
    objective = StressNorm(power=options.power, relaxation=options.relaxation)
    problem = ElasticProblem(base=base, objective=objective)
    made = settled_by(options, problem.energy)
    title = f"L-bracket {options.nx}x{options.ny}, volume {options.volume_fraction:g}"

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        with torch.no_grad():
            squared = objective.squared(base, result.inner_params, result.outer_params)
            work = base.energy.work(result.inner_params)
        return {
            "largest stress [force / area]": float(squared.max().sqrt()),
            "compliance [force * length]": float(work),
            **solver_metrics(made, result),
        }

    run = _run(problem, options, made, title, "stress norm", "force / area")
    return replace(run, outer=_step(options)).run(context, extra)


def _step(options: StressOptions | EigenfrequencyOptions) -> MMA | GCMMA:
    """Moving asymptotes that start close: from an even density, stresses of the first large steps settle half as fast."""
    if options.optimizer == "gcmma":
        return GCMMA(move=options.move, first_distance=CLOSE)
    return MMA(move=options.move, first_distance=CLOSE)


def run_eigenfrequency(options: EigenfrequencyOptions, context: JobContext) -> JobResult:
    """Raise the fundamental frequency of a cantilever with a mass at its tip."""
    grid = Grid(nx=options.nx, ny=options.ny)
    tip = int(grid.node(grid.nx, grid.ny // 2))
    masses = np.zeros(grid.num_dofs)
    masses[[2 * tip, 2 * tip + 1]] = options.tip_mass
    problem = VibrationProblem(
        structure=cantilever(grid),
        volume_fraction=options.volume_fraction,
        material=SIMP(young_min=1e-6, penalty=options.penalty),
        filter=DensityFilter(options.filter_radius),
        masses=masses,
    )
    matrices = ModeMatrices(problem)
    run = DesignRun(
        problem=problem,
        solver=DirectModes(matrices=matrices),
        hypergradient=Implicit(DirectEigenAdjoint(matrices=matrices)),
        outer=_step(options),
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity="fundamental period",
        unit="time",
        title=f"cantilever {options.nx}x{options.ny}, volume {options.volume_fraction:g}",
    )
    return run.run(context, lambda result: {"fundamental frequency [1 / time]": 1 / result.value})


def _run(
    problem: Any,
    options: DesignOptions,
    made: Settling,
    title: str,
    quantity: str,
    unit: str,
    before: Sequence[DesignStage] = (),
) -> DesignRun:
    return DesignRun(
        problem=problem,
        solver=made.solver,
        hypergradient=made.hypergradient,
        outer=MMA(move=options.move),
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity=quantity,
        unit=unit,
        load=float(torch.linalg.vector_norm(problem.energy.load)),
        title=title,
        draw=draw_conductor if isinstance(problem, HeatProblem) else draw_density,
        before=before,
    )


def further_problems() -> list[ProblemKind]:
    """The problems of this module, for the registry.

    Example:
        >>> [kind.name.removeprefix("topology.") for kind in further_problems()]
        ['mechanism', 'heat', 'stress', 'eigenfrequency']
    """
    return [
        ProblemKind(
            name="topology.mechanism",
            summary="a compliant force inverter or gripper whose output moves as far as it can",
            options=MechanismOptions,
            run=run_mechanism,
            version="2",
        ),
        ProblemKind(
            name="topology.heat",
            summary="the coolest evenly heated plate or box with a given volume of a good conductor",
            options=HeatOptions,
            run=run_heat,
            version="1",
        ),
        ProblemKind(
            name="topology.stress",
            summary="the L-bracket with the lowest peak stress (p-norm, qp relaxation) at a given volume",
            options=StressOptions,
            run=run_stress,
            version="3",
        ),
        ProblemKind(
            name="topology.eigenfrequency",
            summary="the cantilever with a tip mass whose fundamental frequency is highest at a given volume",
            options=EigenfrequencyOptions,
            run=run_eigenfrequency,
            version="2",
        ),
    ]
