"""Kernels of wide networks: their matrix with its ridge solve, and bidirectional learning by the step."""

from __future__ import annotations

import time
from math import pi

import torch
from torch import Tensor

from sciopt.domains.offline import BDI, bidirectional_problem, tf_bind_8
from sciopt.inner import fit_kernel
from sciopt.kernels import NTK, RBF, AbstractKernel, DenseNetwork
from sciopt.memory import PeakMemory
from sciopt.solution import Status
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, bar, peer

POINTS, INPUTS, HIDDEN = 10_000, 24, 5


def data(count: int = POINTS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.sin(x[:, 0]) + x[:, 1] * x[:, 2]


def plain(x: Tensor, y: Tensor) -> Tensor:
    """What one writes down first: the recursion on whole matrices, a dense solve."""
    s = x @ x.mT / INPUTS
    t = s
    for _ in range(HIDDEN):
        d = s.diagonal().sqrt()
        c = (s / (d[:, None] * d)).clamp(-1, 1)
        angle = torch.arccos(c)
        flat = (pi - angle) / (2 * pi)
        s = d[:, None] * d * (torch.sin(angle) / (2 * pi) + c * flat)
        t = s + t * flat
    return torch.linalg.solve(t + 1e-3 * torch.eye(len(x), dtype=x.dtype), y)


def ours(kernel: AbstractKernel, x: Tensor, y: Tensor) -> Tensor:
    return fit_kernel(kernel, x, y, 1e-3).coefficients


@bar("NTK of 10,000 points in float64 with its ridge solve / plain dense code", tier="bench", bar="<= 1x")
def against_plain() -> Measured:
    x, y = data()
    kernel = NTK(DenseNetwork(hidden_layers=HIDDEN))
    times = side_by_side({"ours": lambda: ours(kernel, x, y), "plain": lambda: plain(x, y)}, repeat=1, warmup=0)
    return Measured(times["ours"] / times["plain"], f"ours {times['ours']:.1f} s, plain {times['plain']:.1f} s")


@bar("RBF regression of 10,000 points in float64 / gpytorch", tier="bench", bar="<= 1x")
def against_gpytorch() -> Measured:
    gpytorch = peer("gpytorch")
    x, y = data()

    def theirs() -> Tensor:
        covariance = gpytorch.kernels.RBFKernel().double()
        covariance.lengthscale = 5.0
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            return covariance(x).add_jitter(1e-3).solve(y.unsqueeze(-1)).squeeze(-1)

    kernel = RBF(length_scale=5.0)
    times = side_by_side({"ours": lambda: ours(kernel, x, y), "gpytorch": theirs}, repeat=1, warmup=0)
    return Measured(times["ours"] / times["gpytorch"], f"ours {times['ours']:.1f} s, theirs {times['gpytorch']:.1f} s")


def matrix_free(count: int, dtype: torch.dtype) -> Measured:
    """Conjugate gradients on a kernel that is never stored: peak memory above the data, in GB."""
    x, y = (part.to(dtype) for part in data(count))
    kernel = NTK(DenseNetwork(hidden_layers=HIDDEN))
    start = time.perf_counter()
    with PeakMemory([x]) as peak:
        fit = fit_kernel(kernel, x, (y - y.mean()) / y.std(), 1e-2 * kernel.diagonal(x).mean(), rtol=1e-5)
    if fit.status not in (Status.CONVERGED, Status.STAGNATED):
        raise RuntimeError(f"the solve ended {fit.status.name} at {fit.residual:.1e}")
    note = f"{time.perf_counter() - start:.0f} s, {fit.num_steps} steps, residual {fit.residual:.1e}, {fit.status.name}"
    return Measured(peak.bytes / 1e9, f"{note}; the matrix would take {count**2 * x.element_size() / 1e9:.1f} GB")


@bar("NTK ridge of 33,000 points in float64 by CG, kernel not stored: peak memory", tier="bench", bar="<= 1 GB")
def many() -> Measured:
    return matrix_free(33_000, torch.float64)


@bar("NTK ridge of 65,000 points in float32 by CG, kernel not stored: peak memory", tier="bench", bar="<= 1 GB")
def more() -> Measured:
    return matrix_free(65_000, torch.float32)


@bar("BDI on TF-Bind-8: 200 steps of 128 designs", tier="bench", bar="<= 60 s")
def steps() -> Measured:
    task = tf_bind_8()
    visible = task.visible()
    start = time.perf_counter()
    stated = bidirectional_problem(BDI(), task.space, visible)
    solved = time.perf_counter()
    stated.search(stated.relaxation.points(visible.best(128)), 200)
    done = time.perf_counter()
    fit = stated.fit
    assert fit is not None
    note = (
        f"before them one solve over {len(stated.points):,} points: {solved - start:.0f} s, {fit.num_steps} steps of CG"
    )
    return Measured(done - solved, note)
