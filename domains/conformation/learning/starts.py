"""Where the inner problem starts: it finds the minimum next to it, so the start decides the basin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.learning.graphs import GraphBatch
from sciopt.domains.conformation.learning.network import DistancePrediction

__all__ = ["AbstractStart", "GivenStart", "RandomStart", "SpectralStart"]


class AbstractStart(ABC):
    """A rule for the starting positions of rows."""

    @abstractmethod
    def positions(
        self, batch: ConformerBatch, rows: GraphBatch, prediction: DistancePrediction, generator: torch.Generator
    ) -> Tensor:
        """Positions ``(rows, N, 3)`` in angstrom, padded atoms at the origin."""


def noise_like(batch: ConformerBatch, scale: float, generator: torch.Generator) -> Tensor:
    """Normal displacements of the atoms that exist; the same numbers in every dtype and on every device."""
    noise = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return scale * noise.to(batch.positions) * batch.mask.unsqueeze(-1)


@final
@dataclass(frozen=True, kw_only=True)
class GivenStart(AbstractStart):
    """The positions that the batch holds, a reference or an ETKDG conformer, with a little noise.

    Args:
        noise: standard deviation of the displacements [A].

    Example:
        >>> GivenStart(noise=0.1).noise
        0.1
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        check_option("GivenStart", "noise", self.noise, self.noise >= 0, ">= 0", "0.1 angstrom is a good choice.")

    def positions(
        self, batch: ConformerBatch, rows: GraphBatch, prediction: DistancePrediction, generator: torch.Generator
    ) -> Tensor:
        return batch.positions + noise_like(batch, self.noise, generator)


@final
@dataclass(frozen=True, kw_only=True)
class RandomStart(AbstractStart):
    """Atoms in a cloud: many inner problems then end in local minima of the wrong handedness.

    Args:
        scale: standard deviation of each coordinate [A].

    Example:
        >>> RandomStart(scale=2.0).scale
        2.0
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        check_option("RandomStart", "scale", self.scale, self.scale > 0, "> 0", "2 angstrom is a good choice.")

    def positions(
        self, batch: ConformerBatch, rows: GraphBatch, prediction: DistancePrediction, generator: torch.Generator
    ) -> Tensor:
        return noise_like(batch, self.scale, generator)


@final
@dataclass(frozen=True, kw_only=True)
class SpectralStart(AbstractStart):
    """Classical scaling of the predicted distances, completed by shortest paths, in the hand of most specified centres.

    Without specified centres the hand is drawn at random.

    Args:
        noise: displacements added [A]: planar starts do not stay planar, and torsions fall to either side.

    Example:
        >>> SpectralStart().noise
        0.3

    References:
        Crippen, Havel. "Distance Geometry and Molecular Conformation". Wiley, 1988, ch. 6 (metric matrices).
    """

    noise: float = 0.3

    def __post_init__(self) -> None:
        check_option("SpectralStart", "noise", self.noise, self.noise >= 0, ">= 0", "Leave the default.")

    def positions(
        self, batch: ConformerBatch, rows: GraphBatch, prediction: DistancePrediction, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            far = shortest_paths(rows, prediction.mean.detach())
            mask = batch.mask.to(far.dtype)
            share = mask / mask.sum(-1, keepdim=True)
            square = torch.where(batch.mask.unsqueeze(-1) & batch.mask.unsqueeze(-2), far, 0.0) ** 2
            centre = torch.diag_embed(mask) - mask.unsqueeze(-1) * share.unsqueeze(-2)
            value, vector = torch.linalg.eigh(-0.5 * centre @ square @ centre.mT)
            x = vector[..., -3:] * value[..., -3:].clamp_min(0.0).sqrt().unsqueeze(-2)
            hand = torch.randint(2, (len(batch),), generator=generator, device=generator.device).to(x.device)
            # eigenvectors have a sign that no one chose: fix it, then draw the hand
            x = x * torch.where(x.sum(-2, keepdim=True) < 0, -1.0, 1.0)
            x[..., 0] = x[..., 0] * (2.0 * hand - 1.0).unsqueeze(-1)
            right = handedness(rows, x)
            x[..., 0] = x[..., 0] * torch.where(right < 0, -1.0, 1.0).unsqueeze(-1)
            return x * mask.unsqueeze(-1) + noise_like(batch, self.noise, generator)


def handedness(rows: GraphBatch, positions: Tensor) -> Tensor:
    """How many specified centres of each row are the right way round, less those that are not ``(rows,)``."""
    if not rows.corners.shape[-1]:
        return torch.zeros_like(positions[:, 0, 0])
    corners = rows.corners.flatten(1).unsqueeze(-1).expand(-1, -1, 3)
    a, b, c, d = positions.gather(1, corners).unflatten(1, (4, -1)).unbind(1)
    found = ((a - d) * torch.linalg.cross(b - d, c - d)).sum(-1)
    lower, _, weight = rows.volumes.unbind(1)
    return (weight * torch.where(lower > 0, 1.0, -1.0) * found.sign()).sum(-1)


def shortest_paths(rows: GraphBatch, distances: Tensor) -> Tensor:
    """Lengths of shortest paths between the atoms of each row, ``(rows, N, N)``; inf between fragments becomes 10 A."""
    count, size = rows.size
    table = distances.new_full((count, size, size), float("inf"))
    local = rows.data.pair_index - rows.data.ptr[rows.row]
    table[rows.row, local[0], local[1]] = distances
    table[rows.row, local[1], local[0]] = distances
    table.diagonal(dim1=-2, dim2=-1).zero_()
    for k in range(size):
        table = torch.minimum(table, table[:, :, k : k + 1] + table[:, k : k + 1, :])
    return torch.where(torch.isinf(table), 10.0, table)
