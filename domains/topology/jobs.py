"""The problems of this domain as jobs for campaigns and the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from sciopt import optimize
from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.certificate import certify_design
from sciopt.domains.topology.direct import DirectAdjoint, DirectEquilibrium, FactorCache
from sciopt.domains.topology.filters import DensityFilter, SensitivityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.pictures import draw_density
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.structure import PRESETS
from sciopt.hypergradients import Implicit
from sciopt.outer import MMA, OptimalityCriteria, OptimizeResult, StepRecord
from sciopt.outer.settled import Settled

__all__ = ["ComplianceOptions", "problem_of", "problems", "run_compliance"]

# As in the 88-line code, whose results depend on it: the volume is then met to about 1e-4 of the domain.
PUBLISHED_BISECTION = 1e-3
FEASIBLE = 1e-3  # volume excess at which a run may end, as a share of the domain


class ComplianceOptions(BaseModel):
    """Options of ``topology.compliance``.

    Example:
        >>> ComplianceOptions(preset="bridge", volume_fraction=0.3).filter
        'density'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["mbb", "cantilever", "bridge"] = Field(
        default="mbb", description="structure: half MBB beam, end-loaded cantilever, or bridge with a loaded deck"
    )
    nx: int = Field(default=60, ge=1, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=20, ge=1, le=2000, description="elements from top to bottom [elements]")
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the domain that may be filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    filter_radius: float = Field(default=2.4, ge=1, le=100, description="radius of the filter [element sides]")
    filter: Literal["sensitivity", "density"] = Field(
        default="density", description="density: a part of the problem; sensitivity: the classic heuristic on gradients"
    )
    optimizer: Literal["oc", "mma"] = Field(
        default="oc", description="outer step: optimality criteria as in the 88-line code, or moving asymptotes"
    )
    max_steps: int = Field(default=500, ge=1, le=100_000, description="largest number of design steps")
    change_tolerance: float = Field(
        default=0.01, gt=0, lt=1, description="end when no density moved by more than this in a step [1]"
    )


def problem_of(options: ComplianceOptions) -> ComplianceProblem:
    """The problem that these options state.

    Example:
        >>> problem_of(ComplianceOptions(preset="cantilever", nx=6, ny=4)).structure.name
        'cantilever'
    """
    grid = Grid(nx=options.nx, ny=options.ny)
    if options.filter == "density":
        smooth: DensityFilter | SensitivityFilter = DensityFilter(options.filter_radius)
    else:
        smooth = SensitivityFilter(radius=options.filter_radius, shape=grid.shape)
    return ComplianceProblem(
        structure=PRESETS[options.preset](grid),
        volume_fraction=options.volume_fraction,
        material=SIMP(penalty=options.penalty),
        filter=smooth,
    )


def run_compliance(options: ComplianceOptions, context: JobContext) -> JobResult:
    """Distribute the material of one structure; deterministic but for the direction of the certificate's check."""
    problem = problem_of(options)
    start = problem.start()
    problem.check(start)
    cache = FactorCache(problem.energy)
    base = OptimalityCriteria(multiplier_rtol=PUBLISHED_BISECTION) if options.optimizer == "oc" else MMA()
    elements = problem.structure.grid.num_elements
    # The design whose compliance was seen last is kept, so that objective and published numbers are the same thing.
    outer = Settled(base=problem.step(base), change_atol=options.change_tolerance, feasibility_atol=FEASIBLE * elements)
    volumes: list[float] = []

    def report(record: StepRecord) -> None:
        volumes.append(options.volume_fraction + float(problem.volume(record.outer_params)) / elements)
        context.report_progress(record.step, record.value, {"change": record.change, "volume": volumes[-1]})

    result = optimize(
        problem.bilevel,
        start,
        init=problem.rest(start),
        outer=outer,
        solver=DirectEquilibrium(cache=cache),
        hypergradient=Implicit(DirectAdjoint(cache=cache)),
        bounds=(0.0, 1.0),
        inequality=lambda displacements, density: problem.volume(density),
        max_steps=options.max_steps,
        change_atol=options.change_tolerance,
        feasibility_atol=FEASIBLE * elements,
        callbacks=[report],
    )
    return _describe(options, problem, result, volumes, cache, context)


def _describe(
    options: ComplianceOptions,
    problem: ComplianceProblem,
    result: OptimizeResult,
    volumes: list[float],
    cache: FactorCache,
    context: JobContext,
) -> JobResult:
    hg = result.hypergradient
    assert hg is not None
    density = result.outer_params
    built = problem.physical(density).numpy()
    checked = certify_design(problem, density, hg.value, hg.grad, cache=cache, generator=context.generator)
    force = float(torch.linalg.vector_norm(problem.energy.load))
    history = result.history
    title = (
        f"{options.preset} {options.nx}x{options.ny}, volume {options.volume_fraction:g}, compliance {result.value:.2f}"
    )
    warnings = []
    if result.status.name != "CONVERGED":
        warnings.append(f"The design had not settled: {result.message}. Raise max_steps.")
    if options.filter == "sensitivity":
        warnings.append(
            "The sensitivity filter is a heuristic: the design need not be stationary, so kkt_residual is not small."
        )
    return JobResult(
        objective=result.value,
        status=result.status.name,
        metrics={
            "compliance [force * length]": result.value,
            "volume [1]": volumes[-1],
            "grayness [1]": checked.grayness,
            "steps": result.num_steps,
            "factorizations": cache.factorizations,
            "message": result.message,
        },
        history={
            "step": [float(step) for step in history["step"]],
            "compliance": history["value"],
            "volume": volumes,
            "change": history["change"],
        },
        certificate={
            "inner_residual": float(hg.inner_residual) / force,
            "adjoint_residual": float(hg.adjoint_residual) / force,
            "hypergradient_error": checked.hypergradient_error,
            "hypergradient_bound": hg.error_bound / float(torch.linalg.vector_norm(hg.grad)),
            "volume_error": checked.volume_error,
            "kkt_residual": checked.kkt_residual,
        },
        arrays={"density": built, "design": density.numpy()},
        figures={"density": partial(_draw, density=built, problem=problem, title=title)},
        warnings=warnings,
    )


def _draw(path: Path, *, density, problem: ComplianceProblem, title: str) -> None:
    draw_density(path, density, problem.structure, title=title)


def problems() -> list[ProblemKind]:
    """The problems of this domain, for the registry.

    Example:
        >>> [kind.name for kind in problems()]
        ['topology.compliance']
    """
    return [
        ProblemKind(
            name="topology.compliance",
            summary="the stiffest 2D structure of a given volume (MBB beam, cantilever, bridge)",
            options=ComplianceOptions,
            run=run_compliance,
            version="1",
        )
    ]
