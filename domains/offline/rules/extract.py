"""From a table, or from distilled designs, to rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.rules.discovery import Discovery, MotifModel, discover
from sciopt.domains.offline.rules.rules import LetterRule, MotifRule, Rules, expected
from sciopt.domains.offline.rules.scales import AbstractScale, choose_scales
from sciopt.domains.offline.rules.screening import tail
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["distilled_rules", "extract_rules"]


def extract_rules(
    space: CategoricalSpace,
    table: Table,
    *,
    generator: torch.Generator,
    discovery: Discovery | None = None,
    scales: Sequence[AbstractScale] | None = None,
    level: float = 0.01,
    permutations: int = 100,
) -> Rules:
    """Rules of a table: motifs, letters at positions in what motifs leave, and transitions that never occur.

    Motifs are grown from the strongest pairs of letters at a distance, letter by letter, and kept where they stand out from
    tables whose letters were renamed at each position. Only motifs that raise the score are looked for.

    Args:
        space: the designs.
        table: designs with scores.
        generator: of the null distributions.
        discovery: see `Discovery`; None: its defaults.
        scales: on which effects of motifs may add; None: those that suit, see `AbstractScale`.
        level: largest chance of any false letter rule, and of any false transition.
        permutations: of the scores, for letters at positions.

    Returns:
        `Rules`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0, alphabet="ABC", seed=1)
        >>> rules = extract_rules(task.space, task.visible(), generator=torch.Generator().manual_seed(0))
        >>> len(rules.motifs), len(rules.letters) > 3
        (0, True)
    """
    check_option("extract_rules", "level", level, 0 < level < 1, "in (0, 1)", "0.01 is strict.")
    check_option("extract_rules", "permutations", permutations, permutations >= 10, ">= 10", "100 fits the tail.")
    designs, scores = space.check(table.designs), table.scores.to(torch.float64)
    _, mean, spread = standardised(scores)
    options = Discovery() if discovery is None else discovery
    suited = choose_scales(scores) if scales is None else tuple(scales)
    if space.length >= 2:
        model = discover(space, designs, scores, scales=suited, options=options, generator=generator)
    else:
        effects = suited[-1].fit([], designs, scores)
        model = MotifModel(scale=suited[-1], motifs=(), chances=(), effects=effects, explained=0.0)
    counts = torch.zeros(space.letters**2, dtype=torch.int64, device=designs.device)
    pairs = (designs[:, :-1] * space.letters + designs[:, 1:]).flatten()
    counts = counts.index_add(0, pairs, torch.ones_like(pairs)).unflatten(0, (space.letters, space.letters))
    never = (counts == 0) & (torch.exp(-expected(counts)) <= level / space.letters**2)
    return Rules(
        space=space,
        model=model,
        motifs=_motif_rules(model, designs, (scores - mean) / spread),
        letters=_letter_rules(space, designs, scores - model.predict(designs), level, permutations, generator),
        transitions=counts,
        forbidden=never,
        rows=len(designs),
        mean=float(mean),
        spread=float(spread),
    )


def distilled_rules(
    space: CategoricalSpace,
    distilled: Tensor,
    background: Tensor,
    *,
    generator: torch.Generator,
    discovery: Discovery | None = None,
    level: float = 0.01,
) -> Rules:
    """Rules of distilled designs: what they have more often than the background, such as all visible designs.

    Args:
        space: the designs.
        distilled: ``(m, length)``.
        background: ``(n, length)``.
        generator: of the null distributions.
        discovery: see `Discovery`.
        level: see `extract_rules`.

    Returns:
        `Rules`, whose scores are 1 for distilled designs and 0 for the background.

    Example:
        >>> space = CategoricalSpace(length=6, alphabet="AB")
        >>> every = space.everything()
        >>> good = every[(every[:, 2] == 1)]
        >>> rules = distilled_rules(space, good, every, generator=torch.Generator().manual_seed(0))
        >>> [(rule.position, rule.letter) for rule in rules.letters if rule.effect > 0]
        [(2, 1)]
    """
    labels = torch.cat([torch.ones(len(distilled)), torch.zeros(len(background))]).to(torch.float64)
    table = Table(designs=torch.cat([distilled, background]), scores=labels.to(background.device))
    return extract_rules(space, table, generator=generator, discovery=discovery, level=level)


def _motif_rules(model: MotifModel, designs: Tensor, standard: Tensor) -> tuple[MotifRule, ...]:
    """Support, lift and effect of each motif, strongest first."""
    made = []
    for index, (motif, chance) in enumerate(zip(model.motifs, model.chances, strict=True)):
        level = motif.matches(designs)
        support = torch.bincount(level, minlength=len(motif) + 1)
        most = int(level.max())
        made.append(
            MotifRule(
                motif=motif,
                support=tuple(support.tolist()),
                most=most,
                lift=float(standard[level == most].mean()),
                effect=float(model.effects.steps[index][:most].sum()),
                chance=chance,
            )
        )
    return tuple(sorted(made, key=lambda rule: -rule.effect))


def _letter_rules(
    space: CategoricalSpace,
    designs: Tensor,
    residual: Tensor,
    level: float,
    permutations: int,
    generator: torch.Generator,
) -> tuple[LetterRule, ...]:
    """Letters at positions whose mean stands out from permuted residuals, surest first."""
    n = len(designs)
    left = residual - residual.mean()
    variance = left.square().mean()
    if float(variance) <= 1e-10 * float(residual.abs().max().clamp(min=1e-300)) ** 2 or n < 3:
        return ()
    present = space.one_hot(designs, torch.float32).flatten(1)
    count = present.sum(0).to(torch.float64)
    enough = (count >= 3) & (count <= n - 3)
    draws = torch.stack([torch.randperm(n, generator=generator, device=generator.device) for _ in range(permutations)])
    shuffled = left[draws.to(left.device)].to(torch.float32)
    error = (count * (1 - count / n)).clamp(min=1e-9).sqrt() * variance.sqrt()
    statistic = torch.where(enough, (left.to(torch.float32) @ present).to(torch.float64) / error, 0.0)
    null = torch.where(enough, (shuffled @ present).to(torch.float64) / error, 0.0).abs().amax(-1)
    mean = (left.to(torch.float32) @ present).to(torch.float64) / count.clamp(min=1)
    rules = []
    for index in statistic.abs().argsort(descending=True).tolist():
        chance = tail(abs(float(statistic[index])), null)
        if chance > level:
            break
        effect = float(mean[index] * n / (n - count[index]))
        rules.append(
            LetterRule(
                position=index // space.letters,
                letter=index % space.letters,
                support=int(count[index]),
                effect=effect,
                chance=chance,
            )
        )
    return tuple(rules)
