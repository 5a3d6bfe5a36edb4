"""Distance geometry of batches: RDKit's bounds, chiral centres and planar groups as signed volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciopt.constraints import DistanceGeometry, DistanceStress
from sciopt.domains.conformation.batch import ConformerBatch, padded
from sciopt.domains.conformation.restraints import check_terms, excess
from sciopt.domains.conformation.stereo import stereo_terms
from sciopt.domains.conformation.terms.assembly import add_pairs
from sciopt.domains.conformation.terms.energy import AbstractEnergy, evaluate, moved
from sciopt.domains.conformation.terms.pairs import circulant, from_matrix, partners
from sciopt.domains.conformation.terms.rows import TermRows, planes_of
from sciopt.domains.conformation.terms.vectors import cross, dot

__all__ = ["DistanceBounds", "VolumeBounds", "distance_geometry"]

CHIRAL = (4.0, 100.0)  # A^3, six times a centre's tetrahedron; three neighbours and the centre span half as much
FLAT = 0.05  # A^3, what counts as planar


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DistanceBounds(AbstractEnergy):
    """``w excess^2`` of every distance outside its bounds, pairs in the slots of `circulant`.

    The energy of `sciopt.constraints.DistanceGeometry` with `DistanceStress`, with its gradient in closed form. Targets are
    equal bounds. Outer variables: ``bound_lower``, ``bound_upper``, ``bound_weight``.

    Args:
        lower: ``(rows, K, N)`` [A], zero for none.
        upper: ``(rows, K, N)`` [A], inf for none.
        weight: ``(rows, K, N)``; zero for pairs that do not count.

    Raises:
        ValueError: for tables of different shapes.

    Example:
        >>> pair = torch.ones(1, 1, 2, dtype=torch.float64)  # two atoms, 1 A apart at least
        >>> weight = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
        >>> bounds = DistanceBounds(lower=pair, upper=torch.inf * pair, weight=weight)
        >>> bounds(torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]], dtype=torch.float64))
        tensor([0.2500], dtype=torch.float64)
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        shape = self.lower.shape
        if len(shape) != 3 or shape[1] != shape[2] // 2 or not shape == self.upper.shape == self.weight.shape:
            raise ValueError(
                "DistanceBounds: expected `lower`, `upper` and `weight` of shape (rows, N // 2, N), got "
                f"{tuple(self.lower.shape)}, {tuple(self.upper.shape)} and {tuple(self.weight.shape)}. Use from_matrix(...)."
            )

    @staticmethod
    def of(batch: ConformerBatch) -> DistanceBounds:
        """RDKit's bounds of the molecules: bonds, angles, cis and trans, and van der Waals contacts (sterics)."""
        from rdkit.Chem import rdDistGeom

        width = batch.positions.shape[1]
        lower, upper = np.zeros((len(batch.mols), width, width)), np.full((len(batch.mols), width, width), np.inf)
        for number, mol in enumerate(batch.mols):
            bounds, size = rdDistGeom.GetMoleculeBoundsMatrix(mol), mol.GetNumAtoms()
            top, bottom = np.triu(bounds, 1), np.tril(bounds, -1)
            lower[number, :size, :size], upper[number, :size, :size] = bottom + bottom.T, top + top.T
        like, rows = batch.positions, batch.molecule.cpu()
        low, high = (
            from_matrix(torch.as_tensor(t)[rows].to(like), fill) for t, fill in ((lower, 0.0), (upper, torch.inf))
        )
        return DistanceBounds(lower=low, upper=high, weight=torch.ones_like(low))

    @property
    def names(self) -> tuple[str, ...]:
        return ("bound_lower", "bound_upper", "bound_weight")

    @property
    def row_names(self) -> tuple[str, ...]:
        """Parameters with one entry per row: all of them."""
        return self.names

    @property
    def shape(self) -> tuple[int, int]:
        return self.lower.shape[0], self.lower.shape[2]

    def given(self, params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Bounds and weights under these parameters."""
        own = (self.lower, self.upper, self.weight)
        return tuple(params.get(name, default) for name, default in zip(self.names, own, strict=True))

    def value(self, positions: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        pairs = circulant(self.shape[1]).flatten(1).T.to(positions.device)
        core = DistanceGeometry(pairs=pairs, stress=DistanceStress())
        tables = zip(("lower", "upper", "weights"), self.given(params), strict=True)
        return core(positions, {name: table.flatten(-2) for name, table in tables})

    def slots(self, positions: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit vectors, distances, their excess over the bounds, and weights, by slot."""
        lower, upper, weight = self.given(params)
        planes = planes_of(positions)
        d = partners(planes) - planes.unsqueeze(-2)
        r = (d * d).sum(0).clamp_min(1e-16).sqrt()
        return d / r, r, excess(r, lower.clamp_min(0.0), upper), weight

    def value_and_gradient(self, positions: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            unit, _, out, weight = self.slots(positions, params)
            pull = 2 * weight * out
            _, num_atoms = self.shape
            first, second = circulant(num_atoms).to(positions.device)
            force = (unit * pull).movedim(0, -1).flatten(1, 2)  # (rows, K N, 3)
            gradient = torch.zeros_like(positions)
            gradient = gradient.index_add(1, second.reshape(-1), force).index_add(1, first.reshape(-1), -force)
            return (weight * out * out).sum((-2, -1)), gradient

    def select(self, rows: Tensor) -> DistanceBounds:
        return DistanceBounds(lower=self.lower[rows], upper=self.upper[rows], weight=self.weight[rows])

    def to(self, target: torch.device | str | torch.dtype) -> DistanceBounds:
        return replace(self, **{name: moved(getattr(self, name), target) for name in ("lower", "upper", "weight")})

    def curvature(self, positions: Tensor, params: Mapping[str, Tensor], *, exact: bool) -> Tensor:
        with torch.no_grad():
            unit, r, out, weight = self.slots(positions, params)
            matrix = positions.new_zeros(len(positions), 3 * self.shape[1], 3 * self.shape[1])
            along = torch.where(out == 0, 0.0, 2 * weight)
            add_pairs(matrix, unit, along, 2 * weight * out / r if exact else None)
        return matrix

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        return evaluate(self, positions, outer_params)


def volume(points: Tensor) -> tuple[Tensor, Tensor]:
    """``(a - d).((b - d) x (c - d))`` and its derivative ``(4, 3, rows, T)``, as `sciopt.constraints.signed_volumes`."""
    a, b, c = points[0] - points[3], points[1] - points[3], points[2] - points[3]
    ga, gb, gc = cross(b, c), cross(c, a), cross(a, b)
    return dot(a, ga), torch.stack([ga, gb, gc, -(ga + gb + gc)])


def volume_energy(points: Tensor, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    return weight * excess(volume(points)[0], lower, upper) ** 2


def volume_gradient(points: Tensor, lower: Tensor, upper: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    value, b = volume(points)
    out = excess(value, lower, upper)
    return weight * out * out, (2 * weight * out) * b


def volume_spring(points: Tensor, lower: Tensor, upper: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    value, b = volume(points)
    return torch.where(excess(value, lower, upper) == 0, 0.0, 2 * weight), b


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class VolumeBounds(AbstractEnergy):
    """``w excess^2`` of signed volumes outside their bounds: handedness of centres, planarity of groups.

    Outer variables: ``volume_lower``, ``volume_upper``, ``volume_weight``.

    Args:
        atoms: int64 ``(rows, 4, T)``, ordered: swapping two changes the sign.
        lower: ``(rows, T)`` [A^3], and ``upper``.
        weight: ``(rows, T)``; zero for terms that a row does not have.
        num_atoms: atoms per row N.

    Raises:
        ValueError: for tables of other shapes, or atoms that do not exist.

    Example:
        >>> one, corners = torch.ones(1, 1), torch.arange(4).view(1, 4, 1)
        >>> handed = VolumeBounds(atoms=corners, lower=-torch.inf * one, upper=-one, weight=one, num_atoms=4)
        >>> corner = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> bool(handed(corner) < handed(-corner))
        True
    """

    atoms: Tensor
    lower: Tensor
    upper: Tensor
    weight: Tensor
    num_atoms: int

    def __post_init__(self) -> None:
        params = {"lower": self.lower, "upper": self.upper, "weight": self.weight}
        check_terms("VolumeBounds", self.atoms, 4, self.num_atoms, **params)

    @staticmethod
    def of(batch: ConformerBatch, *, chiral: float = 1.0, planar: float = 1.0) -> VolumeBounds:
        """Specified tetrahedral centres on their side, and three-coordinate sp2 atoms in the plane of their neighbours.

        Args:
            batch: the conformers.
            chiral: weight of the centres.
            planar: weight of the planar groups.
        """
        tables = [volume_terms(mol, chiral, planar) for mol in batch.mols]
        atoms = padded([atoms for atoms, _ in tables]) if tables else np.zeros((0, 4, 0), dtype=np.int64)
        numbers = padded([numbers for _, numbers in tables]) if tables else np.zeros((0, 3, 0))
        rows = batch.molecule
        values = torch.as_tensor(numbers).to(batch.positions)[rows]
        return VolumeBounds(
            atoms=torch.as_tensor(atoms, dtype=torch.int64, device=rows.device)[rows],
            lower=values[:, 0],
            upper=values[:, 1],
            weight=values[:, 2],
            num_atoms=batch.positions.shape[1],
        )

    @property
    def names(self) -> tuple[str, ...]:
        return ("volume_lower", "volume_upper", "volume_weight")

    @property
    def row_names(self) -> tuple[str, ...]:
        """Parameters with one entry per row: all of them."""
        return self.names

    @property
    def shape(self) -> tuple[int, int]:
        return self.atoms.shape[0], self.num_atoms

    def terms(self, params: Mapping[str, Tensor]) -> TermRows:
        """The terms under these parameters."""
        own = (self.lower, self.upper, self.weight)
        given = tuple(params.get(name, default) for name, default in zip(self.names, own, strict=True))
        return TermRows(volume_energy, volume_gradient, volume_spring, self.atoms.movedim(1, 0), given)

    def value(self, positions: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        return self.terms(params).value(positions)

    def value_and_gradient(self, positions: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.terms(params).value_and_gradient(positions)

    def select(self, rows: Tensor) -> VolumeBounds:
        kept = {name: getattr(self, name).index_select(0, rows) for name in ("atoms", "lower", "upper", "weight")}
        return replace(self, **kept)

    def to(self, target: torch.device | str | torch.dtype) -> VolumeBounds:
        return replace(self, **{name: moved(getattr(self, name), target) for name in ("lower", "upper", "weight")})

    def curvature(self, positions: Tensor, params: Mapping[str, Tensor], *, exact: bool) -> Tensor:
        return self.terms(params).curvature(positions, exact=exact)

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        return evaluate(self, positions, outer_params)


def volume_terms(mol: Any, chiral: float, planar: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Atoms ``(4, T)`` and ``(lower, upper, weight)`` ``(3, T)`` of one molecule; no planar groups for None."""
    from rdkit import Chem

    atoms: list[list[int]] = []
    numbers: list[tuple[float, float, float]] = []
    stereo = stereo_terms(mol)
    for line, sign in zip(stereo.centres.tolist(), stereo.handedness.tolist(), strict=True):
        least, most = CHIRAL if line[0] != line[4] else (0.5 * CHIRAL[0], CHIRAL[1])
        atoms.append(line[1:])
        numbers.append((least, most, chiral) if sign > 0 else (-most, -least, chiral))
    weight = planar or 0.0
    for atom in mol.GetAtoms() if planar is not None else ():
        if atom.GetDegree() == 3 and atom.GetHybridization() == Chem.HybridizationType.SP2:
            atoms.append([*(other.GetIdx() for other in atom.GetNeighbors()), atom.GetIdx()])
            numbers.append((-FLAT, FLAT, weight))
    shape = len(atoms)
    return np.array(atoms, dtype=np.int64).reshape(shape, 4).T, np.array(numbers, dtype=float).reshape(shape, 3).T


def distance_geometry(batch: ConformerBatch) -> AbstractEnergy:
    """Bounds, handedness and planarity of a batch as one energy, the inner problem of distance geometry.

    Zero where every bound holds; such regions are flat, so for a hypergradient give targets: ``bound_lower`` equal to
    ``bound_upper``.

    Args:
        batch: the conformers.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> from sciopt.domains.conformation import relax
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](N)O"))
        >>> found = rdDistGeom.EmbedMolecule(mol, randomSeed=7)
        >>> batch = ConformerBatch.from_mols([mol])
        >>> bool(relax(batch.with_positions(1.2 * batch.positions), distance_geometry).energy < 1e-4)
        True

    References:
        Crippen, Havel. "Distance Geometry and Molecular Conformation". Wiley, 1988. Riniker, Landrum. "Better informed
        distance geometry: using what we know to improve conformation generation". J. Chem. Inf. Model. 55 (2015).
    """
    return DistanceBounds.of(batch) + VolumeBounds.of(batch)
