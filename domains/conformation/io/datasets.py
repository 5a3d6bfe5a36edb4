"""The molecule sets of the data registry, read: what they hold, in which units, with which rules."""

from __future__ import annotations

from enum import Enum

from sciopt.data import fetch, shipped
from sciopt.domains.conformation.io.ensembles import EnergyUnit, EnsembleResult, read_sdf_ensembles
from sciopt.domains.conformation.io.preparation import MixturePolicy, Preparation
from sciopt.domains.conformation.io.records import ReadResult
from sciopt.domains.conformation.io.sdf import read_sdf
from sciopt.domains.conformation.io.smiles import read_smi, read_smiles_table

__all__ = [
    "Gfn2Group",
    "GeomSubset",
    "load_chembl",
    "load_crystal_ligands",
    "load_geom_smiles",
    "load_gfn2_conformers",
    "load_macrocycles",
]


class GeomSubset(Enum):
    """The two test splits of GEOM that are used in the literature.

    Example:
        >>> GeomSubset.DRUGS.value
        'molecules/geom_drugs_test_smiles.csv'
    """

    DRUGS = "molecules/geom_drugs_test_smiles.csv"
    QM9 = "molecules/geom_qm9_test_smiles.csv"


class Gfn2Group(Enum):
    """The two parts of the project's own reference set.

    Example:
        >>> [group.value for group in Gfn2Group]
        ['small', 'drug']
    """

    SMALL = "small"
    DRUGS = "drug"


def load_gfn2_conformers(group: Gfn2Group | None = None) -> EnsembleResult:
    """The project's own reference conformers, shipped with it: 150 small molecules and 60 named drugs.

    590 minima of GFN2-xTB in the gas phase, reached from ETKDG starts, lowest first: up to six of a small molecule, up to
    five of a drug, 0.125 angstrom apart at least (heavy atoms), and one alone where no other was found. Coordinates in
    angstrom; energies in kcal/mol relative to the lowest conformer found, which need not be the global minimum; the largest
    force left on an atom is 0.005 eV/angstrom and stands in the property ``largest_force_eV_per_angstrom``. ``python -m
    sciopt.data.make_gfn2_conformers`` makes it again.

    Args:
        group: one part; None: both.

    Returns:
        `EnsembleResult`, one set per molecule, named in ``record.name``.

    Raises:
        DataError: when the shipped file is missing or damaged.

    Example:
        >>> drugs = load_gfn2_conformers(Gfn2Group.DRUGS)
        >>> len(drugs.sets), drugs.sets[0].record.name, drugs.sets[0].energies[0].item()
        (60, 'aspirin', 0.0)

    References:
        Bannwarth, Ehlert, Grimme. "GFN2-xTB". J. Chem. Theory Comput. 15, 2019. Riniker, Landrum. "Better informed
        distance geometry". J. Chem. Inf. Model. 55, 2015.
    """
    read = read_sdf_ensembles(
        shipped("gfn2_conformers.sdf.gz"),
        energy_property="relative_energy_kcal_per_mol",
        energy_unit=EnergyUnit.KCAL_PER_MOL,
    )
    if group is None:
        return read
    kept = tuple(item for item in read.sets if item.record.mol.GetProp("group") == group.value)
    return EnsembleResult(sets=kept, failures=read.failures, source=read.source)


def load_crystal_ligands(preparation: Preparation | None = None) -> ReadResult:
    """1,000 ligands in the conformation of a crystal structure, angstrom, hydrogens included.

    Properties of each molecule: ``id``, ``smiles``, and the published least heavy-atom RMSD in angstrom of ensembles of
    50 by RDKit (``amr_rdkit_50``) and by torsional diffusion (``amr_torsional_diffusion_50``, for 995).

    Args:
        preparation: rules; the default takes every record.

    Returns:
        `ReadResult`.

    Raises:
        sciopt.data.DataError: if the file cannot be had.

    Example:
        >>> len(load_crystal_ligands().records)  # doctest: +SKIP
        1000
    """
    return read_sdf(fetch("molecules/fastsmcg_dev.sdf"), preparation or Preparation(mixtures=MixturePolicy.KEEP))


def load_chembl(preparation: Preparation | None = None) -> ReadResult:
    """999 molecules of ChEMBL as SMILES: salts, peptides and macrocycles among them.

    Args:
        preparation: rules; the default keeps the largest fragment of salts and remarks on it.

    Returns:
        `ReadResult`.

    Raises:
        sciopt.data.DataError: if the file cannot be had.

    Example:
        >>> len(load_chembl().records)  # doctest: +SKIP
        999
    """
    return read_smi(fetch("molecules/chembl_1k.smi"), preparation or Preparation(mixtures=MixturePolicy.LARGEST))


def load_geom_smiles(subset: GeomSubset, preparation: Preparation | None = None) -> ReadResult:
    """1,000 SMILES of a GEOM test split, with stereo as corrected by the authors of GeoMol; no geometries.

    The properties are the columns: ``n_conformers`` is the number of reference conformers in GEOM, ``smiles`` the string
    there. The QM9 part holds two mixtures and two strings that cannot be kekulized: four failures.

    Args:
        subset: which split.
        preparation: rules; the default refuses mixtures and radicals.

    Returns:
        `ReadResult`.

    Raises:
        sciopt.data.DataError: if the file cannot be had.

    Example:
        >>> load_geom_smiles(GeomSubset.DRUGS).records[0].mol.GetProp("n_conformers")  # doctest: +SKIP
        '69'
    """
    return read_smiles_table(fetch(subset.value), preparation, column="corrected_smiles")


def load_macrocycles(preparation: Preparation | None = None) -> EnsembleResult:
    """196 conformers of 13 peptides and macrocycles (MPCONF196), angstrom, no energies.

    In two records of one macrolactone the bonds read as a biradical; by default they are failures.

    Args:
        preparation: rules; the default refuses mixtures and radicals.

    Returns:
        `EnsembleResult` of 13 sets.

    Raises:
        sciopt.data.DataError: if the file cannot be had.

    Example:
        >>> load_macrocycles().num_conformers  # doctest: +SKIP
        194
    """
    return read_sdf_ensembles(fetch("molecules/MPCONF196.sdf"), preparation)
