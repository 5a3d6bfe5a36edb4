"""Stiff kinetics with gradients: a batch against one system, and against diffrax."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciopt import best_response
from sciopt.domains.implicit import robertson
from sciopt.steppers import Kvaerno5, Rodas5P
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, PeerMissing, bar, peer

Method = type[Rodas5P] | type[Kvaerno5]
BATCH = 256
RTOL, ATOL = 1e-6, 1e-10
OTHER = "SCIOPT_DIFFRAX_PYTHON"  # an interpreter that has jax and diffrax; default: this one


def rates(batch: int) -> Tensor:
    """Rate constants spread by a fifth around Robertson's, ``(batch, 3)``."""
    spread = np.random.default_rng(0).standard_normal((batch, 3))
    return torch.tensor(np.array([0.04, 3e7, 1e4]) * np.exp(0.2 * spread))


def gradient(k: Tensor, rtol: float, atol: float, method: Method = Rodas5P) -> tuple[Tensor, Tensor]:
    """States at t = 100 and the gradient of the sum of ``y1 + 1e4 y2`` in the rate constants."""
    example = robertson(batch_ndim=1).at(torch.tensor([0.0, 100.0], dtype=torch.float64))
    k = k.clone().requires_grad_()
    start = example.init.expand(len(k), 3).clone()
    value = best_response(example.problem, k, init=start, solver=method(rtol=rtol, atol=atol)).value[-1]
    (value[:, 0] + 1e4 * value[:, 1]).sum().backward()
    assert k.grad is not None
    return value.detach(), k.grad


def single_thread() -> None:
    torch.set_num_threads(1)


@bar("stiff: Robertson to t = 100 with its gradient, 256 systems / 1", tier="bench", bar="<= 2x")
def batch_against_one() -> Measured:
    single_thread()
    many = rates(BATCH)
    times = side_by_side(
        {
            "one": lambda: gradient(many[:1], RTOL, ATOL),
            "many": lambda: gradient(many, RTOL, ATOL),
        }
    )
    return Measured(
        times["many"] / times["one"], f"{times['many']:.2f} s / {times['one']:.2f} s, Rodas5P at {RTOL:.0e}"
    )


@functools.cache
def truths() -> tuple[Tensor, Tensor]:
    """States and gradient by tight tolerances."""
    return gradient(rates(BATCH), 1e-10, 1e-15, Kvaerno5)


@functools.cache
def by_diffrax(rtol: float, atol: float) -> dict[str, np.ndarray]:
    """`diffrax_robertson` run by the interpreter that has diffrax."""
    interpreter = os.environ.get(OTHER)
    if interpreter is None:
        peer("diffrax")
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "rates.npy", Path(folder) / "out.npz"
        np.save(given, rates(BATCH).numpy())
        script = Path(__file__).with_name("diffrax_robertson.py")
        words = [interpreter or sys.executable, str(script), str(given), str(out), str(rtol), str(atol)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerMissing(f"diffrax did not run: {done.stderr.strip().splitlines()[-1:]}")
        return dict(np.load(out))


def against_diffrax(method: Method) -> Measured:
    """Our time over theirs, at the loosest tolerance of ours whose worst error is not above theirs."""
    theirs = by_diffrax(RTOL, ATOL)
    single_thread()
    k = rates(BATCH)
    truth, slope = truths()

    def worst(value: Tensor) -> float:
        return ((value - truth) / truth).abs().max().item()

    goal = worst(torch.from_numpy(theirs["value"]))
    rtol = RTOL
    while worst(gradient(k, rtol, ATOL * rtol / RTOL, method)[0]) > goal and rtol > 1e-10:
        rtol /= 3
    times = side_by_side({"ours": lambda: gradient(k, rtol, ATOL * rtol / RTOL, method)}, repeat=3)
    grad = gradient(k, rtol, ATOL * rtol / RTOL, method)[1]
    off = [((g - slope) / slope).abs().max().item() for g in (grad, torch.from_numpy(theirs["grad"]))]
    seconds = float(np.median(theirs["seconds"]))
    note = f"{times['ours']:.2f} s / {seconds:.2f} s at worst error {goal:.0e}, rtol {rtol:.0e} / {RTOL:.0e}"
    return Measured(times["ours"] / seconds, f"{note}; gradients off by {off[0]:.0e} / {off[1]:.0e}")


@bar("stiff: Robertson with gradient, 256 systems, Rodas5P / diffrax Kvaerno5 (vmap, warm)", tier="bench", bar="<= 3x")
def rodas_against_diffrax() -> Measured:
    return against_diffrax(Rodas5P)


@bar("stiff: Robertson with gradient, 256 systems, Kvaerno5 / diffrax Kvaerno5 (vmap, warm)", tier="bench", bar="<= 3x")
def kvaerno_against_diffrax() -> Measured:
    return against_diffrax(Kvaerno5)
