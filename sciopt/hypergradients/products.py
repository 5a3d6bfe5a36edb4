"""Products with derivatives of the residual F(x, args), differentiable under every transform.

Forward products are two reverse products (a jvp inside an autograd function's own jvp would break forward mode).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciopt.problem.system import System

__all__ = ["jacobian_vector", "pull_args", "push"]


def push(function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """Derivative of ``function`` at ``primals`` along ``tangents`` (None: zero), by double reverse mode."""
    live = [i for i, t in enumerate(tangents) if t is not None]

    def restricted(*chosen: Tensor) -> Tensor:
        full = list(primals)
        for i, value in zip(live, chosen, strict=True):
            full[i] = value
        return function(*full)

    chosen = [primals[i] for i in live]
    out, pull = torch.func.vjp(restricted, *chosen)[:2]
    if not live:
        return torch.zeros_like(out)
    again = torch.func.vjp(pull, torch.zeros_like(out))[1]
    return again(tuple(tangents[i] for i in live))[0]


def pull_args(
    function: Callable[..., Tensor], args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """``cotangent^T d function / d args`` for the wanted arguments, None for the others."""
    live = [i for i, need in enumerate(needs) if need]
    if not live:
        return (None,) * len(args)

    def restricted(*chosen: Tensor) -> Tensor:
        full = list(args)
        for i, value in zip(live, chosen, strict=True):
            full[i] = value
        return function(*full)

    pull = torch.func.vjp(restricted, *(args[i] for i in live))[1]
    out: list[Tensor | None] = [None] * len(args)
    for i, value in zip(live, pull(cotangent), strict=True):
        out[i] = value
    return tuple(out)


def jacobian_vector(system: System, x: Tensor, args: Sequence[Tensor], vector: Tensor, *, transpose: bool) -> Tensor:
    """``A v`` or ``A^T v`` with A = dF/dx at ``(x, args)``, as a function of all of them."""

    def residual(y: Tensor) -> Tensor:
        return system.residual(y, args)

    if transpose:
        return torch.func.vjp(residual, x)[1](vector)[0]
    return push(residual, [x], [vector])
