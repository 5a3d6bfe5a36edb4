"""Given layouts as a job: a bar in closed form, mirror images, and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sciopt.campaign.registry import JobContext, JobResult, find


def settled(options: dict, folder: Path) -> JobResult:
    kind = find("topology.layout")
    context = JobContext(
        seed=0, generator=torch.Generator().manual_seed(0), workdir=folder,
        report_progress=lambda step, objective, extra: None, threads=1,
    )  # fmt: skip
    return kind.run(kind.options(**options), context)


def test_a_slender_cantilever_bends_as_beams_do(tmp_path: Path) -> None:
    """Compliance ``F u = F^2 L^3 / (3 E I)`` with a shear part below a percent; halving E doubles it."""
    result = settled({"layouts": [[[2.0] * 20], [[1.0] * 20]], "refine": 8}, tmp_path)
    stiff, soft = result.arrays["compliance"]
    length, height = 160.0, 8.0
    assert soft == pytest.approx(length**3 / (3 * height**3 / 12), rel=0.02)  # four-node elements, 8 over the height
    assert stiff == pytest.approx(soft / 2, rel=1e-9) and result.objective == stiff
    assert result.status == "CONVERGED" and float(result.certificate["inner_residual"]) < 1e-8
    result.figures["layout"](tmp_path / "layout.png")
    assert (tmp_path / "layout.png").stat().st_size > 1000


def test_layouts_are_settled_one_by_one(tmp_path: Path) -> None:
    layouts = np.random.default_rng(0).uniform(0.1, 1.0, (3, 2, 4)).tolist()
    together = settled({"layouts": layouts}, tmp_path).arrays["compliance"]
    alone = [settled({"layouts": [layout]}, tmp_path).objective for layout in layouts]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    finer = np.repeat(np.repeat(layouts[0], 2, 0), 2, 1).tolist()  # the same elements, cut into other cells
    assert settled({"layouts": [finer], "refine": 2}, tmp_path).objective == pytest.approx(alone[0], rel=1e-12)
