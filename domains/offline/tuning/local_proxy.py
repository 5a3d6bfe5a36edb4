"""A model of the surroundings of the current designs, with sample weights and pseudo-labels chosen by validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.metrics import hamming
from sciopt.domains.offline.tuning.models import AbstractModel, AbstractPredictor, ProxyData, in_units
from sciopt.domains.offline.tuning.surroundings import local_problem
from sciopt.domains.offline.tuning.validation import AbstractValidation, RankError
from sciopt.domains.offline.tuning.weighting import AbstractWeighting, WeightingFunction, effective_size
from sciopt.kernels import kernel_product
from sciopt.solution import Status

__all__ = ["LocalModel", "LocalProxy", "fit_local_proxy", "spread"]


@final
@dataclass(frozen=True, kw_only=True)
class LocalModel(AbstractModel):
    """Kernel ridge on the rows nearest to each of a few current designs, tuned by validation there.

    Args:
        centres: current designs that get a model of their own, spread over the best ones.
        rows: visible rows of each, the nearest.
        context: further visible rows of each, the next nearest, whose weights stay 1.
        neighbours: mutants of each centre that get pseudo-labels; 0: none.
        mutations: of those mutants.
        trust: weight of a pseudo-label, where that of a measurement is 1; > 0.
        weighting: sample weights of the rows; None: they stay 1.
        validation: how leave-one-out predictions of the rows are judged, the nearer ones more.
        shrinkage: prior that keeps weights near 1 and labels near the global model's, >= 0.
        checked: share of the rows that the tuning does not see, and that must confirm it; else it is turned down.
        num_steps: of Adam on the outer variables.
        step_size: of Adam.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> proxy = LocalModel(centres=2, num_steps=3).fit(data, data.designs, torch.Generator().manual_seed(0))
        >>> proxy.effective_size.shape, proxy.predict(data.designs).shape
        (torch.Size([2]), torch.Size([32]))

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", section 5.1 (tuning parameters).
    """

    centres: int = 4
    rows: int = 192
    context: int = 1000
    neighbours: int = 32
    mutations: int = 2
    trust: float = 0.3
    weighting: AbstractWeighting | None = field(default_factory=WeightingFunction)
    validation: AbstractValidation = field(default_factory=RankError)
    shrinkage: float = 0.1
    checked: float = 0.3
    num_steps: int = 20
    step_size: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (
            ("centres", 1),
            ("rows", 4),
            ("context", 0),
            ("neighbours", 0),
            ("mutations", 1),
            ("num_steps", 0),
        ):
            value = getattr(self, name)
            check_option("LocalModel", name, value, value >= least, f">= {least}", "Leave the default.")
        check_option("LocalModel", "trust", self.trust, self.trust > 0, "> 0", "Use neighbours=0 for none.")
        check_option("LocalModel", "shrinkage", self.shrinkage, self.shrinkage >= 0, ">= 0", "0.1 is a good start.")
        check_option("LocalModel", "checked", self.checked, 0 <= self.checked < 1, "in [0, 1)", "0.3 is a good start.")
        check_option("LocalModel", "step_size", self.step_size, self.step_size > 0, "> 0", "0.2 is a good start.")

    @property
    def moves(self) -> bool:
        """See `AbstractModel.moves`."""
        return True

    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> LocalProxy:
        """See `AbstractModel.fit`."""
        return fit_local_proxy(self, data, spread(current, self.centres), generator)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LocalProxy(AbstractPredictor):
    """Models of the surroundings of some designs, each the more heard the nearer a design is to its centre.

    Args:
        data: the table.
        centres: designs ``(c, length)``.
        points: support of all models ``(s, d)``.
        coefficients: ``(s, c)``.
        width: squared kernel distance over which a centre loses a factor e of its say ``()``.
        rows: visible rows of each centre, indices into ``data`` ``(c, n)``.
        weights: their weights ``(c, n)``.
        neighbours: designs with pseudo-labels ``(c, p, length)``.
        labels: their pseudo-labels, in the table's units ``(c, p)``.
        effective_size: effective sample size of the weights ``(c,)``.
        before: validation loss near the centre before tuning ``(c,)``, over the rows that the tuning did not see (all rows
            where none was kept aside).
        after: the same after it.
        accepted: where those rows confirmed the tuning ``(c,)``; elsewhere the model before it is used.
        status: of the tuning; MAX_STEPS is its ordinary end.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> proxy = fit_local_proxy(LocalModel(num_steps=3), data, data.designs[:2], torch.Generator().manual_seed(0))
        >>> bool((proxy.after <= proxy.before)[proxy.accepted].all())
        True
    """

    data: ProxyData
    centres: Tensor
    points: Tensor
    coefficients: Tensor
    width: Tensor
    rows: Tensor
    weights: Tensor
    neighbours: Tensor
    labels: Tensor
    effective_size: Tensor
    before: Tensor
    after: Tensor
    accepted: Tensor
    status: Status

    def each(self, points: Tensor) -> Tensor:
        """Standardised predictions of each centre's model ``(n, c)`` at points ``(n, d)``."""
        return kernel_product(self.data.kernel, points, self.points, self.coefficients)

    def values(self, points: Tensor) -> Tensor:
        """See `AbstractPredictor.values`."""
        centres = self.data.relaxation.points(self.centres)
        say = torch.softmax(-self.data.squared_distance(points, centres) / self.width, -1)
        return (say * self.each(points)).sum(-1)

    def predict(self, designs: Tensor) -> Tensor:
        """See `AbstractPredictor.predict`."""
        return in_units(self, self.data, designs)

    def notes(self) -> tuple[str, ...]:
        """See `AbstractPredictor.notes`."""
        refused = int((~self.accepted).sum())
        if not refused:
            return ()
        return (f"tuning of {refused} of {len(self.accepted)} local models turned down: it did not help unseen rows",)


