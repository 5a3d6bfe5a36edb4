"""Candidates for a batch: the pool, the whole space, or what evolution and gradients find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.checks import check_option
from sciopt.domains.offline.proposal.columns import NumberColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.model import ScoreModel
from sciopt.inner import ProximalGradient

__all__ = ["Allowed", "Evolution", "best_candidates", "known_rows", "polished", "same_cell", "thinned"]

CELLS = 100.0  # designs of a population differ in a letter, a level, or by this part of a number's range
THIN = (12.0, 25.0, 50.0, 100.0, 200.0, 400.0)  # the same of a shortlist: the coarsest that leaves enough
MOST = 4_096  # designs of which a shortlist is made


@final
@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Which designs may be proposed.

    Args:
        space: the columns.
        excluded: designs that may not, because they are measured or pending ``(m, width)``.
        test: ``codes (n, width) -> bool (n,)``, the constraints; None: there are none.
        repair: ``codes -> codes``, moves designs towards the constraints; None: leaves them.
        canonical: ``codes -> codes``, one of all equivalent forms; None: there is only one.

    Example:
        >>> space = DesignSpace((NumberColumn(name="k", low=1, high=3, integer=True),))
        >>> Allowed(space=space, excluded=torch.tensor([[2.0]])).among(space.everything()).flatten()
        tensor([1., 3.], dtype=torch.float64)
    """

    space: DesignSpace
    excluded: Tensor
    test: Callable[[Tensor], Tensor] | None = None
    repair: Callable[[Tensor], Tensor] | None = None
    canonical: Callable[[Tensor], Tensor] | None = None

    def among(self, codes: Tensor, *, repair: bool = False) -> Tensor:
        """The distinct allowed ones among some designs, after an attempt to repair the others."""
        if repair and self.repair is not None:
            codes = self.repair(codes)
        if self.canonical is not None:
            codes = self.canonical(codes)
        if self.test is not None and len(codes):
            codes = codes[self.test(codes)]
        codes = torch.unique(codes, dim=0)
        if not len(codes) or not len(self.excluded):
            return codes
        known, wanted = self._known, _hashed(codes)
        return codes[known[torch.searchsorted(known, wanted).clamp(max=len(known) - 1)] != wanted]

    @cached_property
    def _known(self) -> Tensor:
        return _hashed(self.excluded).sort().values


def known_rows(codes: Tensor, known: Tensor) -> Tensor:
    """Which designs are among the known ones, bool ``(n,)``.

    Example:
        >>> known_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0]]))
        tensor([False,  True])
    """
    if not len(known) or not len(codes):
        return torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
    return torch.isin(_hashed(codes), _hashed(known.to(codes)))


def _hashed(codes: Tensor) -> Tensor:
    """One integer per row ``(n,)``; different rows have different ones but for a chance of 1 in 2^64 for each pair.

    A million measured rows are compared with in each round of a search: sorting integers is 50 times as fast as sorting rows.
    """
    bits = (codes.to(torch.float64) + 0.0).contiguous().view(torch.int64)  # -0.0 is 0.0
    source = torch.Generator().manual_seed(0x5C10)
    out = bits.new_zeros(len(bits))
    for k in range(bits.shape[1]):
        keys = torch.randint(-(1 << 62), 1 << 62, (2,), generator=source).tolist()
        mixed = (bits[:, k] ^ keys[0]) * (2 * keys[1] + 1)
        mixed = (mixed ^ (mixed >> 29)) * -7046029254386353131
        out = (out ^ (mixed ^ (mixed >> 32))) * 6364136223846793005 + k
    return out


def same_cell(space: DesignSpace, codes: Tensor, values: Tensor, cells: float = CELLS) -> Tensor:
    """Rows of the best design in each cell of a grid over the numbers, best first; int64 ``(k,)``.

    Example:
        >>> space = DesignSpace((NumberColumn(name="x", low=0, high=1),))
        >>> codes = torch.tensor([[0.1], [0.1001], [0.3]], dtype=torch.float64)
        >>> same_cell(space, codes, torch.tensor([1.0, 2.0, 3.0]))
        tensor([2, 1])
    """
    order = values.argsort(descending=True, stable=True)
    if not _has_numbers(space):
        return order
    grid = space.units(codes[order])
    for column, part in zip(space.columns, space.slices, strict=True):
        if isinstance(column, NumberColumn):
            grid[:, part] = (grid[:, part] * cells).round()
    _, rows = torch.unique(grid, dim=0, return_inverse=True)
    first = torch.full((len(order),), len(order), device=order.device).scatter_reduce(
        0, rows, torch.arange(len(order), device=order.device), "amin"
    )
    return order[first[first < len(order)].sort().values]


def _has_numbers(space: DesignSpace) -> bool:
    return any(isinstance(column, NumberColumn) for column in space.columns)


