"""The problems of this domain as jobs for campaigns and the command line."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.design import DesignRun
from sciopt.domains.topology.filters import SensitivityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.layout_jobs import layout_problems
from sciopt.domains.topology.linear_jobs import further_problems
from sciopt.domains.topology.map_options import MapOptions, density_map, map_metrics, stages_of
from sciopt.domains.topology.material import RAMP, SIMP
from sciopt.domains.topology.networks.jobs import problems as network_problems
from sciopt.domains.topology.nonlinear.jobs import nonlinear_problems
from sciopt.domains.topology.presets import STRUCTURES
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.settling import settle
from sciopt.domains.topology.solver_options import SolverOptions, check_size, settled_by, solver_metrics
from sciopt.domains.topology.truncation import single_loop
from sciopt.domains.topology.truss_jobs import truss_problems
from sciopt.domains.topology.uncertainty.jobs import problems as uncertain_problems
from sciopt.outer import MMA, OptimalityCriteria, OptimizeResult

__all__ = ["ComplianceOptions", "problem_of", "problems", "run_compliance"]

# As in the 88-line code, whose results depend on it: the volume is then met to about 1e-4 of the domain.
PUBLISHED_BISECTION = 1e-3


class ComplianceOptions(MapOptions, SolverOptions):
    """Options of ``topology.compliance``.

    Example:
        >>> ComplianceOptions(preset="bridge", volume_fraction=0.3).filter
        'density'
    """

    preset: Literal[
        "mbb", "cantilever", "bridge", "michell", "l_bracket", "bracket_3d", "cantilever_3d", "bridge_3d", "tower"
    ] = Field(
        default="mbb",
        description="structure: half MBB beam, end-loaded cantilever, bridge with a loaded deck, Michell's arch, L-bracket; "
        "in three dimensions (give nz) bracket bolted to a wall, cantilever, bridge with a solid deck, tower under weight and "
        "wind",
    )
    nx: int = Field(default=60, ge=1, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=20, ge=1, le=2000, description="elements from top to bottom, 3D: front to back [elements]")
    nz: int | None = Field(
        default=None, ge=1, le=2000, description="elements from bottom to top, for 3D structures alone [elements]"
    )
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the domain that may be filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    filter_radius: float = Field(default=2.4, ge=1, le=100, description="radius of the filter [element sides]")
    filter: Literal["sensitivity", "density", "helmholtz"] = Field(
        default="density",
        description="density and helmholtz (by a differential equation): parts of the problem; sensitivity: the classic "
        "heuristic on gradients",
    )
    optimizer: Literal["oc", "mma"] = Field(
        default="oc", description="outer step: optimality criteria as in the 88-line code, or moving asymptotes"
    )
    max_steps: int = Field(default=500, ge=1, le=100_000, description="largest number of design steps")
    change_tolerance: float = Field(
        default=0.01, gt=0, lt=1, description="end when no density moved by more than this in a step [1]"
    )
    inner_steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="single loop: most multigrid steps for one design, from the last displacements; the certificate says how "
        "far that was from full solves. Without it every design is solved in full",
    )
    gravity: float = Field(
        default=0.0, ge=0, description="weight of a full element; above 0 the material is RAMP [units of load]"
    )

    @model_validator(mode="after")
    def _dimensions_agree(self) -> ComplianceOptions:
        solid = self.preset in ("bracket_3d", "cantilever_3d", "bridge_3d", "tower")
        if solid != (self.nz is not None):
            raise ValueError(
                f"expected `nz` with the 3D structures alone, got preset {self.preset!r} with nz = {self.nz}. "
                f"{'Give nz' if solid else 'Leave nz out'}, or choose another preset."
            )
        if self.filter == "sensitivity" and not (self.plain and self.symmetry == "none"):
            raise ValueError(
                "expected a filter that is part of the problem with projection, symmetry or overhang, got sensitivity. Set "
                "filter: density."
            )
        if self.optimizer == "oc" and not self.plain:
            raise ValueError(
                "expected `optimizer` mma with projection, robust or overhang, got oc. Set optimizer: mma."
            )
        if self.inner_steps is not None and (self.solver == "direct" or not self.plain):
            raise ValueError(
                "expected `inner_steps` with solver multigrid (or auto) and without projection, robust or overhang, got "
                f"solver {self.solver}{'' if self.plain else ' and one of these'}. Leave inner_steps out."
            )
        grid = (self.nx, self.ny) if self.nz is None else (self.nx, self.ny, self.nz)
        if check_size(self, grid):  # what the problem refuses is said here, not by a worker
            problem_of(self)
        return self


def problem_of(options: ComplianceOptions) -> ComplianceProblem:
    """The problem that these options state.

    Example:
        >>> problem_of(ComplianceOptions(preset="cantilever", nx=6, ny=4)).structure.name
        'cantilever'
    """
    grid = Grid(nx=options.nx, ny=options.ny, nz=options.nz)
    if options.filter == "sensitivity":
        smooth = SensitivityFilter(radius=options.filter_radius, shape=grid.shape)
    else:
        smooth = density_map(options, options.filter, options.filter_radius, grid.ndim)
    penalised = SIMP(penalty=options.penalty)
    return ComplianceProblem(
        structure=STRUCTURES[options.preset](grid),
        volume_fraction=options.volume_fraction,
        material=RAMP() if options.gravity > 0 else penalised,
        filter=smooth,
        gravity=options.gravity,
    )


def run_compliance(options: ComplianceOptions, context: JobContext) -> JobResult:
    """Distribute the material of one structure; deterministic but for the direction of the certificate's check."""
    before, problem = stages_of(problem_of(options), options, options.penalty, multigrid=options.multigrid)
    made = (
        settled_by(options, problem.energy) if options.inner_steps is None else settle(problem.energy, multigrid=True)
    )
    sizes = "x".join(map(str, problem.structure.grid.sides))
    # Sharp projections bend within a hundredth: wide steps at the start of a stage tear members apart.
    careful = MMA() if options.plain else MMA(move=0.2, first_distance=0.1)
    run = DesignRun(
        problem=problem,
        solver=made.solver,
        hypergradient=made.hypergradient,
        outer=OptimalityCriteria(multiplier_rtol=PUBLISHED_BISECTION) if options.optimizer == "oc" else careful,
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity="compliance",
        unit="force * length",
        load=float(torch.linalg.vector_norm(problem.energy.load)),
        title=f"{options.preset} {sizes}, volume {options.volume_fraction:g}",
        before=before,
        single_loop=None if options.inner_steps is None else single_loop(made, options.inner_steps),
    )
    if options.filter == "sensitivity":
        run.warnings.append(
            "The sensitivity filter is a heuristic: the design need not be stationary, so kkt_residual is not small."
        )

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        return {**solver_metrics(made, result), **map_metrics(problem, options, result)}

    return run.run(context, extra)


def problems() -> list[ProblemKind]:
    """The problems of this domain, for the registry.

    Example:
        >>> problems()[0].name
        'topology.compliance'
    """
    return [
        ProblemKind(
            name="topology.compliance",
            summary="the stiffest 2D or 3D structure of a given volume (MBB beam, cantilever, bridge, L-bracket, tower, ...)",
            options=ComplianceOptions,
            run=run_compliance,
            version="2",
        ),
        *further_problems(),
        *layout_problems(),
        *truss_problems(),
        *nonlinear_problems(),
        *uncertain_problems(),
        *network_problems(),
    ]
