"""Designs that deform far, as jobs for campaigns and the command line."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.design import DesignRun, DesignStage
from sciopt.domains.topology.export import write_vti
from sciopt.domains.topology.filters import DensityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.mechanisms import MECHANISMS
from sciopt.domains.topology.nonlinear.finger_jobs import PneumaticOptions, run_pneumatic
from sciopt.domains.topology.nonlinear.materials import (
    LinearElastic,
    NeoHookean,
    SaintVenantKirchhoff,
)
from sciopt.domains.topology.nonlinear.pictures import draw_deformed
from sciopt.domains.topology.nonlinear.problem import LargeDeformationProblem
from sciopt.domains.topology.nonlinear.soft_jobs import SoftBodyOptions, run_soft_body
from sciopt.domains.topology.nonlinear.stepping import failure_advice
from sciopt.domains.topology.objectives import OutputDisplacement
from sciopt.domains.topology.presets import STRUCTURES
from sciopt.domains.topology.solver_options import check_sides
from sciopt.outer import MMA, OptimizeError, OptimizeResult
from sciopt.response import best_response

__all__ = ["LAWS", "LargeDeformationOptions", "large_deformation_of", "nonlinear_problems", "run_large_deformation"]

LAWS: dict[str, type[LinearElastic] | type[SaintVenantKirchhoff] | type[NeoHookean]] = {
    "linear": LinearElastic,
    "saint_venant_kirchhoff": SaintVenantKirchhoff,
    "neo_hookean": NeoHookean,
}
SOLID = ("cantilever_3d", "bridge_3d", "tower")
RTOL = 1e-10  # of the inner solves, so that differences of objectives mean something
EASED = 0.1  # share of the load in the first stage: even grey designs carry it


class LargeDeformationOptions(BaseModel):
    """Options of ``topology.large_deformation``.

    Example:
        >>> LargeDeformationOptions(preset="inverter", load=0.5).law
        'neo_hookean'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: Literal[
        "mbb", "cantilever", "bridge", "michell", "inverter", "gripper", "cantilever_3d", "bridge_3d", "tower"
    ] = Field(
        default="cantilever",
        description="structure to stiffen (3D ones with nz), or mechanism whose output is to move as far as it can",
    )
    law: Literal["linear", "saint_venant_kirchhoff", "neo_hookean"] = Field(
        default="neo_hookean", description="energy density of the material; in 2D the strain is plane"
    )
    load: float = Field(
        default=0.01,
        ge=1e-9,
        description="size of the load, which matters here: a design for a small one is the linear one "
        "[modulus * element side, in 3D * element side^2]",
    )
    nx: int = Field(default=60, ge=2, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=20, ge=2, le=2000, description="elements from bottom to top, 3D: front to back [elements]")
    nz: int | None = Field(
        default=None, ge=2, le=2000, description="elements from bottom to top, for 3D structures alone [elements]"
    )
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the domain that may be filled [1]")
    poisson: float = Field(default=0.3, gt=-1, lt=0.5, description="Poisson's ratio at rest [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    void: float = Field(
        default=1e-6,
        gt=0,
        le=1e-2,
        description="modulus of empty elements, which stay linear, relative to full ones [1]",
    )
    filter_radius: float = Field(default=1.5, ge=1, le=100, description="radius of the density filter [element sides]")
    solver: Literal["auto", "direct", "multigrid"] = Field(
        default="auto",
        description="of Newton's directions: sparse LU, or multigrid; auto takes multigrid from 2,000 unknowns on in 3D, "
        "from 25,000 in 2D",
    )
    move: float = Field(default=0.1, gt=0, le=1, description="largest change of a density in one step of MMA [1]")
    easy_steps: int = Field(
        default=15, ge=0, le=100_000, description="design steps at a tenth of the load, before those at all of it"
    )
    max_steps: int = Field(
        default=100, ge=1, le=100_000, description="largest number of design steps at the whole load"
    )
    change_tolerance: float = Field(
        default=0.01, gt=0, lt=1, description="end when no density moved by more than this in a step [1]"
    )

    @model_validator(mode="after")
    def _dimensions_agree(self) -> LargeDeformationOptions:
        solid = self.preset in SOLID
        if solid != (self.nz is not None):
            raise ValueError(
                f"expected `nz` with the 3D structures alone, got preset {self.preset!r} with nz = {self.nz}. "
                f"{'Give nz' if solid else 'Leave nz out'}, or choose another preset."
            )
        if check_sides(
            self.solver, self.nx, self.ny, self.nz
        ):  # what the problem refuses is said here, not by a worker
            large_deformation_of(self).start()
        return self


