"""What a search is: from a table of old results to the next batch, without a look at the oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from types import EllipsisType
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["AbstractSearch", "Proposal", "best_starts", "check_request", "nearest_allowed", "shuffled", "without"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """A batch to test next.

    Args:
        designs: int64 ``(count, length)``.
        predicted: the search's own prediction of their scores ``(count,)``, in units of the scores; None: it has none.
        notes: what one should know of this run: a guard that acted, tuning that was turned down, a fallback that was taken.

    Example:
        >>> Proposal(designs=torch.zeros(2, 3, dtype=torch.int64)).predicted is None
        True
    """

    designs: Tensor
    predicted: Tensor | None = None
    notes: tuple[str, ...] = ()


class AbstractSearch(ABC):
    """A way to propose designs. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """The next batch.

        Args:
            space: the designs.
            table: what is known.
            count: designs to propose.
            generator: the one source of chance.
            pool: allowed designs ``(m, length)``; None: the whole space.

        Returns:
            `Proposal`.

        Raises:
            ValueError: for a pool smaller than the batch, or a table from which nothing can be learned.
        """


def check_request(
    owner: str,
    table: Table,
    count: int,
    pool: Tensor | None,
    *,
    space: CategoricalSpace | None = None,
    generator: torch.Generator | EllipsisType = ...,
) -> None:
    """Bad requests, before any long work.

    Args:
        owner: whom errors name.
        table: what is known.
        count: designs to propose.
        pool: allowed designs, or None.
        space: the designs; with it, the table's and the pool's are looked at as well.
        generator: the one source of chance, where there is one.

    Raises:
        TypeError: for a generator or a pool of another kind.
        ValueError: for anything that cannot be answered.

    Example:
        >>> table = Table(designs=torch.tensor([[0], [1]]), scores=torch.tensor([1.0, 2.0]))
        >>> check_request("mine", table, 0, None)
        Traceback (most recent call last):
        ValueError: mine: expected `count` >= 1, got 0. Pass the size of the batch.
    """
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    check_option(owner, "count", count, whole, "as a whole number", "Pass the size of the batch.")
    check_option(owner, "count", count, count >= 1, ">= 1", "Pass the size of the batch.")
    check_option(owner, "table", len(table), len(table) >= 2, "with at least two rows", "Pass more results.")
    if space is not None:
        space.check(table.designs)
    if generator is not ... and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{owner}: expected `generator` as a torch.Generator, got {generator!r}. E.g. torch.Generator().manual_seed(0)."
        )
    if not bool((table.designs != table.designs[:1]).any()):
        raise ValueError(
            f"{owner}: expected a `table` with two different designs at least, got one {len(table)} times. Pass more results."
        )
    if pool is None:
        return
    if not isinstance(pool, Tensor):
        raise TypeError(
            f"{owner}: expected `pool` as a tensor of designs, got {type(pool).__name__}. Make it with space.encode()."
        )
    if space is not None and len(pool):
        space.check(pool)
    if len(pool) < count or len(torch.unique(pool, dim=0)) < count:
        found = len(torch.unique(pool, dim=0)) if len(pool) else 0
        raise ValueError(
            f"{owner}: expected a `pool` of at least `count` = {count} designs, got {found}. Propose fewer, or allow more."
        )


def without(designs: Tensor, known: Tensor) -> Tensor:
    """The distinct designs that are not among the known ones, in lexicographic order.

    Example:
        >>> without(torch.tensor([[1, 0], [0, 0], [1, 0]]), torch.tensor([[0, 0]]))
        tensor([[1, 0]])
    """
    distinct = torch.unique(designs, dim=0)
    both, rows, counts = torch.unique(torch.cat([distinct, known]), dim=0, return_inverse=True, return_counts=True)
    seen = torch.zeros(len(both), dtype=torch.bool, device=designs.device)
    seen[rows[len(distinct) :]] = True
    return distinct[~seen[rows[: len(distinct)]]]


def nearest_allowed(designs: Tensor, pool: Tensor | None) -> Tensor:
    """Each design, or the design of the pool that differs from it at fewest positions.

    Example:
        >>> nearest_allowed(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 0], [1, 1, 1]]))
        tensor([[1, 1, 1]])
    """
    if pool is None:
        return designs
    rows = []
    for chunk in designs.split(64):
        mismatches = torch.zeros(len(chunk), len(pool), dtype=torch.int16, device=designs.device)
        for k in range(designs.shape[1]):
            mismatches += chunk[:, k, None] != pool[:, k]
        rows.append(mismatches.argmin(-1))
    return pool[torch.cat(rows)]


def shuffled(designs: Tensor, generator: torch.Generator) -> Tensor:
    """The designs in random order.

    Example:
        >>> shuffled(torch.tensor([[0], [1]]), torch.Generator().manual_seed(0)).sum()
        tensor(1)
    """
    return designs[torch.randperm(len(designs), generator=generator, device=generator.device).to(designs.device)]


def best_starts(owner: str, table: Table, count: int) -> Tensor:
    """The ``count`` best distinct visible designs, from which as many are moved.

    Example:
        >>> table = Table(designs=torch.tensor([[0], [1]]), scores=torch.tensor([1.0, 2.0]))
        >>> best_starts("mine", table, 1)
        tensor([[1]])
    """
    found = table.best(count)
    if len(found) < count:
        raise ValueError(
            f"{owner}: expected `count` of at most {len(found)}, the number of distinct visible designs to start from, got "
            f"{count}. Propose fewer, or rank or mutate instead."
        )
    return found
