"""A prior that scores change smoothly between neighbouring designs, in the kernel; its strength by validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_option
from sciopt.domains.offline.metrics import hamming
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.tuning.models import AbstractModel, KernelPredictor, ProxyData
from sciopt.hypergradients import ClosedForm
from sciopt.inner import bent_kernel, left_out_errors, weighted_kernel_ridge
from sciopt.outer import optimize
from sciopt.problem import Minimize

__all__ = ["AbstractRoughness", "MixedChanges", "NeighbourChanges", "SmoothModel", "SmoothProblem"]


class AbstractRoughness(ABC):
    """What a smooth function has little of, as a quadratic form. Concrete ones are frozen dataclasses."""

    @abstractmethod
    def around(self, space: CategoricalSpace, parents: Tensor, generator: torch.Generator) -> Tensor:
        """Designs ``(p, length)`` around ``parents`` ``(k, length)`` at which the function is watched."""

    @abstractmethod
    def quadratic(self, visible: Tensor, around: Tensor) -> Tensor:
        """``L`` ``(n + p, n + p)``, float64, for visible designs ``(n, length)`` and those that `around` made."""


@final
@dataclass(frozen=True, kw_only=True)
class NeighbourChanges(AbstractRoughness):
    """Changes between neighbours: ``f^T L f`` is the sum of ``(f_a - f_b)^2`` over pairs, over the mean number of neighbours.

    The plain graph Laplacian. It also punishes what every landscape has, effects of single letters: use it where scores
    hardly change from neighbour to neighbour.

    Args:
        distance: positions in which neighbours may differ, >= 1.
        mutants: single mutants of each parent, >= 1.

    Example:
        >>> designs = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> NeighbourChanges(distance=1).quadratic(designs, designs[:0]).diagonal()
        tensor([1.5000, 0.7500, 0.7500], dtype=torch.float64)

    References:
        Belkin, Niyogi, Sindhwani. "Manifold regularization". JMLR 7, 2006, section 4.
    """

    distance: int = 2
    mutants: int = 6

    def __post_init__(self) -> None:
        for name in ("distance", "mutants"):
            value = getattr(self, name)
            check_option("NeighbourChanges", name, value, value >= 1, ">= 1", "Leave the default.")

    def around(self, space: CategoricalSpace, parents: Tensor, generator: torch.Generator) -> Tensor:
        """See `AbstractRoughness.around`."""
        return space.mutated(parents.repeat_interleave(self.mutants, 0), 1, generator)

    def quadratic(self, visible: Tensor, around: Tensor) -> Tensor:
        """See `AbstractRoughness.quadratic`."""
        designs = torch.cat([visible, around])
        away = hamming(designs, designs)
        edges = ((away <= self.distance) & (away > 0)).to(torch.float64)
        degree = edges.sum(-1)
        return (torch.diag_embed(degree) - edges) / degree.mean().clamp(min=1)


@final
@dataclass(frozen=True, kw_only=True)
class MixedChanges(AbstractRoughness):
    """How the effect of one mutation changes by another: ``f(x) - f(x^i) - f(x^j) + f(x^ij)``, squared, mean over pairs.

    Zero for effects that add up, whatever their size: a prior against epistasis where the data show none.

    Args:
        pairs: pairs of mutations of each parent, >= 1.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="ab")
        >>> prior = MixedChanges(pairs=5)
        >>> square = prior.around(space, torch.zeros(1, 3, dtype=torch.int64), torch.Generator().manual_seed(0))
        >>> additive = square.double() @ torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
        >>> additive @ prior.quadratic(square[:0], square) @ additive
        tensor(0., dtype=torch.float64)

    References:
        Sailer, Harms. "Detecting high-order epistasis in nonlinear genotype-phenotype maps". Genetics 205, 2017.
    """

    pairs: int = 2

    def __post_init__(self) -> None:
        check_option("MixedChanges", "pairs", self.pairs, self.pairs >= 1, ">= 1", "2 is a good start.")

    def around(self, space: CategoricalSpace, parents: Tensor, generator: torch.Generator) -> Tensor:
        """See `AbstractRoughness.around`: x, x^i, x^j, x^ij of each pair; a length of 2 or more is needed."""
        check_option("MixedChanges", "length", space.length, space.length >= 2, ">= 2", "Use NeighbourChanges.")
        base = parents.repeat_interleave(self.pairs, 0)
        both = space.mutated(base, 2, generator)
        changed = both != base
        first = changed & (changed.cumsum(-1) == 1)
        one, two = torch.where(first, both, base), torch.where(changed & ~first, both, base)
        return torch.stack([base, one, two, both], 1).flatten(0, 1)

    def quadratic(self, visible: Tensor, around: Tensor) -> Tensor:
        """See `AbstractRoughness.quadratic`."""
        squares = len(around) // 4
        sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64, device=around.device)
        rows = torch.zeros(squares, len(visible) + len(around), dtype=torch.float64, device=around.device)
        rows[:, len(visible) :] = torch.block_diag(*sign.expand(squares, 1, 4))
        return rows.mT @ rows


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothProblem:
    """Laplacian-regularised kernel ridge, its strength and ridge chosen by leave-one-out error.

    Outer variables: ``strength`` and ``penalty``, logarithms against their starts, tensors ``()``.

    Args:
        kernel: between visible designs and then mutants, ``(n + p, n + p)``.
        laplacian: quadratic form of roughness, over the ridge ``(n + p, n + p)``.
        targets: standardised scores of the visible designs ``(n,)``.
        mass: measurements behind each ``(n,)``.
        ridge: start of the penalty ``()``.
        strength: start of the smoothness, > 0.

    Example:
        >>> from sciopt import hypergradient
        >>> eye, one = torch.eye(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        >>> designs = torch.tensor([[0], [1], [2]])
        >>> laplacian = NeighbourChanges(distance=1).quadratic(designs[:2], designs[2:])
        >>> stated = SmoothProblem(
        ...     kernel=eye, laplacian=laplacian, targets=one, mass=one, ridge=one[0], strength=1.0
        ... )
        >>> start = stated.start()
        >>> found = hypergradient(
        ...     stated.problem(), start, init=0 * one, hypergradient=ClosedForm(stated.formula)
        ... )
        >>> sorted(found.grad)
        ['penalty', 'strength']
    """

    kernel: Tensor
    laplacian: Tensor
    targets: Tensor
    mass: Tensor
    ridge: Tensor
    strength: float

    def start(self) -> dict[str, Tensor]:
        """The given strength and ridge."""
        return {"strength": torch.zeros_like(self.ridge), "penalty": torch.zeros_like(self.ridge)}

    def bent(self, outer: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `sciopt.inner.bent_kernel`."""
        return bent_kernel(self.kernel, self.laplacian, self.strength * outer["strength"].exp())

    def penalty(self, outer: dict[str, Tensor]) -> Tensor:
        """The ridge ``()``."""
        return self.ridge * outer["penalty"].exp()

    @property
    def inner(self) -> Minimize:
        """Kernel ridge with the bent kernel, in its dual weights ``(n,)``."""

        def energy(alpha: Tensor, outer: dict[str, Tensor]) -> Tensor:
            n = len(self.targets)
            fitted = self.bent(outer)[0][:n, :n] @ alpha
            error = fitted - self.targets
            return (self.mass * error.square()).sum() + self.penalty(outer) * (alpha * fitted).sum()

        return Minimize(energy)

    def formula(self, outer: dict[str, Tensor]) -> Tensor:
        """The inner solution ``(n,)``."""
        n = len(self.targets)
        return weighted_kernel_ridge(self.bent(outer)[0][:n, :n], self.targets, self.mass, self.penalty(outer))

    def loss(self, alpha: Tensor, outer: dict[str, Tensor]) -> Tensor:
        """Mean squared leave-one-out error, with a weak prior that holds what the data do not tell."""
        n = len(self.targets)
        error = left_out_errors(self.bent(outer)[0][:n, :n], alpha, self.mass, self.penalty(outer))
        prior = outer["strength"].square() + outer["penalty"].square()
        return (self.mass * error.square()).sum() / self.mass.sum() + 1e-3 * prior

    def problem(self) -> BilevelProblem:
        """The core's statement."""
        return BilevelProblem(inner=self.inner, outer_loss=self.loss)

    def tune(self, num_steps: int, step_size: float) -> dict[str, Tensor]:
        """Outer variables after Adam, by hypergradients through the closed form."""
        result = optimize(
            self.problem(),
            self.start(),
            init=torch.zeros_like(self.targets),
            outer=partial(torch.optim.Adam, lr=step_size),
            hypergradient=ClosedForm(self.formula),
            max_steps=num_steps,
            warm_start=False,
            certificate=False,
        )
        return result.outer_params


@final
@dataclass(frozen=True, kw_only=True)
class SmoothModel(AbstractModel):
    """Kernel ridge with a penalty on roughness among neighbouring designs, its strength chosen by leave-one-out error.

    Args:
        rows: largest number of visible rows in the validation of strength and ridge; more are sampled.
        parents: current designs around which the function is watched, the best.
        roughness: what is penalised.
        strength: start of the weight of the penalty, where that of a measurement is 1; > 0. Without ``num_steps``, the weight.
        num_steps: of Adam on strength and ridge; 0: both stay as they are.
        step_size: of Adam, on logarithms.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> model = SmoothModel(parents=4, num_steps=3)
        >>> model.fit(data, data.designs, torch.Generator().manual_seed(0)).predict(data.designs).shape
        torch.Size([32])

    References:
        Belkin, Niyogi, Sindhwani. "Manifold regularization". JMLR 7, 2006. Chen et al. "Gradient-based Bi-level Optimization
        for Deep Learning: A Survey", section 5.2 (smoothness).
    """

    rows: int = 400
    parents: int = 32
    roughness: AbstractRoughness = field(default_factory=MixedChanges)
    strength: float = 0.1
    num_steps: int = 15
    step_size: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("parents", 1), ("num_steps", 0)):
            value = getattr(self, name)
            check_option("SmoothModel", name, value, value >= least, f">= {least}", "Leave the default.")
        for name in ("strength", "step_size"):
            value = getattr(self, name)
            check_option("SmoothModel", name, value, value > 0, "> 0", "Use GlobalModel for none.")

    @property
    def moves(self) -> bool:
        """See `AbstractModel.moves`."""
        return True

    def state(self, data: ProxyData, chosen: Tensor, mutants: Tensor) -> SmoothProblem:
        """The problem of some rows of ``data``, indices ``(n,)``, with mutants ``(p, length)``."""
        return SmoothProblem(
            kernel=data.matrix(chosen, data.relaxation.points(mutants)),
            laplacian=self.roughness.quadratic(data.designs[chosen], mutants) / data.ridge,
            targets=data.targets[chosen], mass=data.mass[chosen], ridge=data.ridge, strength=self.strength,
        )  # fmt: skip

    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> KernelPredictor:
        """See `AbstractModel.fit`."""
        with torch.no_grad():
            mutants = self.roughness.around(data.space, current[: self.parents], generator)
            order = torch.randperm(len(data.points), generator=generator, device=generator.device)
            order = order.to(data.points.device)
            outer = self.state(data, order[: self.rows], mutants)
        chosen = outer.tune(self.num_steps, self.step_size)
        with torch.no_grad():
            stated = self.state(data, order.sort().values, mutants)
            bent, transposed = stated.bent(chosen)
            n = len(data.points)
            alpha = weighted_kernel_ridge(bent[:n, :n], stated.targets, stated.mass, stated.penalty(chosen))
            points = torch.cat([data.points, data.relaxation.points(mutants)])
            return KernelPredictor(data=data, points=points, coefficients=transposed[:, :n] @ alpha)
