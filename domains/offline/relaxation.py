"""Between discrete designs and points of a continuous space: smoothed one-hot logits, standardised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["LogitRelaxation", "fit_relaxation", "standardised"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LogitRelaxation:
    """Designs as standardised logits of smoothed letters, the first letter's logit subtracted and dropped.

    Args:
        space: the designs.
        keep: share of a letter that stays on it; the rest is spread over all letters.
        mean: of the visible logits, ``(length * (letters - 1),)``.
        scale: their standard deviation, 1 where it vanishes.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="abc")
        >>> table = Table(designs=space.everything(), scores=torch.zeros(9, dtype=torch.float64))
        >>> relaxation = fit_relaxation(space, table)
        >>> bool((relaxation.designs(relaxation.points(table.designs)) == table.designs).all())
        True

    References:
        Trabucco et al. "Design-Bench". ICML 2022, appendix (discrete tasks as logits).
    """

    space: CategoricalSpace
    keep: float
    mean: Tensor
    scale: Tensor

    def points(self, designs: Tensor) -> Tensor:
        """Designs ``(n, length)`` as points ``(n, length * (letters - 1))`` in the dtype of ``mean``."""
        return self.mixtures(self.space.one_hot(designs))

    def mixtures(self, shares: Tensor) -> Tensor:
        """Shares of letters ``(n, length, letters)``, each position's of sum 1, as points; differentiable."""
        return (_logits(shares, self.keep).to(self.mean) - self.mean) / self.scale

    def logits(self, points: Tensor) -> Tensor:
        """Points as logits of all letters ``(n, length, letters)``, the first letter's 0."""
        logits = (points * self.scale + self.mean).unflatten(-1, (self.space.length, self.space.letters - 1))
        return torch.cat([torch.zeros_like(logits[..., :1]), logits], -1)

    def designs(self, points: Tensor) -> Tensor:
        """The letters of largest logit, int64 ``(n, length)``."""
        return self.logits(points).argmax(-1)


def fit_relaxation(
    space: CategoricalSpace, table: Table, *, keep: float = 0.6, dtype: torch.dtype = torch.float64
) -> LogitRelaxation:
    """The relaxation of a space, standardised by the visible designs (each row of the table counts).

    Args:
        space: the designs.
        table: the visible rows.
        keep: in (0, 1).
        dtype: of the points.

    Returns:
        `LogitRelaxation`.

    Raises:
        ValueError: for ``keep`` out of range or an empty table.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="abc")
        >>> table = Table(designs=space.everything(), scores=torch.zeros(9, dtype=torch.float64))
        >>> fit_relaxation(space, table).points(table.designs).mean(0).abs().max() < 1e-12
        tensor(True)
    """
    check_option("fit_relaxation", "keep", keep, 0 < keep < 1, "in (0, 1)", "0.6 is published.")
    check_option("fit_relaxation", "table", len(table), len(table) >= 1, "with at least one row", "Pass data.")
    logits = _logits(space.one_hot(table.designs), keep)
    scale = logits.std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)  # a position that never varies
    return LogitRelaxation(space=space, keep=keep, mean=logits.mean(0).to(dtype), scale=scale.to(dtype))


def standardised(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with mean 0 and standard deviation 1, their mean and their standard deviation.

    Raises:
        ValueError: for constant scores, of which nothing can be learned.

    Example:
        >>> standardised(torch.tensor([1.0, 3.0]))
        (tensor([-1.,  1.]), tensor(2.), tensor(1.))
    """
    mean, scale = scores.mean(), scores.std(correction=0)
    if not float(scale) > 1e-12 * float(scores.abs().max().clamp(min=1e-300)):
        raise ValueError(
            f"standardised: expected `scores` that differ, got {len(scores)} times {float(mean):.6g}. Nothing can be learned "
            "from them: propose at random instead."
        )
    return (scores - mean) / scale, mean, scale


def _logits(shares: Tensor, keep: float) -> Tensor:
    """Of shares ``(*any, length, letters)``: ``(*any, length * (letters - 1))``."""
    smooth = torch.log(keep * shares + (1 - keep) / shares.shape[-1])
    return (smooth[..., 1:] - smooth[..., :1]).flatten(-2)
