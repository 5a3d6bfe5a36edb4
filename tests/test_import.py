"""`import sciopt` stays light: heavy and optional packages load when they are used."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ["scipy.optimize", "torchdiffeq", "matplotlib", "pydantic", "rdkit", "torch_geometric", "pooch", "requests"]
HEAVY += ["sciopt.domains", "sciopt.data"]


def _loaded_by(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_import_sciopt_loads_no_heavy_package():
    assert _loaded_by("import sciopt") == set()


def test_import_sciopt_data_loads_no_heavy_package():
    assert _loaded_by("import sciopt.data") == {"sciopt.data"}


def test_the_check_sees_what_is_loaded():
    assert "scipy.optimize" in _loaded_by("import scipy.optimize")
