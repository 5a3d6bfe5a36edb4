"""The last few differences of an accelerated fixed-point iteration: kept in place, their Gram matrix kept up to date."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["empty_differences", "mixing_weights", "remember"]


def empty_differences(x: Tensor, history: int) -> dict[str, Any]:
    """No differences yet, for points ``(*batch, n)``.

    ``mix`` and ``changes`` are rings ``(*batch, m, n)``; ``gram`` ``(*batch, m, m)`` holds the inner products of the
    changes, ``along`` ``(*batch, m)`` those with the current residual. The rings are written in place.
    """
    batch, n = x.shape[:-1], x.shape[-1]
    return {
        "mix": x.new_zeros(*batch, history, n),
        "changes": x.new_zeros(*batch, history, n),
        "gram": x.new_zeros(*batch, history, history),
        "along": x.new_zeros(*batch, history),
    }


def mixing_weights(state: dict[str, Any], trusted: Tensor, ridge: float) -> Tensor:
    """Weights ``(*batch, m)`` of the differences that best explain the residual, zero for those not trusted ``(*batch, m)``.

    The differences count as scaled to unit length, so that ``ridge`` is relative.
    """
    gram = state["gram"]
    square = gram.diagonal(dim1=-2, dim2=-1)
    inverse = square.rsqrt().masked_fill_(~(trusted & (square > 0) & (square < torch.inf)), 0.0)
    scaled = gram * inverse.unsqueeze(-1)
    scaled *= inverse.unsqueeze(-2)
    scaled.diagonal(dim1=-2, dim2=-1).add_(torch.where(inverse > 0, ridge, 1.0))
    factor, _ = torch.linalg.cholesky_ex(scaled.nan_to_num_(0.0))
    weights = torch.cholesky_solve((state["along"] * inverse).unsqueeze(-1), factor).squeeze(-1)
    return weights.nan_to_num_(0.0, 0.0, 0.0).mul_(inverse)


def remember(state: dict[str, Any], slot: Tensor, mixed: Tensor, change: Tensor, residual: Tensor) -> dict[str, Any]:
    """The entries with one difference ``(*batch, n)`` more, in ring slot ``(*batch,)``, and the new residual's products."""
    mix, changes, gram = state["mix"], state["changes"], state["gram"]
    m, n = changes.shape[-2:]
    rows = slot.numel()
    place = torch.arange(rows, device=slot.device) * m + slot.reshape(-1)
    mix.view(-1, n).index_copy_(0, place, mixed.reshape(-1, n))
    changes.view(-1, n).index_copy_(0, place, change.reshape(-1, n))
    products = changes @ torch.stack([change, residual], -1)
    column = products[..., 0]
    gram.view(-1, m).index_copy_(0, place, column.reshape(-1, m))
    gram.scatter_(-1, slot[..., None, None].expand(*slot.shape, m, 1), column.unsqueeze(-1))
    # views, so that who compares objects sees that they were written
    return {"mix": mix[:], "changes": changes[:], "gram": gram[:], "along": products[..., 1]}
