"""An inverse Jacobian as a multiple of the identity and a few rank-one terms, kept in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciopt.inner.rows import dot, norm, quotient, select, unset

__all__ = ["RankOneTerms", "apply"]

FIRST_ROOM = 8  # terms that there is room for at first; doubled when it is used up
WEAK = 1e-8  # cosine below which a secant says nothing


def apply(left: Tensor, right: Tensor, gamma: Tensor, v: Tensor) -> Tensor:
    """``(gamma I + left^T right) v`` for rows of rank-one terms ``(*batch, k, n)``."""
    out = gamma.unsqueeze(-1) * v
    if left.shape[-2]:
        out = out + (left.mT @ (right @ v.unsqueeze(-1))).squeeze(-1)
    return out


class RankOneTerms:
    """``H = gamma I + left^T right`` of every row, updated by secants ``H y = s`` (Broyden's good formula).

    The tensors live in the solver's state; this is the arithmetic on them. ``image`` is H times the current residual, so
    that a step takes one product with H and one with its transpose.
    """

    @staticmethod
    def empty(x: Tensor, residual: Tensor, gamma: Tensor, history: int) -> dict[str, Any]:
        """No terms yet, at ``x`` and its residual ``(*batch, n)``."""
        room = x.new_zeros(*x.shape[:-1], min(FIRST_ROOM, history), x.shape[-1])
        return {"left": room, "right": torch.zeros_like(room), "image": gamma.unsqueeze(-1) * residual}

    @staticmethod
    def learn(
        state: dict[str, Any], history: int, finite: Tensor, accept: Tensor, s: Tensor, y: Tensor, fresh: Tensor
    ) -> dict[str, Any]:
        """State entries after the secant of a trial: ``s`` and ``y`` are the changes of point and residual ``(*batch, n)``,
        ``fresh`` the residual there; rows that do not ``accept`` it stay where they are."""
        left, right, gamma, used = state["left"], state["right"], state["gamma"], state["used"]
        image, residual = state["image"], state["residual"]
        full = used >= history
        if not unset(full):
            left.masked_fill_(full[..., None, None], 0.0)
            image = select(full, gamma.unsqueeze(-1) * residual, image)
            used = used.masked_fill(full, 0)
        sy, yy, sizes = dot(s, y), dot(y, y), norm(s)
        # the first secant of an empty memory sets the scale, and its sign
        first = (state["steps"] == 0) & finite & (sy.abs() > 0.1 * sizes * yy.sqrt())
        if not unset(first):
            gamma = torch.where(first, quotient(sy, yy, 1.0), gamma)
            image = select(first, gamma.unsqueeze(-1) * residual, image)
        forward = apply(left, right, gamma, fresh)  # H times the trial's residual
        if not unset(~finite):
            forward = select(finite, forward, image)
        product = forward - image
        covector = apply(right, left, gamma, s)
        bottom = dot(s, product)
        usable = finite & (bottom.abs() > WEAK * sizes * norm(product)) & (yy > 0)
        factor = quotient(usable.to(bottom.dtype), bottom)
        column = (s - product) * factor.unsqueeze(-1)
        if not unset(~usable):
            column = select(usable, column, torch.zeros_like(column))
            covector = select(usable, covector, torch.zeros_like(covector))
        here, beneath = forward, fresh
        if not unset(~accept):
            here, beneath = select(accept, forward, image), select(accept, fresh, residual)
        image = torch.addcmul(here, column, dot(covector, beneath).unsqueeze(-1))
        slot = state["steps"] % history
        left, right = roomy(left, slot, history), roomy(right, slot, history)
        room, n = left.shape[-2:]
        place = torch.arange(slot.numel(), device=slot.device) * room + slot.reshape(-1)
        left.view(-1, n).index_copy_(0, place, column.reshape(-1, n))
        right.view(-1, n).index_copy_(0, place, covector.reshape(-1, n))
        # views, so that who compares objects sees that they were written
        return {"left": left[:], "right": right[:], "gamma": gamma, "used": used + 1, "image": image}


def roomy(terms: Tensor, slot: Tensor, history: int) -> Tensor:
    """The terms with room for one in each row's slot."""
    room = terms.shape[-2]
    if room == history or not bool((slot >= room).any()):
        return terms
    more = terms.new_zeros(*terms.shape[:-2], min(room, history - room), terms.shape[-1])
    return torch.cat([terms, more], -2)
