"""The published compliances of the half MBB beam, to the printed digits, and a plain loop run beside ours."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import label

from sciopt import BilevelProblem, hypergradient, optimize
from sciopt.campaign.registry import JobContext, JobResult
from sciopt.domains.topology import DirectAdjoint, DirectEquilibrium, FactorCache
from sciopt.domains.topology.filters import unsupported
from sciopt.domains.topology.jobs import ComplianceOptions, problem_of, problems, run_compliance
from sciopt.hypergradients import Implicit
from sciopt.outer import MMA
from tests.benchmarks.table import Measured, bar, peer
from tests.domains.topology.checks import too_thin
from tests.domains.topology.eighty_eight import PUBLISHED, half_mbb
from tests.domains.topology.inverter_loop import half_inverter
from tests.domains.topology.test_inverter import by_the_package

HALF_A_DIGIT = "<= 0.005"  # the paper prints two decimals


@lru_cache
def design(nx: int, ny: int, kind: str, optimizer: str = "oc") -> JobResult:
    """One published run through the campaign job."""
    options = {
        "nx": nx,
        "ny": ny,
        "filter_radius": 0.04 * nx,
        "filter": kind,
        "max_steps": 2000,
        "optimizer": optimizer,
    }
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


def side_by_side(nx: int, ny: int) -> Measured:
    """Largest difference of any step's compliance from the plain loop's; infinite for another number of steps."""
    worst, notes = 0.0, []
    for kind in ("sensitivity", "density"):
        result = design(nx, ny, kind)
        history = half_mbb(nx, ny, 0.04 * nx, density_filter=kind == "density")[1]
        notes.append(
            f"{kind} {result.metrics['steps']} steps, the plain loop {len(history)}, both to {history[-1]:.4f}"
        )
        if result.metrics["steps"] != len(history):
            worst = float("inf")
            continue
        ours = np.asarray(result.history["compliance"][:-1])
        worst = max(worst, float(np.max(np.abs(ours / np.asarray(history) - 1))))
    return Measured(worst, "; ".join(notes))


@bar("88-line MBB beam 150x50: compliances of every step against a plain loop", tier="validate", bar="<= 1e-8")
def medium_side_by_side() -> Measured:
    return side_by_side(150, 50)


@bar("88-line MBB beam 300x100: compliances of every step against a plain loop", tier="validate", bar="<= 1e-8")
def large_side_by_side() -> Measured:
    """Three minutes of the plain loop; ours are those of the row above."""
    return side_by_side(300, 100)


@bar("Force inverter 40x20: displacements of every step against the published loop", tier="validate", bar="<= 1e-6")
def inverter_side_by_side() -> Measured:
    density, history = half_inverter(40, 20, 1.2)
    result, mechanism, problem = by_the_package(40, 20, 1.2, len(history))
    worst = float(np.max(np.abs(np.asarray(result.history["value"][:-1]) - history)))
    apart = float(np.abs(result.outer_params.numpy() - density).max())
    joined = mechanism.joined(problem.physical(result.outer_params).numpy())
    note = f"{len(history)} steps, output {history[-1]:.4f}; densities apart by {apart:.1e}; in one piece: {joined}"
    return Measured(worst, note)


@bar(
    "MBB beam 60x20 by MMA: compliance above the published one of optimality criteria",
    tier="validate",
    bar=HALF_A_DIGIT,
)
def by_moving_asymptotes() -> Measured:
    found = design(60, 20, "density", "mma")
    published = float(PUBLISHED[60, 20]["density"])
    return Measured(found.objective - published, f"{found.objective:.4f} in {found.metrics['steps']} steps")


@bar("MBB beam 60x20 by MMA: compliance after 40 steps against mmapy", tier="validate", bar="<= 1e-4")
def beside_mmapy() -> Measured:
    """Svanberg's own code in Python, with the same derivatives, normalised in the same way."""
    mmapy, steps, move = peer("mmapy"), 40, 0.2
    problem = problem_of(ComplianceOptions())
    bilevel: BilevelProblem = problem.bilevel
    cache, start = FactorCache(problem.energy), problem.start()
    solver, method = DirectEquilibrium(cache=cache), Implicit(DirectAdjoint(cache=cache))
    ours = optimize(
        bilevel,
        start,
        init=problem.rest(start),
        outer=MMA(move=move),
        solver=solver,
        hypergradient=method,
        bounds=(0.0, 1.0),
        inequality=lambda state, density: problem.volume(density),
        max_steps=steps,
        certificate=False,
    )
    n, largest, values = start.numel(), 0.0, []
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    points = [start.numpy().reshape(-1, 1)] * 3  # now, before, and before that
    low, high = np.zeros((n, 1)), np.ones((n, 1))
    for k in range(1, steps + 2):
        x = torch.from_numpy(points[0].reshape(start.shape).copy())
        found = hypergradient(bilevel, x, init=problem.rest(x), solver=solver, hypergradient=method, certificate=False)
        values.append(float(found.value))
        leaf = x.clone().requires_grad_()
        volume = problem.volume(leaf)
        (volume_grad,) = torch.autograd.grad(volume.sum(), leaf)
        largest, size = max(largest, float(found.grad.abs().max())), float(volume_grad.max())
        moved, *rest = mmapy.mmasub(
            1,
            n,
            k,
            points[0],
            np.zeros((n, 1)),
            np.ones((n, 1)),
            points[1],
            points[2],
            one * values[-1] / largest,
            found.grad.numpy().reshape(-1, 1) / largest,
            one * float(volume) / size,
            volume_grad.numpy().reshape(1, -1) / size,
            low,
            high,
            1.0,
            zero,
            1000 * one,
            one,
            move=move,
        )
        low, high = rest[-2], rest[-1]
        points = [moved, *points[:2]]
    note = f"ours {ours.value:.4f}, mmapy {values[-1]:.4f}"
    return Measured(abs(ours.value / values[-1] - 1), note)


