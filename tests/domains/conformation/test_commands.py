"""``sciopt conformers`` as a chemist calls it: files and strings in, an SDF out, every failure said."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rdkit import Chem

from sciopt.cli import main
from sciopt.domains.conformation import generation, read_sdf_ensembles
from sciopt.domains.conformation.generation import Sampling, stream
from sciopt.domains.conformation.generation.sampling import embed

ROOT = Path(__file__).parents[3]
ETHANE_SDF = """ethane
     RDKit          3D

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.5000    0.0000    0.0000 C   0  0
  1  2  1  0
M  END
$$$$
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["conformers", *(str(arg) for arg in args)])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_a_smiles_string():
    result = call("CCCC", "-n", 5, "-o", "butane.sdf")
    assert "CCCC: 3 conformers (5 asked for), lowest -5.08 kcal/mol, highest 0.78 above it" in result.stdout
    assert "butane.sdf: 3 conformers of 1 molecule from 10 starts" in result.stdout and result.stderr == ""
    (found,) = read_sdf_ensembles(Path("butane.sdf")).sets
    assert found.energies is not None and found.energies.tolist() == sorted(found.energies.tolist())
    first = Path("butane.sdf").read_bytes()
    assert first.startswith(b"CCCC\n")
    call("CCCC", "-n", 5, "-o", "butane.sdf", "--overwrite")
    assert Path("butane.sdf").read_bytes() == first
    call("CCCC", "-n", 5, "-o", "butane.sdf", "--overwrite", "--seed", 1)
    assert Path("butane.sdf").read_bytes() != first


def test_several_inputs_with_failures_go_on_and_are_listed():
    Path("some.smi").write_text("CO methanol\nC( broken\n[Na+].[Cl-] salt\nCC(N)O amine\n")
    Path("some.sdf").write_text(ETHANE_SDF + "broken\n\n\nnonsense\n$$$$\n")
    Path("some.csv").write_text("name,structure\nwater,O\n")
    args = ["some.smi", "some.sdf", "some.csv", "[CH3]", "C", "--column", "structure"]
    result = call(*args, "-n", 2, "-o", "all.sdf", "--failures", "failed.csv", "--table", "fates.csv", code=1)
    assert "5 molecules of" not in result.stderr and "4 molecules of 9 without conformers" in result.stderr
    assert "failed: some.smi: record 1 (line 2): syntax: " in result.stderr
    assert "choose --mixtures largest or keep" in result.stderr
    assert "failed: argument 4: radical: unpaired electrons on C0; --allow-radicals takes it [[CH3]]" in result.stderr
    assert "note: amine: unspecified stereo at C1: conformers of either configuration" in result.stderr
    rows = list(csv.DictReader(Path("failed.csv").read_text().splitlines()))
    assert [(row["source"], row["record"], row["kind"]) for row in rows] == [
        ("some.smi", "1", "syntax"),
        ("some.smi", "2", "mixture"),
        ("some.sdf", "1", "syntax"),
        ("argument 4", "3", "radical"),
    ]
    names = [item.record.name for item in read_sdf_ensembles(Path("all.sdf")).sets]
    assert list(dict.fromkeys(names)) == ["methanol", "amine", "ethane", "O", "C"]
    fates = list(csv.DictReader(Path("fates.csv").read_text().splitlines()))
    assert len(fates) == 5 * 4 and {row["fate"] for row in fates} >= {"kept", "duplicate of a lower one"}


def test_policies_and_thresholds_are_heeded():
    result = call("CC(=O)[O-].[Na+]", "-n", 1, "-o", "a.sdf", "--mixtures", "largest", "--force-field", "mmff94s")
    assert "note: CC(=O)[O-]: removed [Na+]" in result.stderr
    call("CC(=O)[O-].[Na+]", "-n", 1, "-o", "b.sdf", "--mixtures", "keep")
    assert "2 conformers" in call("CCCC", "-n", 2, "-o", "c.sdf", "--rmsd", 0).stdout
    assert "; of 8 starts" in call("CCCC", "-n", 2, "-o", "d.sdf", "--starts", 4).stdout
    low = call("CCCC", "-n", 9, "-o", "e.sdf", "--energy-window", 0.5)
    assert "above the energy window" in low.stdout and "1 conformer (9 asked for)" in low.stdout
    assert "stereo: unspecified stereo at C1" in call("CC(N)O", "-o", "f.sdf", "--require-stereo", code=1).stderr
    assert "too large: 9 atoms" in call("CCO", "-o", "f.sdf", "--max-atoms", 8, code=1).stderr
    assert not Path("f.sdf").exists()


def test_an_empty_smiles_alone_writes_nothing():
    result = call("", "-o", "none.sdf", code=1)
    assert "failed: argument 1: empty: no SMILES" in result.stderr and "nothing to write" in result.stderr
    assert not Path("none.sdf").exists()


