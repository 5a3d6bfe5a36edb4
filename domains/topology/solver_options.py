"""The solver option of jobs, and what is checked of sizes before any job starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sciopt.domains.topology.assembly import QuadraticEnergy
from sciopt.domains.topology.settling import Settling, settle
from sciopt.outer import OptimizeResult

__all__ = ["SolverOptions", "check_sides", "check_size", "settled_by", "solver_metrics"]

MOST_ELEMENTS = 4_000_000
DIRECT_ELEMENTS = {2: 1_000_000, 3: 40_000}  # of sparse LU: minutes, and gigabytes of factors
CHEAP_ELEMENTS = 20_000  # up to which a structure is built to check options


class SolverOptions(BaseModel):
    """How the structure settles.

    Example:
        >>> SolverOptions().multigrid is None, SolverOptions(solver="multigrid").multigrid
        (True, True)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    solver: Literal["auto", "direct", "multigrid"] = Field(
        default="auto",
        description="inner solver: direct is sparse LU (exact, for small structures); multigrid is preconditioned conjugate "
        "gradients to 1e-8 (time and memory in proportion to the elements); auto takes multigrid from 5,000 unknowns on in "
        "3D, from 20,000 in 2D",
    )

    @property
    def multigrid(self) -> bool | None:
        """For `settle`."""
        return None if self.solver == "auto" else self.solver == "multigrid"


def settled_by(options: SolverOptions, energy: QuadraticEnergy) -> Settling:
    """The solver that these options name.

    Example:
        >>> from sciopt.domains.topology import SIMP, ElasticEnergy, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> settled_by(SolverOptions(solver="multigrid"), energy).multigrid
        True
    """
    return settle(energy, multigrid=options.multigrid)


def solver_metrics(made: Settling, result: OptimizeResult) -> dict[str, float | int | str | bool]:
    """Which solver it was and what it did: factorizations, or hierarchies and steps of conjugate gradients."""
    if not made.multigrid:
        return {"solver": "direct", "factorizations": made.prepared}
    steps = result.history["inner_steps"]
    return {
        "solver": "multigrid",
        "hierarchies": made.prepared,
        "inner steps, mean": round(sum(steps) / len(steps), 2),
        "inner steps, most": int(max(steps)),
    }


def check_sides(solver: Literal["auto", "direct", "multigrid"], nx: int, ny: int, nz: int | None) -> bool:
    """`check_size` of a solver and a grid by their options.

    Example:
        >>> check_sides("auto", 60, 20, None), check_sides("multigrid", 100, 50, 50)
        (True, False)
    """
    return check_size(SolverOptions(solver=solver), (nx, ny) if nz is None else (nx, ny, nz))


def check_size(options: SolverOptions, sides: tuple[int, ...]) -> bool:
    """Refuse grids that no job finishes; whether the grid is so small that its structure may be built to check it.

    Args:
        options: with the solver.
        sides: elements along each axis.

    Raises:
        ValueError: for fewer than two elements, and for more than the solver takes.

    Example:
        >>> check_size(SolverOptions(), (60, 20))
        True
    """
    total = 1
    for side in sides:
        total *= side
    shape = " x ".join(map(str, sides))
    if total < 2:
        raise ValueError(f"expected at least two elements, got {shape}. There is nothing to design in one; raise nx.")
    if total > MOST_ELEMENTS:
        raise ValueError(
            f"expected at most {MOST_ELEMENTS:,} elements, got {shape} = {total:,}. Coarsen the grid: lower nx, ny, nz."
        )
    most = DIRECT_ELEMENTS[len(sides)]
    if options.solver == "direct" and total > most:
        raise ValueError(
            f"expected at most {most:,} elements with `solver` direct in {len(sides)} dimensions, got {shape} = {total:,}. "
            "Set solver: multigrid."
        )
    return total <= CHEAP_ELEMENTS
