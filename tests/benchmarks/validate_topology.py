"""The published compliances of the half MBB beam, to the printed digits, and a plain loop run beside ours."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from sciopt.campaign.registry import JobContext, JobResult
from sciopt.domains.topology.jobs import ComplianceOptions, run_compliance
from tests.benchmarks.table import Measured, bar
from tests.domains.topology.eighty_eight import PUBLISHED, half_mbb

HALF_A_DIGIT = "<= 0.005"  # the paper prints two decimals


def design(nx: int, ny: int, kind: str) -> JobResult:
    """One published run through the campaign job."""
    options = {"nx": nx, "ny": ny, "filter_radius": 0.04 * nx, "filter": kind, "max_steps": 2000}
    with tempfile.TemporaryDirectory() as folder:
        context = JobContext(
            seed=0,
            generator=torch.Generator().manual_seed(0),
            workdir=Path(folder),
            report_progress=lambda step, value, extra: None,
            threads=1,
        )
        return run_compliance(ComplianceOptions.model_validate(options), context)


def deviation(nx: int, ny: int) -> Measured:
    """Largest difference from the published compliance over both filters."""
    found = {kind: design(nx, ny, kind) for kind in ("sensitivity", "density")}
    worst = max(abs(result.objective - float(PUBLISHED[nx, ny][kind])) for kind, result in found.items())
    note = ", ".join(f"{kind} {r.objective:.4f} in {r.metrics['steps']} steps" for kind, r in found.items())
    return Measured(worst, note)


@bar("88-line MBB beam 60x20: distance from the published compliance", tier="validate", bar=HALF_A_DIGIT)
def small() -> Measured:
    return deviation(60, 20)


@bar("88-line MBB beam 150x50: distance from the published compliance", tier="validate", bar=HALF_A_DIGIT)
def medium() -> Measured:
    return deviation(150, 50)


@bar("88-line MBB beam 300x100: distance from the published compliance", tier="validate", bar=HALF_A_DIGIT)
def large() -> Measured:
    return deviation(300, 100)


@bar("88-line MBB beam 150x50: compliances of every step against a plain loop", tier="validate", bar="<= 1e-8")
def side_by_side() -> Measured:
    worst, notes = 0.0, []
    for kind in ("sensitivity", "density"):
        result = design(150, 50, kind)
        history = half_mbb(150, 50, 6.0, density_filter=kind == "density")[1]
        if result.metrics["steps"] != len(history):
            return Measured(float("inf"), f"{kind}: {result.metrics['steps']} steps, the plain loop {len(history)}")
        ours = np.asarray(result.history["compliance"][:-1])
        worst = max(worst, float(np.max(np.abs(ours / np.asarray(history) - 1))))
        notes.append(f"{kind} {len(history)} steps in both")
    return Measured(worst, "; ".join(notes))
