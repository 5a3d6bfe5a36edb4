"""Every example script runs from start to end, at a reduced size."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.data_helpers import require_data

DATA = {
    "dna_batch": "offline/tf_binding/SIX6_REF_R1_8mers.txt",
    "drug_conformers": "molecules/fastsmcg_dev.sdf",
}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, monkeypatch, tmp_path, capsys):
    if script.stem in DATA:
        require_data(DATA[script.stem])
    monkeypatch.setenv("SCIOPT_SMOKE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example shows what it found"


@pytest.mark.parametrize("name", ["dna_batch", "own_table"])
def test_an_option_is_no_name_of_a_file(name, monkeypatch, tmp_path):
    script = EXAMPLES[0].with_name(f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match=f"usage: python examples/{name}.py"):
        runpy.run_path(str(script), run_name="__main__")
    assert not list(tmp_path.iterdir())
