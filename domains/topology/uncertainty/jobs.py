"""Design under uncertainty as a job for campaigns and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.builder import Box
from sciopt.domains.topology.design import DesignRun
from sciopt.domains.topology.filters import DensityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.pictures import draw_density
from sciopt.domains.topology.presets import STRUCTURES
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.solver_options import check_sides
from sciopt.domains.topology.uncertainty.assess import StochasticValue, compare, mean_value_problem, wait_and_see
from sciopt.domains.topology.uncertainty.loads import GaussianLoad, RandomDirection, RandomPosition
from sciopt.domains.topology.uncertainty.materials import Combined, RandomStiffness
from sciopt.domains.topology.uncertainty.pictures import draw_comparison
from sciopt.domains.topology.uncertainty.problem import StochasticProblem, settle_scenarios
from sciopt.domains.topology.uncertainty.sampling import AbstractUncertainty, Sampling
from sciopt.outer import (
    GCMMA,
    MMA,
    AbstractRisk,
    CVaR,
    Expectation,
    MeanDeviation,
    OptimalityCriteria,
    OptimizeResult,
    WorstCase,
)

__all__ = ["UncertainOptions", "run_uncertain", "uncertain_problem"]


class UncertainOptions(BaseModel):
    """Options of ``topology.uncertain``.

    Example:
        >>> UncertainOptions(uncertain="direction", angle=15.0).scenarios
        128
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: Literal["mbb", "cantilever", "bridge", "michell", "l_bracket", "cantilever_3d", "bridge_3d"] = Field(
        default="bridge",
        description="structure: half MBB beam, end-loaded cantilever, bridge with a loaded deck, Michell's arch, L-bracket; "
        "in three dimensions (give nz) cantilever, bridge with a solid deck",
    )
    nx: int = Field(default=60, ge=2, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=30, ge=2, le=2000, description="elements from top to bottom, 3D: front to back [elements]")
    nz: int | None = Field(
        default=None, ge=1, le=2000, description="elements from bottom to top, for 3D structures alone [elements]"
    )
    volume_fraction: float = Field(default=0.3, gt=0, lt=1, description="share of the domain that may be filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    filter_radius: float = Field(default=1.5, ge=1, le=100, description="radius of the density filter [element sides]")
    uncertain: Literal["direction", "position", "field", "stiffness", "direction and stiffness"] = Field(
        default="direction",
        description="what is random: the load's direction and size, its place along the loaded edge, a Gaussian field on the "
        "loaded nodes, a field of Young's modulus, or the first and the last together",
    )
    angle: float = Field(default=15.0, ge=0, le=180, description="standard deviation of the load's direction [degrees]")
    magnitude: float = Field(default=0.0, ge=0, le=2, description="standard deviation of the load's size, relative [1]")
    spread: float = Field(
        default=0.3, gt=0, le=2, description="relative standard deviation of the load field or of Young's modulus [1]"
    )
    length: float = Field(default=10.0, gt=0, description="correlation length of random fields [element sides]")
    scenarios: int = Field(default=128, ge=1, le=100_000, description="quasi-random scenarios the design is made for")
    held_out: int = Field(default=512, ge=2, le=1_000_000, description="independent scenarios it is assessed with")
    risk: Literal["expectation", "cvar", "worst case", "mean and deviation"] = Field(
        default="expectation", description="what is minimised over the scenarios"
    )
    level: float = Field(default=0.9, ge=0, lt=1, description="CVaR is the mean of the worst 1 - level [1]")
    deviations: float = Field(default=1.0, ge=0, le=10, description="standard deviations added to the mean [1]")
    smoothing: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="smoothing of cvar and worst case, relative to the expected compliance of the start; 0: exact [1]",
    )
    perfect_information: int = Field(
        default=0, ge=0, le=1000, description="scenarios to optimise one by one for the value of perfect information"
    )
    optimizer: Literal["auto", "mma", "gcmma", "oc"] = Field(
        default="auto",
        description="outer step: moving asymptotes, their globally convergent form, or optimality criteria, not for cvar and "
        "worst case; auto: oc for the expectation, else mma",
    )
    max_steps: int = Field(default=300, ge=1, le=100_000, description="largest number of design steps")
    change_tolerance: float = Field(
        default=0.01, gt=0, lt=1, description="end when no density moved by more than this in a step [1]"
    )

    @model_validator(mode="after")
    def _agree(self) -> UncertainOptions:
        solid = self.preset in ("cantilever_3d", "bridge_3d")
        if solid != (self.nz is not None):
            raise ValueError(
                f"expected `nz` with the 3D structures alone, got preset {self.preset!r} with nz = {self.nz}. "
                f"{'Give nz' if solid else 'Leave nz out'}, or choose another preset."
            )
        if self.optimizer == "oc" and self.risk in ("cvar", "worst case"):
            raise ValueError(
                f"expected `optimizer` mma or gcmma with risk {self.risk!r}, got oc, which takes away what "
                "the worst scenarios do not need at the moment. Set optimizer: mma."
            )
        if "direction" in self.uncertain and self.angle == 0 and self.magnitude == 0:
            raise ValueError(
                "expected `angle` or `magnitude` > 0 with a random direction, got 0. Nothing is random so."
            )
        if check_sides("auto", self.nx, self.ny, self.nz):  # what the problem refuses is said here, not by a worker
            base, what = uncertain_problem(self)
            Sampling(count=1).draw(what, base.structure, torch.Generator().manual_seed(0))
        return self


