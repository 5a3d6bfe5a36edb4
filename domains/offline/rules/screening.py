"""Statistics of all pairs of letters at all distances, and of all one-letter extensions of a motif."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.rules.sites import Sites, small

__all__ = ["centred", "extension_gains", "foremost", "level_gain", "null_maxima", "pair_statistics", "tail"]

LEAST = 5  # designs with a pattern, for it to count
EQUAL = 1e-5  # relative difference of sums in float32 that means nothing
CELLS = 1 << 20  # of a table of pairs


def centred(residual: Tensor, weight: Tensor) -> Tensor:
    """Residuals less their weighted mean."""
    return residual - (weight * residual).sum() / weight.sum().clamp(min=1e-300)


def pair_statistics(sites: Sites, residual: Tensor, weight: Tensor, span: int) -> Tensor:
    """How far designs with a pair anywhere lie above the others, in standard errors: ``(span - 1, letters, letters)``.

    Entry ``[s - 1, a, b]`` is for letter a with letter b standing s positions later; 0 where too few designs have it.

    Args:
        sites: the designs.
        residual: what is to be explained ``(n,)``.
        weight: inverse variances ``(n,)``, 0 for rows that do not count.
        span: most positions from first to last letter.

    Example:
        >>> from sciopt.domains.offline.spaces import CategoricalSpace
        >>> space = CategoricalSpace(length=2, alphabet="ab")
        >>> designs = space.everything().repeat(8, 1)
        >>> value = ((designs[:, 0] == 0) & (designs[:, 1] == 1)).double()
        >>> int(pair_statistics(Sites.of(space, designs), value, torch.ones(32, dtype=torch.float64), 2).argmax())
        1
    """
    return _statistics(sites, residual.unsqueeze(0), weight, span).squeeze(0)


def _statistics(sites: Sites, residuals: Tensor, weight: Tensor, span: int) -> Tensor:
    """`pair_statistics` of several residuals ``(c, n)`` at once."""
    rows, pairs, used = len(residuals), sites.letters**2, (weight > 0).to(weight)
    sums = [weight * centred(residual, weight) for residual in residuals] + [used]
    if not bool((weight == weight.max() * used).all()):
        sums.append(weight)  # which otherwise is known from the count
    first, second = sites.columns.long() * sites.letters, sites.columns
    total, out = weight.sum(), []
    for shift in range(1, span):
        summed = _pair_sums(first[:-shift] + second[shift:], torch.stack(sums), pairs)
        gain, count = summed[:rows], summed[rows]
        mass = summed[rows + 1] if len(sums) > rows + 1 else weight.max() * count
        spread = mass * (1 - mass / total)
        enough = (count >= LEAST) & (used.sum() - count >= LEAST) & (spread > 1e-6 * total)
        out.append(torch.where(enough, gain / spread.clamp(min=1e-30).sqrt(), 0.0))
    return torch.stack(out, 1).unflatten(-1, (sites.letters, sites.letters))


def _pair_sums(pair: Tensor, values: Tensor, pairs: int) -> Tensor:
    """Sums ``(k, pairs)`` of values ``(k, n)`` over the designs that have each pair, once however often they have it.

    A design's pairs ``(starts, n)`` write their start into its row of a table, where only the last to write finds its own:
    no table need be cleared, and nothing is spent on pairs that do not occur.
    """
    starts, n = pair.shape
    chunk = min(n, max(1, CELLS // pairs))  # so that the table stays in the cache
    table = torch.empty(chunk * pairs, dtype=small(starts), device=pair.device)
    names = torch.arange(starts, dtype=table.dtype, device=pair.device).unsqueeze(-1).expand(starts, chunk).contiguous()
    row = torch.arange(chunk, device=pair.device) * pairs
    summed = values.new_zeros(len(values), pairs)
    for low in range(0, n, chunk):
        part = pair[:, low : low + chunk]
        width = part.shape[1]
        cell, name = (part + row[:width]).flatten(), names[:, :width].flatten()
        once = (table.scatter_(0, cell, name).gather(0, cell) == name).view(starts, width)
        for total, value in zip(summed, values, strict=True):
            total.scatter_add_(0, part.flatten(), (once * value[low : low + chunk]).flatten())
    return summed


def null_maxima(
    sites: Sites, residuals: Tensor, weight: Tensor, span: int, draws: int, generator: torch.Generator
) -> Tensor:
    """Largest pair statistics ``(c, draws)`` of residuals ``(c, n)`` after renaming letters at each position independently.

    What depends on positions, families of related designs included, stays as it is; a pattern that may stand anywhere is
    destroyed. The largest statistic over all pairs controls the rate at which any false pattern is found.
    """
    largest = []
    for _ in range(draws):
        order = torch.rand(sites.length, sites.letters, generator=generator, device=generator.device).argsort(-1)
        renamed = sites.renamed(order.to(weight.device))
        largest.append(_statistics(renamed, residuals, weight, span).flatten(1).amax(-1))
    return torch.stack(largest, -1)


def tail(statistic: float, maxima: Tensor) -> float:
    """Chance of so large a statistic under the null: Gumbel's law of maxima, fitted by moments.

    Example:
        >>> tail(3.0, torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)) > 0.5 > tail(9.0, torch.tensor([3.0, 4.0, 5.0]))
        True
    """
    slope = float(maxima.std()) * 6**0.5 / torch.pi
    centre = float(maxima.mean()) - 0.5772156649 * slope
    return float(-torch.expm1(-torch.exp(torch.tensor((centre - statistic) / max(slope, 1e-9), dtype=torch.float64))))


def foremost(values: Tensor) -> int:
    """The first place of the largest value, which is positive; what rounding alone sets apart counts as equal.

    In tables with a symmetry, such as both strands of DNA, motifs come in pairs of equal worth.

    Example:
        >>> foremost(torch.tensor([[1.0, 3.0], [3.0 + 1e-6, 2.0]]))
        1
    """
    return int((values.flatten() >= (1 - EQUAL) * values.max()).nonzero()[0])


def level_gain(motif: Motif, sites: Sites, residual: Tensor, weight: Tensor) -> float:
    """Twice the log-likelihood that free effects of the motif's levels explain, of centred residuals."""
    level = motif.matches(sites.designs)
    sums = residual.new_zeros(len(motif) + 1).scatter_add(0, level, weight * residual)
    mass = residual.new_zeros(len(motif) + 1).scatter_add(0, level, weight)
    return float((sums.square() / mass.clamp(min=1e-30)).sum())


