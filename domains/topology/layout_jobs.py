"""Given layouts as a job: what structures of chosen materials weigh on, cell by cell, without any optimization."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sciopt import Minimize, best_response
from sciopt.campaign.registry import JobContext, JobResult, ProblemKind
from sciopt.domains.topology.energy import ElasticEnergy
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.pictures import draw_density
from sciopt.domains.topology.presets import STRUCTURES
from sciopt.domains.topology.settling import settle

__all__ = ["LayoutOptions", "layout_problems", "run_layout"]

MOST_ELEMENTS = 20_000  # of one layout: settled by a factorization each
RATIO = 1e9  # of the stiffest to the softest cell


class LayoutOptions(BaseModel):
    """Options of ``topology.layout``.

    Example:
        >>> LayoutOptions(layouts=[[[1.0, 0.1], [0.1, 1.0]]]).refine
        4
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layouts: list[list[list[float]]] = Field(
        min_length=1,
        description="layouts to settle, each the rows of its cells from the top, each row Young's moduli from the left [force "
        "/ area]",
    )
    preset: Literal["mbb", "cantilever", "bridge", "michell"] = Field(
        default="cantilever", description="structure: half MBB beam, end-loaded cantilever, bridge, Michell's arch"
    )
    refine: int = Field(default=4, ge=1, le=100, description="elements along each side of a cell [elements]")
    poisson: float = Field(default=0.3, gt=-1, lt=0.5, description="Poisson's ratio of all materials [1]")

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return len(self.layouts[0]), len(self.layouts[0][0]) if self.layouts[0] else 0

    @model_validator(mode="after")
    def _layouts_fit(self) -> LayoutOptions:
        rows, columns = self.cells
        if any(len(layout) != rows or any(len(row) != columns for row in layout) for layout in self.layouts):
            raise ValueError(f"expected `layouts` of {rows} rows with {columns} cells like the first. Complete them.")
        if rows * self.refine < 2 or columns * self.refine < 2:
            raise ValueError(f"expected two elements along each side, got {rows} x {columns} cells. Raise refine.")
        if rows * columns * self.refine**2 > MOST_ELEMENTS:
            raise ValueError(
                f"expected at most {MOST_ELEMENTS:,} elements, got {rows} x {columns} cells with `refine` {self.refine}. "
                "Lower it."
            )
        values = [value for layout in self.layouts for row in layout for value in row]
        if not 0 < max(values) <= RATIO * min(values):
            raise ValueError(
                f"expected moduli > 0 within a factor of {RATIO:.0e}, got {min(values):g} to {max(values):g}. Give void a "
                "small one."
            )
        return self


def run_layout(options: LayoutOptions, context: JobContext) -> JobResult:
    """Settle every layout and measure the work of the load; nothing is drawn at random."""
    moduli = torch.tensor(options.layouts, dtype=torch.float64)
    fine = moduli.repeat_interleave(options.refine, -2).repeat_interleave(options.refine, -1)
    structure = STRUCTURES[options.preset](Grid(nx=fine.shape[-1], ny=fine.shape[-2]))
    energy = ElasticEnergy(structure=structure, modulus=_itself, poisson=options.poisson)
    made = settle(energy)
    problem, rest = Minimize(energy, batch_ndim=energy.batch_ndim), fine.new_zeros(energy.load.shape)
    work, residual = [], 0.0
    with torch.no_grad():
        for index, layout in enumerate(fine):  # each has a factorization of its own
            solution = best_response(
                problem, layout, init=rest, solver=made.solver, hypergradient=made.hypergradient, throw=False
            )
            found = energy.work(solution.value, layout).sum()
            work.append(float(found))
            residual = max(residual, float(solution.residual_norm.max()) / float(torch.linalg.vector_norm(energy.load)))
            context.report_progress(index, work[-1], {})
    settled = all(map(math.isfinite, work)) and residual < 1e-6
    best = int(np.argmin(work))

    def picture(path: Path) -> None:
        draw_density(path, (fine[best] / fine.max()).numpy(), structure, title=f"{options.preset}, the stiffest layout")

    return JobResult(
        objective=work[best],
        status="CONVERGED" if settled else "STAGNATED",
        metrics={"layouts": len(work), "stiffest layout": best},
        certificate={"inner_residual": residual},
        arrays={"compliance": np.array(work)},
        figures={"layout": picture},
        warnings=[] if settled else ["A layout did not settle to 1e-6 of the load: bring its moduli closer together."],
    )


def _itself(modulus: torch.Tensor) -> torch.Tensor:
    return modulus


def layout_problems() -> list[ProblemKind]:
    """The problem of this module, for the registry.

    Example:
        >>> layout_problems()[0].name
        'topology.layout'
    """
    return [
        ProblemKind(
            name="topology.layout",
            summary="compliance of given layouts of materials, cell by cell: an oracle for searches, no optimization",
            options=LayoutOptions,
            run=run_layout,
            version="1",
        )
    ]
