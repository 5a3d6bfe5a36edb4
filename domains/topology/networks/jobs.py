"""Network designs as jobs: weights of a prior on finite elements, and the mesh-free form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from sciopt.bilevel import hypergradient
from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.certificate import DISCONNECTED, certify_design, joined
from sciopt.domains.topology.design import DesignRun
from sciopt.domains.topology.export import design_files
from sciopt.domains.topology.filters import DensityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.networks.convolutional import ConvolutionalPrior
from sciopt.domains.topology.networks.coordinates import CoordinateNetwork
from sciopt.domains.topology.networks.meshfree import DisplacementNetwork, MeshFreeProblem
from sciopt.domains.topology.networks.parametrization import AbstractParametrization, ElementLogits
from sciopt.domains.topology.networks.plate import Plate
from sciopt.domains.topology.networks.problem import ParametrizedProblem
from sciopt.domains.topology.networks.training import MeshFreeTraining
from sciopt.domains.topology.pictures import draw_density
from sciopt.domains.topology.presets import STRUCTURES
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.settling import settle
from sciopt.domains.topology.solver_options import SolverOptions, check_sides, settled_by, solver_metrics
from sciopt.outer import OptimizeResult, ScipyLBFGSB

__all__ = ["MeshFreeOptions", "NetworkOptions", "problems", "run_meshfree", "run_network"]

FINER = 4  # times as many elements along each axis in the second picture
DRAWN_ELEMENTS = 4_000_000


class NetworkOptions(SolverOptions):
    """Options of ``topology.network``.

    Example:
        >>> NetworkOptions(parametrization="coordinate").outer_method
        'adam'
    """

    parametrization: Literal["conv", "coordinate", "elements"] = Field(
        default="conv",
        description="what makes the densities: a convolutional prior, a network of the coordinates, or one logit per element",
    )
    optimizer: Literal["auto", "adam", "lbfgs"] = Field(
        default="auto", description="outer method; auto: lbfgs, for the coordinate network adam"
    )
    learning_rate: float = Field(default=0.01, gt=0, le=10, description="of adam [1]")
    symmetric: bool = Field(
        default=False,
        description="mirror the coordinate network's design about the middle of the first axis (the height)",
    )
    preset: Literal["mbb", "cantilever", "bridge", "michell", "l_bracket", "cantilever_3d", "bridge_3d", "tower"] = (
        Field(default="mbb", description="structure, as in topology.compliance; those in three dimensions want nz")
    )
    nx: int = Field(default=60, ge=1, le=2000, description="elements from left to right [elements]")
    ny: int = Field(default=20, ge=1, le=2000, description="elements from top to bottom, 3D: front to back [elements]")
    nz: int | None = Field(default=None, ge=1, le=2000, description="elements from bottom to top, for 3D [elements]")
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the domain that is filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    filter_radius: float = Field(
        default=1.5, ge=1, le=100, description="radius of the density filter; 1: none [element sides]"
    )
    max_steps: int = Field(default=200, ge=1, le=100_000, description="largest number of design steps")
    change_tolerance: float = Field(
        default=0.002, gt=0, lt=1, description="end when no density moved by more than this in five steps in a row [1]"
    )

    @property
    def outer_method(self) -> str:
        """The optimizer that ``auto`` stands for, or the one named."""
        if self.optimizer != "auto":
            return self.optimizer
        return "adam" if self.parametrization == "coordinate" else "lbfgs"

    def model_post_init(self, context: Any, /) -> None:
        """Check what belongs together."""
        if (self.nz is not None) != (self.preset in ("cantilever_3d", "bridge_3d", "tower")):
            raise ValueError(
                f"expected `nz` with the 3D structures alone, got preset {self.preset!r} with nz = {self.nz}. Give or drop nz."
            )
        if self.symmetric and self.parametrization != "coordinate":
            raise ValueError(
                f"expected `symmetric` with the coordinate network, got it with {self.parametrization!r}. Set "
                "parametrization: coordinate, or symmetric: false."
            )
        if check_sides(
            self.solver, self.nx, self.ny, self.nz
        ):  # what the problem refuses is said here, not by a worker
            base_of(self)


class MeshFreeOptions(BaseModel):
    """Options of ``topology.meshfree``.

    Example:
        >>> MeshFreeOptions(preset="bridge").length
        2.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: Literal["cantilever", "bridge", "column"] = Field(
        default="cantilever",
        description="plate of height 1: held on the left and loaded in the middle fifth of the right side; held left and "
        "right and loaded on the whole top; held at the bottom and pushed sideways at the middle of the top",
    )
    length: float = Field(default=2.0, gt=0, le=20, description="length of the plate [heights]")
    volume_fraction: float = Field(default=0.5, gt=0, lt=1, description="share of the plate that is filled [1]")
    penalty: float = Field(default=3.0, ge=1, le=10, description="exponent of the SIMP interpolation [1]")
    symmetric: bool = Field(default=False, description="mirror the design about the plate's middle height")
    width: int = Field(default=32, ge=1, le=1024, description="neurons per hidden layer of the density network")
    displacement_width: int = Field(
        default=48, ge=1, le=1024, description="neurons per hidden layer of the displacement network"
    )
    frequency: float = Field(
        default=10.0, gt=0, le=1000, description="largest wave number of the density at the start [radians per height]"
    )
    samples: int = Field(default=28, ge=2, le=1024, description="samples along the height of the plate")
    steps: int = Field(default=150, ge=1, le=100_000, description="steps of the density network")
    inner_steps: int = Field(
        default=25, ge=1, le=10_000, description="steps of the displacement network in each of them"
    )
    final_steps: int = Field(default=250, ge=1, le=100_000, description="steps of the displacement network at the end")
    learning_rate: float = Field(default=0.015, gt=0, le=1, description="of Adam for the density network [1]")
    resolution: int = Field(
        default=64, ge=2, le=1000, description="elements along the height of the finite-element check and the picture"
    )


