"""What leads a search: predictors of scores, how they are fitted around current designs, and the data they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.ranking import Surrogate, fit_surrogate
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork, cross_matrix, gram, kernel_product

__all__ = ["AbstractModel", "AbstractPredictor", "GlobalModel", "KernelPredictor", "ProxyData", "proxy_data"]

DOUBLE_ROWS = 5000  # up to here the global model is fitted in float64
CHUNK = 4096  # designs predicted at a time


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ProxyData:
    """A table made ready for kernel models: distinct designs, standardised points and scores. Made by `proxy_data`.

    Args:
        space: the designs.
        table: the visible rows.
        kernel: on points.
        relaxation: designs as points, float64.
        designs: distinct visible designs, int64 ``(m, length)``.
        points: their points ``(m, d)``, float64.
        targets: their standardised scores ``(m,)``, means where a design came twice.
        mass: rows of the table that each stands for ``(m,)``.
        ridge: penalty of a row of weight 1: a share of the kernel's mean diagonal, as a tensor ``()``.
        centre: mean of the visible scores.
        scale: their standard deviation.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> proxy_data(task.space, task.visible()).points.shape
        torch.Size([32, 6])
    """

    space: CategoricalSpace
    table: Table
    kernel: AbstractKernel
    relaxation: LogitRelaxation
    designs: Tensor
    points: Tensor
    targets: Tensor
    mass: Tensor
    ridge: Tensor
    centre: Tensor
    scale: Tensor

    @cached_property
    def surrogate(self) -> Surrogate:
        """The model of all rows, fitted when first asked for; in float32 by conjugate gradients where there are many."""
        few = len(self.designs) <= DOUBLE_ROWS
        relative = float(self.ridge / self.kernel.diagonal(self.points).mean())
        return fit_surrogate(
            self.space, self.table, kernel=self.kernel, ridge=relative, keep=self.relaxation.keep,
            dtype=torch.float64 if few else torch.float32, rtol=None if few else 1e-3,
        )  # fmt: skip

    @cached_property
    def _gram(self) -> Tensor:
        return gram(self.kernel, self.points)

    def matrix(self, rows: Tensor, further: Tensor) -> Tensor:
        """Kernel values between some visible designs, indices ``(u,)``, and then further points ``(p, d)``, without gradient.

        Those between visible designs are computed once, where there are at most 5,000 of them.
        """
        with torch.no_grad():
            points = self.points[rows]
            few = len(self.points) <= DOUBLE_ROWS
            known = self._gram[rows.unsqueeze(-1), rows] if few else gram(self.kernel, points)
            if not len(further):
                return known
            cross = cross_matrix(self.kernel, further, points)
            lower = torch.cat([cross, gram(self.kernel, further)], -1)
            return torch.cat([torch.cat([known, cross.mT], -1), lower])

    def squared_distance(self, left: Tensor, right: Tensor) -> Tensor:
        """Squared distance of points in the kernel's own space, ``(n, d)`` and ``(m, d)`` to ``(n, m)``, differentiable."""
        own = self.kernel.diagonal(left).unsqueeze(-1) + self.kernel.diagonal(right)
        return (own - 2 * self.kernel.pair(left, right)).clamp(min=0)


