"""Statistics of all pairs of letters at all distances, and of all one-letter extensions of a motif."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["centred", "extension_gains", "level_gain", "null_maxima", "pair_statistics", "tail"]

LEAST = 5  # designs with a pattern, for it to count


def centred(residual: Tensor, weight: Tensor) -> Tensor:
    """Residuals less their weighted mean."""
    return residual - (weight * residual).sum() / weight.sum().clamp(min=1e-300)


def pair_statistics(space: CategoricalSpace, designs: Tensor, residual: Tensor, weight: Tensor, span: int) -> Tensor:
    """How far designs with a pair anywhere lie above the others, in standard errors: ``(span - 1, letters, letters)``.

    Entry ``[s - 1, a, b]`` is for letter a with letter b standing s positions later; 0 where too few designs have it.

    Args:
        space: the designs.
        designs: ``(n, length)``.
        residual: what is to be explained ``(n,)``.
        weight: inverse variances ``(n,)``, 0 for rows that do not count.
        span: most positions from first to last letter.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="ab")
        >>> designs = space.everything().repeat(8, 1)
        >>> value = ((designs[:, 0] == 0) & (designs[:, 1] == 1)).double()
        >>> int(pair_statistics(space, designs, value, torch.ones(32, dtype=torch.float64), 2).argmax())
        1
    """
    return _statistics(space, designs, residual.unsqueeze(0), weight, span).squeeze(0)


def _statistics(space: CategoricalSpace, designs: Tensor, residuals: Tensor, weight: Tensor, span: int) -> Tensor:
    """`pair_statistics` of several residuals ``(c, n)`` at once."""
    n, letters, rows = len(designs), space.letters, len(residuals)
    used = (weight > 0).to(torch.float32)
    left = torch.stack([weight * centred(residual, weight) for residual in residuals]).to(torch.float32)
    sums = torch.cat([left, weight.to(torch.float32).unsqueeze(0), used.unsqueeze(0)])
    total = sums[rows].sum()
    out = designs.new_zeros(rows, span - 1, letters * letters, dtype=torch.float32)
    for shift in range(1, span):
        present = torch.zeros(n, letters * letters, dtype=torch.float32, device=designs.device)
        present.scatter_(1, designs[:, :-shift] * letters + designs[:, shift:], 1.0)
        summed = sums @ present
        gain, mass, count = summed[:rows], summed[rows], summed[rows + 1]
        spread = mass * (1 - mass / total)
        enough = (count >= LEAST) & (used.sum() - count >= LEAST) & (spread > 1e-6 * total)
        out[:, shift - 1] = torch.where(enough, gain / spread.clamp(min=1e-30).sqrt(), 0.0)
    return out.unflatten(-1, (letters, letters))


def null_maxima(
    space: CategoricalSpace,
    designs: Tensor,
    residuals: Tensor,
    weight: Tensor,
    span: int,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Largest pair statistics ``(c, draws)`` of residuals ``(c, n)`` after renaming letters at each position independently.

    What depends on positions, families of related designs included, stays as it is; a pattern that may stand anywhere is
    destroyed. The largest statistic over all pairs controls the rate at which any false pattern is found.
    """
    largest = []
    for _ in range(draws):
        order = torch.rand(space.length, space.letters, generator=generator, device=generator.device).argsort(-1)
        renamed = order.to(designs.device)[torch.arange(space.length, device=designs.device), designs]
        largest.append(_statistics(space, renamed, residuals, weight, span).flatten(1).amax(-1))
    return torch.stack(largest, -1).to(torch.float64)


def tail(statistic: float, maxima: Tensor) -> float:
    """Chance of so large a statistic under the null: Gumbel's law of maxima, fitted by moments.

    Example:
        >>> tail(3.0, torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)) > 0.5 > tail(9.0, torch.tensor([3.0, 4.0, 5.0]))
        True
    """
    slope = float(maxima.std()) * 6**0.5 / torch.pi
    centre = float(maxima.mean()) - 0.5772156649 * slope
    return float(-torch.expm1(-torch.exp(torch.tensor((centre - statistic) / max(slope, 1e-9), dtype=torch.float64))))


def level_gain(motif: Motif, designs: Tensor, residual: Tensor, weight: Tensor) -> float:
    """Twice the log-likelihood that free effects of the motif's levels explain, of centred residuals."""
    level = motif.matches(designs)
    sums = residual.new_zeros(len(motif) + 1).index_add(0, level, weight * residual)
    mass = residual.new_zeros(len(motif) + 1).index_add(0, level, weight)
    return float((sums.square() / mass.clamp(min=1e-30)).sum())


def extension_gains(
    space: CategoricalSpace, motif: Motif, designs: Tensor, residual: Tensor, weight: Tensor, span: int
) -> tuple[Tensor, Tensor]:
    """`level_gain` of the motif with one more letter, for all letters at all free offsets.

    Returns:
        Offsets ``(t,)``, which may lie before the motif, and gains ``(t, letters)``; -inf where the letter would be found
        with the motif in too few designs.
    """
    length, letters = space.length, space.letters
    taken, last = set(motif.offsets), motif.span - 1
    places = [t for t in range(last - span + 1, span) if t not in taken]
    if not places:
        return designs.new_zeros(0), residual.new_zeros(0, letters, dtype=torch.float32)
    found = motif.found(designs)
    sums = torch.stack([weight * residual, weight, (weight > 0).to(weight)]).to(torch.float32)
    kinds = torch.arange(len(motif) + 1, device=designs.device)
    out = []
    for t in places:
        low, high = max(0, -t), length - max(last, t)
        inside = found[:, low:high]
        best = inside.amax(-1)
        # a design rises by one level with letter c if c stands at the place at one of its best starts
        rises = torch.zeros(len(designs), letters + 1, dtype=torch.float32, device=designs.device)
        at_best = inside == best.unsqueeze(-1)
        rises.scatter_(1, torch.where(at_best, designs[:, low + t : high + t], letters), 1.0)
        by_level = (sums.unsqueeze(1) * (best == kinds.unsqueeze(-1)).to(torch.float32)).flatten(0, 1)
        moved = (by_level @ rises[:, :letters]).unflatten(0, (3, len(kinds)))
        total = by_level.sum(-1).unflatten(0, (3, len(kinds))).unsqueeze(-1)
        stay = torch.nn.functional.pad(total - moved, (0, 0, 0, 1))
        gain, mass, count = stay + torch.nn.functional.pad(moved, (0, 0, 1, 0))
        # counts are exact: a level without designs is left out, whatever rounding leaves of its mass
        value = torch.where(count > 0.5, gain.square() / mass.clamp(min=1e-30), 0.0).sum(0)
        out.append(torch.where(moved[2, 1:].sum(0) >= LEAST, value, -torch.inf))
    return torch.tensor(places, device=designs.device), torch.stack(out)