def base_of(options: NetworkOptions) -> ComplianceProblem:
    """The problem on finite elements that these options state.

    Example:
        >>> base_of(NetworkOptions(nx=6, ny=4)).structure.name
        'mbb'
    """
    grid = Grid(nx=options.nx, ny=options.ny, nz=options.nz)
    return ComplianceProblem(
        structure=STRUCTURES[options.preset](grid),
        volume_fraction=options.volume_fraction,
        material=SIMP(penalty=options.penalty),
        filter=DensityFilter(options.filter_radius, grid.ndim) if options.filter_radius > 1 else None,
    )


def prior_of(options: NetworkOptions) -> AbstractParametrization:
    """The parametrization that these options name."""
    if options.parametrization == "conv":
        return ConvolutionalPrior()
    if options.parametrization == "coordinate":
        return CoordinateNetwork(mirror=(0,) if options.symmetric else ())
    return ElementLogits()


def run_network(options: NetworkOptions, context: JobContext) -> JobResult:
    """Train the weights of a prior on the compliance of a structure; the context's generator draws their start."""
    base = base_of(options)
    grid, prior = base.structure.grid, prior_of(options)
    weights = prior.initial(grid.shape, context.generator)
    problem = ParametrizedProblem(base=base, parametrization=prior, weights=weights)
    made = settled_by(options, problem.energy)
    adam = partial(torch.optim.Adam, lr=options.learning_rate)
    run = DesignRun(
        problem=problem,
        solver=made.solver,
        hypergradient=made.hypergradient,
        outer=adam if options.outer_method == "adam" else ScipyLBFGSB(),
        max_steps=options.max_steps,
        change_tolerance=options.change_tolerance,
        quantity="compliance",
        unit="force * length",
        load=float(torch.linalg.vector_norm(problem.energy.load)),
        title=f"{options.preset} {'x'.join(map(str, grid.sides))}, {options.parametrization}",
    )

    def extra(result: OptimizeResult) -> dict[str, float | int | str | bool]:
        return {"weights": sum(leaf.numel() for leaf in weights.values()), **solver_metrics(made, result)}

    result = run.run(context, extra)
    if not isinstance(prior, CoordinateNetwork) or prod(grid.shape) * FINER**grid.ndim > DRAWN_ELEMENTS:
        return result
    sizes = {axis: FINER * n for axis, n in (("nx", grid.nx), ("ny", grid.ny), ("nz", grid.nz)) if n is not None}
    fine = Grid(**sizes)
    trained = {name.removeprefix("weights."): torch.from_numpy(a) for name, a in result.arrays.items() if "." in name}
    finer = ParametrizedProblem(
        base=replace(base, structure=STRUCTURES[options.preset](fine), filter=None),
        parametrization=prior,
        weights=trained,
    )
    with torch.no_grad():
        sampled = finer.physical(trained).numpy()
    draw = partial(
        draw_density, density=sampled, structure=finer.structure, title=f"the same weights on {FINER} times the grid"
    )
    return replace(
        result,
        arrays={**result.arrays, "resampled": sampled},
        figures={**result.figures, "resampled": draw},
    )


