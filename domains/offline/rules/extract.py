"""From a table, or from distilled designs, to rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.rules.discovery import Discovery, MotifModel, discover
from sciopt.domains.offline.rules.rules import LetterRule, MotifRule, Rules, count_transitions, never_seen
from sciopt.domains.offline.rules.scales import AbstractScale, AdditiveScale, choose_scales
from sciopt.domains.offline.rules.screening import tail
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["distilled_rules", "extract_rules", "motif_rules"]


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
    counts = count_transitions(space, designs)
    return Rules(
        space=space,
        model=model,
        motifs=motif_rules(model, designs, (scores - mean) / spread),
        letters=_letter_rules(space, designs, scores - model.predict(designs), level, permutations, generator),
        transitions=counts,
        forbidden=never_seen(counts, level),
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
    predicted: Tensor | None = None,
    measured: Tensor | None = None,
    discovery: Discovery | None = None,
    scales: Sequence[AbstractScale] | None = None,
    level: float = 0.01,
) -> Rules:
    """Rules of distilled designs: what sets them apart from the background, such as all visible designs.

    Without scores, what they have more often than the background. With scores, what goes with them over distilled designs
    and background together: distilled designs hold more of each motif than any visible one, so that effects of whole motifs
    are seen, and scores tell them from what the distillation has changed in passing. Scores say much more than labels. With
    measured scores of a large table the table alone may tell as much.

    Args:
        space: the designs.
        distilled: ``(m, length)``.
        background: ``(n, length)``.
        generator: of the null distributions.
        predicted: scores of the distilled designs by the model that they were distilled through ``(m,)``.
        measured: scores of the background ``(n,)``, given with ``predicted``; None for both: labels 1 and 0.
        discovery: see `Discovery`.
        scales: see `extract_rules`; None: effects add.
        level: see `extract_rules`.

    Returns:
        `Rules`, in the units of the scores or labels.

    Raises:
        ValueError: for scores of one part alone.

    Example:
        >>> space = CategoricalSpace(length=6, alphabet="AB")
        >>> every = space.everything()
        >>> good = every[(every[:, 2] == 1)]
        >>> rules = distilled_rules(space, good, every, generator=torch.Generator().manual_seed(0))
        >>> [(rule.position, rule.letter) for rule in rules.letters if rule.effect > 0]
        [(2, 1)]
    """
    if (predicted is None) != (measured is None):
        raise ValueError(
            f"distilled_rules: expected `predicted` and `measured` together, got {predicted is not None} and "
            f"{measured is not None}. Give scores of both parts, or of none for labels 1 and 0."
        )
    one = torch.ones(len(distilled), dtype=torch.float64) if predicted is None else predicted
    none = torch.zeros(len(background), dtype=torch.float64) if measured is None else measured
    labels = torch.cat([one.to(background.device, torch.float64), none.to(background.device, torch.float64)])
    table = Table(designs=torch.cat([distilled, background]), scores=labels)
    suited = (AdditiveScale(),) if scales is None else scales
    return extract_rules(space, table, generator=generator, discovery=discovery, scales=suited, level=level)


def motif_rules(model: MotifModel, designs: Tensor, standard: Tensor) -> tuple[MotifRule, ...]:
    """Support, lift and effect of each motif in designs of these standardised scores, strongest first.

    Example:
        >>> from sciopt.domains.offline import Motif
        >>> from sciopt.domains.offline.rules import AdditiveScale
        >>> designs, scores = torch.tensor([[0, 1], [0, 0]]), torch.tensor([1.0, -1.0], dtype=torch.float64)
        >>> motif, scale = Motif(letters=(0, 1), offsets=(0, 1)), AdditiveScale()
        >>> effects = scale.fit([motif], designs, scores)
        >>> model = MotifModel(scale=scale, motifs=(motif,), chances=(0.01,), effects=effects, explained=1.0)
        >>> motif_rules(model, designs, scores)[0].support
        (0, 1, 1)
    """
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