def proxy_data(
    space: CategoricalSpace,
    table: Table,
    *,
    kernel: AbstractKernel | None = None,
    ridge: float = 1e-2,
    keep: float = 0.6,
) -> ProxyData:
    """Merge equal designs, standardise, and fix the kernel.

    Args:
        space: the designs.
        table: the visible rows.
        kernel: on points; None: the NTK of a ReLU network with 5 hidden layers.
        ridge: penalty, relative to the kernel's mean diagonal.
        keep: smoothing of letters, see `LogitRelaxation`.

    Returns:
        `ProxyData`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> float(proxy_data(task.space, task.visible()).targets.mean().abs()) < 1e-12
        True
    """
    check_option("proxy_data", "ridge", ridge, ridge > 0, "> 0", "1e-2 is a good start.")
    chosen = NTK(DenseNetwork(hidden_layers=5)) if kernel is None else kernel
    relaxation = fit_relaxation(space, table, keep=keep)
    scores, centre, scale = standardised(table.scores.to(torch.float64))
    designs, rows = torch.unique(space.check(table.designs), dim=0, return_inverse=True)
    mass = scores.new_zeros(len(designs)).index_add(0, rows, torch.ones_like(scores))
    targets = scores.new_zeros(len(designs)).index_add(0, rows, scores) / mass
    points = relaxation.points(designs)
    return ProxyData(
        space=space, table=table, kernel=chosen, relaxation=relaxation, designs=designs, points=points, targets=targets,
        mass=mass, ridge=ridge * chosen.diagonal(points).mean(), centre=centre, scale=scale,
    )  # fmt: skip


class AbstractPredictor(ABC):
    """A fitted model that can lead a search."""

    @abstractmethod
    def values(self, points: Tensor) -> Tensor:
        """Standardised predictions ``(n,)`` at points ``(n, d)``, differentiable in them."""

    @abstractmethod
    def predict(self, designs: Tensor) -> Tensor:
        """Scores ``(n,)``, float64, of designs ``(n, length)``, in the table's units."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What the user should know of this fit: a guard that acted, tuning that was turned down."""


class AbstractModel(ABC):
    """How a predictor is made. Concrete ones are frozen dataclasses of options."""

    @property
    @abstractmethod
    def moves(self) -> bool:
        """Whether the fit depends on where the search is, and is made again when it moves."""

    @abstractmethod
    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> AbstractPredictor:
        """A predictor for a search that is at the designs ``current`` ``(k, length)``, best first."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class KernelPredictor(AbstractPredictor):
    """One kernel expansion for the whole space.

    Args:
        data: the table.
        points: support ``(s, d)``.
        coefficients: ``(s,)``.
        remarks: see `AbstractPredictor.notes`.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> data = proxy_data(task.space, task.visible())
        >>> flat = KernelPredictor(data=data, points=data.points, coefficients=0 * data.targets)
        >>> bool((flat.predict(data.designs[:2]) == data.centre).all())
        True
    """

    data: ProxyData
    points: Tensor
    coefficients: Tensor
    remarks: tuple[str, ...] = ()

    def values(self, points: Tensor) -> Tensor:
        """See `AbstractPredictor.values`."""
        return kernel_product(self.data.kernel, points, self.points, self.coefficients)

    def predict(self, designs: Tensor) -> Tensor:
        """See `AbstractPredictor.predict`."""
        return in_units(self, self.data, designs)

    def notes(self) -> tuple[str, ...]:
        """See `AbstractPredictor.notes`."""
        return self.remarks


@final
@dataclass(frozen=True, kw_only=True)
class GlobalModel(AbstractModel):
    """Kernel ridge regression on all visible rows, the same wherever the search is.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> data = proxy_data(task.space, task.visible(), ridge=1e-6)
        >>> found = GlobalModel().fit(data, data.designs[:1], torch.Generator()).predict(task.visible().designs)
        >>> bool((found - task.visible().scores).abs().max() < 0.01)
        True
    """

    @property
    def moves(self) -> bool:
        """See `AbstractModel.moves`."""
        return False

    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> KernelPredictor:
        """See `AbstractModel.fit`."""
        fit = data.surrogate.fit
        return KernelPredictor(data=data, points=fit.points.double(), coefficients=fit.coefficients.double())


def in_units(predictor: AbstractPredictor, data: ProxyData, designs: Tensor) -> Tensor:
    """Predictions of designs ``(n, length)`` in the table's units, in chunks and without a graph."""
    with torch.no_grad():
        parts = [predictor.values(data.relaxation.points(chunk)) for chunk in designs.split(CHUNK)]
    return torch.cat(parts).to(torch.float64) * data.scale + data.centre
