"""Rules of good designs: motifs that may stand anywhere, letters at positions, transitions that are avoided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.rules.discovery import MotifModel
from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["LetterRule", "MotifRule", "Rules", "count_transitions", "expected", "never_seen"]


@final
@dataclass(frozen=True, kw_only=True)
class LetterRule:
    """A letter at one position that goes with better or worse scores.

    Args:
        position: from 0.
        letter: index into the alphabet.
        support: rows that have it.
        effect: their mean less that of the others, in units of the score, of what motifs leave unexplained.
        chance: of any letter so far from 0 when scores are permuted.

    Example:
        >>> LetterRule(position=0, letter=1, support=10, effect=-0.5, chance=0.001).effect
        -0.5
    """

    position: int
    letter: int
    support: int
    effect: float
    chance: float


@final
@dataclass(frozen=True, kw_only=True)
class MotifRule:
    """A motif with what the table says about it.

    Args:
        motif: letters and offsets.
        support: rows with 0, 1, ... of its letters in place.
        most: most letters that any row has in place.
        lift: mean score of the rows with most letters in place less the mean of all, in standard deviations.
        effect: what the letters up to there add in the model (to the score, or to its logarithm).
        chance: see `MotifModel`.

    Example:
        >>> motif = Motif(letters=(0, 1), offsets=(0, 2))
        >>> MotifRule(motif=motif, support=(5, 4, 1), most=2, lift=2.0, effect=0.7, chance=1e-6).most
        2
    """

    motif: Motif
    support: tuple[int, ...]
    most: int
    lift: float
    effect: float
    chance: float


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """What `extract_rules` found; `print` shows it, `prior` feeds it back into searches.

    Args:
        space: the designs.
        model: motifs and their effects.
        motifs: the same with support and significance, strongest effect first.
        letters: letters at positions, surest first.
        transitions: how often each letter follows each, ``(letters, letters)``.
        forbidden: transitions that are never seen though chance would have made them, bool ``(letters, letters)``.
        rows: of the table.
        mean: of the scores.
        spread: their standard deviation.

    Example:
        >>> from sciopt.domains.offline import Ehrlich
        >>> from sciopt.domains.offline.rules import extract_rules
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=1000)
        >>> rules = extract_rules(task.space, task.visible(), generator=torch.Generator().manual_seed(0))
        >>> sorted(rule.motif.pattern(task.space.alphabet) for rule in rules.motifs)
        ['C...HF', 'F.EG']
    """

    space: CategoricalSpace
    model: MotifModel
    motifs: tuple[MotifRule, ...]
    letters: tuple[LetterRule, ...]
    transitions: Tensor
    forbidden: Tensor
    rows: int
    mean: float
    spread: float

    def predict(self, designs: Tensor) -> Tensor:
        """Scores ``(n,)`` of designs ``(n, length)`` by motifs and letters alone."""
        x = self.space.check(designs)
        total = self.model.predict(x)
        for rule in self.letters:
            here = (x[:, rule.position] == rule.letter).to(total)
            total = total + rule.effect * (here - rule.support / self.rows)
        return total

    def breaches(self, designs: Tensor) -> Tensor:
        """Number of forbidden transitions in each design ``(n,)``."""
        x = self.space.check(designs)
        return self.forbidden.to(x.device)[x[:, :-1], x[:, 1:]].sum(-1)

    def prior(self, designs: Tensor) -> Tensor:
        """Log-prior of designs up to a constant ``(n,)``: prediction in standard deviations, less a price of each breach.

        The price of a forbidden transition is ``log(1 + 2 m)`` with m the number of times that chance would have made it.
        """
        x = self.space.check(designs)
        price = torch.where(self.forbidden, torch.log1p(2 * expected(self.transitions)), 0.0).to(x.device)
        return (self.predict(x) - self.mean) / self.spread - price[x[:, :-1], x[:, 1:]].sum(-1)

    def describe(self) -> str:
        """The rules as text."""
        alphabet = self.space.alphabet
        lines = []
        if self.motifs:
            scale = type(self.model.scale).__name__.removesuffix("Scale").lower()
            lines.append(
                f"{len(self.motifs)} motifs that may stand anywhere ({scale} effects, {self.model.explained:.1%} of the "
                "variance):"
            )
        else:
            lines.append("No motif that may stand anywhere stands out from chance.")
        for rule in self.motifs:
            lines.append(
                f"  {rule.motif.pattern(alphabet)}: {rule.most} of {len(rule.motif)} letters in {rule.support[rule.most]} "
                f"rows, effect {rule.effect:+.3g}, lift {rule.lift:+.2f} sd, p {rule.chance:.1e}"
            )
        if self.letters:
            shown = [f"{alphabet[r.letter]}{r.position + 1} {r.effect:+.3g}" for r in self.letters[:SHOWN]]
            lines.append(
                f"{len(self.letters)} letters at positions: {', '.join(shown)}{' ...' * (len(self.letters) > SHOWN)}"
            )
        else:
            lines.append("No letter at a position stands out from chance.")
        pairs = [alphabet[a] + alphabet[b] for a, b in self.forbidden.nonzero().tolist()]
        if pairs:
            lines.append(
                f"{len(pairs)} neighbours never seen: {' '.join(pairs[:SHOWN])}{' ...' * (len(pairs) > SHOWN)}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()


SHOWN = 12  # letters and transitions in a description


def expected(transitions: Tensor) -> Tensor:
    """Counts of transitions if letters followed each other by chance ``(letters, letters)``."""
    counts = transitions.to(torch.float64)
    return counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum().clamp(min=1)


def count_transitions(space: CategoricalSpace, designs: Tensor) -> Tensor:
    """How often each letter follows each in designs ``(n, length)``: int64 ``(letters, letters)``.

    Example:
        >>> count_transitions(CategoricalSpace(length=3, alphabet="AB"), torch.tensor([[0, 0, 1]]))
        tensor([[1, 1],
                [0, 0]])
    """
    counts = torch.zeros(space.letters**2, dtype=torch.int64, device=designs.device)
    pairs = (designs[:, :-1] * space.letters + designs[:, 1:]).flatten()
    return counts.index_add(0, pairs, torch.ones_like(pairs)).unflatten(0, (space.letters, space.letters))


def never_seen(transitions: Tensor, level: float) -> Tensor:
    """Neighbours of count 0, though chance would have made them with a probability above ``1 - level``, over all of them.

    Example:
        >>> never_seen(torch.tensor([[0, 40], [40, 40]]), 0.01)
        tensor([[ True, False],
                [False, False]])
    """
    return (transitions == 0) & (torch.exp(-expected(transitions)) <= level / transitions.numel())
