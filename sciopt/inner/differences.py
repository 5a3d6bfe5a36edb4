"""The last few differences of an accelerated fixed-point iteration: kept in place, their Gram matrix kept up to date."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["empty_differences", "forget", "mixing_weights", "remember"]


def empty_differences(x: Tensor, history: int) -> dict[str, Any]:
    """No differences yet, for points ``(*batch, n)``.

    ``mix`` and ``changes`` are rings ``(*batch, m, n)``; ``gram`` ``(*batch, m, m)`` holds the inner products of the
    changes. All are written in place, at the same turn for all rows.
    """
    batch, n = x.shape[:-1], x.shape[-1]
    return {
        "mix": x.new_zeros(*batch, history, n),
        "changes": x.new_zeros(*batch, history, n),
        "gram": x.new_zeros(*batch, history, history),
    }


def mixing_weights(state: dict[str, Any], turn: int, unseen: int, ridge: float) -> Tensor:
    """Weights ``(*batch, m)`` of the differences that best explain the residual; zero for those forgotten or not written.

    The differences count as scaled to unit length, so that ``ridge`` is relative.

    Args:
        state: the rings, of which the inner products are brought up to date here, and the ``residual``.
        turn: number of differences written so far.
        unseen: how many of them have come since this was asked last.
        ridge: added to the unit diagonal.
    """
    changes, gram = state["changes"], state["gram"]
    m = changes.shape[-2]
    slots = [k % m for k in range(max(0, turn - min(unseen, m)), turn)]
    several = torch.stack([*(changes.select(-2, slot) for slot in slots), state["residual"]], -2)
    products = several @ changes.mT  # as rows: several times faster than as columns
    for place, slot in enumerate(slots):
        row = products.select(-2, place)
        gram.select(-2, slot).copy_(row)
        gram.select(-1, slot).copy_(row)
    square = gram.diagonal(dim1=-2, dim2=-1)
    inverse = square.rsqrt().masked_fill_(square <= 0, 0.0)
    scaled = gram * inverse.unsqueeze(-1)
    scaled *= inverse.unsqueeze(-2)
    scaled.diagonal(dim1=-2, dim2=-1).add_((inverse == 0).to(scaled.dtype).add_(ridge))
    factor, _ = torch.linalg.cholesky_ex(scaled)
    along = products.select(-2, -1) * inverse
    weights = torch.cholesky_solve(along.unsqueeze(-1), factor).squeeze(-1)
    return weights.mul_(inverse).nan_to_num_(0.0, 0.0, 0.0)


def remember(state: dict[str, Any], turn: int, mixed: Tensor, change: Tensor) -> None:
    """Write one difference ``(*batch, n)`` more over the oldest."""
    slot = turn % state["changes"].shape[-2]
    state["mix"].select(-2, slot).copy_(mixed)
    state["changes"].select(-2, slot).copy_(change)


def forget(state: dict[str, Any], rows: Tensor) -> None:
    """Take all differences of some rows ``(*batch,)`` out of use: a difference of length zero has no weight."""
    for name in ("mix", "changes", "gram"):
        state[name].masked_fill_(rows[..., None, None], 0.0)
