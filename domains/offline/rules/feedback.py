"""Rules of distilled designs that hold on rows which the distillation did not see, and what they are worth as a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.ranking import fit_surrogate
from sciopt.domains.offline.rules.discovery import Discovery
from sciopt.domains.offline.rules.extract import distilled_rules
from sciopt.domains.offline.rules.remeasure import remeasured
from sciopt.domains.offline.rules.rules import Rules
from sciopt.domains.offline.search import AbstractSearch
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.inner import weighted_least_squares
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["CheckedRules", "rules_by_distillation"]

LEAST = 16  # distinct designs in a part of the table, for rules to be looked for


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedRules:
    """Rules of distilled designs and what they are worth on held-out rows. Made by `rules_by_distillation`.

    Args:
        rules: None where they do not predict scores of rows that the distillation did not see.
        chance: of predicting these so well when scores have nothing to do with the rules.
        weight: of what the rules predict, in scores per score, beside a kernel surrogate of what that leaves: the best one on
            held-out rows; 0 where nothing is added to the surrogate that stands out from chance.
        explained: share of the surrogate's squared error on held-out rows that this weight takes away.
        distilled: the designs ``(m, length)``, distinct.

    Example:
        >>> empty = torch.empty(0, 4, dtype=torch.int64)
        >>> CheckedRules(rules=None, chance=1.0, weight=0.0, explained=0.0, distilled=empty).describe()
        'Rules of 0 distilled designs do not hold on held-out rows (p 1.0e+00): none kept.'
    """

    rules: Rules | None
    chance: float
    weight: float
    explained: float
    distilled: Tensor

    def describe(self) -> str:
        """The verdict, then the rules, as text."""
        start = f"Rules of {len(self.distilled)} distilled designs"
        if self.rules is None:
            return f"{start} do not hold on held-out rows (p {self.chance:.1e}): none kept."
        use = f"weight {self.weight:.3g}, {self.explained:.1%} of the surrogate's error taken away"
        if self.weight == 0:
            use = "but add nothing to the surrogate: not used"
        return f"{start} hold on held-out rows (p {self.chance:.1e}), {use}.\n{self.rules.describe()}"


def rules_by_distillation(
    space: CategoricalSpace,
    table: Table,
    *,
    distil: AbstractSearch,
    generator: torch.Generator,
    designs: int = 1000,
    discovery: Discovery | None = None,
    kernel: AbstractKernel | None = None,
    ridge: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    folds: int = 2,
    level: float = 0.01,
    pool: Tensor | None = None,
) -> CheckedRules:
    """Distil designs, extract what sets them apart from the table, and check both on rows that were held out.

    Designs bear the scores that the distillation predicts; where it predicts none, rules tell distilled from visible designs.
    The whole is repeated on parts of the table, and the rules of each part predict the rows outside it: this tells whether
    they hold, and the weight at which their prior beside the surrogate has the smallest error, surrogate and prior fitted
    together (a bi-level problem that is quadratic in the weight). Costs ``folds + 1`` distillations and extractions.

    Args:
        space: the designs.
        table: the visible rows.
        distil: makes the designs, such as `ExchangeDistillation`, `BIB` or `BDI`.
        generator: the one source of chance.
        designs: number of them, at most the distinct rows of the table.
        discovery: see `Discovery`; None: six motifs at most.
        kernel: of the surrogate beside which the prior is weighed; None: that of `fit_surrogate`.
        ridge: see `fit_surrogate`.
        dtype: of the kernel.
        folds: parts that are held out in turn.
        level: largest chance of rules that do not hold, and of a weight that is none.
        pool: allowed designs; None: the whole space.

    Returns:
        `CheckedRules`.

    Raises:
        ValueError: for options out of range, or constant scores.

    Example:
        >>> from sciopt.domains.offline import Ehrlich, ExchangeDistillation
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=400)
        >>> found = rules_by_distillation(
        ...     task.space, task.visible(), distil=ExchangeDistillation(), generator=torch.Generator().manual_seed(0)
        ... )
        >>> found.rules is not None and found.weight > 0
        True
    """
    owner = "rules_by_distillation"
    check_option(owner, "designs", designs, designs >= 8, ">= 8", "1000 is a good start.")
    check_option(owner, "folds", folds, folds >= 2, ">= 2", "2 is cheapest.")
    check_option(owner, "level", level, 0 < level < 1, "in (0, 1)", "0.01 is strict.")
    options = Discovery(motifs=MOTIFS) if discovery is None else discovery
    chosen = NTK(DenseNetwork(hidden_layers=5)) if kernel is None else kernel
    distinct, which = torch.unique(table.designs, dim=0, return_inverse=True)
    empty = CheckedRules(rules=None, chance=1.0, weight=0.0, explained=0.0, distilled=distinct[:0])
    if len(distinct) < folds * LEAST:
        return empty

    def made(part: Table) -> tuple[Rules, Tensor]:
        wanted = min(designs, len(torch.unique(part.designs, dim=0)))
        found = distil.propose(space, part, wanted, generator=generator, pool=pool)
        own, place = torch.unique(found.designs, dim=0, return_inverse=True)
        scored = found.predicted is not None and bool(torch.isfinite(found.predicted).all())
        predicted = None
        if scored and found.predicted is not None:
            given = found.predicted.to(own.device, torch.float64)
            predicted = torch.zeros(len(own), dtype=torch.float64, device=own.device).index_copy(0, place, given)
        measured = part.scores if scored else None
        rules = distilled_rules(
            space, own, part.designs, generator=generator, predicted=predicted, measured=measured, discovery=options
        )
        return remeasured(rules, part), own

    order = torch.randperm(len(distinct), generator=generator, device=generator.device).to(which.device)
    turn = order[which] % folds  # equal designs are held out together
    lines: list[Tensor] = []
    for fold in range(folds):
        held = turn == fold
        part = Table(designs=table.designs[~held], scores=table.scores[~held])
        rest = Table(designs=table.designs[held], scores=table.scores[held])
        if min(float(part.scores.std(correction=0)), float(rest.scores.std(correction=0))) <= 0:
            return empty
        rules, _ = made(part)
        inside, outside = rules.predict(part.designs), rules.predict(rest.designs)
        plain = fit_surrogate(space, part, kernel=chosen, ridge=ridge, dtype=dtype, rtol=1e-3)
        left = rest.scores - plain.predict(rest.designs)
        shift = outside - inside.mean()
        if float(inside.std(correction=0)) > TINY:
            both = Table(designs=part.designs, scores=inside)
            shift = outside - fit_surrogate(space, both, kernel=chosen, ridge=ridge, dtype=dtype, rtol=1e-3).predict(
                rest.designs
            )
        # the surrogate of scores less w times the prior errs by left - w shift, for the fit is linear in its targets
        lines.append(torch.stack([rest.scores - rest.scores.mean(), outside - outside.mean(), left, shift]))
    scores, priors, left, shift = torch.cat(lines, -1)
    chance = _chance(scores, priors)
    rules, distilled = made(table)
    if chance > level:
        return CheckedRules(rules=None, chance=chance, weight=0.0, explained=0.0, distilled=distilled)
    weight = 0.0
    if _chance(left, shift) <= level:
        ones = torch.ones_like(left)
        weight = float(weighted_least_squares(shift.unsqueeze(-1), left, ones, shift.new_tensor(TINY)))
    explained = 1 - float((left - weight * shift).square().sum() / left.square().sum().clamp(min=TINY))
    return CheckedRules(rules=rules, chance=chance, weight=weight, explained=explained, distilled=distilled)


def _chance(one: Tensor, two: Tensor) -> float:
    """Of so large a sum of products if the signs of one had nothing to do with the other: by the normal law."""
    products = one * two
    spread = float(products.square().sum().sqrt())
    return 0.5 * math.erfc(float(products.sum()) / spread / 2**0.5) if spread > 0 else 1.0


MOTIFS = 6  # most motifs of distilled designs, unless told otherwise
TINY = 1e-12