def uncertain_problem(options: UncertainOptions) -> tuple[ComplianceProblem, AbstractUncertainty]:
    """The deterministic problem that these options state, and what is uncertain about it.

    Example:
        >>> base, what = uncertain_problem(UncertainOptions(uncertain="position", nx=8, ny=4))
        >>> base.structure.name, type(what).__name__
        ('bridge', 'RandomPosition')
    """
    grid = Grid(nx=options.nx, ny=options.ny, nz=options.nz)
    base = ComplianceProblem(
        structure=STRUCTURES[options.preset](grid),
        volume_fraction=options.volume_fraction,
        material=SIMP(penalty=options.penalty),
        filter=DensityFilter(options.filter_radius, grid.ndim),
    )
    edges = {
        "mbb": Box(y=grid.ny),
        "cantilever": Box(x=grid.nx),
        "bridge": Box(y=0),
        "michell": Box(y=0),
        "l_bracket": Box(x=grid.nx, y=(0, max(1, round(0.4 * grid.ny)))),
        "cantilever_3d": Box(x=grid.nx, z=0),
        "bridge_3d": Box(z=0),
    }
    turned = partial(RandomDirection, angle=options.angle, magnitude=options.magnitude)
    material = RandomStiffness(spread=options.spread, length=options.length)
    kinds: dict[str, Callable[[], AbstractUncertainty]] = {
        "direction": turned,
        "position": lambda: RandomPosition(region=edges[options.preset]),
        "field": lambda: GaussianLoad(spread=options.spread, length=options.length),
        "stiffness": lambda: material,
        "direction and stiffness": lambda: Combined(load=turned(), material=material),
    }
    return base, kinds[options.uncertain]()


def risk_of(options: UncertainOptions, scale: float) -> AbstractRisk:
    """The risk that these options state; ``scale`` is the expected compliance of the start."""
    width = options.smoothing * scale
    risks: dict[str, AbstractRisk] = {
        "expectation": Expectation(),
        "cvar": CVaR(level=options.level, smoothing=width),
        "worst case": WorstCase(smoothing=width),
        "mean and deviation": MeanDeviation(factor=options.deviations),
    }
    return risks[options.risk]


def design_run(problem: StochasticProblem, options: UncertainOptions, quantity: str, title: str) -> DesignRun:
    """How a stochastic problem is run; the loads drawn are the nominal ones."""
    how = settle_scenarios(problem)
    usual = "oc" if options.risk == "expectation" else "mma"
    chosen = usual if options.optimizer == "auto" else options.optimizer

    def draw(path: Any, density: Any, _: Any, *, title: str) -> None:
        draw_density(path, density, problem.base.structure, title=title)

    return DesignRun(
        problem=problem,
        solver=how.solver,
        hypergradient=how.hypergradient,
        outer={"oc": OptimalityCriteria(), "mma": MMA(), "gcmma": GCMMA()}[chosen],
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity=quantity,
        unit="force * length",
        load=float(torch.linalg.vector_norm(problem.energy.load)),
        title=title,
        draw=draw,
    )


