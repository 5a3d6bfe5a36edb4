"""Molecules as graphs for the network: atoms, and every pair that is one, two or three bonds apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from sciopt.domains.conformation.batch import ConformerBatch, check_mol, padded
from sciopt.domains.conformation.distances import volume_terms

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["ATOM_WIDTH", "PAIR_WIDTH", "GraphBatch", "MoleculeGraph", "graph_batch", "molecule_graph"]

ELEMENTS = (1, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
HYBRIDS = ("SP", "SP2", "SP3")
ORDERS = (1.0, 1.5, 2.0, 3.0)
HOPS = 3
ATOM_WIDTH = len(ELEMENTS) + 1 + len(HYBRIDS) + 4
PAIR_WIDTH = HOPS + len(ORDERS) + 3
REACH = 12.0  # angstrom; bounds beyond it are as good as none


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class MoleculeGraph:
    """The extended graph of a molecule.

    Args:
        atoms: features ``(N, ATOM_WIDTH)``, float64.
        pairs: int64 ``(2, P)``, each pair once, first atom below the second.
        features: of the pairs ``(P, PAIR_WIDTH)``, float64: hops, bond order, ring, and bounds of the distance.
        bounds: ``(P, 2)`` lower and upper bounds of the pairs' distances [A].
        apart: int64 ``(2, Q)``: pairs more than three bonds apart.
        floor: ``(Q,)`` lower bounds of their distances [A].
        corners: int64 ``(4, V)``: the atoms whose signed volumes say which way round the specified centres are.
        volumes: ``(3, V)``: least and most volume [A^3], and one for weight.
    """

    atoms: Tensor
    pairs: Tensor
    features: Tensor
    bounds: Tensor
    apart: Tensor
    floor: Tensor
    corners: Tensor
    volumes: Tensor


def molecule_graph(mol: Mol) -> MoleculeGraph:
    """The atoms of a molecule, and its pairs of one to three bonds, which fix lengths, angles and torsions.

    Bounds are RDKit's, from its tables of bonds, angles and cis and trans arrangements.

    Args:
        mol: with explicit hydrogens; conformers are not looked at.

    Returns:
        `MoleculeGraph` on the CPU.

    Raises:
        TypeError: for something that is not a molecule.
        ValueError: for an empty molecule, one with implicit hydrogens, or one that RDKit has no bounds for.

    Example:
        >>> from rdkit import Chem
        >>> graph = molecule_graph(Chem.AddHs(Chem.MolFromSmiles("CCO")))
        >>> graph.pairs.shape, graph.apart.shape  # 8 bonds, 13 angles, 12 torsions; 9 atoms have 36 pairs
        (torch.Size([2, 33]), torch.Size([2, 3]))

    References:
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021,
        section 3.1 (the extended graph).
    """
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    check_mol("molecule_graph", mol, 0)
    hops = np.rint(Chem.GetDistanceMatrix(mol)).astype(np.int64)
    try:
        table = rdDistGeom.GetMoleculeBoundsMatrix(mol)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"molecule_graph: expected `mol` with distance bounds, got {Chem.MolToSmiles(mol)}, for which RDKit fails: "
            f"{str(error)[:80]}. Sanitize it, or leave it out."
        ) from error
    first, second = np.triu_indices(mol.GetNumAtoms(), k=1)  # bounds: upper above the diagonal, lower below
    lower, upper, hop = table[second, first], table[first, second].clip(max=REACH), hops[first, second]
    near = hop <= HOPS
    corners, volumes = volume_terms(mol, 1.0, planar=None)
    pairs = np.stack([first[near], second[near]])
    return MoleculeGraph(
        atoms=atom_features(mol),
        pairs=torch.from_numpy(pairs),
        features=pair_features(mol, pairs, hop[near], lower[near], upper[near]),
        bounds=torch.from_numpy(np.stack([lower[near], upper[near]], axis=-1)),
        apart=torch.from_numpy(np.stack([first[~near], second[~near]])),
        floor=torch.from_numpy(lower[~near]),
        corners=torch.from_numpy(corners),
        volumes=torch.from_numpy(volumes),
    )


def atom_features(mol: Any) -> Tensor:
    """Element, hybridisation, aromaticity, ring, charge and degree of each atom."""
    rows = []
    for atom in mol.GetAtoms():
        element = [float(atom.GetAtomicNum() == z) for z in ELEMENTS]
        hybrid = [float(str(atom.GetHybridization()) == name) for name in HYBRIDS]
        rest = [atom.GetIsAromatic(), atom.IsInRing(), atom.GetFormalCharge(), atom.GetDegree() / 4]
        rows.append([*element, float(not any(element)), *hybrid, *(float(value) for value in rest)])
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def pair_features(mol: Any, pairs: np.ndarray, hop: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Tensor:
    """Hops, bond order, whether both atoms share a ring, and the bounds."""
    out = np.zeros((pairs.shape[1], PAIR_WIDTH))
    out[np.arange(len(hop)), hop - 1] = 1.0
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    for number, (i, j) in enumerate(pairs.T.tolist()):
        bond = mol.GetBondBetweenAtoms(i, j)
        if bond is not None:
            out[number, HOPS : HOPS + len(ORDERS)] = [float(bond.GetBondTypeAsDouble() == order) for order in ORDERS]
        out[number, -3] = float(any(i in ring and j in ring for ring in rings))
    out[:, -2], out[:, -1] = (lower + upper) / 4, upper - lower
    return torch.from_numpy(out)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class GraphBatch:
    """Graphs of the rows of a `ConformerBatch`, as torch-geometric joins them, and where each pair lies in its row.

    Args:
        data: `torch_geometric.data.Batch` with ``x``, ``pair_index`` ``(2, sum P)``, ``pair_attr``, ``bounds``.
        size: rows and atoms per row of the conformers.
        apart: int64 ``(rows, 2, Q)``, pairs more than three bonds apart.
        floor: ``(rows, Q)`` [A], their lower bounds; zero for pairs that a row does not have.
        corners: int64 ``(rows, 4, V)``, the atoms of the specified centres.
        volumes: ``(rows, 3, V)``, bounds of their signed volumes [A^3] and weights; zero for centres a row does not have.
    """

    data: Any
    size: tuple[int, int]
    apart: Tensor
    floor: Tensor
    corners: Tensor
    volumes: Tensor

    @cached_property
    def row(self) -> Tensor:
        """Row of each pair, int64 ``(sum P,)``."""
        return self.data.batch[self.data.pair_index[0]]

    @cached_property
    def atom(self) -> Tensor:
        """Place of each atom in the flattened padded rows, int64 ``(sum N,)``."""
        local = torch.arange(self.data.batch.shape[0], device=self.row.device) - self.data.ptr[self.data.batch]
        return self.data.batch * self.size[1] + local

    @cached_property
    def slot(self) -> tuple[Tensor, int]:
        """Column of each pair in a padded table of its row, and the number of columns."""
        counts = torch.bincount(self.row, minlength=self.size[0])
        start = counts.cumsum(0) - counts
        return torch.arange(self.row.shape[0], device=self.row.device) - start[self.row], int(counts.max())

    @cached_property
    def pair_atoms(self) -> Tensor:
        """Atoms of each pair within its row, padded ``(rows, 2, T)``."""
        column, width = self.slot
        local = self.data.pair_index - self.data.ptr[self.row]
        table = torch.zeros(self.size[0], 2, width, dtype=torch.int64, device=self.row.device)
        table[self.row, 0, column], table[self.row, 1, column] = local[0], local[1]
        table[:, 1] += (table[:, 0] == table[:, 1]).long()  # padded columns: two atoms, so that no length is zero
        return table

    @cached_property
    def exists(self) -> Tensor:
        """Which columns of a padded table hold a pair, boolean ``(rows, T)``."""
        column, width = self.slot
        table = torch.zeros(self.size[0], width, dtype=torch.bool, device=self.row.device)
        return table.index_put((self.row, column), torch.ones_like(self.row, dtype=torch.bool))

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """One value per pair as a table ``(rows, T)``; differentiable."""
        column, width = self.slot
        return values.new_full((self.size[0], width), fill).index_put((self.row, column), values)

    def distances(self, positions: Tensor) -> Tensor:
        """Distances of the pairs ``(sum P,)`` at positions ``(rows, N, 3)``."""
        flat = positions.flatten(0, 1)[self.atom]
        return torch.linalg.vector_norm(flat[self.data.pair_index[0]] - flat[self.data.pair_index[1]], dim=-1)

    def per_row(self, values: Tensor) -> Tensor:
        """Sums of one value per pair over the pairs of each row ``(rows,)``."""
        return values.new_zeros(self.size[0]).index_add(0, self.row, values)


def graph_batch(batch: ConformerBatch, graphs: Sequence[MoleculeGraph] | None = None) -> GraphBatch:
    """The extended graphs of the rows, in the dtype and on the device of the positions.

    Args:
        batch: the rows; its molecules have at least two atoms.
        graphs: of ``batch.mols``, to save making them again; None: `molecule_graph` of each.

    Returns:
        `GraphBatch`.

    Raises:
        ValueError: for no rows, a molecule of one atom, or graphs of other molecules.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("C"))
        >>> ids = rdDistGeom.EmbedMultipleConfs(mol, 2, randomSeed=7)
        >>> graph_batch(ConformerBatch.from_mols([mol])).pair_atoms.shape
        torch.Size([2, 2, 10])
    """
    from torch_geometric.data import Batch, Data

    known = [molecule_graph(mol) for mol in batch.mols] if graphs is None else list(graphs)
    if [graph.atoms.shape[0] for graph in known] != batch.sizes:
        raise ValueError(
            f"graph_batch: expected `graphs` of the batch's {len(batch.mols)} molecules, got others. Make them with "
            "molecule_graph, in the same order."
        )
    if not len(batch) or min(batch.sizes) < 2:
        raise ValueError(
            f"graph_batch: expected rows of molecules of two atoms or more, got {len(batch)} rows. Leave single atoms out: "
            "they have no distances."
        )
    like = batch.positions
    items = [
        Data(
            x=graph.atoms.to(like),
            pair_index=graph.pairs.to(like.device),
            pair_attr=graph.features.to(like),
            bounds=graph.bounds.to(like),
            num_nodes=graph.atoms.shape[0],
        )
        for graph in known
    ]
    numbers = batch.molecule.tolist()
    width = max(graph.floor.shape[0] for graph in known)
    apart = torch.zeros(len(known), 2, width, dtype=torch.int64)
    apart[:, 1] = 1
    floor = torch.zeros(len(known), width, dtype=torch.float64)
    for number, graph in enumerate(known):
        apart[number, :, : graph.apart.shape[1]] = graph.apart
        floor[number, : graph.floor.shape[0]] = graph.floor
    rows: Any = batch.molecule
    corners, volumes = (padded([getattr(graph, name).numpy() for graph in known]) for name in ("corners", "volumes"))
    return GraphBatch(
        data=Batch.from_data_list([items[number] for number in numbers]),
        size=(len(batch), batch.positions.shape[1]),
        apart=apart.to(like.device)[rows],
        floor=floor.to(like)[rows],
        corners=torch.from_numpy(corners).to(like.device)[rows],
        volumes=torch.from_numpy(volumes).to(like)[rows],
    )
