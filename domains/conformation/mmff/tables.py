"""MMFF parameters of many molecules, padded to one table per kind of term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sciopt.domains.conformation.batch import check_mol, padded
from sciopt.domains.conformation.mmff.parameters import MolTables, Variant, read_tables
from sciopt.domains.conformation.terms.energy import moved
from sciopt.domains.conformation.terms.pairs import from_matrix

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["PARAMETERS", "MMFFTables", "make_tables"]

PARAMETERS = (
    "bond_stiffness",
    "bond_length",
    "angle_stiffness",
    "angle_rest",
    "stretch_bend",
    "plane_stiffness",
    "torsion",
    "vdw_radius",
    "vdw_depth",
    "charges",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class MMFFTables:
    """Terms of ``M`` molecules; padded terms have zero strength and sit on atom 0.

    Args:
        bonds: atoms of each bond, int64 ``(M, 2, B)``.
        angles: ``(M, 3, A)``, centre in the middle; ``angle_bonds`` ``(M, 2, A)`` are the bonds of its arms.
        planes: ``(M, 4, O)``: i, centre, k and the atom l that leaves their plane.
        torsions: ``(M, 4, T)``.
        bond_stiffness: kb ``(M, B)`` [md/A]; ``bond_length`` [A].
        angle_stiffness: ka ``(M, A)`` [md A/rad^2]; ``angle_rest`` [degrees]; ``angle_linear`` ka of linear centres.
        stretch_bend: ``(M, 2, A)`` [md/rad].
        plane_stiffness: koop ``(M, O)`` [md A/rad^2].
        torsion: V1, V2, V3 ``(M, 3, T)`` [kcal/mol].
        vdw_radius: R* ``(M, K, N)`` [A] and ``vdw_depth`` epsilon [kcal/mol], in the slots of `circulant`.
        charges: ``(M, N)`` [e].
        coulomb: ``(M, K, N)``, 332.0716 times 0, 0.75 or 1, over the dielectric constant.
    """

    bonds: Tensor
    angles: Tensor
    angle_bonds: Tensor
    planes: Tensor
    torsions: Tensor
    bond_stiffness: Tensor
    bond_length: Tensor
    angle_stiffness: Tensor
    angle_rest: Tensor
    angle_linear: Tensor
    stretch_bend: Tensor
    plane_stiffness: Tensor
    torsion: Tensor
    vdw_radius: Tensor
    vdw_depth: Tensor
    charges: Tensor
    coulomb: Tensor

    @cached_property
    def straight(self) -> Tensor:
        """Which columns of ``angles`` hold linear centres, int64 ``(S,)``."""
        return torch.nonzero((self.angle_linear > 0).any(0)).reshape(-1)

    @property
    def num_atoms(self) -> int:
        """Atoms per row N."""
        return self.charges.shape[-1]

    def to(self, target: torch.device | str | torch.dtype) -> MMFFTables:
        """The tables on another device, or their numbers in another dtype."""
        return replace(self, **{f.name: moved(getattr(self, f.name), target) for f in fields(self)})

    def select(self, molecules: Tensor) -> MMFFTables:
        """Some molecules, in the order given."""
        return replace(self, **{f.name: getattr(self, f.name).index_select(0, molecules) for f in fields(self)})


def make_tables(
    mols: Sequence[Mol],
    variant: Variant,
    *,
    between_fragments: bool,
    dielectric: float,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> MMFFTables:
    """Read and pad the parameters of molecules; raises `MMFFError` for the first that has none."""
    for number, mol in enumerate(mols):
        check_mol("MMFF", mol, number)
    read = [read_tables(mol, variant, k, between_fragments=between_fragments) for k, mol in enumerate(mols)]
    width = max((one.num_atoms for one in read), default=0)
    made: dict[str, Tensor] = {}
    for f in fields(MMFFTables):
        if f.name in ("vdw_radius", "vdw_depth", "coulomb"):
            made[f.name] = _slots(read, f.name, width, dtype)
        else:
            array = padded([getattr(one, f.name) for one in read])
            made[f.name] = torch.as_tensor(array, dtype=torch.int64 if array.dtype == np.int64 else dtype)
    made["coulomb"] /= dielectric
    return MMFFTables(**{name: tensor.to(device) for name, tensor in made.items()})


def _slots(read: Sequence[MolTables], name: str, width: int, dtype: torch.dtype) -> Tensor:
    fill = 1.0 if name == "vdw_radius" else 0.0
    full = np.full((len(read), width, width), fill)
    for number, one in enumerate(read):
        full[number, : one.num_atoms, : one.num_atoms] = getattr(one, name)
    return from_matrix(torch.as_tensor(full, dtype=dtype), fill)
