"""Importance weights that follow a search: train the model where the search is, not where the table is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_finite, check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.tuning.models import AbstractModel, KernelPredictor, ProxyData
from sciopt.domains.offline.tuning.weighting import effective_size
from sciopt.inner import fit_kernel

__all__ = ["Autofocus", "Flattened", "flattened", "letter_log_densities"]

HALVINGS = 60  # of [0, 1]: the exponent to rounding


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Flattened:
    """Importance weights that keep a least effective sample size. Made by `flattened`.

    Args:
        weights: ``(*batch, n)``, positive, of mean 1.
        exponent: what the ratios were raised to ``(*batch,)``, in [0, 1]; 1 where they were left alone.
        size: effective sample size of the weights ``(*batch,)``.
        acted: where the guard had to flatten them, bool ``(*batch,)``.

    Example:
        >>> flattened(torch.tensor([0.0, 0.0]), 0.5).acted
        tensor(False)
    """

    weights: Tensor
    exponent: Tensor
    size: Tensor
    acted: Tensor


def flattened(log_ratios: Tensor, fraction: float) -> Flattened:
    """Weights ``ratio^exponent`` with the largest exponent in [0, 1] whose effective sample size is ``fraction n``.

    The effective size falls steadily with the exponent, from n at 0: the exponent is found by bisection, all of the batch at
    once.

    Args:
        log_ratios: logarithms of density ratios ``(*batch, n)``.
        fraction: least share of n that the effective sample size may have, in [0, 1); 0: no guard.

    Returns:
        `Flattened`.

    Raises:
        ValueError: for a ``fraction`` out of range, or ratios that are not finite.

    Example:
        >>> made = flattened(torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64), 0.5)
        >>> made.acted, made.size.round(decimals=6)
        (tensor(True), tensor(2., dtype=torch.float64))

    References:
        Fannjiang, Listgarten. "Autofocused oracles for model-based design". NeurIPS 2020, section 4 and supplement S4
        (flattened weights, effective sample size).
    """
    check_option("flattened", "fraction", fraction, 0 <= fraction < 1, "in [0, 1)", "0.3 is a good start.")
    check_finite("flattened", "log_ratios", [log_ratios])
    logs = log_ratios - log_ratios.amax(-1, keepdim=True)
    least = fraction * logs.shape[-1]
    acted = effective_size(logs.exp()) < least
    low, high = torch.zeros_like(logs[..., 0]), torch.ones_like(logs[..., 0])
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = effective_size((middle.unsqueeze(-1) * logs).exp()) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    exponent = torch.where(acted, low, 1.0)
    weights = (exponent.unsqueeze(-1) * logs).exp()
    weights = weights / weights.mean(-1, keepdim=True)
    return Flattened(weights=weights, exponent=exponent, size=effective_size(weights), acted=acted)


def letter_log_densities(space: CategoricalSpace, sample: Tensor, at: Tensor, pseudocount: float) -> Tensor:
    """Log densities ``(n,)`` at designs ``(n, length)`` of independent letters, with the frequencies of a sample.

    Args:
        space: the designs.
        sample: ``(m, length)``.
        at: ``(n, length)``.
        pseudocount: added to the count of each letter, spread evenly over the letters; > 0.

    Example:
        >>> space = CategoricalSpace(length=1, alphabet="ab")
        >>> letter_log_densities(space, torch.tensor([[0], [0], [1]]), torch.tensor([[0], [1]]), 1.0).exp()
        tensor([0.6250, 0.3750], dtype=torch.float64)
    """
    counts = space.one_hot(sample).sum(0) + pseudocount / space.letters
    logs = (counts / counts.sum(-1, keepdim=True)).log()
    return logs.expand(len(at), -1, -1).gather(-1, at.unsqueeze(-1)).squeeze(-1).sum(-1)


@final
@dataclass(frozen=True, kw_only=True)
class Autofocus(AbstractModel):
    """Kernel ridge on all rows, weighted by how much more often the search would draw a row than the table does.

    Both distributions are independent letters, fitted to the best current designs and to the table. Weights matter only
    where the model cannot follow all rows: raise the search's ``ridge`` for measurements with noise.

    Args:
        fraction: guard: least effective sample size, as a share of the rows; the ratios are flattened until it is met; 0
            lets them be.
        elite: current designs that the search distribution is fitted to, the best.
        pseudocount: designs' worth of evenly spread letters in both distributions; > 0.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> Autofocus(fraction=0.5).fit(data, data.designs[:4], torch.Generator()).notes()
        ('importance weights flattened by the exponent 0.93 to an effective sample size of 16 of 32 rows',)

    References:
        Fannjiang, Listgarten. "Autofocused oracles for model-based design". NeurIPS 2020, algorithm 1.
    """

    fraction: float = 0.5
    elite: int = 128
    pseudocount: float = 4.0

    def __post_init__(self) -> None:
        ok = 0 <= self.fraction < 1
        check_option("Autofocus", "fraction", self.fraction, ok, "in [0, 1)", "0.5 is a good start.")
        check_option("Autofocus", "elite", self.elite, self.elite >= 1, ">= 1", "Leave the default.")
        check_option("Autofocus", "pseudocount", self.pseudocount, self.pseudocount > 0, "> 0", "4 is a good start.")

    @property
    def moves(self) -> bool:
        """See `AbstractModel.moves`."""
        return True

    def importance(self, data: ProxyData, current: Tensor) -> Flattened:
        """Weights of the rows of ``data``, for a search at ``current``."""
        target = letter_log_densities(data.space, current[: self.elite], data.designs, self.pseudocount)
        source = letter_log_densities(data.space, data.table.designs, data.designs, self.pseudocount)
        return flattened(target - source, self.fraction)

    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> KernelPredictor:
        """See `AbstractModel.fit`; nothing is drawn at random."""
        made = self.importance(data, current)
        least = made.weights.clamp(min=1e-12)
        fit = fit_kernel(data.kernel, data.points, data.targets, data.ridge, data.mass * least, rtol=1e-6)
        remarks: tuple[str, ...] = ()
        if bool(made.acted):
            remarks = (
                f"importance weights flattened by the exponent {float(made.exponent):.2g} to an effective sample size of "
                f"{float(made.size):.0f} of {len(data.points)} rows",
            )
        return KernelPredictor(data=data, points=fit.points, coefficients=fit.coefficients, remarks=remarks)