def large_deformation_of(options: LargeDeformationOptions, share: float = 1.0) -> LargeDeformationProblem:
    """The problem that these options state, under a share of its load.

    Example:
        >>> large_deformation_of(LargeDeformationOptions(nx=6, ny=4)).structure.load.sum().item()
        -0.01
    """
    grid = Grid(nx=options.nx, ny=options.ny, nz=options.nz)
    objective = None
    if options.preset in MECHANISMS:
        mechanism = MECHANISMS[options.preset](grid)
        structure, objective = mechanism.structure, OutputDisplacement(weights=mechanism.output)
    else:
        structure = STRUCTURES[options.preset](grid)
    return LargeDeformationProblem(
        structure=replace(structure, load=share * options.load * structure.load),
        volume_fraction=options.volume_fraction,
        law=LAWS[options.law](poisson=options.poisson),
        material=SIMP(penalty=options.penalty, young_min=options.void),
        filter=DensityFilter(options.filter_radius, grid.ndim),
        objective=objective,
    )


def run_large_deformation(options: LargeDeformationOptions, context: JobContext) -> JobResult:
    """Distribute the material of a structure or mechanism that deforms far."""
    problem = large_deformation_of(options)
    multigrid = None if options.solver == "auto" else options.solver == "multigrid"
    made = problem.settling(multigrid=multigrid, rtol=RTOL)
    stages = []
    if options.easy_steps:
        easy = large_deformation_of(options, EASED)
        settled = easy.settling(multigrid=multigrid, rtol=RTOL)
        stages.append(
            DesignStage(
                problem=easy, solver=settled.solver, hypergradient=settled.hypergradient, max_steps=options.easy_steps
            )
        )
    stiff = problem.objective is None
    sizes = "x".join(map(str, problem.structure.grid.sides))
    run = DesignRun(
        problem=problem,
        solver=made.solver,
        hypergradient=made.hypergradient,
        outer=MMA(move=options.move),
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity="end compliance" if stiff else "output displacement",
        unit="force * length" if stiff else "length",
        load=float(torch.linalg.vector_norm(problem.body.force)),
        title=f"{options.preset} {sizes}, load {options.load:g}, {options.law}",
        before=stages,
    )
    seen: list[OptimizeResult] = []

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        seen.append(result)
        moved = problem.body.nodal(result.inner_params)
        return {
            "largest displacement [element sides]": float(torch.linalg.vector_norm(moved, dim=-1).max()),
            "solver": "sparse LU" if made.cache is None else "multigrid",
            **linear_prediction(problem, result),
        }

    try:
        out = run.run(context, extra)
    except OptimizeError as error:
        raise RuntimeError(f"topology.large_deformation: {failure_advice(error.solution)} ({error})") from error
    result = seen[0]
    density = out.arrays["density"]
    title = f"{run.title}: {run.quantity} {result.value:.4g}"
    drawn = partial(
        draw_deformed, body=problem.body, displacements=result.inner_params, density=density.reshape(-1), title=title
    )
    nodal = problem.body.nodal(result.inner_params).numpy()
    moved = partial(_write_deformed, problem=problem, density=density, nodal=nodal if nodal.ndim == 2 else nodal[0])
    return replace(out, figures={**out.figures, "deformed": drawn}, files={**out.files, "displacements.vti": moved})


def _write_deformed(path: Path, *, problem: LargeDeformationProblem, density: np.ndarray, nodal: np.ndarray) -> None:
    """Densities with the displacements of the nodes, to warp by."""
    grid = problem.structure.grid
    shape = tuple(n + 1 for n in grid.shape)
    # nodes of 2D grids are numbered down the columns
    field = nodal.reshape(grid.nx + 1, grid.ny + 1, 2).swapaxes(0, 1) if grid.ndim == 2 else nodal.reshape(*shape, 3)
    write_vti(path, density, point_data={"displacement": field})


def linear_prediction(problem: LargeDeformationProblem, result: OptimizeResult) -> dict[str, float | int | str | bool]:
    """What linear elasticity says of the same design."""
    linear = replace(problem, law=LinearElastic(poisson=problem.law.poisson))
    with torch.no_grad():
        state = best_response(
            linear.bilevel.inner,
            result.outer_params,
            init=linear.rest(result.outer_params),
            solver=linear.settling(first_step=1.0).solver,
        )
        value = linear.bilevel.loss(state.value, result.outer_params)
    return {"the same, if it were linear": float(value)}


def nonlinear_problems() -> list[ProblemKind]:
    """The problems of this package, for the registry.

    Example:
        >>> [kind.name.removeprefix("topology.") for kind in nonlinear_problems()]
        ['large_deformation', 'soft_body', 'pneumatic']
    """
    return [
        ProblemKind(
            name="topology.large_deformation",
            summary="the stiffest structure, or the mechanism with the longest stroke, at large deformations",
            options=LargeDeformationOptions,
            run=run_large_deformation,
            version="1",
        ),
        ProblemKind(
            name="topology.soft_body",
            summary="what a moving soft arm is made of and how its muscle pulled, recovered from its trajectory",
            options=SoftBodyOptions,
            run=run_soft_body,
            version="1",
        ),
        ProblemKind(
            name="topology.pneumatic",
            summary="the soft finger that bends furthest when its chamber is blown up (a load that follows the wall)",
            options=PneumaticOptions,
            run=run_pneumatic,
            version="1",
        ),
    ]
