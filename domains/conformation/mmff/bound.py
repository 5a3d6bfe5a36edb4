"""MMFF tables as every row of a batch sees them: gathered once, evaluated many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sciopt.domains.conformation.mmff.tables import MMFFTables
from sciopt.domains.conformation.terms import springs, valence
from sciopt.domains.conformation.terms.pairs import circulant, strength_of
from sciopt.domains.conformation.terms.rows import TermRows, chunks

__all__ = ["Bound", "bind"]


@dataclass(frozen=True, eq=False)
class Bound:
    """All terms of the rows; ``pairs`` are radius, depth and charge products ``(rows, K, N)``; ``straight`` are further
    springs of model Hessians, of linear centres."""

    valence: tuple[TermRows, ...]
    straight: TermRows
    pairs: tuple[Tensor, Tensor, Tensor]

    @cached_property
    def fast_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs' tables as `pairs_gradient` takes them."""
        radius, depth, charge = self.pairs
        return 1 / radius, strength_of(depth), charge

    @cached_property
    def pair_chunks(self) -> list[slice]:
        """Rows of each pass over the pairs."""
        rows, count, num_atoms = self.pairs[0].shape
        return chunks(rows, count * num_atoms, self.pairs[0].device)


def bind(tables: MMFFTables, molecule: Tensor, params: Mapping[str, Tensor]) -> Bound:
    """Tables of the rows, with some parameters replaced."""

    def get(name: str) -> Tensor:
        return params[name] if name in params else getattr(tables, name)

    def rows(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.index_select(0, molecule) for value in values)

    def atoms(name: str) -> Tensor:
        return getattr(tables, name).index_select(0, molecule).movedim(1, 0).contiguous()

    length, mixed, barrier, charges = get("bond_length"), get("stretch_bend"), get("torsion"), get("charges")
    first_rest, second_rest = (length.gather(-1, ends) for ends in tables.angle_bonds.unbind(1))
    i, j = circulant(tables.num_atoms).to(molecule.device)
    product = charges[:, i] * charges[:, j] * tables.coulomb
    angle = (get("angle_stiffness"), get("angle_rest"), tables.angle_linear, mixed[:, 0], mixed[:, 1])
    kinds = (
        (valence.bond, valence.bond_gradient, springs.bond_spring, "bonds", (get("bond_stiffness"), length)),
        (valence.angle, valence.angle_gradient, springs.angle_spring, "angles", (*angle, first_rest, second_rest)),
        (valence.plane, valence.plane_gradient, springs.plane_spring, "planes", (get("plane_stiffness"),)),
        (valence.torsion, valence.torsion_gradient, springs.torsion_spring, "torsions", barrier.unbind(1)),
    )
    terms = tuple(
        TermRows(value, gradient, spring, atoms(name), rows(*given)) for value, gradient, spring, name, given in kinds
    )
    radius, depth, charge = rows(get("vdw_radius"), get("vdw_depth"), product)
    bent = tables.straight
    straight = TermRows(
        valence.angle,
        valence.angle_gradient,
        springs.straight_spring,
        atoms("angles").index_select(-1, bent),
        rows(tables.angle_linear.index_select(-1, bent)),
    )
    return Bound(terms, straight, (radius, depth, charge))
