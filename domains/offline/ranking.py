"""Kernel surrogates on discrete designs, and the ranking of every design of a space that can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.symmetry import AbstractSymmetry, averaged, unseen
from sciopt.domains.offline.task import Table
from sciopt.inner import KernelFit, fit_kernel, merge_duplicates
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["ExhaustiveRanking", "Surrogate", "fit_surrogate"]

CHUNK = 4096  # designs predicted at a time


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """A fitted kernel model of scores. Made by `fit_surrogate`.

    Args:
        relaxation: designs as points.
        fit: the kernel ridge regression, in standardised scores.
        mean: of the visible scores.
        scale: their standard deviation.
        amplitude: variance of the Gaussian process per unit of the kernel, of maximum likelihood (in closed form).

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> surrogate = fit_surrogate(task.space, task.visible())
        >>> error = surrogate.predict(task.visible().designs) - task.visible().scores
        >>> bool(error.abs().max() < 0.01)
        True
    """

    relaxation: LogitRelaxation
    fit: KernelFit
    mean: Tensor
    scale: Tensor
    amplitude: Tensor

    def predict(self, designs: Tensor) -> Tensor:
        """Scores of designs ``(n, length)``: ``(n,)``, float64, in the table's units."""
        with torch.no_grad():
            parts = [self.fit.mean(self.relaxation.points(chunk)) for chunk in designs.split(CHUNK)]
        return torch.cat(parts).to(torch.float64) * self.scale + self.mean

    def posterior(self, designs: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(n,)`` and joint covariance ``(n, n)`` of the scores of designs, float64, without measurement noise.

        Fit in float64: a covariance is a difference of numbers that are nearly equal.

        References:
            Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 2.26; the amplitude
            maximises eq. 2.30 with the ridge relative to it.
        """
        with torch.no_grad():
            covariance = self.fit.covariance(self.relaxation.points(designs)).to(torch.float64)
        return self.predict(designs), covariance * self.amplitude * self.scale**2


def fit_surrogate(
    space: CategoricalSpace,
    table: Table,
    *,
    kernel: AbstractKernel | None = None,
    ridge: float = 1e-6,
    keep: float = 0.6,
    dtype: torch.dtype = torch.float64,
    rtol: float | None = None,
    stored_points: int = 40_000,
) -> Surrogate:
    """Kernel ridge regression on the standardised logits of the visible designs.

    Args:
        space: the designs.
        table: what is known; equal designs are merged.
        kernel: on points; None: the NTK of a ReLU network with 5 hidden layers.
        ridge: penalty, relative to the kernel's mean diagonal.
        keep: smoothing of letters, see `LogitRelaxation`.
        dtype: of the kernel.
        rtol: of an iterative solve, above 15,000 points.
        stored_points: see `sciopt.inner.fit_kernel`.

    Returns:
        `Surrogate`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> fit_surrogate(task.space, task.visible(), dtype=torch.float32).fit.coefficients.dtype
        torch.float32
    """
    chosen = NTK(DenseNetwork(hidden_layers=5)) if kernel is None else kernel
    relaxation = fit_relaxation(space, table, keep=keep, dtype=dtype)
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    points = relaxation.points(table.designs)
    penalty = ridge * chosen.diagonal(points).mean()
    fit = fit_kernel(chosen, points, targets.to(dtype), penalty, rtol=rtol, stored_points=stored_points)
    merged = merge_duplicates(points, targets.to(dtype))[1]  # in the order of the coefficients
    amplitude = ((merged @ fit.coefficients) / len(merged)).to(torch.float64)
    return Surrogate(relaxation=relaxation, fit=fit, mean=mean, scale=scale, amplitude=amplitude)


@final
@dataclass(frozen=True, kw_only=True)
class ExhaustiveRanking(AbstractSearch):
    """The designs of highest predicted score among all that are allowed and not visible.

    For spaces of up to four million designs, or with a pool, this is the best that a surrogate can do: no search can fail.

    Args:
        kernel: of the surrogate.
        ridge: see `fit_surrogate`.
        dtype: of the kernel.
        rtol: of an iterative solve.
        symmetry: designs of equal score, such as `ReverseComplement`: predictions are averaged over both, one of them is
            proposed, and none whose image is visible.

    Example:
        >>> from sciopt.domains.offline import evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> made = ExhaustiveRanking().propose(task.space, task.visible(), 3, generator=torch.Generator())
        >>> evaluate_batch(task, made.designs).best
        1.0
    """

    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    ridge: float = 1e-6
    dtype: torch.dtype = torch.float32
    rtol: float | None = 1e-3
    symmetry: AbstractSymmetry | None = None

    def __post_init__(self) -> None:
        check_option("ExhaustiveRanking", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-6 is a good start.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; nothing is drawn at random."""
        candidates = unseen("ExhaustiveRanking", space, table, count, pool=pool, symmetry=self.symmetry)
        surrogate = fit_surrogate(space, table, kernel=self.kernel, ridge=self.ridge, dtype=self.dtype, rtol=self.rtol)
        predicted = averaged(surrogate.predict, space, candidates, self.symmetry)
        order = predicted.argsort(descending=True, stable=True)[:count]
        return Proposal(designs=candidates[order], predicted=predicted[order])
