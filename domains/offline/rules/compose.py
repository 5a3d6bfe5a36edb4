"""Designs that hold given motifs, with allowed neighbours only: placements by beam search, gaps by exact sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciopt.domains.offline.rules.motifs import Motif

__all__ = ["compose", "filled", "layouts"]

BEAM = 8192  # partial layouts kept


def layouts(motifs: Sequence[Motif], length: int, allowed: Tensor, generator: torch.Generator) -> Tensor:
    """Placements of all motifs, overlapping where letters agree: ``(m, length)``, -1 where any letter may stand.

    Args:
        motifs: to be placed, in any order.
        length: of the designs.
        allowed: which letter may follow which, bool ``(letters, letters)``.
        generator: chooses among more than ``BEAM`` placements.

    Example:
        >>> motif = Motif(letters=(0, 1), offsets=(0, 2))
        >>> layouts([motif], 4, torch.ones(2, 2, dtype=torch.bool), torch.Generator().manual_seed(0)).tolist()
        [[0, -1, 1, -1], [-1, 0, -1, 1]]
    """
    partial = torch.full((1, length), -1, dtype=torch.int64, device=allowed.device)
    for motif in sorted(motifs, key=lambda m: -m.span):
        if motif.span > length:
            return partial[:0]
        starts = torch.arange(length - motif.span + 1, device=allowed.device)
        offsets, letters = (torch.tensor(part, device=allowed.device) for part in (motif.offsets, motif.letters))
        places = starts.unsqueeze(-1) + offsets
        there = partial[:, places]
        row, start = (((there == -1) | (there == letters)).all(-1)).nonzero(as_tuple=True)
        grown = partial[row].scatter(1, places[start], letters.expand(len(row), -1))
        grown = grown[_reachable(grown, allowed)]
        if len(grown) > BEAM:
            order = torch.randperm(len(grown), generator=generator, device=generator.device)[:BEAM]
            grown = grown[order.to(grown.device).sort().values]
        partial = grown
    return partial


def filled(partial: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Letters for the free places, drawn from the chain of given weights, conditional on all letters that are fixed.

    Args:
        partial: ``(m, length)`` with -1 at free places; each must have an allowed filling.
        weights: of each letter after each, ``(letters, letters)``; 0 forbids.
        generator: the source of chance.

    Example:
        >>> filled(torch.tensor([[0, -1, 1]]), torch.eye(2).flip(0) + torch.eye(2).tril(), torch.Generator()).shape
        torch.Size([1, 3])
    """
    letters, length = len(weights), partial.shape[1]
    chain = weights.to(torch.float64)
    kinds = torch.arange(letters, device=partial.device)
    ahead = [((partial[:, -1:] == -1) | (partial[:, -1:] == kinds)).to(torch.float64)]
    for place in range(length - 2, -1, -1):  # weight of all that can follow, scaled
        free = (partial[:, place, None] == -1) | (partial[:, place, None] == kinds)
        message = free * (ahead[-1] @ chain.mT)
        ahead.append(message / message.amax(-1, keepdim=True).clamp(min=1e-300))
    ahead.reverse()
    columns = [_draw(ahead[0], generator)]
    for place in range(1, length):
        columns.append(_draw(chain[columns[-1]] * ahead[place], generator))
    return torch.stack(columns, -1)


def compose(
    motifs: Sequence[Motif],
    length: int,
    weights: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Up to ``count`` different designs that hold all motifs, their placements as different as there are.

    Args:
        motifs: to be placed.
        length: of the designs.
        weights: of each letter after each, ``(letters, letters)``; 0 forbids.
        count: designs wanted.
        generator: the source of chance.

    Returns:
        Designs ``(m, length)``; none where the motifs do not fit.

    Example:
        >>> motifs = [Motif(letters=(0, 1), offsets=(0, 2)), Motif(letters=(1, 1), offsets=(0, 1))]
        >>> made = compose(motifs, 5, torch.ones(2, 2), 8, torch.Generator().manual_seed(0))
        >>> bool((torch.stack([motif.matches(made) for motif in motifs]) == 2).all())
        True
    """
    placed = layouts(motifs, length, weights > 0, generator)
    if not len(placed):
        return placed
    found = placed[:0]
    for _ in range(8):
        order = torch.randperm(len(placed), generator=generator, device=generator.device).to(placed.device)
        rows = placed[order.repeat(-(-2 * count // len(placed)))[: 2 * count]]
        found = torch.unique(torch.cat([found, filled(rows, weights, generator)]), dim=0)
        if len(found) >= count:
            break
    order = torch.randperm(len(found), generator=generator, device=generator.device).to(found.device)
    return found[order[:count]]


def _reachable(partial: Tensor, allowed: Tensor) -> Tensor:
    """Which partial designs can be filled, bool ``(m,)``."""
    kinds = torch.arange(len(allowed), device=partial.device)
    step = allowed.to(torch.float32)
    state = torch.ones(len(partial), len(allowed), dtype=torch.float32, device=partial.device)
    for place in range(partial.shape[1]):
        free = (partial[:, place, None] == -1) | (partial[:, place, None] == kinds)
        state = free * (state if place == 0 else ((state @ step) > 0)).to(torch.float32)
    return state.amax(-1) > 0


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One letter per row, in proportion to its weight."""
    total = weights.cumsum(-1)
    spot = torch.rand(len(weights), 1, generator=generator, device=generator.device, dtype=torch.float64)
    spot = spot.to(total.device) * total[:, -1:] * (1 - 1e-12)  # so that rounding never reaches a weight of 0
    return torch.searchsorted(total, spot, right=True).squeeze(-1)
