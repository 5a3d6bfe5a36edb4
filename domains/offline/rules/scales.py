"""How motifs make a score: their levels multiply, add, or add in the logarithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.domains.offline.rules.motifs import Motif
from sciopt.inner import NewtonCG, weighted_least_squares

__all__ = ["AbstractScale", "AdditiveScale", "Effects", "LogScale", "ProductScale"]

PENALTY = 1e-4  # on each effect: only so that levels never seen have none
TINY = 1e-12
TABLE = 1 << 16  # combinations of levels beyond which those that occur are counted


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """Fitted effects of motifs' levels, and what they leave unexplained on the scale where they add.

    Args:
        intercept: effect of no letter at all ``()``.
        steps: for each motif, what each further letter adds ``(letters,)``.
        residual: what is left on the additive scale ``(n,)``; 0 for rows that do not count.
        weight: of each row, its inverse variance ``(n,)``; 0 for rows that do not count.
        explained: share of the variance of the scores that is explained, on the scale of the fit.

    Example:
        >>> designs = torch.tensor([[0, 1], [0, 0], [1, 1]])
        >>> motif = Motif(letters=(0, 1), offsets=(0, 1))
        >>> scores = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        >>> AdditiveScale().fit([motif], designs, scores).steps[0].shape
        torch.Size([2])
    """

    intercept: Tensor
    steps: tuple[Tensor, ...]
    residual: Tensor
    weight: Tensor
    explained: float

    def part(self, index: int, motif: Motif, designs: Tensor) -> Tensor:
        """What one motif adds for each design ``(n,)``."""
        levels = torch.cat([self.intercept.new_zeros(1), self.steps[index].cumsum(-1)])
        return levels[motif.matches(designs)]

    def total(self, motifs: Sequence[Motif], designs: Tensor) -> Tensor:
        """Intercept and all parts ``(n,)``."""
        total = self.intercept.expand(len(designs))
        for index, motif in enumerate(motifs):
            total = total + self.part(index, motif, designs)
        return total


class AbstractScale(ABC):
    """The scale on which effects of motifs add."""

    @abstractmethod
    def suits(self, scores: Tensor) -> bool:
        """Whether such scores ``(n,)`` can be of this scale."""

    @abstractmethod
    def fit(self, motifs: Sequence[Motif], designs: Tensor, scores: Tensor) -> Effects:
        """Effects of the motifs' levels, by (penalised) least squares through the core."""

    @abstractmethod
    def score(self, total: Tensor) -> Tensor:
        """From sums of effects to scores."""


@final
@dataclass(frozen=True, kw_only=True)
class AdditiveScale(AbstractScale):
    """Effects add to the score.

    Example:
        >>> AdditiveScale().suits(torch.tensor([-1.0, 1.0]))
        True
    """

    def suits(self, scores: Tensor) -> bool:
        """See `AbstractScale.suits`: always."""
        return True

    def fit(self, motifs: Sequence[Motif], designs: Tensor, scores: Tensor) -> Effects:
        """See `AbstractScale.fit`: one linear system."""
        return _linear(motifs, designs, scores, torch.ones_like(scores))

    def score(self, total: Tensor) -> Tensor:
        """See `AbstractScale.score`."""
        return total


@final
@dataclass(frozen=True, kw_only=True)
class LogScale(AbstractScale):
    """Effects add to the logarithm of the score; rows of score 0 do not count. For scores without noise near 0.

    Example:
        >>> LogScale().suits(torch.tensor([0.0, 1.0, 2.0])), LogScale().suits(torch.tensor([-1.0, 1.0]))
        (True, False)
    """

    def suits(self, scores: Tensor) -> bool:
        """See `AbstractScale.suits`: no negative score, half of them at least positive and spread over a factor of four."""
        positive = scores[scores > 0]
        if bool((scores < 0).any()) or 2 * len(positive) < len(scores):
            return False
        return float(positive.max()) >= 4 * float(positive.min()) or len(positive.unique()) == 2

    def fit(self, motifs: Sequence[Motif], designs: Tensor, scores: Tensor) -> Effects:
        """See `AbstractScale.fit`: one linear system."""
        counted = scores > 0
        return _linear(motifs, designs, torch.where(counted, scores, 1.0).log(), counted.to(scores))

    def score(self, total: Tensor) -> Tensor:
        """See `AbstractScale.score`."""
        return total.clamp(max=LARGE).exp()