def run_uncertain(options: UncertainOptions, context: JobContext) -> JobResult:
    """Design for many scenarios and for their mean, and assess both with held-out scenarios."""
    base, uncertain = uncertain_problem(options)
    structure = base.structure
    made = Sampling(count=options.scenarios).draw(uncertain, structure, context.generator)
    unseen = Sampling(count=options.held_out, quasi=False).draw(uncertain, structure, context.generator)
    scale = compare(base, made, stochastic=base.start(), deterministic=base.start()).stochastic.expected
    problem = StochasticProblem(base=base, scenarios=made, risk=risk_of(options, scale))
    silent = replace(context, report_progress=lambda step, objective, extra: None)
    sizes = "x".join(map(str, structure.grid.sides))
    title = f"{options.preset} {sizes}, volume {options.volume_fraction:g}, random {options.uncertain}"

    def designed(alone: StochasticProblem) -> Tensor:
        return design_run(alone, options, "compliance", title).optimize(silent)[0].outer_params

    deterministic = designed(mean_value_problem(base, made))
    found: list[StochasticValue] = []

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        value = compare(base, unseen, stochastic=result.outer_params, deterministic=deterministic, level=options.level)
        found.append(value)
        out = described(value, problem)
        if options.perfect_information:
            some = unseen.rows(slice(0, options.perfect_information))
            best = wait_and_see(base, some, designed)
            ours = value.stochastic.values[: best.values.numel()]
            out["value of perfect information [force * length]"] = float((ours - best.values).mean())
            out["scenarios optimised one by one"] = best.values.numel()
        return out

    quantity = "compliance risk" if options.risk != "expectation" else "expected compliance"
    result = design_run(problem, options, quantity, title).run(context, extra)
    (value,) = found
    with torch.no_grad():
        other = base.physical(deterministic).numpy()
    figure = partial(
        draw_comparison, stochastic=result.arrays["density"], deterministic=other, value=value, title=title
    )
    return replace(
        result,
        figures={"comparison": figure, **result.figures},
        arrays={
            **result.arrays,
            "deterministic_density": other,
            "held_out_compliances": value.stochastic.values.numpy(),
            "held_out_compliances_of_deterministic": value.deterministic.values.numpy(),
        },
        warnings=[*result.warnings, *value.warnings()],
    )


def described(value: StochasticValue, problem: StochasticProblem) -> dict[str, float | int | str | bool]:
    """The numbers of a comparison by name and unit."""
    out: dict[str, float | int | str | bool] = {}
    unit = "[force * length]"
    for name, seen in (("", value.stochastic), ("mean-value design: ", value.deterministic)):
        out |= {
            f"{name}held-out expected compliance {unit}": seen.expected,
            f"{name}standard error of the expectation {unit}": seen.standard_error,
            f"{name}held-out CVaR at {seen.level:g} {unit}": seen.cvar,
            f"{name}standard error of the CVaR {unit}": seen.cvar_error,
            f"{name}held-out worst compliance {unit}": seen.worst,
            f"{name}unsupported scenarios": seen.unsupported,
        }
    return out | {
        f"value of the stochastic solution {unit}": value.value,
        f"standard error of that value {unit}": value.standard_error,
        f"CVaR saved by the stochastic solution {unit}": value.cvar_value,
        "scenarios": problem.scenarios.count,
        "held-out scenarios": len(value.stochastic.values),
        "solves per design step": len(problem.energy.load),
        f"smoothing gap of the risk, at most {unit}": problem.risk.gap_bound(problem.scenarios.count),
    }


def problems() -> list[ProblemKind]:
    """The problems of this module, for the registry.

    Example:
        >>> [kind.name for kind in problems()]
        ['topology.uncertain']
    """
    return [
        ProblemKind(
            name="topology.uncertain",
            summary="the stiffest structure under loads or a material that are random: mean, CVaR or worst case, and what "
            "designing for all scenarios is worth",
            options=UncertainOptions,
            run=run_uncertain,
            version="1",
        )
    ]