def job(name: str, options: dict[str, object]) -> JobResult:
    """One run of a job of this domain."""
    kind = {kind.name: kind for kind in problems()}[name]
    with tempfile.TemporaryDirectory() as folder:
        context = JobContext(
            seed=0,
            generator=torch.Generator().manual_seed(0),
            workdir=Path(folder),
            report_progress=lambda step, value, extra: None,
            threads=1,
        )
        return kind.run(kind.options.model_validate(options), context)


@bar("MBB beam 60x20, projection continued to beta = 32: grayness", tier="validate", bar="<= 0.01")
def projected() -> Measured:
    result = job("topology.compliance", {"nx": 60, "ny": 20, "projection": 32, "optimizer": "mma", "max_steps": 100})
    return Measured(
        float(result.metrics["grayness [1]"]),
        f"compliance {result.objective:.4f} in {result.metrics['steps']} steps, volume {result.metrics['volume [1]']:.5f}",
    )


@bar("MBB beam 60x20 printed in three directions: unsupported elements", tier="validate", bar="<= 0")
def printed() -> Measured:
    options = {"nx": 60, "ny": 20, "projection": 32, "optimizer": "mma", "max_steps": 60}
    found = {to: job("topology.compliance", {**options, "overhang": to}) for to in ("+y", "-y", "+x")}
    worst = max(int(unsupported(r.arrays["density"] > 0.5, to).sum()) for to, r in found.items())
    note = ", ".join(
        f"{to} compliance {r.objective:.1f}, grayness {r.metrics['grayness [1]']:.1%}" for to, r in found.items()
    )
    return Measured(worst, note)


@bar(
    "robust force inverter 40x20: elements of members below two elements, and pieces beyond one",
    tier="validate",
    bar="<= 0",
)
def robust() -> Measured:
    options = {"nx": 40, "ny": 20, "filter_radius": 3.0, "projection": 32, "move": 0.1, "max_steps": 100}
    result = job("topology.mechanism", {**options, "robust": 0.25})
    solid = result.arrays["density"] > 0.5
    labels: Any = label(solid)  # joined through sides: a hinge of one node parts the design
    note = f"output {result.objective:.4f}, intermediate {result.metrics['intermediate objective']:.4f}"
    return Measured(too_thin(solid, 2) + int(labels[1]) - 1, note)
