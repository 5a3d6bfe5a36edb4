"""What lies around the current designs: near rows, far rows that are settled beforehand, mutants; and the problem of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from sciopt.domains.offline.tuning.local_problem import LocalProblem
from sciopt.domains.offline.tuning.models import ProxyData
from sciopt.domains.offline.tuning.validation import AbstractValidation
from sciopt.domains.offline.tuning.weighting import AbstractWeighting
from sciopt.inner import left_out_errors, weighted_kernel_ridge

__all__ = ["Surroundings", "local_problem"]

NEAR = 0.5  # of the mean squared distance of a centre's rows


class Locality(Protocol):
    """The options of `LocalModel` that the problem needs."""

    @property
    def rows(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def neighbours(self) -> int: ...
    @property
    def mutations(self) -> int: ...
    @property
    def trust(self) -> float: ...
    @property
    def weighting(self) -> AbstractWeighting | None: ...
    @property
    def validation(self) -> AbstractValidation: ...
    @property
    def shrinkage(self) -> float: ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """The designs around c centres. Made by `local_problem`.

    Args:
        rows: nearest visible designs, indices ``(c, n)``, nearest first.
        far: the next nearest ``(c, f)``, which keep weight 1.
        neighbours: mutants ``(c, p, length)``.
        width: squared kernel distance that counts as near ``()``.
        settled: dual weights of the far rows alone ``(c, f)``.
        coupling: what a dual weight of a row or neighbour takes from them ``(c, f, n + p)``.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import LocalModel, proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> _, near = local_problem(LocalModel(rows=5), data, data.designs[:2], torch.Generator())
        >>> near.far.shape
        torch.Size([2, 27])
    """

    rows: Tensor
    far: Tensor
    neighbours: Tensor
    width: Tensor
    settled: Tensor
    coupling: Tensor

    def far_coefficients(self, alpha: Tensor) -> Tensor:
        """Dual weights of the far rows ``(c, f)``, given those of rows and neighbours ``(c, n + p)``."""
        return self.settled - (self.coupling @ alpha.unsqueeze(-1)).squeeze(-1)


def local_problem(
    options: Locality, data: ProxyData, centres: Tensor, generator: torch.Generator
) -> tuple[LocalProblem, Surroundings]:
    """The bi-level problem around some designs.

    Rows that are far keep weight 1; they are eliminated beforehand, by a Schur complement, into the kernel and a prior mean
    of the near ones. With all weights 1 and no neighbours the solution is kernel ridge on all rows.

    Args:
        options: the `LocalModel`.
        data: the table.
        centres: designs ``(c, length)``.
        generator: chooses mutants.

    Returns:
        The problem, with all near rows in its validation, and the designs around.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import LocalModel, proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> options = LocalModel(neighbours=0, rows=5)
        >>> problem, near = local_problem(options, data, data.designs[:2], torch.Generator())
        >>> near.rows[:, 0], problem.kernel.shape  # nearest first
        (tensor([0, 1]), torch.Size([2, 5, 5]))
    """
    c, p = len(centres), options.neighbours
    with torch.no_grad():
        distance = data.squared_distance(data.relaxation.points(centres), data.points)
        nearest = distance.topk(min(options.rows + options.context, len(data.points)), largest=False, sorted=True)
        n = min(options.rows, len(data.points))
        (rows, far), away = nearest.indices.tensor_split((n,), -1), nearest.values[:, :n]
        width = away.mean() * NEAR
        mutants = data.space.mutated(centres.repeat_interleave(p, 0), options.mutations, generator)
        used, place = torch.unique(nearest.indices, return_inverse=True)
        theirs = len(used) + torch.arange(len(mutants), device=rows.device).reshape(c, p)
        here, there = torch.cat([place[:, :n], theirs], -1), place[:, n:]
        matrix = data.matrix(used, data.relaxation.points(mutants))
        kernel = matrix[here.unsqueeze(-1), here.unsqueeze(-2)]
        cross = matrix[there.unsqueeze(-1), here.unsqueeze(-2)]
        system = matrix[there.unsqueeze(-1), there.unsqueeze(-2)] + torch.diag_embed(data.ridge / data.mass[far])
        factor = torch.linalg.cholesky(system)
        coupling = torch.cholesky_solve(cross, factor)
        settled = torch.cholesky_solve(data.targets[far].unsqueeze(-1), factor).squeeze(-1)
        mean = (cross.mT @ settled.unsqueeze(-1)).squeeze(-1)
        kernel = kernel - cross.mT @ coupling
        kernel = 0.5 * (kernel + kernel.mT)
        near = Surroundings(
            rows=rows,
            far=far,
            neighbours=mutants.reshape(c, p, data.space.length),
            width=width,
            settled=settled,
            coupling=coupling,
        )
        targets, mass = data.targets[rows], data.mass[rows]
        alone = kernel[:, :n, :n]
        dual = weighted_kernel_ridge(alone, targets - mean[:, :n], mass, data.ridge)
        error = left_out_errors(alone, dual, mass, data.ridge)
        features = torch.stack([away, targets, torch.log1p(error.square())], -1)
        features = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True).clamp(min=1e-12)
        labels = doubt = targets[:, :0]
        if p:
            cross = kernel[:, n:, :n]
            labels = mean[:, n:] + (cross @ dual.unsqueeze(-1)).squeeze(-1)  # what the model of all rows predicts
            root = torch.linalg.cholesky(alone + torch.diag_embed(data.ridge / mass))
            explained = (cross * torch.cholesky_solve(cross.mT, root).mT).sum(-1)
            variance = (kernel.diagonal(dim1=-2, dim2=-1)[:, n:] - explained).clamp(min=0)
            size = ((targets - mean[:, :n]) * dual).sum(-1, keepdim=True) / n  # the likeliest scale of the kernel
            doubt = (variance * size).clamp(min=1e-4).sqrt()
        share = torch.exp(-(away - away[:, :1]) / width) * mass
    stated = LocalProblem(
        kernel=kernel, mean=mean, targets=targets, mass=mass, features=features, share=share / share.sum(-1, keepdim=True),
        labels=labels, doubt=doubt, trust=options.trust, ridge=data.ridge, weighting=options.weighting,
        validation=options.validation, shrinkage=options.shrinkage,
    )  # fmt: skip
    return stated, near
