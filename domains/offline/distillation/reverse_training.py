"""The training of a generator from scores to designs, held to its word by a surrogate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.domains.offline.distillation.generator import Binned, DesignGenerator, GeneratorFamily, Weights, binned
from sciopt.domains.offline.ranking import Surrogate, fit_surrogate
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import FirstOrder, Unrolled
from sciopt.inner import Adam
from sciopt.kernels import AbstractKernel
from sciopt.outer import optimize
from sciopt.problem import Minimize
from sciopt.response import best_response
from sciopt.solution import SolveError, Status

__all__ = ["ReverseProblem", "reverse_problem"]

LEVELS = 9  # scores above the best, at which the cycle is closed


class Training(Protocol):
    """What the training asks of its options, see `ReverseMapping`."""

    @property
    def network(self) -> GeneratorFamily: ...
    @property
    def kernel(self) -> AbstractKernel: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def cycle_weight(self) -> float: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def reach(self) -> float: ...
    @property
    def trust(self) -> float: ...
    @property
    def bins(self) -> int: ...
    @property
    def train_steps(self) -> int: ...
    @property
    def step_size(self) -> float: ...
    @property
    def tune_steps(self) -> int: ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ReverseProblem:
    """The training of a generator on a table, stated once. Made by `reverse_problem`.

    Args:
        options: the `ReverseMapping`.
        generator: the network.
        start: its weights before training.
        data: the table.
        surrogate: from designs to scores.
        levels: standardised scores at which the cycle is closed, from the best upwards ``(levels,)``.
        noise: Gumbel noise by which letters are chosen there ``(levels, codes, length, letters)``.
        linearised: how `cycle` is differentiated; slower, needed where its gradient is differentiated.

    Example:
        >>> from sciopt.domains.offline import ReverseMapping, nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> stated = reverse_problem(
        ...     ReverseMapping(), task.space, task.visible(), generator=torch.Generator().manual_seed(0)
        ... )
        >>> stated.cycle(stated.start).shape
        torch.Size([9])
    """

    options: Training
    generator: DesignGenerator
    start: Weights
    data: Binned
    surrogate: Surrogate
    levels: Tensor
    noise: Tensor
    linearised: bool = False

    def cycle(self, weights: Weights) -> Tensor:
        """Mean squared error of each level's score after a round trip ``(levels,)``, in standard deviations squared.

        Letters are chosen, not mixed, but derivatives go straight through the choice to their probabilities. Where the error
        is ``linearised`` at the chosen letters, the derivative of its gradient is exact too, as long as no letter changes.
        """
        noisy = self.generator.log_shares(weights, self.levels) + self.noise
        soft = torch.softmax(noisy, -1)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0).detach()

        def error(letters: Tensor) -> tuple[Tensor, Tensor]:
            each = (self._round_trip(letters) - self.levels.unsqueeze(-1)).square().mean(-1)
            return each.sum(), each

        if not self.linearised:
            return error(hard + soft - soft.detach())[1]
        slope, each = torch.func.grad(error, has_aux=True)(hard)
        return each.detach() + (slope.detach() * (soft - soft.detach())).sum((-1, -2, -3))

    def predicted(self, weights: Weights) -> Tensor:
        """Standardised predictions ``(levels, codes)`` for designs generated at each level."""
        noisy = self.generator.log_shares(weights, self.levels) + self.noise
        return self._round_trip(torch.zeros_like(noisy).scatter(-1, noisy.argmax(-1, keepdim=True), 1.0))

    def _round_trip(self, letters: Tensor) -> Tensor:
        """Standardised predictions ``(levels, codes)`` for letters as zeros and ones ``(levels, codes, length, letters)``."""
        points = self.surrogate.relaxation.mixtures(letters.flatten(0, 1))
        return self.surrogate.fit.mean(points).unflatten(0, letters.shape[:2])

    @property
    def inner(self) -> Minimize:
        """Minus the likelihood plus the cycle, whose weight is the outer parameter, as a logarithm ``()``."""

        def loss(weights: Weights, log_weight: Tensor) -> Tensor:
            fit = -self.generator.log_likelihood(weights, self.data)
            return fit + log_weight.exp() * self.cycle(weights).mean() if self.options.cycle_weight else fit

        return Minimize(loss)

    def log_weight(self) -> Tensor:
        """Logarithm of the cycle's weight ``()``."""
        return (
            self.levels.new_tensor(self.options.cycle_weight).log()
            if self.options.cycle_weight
            else self.levels.new_zeros(())
        )

    def train(self) -> Weights:
        """The trained weights."""
        solver = Adam(step_size=self.options.step_size, max_steps=self.options.train_steps)
        solution = best_response(
            self.inner, self.log_weight(), init=self.start, solver=solver, hypergradient=FirstOrder(), throw=False
        )
        if solution.status is Status.NONFINITE:
            raise SolveError("ReverseMapping", solution)
        return {name: value.detach() for name, value in solution.value.items()}

    def asked(self, weights: Weights, count: int, generator: torch.Generator) -> Tensor:
        """Scores to ask for ``(count,)``, standardised: from the best to the highest level whose cycle can be trusted."""
        with torch.no_grad():
            miss = (self.predicted(weights).mean(-1) - self.levels).abs()
        trusted = torch.cumprod((miss <= self.options.trust).long(), 0).sum()
        top = self.levels[(trusted - 1).clamp(min=0)]
        draw = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64).to(self.levels)
        return self.levels[0] + (top - self.levels[0]) * draw

    def sample(self, weights: Weights, scores: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Designs drawn at standardised scores ``(n,)``: ``(n, length)``, and the log-probabilities of all letters there."""
        device = generator.device
        with torch.no_grad():
            codes = torch.randint(len(self.generator.codes), (len(scores),), generator=generator, device=device)
            codes = codes.to(scores.device)
            parts = []
            for some, code in zip(scores.split(256), codes.split(256), strict=True):
                every = self.generator.log_shares(weights, some)
                parts.append(every[torch.arange(len(some), device=every.device), code])
            shares = torch.cat(parts)
        return (shares + gumbel(shares.shape, generator).to(shares)).argmax(-1), shares


def reverse_problem(
    options: Training, space: CategoricalSpace, table: Table, *, generator: torch.Generator
) -> ReverseProblem:
    """State the training of a generator: bins, surrogate, and fixed noise for the cycle.

    Args:
        options: the `ReverseMapping`.
        space: the designs.
        table: the visible rows.
        generator: source of the start, the codes and the noise.

    Returns:
        `ReverseProblem`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import ReverseMapping, nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> options = ReverseMapping(train_steps=50)
        >>> stated = reverse_problem(options, task.space, task.visible(), generator=torch.Generator().manual_seed(0))
        >>> before, after = (stated.inner.objective(w, stated.log_weight()) for w in (stated.start, stated.train()))
        >>> bool(after < before)
        True
    """
    surrogate = fit_surrogate(space, table, kernel=options.kernel, dtype=options.dtype, rtol=1e-3)
    scores = ((table.scores - surrogate.mean) / surrogate.scale).to(options.dtype)
    made, start = options.network.draw(space, generator=generator, like=scores)
    levels = scores.max() + torch.linspace(0, options.reach, LEVELS).to(scores)
    noise = gumbel((LEVELS, len(made.codes), space.length, space.letters), generator).to(scores)
    return ReverseProblem(
        options=options,
        generator=made,
        start=start,
        data=binned(space, table.designs, scores, bins=options.bins, temperature=options.temperature),
        surrogate=surrogate,
        levels=levels,
        noise=noise,
    )


def held_back(
    options: Training, space: CategoricalSpace, table: Table, generator: torch.Generator
) -> tuple[ReverseProblem, BilevelProblem]:
    """Training without the best tenth of a table, and the choice of the cycle's weight by the likelihood of that tenth."""
    order = table.scores.argsort(descending=True, stable=True)
    held, kept = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    stated = reverse_problem(
        options, space, Table(designs=table.designs[kept], scores=table.scores[kept]), generator=generator
    )
    stated = replace(stated, linearised=True)
    scores = ((table.scores[held] - stated.surrogate.mean) / stated.surrogate.scale).to(stated.levels)
    unseen = binned(space, table.designs[held], scores, bins=options.bins, temperature=None)
    problem = BilevelProblem(
        inner=stated.inner, outer_loss=lambda weights, _: -stated.generator.log_likelihood(weights, unseen)
    )
    return stated, problem


def tuned_weight(options: Training, space: CategoricalSpace, table: Table, generator: torch.Generator) -> float:
    """The cycle weight under which a generator that has not seen the best tenth of the table finds it likeliest."""
    stated, problem = held_back(options, space, table, generator)
    result = optimize(
        problem,
        stated.log_weight(),
        init=stated.start,
        outer=partial(torch.optim.Adam, lr=0.5),
        solver=Adam(step_size=options.step_size, max_steps=options.train_steps),
        hypergradient=Unrolled(num_steps=options.train_steps, checkpoints=max(2, int(options.train_steps**0.5))),
        max_steps=options.tune_steps,
        warm_start=False,
        certificate=False,
    )
    return float(result.outer_params.exp())


def gumbel(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, float64, on the generator's device."""
    draw = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return -(-draw.clamp(min=1e-300).log()).log()
