"""Random landscapes with tunable ruggedness: NK and rough Mount Fuji, tabulated over the whole space."""

from __future__ import annotations

import torch

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import AbstractVisibleRule, AtMostQuantile, Table, TableTask

__all__ = ["nk_landscape", "rough_mount_fuji"]


def nk_landscape(
    *,
    length: int,
    neighbours: int,
    alphabet: str = "01",
    seed: int = 0,
    rule: AbstractVisibleRule | None = None,
) -> TableTask:
    """Kauffman's NK landscape: the mean of one random table per position, each over the position and K others.

    ``neighbours = 0`` is additive with one peak, ``length - 1`` is uncorrelated noise.

    Args:
        length: N, positions.
        neighbours: K, at most ``length - 1``, drawn at random for each position.
        alphabet: the letters.
        seed: of neighbours and tables.
        rule: what is visible; None: scores at or below the median.

    Returns:
        `TableTask` over the whole space (at most four million designs); contributions are uniform in [0, 1].

    Example:
        >>> nk_landscape(length=4, neighbours=0).table.scores.shape
        torch.Size([16])

    References:
        Kauffman, Weinberger. "The NK model of rugged fitness landscapes". J. Theor. Biol. 141, 1989.
    """
    ok = 0 <= neighbours < length
    check_option("nk_landscape", "neighbours", neighbours, ok, "between 0 and length - 1", "2 is mildly rugged.")
    space = CategoricalSpace(length=length, alphabet=alphabet)
    generator = torch.Generator().manual_seed(seed)
    designs = space.everything()
    total = torch.zeros(len(designs), dtype=torch.float64)
    for place in range(length):
        others = torch.randperm(length - 1, generator=generator, device=generator.device)[:neighbours]
        sites = torch.cat([torch.tensor([place]), others + (others >= place)])
        table = torch.rand(
            space.letters ** (neighbours + 1), generator=generator, device=generator.device, dtype=torch.float64
        )
        powers = space.letters ** torch.arange(neighbours + 1)
        total += table[(designs[:, sites] * powers).sum(-1)]
    return _task(space, designs, total / length, rule)


def rough_mount_fuji(
    *,
    length: int,
    roughness: float,
    alphabet: str = "01",
    seed: int = 0,
    rule: AbstractVisibleRule | None = None,
) -> TableTask:
    """Minus the Hamming distance to a random peak, over the length, plus normal noise for each design.

    Args:
        length: positions.
        roughness: standard deviation of the noise; a mutation changes the smooth part by 1 / length.
        alphabet: the letters.
        seed: of peak and noise.
        rule: what is visible; None: scores at or below the median.

    Returns:
        `TableTask` over the whole space (at most four million designs).

    Example:
        >>> float(rough_mount_fuji(length=4, roughness=0.0).table.scores.max())
        0.0

    References:
        Neidhart, Szendro, Krug. "Adaptation in tunably rugged fitness landscapes: the rough Mount Fuji model". Genetics 198,
        2014, eq. 1.
    """
    check_option("rough_mount_fuji", "roughness", roughness, roughness >= 0, ">= 0", "0.1 is mildly rugged.")
    space = CategoricalSpace(length=length, alphabet=alphabet)
    generator = torch.Generator().manual_seed(seed)
    designs = space.everything()
    distance = (designs != space.random(1, generator)).sum(-1)
    noise = torch.randn(len(designs), generator=generator, device=generator.device, dtype=torch.float64)
    return _task(space, designs, -distance / length + roughness * noise, rule)


def _task(
    space: CategoricalSpace, designs: torch.Tensor, scores: torch.Tensor, rule: AbstractVisibleRule | None
) -> TableTask:
    table = Table(designs=designs, scores=scores)
    return TableTask(domain=space, table=table, rule=AtMostQuantile(quantile=0.5) if rule is None else rule)