def fit_local_proxy(options: LocalModel, data: ProxyData, centres: Tensor, generator: torch.Generator) -> LocalProxy:
    """Models around some designs, all in one batch.

    Args:
        options: the `LocalModel`.
        data: the table.
        centres: designs ``(c, length)``.
        generator: chooses mutants, and rows that the tuning does not see.

    Returns:
        `LocalProxy`.

    Raises:
        ValueError: for centres that are no designs of the space.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> options = LocalModel(num_steps=2, neighbours=5, rows=20)
        >>> proxy = fit_local_proxy(options, data, data.designs[:2], torch.Generator().manual_seed(0))
        >>> proxy.weights.shape, proxy.labels.shape
        (torch.Size([2, 20]), torch.Size([2, 5]))
    """
    stated, near = local_problem(options, data, centres, generator)
    n, share, rows = near.rows.shape[1], stated.share, near.rows
    aside = torch.rand(rows.shape, generator=generator, device=generator.device).to(rows.device) < options.checked
    aside = aside & (aside.any(-1) & (~aside).any(-1)).unsqueeze(-1)
    judge = torch.where(aside.any(-1, keepdim=True) & ~aside, 0.0, share)
    seen = torch.where(aside, 0.0, share)
    judge, seen = (part / part.sum(-1, keepdim=True) for part in (judge, seen))
    stated = replace(stated, share=seen)
    start = stated.start()
    result = stated.tune(options.num_steps, options.step_size)
    with torch.no_grad():
        before, after = (
            options.validation.loss(stated.left_out(stated.formula(outer), outer), stated.targets, judge)
            for outer in (start, result.outer_params)
        )
        accepted = after < before
        chosen = {
            name: torch.where(accepted.unsqueeze(-1), result.outer_params[name], value) for name, value in start.items()
        }
        alpha, weights = stated.formula(chosen), stated.weights(chosen)
        columns = torch.arange(len(rows), device=rows.device).unsqueeze(-1)
        coefficients = alpha.new_zeros(len(data.points), len(rows))
        coefficients[rows, columns] = alpha[:, :n]
        coefficients[near.far, columns] = near.far_coefficients(alpha)
        used = coefficients.any(-1)
        support, coefficients = data.points[used], coefficients[used]
        if options.neighbours:
            support = torch.cat([support, data.relaxation.points(near.neighbours.flatten(0, 1))])
            coefficients = torch.cat([coefficients, torch.block_diag(*alpha[:, n:].unsqueeze(-1))])
        labels = chosen["labels"] if "labels" in chosen else alpha[:, n:]
    return LocalProxy(
        data=data, centres=centres, points=support, coefficients=coefficients, width=near.width, rows=rows,
        weights=weights[:, :n], neighbours=near.neighbours, labels=labels * data.scale + data.centre,
        effective_size=effective_size(weights[:, :n]), before=before, after=after, accepted=accepted, status=result.status,
    )  # fmt: skip


def spread(designs: Tensor, count: int) -> Tensor:
    """Some of the designs, far from each other: the first, then the one farthest from those taken, again and again.

    Among the first ``8 count`` only, so that designs given best first stay good.

    Example:
        >>> spread(torch.tensor([[0, 0], [0, 1], [1, 1]]), 2)
        tensor([[0, 0],
                [1, 1]])
    """
    among = designs[: 8 * count]
    away = hamming(among, among)
    taken = [0]
    nearest = away[0]
    for _ in range(min(count, len(among)) - 1):
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, away[taken[-1]])
    return among[taken]
