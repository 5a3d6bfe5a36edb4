"""A shortlist by any search, and from it the batch that the posterior of a surrogate asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.acquisition import AbstractAcquisition, UpperConfidence
from sciopt.domains.offline.evolution import EvolutionarySearch
from sciopt.domains.offline.metrics import hamming
from sciopt.domains.offline.ranking import ExhaustiveRanking, fit_surrogate
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import ENUMERABLE, CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["PosteriorSearch"]


@final
@dataclass(frozen=True, kw_only=True)
class PosteriorSearch(AbstractSearch):
    """The batch that an acquisition chooses from the joint posterior over a shortlist.

    A ranking proposes the highest means, however alike and however unsure; this spends part of the batch on what is unsure
    or different. Costs the shortlist, one dense float64 fit to at most ``rows`` rows, and a covariance of ``candidates^2``
    numbers.

    Args:
        acquisition: how the batch is chosen.
        candidates: size of the shortlist, or the size of the batch if that is more; less where fewer designs are allowed.
        shortlist: the search that makes it, with its own constraints; None: `ExhaustiveRanking` with a pool or where the
            space can be enumerated, else `EvolutionarySearch`, both with the same kernel and ridge.
        kernel: of the surrogate whose posterior counts.
        ridge: see `fit_surrogate`.
        rows: largest number of rows behind the covariance. Of a longer table the rows nearest to the shortlist are taken,
            and the means are the shortlist's own predictions, from all rows.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = PosteriorSearch(acquisition=UpperConfidence(weight=0.5), candidates=16)
        >>> made = search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0))
        >>> made.designs.shape
        torch.Size([4, 6])
    """

    acquisition: AbstractAcquisition = field(default_factory=UpperConfidence)
    candidates: int = 1024
    shortlist: AbstractSearch | None = None
    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    ridge: float = 1e-6
    rows: int = 5000

    def __post_init__(self) -> None:
        check_option("PosteriorSearch", "candidates", self.candidates, self.candidates >= 1, ">= 1", "E.g. 1024.")
        check_option("PosteriorSearch", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-6 is a good start.")
        check_option("PosteriorSearch", "rows", self.rows, self.rows >= 2, ">= 2", "Leave the default.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; the designs come in the order of their choice."""
        check_request("PosteriorSearch", table, count, pool, space=space, generator=generator)
        small = pool is not None or space.size <= ENUMERABLE
        left = max(self.candidates, count)
        if small:
            known = len(torch.unique(table.designs, dim=0))
            open_ = space.size - known if pool is None else len(without(pool, table.designs))
            if open_ < count:
                raise ValueError(
                    f"PosteriorSearch: expected at least `count` = {count} allowed designs outside the table, got {open_}. "
                    "Propose fewer."
                )
            left = min(left, open_)
        search = self.shortlist
        if search is None:
            kind = ExhaustiveRanking if small else EvolutionarySearch
            search = kind(kernel=self.kernel, ridge=self.ridge)
        short = search.propose(space, table, left, generator=generator, pool=pool)
        found, places = torch.unique(short.designs, dim=0, return_inverse=True)
        if len(found) < count:
            raise ValueError(
                f"PosteriorSearch: expected `shortlist` to find `count` = {count} distinct designs, got {len(found)}. Raise "
                "`candidates`, or use another search."
            )
        near = _nearest(table, found, self.rows)
        mean, covariance = fit_surrogate(space, near, kernel=self.kernel, ridge=self.ridge).posterior(found)
        if len(near) < len(table) and short.predicted is not None:
            mean = torch.zeros_like(mean).scatter(0, places, short.predicted.to(mean))
        alike = 1 - hamming(found, found).to(mean) / space.length
        best = float(table.scores.max())
        chosen = self.acquisition.choose(mean, covariance, best, count, generator=generator, similarity=alike)
        return Proposal(designs=found[chosen], predicted=mean[chosen])


def _nearest(table: Table, designs: Tensor, rows: int) -> Table:
    """The rows of the table that differ least from one of the designs."""
    if len(table) <= rows:
        return table
    distance = torch.cat([hamming(chunk, designs).amin(-1) for chunk in table.designs.split(CHUNK)])
    kept = distance.argsort(stable=True)[:rows].sort().values
    return Table(designs=table.designs[kept], scores=table.scores[kept])


CHUNK = 4096  # rows compared at a time
