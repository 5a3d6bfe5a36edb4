"""The bi-level problem of a local proxy: rows and neighbours around each centre, weights and labels chosen by validation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.domains.offline.tuning.validation import AbstractValidation
from sciopt.domains.offline.tuning.weighting import AbstractWeighting
from sciopt.hypergradients import ClosedForm
from sciopt.inner import left_out_errors, weighted_kernel_ridge
from sciopt.outer import OptimizeResult, optimize
from sciopt.problem import Minimize

__all__ = ["LocalProblem"]

Outer = dict[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LocalProblem:
    """c independent bi-level problems, one for each centre, in one batch.

    Inner: kernel ridge on n visible rows and p neighbours of the centre, with sample weights and pseudo-labels; rows farther
    away have had their say in the kernel and in a prior mean. Outer: the leave-one-out predictions of the visible rows,
    judged by their nearness to the centre, and a prior that keeps weights near 1
    and pseudo-labels near what the global model says. Outer variables, each with leading dimension c: ``weights``, as many
    as the weighting has; ``labels`` ``(c, p)``; ``penalty`` ``(c, 1)``, the logarithm of the ridge against its start. The
    weight of the neighbours is none of them: their labels come from a model that has seen the rows, and validation on
    these would trust it too much.

    Args:
        kernel: between rows and then neighbours, ``(c, n + p, n + p)``.
        mean: prior mean of rows and neighbours ``(c, n + p)``.
        targets: standardised scores of the rows ``(c, n)``.
        mass: measurements behind each row ``(c, n)``.
        features: of the rows ``(c, n, q)``, for the weighting.
        share: of each row in the outer loss ``(c, n)``, summing to 1.
        labels: the global model's predictions of the neighbours ``(c, p)``; p may be 0.
        doubt: standard deviation of those predictions ``(c, p)``, > 0.
        trust: weight of a neighbour, > 0.
        ridge: start of the penalty ``()``.
        weighting: of the rows; None: the weights stay 1.
        validation: how leave-one-out predictions are judged.
        shrinkage: weight of the prior, >= 0.

    Example:
        >>> from sciopt.domains.offline.tuning import SquaredError
        >>> one = torch.ones(1, 3, dtype=torch.float64)
        >>> problem = LocalProblem(
        ...     kernel=torch.eye(3, dtype=torch.float64).unsqueeze(0), mean=0 * one, targets=one, mass=one,
        ...     features=one.unsqueeze(-1), share=one / 3, labels=one[:, :0], doubt=one[:, :0], trust=1.0,
        ...     ridge=one[0, 0], weighting=None, validation=SquaredError(), shrinkage=1.0,
        ... )  # fmt: skip
        >>> problem.formula(problem.start())
        tensor([[0.5000, 0.5000, 0.5000]], dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", section 5.1 (tuning parameters).
    """

    kernel: Tensor
    mean: Tensor
    targets: Tensor
    mass: Tensor
    features: Tensor
    share: Tensor
    labels: Tensor
    doubt: Tensor
    trust: float
    ridge: Tensor
    weighting: AbstractWeighting | None
    validation: AbstractValidation
    shrinkage: float

    def start(self) -> Outer:
        """Weights 1, labels as the global model predicts, the given ridge."""
        column = torch.zeros_like(self.targets[:, :1])
        outer: Outer = {"penalty": column}
        if self.weighting is not None:
            outer["weights"] = self.weighting.start(self.features)
        if self.labels.shape[-1]:
            outer["labels"] = self.labels
        return outer

    def weights(self, outer: Outer) -> Tensor:
        """Weights of rows and neighbours ``(c, n + p)``, positive."""
        logs = torch.zeros_like(self.targets)
        if self.weighting is not None:
            logs = self.weighting.log_weights(outer["weights"], self.features)
        out = self.mass * logs.exp()
        if self.labels.shape[-1]:
            out = torch.cat([out, torch.full_like(self.labels, self.trust)], -1)
        return out

    def penalty(self, outer: Outer) -> Tensor:
        """Ridge of each centre ``(c, 1)``."""
        return self.ridge * outer["penalty"].exp()

    @property
    def inner(self) -> Minimize:
        """Weighted kernel ridge in its dual weights ``(c, n + p)``, a batch of c problems."""

        def energy(alpha: Tensor, outer: Outer) -> Tensor:
            fitted = (self.kernel @ alpha.unsqueeze(-1)).squeeze(-1)
            error = fitted - self._all_targets(outer)
            return (self.weights(outer) * error.square()).sum(-1) + (self.penalty(outer) * alpha * fitted).sum(-1)

        return Minimize(energy, batch_ndim=1)

    def formula(self, outer: Outer) -> Tensor:
        """The inner solution ``(c, n + p)``."""
        return weighted_kernel_ridge(self.kernel, self._all_targets(outer), self.weights(outer), self.penalty(outer))

    def left_out(self, alpha: Tensor, outer: Outer) -> Tensor:
        """Leave-one-out predictions of the visible rows ``(c, n)``."""
        found = left_out_errors(self.kernel, alpha, self.weights(outer), self.penalty(outer))
        return self.targets - found[:, : self.targets.shape[-1]]

    def loss(self, alpha: Tensor, outer: Outer) -> Tensor:
        """The outer loss of each centre ``(c,)``."""
        total = self.validation.loss(self.left_out(alpha, outer), self.targets, self.share)
        prior = outer["penalty"].square().sum(-1) / 25
        if self.weighting is not None:
            prior = prior + self.weighting.log_weights(outer["weights"], self.features).square().mean(-1)
        if self.labels.shape[-1]:
            prior = prior + ((outer["labels"] - self.labels) / self.doubt).square().mean(-1)
        return total + self.shrinkage * prior

    def problem(self) -> BilevelProblem:
        """The core's statement: the sum over independent centres."""
        return BilevelProblem(inner=self.inner, outer_loss=lambda alpha, outer: self.loss(alpha, outer).sum())

    def tune(self, num_steps: int, step_size: float) -> OptimizeResult:
        """Adam on the outer variables, by hypergradients through the closed form."""
        start = self.start()
        return optimize(
            self.problem(),
            start,
            init=torch.zeros_like(self.kernel[..., 0]),
            outer=partial(torch.optim.Adam, lr=step_size),
            hypergradient=ClosedForm(self.formula),
            max_steps=num_steps,
            warm_start=False,
            certificate=False,
        )

    def _all_targets(self, outer: Outer) -> Tensor:
        known = torch.cat([self.targets, outer["labels"]], -1) if self.labels.shape[-1] else self.targets
        return known - self.mean
