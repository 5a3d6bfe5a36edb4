"""The MMFF94 energy of a batch of conformers, in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.mmff.bound import Bound, bind
from sciopt.domains.conformation.mmff.parameters import Variant
from sciopt.domains.conformation.mmff.tables import PARAMETERS, MMFFTables, make_tables
from sciopt.domains.conformation.terms.assembly import add_pairs, pair_curvatures
from sciopt.domains.conformation.terms.energy import AbstractEnergy, evaluate, moved
from sciopt.domains.conformation.terms.pairs import pairs, pairs_gradient
from sciopt.domains.conformation.terms.rows import chunks, planes_of

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["MMFF", "Dielectric"]

STIFFEST = 300.0  # kcal/mol/A^2: overlapping atoms of a start count as no stiffer than this in the model


@final
@dataclass(frozen=True, kw_only=True)
class Dielectric:
    """Screening of the charges.

    Args:
        constant: dielectric constant, 1 in vacuum.
        distance_dependent: energy falls with the square of the distance.

    Example:
        >>> Dielectric(constant=4.0, distance_dependent=True).constant
        4.0
    """

    constant: float = 1.0
    distance_dependent: bool = False

    def __post_init__(self) -> None:
        if not self.constant > 0:
            raise ValueError(f"Dielectric: expected `constant` > 0, got {self.constant!r}. Use 1.0 for vacuum.")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class MMFF(AbstractEnergy):
    """MMFF94 or MMFF94s of rows of conformers, with RDKit's atom types, parameters and conventions.

    Use it as the loss of ``Minimize(energy, batch_ndim=1)``, alone or summed with restraints. One evaluation with its
    gradient costs about 3,000 floating-point operations per atom pair of a drug-like molecule's row, bonded terms
    included, in passes over whole batches. Every parameter may be an outer variable (`parameters`).

    Args:
        tables: parameters of the molecules.
        molecule: int64 ``(rows,)``, the molecule of each row.
        dielectric: screening of the charges.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
        >>> ids = rdDistGeom.EmbedMultipleConfs(mol, 2, randomSeed=7)
        >>> batch = ConformerBatch.from_mols([mol])
        >>> MMFF.of(batch)(batch.positions).shape
        torch.Size([2])

    References:
        Halgren. "Merck molecular force field. I. Basis, form, scope, parameterization, and performance of MMFF94".
        J. Comput. Chem. 17 (1996). Halgren. "MMFF VI. MMFF94s option for energy minimization studies". J. Comput. Chem.
        20 (1999). Tosco, Stiefl, Landrum. "Bringing the MMFF force field to the RDKit". J. Cheminform. 6 (2014).
    """

    tables: MMFFTables
    molecule: Tensor
    dielectric: Dielectric = Dielectric()

    @staticmethod
    def of(
        batch: ConformerBatch,
        *,
        variant: Variant = Variant.MMFF94,
        dielectric: Dielectric | None = None,
        between_fragments: bool = False,
    ) -> MMFF:
        """The energy of a batch, on its device and in its dtype.

        Args:
            batch: the conformers.
            variant: MMFF94 or MMFF94s.
            dielectric: screening; None: vacuum.
            between_fragments: whether separate molecules of one row attract each other (RDKit's default: no).

        Raises:
            MMFFError: for a molecule with an atom that has no MMFF type; its ``number`` is the molecule.
            ValueError: for implicit hydrogens or an empty molecule.
        """
        like = batch.positions
        return MMFF.of_mols(
            batch.mols,
            batch.molecule,
            variant=variant,
            dielectric=dielectric,
            between_fragments=between_fragments,
            dtype=like.dtype,
        ).to(like.device)

    @staticmethod
    def of_mols(
        mols: Sequence[Mol],
        molecule: Tensor,
        *,
        variant: Variant = Variant.MMFF94,
        dielectric: Dielectric | None = None,
        between_fragments: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> MMFF:
        """The energy of rows of the given molecules; see `of`."""
        screening = Dielectric() if dielectric is None else dielectric
        tables = make_tables(
            mols,
            variant,
            between_fragments=between_fragments,
            dielectric=screening.constant,
            dtype=dtype,
            device=molecule.device,
        )
        return MMFF(tables=tables, molecule=molecule, dielectric=screening)

    def to(self, target: torch.device | str | torch.dtype) -> MMFF:
        return replace(self, tables=self.tables.to(target), molecule=moved(self.molecule, target))

    @property
    def names(self) -> tuple[str, ...]:
        return PARAMETERS

    @property
    def shape(self) -> tuple[int, int]:
        return self.molecule.shape[0], self.tables.num_atoms

    def parameters(self) -> dict[str, Tensor]:
        """Copies of every parameter by name, as `MMFFTables` describes them: what ``outer_params`` may hold."""
        return {name: getattr(self.tables, name).clone() for name in PARAMETERS}

    def select(self, rows: Tensor) -> MMFF:
        return replace(self, molecule=self.molecule.index_select(0, rows))

    @cached_property
    def bound(self) -> Bound:
        """The rows' own copies of the tables, made at the first evaluation."""
        return bind(self.tables, self.molecule, {})

    def rows_of(self, params: Mapping[str, Tensor]) -> Bound:
        """Tables of the rows under these parameters."""
        return bind(self.tables, self.molecule, params) if params else self.bound

    def value(self, positions: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        bound = self.rows_of(params)
        total = pairs(planes_of(positions), *bound.pairs, squared=self.dielectric.distance_dependent)
        for terms in bound.valence:
            total = total + terms.value(positions)
        return total

    def value_and_gradient(self, positions: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            bound = self.rows_of(params)
            value, gradient = torch.zeros_like(positions[:, 0, 0]), torch.zeros_like(positions)
            planes = planes_of(positions)
            squared = self.dielectric.distance_dependent
            for rows in bound.pair_chunks:
                part = pairs_gradient(planes[:, rows], *(t[rows] for t in bound.fast_pairs), squared=squared)
                value[rows] = part[0]
                gradient[rows] = part[1].movedim(0, -1)
            for terms in bound.valence:
                terms.add(positions, value, gradient)
        return value, gradient

    def curvature(self, positions: Tensor, params: Mapping[str, Tensor], *, exact: bool) -> Tensor:
        with torch.no_grad():
            bound = self.rows_of(params)
            rows, num_atoms = self.shape
            out = positions.new_zeros(rows, 3 * num_atoms, 3 * num_atoms)
            planes = planes_of(positions)
            squared = self.dielectric.distance_dependent
            for part in chunks(rows, num_atoms**2 // 8, positions.device):
                tables = tuple(t[part] for t in bound.pairs)
                unit, along, across = pair_curvatures(planes[:, part], *tables, squared=squared)
                if exact:
                    add_pairs(out[part], unit, along, across)
                else:
                    add_pairs(out[part], unit, along.clamp(0.0, STIFFEST), None)
                for terms in (*bound.valence, *(() if exact else (bound.straight,))):
                    terms.add_curvature(positions, out[part], part, exact=exact)
        return out

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        return evaluate(self, positions, outer_params)
