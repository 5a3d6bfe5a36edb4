"""The shipped reference set is what it says: counts, units, energies, stereochemistry, and conformers that differ."""

import csv
import importlib
import math

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from sciopt.data import DataError, shipped
from sciopt.domains.conformation.io import Gfn2Group, load_gfn2_conformers
from sciopt.domains.conformation.stereo import stereo_errors

KCAL_PER_EV = 23.060547830619


@pytest.fixture(scope="module")
def known():
    return load_gfn2_conformers()


@pytest.fixture(scope="module")
def records():
    """The records as RDKit reads them, by themselves."""
    import gzip

    with gzip.open(shipped("gfn2_conformers.sdf.gz")) as file:
        return list(Chem.ForwardSDMolSupplier(file, removeHs=False))


def test_every_molecule_of_the_list_is_there(known):
    assert not known.failures
    with shipped("gfn2_conformers.sdf.gz").with_name("gfn2_molecules.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [item.record.name for item in known.sets] == [row["name"] for row in listed]
    for item, row in zip(known.sets, listed, strict=True):
        assert Chem.MolToSmiles(Chem.RemoveHs(item.record.mol)) == Chem.CanonSmiles(row["smiles"]), row
    counts = {group: load_gfn2_conformers(group) for group in Gfn2Group}
    assert {group: len(part.sets) for group, part in counts.items()} == {Gfn2Group.SMALL: 150, Gfn2Group.DRUGS: 60}
    sizes = {group: sum(len(item.positions) for item in part.sets) for group, part in counts.items()}
    assert sizes == {Gfn2Group.SMALL: 346, Gfn2Group.DRUGS: 244}


def test_units_and_energies(known, records):
    """Bond lengths are angstrom; energies are relative, lowest first, and agree with the total ones."""
    total = {}
    for record in records:
        total.setdefault(record.GetProp("_Name"), []).append(float(record.GetProp("energy_eV")))
        assert float(record.GetProp("largest_force_eV_per_angstrom")) <= 0.005
    for item in known.sets:
        energies, positions = item.energies, item.positions
        assert float(energies[0]) == 0.0
        assert bool((energies.diff() >= 0).all())
        expected = (
            torch.tensor(total[item.record.name], dtype=torch.float64) - total[item.record.name][0]
        ) * KCAL_PER_EV
        torch.testing.assert_close(energies, expected, rtol=0, atol=2e-5)
        for bond in item.record.mol.GetBonds():
            length = (positions[:, bond.GetBeginAtomIdx()] - positions[:, bond.GetEndAtomIdx()]).norm(dim=-1)
            low, high = (
                (0.9, 1.6)
                if 1 in (bond.GetBeginAtom().GetAtomicNum(), bond.GetEndAtom().GetAtomicNum())
                else (1.1, 2.2)
            )
            assert low < float(length.min()) <= float(length.max()) < high, item.record.name


def test_conformers_differ_and_have_the_configuration_of_their_name(known, records):
    sets = {}
    for record in records:
        sets.setdefault(record.GetProp("_Name"), []).append(Chem.RemoveHs(record))
    close = [
        rdMolAlign.GetBestRMS(Chem.Mol(a), b)
        for conformers in sets.values()
        if conformers[0].GetNumHeavyAtoms() <= 12  # larger ones cost seconds
        for k, a in enumerate(conformers)
        for b in conformers[:k]
    ]
    assert len(close) > 300
    assert min(close) > 0.12  # made to be 0.125 apart; the file rounds to four digits
    assert math.isfinite(max(close))
    for item in known.sets:
        assert bool(stereo_errors(item.record.mol, item.positions).ok.all()), item.record.name


def test_a_damaged_or_unknown_file_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"^shipped: expected `name`"):
        shipped("gfn1.sdf")
    monkeypatch.setattr(importlib.import_module("sciopt.data.shipped"), "SHIPPED", {"gfn2_conformers.sdf.gz": "0" * 64})
    with pytest.raises(DataError, match=r"^shipped: expected .* with SHA-256 0{64}"):
        shipped("gfn2_conformers.sdf.gz")
