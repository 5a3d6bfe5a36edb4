"""CMA-ES on relaxed logits, led by an ensemble; needs the package `cma`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.ascent import train_ensemble
from sciopt.domains.offline.baselines.simple import MutateTheBest
from sciopt.domains.offline.relaxation import fit_relaxation, standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["CMAES"]


@final
@dataclass(frozen=True, kw_only=True)
class CMAES(AbstractSearch):
    """Covariance matrix adaptation from the best visible design, in standardised logits, with an ensemble as objective.

    Needs no gradient of the model. The covariance has ``(length (letters - 1))^2`` numbers, so that long sequences of large
    alphabets get slow. The batch is the best predicted of all new designs that the run has met; where these are too few,
    mutants of the best complete it.

    Args:
        members: networks of the ensemble.
        hidden: width of both hidden layers.
        rows: largest number of visible rows to train on; more are sampled.
        train_steps: of full-batch Adam.
        sigma: first standard deviation, in standardised logits.
        population: candidates in each generation, >= 2.
        generations: largest number.
        keep: smoothing of letters, see `LogitRelaxation`.

    Raises:
        ImportError: without the package `cma`, before any work.
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = CMAES(train_steps=20, generations=5)
        >>> search.propose(  # doctest: +SKIP
        ...     task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)
        ... ).designs.shape
        torch.Size([4, 6])

    References:
        Hansen. "The CMA evolution strategy: a tutorial". arXiv:1604.00772, 2016. Trabucco et al. "Design-Bench". ICML 2022,
        section 5.
    """

    members: int = 5
    hidden: int = 64
    rows: int = 5_000
    train_steps: int = 300
    sigma: float = 0.5
    population: int = 64
    generations: int = 60
    keep: float = 0.6

    def __post_init__(self) -> None:
        owner = "CMAES"
        for name, least in {
            "members": 1,
            "hidden": 1,
            "rows": 1,
            "train_steps": 1,
            "population": 2,
            "generations": 1,
        }.items():
            value = getattr(self, name)
            check_option(owner, name, value, value >= least, f">= {least}", "Leave the default.")
        check_option(owner, "sigma", self.sigma, self.sigma > 0, "> 0", "0.5 is a good start.")

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
        cma = _package()
        check_request("CMAES", table, count, pool, space=space, generator=generator)
        device = table.designs.device
        relaxation = fit_relaxation(space, table, keep=self.keep, dtype=torch.float32)
        targets, mean, scale = standardised(table.scores.to(torch.float64))
        rows = torch.randperm(len(table), generator=generator, device=generator.device)[: self.rows].to(device)
        nets = train_ensemble(
            relaxation.points(table.designs[rows]), targets[rows].to(torch.float32), members=self.members,
            hidden=self.hidden, max_steps=self.train_steps, generator=generator,
        )  # fmt: skip

        def value(points: Tensor) -> Tensor:
            with torch.no_grad():
                return nets.predict(points).mean(0)

        source = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator, device=generator.device)))
        options: dict[str, Any] = {
            "popsize": self.population, "maxiter": self.generations, "verbose": -9, "seed": np.nan,
            "randn": lambda *shape: source.standard_normal(shape),
        }  # fmt: skip
        start = relaxation.points(table.best(1))[0].to("cpu", torch.float64).numpy()
        strategy = cma.CMAEvolutionStrategy(start, self.sigma, options)
        met = torch.empty(0, space.length, dtype=torch.int64, device=device)
        while not strategy.stop():
            asked = strategy.ask()
            points = torch.as_tensor(np.stack(asked), dtype=torch.float32).to(device)
            strategy.tell(asked, (-value(points)).to("cpu", torch.float64).tolist())
            met = torch.cat([met, relaxation.designs(points)])
        fresh = without(met, table.designs)
        if pool is not None:
            fresh = fresh[torch.isin(space.number(fresh), space.number(pool))]
        predicted = value(relaxation.points(fresh))
        found = fresh[predicted.argsort(descending=True, stable=True)[:count]]
        if len(found) < count:
            more = Table(
                designs=torch.cat([table.designs, found]),
                scores=torch.cat([table.scores, table.scores.max().expand(len(found))]),
            )
            rest = MutateTheBest().propose(space, more, count - len(found), generator=generator, pool=pool)
            found = torch.cat([found, rest.designs])
        return Proposal(designs=found, predicted=value(relaxation.points(found)).to(torch.float64) * scale + mean)


def _package() -> ModuleType:
    try:
        return importlib.import_module("cma")
    except ImportError as error:
        raise ImportError(
            "CMAES: expected the package `cma`, got none. Install it: pip install 'sciopt[offline]', or use "
            "EvolutionarySearch."
        ) from error
