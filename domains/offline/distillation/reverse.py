"""Reverse mapping: a generator is asked for designs of higher scores than any seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.distillation.distill import sampled
from sciopt.domains.offline.distillation.finishing import Finish, letter_by_letter
from sciopt.domains.offline.distillation.generator import GeneratorFamily
from sciopt.domains.offline.distillation.reverse_training import reverse_problem, tuned_weight
from sciopt.domains.offline.metrics import hamming
from sciopt.domains.offline.polish import Polish
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["ReverseMapping"]


@final
@dataclass(frozen=True, kw_only=True)
class ReverseMapping(AbstractSearch):
    """Ask a generator of designs, trained on scores and designs, for designs of higher scores than any seen.

    The generator maps (score, noise) to letters. Its inner problem is the likelihood of the table, in which high scores weigh
    more, plus a cycle: what a surrogate predicts for a generated design must give the score back, also for scores above
    the best, where no data say so. It is then asked for scores from the best upwards, as far as the cycle can be trusted, and
    its samples are ranked by the surrogate.

    Args:
        network: from scores and noise to letters.
        cycle_weight: of the cycle's mean squared error, in standard deviations, against nats for each letter; 0: off.
        temperature: of the weights of scores, in standard deviations, see `binned`; None: off.
        reach: highest score that is asked for, in standard deviations above the best.
        trust: error of the cycle, in standard deviations, up to which a score is asked for.
        bins: of scores.
        train_steps: of full-batch Adam.
        step_size: of Adam.
        samples: drawn for each design of the batch.
        tune_steps: steps of Adam on the logarithm of ``cycle_weight``, by the hypergradient of the likelihood of the best
            tenth of the table, which is then held back; 0: none. Each costs one training and its derivative.
        polish: local search from the samples by the surrogate's prediction; None: none.
        kernel: of the surrogate.
        rows: largest number of visible rows to learn from, see `Distillation`.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints such as feasibility; None: everything.
        dtype: of generator and surrogate.

    Raises:
        ValueError: for options out of range, or constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = ReverseMapping(train_steps=20)
        >>> search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([4, 6])

    References:
        Kumar, Levine. "Model inversion networks for model-based optimization". NeurIPS 2020. Chen et al. "Gradient-based
        Bi-level Optimization for Deep Learning: A Survey", section 5.2 (reverse mapping).
    """

    network: GeneratorFamily = field(default_factory=GeneratorFamily)
    cycle_weight: float = 0.1
    temperature: float | None = 1.0
    reach: float = 3.0
    trust: float = 1.0
    bins: int = 16
    train_steps: int = 200
    step_size: float = 1e-2
    samples: int = 16
    tune_steps: int = 0
    polish: Polish | None = None
    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    rows: int = 10_000
    allowed: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        owner = "ReverseMapping"
        ok = self.temperature is None or self.temperature > 0
        check_option(owner, "temperature", self.temperature, ok, "> 0 or None", "1 is a good start.")
        for name in ("step_size", "trust"):
            value = getattr(self, name)
            check_option(owner, name, value, value > 0, "> 0", "Leave the default.")
        for name in ("cycle_weight", "reach", "train_steps", "tune_steps"):
            value = getattr(self, name)
            check_option(owner, name, value, value >= 0, ">= 0", "Leave the default.")
        for name, least in (("bins", 2), ("samples", 1), ("rows", 2)):
            value = getattr(self, name)
            check_option(owner, name, value, value >= least, f">= {least}", "Leave the default.")
        ok = self.tune_steps == 0 or self.cycle_weight > 0
        check_option(owner, "cycle_weight", self.cycle_weight, ok, "> 0 where it is tuned", "Start at 0.1.")

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
        check_request("ReverseMapping", table, count, pool, space=space, generator=generator)
        part = sampled(table, self.rows, generator)
        options = replace(self, cycle_weight=tuned_weight(self, space, part, generator)) if self.tune_steps else self
        stated = reverse_problem(options, space, part, generator=generator)
        weights = stated.train()
        scores = stated.asked(weights, self.samples * count, generator)
        designs, shares = stated.sample(weights, scores, generator)
        if self.allowed is not None:
            best = table.best(count)
            near = best[hamming(designs, best).argmin(-1)]
            gain = (shares.gather(-1, designs.unsqueeze(-1)) - shares.gather(-1, near.unsqueeze(-1))).squeeze(-1)
            designs = letter_by_letter(near, designs, gain, self.allowed)
        if self.polish is not None:
            polish = self.polish if self.allowed is None else replace(self.polish, allowed=self.allowed)
            designs, predicted = polish.improve(
                stated.surrogate.predict, space, table, designs, count, generator=generator, pool=pool
            )
            return Proposal(designs=designs, predicted=predicted)
        finish = Finish(
            owner="ReverseMapping", space=space, known=table.designs, merit=stated.surrogate.predict,
            allowed=self.allowed, pool=pool,
        )  # fmt: skip
        found = finish.batch(designs, count, generator)
        return Proposal(designs=found, predicted=stated.surrogate.predict(found))
