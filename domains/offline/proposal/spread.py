"""Designs far from each other, for batches that no model can choose."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.design_space import DesignSpace

__all__ = ["spread_out"]


def spread_out(
    space: DesignSpace, candidates: Tensor, known: Tensor, count: int, generator: torch.Generator, limit: int = 4_096
) -> Tensor:
    """One candidate after another that is farthest from the known designs and those chosen before.

    Args:
        space: the columns.
        candidates: ``(q, width)``; of more than ``limit`` (or the count) a random part is looked at.
        known: ``(m, width)``.
        count: at most q.
        generator: draws the part, and so decides between equals.
        limit: candidates looked at.

    Returns:
        ``(count, width)``.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> space = DesignSpace((NumberColumn(name="x", low=0, high=1),))
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> spread_out(space, x, x[:1], 2, torch.Generator().manual_seed(0)).flatten()
        tensor([1.0000, 0.5000], dtype=torch.float64)

    References:
        Johnson, Moore, Ylvisaker. "Minimax and maximin distance designs". J. Stat. Plan. Inference 26, 1990.
    """
    order = torch.randperm(len(candidates), generator=generator, device=generator.device).to(candidates.device)
    some = candidates[order[: max(limit, count)]]
    nearest = torch.cat([space.distance(part, known).amin(-1) for part in some.split(256)])
    chosen: list[Tensor] = []
    for _ in range(count):
        index = nearest.argmax().reshape(1)
        chosen.append(index)
        nearest = torch.minimum(nearest, space.distance(some, some[index]).squeeze(-1)).index_fill(0, index, -1.0)
    return some[torch.cat(chosen)]
