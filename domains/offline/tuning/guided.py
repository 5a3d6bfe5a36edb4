"""A search in rounds: fit a model where the search is, climb it, move, fit again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.domains.offline.tuning.leads import AbstractLead, EvolutionLead
from sciopt.domains.offline.tuning.local_proxy import LocalModel
from sciopt.domains.offline.tuning.models import AbstractModel, proxy_data
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["GuidedSearch"]


@final
@dataclass(frozen=True, kw_only=True)
class GuidedSearch(AbstractSearch):
    """Climb a model that is fitted anew whenever the search has moved.

    Each round fits the model around the best designs so far, lets the lead find new ones, and ranks all that was met by the
    new model. The batch is the best that is new and allowed.

    Args:
        model: what predicts scores: `LocalModel`, `Autofocus`, `SmoothModel`, or `GlobalModel`, which never changes.
        lead: how it is climbed: `EvolutionLead`, `GradientLead` or `PolicyLead`.
        rounds: fits.
        population: designs kept from round to round; at least twice the batch is kept.
        kernel: on points.
        ridge: penalty, relative to the kernel's mean diagonal.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints such as feasibility; None: everything.

    Raises:
        ValueError: for options out of range, or constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=8, neighbours=0)
        >>> search = GuidedSearch(model=LocalModel(centres=2, num_steps=5))
        >>> made = search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0))
        >>> evaluate_batch(task, made.designs).best
        1.0

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", section 5.1 (local proxies for
        evolutionary and reinforcement-learning search).
    """

    model: AbstractModel = field(default_factory=LocalModel)
    lead: AbstractLead = field(default_factory=EvolutionLead)
    rounds: int = 5
    population: int = 256
    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    ridge: float = 1e-2
    allowed: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "population"):
            value = getattr(self, name)
            check_option("GuidedSearch", name, value, value >= 1, ">= 1", "Leave the default.")
        check_option("GuidedSearch", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-2 is a good start.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`."""
        check_request("GuidedSearch", table, count, pool, space=space, generator=generator)
        data = proxy_data(space, table, kernel=self.kernel, ridge=self.ridge)
        keep = max(self.population, 2 * count)
        numbers = None if pool is None else space.number(pool)

        def allowed(designs: Tensor) -> Tensor:
            out = torch.ones(len(designs), dtype=torch.bool, device=designs.device)
            if self.allowed is not None:
                out = out & self.allowed(designs)
            return out if numbers is None else out & torch.isin(space.number(designs), numbers)

        met = data.designs[:0]
        predicted = data.targets[:0]
        current = table.best(keep)
        predictor = self.model.fit(data, current, generator)
        notes = dict.fromkeys(predictor.notes())
        for number in range(self.rounds):
            found = self.lead.move(data, predictor, current, allowed, generator)
            met = without(torch.cat([met, found[allowed(found)]]), table.designs)
            if self.model.moves and number and len(met):
                order = predictor.predict(met).argsort(descending=True, stable=True)
                predictor = self.model.fit(data, met[order], generator)
                notes |= dict.fromkeys(predictor.notes())
            predicted = predictor.predict(met) if len(met) else predicted
            order = predicted.argsort(descending=True, stable=True)[:keep]
            met, predicted = met[order], predicted[order]
            current = torch.cat([met, table.best(max(8, keep - len(met)))])
        if len(met) < count:
            raise ValueError(
                f"GuidedSearch: expected `count` = {count} allowed designs outside the table, got {len(met)}. Propose fewer, "
                "raise `rounds`, widen the lead, or loosen `allowed` or the pool."
            )
        return Proposal(designs=met[:count], predicted=predicted[:count], notes=tuple(notes))
