"""Search for the motifs that explain a table: grown on a scale, and kept where they stand out from chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.rules.growth import Discovery, Growth
from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.rules.scales import AbstractScale, Effects, LogScale, ProductScale
from sciopt.domains.offline.rules.screening import null_maxima, pair_statistics, tail
from sciopt.domains.offline.rules.sites import Sites
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["Discovery", "MotifModel", "discover"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MotifModel:
    """Motifs and what they do to the score.

    Args:
        scale: on which their effects add.
        motifs: in the order of discovery.
        chances: of each motif under the null: of any pair as strong as its strongest, in what the other motifs leave.
        effects: see `Effects`.
        explained: share of the variance of the scores themselves.

    Example:
        >>> from sciopt.domains.offline.rules import AdditiveScale
        >>> designs, scores = torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> effects = AdditiveScale().fit([], designs, scores)
        >>> MotifModel(scale=AdditiveScale(), motifs=(), chances=(), effects=effects, explained=0.0).predict(designs)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    scale: AbstractScale
    motifs: tuple[Motif, ...]
    chances: tuple[float, ...]
    effects: Effects
    explained: float

    def predict(self, designs: Tensor) -> Tensor:
        """Scores ``(n,)`` of designs ``(n, length)``."""
        return self.scale.score(self.effects.total(self.motifs, designs))


def _chances(found: Growth, generator: torch.Generator) -> list[float]:
    """Of any pair as strong as the strongest of each motif, in what the other motifs leave, under the null."""
    if not found.motifs:
        return []
    found.refit()
    lefts = torch.stack([found.target(index)[0] for index in range(len(found.motifs))])
    weight = found.effects.weight
    maxima = null_maxima(found.sites, lefts, weight, found.span, found.options.draws, generator)
    out = []
    for motif, left, null in zip(found.motifs, lefts, maxima, strict=True):
        statistics = pair_statistics(found.sites, left, weight, motif.span)
        pairs = [(one, two) for k, one in enumerate(motif.elements) for two in motif.elements[k + 1 :]]
        out.append(tail(max(float(statistics[o2 - o1 - 1, a1, a2]) for (o1, a1), (o2, a2) in pairs), null))
    return out


def _confirmed(found: Growth, generator: torch.Generator) -> MotifModel:
    """Only motifs that stand out against the null, in what the others leave unexplained."""
    found.motifs = list(dict.fromkeys(found.motifs))
    found.prune()
    chances = _chances(found, generator)
    kept = [k for k, chance in enumerate(chances) if chance <= found.options.level]
    found.motifs = [found.motifs[k] for k in kept]
    found.refit()
    made = _model(found, found.scale, found.effects, [chances[k] for k in kept])
    if isinstance(found.scale, LogScale):  # which does not see scores of 0: their share is measured on the scores
        scale = ProductScale()
        other = _model(found, scale, scale.fit(found.motifs, found.designs, found.scores), list(made.chances))
        made = other if other.explained > made.explained else made
    return made


def _model(found: Growth, scale: AbstractScale, effects: Effects, chances: list[float]) -> MotifModel:
    """The motifs with these effects, and the share of the scores' variance that they explain."""
    error = found.scores - scale.score(effects.total(found.motifs, found.designs))
    share = 1 - float(error.square().mean()) / max(float(found.scores.var(correction=0)), 1e-300)
    return MotifModel(scale=scale, motifs=tuple(found.motifs), chances=tuple(chances), effects=effects, explained=share)


def discover(
    space: CategoricalSpace,
    designs: Tensor,
    scores: Tensor,
    *,
    scales: Sequence[AbstractScale],
    options: Discovery,
    generator: torch.Generator,
) -> MotifModel:
    """The motifs of a table, on the scale that explains it best; scales are tried in turn until one explains 0.95.

    Args:
        space: the designs.
        designs: ``(n, length)``.
        scores: ``(n,)``, float64.
        scales: to be tried.
        options: see `Discovery`.
        generator: of the null.

    Returns:
        `MotifModel`; without motifs where nothing was found.

    Example:
        >>> from sciopt.domains.offline import Ehrlich
        >>> from sciopt.domains.offline.rules import LogScale
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=1000)
        >>> table, generator = task.visible(), torch.Generator().manual_seed(0)
        >>> found = discover(
        ...     task.space, table.designs, table.scores, scales=[LogScale()], options=Discovery(), generator=generator
        ... )
        >>> {motif.letters for motif in found.motifs} == {tuple(task.motif(k)[0]) for k in range(2)}
        True
    """
    best: MotifModel | None = None
    sites = Sites.of(space, designs)
    for scale in scales:
        growth = Growth(sites, scores, scale, options)
        growth.run()
        made = _confirmed(growth, generator)
        if best is None or made.explained > best.explained + 1e-3:
            best = made
        if best.explained > 0.95:
            break
    if best is None:
        raise ValueError("discover: expected at least one of `scales`, got none. Pass AdditiveScale().")
    return best