@final
@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Search of spaces that are too large to list: children of the best measured and found designs, round after round.

    Args:
        population: designs kept from round to round.
        children: new designs in each round, a tenth of them at random.
        rounds: largest number.
        patience: rounds without change among the best that end it.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> Evolution(rounds=10).rounds
        10
    """

    population: int = 512
    children: int = 1024
    rounds: int = 40
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("population", "children", "rounds", "patience"):
            value = getattr(self, name)
            check_option("Evolution", name, value, value >= 1, ">= 1", "Leave the default.")

    def run(
        self,
        allowed: Allowed,
        value: Callable[[Tensor], Tensor],
        parents: Tensor,
        count: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Distinct allowed designs ``(k, width)`` of high value, best first; k is ``count`` or more if there are as many.

        Args:
            allowed: what may be proposed.
            value: ``codes -> (n,)``, to be maximised.
            parents: designs to start from, best first, allowed or not.
            count: designs wanted.
            generator: the one source of chance.
        """
        space, keep = allowed.space, max(self.population, 2 * count)
        device = parents.device
        met = allowed.among(space.random(2 * self.children, generator).to(device), repair=True)
        values = value(met) if len(met) else met.new_zeros(0)
        quiet, step = 0, 0.2
        for _ in range(self.rounds):
            # designs from which to breed: the best found, and the best measured while few are found
            pool = torch.cat([met, parents[: max(8, keep - len(met))]])
            draws = torch.rand(2, self.children, generator=generator, device=generator.device).square() * len(pool)
            first, second = (pool[rows] for rows in draws.long().to(device))
            fresh = space.mutated(space.crossed(first, second, generator), generator, step=step)
            chance = space.random(self.children // 10 + 1, generator).to(device)
            fresh = allowed.among(torch.cat([fresh, chance]), repair=True)
            fresh = fresh[~known_rows(fresh, met)]
            top = met[:count]
            met, values = torch.cat([met, fresh]), torch.cat([values, value(fresh) if len(fresh) else values[:0]])
            order = same_cell(space, met, values)[:keep]
            met, values = met[order], values[order]
            changed = len(top) < min(count, len(met)) or not torch.equal(top, met[:count])
            quiet, step = (0 if changed else quiet + 1), max(0.01, 0.9 * step)
            if quiet == self.patience:
                break
        return met


def polished(model: ScoreModel, codes: Tensor, weight: float, *, max_steps: int = 30) -> Tensor:
    """Designs whose numbers have moved up the gradient of mean plus ``weight`` deviations, inside their bounds.

    An inner problem for each design, in shares of the numbers' ranges; letters and levels stay.

    Args:
        model: the posterior.
        codes: starts ``(q, width)``.
        weight: of the deviations; without effect where there are too many rows for a Cholesky factor.
        max_steps: of projected gradients.

    Returns:
        ``(q, width)``, not yet rounded; the start itself where there is no real number.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """
    space = model.space
    pieces = zip(space.columns, space.slices, strict=True)
    parts = [(c, part.start) for c, part in pieces if isinstance(c, NumberColumn) and not c.integer and c.high > c.low]
    if not parts or not len(codes):
        return codes
    places = [place for _, place in parts]

    def moved(units: Tensor) -> Tensor:
        columns = list(codes.unbind(-1))
        for k, (column, place) in enumerate(parts):
            columns[place] = column.value(units[:, k])
        return torch.stack(columns, -1)

    def loss(units: Tensor, _: Tensor) -> Tensor:
        points = model.points(moved(units))
        value = model.fit.mean(points)
        if model.is_dense and weight:
            value = value + weight * model.stretch * (model.fit.variance(points) * model.gain + 1e-12).sqrt()
        return -value.to(units)

    start = space.units(codes)[:, places].clamp(0, 1)
    problem = Minimize(loss, batch_ndim=1, box=(0.0, 1.0))
    solver = ProximalGradient(rtol=1e-3, max_steps=max_steps)
    found = best_response(problem, start.new_zeros(()), init=start, solver=solver, throw=False)
    units = torch.where(torch.isfinite(found.value), found.value, start).detach()
    return moved(units).detach()


def thinned(space: DesignSpace, codes: Tensor, values: Tensor, count: int) -> Tensor:
    """The best designs, best first, as far apart in their numbers as leaves ``count`` of them, ``(k, width)``.

    Example:
        >>> space = DesignSpace((NumberColumn(name="x", low=0, high=1),))
        >>> x = torch.linspace(0, 1, 1001, dtype=torch.float64)
        >>> thinned(space, x.unsqueeze(-1), x, 20)[:3].flatten()
        tensor([1.0000, 0.9580, 0.9180], dtype=torch.float64)
    """
    rows = values.argsort(descending=True, stable=True)
    if not _has_numbers(space):
        return codes[rows]
    place = values.argsort(descending=True, stable=True).argsort()
    fine = same_cell(space, codes, values, THIN[-1])[: MOST // 2]
    for cells in THIN:  # of each cell its best, and between them what the borders of cells would hide
        found = torch.unique(torch.cat([fine, same_cell(space, codes, values, cells)[: MOST // 2]]))
        found = found[place[found].argsort()]
        found = found[_apart(space, codes[found], 1 / cells)]
        if len(found) >= count:
            return codes[found]
    return codes[rows]


def _apart(space: DesignSpace, codes: Tensor, least: float) -> Tensor:
    """Rows of designs in order, without those that differ from a kept one by less than ``least`` of any number's range."""
    units = space.units(codes)
    near = torch.ones(len(codes), len(codes), dtype=torch.bool, device=codes.device)
    for column, part in zip(space.columns, space.slices, strict=True):
        bound = 0.99 * least if isinstance(column, NumberColumn) else 0.5
        for place in range(part.start, part.stop):
            apart = units if isinstance(column, NumberColumn) else codes
            near &= (apart[:, place, None] - apart[:, place]).abs() < bound
    kept = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    after = near.triu(diagonal=1)
    for k in range(len(codes)):
        kept &= ~(after[k] & kept[k])
    return torch.nonzero(kept).squeeze(-1)


def best_candidates(
    space: DesignSpace, value: Callable[[Tensor], Tensor], codes: Tensor, enough: int, chunk: int = 8_192
) -> Tensor:
    """Designs of high value, best first, thinned as far as ``enough`` are left.

    Args:
        space: the columns.
        value: ``codes -> (n,)``.
        codes: ``(n, width)``.
        enough: least number.
        chunk: designs valued at a time.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """
    values = torch.cat([value(part) for part in codes.split(chunk)])
    return thinned(space, codes, values, enough)