def extension_gains(motif: Motif, sites: Sites, residual: Tensor, weight: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """`level_gain` of the motif with one more letter, for all letters at all free offsets.

    Returns:
        Offsets ``(t,)``, which may lie before the motif, and gains ``(t, letters)``; -inf where the letter would be found
        with the motif in too few designs.
    """
    length, letters, last = sites.length, sites.letters, motif.span - 1
    places = [t for t in range(last - span + 1, span) if t not in set(motif.offsets)]
    if not places:
        return weight.new_zeros(0, dtype=torch.int64), residual.new_zeros(0, letters)
    found = motif.found(sites.designs).mT
    sums = torch.stack([weight * residual, weight, (weight > 0).to(weight)]).to(torch.float32)
    kinds = torch.arange(len(motif) + 1, dtype=found.dtype, device=weight.device)
    kinds = kinds.unsqueeze(-1).expand(-1, len(sites)).contiguous()
    rises = torch.empty(len(sites), letters, dtype=torch.float32, device=weight.device)
    at_best = by_level = total = torch.empty(0, device=weight.device)
    window, moves, totals = (-1, -1), [], []
    for t in places:
        low, high = max(0, -t), length - max(last, t)
        if (low, high) != window:  # all places inside the motif have the same
            window, inside = (low, high), found[low:high]
            best = inside.amax(0)
            at_best = (inside == best).to(torch.float32).flatten()
            by_level = (sums.unsqueeze(1) * (best == kinds).to(sums)).flatten(0, 1)
            total = by_level.sum(-1)
        # a design rises by one level with letter c if c stands at the place at one of its best starts
        rises.zero_().view(-1).scatter_add_(0, sites.cells[low + t : high + t].flatten(), at_best)
        moves.append(by_level @ rises.clamp_(max=1.0))
        totals.append(total)
    moved = torch.stack(moves, 1).unflatten(0, (3, len(kinds)))  # (3, levels, t, letters)
    stay = torch.nn.functional.pad(
        torch.stack(totals, -1).unflatten(0, (3, len(kinds))).unsqueeze(-1) - moved, (0, 0, 0, 0, 0, 1)
    )
    gain, mass, count = stay + torch.nn.functional.pad(moved, (0, 0, 0, 0, 1, 0))
    # counts are exact: a level without designs is left out, whatever rounding leaves of its mass
    value = torch.where(count > 0.5, gain.square() / mass.clamp(min=1e-30), 0.0).sum(0)
    enough = moved[2, 1:].sum(0) >= LEAST
    return torch.tensor(places, device=weight.device), torch.where(enough, value, -torch.inf)