def test_long_lists_of_failures_are_cut():
    Path("bad.smi").write_text("C(\n" * 30)
    result = call("bad.smi", "-o", "none.sdf", code=1)
    assert result.stderr.count("failed: bad.smi") == 20
    assert "failed: and 10 more; --failures FILE writes all" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["C"], "Missing option '-o'"),
        (["-o", "a.sdf"], "Missing argument 'SMILES|FILE...'"),
        (["C", "-o", "a.pdb"], "expected a name ending in .sdf, got a.pdb"),
        (["C", "-o", "there.sdf"], "there.sdf: expected a new file, got one that exists"),
        (["C", "-o", "nowhere/a.sdf"], "in a folder that exists"),
        (["C", "-o", "a.sdf", "--table", "a.sdf"], "the same name twice"),
        (["gone.smi", "-o", "a.sdf"], "expected `path` to name a file, got gone.smi"),
        (["set.pkl", "-o", "a.sdf"], "expected a file that holds data only, got the pickle"),
        (["empty.smi", "-o", "a.sdf"], "expected at least one molecule, got an empty file"),
        (["table.csv", "-o", "a.sdf"], "Name it with --column."),
        (["C", "-n", "0", "-o", "a.sdf"], "Invalid value for '-n'"),
        (["C", "-o", "a.sdf", "--device", "quantum"], "expected a device of this machine, got 'quantum'"),
        (["C", "-o", "a.sdf", "--mixtures", "best"], "'error', 'largest', 'keep'"),
    ],
)
def test_bad_input_is_said_before_any_work(args, message, monkeypatch):
    for name in ("there.sdf", "set.pkl", "empty.smi"):
        Path(name).touch()
    Path("table.csv").write_text("x,y\n1,2\n")
    monkeypatch.setattr(generation, "generate_stream", None)
    assert message in call(*args, code=2).output
    assert not Path("a.sdf").exists()


@pytest.mark.parametrize(
    ("signum", "code", "name"), [(signal.SIGINT, 130, "^C"), (signal.SIGTERM, 143, "SIGTERM")], ids=str
)
def test_interrupted_it_writes_what_is_finished(signum, code, name, monkeypatch):
    """A signal in the third molecule, from the keyboard or from a batch system."""
    true, done = stream.embed, []

    def embed(mol, *args):
        done.append(mol)
        if len(done) == 3:
            os.kill(os.getpid(), signum)
        return true(mol, *args)

    monkeypatch.setattr(stream, "embed", embed)
    monkeypatch.setattr(stream, "WINDOW", 1)
    result = call("CO", "CC", "CN", "CF", "-n", 1, "-o", "part.sdf", code=code)
    assert f"stopped by {name}; the finished molecules are in part.sdf; 2 molecules not done" in result.stderr
    assert [item.record.smiles for item in read_sdf_ensembles(Path("part.sdf")).sets] == ["CO", "CC"]


def test_a_real_process_stops_at_ctrl_c_without_clutter():
    Path("many.smi").write_text("CO\n" * 400)
    command = [sys.executable, "-m", "sciopt.cli", "conformers", str(Path("many.smi").resolve()), "-n", "2", "-o"]
    process = subprocess.Popen(
        [*command, str(Path("many.sdf").resolve())], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        # The file that is being written tells that the work has begun.
        limit = time.monotonic() + 120
        while not list(Path().glob(".many.sdf.*")) and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the finished molecules are in" in err and "Traceback" not in err and "start/s" not in err
    assert read_sdf_ensembles(Path("many.sdf")).num_conformers > 0 and not list(Path().glob(".many*"))


LONG = "N[C@@H](C)C(=O)" * 60 + "O"  # 603 atoms: RDKit embeds for minutes


def test_ctrl_c_ends_an_embedding_that_rdkit_would_go_on_with():
    """RDKit takes ^C for itself while it embeds, and goes on as if the molecule had no geometry."""
    Path("long.smi").write_text(f"CO\n{LONG}\nCC\n")
    script = (
        "import sys, threading, os, signal\n"
        "from sciopt.domains.conformation.generation import stream\n"
        "stream.WINDOW, true = 1, stream.embed\n"
        "def embed(mol, *rest):\n"
        "    if mol.GetNumAtoms() > 600:\n"
        "        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    return true(mol, *rest)\n"
        "stream.embed = embed\n"
        "from sciopt.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "conformers", str(Path("long.smi").resolve()), "-n", "2", "-o", "long.sdf"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 130, done.stderr
    assert "stopped by ^C; the finished molecules are in long.sdf; 2 molecules not done" in done.stderr
    assert "Traceback" not in done.stderr
    assert [item.record.smiles for item in read_sdf_ensembles(Path("long.sdf")).sets] == ["CO"]


def test_embeddings_that_fail_are_not_taken_for_interrupted():
    """Nothing comes out of any: attempts that all fail, bounds that admit no start, a timeout."""
    for smiles, sampling in (
        ("C[C@@]12C[C@H]1[C@@]2(C)C", Sampling(max_attempts=3)),
        ("C1CC2CCC1C#C2", Sampling(max_attempts=2)),
        (LONG, Sampling(max_seconds=1)),
    ):
        positions, reason = embed(Chem.AddHs(Chem.MolFromSmiles(smiles)), 3, 0, sampling)
        assert len(positions) == 0 and reason.startswith("ETKDG found no geometry")
