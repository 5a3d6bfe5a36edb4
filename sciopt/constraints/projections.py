"""Euclidean projections, batched, with exact derivatives almost everywhere."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

__all__ = ["project_box", "project_l1_ball", "project_simplex", "project_volume"]

Bound = float | Tensor


def _like(value: Bound, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)


def project_box(x: Tensor, lower: Bound = -inf, upper: Bound = inf) -> Tensor:
    """Nearest point with ``lower <= y <= upper``.

    The derivative belongs to ``x`` inside and on the bounds, to a bound outside of it.

    Args:
        x: any shape, floating dtype and device.
        lower: number or tensor that broadcasts against ``x``.
        upper: the same; where it is below ``lower`` the result is NaN.

    Returns:
        Tensor of the broadcast shape, differentiable in all three arguments.

    Example:
        >>> project_box(torch.tensor([-1.0, 0.5, 2.0]), 0.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = _like(lower, x), _like(upper, x)
    inside = torch.where(x < low, low, torch.where(x > high, high, x))
    return torch.where(low > high, torch.nan, inside)


def project_volume(
    x: Tensor,
    volume: Bound,
    *,
    lower: Bound = 0.0,
    upper: Bound = 1.0,
    weights: Bound = 1.0,
    equality: bool = True,
) -> Tensor:
    """Nearest point in a box with a given weighted sum: densities under a volume bound, budgets, capped simplices.

    Solves ``min 1/2 |y - x|^2`` subject to ``lower <= y <= upper`` and ``weights . y = volume`` (or ``<=``). The
    solution is ``clip(x - tau weights)``; the multiplier ``tau`` is found exactly, by binary search among the sorted
    values at which an entry reaches a bound, and then by its formula on the active set found, which also carries the
    derivatives: O(n log n) per problem, no tolerance. Derivatives are exact where strict complementarity holds.

    Args:
        x: ``(*batch, n)``, floating dtype, any device.
        volume: number or ``(*batch,)``.
        lower: number or ``(*batch, n)``; may be -inf.
        upper: the same; may be inf.
        weights: number or ``(*batch, n)``; any sign, zeros allowed.
        equality: False for ``weights . y <= volume``.

    Returns:
        ``(*batch, n)``, differentiable in ``x``, ``volume``, the bounds and the weights; rows for which no such point
        exists are NaN.

    Example:
        >>> project_volume(torch.tensor([0.9, 0.5, 0.4]), 1.2)
        tensor([0.7000, 0.3000, 0.2000])
        >>> project_volume(torch.tensor([0.1, 0.2]), 1.0, equality=False)
        tensor([0.1000, 0.2000])

    References:
        Brucker. "An O(n) algorithm for quadratic knapsack problems". Operations Research Letters, 1984.
    """
    x, low, high, w, goal = torch.broadcast_tensors(
        x, _like(lower, x), _like(upper, x), _like(weights, x), _like(volume, x).unsqueeze(-1)
    )
    goal = goal[..., :1]
    free, to_low, to_high, feasible = _active_set(x, goal, low, high, w)
    box = project_box(x, low, high)
    slack = torch.zeros_like(feasible)
    if not equality:
        slack = (w * box).sum(-1, keepdim=True).detach() <= goal.detach()

    bound = torch.where(to_low, low, torch.where(to_high, high, 0.0))
    free_w = torch.where(free, w, 0.0)
    norm = free_w.square().sum(-1, keepdim=True)
    excess = (free_w * x).sum(-1, keepdim=True) + (w * bound).sum(-1, keepdim=True) - goal
    tau = torch.where(norm > 0, excess / torch.where(norm > 0, norm, 1.0), 0.0)
    y = torch.where(free, x - tau * w, bound)
    y = y + (torch.minimum(torch.maximum(y, low), high) - y).detach()  # rounding must not leave the box
    sound = (x.isfinite() & (low <= high)).all(-1, keepdim=True)
    return torch.where(sound & (feasible | slack), torch.where(slack, box, y), torch.nan)


def _active_set(x: Tensor, goal: Tensor, low: Tensor, high: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which entries are free, at the lower, at the upper bound; and whether the sum can be reached, ``(*batch, 1)``."""
    x, goal, low, high, w = (t.detach() for t in (x, goal, low, high, w))
    flat = w == 0
    divisor = torch.where(flat, 1.0, w)
    first = torch.where(w > 0, (x - high) / divisor, (x - low) / divisor)  # enters the box as tau grows
    second = torch.where(w > 0, (x - low) / divisor, (x - high) / divisor)  # leaves it on the other side
    first, second = torch.where(flat, -inf, first), torch.where(flat, inf, second)
    breaks = torch.cat([first, second], dim=-1).sort(dim=-1).values

    def total(tau: Tensor) -> Tensor:
        moved = x - torch.where(flat, 0.0, tau * divisor)
        return (w * torch.where(flat, 0.0, torch.minimum(torch.maximum(moved, low), high))).sum(-1, keepdim=True)

    # The sum falls as tau grows: count the breakpoints at which it is still at or above the goal.
    count = breaks.shape[-1]
    start = torch.zeros_like(goal, dtype=torch.long)
    stop = torch.full_like(start, count)
    for _ in range(count.bit_length()):
        middle = (start + stop) // 2
        above = total(breaks.gather(-1, middle.clamp(max=count - 1))) >= goal
        open_ = start < stop
        start = torch.where(open_ & above, middle + 1, start)
        stop = torch.where(open_ & ~above, middle, stop)
    left = torch.where(start > 0, breaks.gather(-1, (start - 1).clamp(min=0)), -inf)
    right = torch.where(start < count, breaks.gather(-1, start.clamp(max=count - 1)), inf)

    free = (first <= left) & (second >= right) & ~flat
    before = ~free & ~flat & (first >= right)  # not yet in the box on this segment
    to_high = torch.where(flat, x > high, before & (w > 0) | ~free & ~before & (w < 0))
    to_low = torch.where(flat, x < low, ~free & ~to_high)
    free = torch.where(flat, ~to_low & ~to_high, free)

    ends = torch.where(flat, 0.0, w * low), torch.where(flat, 0.0, w * high)
    smallest, largest = torch.minimum(*ends).sum(-1, keepdim=True), torch.maximum(*ends).sum(-1, keepdim=True)
    size = torch.stack([e.abs().nan_to_num(posinf=0.0) for e in ends]).amax(0).sum(-1, keepdim=True) + goal.abs()
    slack = (x.shape[-1] + 10) * torch.finfo(x.dtype).eps * size
    return free, to_low, to_high, (goal >= smallest - slack) & (goal <= largest + slack)


def project_simplex(x: Tensor, radius: Bound = 1.0, *, upper: Bound = inf) -> Tensor:
    """Nearest point with ``y >= 0`` and ``sum(y) = radius``, optionally capped at ``upper``.

    Mixtures, attention-like weights, relaxed choices. Sort-based, O(n log n).

    Args:
        x: ``(*batch, n)``, floating dtype, any device.
        radius: number or ``(*batch,)``, >= 0.
        upper: number or ``(*batch, n)``: the capped simplex.

    Returns:
        ``(*batch, n)``, differentiable in all arguments; NaN rows where none exists (``radius > n * upper``).

    Example:
        >>> project_simplex(torch.tensor([0.5, 1.5, -1.0]))
        tensor([0., 1., 0.])
        >>> project_simplex(torch.tensor([0.5, 1.5, -1.0]), upper=0.75)
        tensor([0.2500, 0.7500, 0.0000])

    References:
        Held, Wolfe, Crowder. "Validation of subgradient optimization". Mathematical Programming, 1974.
        Wang, Lu. "Projection onto the capped simplex". arXiv:1503.01002, 2015.
    """
    return project_volume(x, radius, lower=0.0, upper=upper)


def project_l1_ball(x: Tensor, radius: Bound = 1.0) -> Tensor:
    """Nearest point with ``sum(|y|) <= radius``.

    Args:
        x: ``(*batch, n)``, floating dtype, any device.
        radius: number or ``(*batch,)``, > 0.

    Returns:
        ``(*batch, n)``, differentiable in both; a point inside is returned as it is.

    Example:
        >>> project_l1_ball(torch.tensor([2.0, -1.5, 0.1]))
        tensor([ 0.7500, -0.2500,  0.0000])

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra. "Efficient projections onto the l1-ball for learning in high
        dimensions". ICML, 2008, section 4.
    """
    size = x.abs()
    inside = size.sum(-1, keepdim=True) <= _like(radius, x).unsqueeze(-1)
    return torch.where(inside, x, x.sign() * project_volume(size, radius, lower=0.0, upper=inf, equality=False))