@final
@dataclass(frozen=True, kw_only=True)
class ProductScale(AbstractScale):
    """Effects multiply, measured by least squares on the scores themselves: for scores with noise, or many zeros.

    Example:
        >>> ProductScale().suits(torch.tensor([-0.1, 1.0])), ProductScale().suits(torch.tensor([-2.0, 1.0]))
        (True, False)
    """

    def suits(self, scores: Tensor) -> bool:
        """See `AbstractScale.suits`: a positive mean, and nothing far below 0."""
        return float(scores.mean()) > 0 and float(scores.min()) > -0.5 * float(scores.max())

    def fit(self, motifs: Sequence[Motif], designs: Tensor, scores: Tensor) -> Effects:
        """See `AbstractScale.fit`: a small non-linear problem on the distinct combinations of levels."""
        scale = scores.std(correction=0).clamp(min=TINY * float(scores.abs().max()))
        rows, place, count = distinct(motifs, designs)
        columns = _columns(motifs, rows, scores)
        mean = scores.new_zeros(len(rows)).index_add(0, place, scores) / count
        start = torch.cat([scores.mean().log().unsqueeze(0), scores.new_zeros(columns.shape[1] - 1)])
        penalty = torch.cat([scores.new_zeros(1), scores.new_full((columns.shape[1] - 1,), PENALTY)])

        def loss(theta: Tensor, phi: Tensor) -> Tensor:
            error = ((columns @ theta).clamp(-LARGE, LARGE).exp() - mean) / scale
            return 0.5 * (count * error * error).sum() + 0.5 * (phi * theta * theta).sum()

        found = best_response(
            Minimize(loss), penalty, init=start, solver=NewtonCG(rtol=1e-5, max_steps=60), throw=False
        )
        theta = found.value.detach()
        total = (columns @ theta).clamp(-LARGE, LARGE)[place]
        made = total.exp()
        error = scores - made
        variance = error.square().mean().clamp(min=TINY * float(scale) ** 2)
        flat = made.clamp(min=1e-6 * float(made.max()))  # a slope of 0 leaves nothing to be explained there
        return Effects(
            intercept=theta[0],
            steps=_split(theta[1:], motifs),
            residual=error / flat,
            weight=flat.square() / variance,
            explained=1 - float(error.square().mean()) / float(scale) ** 2,
        )

    def score(self, total: Tensor) -> Tensor:
        """See `AbstractScale.score`."""
        return total.clamp(max=LARGE).exp()


LARGE = 40.0  # logarithm beyond which no score lies


def choose_scales(scores: Tensor) -> tuple[AbstractScale, ...]:
    """The scales that suit, in the order in which they should be tried."""
    ordered: tuple[AbstractScale, ...] = (LogScale(), ProductScale(), AdditiveScale())
    return tuple(scale for scale in ordered if scale.suits(scores))


def distinct(motifs: Sequence[Motif], designs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct combinations of levels ``(m, c)`` in lexicographic order, the one of each design, and how many have each."""
    n = len(designs)
    levels = [motif.matches(designs) for motif in motifs]
    code, kinds = torch.zeros(n, dtype=torch.int64, device=designs.device), 1
    for motif, level in zip(motifs, levels, strict=True):
        code, kinds = code * (len(motif) + 1) + level, kinds * (len(motif) + 1)
        if kinds > TABLE:
            code, kinds = _ranked(code, kinds)
    code, kinds = _ranked(code, kinds)
    count = torch.bincount(code, minlength=kinds)
    last = code.new_empty(kinds).scatter_(0, code, torch.arange(n, device=code.device))  # one design of each kind
    rows = torch.stack([level[last] for level in levels], -1) if levels else last.new_zeros(kinds, 0)
    return rows, code, count.to(torch.float64)


def _ranked(code: Tensor, kinds: int) -> tuple[Tensor, int]:
    """Codes in ``[0, kinds)`` numbered anew in their order, without those that nobody has."""
    rank = torch.zeros(kinds, dtype=torch.int64, device=code.device).scatter_(0, code, 1).cumsum(0)
    return rank[code] - 1, int(rank[-1])


def _columns(motifs: Sequence[Motif], rows: Tensor, like: Tensor) -> Tensor:
    """A column of ones, then for each motif "at least one letter", "at least two", ..."""
    columns = [torch.ones(len(rows), 1, dtype=like.dtype, device=like.device)]
    for index, motif in enumerate(motifs):
        columns.append((rows[:, index, None] > torch.arange(len(motif), device=rows.device)).to(like))
    return torch.cat(columns, -1)


def _split(steps: Tensor, motifs: Sequence[Motif]) -> tuple[Tensor, ...]:
    return tuple(steps.split([len(motif) for motif in motifs])) if motifs else ()


def _linear(motifs: Sequence[Motif], designs: Tensor, targets: Tensor, counted: Tensor) -> Effects:
    """Least squares on the levels, over rows that count, summed over equal combinations of levels."""
    mean = (counted * targets).sum() / counted.sum()
    spread = (counted * (targets - mean).square()).sum() / counted.sum()
    rows, place, _ = distinct(motifs, designs)
    columns = _columns(motifs, rows, targets)
    mass = targets.new_zeros(len(rows)).index_add(0, place, counted)
    sums = targets.new_zeros(len(rows)).index_add(0, place, counted * (targets - mean))
    penalty = targets.new_full((columns.shape[1],), PENALTY)
    penalty[0] = TINY
    theta = weighted_least_squares(columns, sums / mass.clamp(min=1), mass, penalty)
    error = counted * (targets - mean - (columns @ theta)[place])
    left = (error.square().sum() / counted.sum()).clamp(min=TINY * float(spread))
    return Effects(
        intercept=theta[0] + mean,
        steps=_split(theta[1:], motifs),
        residual=error,
        weight=counted / left.clamp(min=1e-300),
        explained=1 - float(left) / max(float(spread), 1e-300),
    )
