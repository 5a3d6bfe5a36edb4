"""A problem of no science for the campaign tests: it counts its executions in files and fails as it is told."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from sciopt.campaign import JobContext, JobResult, ProblemKind

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63f80f00010101001bb6ee560000000049454e44ae426082"
)


class Inner(BaseModel, extra="forbid"):
    """Nested options."""

    max_steps: int = Field(default=5, description="steps of the inner solver", ge=1)


class Options(BaseModel, extra="forbid"):
    """Options of the fake problem."""

    x: float = Field(default=1.0, description="position [m]", gt=0, le=100)
    mode: Literal["ok", "raise", "wait", "die", "die_once", "bad_status", "bad_figure", "slow"] = Field(
        default="ok", description="what happens"
    )
    tally: str = Field(default="", description="folder in which each execution leaves a file")
    inner: Inner = Field(default_factory=Inner, description="the inner solver")


def run(options: Options, context: JobContext) -> JobResult:
    """Minimise nothing; say how it went."""
    print("a job may print")
    if options.tally:
        name = f"{options.x:g}-{options.mode}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        (Path(options.tally) / name).touch()
    for step in range(3):
        context.report_progress(step, options.x / (step + 1), {"change": 1.0 / (step + 1)})
    if options.mode == "raise":
        raise ArithmeticError("x <b>cannot</b> be settled")
    if options.mode == "die" or (options.mode == "die_once" and len(list(Path(options.tally).iterdir())) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if options.mode == "wait":  # until the test says go
        while not (Path(options.tally) / "go").exists():
            time.sleep(0.02)
    if options.mode == "slow":
        time.sleep(0.3)
    draw = {"bad_figure": lambda path: path.write_text("not a picture")}.get(
        options.mode, lambda path: path.write_bytes(PNG)
    )
    import torch

    noise = float(torch.rand((), generator=context.generator, dtype=torch.float64))
    (context.workdir / "scratch.txt").write_text("scratch")
    return JobResult(
        objective=options.x**2,
        status="FINE" if options.mode == "bad_status" else "CONVERGED",
        metrics={"noise [1]": noise, "threads": context.threads, "note": "a <b>word</b>"},
        certificate={"inner_residual": 1e-12, "kkt_residual": float("nan")},
        arrays={"density": np.full((2, 3), options.x)},
        figures={"design": draw},
        warnings=["mind the <gap>"],
    )


def problems() -> list[ProblemKind]:
    """What the tests register."""
    return [ProblemKind(name="fake.square", summary="the square of x", options=Options, run=run, version="1")]
