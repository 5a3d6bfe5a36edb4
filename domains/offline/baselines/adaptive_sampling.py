"""Conditioning by adaptive sampling: a generator drawn towards high predictions, held near the data by weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.ascent import train_ensemble
from sciopt.domains.offline.baselines.simple import RandomSearch
from sciopt.domains.offline.relaxation import fit_relaxation, standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["CbAS"]


@final
@dataclass(frozen=True, kw_only=True)
class CbAS(AbstractSearch):
    """Samples of ``p(x | score >= threshold)``, the threshold raised round by round.

    p is a product of letter frequencies fitted to the visible designs, a generator q of the same form follows it: each
    round draws from q, weights the draws by ``p(x) / q(x) P(score(x) >= threshold)``, and fits q to them. The
    probability comes from the mean and spread of an ensemble; the threshold is a quantile of the draws' predictions and
    never falls. Where the weights' effective number drops below ``least_effective``, q keeps a share of its last form.
    Published with a variational autoencoder as generator: a product is all that a few thousand short sequences support.

    Args:
        members: networks of the ensemble.
        hidden: width of both hidden layers.
        rows: largest number of visible rows to train on; more are sampled.
        train_steps: of full-batch Adam.
        draws: designs sampled in each round.
        rounds: of sampling and fitting.
        quantile: of the draws' predictions that the threshold becomes, in (0, 1).
        smoothing: share of uniform letters in every fit, in (0, 1).
        least_effective: effective sample size, as a share of ``draws``, below which q moves only part of the way.
        keep: smoothing of letters for the networks, see `LogitRelaxation`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = CbAS(train_steps=20, rounds=3, draws=64)
        >>> search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([4, 6])

    References:
        Brookes, Park, Listgarten. "Conditioning by adaptive sampling for robust design". ICML 2019, algorithm 1.
    """

    members: int = 5
    hidden: int = 64
    rows: int = 5_000
    train_steps: int = 300
    draws: int = 1000
    rounds: int = 20
    quantile: float = 0.9
    smoothing: float = 0.02
    least_effective: float = 0.02
    keep: float = 0.6

    def __post_init__(self) -> None:
        owner = "CbAS"
        for name in ("members", "hidden", "rows", "train_steps", "draws", "rounds"):
            check_option(owner, name, getattr(self, name), getattr(self, name) >= 1, ">= 1", "Leave the default.")
        for name in ("quantile", "smoothing", "least_effective"):
            value = getattr(self, name)
            check_option(owner, name, value, 0 < value < 1, "in (0, 1)", "Leave the default.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`: new designs of the last generator, then of the rounds before it."""
        check_request("CbAS", table, count, pool, space=space, generator=generator)
        device = table.designs.device
        relaxation = fit_relaxation(space, table, keep=self.keep, dtype=torch.float32)
        targets, mean, scale = standardised(table.scores.to(torch.float64))
        rows = torch.randperm(len(table), generator=generator, device=generator.device)[: self.rows].to(device)
        nets = train_ensemble(
            relaxation.points(table.designs[rows]), targets[rows].to(torch.float32), members=self.members,
            hidden=self.hidden, max_steps=self.train_steps, generator=generator,
        )  # fmt: skip
        noise = nets.loss.mean()  # what the networks leave unexplained

        def judged(designs: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                each = nets.predict(relaxation.points(designs))
            return each.mean(0), (each.var(0, correction=0) + noise).sqrt()

        prior = self._fitted(space, table.designs, torch.ones(len(table), dtype=torch.float64, device=device))
        current, threshold = prior, torch.tensor(-torch.inf, device=device)
        batches: list[Tensor] = []
        for _ in range(self.rounds):
            designs = _drawn(current, self.draws, generator)
            batches.append(designs)
            centre, spread = judged(designs)
            threshold = torch.maximum(threshold, torch.quantile(centre, self.quantile))
            above = torch.special.log_ndtr((centre - threshold) / spread).to(torch.float64)
            weights = torch.softmax(_logarithm(prior, designs) - _logarithm(current, designs) + above, 0)
            effective = 1 / weights.square().sum() / self.draws
            step = (effective / self.least_effective).clamp(max=1.0)
            current = (1 - step) * current + step * self._fitted(space, designs, weights)
        batches.append(_drawn(current, max(self.draws, 4 * count), generator))
        found = torch.empty(0, space.length, dtype=torch.int64, device=device)
        for designs in reversed(batches):
            fresh = without(designs, torch.cat([table.designs, found]))
            if pool is not None:
                fresh = fresh[torch.isin(space.number(fresh), space.number(pool))]
            fresh = fresh[judged(fresh)[0].argsort(descending=True, stable=True)]
            found = torch.cat([found, fresh])[:count]
        if len(found) < count:  # a generator that knows few designs: the rest is chance
            more = Table(
                designs=torch.cat([table.designs, found]), scores=table.scores.new_zeros(len(table) + len(found))
            )
            rest = RandomSearch().propose(space, more, count - len(found), generator=generator, pool=pool)
            found = torch.cat([found, rest.designs])
        return Proposal(designs=found, predicted=judged(found)[0].to(torch.float64) * scale + mean)

    def _fitted(self, space: CategoricalSpace, designs: Tensor, weights: Tensor) -> Tensor:
        """Weighted frequencies of letters ``(length, letters)``, smoothed."""
        share = torch.einsum("n,nla->la", weights / weights.sum(), space.one_hot(designs))
        return (1 - self.smoothing) * share + self.smoothing / space.letters


def _drawn(frequencies: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Designs ``(count, length)`` of independent letters."""
    table = frequencies.to(generator.device)
    return torch.multinomial(table, count, replacement=True, generator=generator).mT.to(frequencies.device)


def _logarithm(frequencies: Tensor, designs: Tensor) -> Tensor:
    """Log probability of each design ``(n,)``."""
    return frequencies.log().gather(1, designs.mT).sum(0)
