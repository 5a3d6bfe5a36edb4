"""Generating conformers: right configuration, distinct, bounded, repeatable, and every failure counted."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from torch.testing import assert_close

from sciopt.domains.conformation import (
    FailureKind,
    Fate,
    MixturePolicy,
    MoleculeEnsemble,
    Preparation,
    Sampling,
    Variant,
    atom_matches,
    generate,
    generate_stream,
    read_sdf_ensembles,
    read_smiles,
    rmsd_matrix,
    stereo_errors,
)
from sciopt.domains.conformation.generation import sampling as sampling_module
from sciopt.domains.conformation.generation import stream, window
from sciopt.domains.conformation.generation.choice import choose
from sciopt.domains.conformation.mmff import MMFFError

ALANINE = "C[C@H](N)C(=O)O"


def positions_of(mol: Chem.Mol) -> torch.Tensor:
    return torch.stack([torch.from_numpy(conformer.GetPositions()) for conformer in mol.GetConformers()])


def rdkit_energy(mol: Chem.Mol, conformer: int, variant: str = "MMFF94") -> float:
    props = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=variant)
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, props, confId=conformer).CalcEnergy()


def test_butane_has_its_three_minima() -> None:
    (ensemble,) = generate("CCCC", 10).ensembles
    gauche = ensemble.energies[1:] - ensemble.energies[0]
    assert ensemble.energies.shape == (3,) and "3 distinct conformers of 10 asked for" in ensemble.remarks
    assert_close(gauche, torch.full_like(gauche, 0.783), rtol=0.0, atol=5e-3)  # MMFF94 (Halgren 1999): 0.78 kcal/mol
    assert len(ensemble.rows) == 20 and sum(ensemble.fates.values()) == 20 and ensemble.fates[Fate.KEPT] == 3


@pytest.mark.parametrize("variant", list(Variant))
def test_energies_are_those_of_rdkit_at_a_minimum_of_rdkit(variant: Variant) -> None:
    (ensemble,) = generate("CC(=O)Nc1ccccc1N", 4, force_field=variant).ensembles
    mol = ensemble.mol
    for k, energy in enumerate(ensemble.energies.tolist()):
        conformer = mol.GetConformer(k)
        assert energy == pytest.approx(rdkit_energy(mol, k, variant.value), abs=1e-6)
        assert conformer.GetDoubleProp("energy") == energy and conformer.GetProp("status") == "CONVERGED"
        before = rdkit_energy(mol, k, variant.value)
        work = Chem.Mol(mol)
        rdForceFieldHelpers.MMFFOptimizeMolecule(work, mmffVariant=variant.value, confId=k)
        assert rdkit_energy(work, k, variant.value) > before - 1e-2
    assert ensemble.energies.tolist() == sorted(ensemble.energies.tolist())


def test_conformers_are_distinct_diverse_and_in_the_window() -> None:
    sampling = Sampling(rmsd=0.5, energy_window=6.0, starts_per_conformer=5)
    result = generate("CCC[C@@H](O)CC", 6, sampling=sampling)
    (ensemble,) = result.ensembles
    positions, matches = positions_of(ensemble.mol), atom_matches(ensemble.mol)
    distances = rmsd_matrix(positions, positions, matches).value
    apart = (ensemble.energies[:, None] - ensemble.energies).abs() > sampling.same_energy
    assert bool(((distances > 0.5) | apart | torch.eye(len(positions), dtype=torch.bool)).all())
    assert float(ensemble.energies[-1] - ensemble.energies[0]) <= 6.0
    assert len(ensemble.energies) == 6 and ensemble.fates[Fate.SURPLUS] > 0
    lowest = min(row.energy for row in ensemble.rows)
    assert float(ensemble.energies[0]) == lowest
    table = list(csv.DictReader(io.StringIO(result.table())))
    assert len(table) == 30 and sum(row["conformer"] != "" for row in table) == 6
    assert {row["fate"] for row in table} <= {fate.value for fate in Fate}
    tight = generate("CCC[C@@H](O)CC", 6, sampling=Sampling(energy_window=0.0)).ensembles[0]
    assert len(tight.energies) == 1 and tight.fates[Fate.HIGH] > 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    def run(seed: int) -> torch.Tensor:
        made = generate(["CC(N)CO", "CCCO"], 3, generator=torch.Generator().manual_seed(seed))
        return torch.cat([positions_of(mol).flatten() for mol in made.molecules])

    first = run(4)
    assert torch.equal(first, run(4))
    other = run(5)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_seed_zero_gives_different_starts() -> None:
    (ensemble,) = generate("CCCCC", 4, generator=torch.Generator().manual_seed(0)).ensembles
    assert len({round(row.energy, 3) for row in ensemble.rows}) > 1


@pytest.mark.parametrize(
    "smiles", [ALANINE, "C[C@@H](N)C(=O)O", "F/C=C/Cl", "F/C=C\\Cl", "C[S@](=O)c1ccccc1", "O[C@H]1CC[C@@H](F)CC1"]
)
def test_the_configuration_is_the_one_asked_for(smiles: str) -> None:
    (mol,) = generate(smiles, 4).molecules
    assert bool(stereo_errors(mol, positions_of(mol)).ok.all())
    for conformer in mol.GetConformers():  # and RDKit perceives the same molecule from each geometry
        seen = Chem.Mol(mol, confId=conformer.GetId())
        Chem.AssignStereochemistryFrom3D(seen)
        assert Chem.MolToSmiles(Chem.RemoveHs(seen)) == Chem.CanonSmiles(smiles)


def test_starts_of_the_wrong_configuration_are_left_out_and_a_molecule_of_these_alone_fails(monkeypatch) -> None:
    def mirrored(mol, count, seed, sampling):
        mirror = Chem.Mol(mol)
        rdDistGeom.EmbedMultipleConfs(mirror, count, randomSeed=7)
        positions = positions_of(mirror)
        positions[spared:, :, 2] *= -1
        return positions, ""

    monkeypatch.setattr(stream, "embed", mirrored)
    spared = 1
    (ensemble,) = generate(ALANINE, 2).ensembles
    assert ensemble.fates == {Fate.KEPT: 1, Fate.STEREO: 3}
    assert "3 starts of the wrong configuration were left out" in ensemble.remarks
    assert [row.reason for row in ensemble.rows if row.fate is Fate.STEREO] == ["C1 (S)"] * 3
    spared = 0
    result = generate([ALANINE, "C"], 2)
    (failure,) = result.failures
    assert (
        failure.kind is FailureKind.STEREO and "none of 4 relaxed starts" in failure.reason and "C1" in failure.reason
    )
    assert [ensemble.record.index for ensemble in result.ensembles] == [1]


def test_broken_geometries_are_never_returned() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMultipleConfs(mol, 3, randomSeed=7)
    positions = positions_of(mol)
    positions[1, 0, 0] = torch.nan
    energy = torch.tensor([1.0, 0.0, torch.inf], dtype=torch.float64)
    choice = choose(mol, positions, energy, 3, Sampling())
    assert choice.kept.tolist() == [0] and choice.fates == (Fate.KEPT, Fate.BROKEN, Fate.BROKEN)
    nothing = choose(mol, positions, torch.full_like(energy, torch.nan), 3, Sampling())
    assert len(nothing.kept) == 0


def test_every_failure_is_counted_with_its_place_and_the_rest_goes_on() -> None:
    bad = ["", "C1CC", "[Na+].[Cl-]", "[CH3]", "C[Hg]C", "C(C)(C)(C)(C)C", None]
    result = generate([*bad[:3], "CO", *bad[3:], "C"], 2)
    assert [(failure.index, failure.kind.name) for failure in result.failures] == [
        (0, "EMPTY"),
        (1, "SYNTAX"),
        (2, "MIXTURE"),
        (4, "RADICAL"),
        (5, "NO_PARAMETERS"),
        (6, "CHEMISTRY"),
        (7, "SYNTAX"),
    ]
    assert "Hg1" in result.failures[4].reason
    assert [ensemble.record.index for ensemble in result.ensembles] == [3, 8]
    assert result.describe().startswith("2 molecules with 2 conformers, 7 failed (1 empty, 2 syntax")


IMPOSSIBLE = "O[C@]12CC[C@@](N)(CC1)C2"  # a bridge from the outside of one end to the inside of the other


def test_impossible_stereo_is_an_embedding_failure() -> None:
    result = generate([IMPOSSIBLE, "O[C@]12CC[C@](N)(CC1)C2"], 1, sampling=Sampling(max_attempts=3))
    (failure,) = result.failures
    assert failure.kind is FailureKind.EMBEDDING and failure.index == 0
    assert "no geometry in 3 attempts" in failure.reason and "stereochemistry" in failure.reason
    assert len(result.ensembles) == 1


def test_embedding_does_not_depend_on_its_slices(monkeypatch) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCC(O)CN"))
    made = []
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(sampling_module, "SLICE", seconds)
        made.append(sampling_module.embed(mol, 5, 77, Sampling())[0])
    assert made[0].shape == (5, 17, 3) and torch.equal(*made)
    assert float((made[0][1:] - made[0][:-1]).abs().amax((1, 2)).min()) > 0.1


def test_embedding_ends_when_its_time_is_over(monkeypatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(sampling_module.time, "monotonic", lambda: next(clock))
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    positions, short = sampling_module.embed(mol, 500, 1, Sampling(max_seconds=10))
    assert len(positions) == 3 and short == "ETKDG embedded 3 of 500 starts within 10 s"
    impossible = Chem.AddHs(Chem.MolFromSmiles(IMPOSSIBLE))
    positions, short = sampling_module.embed(impossible, 5, 1, Sampling(max_seconds=3))
    assert len(positions) == 0 and short.endswith("atoms within 3 s; allow more time")


def test_failures_of_reading_keep_their_places() -> None:
    read = read_smiles(["CO", "C(", "CC"])
    assert [type(item).__name__ for item in generate_stream(read, 1)] == [
        "MoleculeEnsemble",
        "ReadFailure",
        "MoleculeEnsemble",
    ]


def test_salts_by_policy() -> None:
    salt = "CC(=O)[O-].[Na+]"
    kept = generate(salt, 2, preparation=Preparation(mixtures=MixturePolicy.KEEP)).ensembles[0]
    x = positions_of(kept.mol)[0]
    sodium = next(atom.GetIdx() for atom in kept.mol.GetAtoms() if atom.GetSymbol() == "Na")
    nearest = torch.linalg.vector_norm(x - x[sodium], dim=-1).topk(2, largest=False).values[1]
    assert 1.8 < float(nearest) < 2.6  # the ions attract each other, and do not sit on top of each other
    largest = generate(salt, 2, preparation=Preparation(mixtures=MixturePolicy.LARGEST)).ensembles[0]
    assert largest.record.smiles == "CC(=O)[O-]" and largest.remarks[0] == "removed [Na+]"


def test_molecules_are_taken_as_they_come_and_not_changed() -> None:
    mol = Chem.MolFromSmiles("CCO")
    mol.SetProp("_Name", "ethanol")
    result = generate([mol, read_smiles(["CO"]).records[0]], 1)
    assert [made.GetNumAtoms() for made in result.molecules] == [9, 6]
    assert mol.GetNumAtoms() == 3 and mol.GetNumConformers() == 0
    assert result.ensembles[0].name == "ethanol" and result.molecules[1].GetProp("_Name") == "CO"


def test_a_late_refusal_of_the_force_field_costs_one_molecule_alone(monkeypatch) -> None:
    true = window.relax

    def refuse(part, energy, **options):
        for number, mol in enumerate(part.mols):
            if any(atom.GetSymbol() == "S" for atom in mol.GetAtoms()):
                raise MMFFError("MMFF: no parameters of a bond", number)
        return true(part, energy, **options)

    monkeypatch.setattr(window, "relax", refuse)
    result = generate(["CCO", "CCS", "CS", "CCN"], 1)
    assert [failure.index for failure in result.failures] == [1, 2]
    assert [ensemble.record.smiles for ensemble in result.ensembles] == ["CCO", "CCN"]


def test_a_stream_holds_one_window_and_reports_every_start(monkeypatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 4)
    taken: list[str] = []
    seen: list[int] = []

    def source():
        for smiles in ("CO", "", "CC", "CCO", "CN", "CS"):
            taken.append(smiles)
            yield smiles

    items = generate_stream(source(), 1, report=seen.append)
    assert isinstance(next(items), MoleculeEnsemble) and len(taken) == 3
    assert len(list(items)) == 5 and sum(seen) == 6 * Sampling().starts(1)


def test_nothing_finished_waits_for_a_large_molecule(monkeypatch) -> None:
    """Embedding one takes minutes, in which what is done must be in the file already."""
    monkeypatch.setattr(stream, "LARGE", 20)
    taken: list[str] = []

    def source():
        for smiles in ("CO", "CC", "CCCCCCC", "CN"):
            taken.append(smiles)
            yield smiles

    items = generate_stream(source(), 1)
    names = []
    for count in (3, 3, 3, 4):  # molecules that have been asked for when each one comes
        item = next(items)
        assert isinstance(item, MoleculeEnsemble)
        names.append(item.record.smiles)
        assert len(taken) == count
    assert names == ["CO", "CC", "CCCCCCC", "CN"]


def test_memory_bounds_the_conformers_relaxed_together(monkeypatch) -> None:
    sizes: list[int] = []
    true = window.relax

    def record(part, energy, **options):
        sizes.append(len(part))
        return true(part, energy, **options)

    monkeypatch.setattr(window, "relax", record)
    small = Sampling(memory=1)
    generate("CCCCCCCCCCCCCCC", 3, sampling=small)
    assert sum(sizes) == 6 and max(sizes) <= small.rows(47) == 6
    assert Sampling(memory=1).rows(1000) == 1


def test_saved_ensembles_are_read_back(tmp_path: Path) -> None:
    result = generate(["CCCC", ALANINE], 3)
    assert result.save(tmp_path / "out.sdf") == result.num_conformers
    back = read_sdf_ensembles(tmp_path / "out.sdf")
    assert [item.record.mol.GetNumConformers() for item in back.sets] == [len(e) for e in result.energies]
    for item, energies in zip(back.sets, result.energies, strict=True):
        assert item.energies is not None
        assert_close(item.energies, energies, rtol=0.0, atol=1e-7)
    assert "<status>" in (tmp_path / "out.sdf").read_text()
    with pytest.raises(FileExistsError):
        result.save(tmp_path / "out.sdf")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: generate("C", 0), ValueError, "expected `n` to be an int >= 1, got 0"),
        (lambda: generate("C", True), ValueError, "got True"),
        (lambda: generate(7), TypeError, "expected SMILES or RDKit molecules, got int"),  # type: ignore[arg-type]
        (lambda: generate(["C", 7]), TypeError, "got int as number 1"),  # type: ignore[list-item]
        (lambda: generate("C", force_field="MMFF94"), TypeError, "Variant.MMFF94"),  # type: ignore[arg-type]
        (lambda: Sampling(rmsd=-1.0), ValueError, "expected `rmsd` >= 0 angstrom, got -1.0"),
        (lambda: Sampling(energy_window=-1.0), ValueError, "`energy_window`"),
        (lambda: Sampling(starts_per_conformer=0.5), ValueError, "`starts_per_conformer` >= 1"),
    ],
)
def test_bad_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message.replace("(", "\\(")):
        call()
