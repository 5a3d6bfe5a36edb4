"""Row-wise arithmetic that the solvers share: every row of the batch is one problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sciopt.solution import Status
from sciopt.transforms import under_transform

__all__ = [
    "any_row",
    "base_state",
    "check_growth",
    "dot",
    "norm",
    "quotient",
    "rounding_floor",
    "safe_norm",
    "select",
    "solve_rows",
    "track_curvature",
    "unset",
    "verdict",
]

GROWTH = 1e6  # a residual that has grown by this factor will not come back


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows, ``(*batch,)``."""
    return torch.linalg.vecdot(a, b)


def norm(v: Tensor) -> Tensor:
    """Euclidean norms of the rows, cut off from the graph."""
    return torch.linalg.vector_norm(v.detach(), dim=-1)


def safe_norm(v: Tensor) -> Tensor:
    """Euclidean norms of the rows with derivative zero at zero, to any order."""
    square = dot(v, v)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def quotient(a: Tensor, b: Tensor, fallback: float | Tensor = 0.0) -> Tensor:
    """``a / b`` where b is not zero, else ``fallback``; no NaN in the gradient either way."""
    regular = b != 0
    return torch.where(regular, a / torch.where(regular, b, 1.0), fallback)


def select(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of ``a`` where the mask ``(*batch,)`` holds, else of ``b``."""
    depth = max(a.ndim, b.ndim) - mask.ndim
    return torch.where(mask.reshape((*mask.shape, *(1,) * depth)), a, b)


def solve_rows(matrix: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """``A^-1 b`` for ``(*batch, n, n)`` and ``(*batch, n)``, and codes ``(*batch,)``, not zero where A is singular.

    Under transforms by the inverse: torch 2.13 gives NaN for ``linalg.solve`` under vmap of jacfwd, and loses a term of it
    in reverse over forward mode.
    """
    if not under_transform():
        return torch.linalg.solve_ex(matrix, rhs)
    inverse, code = torch.linalg.inv_ex(matrix)
    return (inverse @ rhs.unsqueeze(-1)).squeeze(-1), code


def any_row(mask: Tensor) -> bool:
    """Whether a row is set; True when a transform hides the values (the loop then runs to its end)."""
    if under_transform() and is_functorch_wrapped_tensor(mask):
        return True
    return bool(mask.any())


def unset(mask: Tensor) -> bool:
    """Whether no row is set, where asking costs nothing; False on devices that would have to be waited for."""
    return mask.device.type == "cpu" and not under_transform() and not bool(mask.any())


def base_state(residual_norm: Tensor, scale: Tensor, **more: Any) -> dict[str, Any]:
    """A running state with the keys that every solver has."""
    code = torch.full_like(residual_norm, int(Status.RUNNING), dtype=torch.int64)
    return {"residual_norm": residual_norm, "scale": scale, "status_code": code, **more}


def verdict(code: Tensor, mask: Tensor, status: Status) -> Tensor:
    """Codes with ``status`` written into the running rows of ``mask``."""
    return code.masked_fill(mask & (code == int(Status.RUNNING)), int(status))


def check_growth(code: Tensor, residual_norm: Tensor, start: Tensor) -> Tensor:
    """`Status.DIVERGED` for rows whose residual has outgrown its start ``(*batch,)`` beyond return."""
    return verdict(code, residual_norm > GROWTH * start, Status.DIVERGED)


def track_curvature(old: Tensor, accept: Tensor, first: Tensor, change: Tensor, shift: Tensor, size: Tensor) -> Tensor:
    """Estimate of ``|J|`` from differences, infinite until there is one.

    Differences over less than ``sqrt(eps) |x|`` are not believed (a kink would look infinitely curved), nor are far
    trials that were rejected, unless they lower the estimate. ``first``: rows that have accepted nothing yet.
    """
    length = norm(shift)
    seen = quotient(norm(change), length)
    usable = (length > torch.finfo(length.dtype).eps ** 0.5 * size) & torch.isfinite(seen)
    taken = torch.where(first | torch.isinf(old), seen, torch.maximum(seen, 0.9 * old))
    return torch.where(usable, torch.where(accept, taken, torch.minimum(old, seen)), old)


def rounding_floor(curvature: Tensor, x_norm: Tensor) -> Tensor:
    """The residual that rounding of ``x`` alone explains: ``10 eps |J| |x|`` for an estimate of ``|J|``."""
    floor = 10 * torch.finfo(x_norm.dtype).eps * curvature * x_norm
    return torch.where(torch.isfinite(floor), floor, 0.0)


def loop_until_done(body: Callable[[int], Tensor], limit: int) -> None:
    """Call ``body(k)`` up to ``limit`` times while it returns a mask with a row set."""
    for k in range(limit):
        if not any_row(body(k)):
            return
