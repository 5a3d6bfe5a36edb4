"""The inner problem: the structure that a table of predicted distances makes most likely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.distances import VolumeBounds
from sciopt.domains.conformation.learning.graphs import GraphBatch
from sciopt.domains.conformation.learning.network import DistancePrediction
from sciopt.domains.conformation.relaxation import HessianAdjoint
from sciopt.domains.conformation.responses import RelaxedResponse, adjoint_for, relaxed_response
from sciopt.domains.conformation.restraints import excess
from sciopt.domains.conformation.terms.energy import AbstractEnergy, evaluate, moved
from sciopt.hypergradients import Implicit
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner import LBFGS
from sciopt.inner.abstract import AbstractSolver

__all__ = ["DistanceTargets", "InnerOptions", "distance_energy", "reconstruct"]

THERMAL = 0.593  # kcal/mol, RT at 298 K: a likelihood as an energy
PARAMETERS = ("distances", "stiffness")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DistanceTargets(AbstractEnergy):
    """``1/2 k (|x_i - x_j| - d)^2`` over pairs, and a push where others come too near: distance geometry of predictions.

    Outer variables: ``distances`` and ``stiffness``.

    Args:
        atoms: int64 ``(rows, 2, T)``.
        distances: ``(rows, T)`` [A].
        stiffness: ``(rows, T)`` [kcal/mol/A^2]; zero for pairs that a row does not have.
        num_atoms: atoms per row N.
        apart: int64 ``(rows, 2, Q)``, pairs that are kept apart; None: none.
        floor: ``(rows, Q)`` [A], how far; zero for pairs that a row does not have.
        contact: stiffness below the floor [kcal/mol/A^2].
        origin: int64 ``(rows,)``, which row of the outer variables each row takes; None: its own. Dropping rows keeps the
            outer variables whole.

    Raises:
        ValueError: for tables of different shapes.

    Example:
        >>> one = torch.ones(1, 1)
        >>> spring = DistanceTargets(atoms=torch.tensor([[[0], [1]]]), distances=one, stiffness=2 * one, num_atoms=2)
        >>> spring(torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]]))
        tensor([4.])
    """

    atoms: Tensor
    distances: Tensor
    stiffness: Tensor
    num_atoms: int
    apart: Tensor | None = None
    floor: Tensor | None = None
    contact: float = 0.0
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        shape = (self.atoms.shape[0], self.atoms.shape[-1])
        given = (tuple(self.distances.shape), tuple(self.stiffness.shape))
        if self.atoms.ndim != 3 or self.atoms.shape[1] != 2 or given != (shape, shape):
            raise ValueError(
                "DistanceTargets: expected `atoms` (rows, 2, T), `distances` and `stiffness` (rows, T), got "
                f"{tuple(self.atoms.shape)}, {given[0]} and {given[1]}. Give one of each per pair."
            )

    @property
    def names(self) -> tuple[str, ...]:
        return PARAMETERS

    @property
    def shape(self) -> tuple[int, int]:
        return self.atoms.shape[0], self.num_atoms

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Both atoms of all pairs, targets before those apart, ``(rows, T + Q)`` each."""
        both = self.atoms if self.apart is None else torch.cat([self.atoms, self.apart], dim=-1)
        return both[:, 0].contiguous(), both[:, 1].contiguous()

    @cached_property
    def fences(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower bounds, upper bounds and stiffness of the pairs apart ``(rows, Q)``."""
        floor = self.distances[:, :0] if self.floor is None else self.floor
        return floor, torch.full_like(floor, float("inf")), self.contact * (floor > 0).to(floor.dtype)

    def tables(self, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Lower bounds, upper bounds and stiffness of all pairs, ``(rows, T + Q)``; equal bounds make a target."""
        distances, stiffness = (
            self.outer(params[name]) if name in params else getattr(self, name) for name in PARAMETERS
        )
        low, high, push = self.fences
        own = ((distances, low), (distances, high), (stiffness, push))
        return tuple(torch.cat(pair, dim=-1) for pair in own)  # pyright: ignore[reportReturnType]

    def outer(self, table: Tensor) -> Tensor:
        """The rows of an outer variable that belong to these rows."""
        return table if self.origin is None else table.index_select(0, self.origin)

    def differences(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors ``(rows, T + Q, 3)`` between the atoms of the pairs, and their lengths."""
        first, second = (positions.gather(1, end.unsqueeze(-1).expand(-1, -1, 3)) for end in self.ends)
        d = first - second
        return d, (d * d).sum(-1).clamp_min(1e-16).sqrt()

    def value(self, positions: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        lower, upper, stiffness = self.tables(params)
        out = excess(self.differences(positions)[1], lower, upper)
        return (0.5 * stiffness * out * out).sum(-1)

    def value_and_gradient(self, positions: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            lower, upper, stiffness = self.tables(params)
            d, r = self.differences(positions)
            out = excess(r, lower, upper)
            pull = stiffness * out
            force = (pull / r).unsqueeze(-1) * d
            gradient = torch.zeros_like(positions)
            for end, sign in zip(self.ends, (1, -1), strict=True):
                gradient.scatter_add_(1, end.unsqueeze(-1).expand(-1, -1, 3), sign * force)
            return (0.5 * pull * out).sum(-1), gradient

    def to(self, target: torch.device | str | torch.dtype) -> DistanceTargets:
        names = ("atoms", "distances", "stiffness", "apart", "floor", "origin")
        return replace(
            self, **{n: None if getattr(self, n) is None else moved(getattr(self, n), target) for n in names}
        )

    def select(self, rows: Tensor) -> DistanceTargets:
        names = ("atoms", "distances", "stiffness", "apart", "floor")
        kept = {n: None if getattr(self, n) is None else getattr(self, n).index_select(0, rows) for n in names}
        return replace(self, **kept, origin=rows if self.origin is None else self.origin.index_select(0, rows))

    def curvature(self, positions: Tensor, params: Mapping[str, Tensor], *, exact: bool) -> Tensor:
        with torch.no_grad():
            lower, upper, stiffness = self.tables(params)
            d, r = self.differences(positions)
            out = excess(r, lower, upper)
            along = torch.where((out == 0) & (lower < upper), 0.0, stiffness)
            across = stiffness * out / r if exact else torch.zeros_like(along)
            unit = d / r.unsqueeze(-1)
            blocks = ((along - across).unsqueeze(-1) * unit).unsqueeze(-1) * unit.unsqueeze(-2)
            blocks.diagonal(dim1=-2, dim2=-1).add_(across.unsqueeze(-1))
            return spread(blocks.flatten(-2), *self.ends, self.num_atoms)

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        return evaluate(self, positions, outer_params)


def spread(blocks: Tensor, first: Tensor, second: Tensor, num_atoms: int) -> Tensor:
    """Matrices ``(rows, 3N, 3N)`` of pairs' blocks ``(rows, T, 9)``: added for an atom with itself, subtracted across."""
    rows = blocks.shape[0]
    table = blocks.new_zeros(rows * num_atoms * num_atoms, 9)
    start = torch.arange(rows, device=blocks.device).unsqueeze(-1) * num_atoms
    flat = blocks.reshape(-1, 9)
    for a, b, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
        table.index_add_(0, ((start + a) * num_atoms + b).reshape(-1), flat, alpha=sign)
    whole = table.view(rows, num_atoms, num_atoms, 3, 3).transpose(2, 3)
    return whole.reshape(rows, 3 * num_atoms, 3 * num_atoms)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InnerOptions:
    """How distances become coordinates, and how that is differentiated.

    Args:
        solver: of the inner problem; None: L-BFGS to a gradient of 1e-4 kcal/mol/A (1e-2 in float32), 500 evaluations.
        hypergradient: None: `Implicit` with the exact Hessian; `OneStep(step_size=...)` is the published one, `Unrolled(...)`
            differentiates the iterations.
        contact: stiffness with which atoms more than three bonds apart are kept from overlapping [kcal/mol/A^2]; 0: not.

    Example:
        >>> from sciopt.hypergradients import OneStep
        >>> InnerOptions(hypergradient=OneStep(step_size=1e-3)).contact
        10.0
    """

    solver: AbstractSolver | None = None
    hypergradient: AbstractHypergradient | None = None
    contact: float = 10.0
    chiral: float = 10.0

    def hypergradient_for(self, energy: AbstractEnergy, dtype: torch.dtype) -> AbstractHypergradient:
        """The hypergradient, or the default for an energy in a dtype."""
        if self.hypergradient is not None or dtype == torch.float64:
            return self.hypergradient or adjoint_for(energy)
        return Implicit(HessianAdjoint(energy=energy, rtol=1e-4))

    def solver_for(self, dtype: torch.dtype) -> AbstractSolver:
        """The solver, or the default in a dtype."""
        return self.solver or LBFGS(rtol=0.0, atol=1e-4 if dtype == torch.float64 else 1e-2, max_steps=500)


def distance_energy(
    rows: GraphBatch, prediction: DistancePrediction, *, contact: float = 10.0, chiral: float = 10.0
) -> tuple[AbstractEnergy, dict[str, Tensor]]:
    """The energy whose minimum is the most likely structure, and its outer parameters attached to the prediction.

    Springs are ``RT / scale^2`` stiff, so that the energy is ``RT`` times the negative logarithm of the likelihood.

    Args:
        rows: the graphs.
        prediction: distances of their pairs.
        contact: see `InnerOptions`.
        chiral: see `InnerOptions`.

    Returns:
        The energy of the rows and its parameters ``{"distances", "stiffness"}``, each ``(rows, T)``.
    """
    params = {
        "distances": rows.padded(prediction.mean, 1.0),
        "stiffness": rows.padded(THERMAL / prediction.scale**2, 0.0),
    }
    energy = DistanceTargets(
        atoms=rows.pair_atoms,
        num_atoms=rows.size[1],
        apart=rows.apart if contact > 0 else None,
        floor=rows.floor if contact > 0 else None,
        contact=contact,
        **{name: tensor.detach() for name, tensor in params.items()},
    )
    if chiral > 0 and rows.corners.shape[-1]:
        lower, upper, weight = rows.volumes.unbind(1)
        hand = VolumeBounds(
            atoms=rows.corners, lower=lower, upper=upper, weight=chiral * weight, num_atoms=rows.size[1]
        )
        return energy + hand, params
    return energy, params


def reconstruct(
    batch: ConformerBatch,
    rows: GraphBatch,
    prediction: DistancePrediction,
    options: InnerOptions | None = None,
) -> RelaxedResponse:
    """The structures next to the starts that the distances make most likely, differentiable in distances and scales.

    Args:
        batch: the starts.
        rows: graphs of the same rows.
        prediction: of the decoder, or any table of distances with uncertainties.
        options: see `InnerOptions`.

    Returns:
        `RelaxedResponse`; rows that did not converge or ended on a saddle are cut off from autograd and say why.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> from sciopt.domains.conformation.learning.graphs import graph_batch
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
        >>> ids = rdDistGeom.EmbedMultipleConfs(mol, 1, randomSeed=7)
        >>> batch = ConformerBatch.from_mols([mol])
        >>> rows = graph_batch(batch)
        >>> longer = 1.01 * rows.distances(batch.positions)
        >>> found = reconstruct(batch, rows, DistancePrediction(longer, torch.full_like(longer, 0.05)))
        >>> bool((rows.distances(found.positions) - longer).abs().max() < 1e-3)
        True

    References:
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021, eq. 5
        (the inner problem), there without weights and by gradient descent.
    """
    chosen = options or InnerOptions()
    solver = chosen.solver_for(batch.positions.dtype)
    energy, params = distance_energy(rows, prediction, contact=chosen.contact, chiral=chosen.chiral)
    return relaxed_response(
        batch,
        params,
        energy,
        solver=solver,
        hypergradient=chosen.hypergradient_for(energy, batch.positions.dtype),
        throw=False,
    )
