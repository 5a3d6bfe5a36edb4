"""Distance geometry: positions that fit given distances, bounds and handedness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sciopt.constraints.common import check_indices, named_params, per_term, safe_sqrt, squared_distances
from sciopt.constraints.rigid import connected_fragments, rigid_nullspace
from sciopt.problem import Minimize

__all__ = [
    "AbstractStress",
    "DistanceGeometry",
    "DistanceStress",
    "SquaredStress",
    "distance_geometry_problem",
    "signed_volumes",
]


class AbstractStress(ABC):
    """In which measure a distance is compared with its target: a monotone function of the distance."""

    @abstractmethod
    def of_square(self, square: Tensor) -> Tensor:
        """The measure from a squared distance (that of a pair of positions)."""

    @abstractmethod
    def of_distance(self, distance: Tensor) -> Tensor:
        """The measure from a distance (a target or a bound)."""


@final
@dataclass(frozen=True)
class SquaredStress(AbstractStress):
    """Compare ``d^2`` with ``D^2``: polynomial in the positions, smooth at coincident points; weighs long pairs more.

    Example:
        >>> SquaredStress().of_square(torch.tensor(4.0)) - SquaredStress().of_distance(torch.tensor(1.0))
        tensor(3.)
    """

    def of_square(self, square: Tensor) -> Tensor:
        return square

    def of_distance(self, distance: Tensor) -> Tensor:
        return distance.square()


@final
@dataclass(frozen=True)
class DistanceStress(AbstractStress):
    """Compare ``d`` with ``D``: errors in units of length; the kink at coincident points has gradient zero.

    Example:
        >>> DistanceStress().of_square(torch.tensor(4.0)) - DistanceStress().of_distance(torch.tensor(1.0))
        tensor(1.)
    """

    def of_square(self, square: Tensor) -> Tensor:
        return safe_sqrt(square)

    def of_distance(self, distance: Tensor) -> Tensor:
        return distance


def signed_volumes(positions: Tensor, quadruples: Tensor) -> Tensor:
    """``(a - d).((b - d) x (c - d))`` of each quadruple: six times a tetrahedron's volume, negated by a mirror.

    Args:
        positions: ``(*batch, N, 3)``.
        quadruples: integer tensor ``(C, 4)``; swapping two sites changes the sign.

    Returns:
        ``(*batch, C)``, in the cube of the unit of ``positions``.

    Example:
        >>> corner = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        >>> signed_volumes(corner, torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3]]))
        tensor([ 1., -1.])

    References:
        Crippen, Havel. "Distance Geometry and Molecular Conformation". Wiley, 1988, ch. 5.
    """
    if positions.shape[-1] != 3:
        raise ValueError(
            f"signed_volumes: expected `positions` in three dimensions, got {tuple(positions.shape)}. "
            "Handedness of four sites exists in 3D only."
        )
    a, b, c, d = (
        positions.index_select(-2, quadruples.to(positions.device).T.reshape(-1))
        .unflatten(-2, (4, quadruples.shape[0]))
        .unbind(-3)
    )
    return ((a - d) * torch.linalg.cross(b - d, c - d)).sum(-1)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DistanceGeometry:
    """``sum_p w_p (m(d_p) - m(D_p))^2`` plus flat-bottom bounds and signed volumes, over positions.

    ``m`` is the measure of ``stress``. Terms appear with their parameters (outer ones, or fixed in ``params``):

    - ``distances`` ``(*batch, P)``: targets (a bare outer tensor means these);
    - ``lower`` and ``upper`` ``(*batch, P)``: zero between the bounds, the squared excess outside; ``upper`` may be
      inf; curvature jumps at a bound, so a hypergradient is one-sided where a distance sits exactly on one;
    - ``weights`` ``(*batch, P)``, default 1;
    - with ``chirality``: ``volumes``, or ``volume_lower`` and ``volume_upper`` ``(*batch, C)``, and
      ``volume_weights``, default 1: the same for the signed volumes of `signed_volumes`.

    Args:
        pairs: integer tensor ``(P, 2)``; `all_pairs` for a complete matrix.
        stress: `SquaredStress` or `DistanceStress`.
        chirality: integer tensor ``(C, 4)`` of ordered quadruples, or None.
        params: parameters that are no design variables.

    Raises:
        ValueError: when neither targets nor bounds are given, and for unknown or misshapen parameters.

    Example:
        >>> energy = DistanceGeometry(pairs=torch.tensor([[0, 1]]))
        >>> energy(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), {"distances": torch.tensor([1.0])})
        tensor(9.)
        >>> energy(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), {"lower": torch.tensor([1.0]), "upper": torch.tensor([3.0])})
        tensor(0.)

    References:
        Crippen, Havel. "Distance Geometry and Molecular Conformation". Wiley, 1988, ch. 6.
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021.
    """

    pairs: Tensor
    stress: AbstractStress = field(default_factory=SquaredStress)
    chirality: Tensor | None = None
    params: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", check_indices("DistanceGeometry", "pairs", self.pairs, 2))
        if self.chirality is not None:
            quadruples = check_indices("DistanceGeometry", "chirality", self.chirality, 4)
            object.__setattr__(self, "chirality", quadruples)

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        """Energy ``(*batch,)`` of positions ``(*batch, N, d)``."""
        names = ["distances", "lower", "upper", "weights"]
        if self.chirality is not None:
            names += ["volumes", "volume_lower", "volume_upper", "volume_weights"]
        params = named_params("DistanceGeometry", outer_params, self.params, (), names, main="distances")
        if not any(name in params for name in names[:3]):
            raise ValueError(
                "DistanceGeometry: expected `distances`, `lower` or `upper`, got none of them. "
                "Give the targets or the bounds."
            )
        count = self.pairs.shape[0]
        terms = {k: per_term("DistanceGeometry", k, params[k], count, positions) for k in names[:4] if k in params}
        if "lower" in terms:  # a negative bound is no bound; its square would be one
            terms["lower"] = terms["lower"].clamp(min=0.0)
        bounds = {k: self.stress.of_distance(v) for k, v in terms.items() if k in ("distances", "lower")}
        measure = self.stress.of_square(squared_distances(positions, self.pairs))
        if "upper" in terms:  # an infinite bound must not enter the arithmetic: its derivative would be NaN
            finite = terms["upper"].isfinite()
            bound = self.stress.of_distance(torch.where(finite, terms["upper"], 0.0))
            excess = torch.where(finite, measure - bound, 0.0).relu().square()
        else:
            excess = torch.zeros_like(measure)
        value = _misfit(measure, bounds.get("distances"), bounds.get("lower"), None) + excess
        energy = (terms["weights"] * value).sum(-1) if "weights" in terms else value.sum(-1)
        return energy if self.chirality is None else energy + self._handedness(positions, self.chirality, params)

    def _handedness(self, positions: Tensor, chirality: Tensor, params: Mapping[str, Any]) -> Tensor:
        names = ("volumes", "volume_lower", "volume_upper", "volume_weights")
        count = chirality.shape[0]
        terms = {k: per_term("DistanceGeometry", k, params[k], count, positions) for k in names if k in params}
        if not terms.keys() & set(names[:3]):
            raise ValueError(
                "DistanceGeometry: expected `volumes`, `volume_lower` or `volume_upper` with `chirality`, got none of "
                "them. Give the signed volumes, or leave `chirality` out."
            )
        volume = signed_volumes(positions, chirality)
        value = _misfit(volume, terms.get("volumes"), terms.get("volume_lower"), terms.get("volume_upper"))
        return (terms["volume_weights"] * value).sum(-1) if "volume_weights" in terms else value.sum(-1)


def _misfit(value: Tensor, target: Tensor | None, lower: Tensor | None, upper: Tensor | None) -> Tensor:
    """Squared distance to the target, plus the squared excess over each bound."""
    total = torch.zeros_like(value)
    if target is not None:
        total = total + (value - target).square()
    if lower is not None:
        total = total + (lower - value).relu().square()
    if upper is not None:
        total = total + (value - upper).relu().square()
    return total


def distance_geometry_problem(
    pairs: Tensor,
    *,
    num_sites: int,
    stress: AbstractStress | None = None,
    chirality: Tensor | None = None,
    params: Mapping[str, Tensor | float] | None = None,
    fragments: Tensor | Sequence[int] | None = None,
    batch_ndim: int = 0,
) -> Minimize:
    """The structure that best fits given distances: ``Minimize`` over positions ``(*batch, N, d)``.

    Outer parameters are those of `DistanceGeometry`: a tensor of distances, or a dict. Distances that fit no structure
    are fine; a pair list that leaves a structure floppy is not (the Hessian is then singular beyond the rigid motions,
    and a solve reports it).

    Args:
        pairs: integer tensor ``(P, 2)``.
        num_sites: number of sites N.
        stress: `SquaredStress` (default) or `DistanceStress`.
        chirality: integer tensor ``(C, 4)``, or None.
        params: parameters that are no design variables.
        fragments: integer labels ``(N,)`` of the bodies that move freely; default: the connected parts of ``pairs``
            and ``chirality``.
        batch_ndim: leading dimensions of the positions that number independent problems.

    Returns:
        `Minimize` with the rigid motions of each fragment as its null space.

    Example:
        >>> problem = distance_geometry_problem(torch.tensor([[0, 1], [0, 2], [1, 2]]), num_sites=3)
        >>> triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> problem.objective(triangle, torch.tensor([3.0, 4.0, 5.0]))
        tensor(0.)
    """
    energy = DistanceGeometry(pairs=pairs, stress=stress or SquaredStress(), chirality=chirality, params=params or {})
    if fragments is None:
        links = [energy.pairs]
        if energy.chirality is not None:
            links += [energy.chirality[:, [0, k]] for k in (1, 2, 3)]
        fragments = connected_fragments(torch.cat(links), num_sites)
    return Minimize(energy, batch_ndim=batch_ndim, nullspace=rigid_nullspace(fragments))
