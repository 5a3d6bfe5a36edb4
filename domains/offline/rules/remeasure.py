"""Rules found elsewhere, their effects measured on a table, without what the table does not need."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.rules.discovery import MotifModel
from sciopt.domains.offline.rules.extract import motif_rules
from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.rules.rules import LetterRule, Rules, count_transitions, never_seen
from sciopt.domains.offline.rules.scales import AbstractScale, AdditiveScale, Effects, LogScale
from sciopt.domains.offline.task import Table

__all__ = ["remeasured"]


def remeasured(rules: Rules, table: Table, *, level: float = 0.01) -> Rules:
    """The rules with effects, support and scale of a table; letters and motifs that explain nothing there are dropped.

    Which motifs there are is left to the rules: none is added, none gets another letter. Effects add to the score or, where
    that explains more, to its logarithm; letters beyond those that any rows show together add what the last seen one does,
    for the table of a search may hold no whole motif. Costs one small least-squares problem for each letter of each motif and
    round.

    Args:
        rules: such as those of distilled designs.
        table: designs with measured scores.
        level: of neighbours that are never seen, see `extract_rules`.

    Returns:
        `Rules`, in the units of the table.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import CategoricalSpace, extract_rules
        >>> space = CategoricalSpace(length=6, alphabet="ABC")
        >>> designs = space.everything()
        >>> found = Motif(letters=(0, 1), offsets=(0, 2)).matches(designs) == 2
        >>> other = Table(designs=designs, scores=found.double())
        >>> rules = extract_rules(space, other, generator=torch.Generator().manual_seed(0))
        >>> round(remeasured(rules, Table(designs=designs, scores=1 + 5 * found.double())).motifs[0].effect, 3)
        5.0
    """
    space = rules.space
    designs, scores = space.check(table.designs), table.scores.to(torch.float64)
    standard, mean, spread = standardised(scores)
    known = dict(zip(rules.model.motifs, rules.model.chances, strict=True))
    models = []
    for scale in (AdditiveScale(), *([LogScale()] if LogScale().suits(scores) else [])):
        origin = _pruned(scale, list(known), designs, scores, _price(rules))
        motifs = tuple(origin)
        effects = _continued(scale.fit(motifs, designs, scores), motifs, designs)
        error = scores - scale.score(effects.total(motifs, designs))
        chances = tuple(known[origin[motif]] for motif in motifs)
        explained = 1 - float(error.square().mean()) / float(scores.var(correction=0))
        models.append(MotifModel(scale=scale, motifs=motifs, chances=chances, effects=effects, explained=explained))
    best = max(models, key=lambda model: model.explained)
    counts = count_transitions(space, designs)
    return replace(
        rules,
        model=best,
        motifs=motif_rules(best, designs, standard),
        letters=_letters(rules.letters, designs, scores - best.predict(designs)),
        transitions=counts,
        forbidden=never_seen(counts, level),
        rows=len(designs),
        mean=float(mean),
        spread=float(spread),
    )


def _price(rules: Rules) -> float:
    """What a letter has to explain, in twice the log-likelihood: more than the best of all pairs of pure noise."""
    pairs = max(rules.space.length - 1, 1) * rules.space.letters**2
    return 2 * math.log(pairs)


def _pruned(
    scale: AbstractScale, motifs: list[Motif], designs: Tensor, scores: Tensor, price: float
) -> dict[Motif, Motif]:
    """Motifs without letters that explain less than their price, each with the motif that it was."""
    step = max(1, len(designs) // ROWS)
    x, y = designs[::step], scores[::step]

    def worth(used: list[Motif]) -> float:
        effects = scale.fit(used, x, y)
        rows = int((effects.weight > 0).sum())
        return rows * math.log(max(1 - effects.explained, 1e-12)) + price * sum(map(len, used))

    kept = {motif: motif for motif in motifs}
    value = worth(list(kept))
    changed = True
    while changed and kept:
        changed = False
        for motif in list(kept):
            rest = [other for other in kept if other != motif]
            options: list[Motif | None] = [None]
            if len(motif) > 2:
                options += [motif.without(element) for element in motif.elements]
            made = [(worth(rest if option is None else [*rest, option]), option) for option in options]
            least, option = min(made, key=lambda pair: pair[0])
            if least < value:
                before = kept.pop(motif)
                if option is not None:
                    kept.setdefault(option, before)
                value, changed = least, True
    return kept


def _continued(effects: Effects, motifs: tuple[Motif, ...], designs: Tensor) -> Effects:
    """Letters beyond those that the table shows together add what the last of these does, and nothing where that is less."""
    steps = []
    for motif, step in zip(motifs, effects.steps, strict=True):
        enough = (torch.bincount(motif.matches(designs), minlength=len(motif) + 1) >= LEAST).nonzero()
        seen = int(enough.max()) if enough.numel() else 0
        more = step[max(seen - 1, 0)].clamp(min=0.0) if seen else step.new_zeros(())
        steps.append(torch.cat([step[:seen], more.expand(len(motif) - seen)]))
    return replace(effects, steps=tuple(steps))


def _letters(rules: tuple[LetterRule, ...], designs: Tensor, residual: Tensor) -> tuple[LetterRule, ...]:
    """Letters at positions that go the same way in what motifs leave of the table, with their effects there."""
    measured = []
    n, spread = len(designs), float(residual.std(correction=0))
    for rule in rules:
        here = designs[:, rule.position] == rule.letter
        count = int(here.sum())
        if not LEAST <= count <= n - LEAST:
            continue
        effect = float(residual[here].mean() - residual[~here].mean())
        error = spread * (n / (count * (n - count))) ** 0.5
        if effect * math.copysign(1.0, rule.effect) > ERRORS * error:
            measured.append(replace(rule, support=count, effect=effect))
    return tuple(sorted(measured, key=lambda rule: -abs(rule.effect)))


ROWS = 4000  # of the table, about, from which letters are judged
LEAST = 3  # rows with a letter, and without it
ERRORS = 3.0  # standard errors by which an effect has to differ from 0
