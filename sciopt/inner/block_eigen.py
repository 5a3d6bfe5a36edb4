"""Locally optimal block iteration for a few extreme eigenpairs of a symmetric pencil."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.inner.rows import any_row, select
from sciopt.linsolve import LinearOperator
from sciopt.solution import Status

__all__ = ["lobpcg"]


def lobpcg(
    stiffness: LinearOperator,
    mass: LinearOperator | None,
    start: Tensor,
    sign: float,
    rank: int,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The ``rank``-th smallest eigenpair of ``sign * A``: value, vector, status codes, spectrum size, steps.

    The block holds ``rank + 4`` vectors, the start among them; the others are a fixed trigonometric pattern, so that the
    same data give the same bits. Rayleigh-Ritz works on an M-orthonormal basis of iterates, residuals and last moves.

    References:
        Knyazev. "Toward the optimal preconditioned eigensolver". SIAM J. Sci. Comput. 23 (2001). Hetmaniuk, Lehoucq.
        "Basis selection in LOBPCG". J. Comput. Phys. 218 (2006).
    """
    n = start.shape[-1]
    block = min(rank + 4, n)
    grid = torch.arange(1, n + 1, dtype=start.dtype, device=start.device).unsqueeze(-1)
    waves = torch.sin(grid * torch.arange(1, block, dtype=start.dtype, device=start.device) * 2.399963 + grid * grid)
    x = torch.cat([start.unsqueeze(-1), waves.expand(*start.shape[:-1], n, block - 1)], -1)
    x = torch.where(torch.isfinite(x), x, 1.0)
    move = x.new_zeros(*x.shape[:-1], 0)
    code = torch.full(start.shape[:-1], int(Status.RUNNING), dtype=torch.int64, device=start.device)
    steps = torch.zeros_like(code)
    x, values, _, mx, ax = rayleigh_ritz(stiffness, mass, x, block, sign)
    largest = values.abs().amax(-1)
    for _ in range(max_steps):
        residual = ax - mx * values.unsqueeze(-2)
        size = torch.linalg.vector_norm(residual[..., rank], dim=-1)
        length = torch.linalg.vector_norm(mx[..., rank], dim=-1)
        running = code == int(Status.RUNNING)
        done = size <= atol + rtol * values[..., rank].abs() * length
        code = torch.where(running & done, int(Status.CONVERGED), code)
        code = torch.where(running & ~torch.isfinite(size), int(Status.NONFINITE), code)
        running = code == int(Status.RUNNING)
        if not any_row(running):
            break
        steps = steps + running
        basis = torch.cat([x, torch.where(torch.isfinite(residual), residual, 0.0), move], -1)
        new, new_values, coefficients, new_mx, new_ax = rayleigh_ritz(stiffness, mass, basis, block, sign)
        largest = torch.maximum(largest, coefficients[1])
        step = new - x @ (mx.mT @ new)  # the part of the new block that left the old one
        x, mx, ax = select(running, new, x), select(running, new_mx, mx), select(running, new_ax, ax)
        values, move = select(running, new_values, values), step
    code = torch.where(code == int(Status.RUNNING), int(Status.MAX_STEPS), code)
    value = values[..., rank]
    distance = (values - value.unsqueeze(-1)).abs()
    others = torch.arange(block, device=x.device) != rank
    gap = torch.where(others, distance, torch.inf).amin(-1)
    multiple = (code == int(Status.CONVERGED)) & (gap <= 10 * max(rtol, torch.finfo(x.dtype).eps ** 0.5) * value.abs())
    code = torch.where(multiple, int(Status.SINGULAR), code)
    return sign * value, x[..., rank], code, largest, steps


def rayleigh_ritz(
    stiffness: LinearOperator, mass: LinearOperator | None, basis: Tensor, block: int, sign: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """The ``block`` lowest Ritz pairs of the span, M-orthonormal, with their images under M and A."""
    q = torch.linalg.qr(basis)[0]
    image = q if mass is None else mass.matmat(q)
    projected = 0.5 * (q.mT @ image + (q.mT @ image).mT)
    scale, rotation = torch.linalg.eigh(projected)
    keep = scale > 1e-14 * scale[..., -1:]
    rotation = rotation * torch.where(keep, torch.where(keep, scale, 1.0).rsqrt(), 0.0).unsqueeze(-2)
    q, image = q @ rotation, image @ rotation
    product = sign * stiffness.matmat(q)
    small = q.mT @ product
    small = 0.5 * (small + small.mT)
    top = torch.linalg.vector_norm(small, dim=(-2, -1))
    # directions that carry no mass are moved out of the way
    small = small + torch.diag_embed(torch.where(keep, 0.0, 1e3 * top.unsqueeze(-1)))
    values, vectors = torch.linalg.eigh(torch.where(torch.isfinite(small), small, 0.0))
    vectors = vectors[..., :block]
    return q @ vectors, values[..., :block], (vectors, top), image @ vectors, product @ vectors
