"""Molecules in and out: SMILES, SDF and conformer sets as typed records, with every failure counted and named."""

from sciopt.domains.conformation.io.datasets import (
    GeomSubset,
    Gfn2Group,
    load_chembl,
    load_crystal_ligands,
    load_geom_smiles,
    load_gfn2_conformers,
    load_macrocycles,
)
from sciopt.domains.conformation.io.ensembles import (
    ConformerSet,
    EnergyUnit,
    EnsembleResult,
    read_geom_json,
    read_npz,
    read_sdf_ensembles,
)
from sciopt.domains.conformation.io.files import read_molecules
from sciopt.domains.conformation.io.preparation import MixturePolicy, Preparation
from sciopt.domains.conformation.io.records import (
    FailureKind,
    MoleculeError,
    MoleculeRecord,
    ReadFailure,
    ReadResult,
)
from sciopt.domains.conformation.io.sdf import read_sdf
from sciopt.domains.conformation.io.smiles import molecule, read_smi, read_smiles, read_smiles_table
from sciopt.domains.conformation.io.writing import write_ensembles, write_failures

__all__ = [
    "ConformerSet",
    "EnergyUnit",
    "EnsembleResult",
    "FailureKind",
    "Gfn2Group",
    "GeomSubset",
    "MixturePolicy",
    "MoleculeError",
    "MoleculeRecord",
    "Preparation",
    "ReadFailure",
    "ReadResult",
    "load_chembl",
    "load_crystal_ligands",
    "load_geom_smiles",
    "load_gfn2_conformers",
    "load_macrocycles",
    "molecule",
    "read_geom_json",
    "read_molecules",
    "read_npz",
    "read_sdf",
    "read_sdf_ensembles",
    "read_smi",
    "read_smiles",
    "read_smiles_table",
    "write_ensembles",
    "write_failures",
]