def plate_of(options: MeshFreeOptions) -> Plate:
    """The plate that these options name.

    Example:
        >>> plate_of(MeshFreeOptions(preset="bridge")).held
        ('left', 'right')
    """
    if options.preset == "bridge":
        return Plate(length=options.length, held=("left", "right"), loaded="top", segment=(0.0, 1.0))
    if options.preset == "column":
        return Plate(length=options.length, held=("bottom",), loaded="top", force=(1.0, 0.0))
    return Plate(length=options.length)


def run_meshfree(options: MeshFreeOptions, context: JobContext) -> JobResult:
    """Train both networks, then judge the design by finite elements that neither has seen; the certificate is theirs."""
    mirror = (0,) if options.symmetric else ()
    problem = MeshFreeProblem(
        plate=plate_of(options),
        volume_fraction=options.volume_fraction,
        material=SIMP(young_min=1e-3, penalty=options.penalty),
        displacement=DisplacementNetwork(width=options.displacement_width),
        density=CoordinateNetwork(width=options.width, frequency=options.frequency, mirror=mirror),
    )
    plan = MeshFreeTraining(
        steps=options.steps,
        samples=options.samples,
        inner_steps=options.inner_steps,
        final_steps=options.final_steps,
        outer=partial(torch.optim.Adam, lr=options.learning_rate),
    )
    made = plan.run(problem, context.generator, report=lambda step, value: context.report_progress(step, value, {}))
    grid = Grid(nx=max(1, round(options.resolution * options.length)), ny=options.resolution)
    if abs(grid.nx / grid.ny - options.length) > 1e-9:  # a grid of the plate's very proportions
        problem = replace(problem, plate=replace(problem.plate, length=grid.nx / grid.ny))
    with torch.no_grad():
        built = problem.design({name: leaf.double() for name, leaf in made.density.items()}, grid)
    judge = problem.finite_elements(grid)
    settling = settle(judge.energy)
    total = hypergradient(
        judge.bilevel, built, init=judge.rest(built), solver=settling.solver, hypergradient=settling.hypergradient
    )
    compliance, load = float(total.value), float(torch.linalg.vector_norm(judge.energy.load))
    checked = certify_design(judge, built, total.value, total.grad, solver=settling.solver, generator=context.generator)
    title = f"mesh-free {options.preset}, volume {options.volume_fraction:g}, compliance {compliance:.2f}"
    gap = made.compliance / compliance - 1
    warnings = ["The number of steps is the only rule by which training ends."]
    if abs(gap) > 0.05:
        warnings.append(
            f"The displacement network's compliance is off by {gap:.1%} from finite elements. Raise final_steps, width or "
            "samples."
        )
    connected = joined(judge.structure, built.numpy())
    warnings += [DISCONNECTED[name] for name, whole in connected.items() if not whole]
    return JobResult(
        objective=compliance,
        status="MAX_STEPS",
        metrics={
            "compliance [force * length]": compliance,
            "mesh-free compliance [force * length]": made.compliance,
            "volume [1]": float(built.mean()),
            "grayness [1]": checked.grayness,
            "steps": made.step,
        },
        history=made.history,
        certificate={
            "meshfree_error": gap,
            "inner_residual": float(total.inner_residual.max()) / load,
            "adjoint_residual": float(total.adjoint_residual.max()) / load,
            "hypergradient_error": checked.hypergradient_error,
            "volume_error": checked.volume_error,
            "kkt_residual": checked.kkt_residual,
            "grayness": checked.grayness,
            **connected,
        },
        arrays={"density": built.numpy(), **{f"weights.{n}": leaf.numpy() for n, leaf in made.density.items()}},
        figures={"density": partial(draw_density, density=built.numpy(), structure=judge.structure, title=title)},
        files=design_files(built.numpy(), made.history),
        warnings=warnings,
    )


def problems() -> list[ProblemKind]:
    """The problems of this package, for the registry.

    Example:
        >>> [kind.name for kind in problems()]
        ['topology.network', 'topology.meshfree']
    """
    return [
        ProblemKind(
            name="topology.network",
            summary="the stiffest structure whose densities a network makes: convolutional prior or coordinate network",
            options=NetworkOptions,
            run=run_network,
            version="1",
        ),
        ProblemKind(
            name="topology.meshfree",
            summary="the stiffest plate without a mesh: a displacement network settles, a density network is designed",
            options=MeshFreeOptions,
            run=run_meshfree,
            version="1",
        ),
    ]
