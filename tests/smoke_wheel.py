"""Run by `make wheel` outside the checkout: the installed wheel is whole and holds its data files."""

import importlib
import tomllib
from pathlib import Path

import sciopt

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Import every listed package from the installed copy; read the data registry; reach the command line."""
    home = Path(sciopt.__file__).resolve().parent
    if home == ROOT / "sciopt" or home.parent.name != "smoke":
        raise SystemExit(f"smoke_wheel: expected the copy installed in build/smoke, got {home}. Run `make wheel`.")
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]:
        module = importlib.import_module(name)
        if not Path(str(module.__file__)).resolve().is_relative_to(home):
            raise SystemExit(f"smoke_wheel: expected {name} in {home}, got {module.__file__}.")
    data = importlib.import_module("sciopt.data")
    entries = data.registry()
    data.shipped("gfn2_conformers.sdf.gz")  # raises where it is missing or damaged
    view = importlib.import_module("sciopt.view")
    scene = view.MoleculeScene(elements=("C",), bonds=(), positions=(((0.0, 0.0, 0.0),),))
    if "3Dmol" not in view.MoleculeView(scene=scene).page() or not (home / "view" / "3Dmol-LICENSE.txt").is_file():
        raise SystemExit("smoke_wheel: expected the 3D viewer's script and licence in the wheel, got none.")
    importlib.import_module("sciopt.cli")
    print(f"wheel: {sciopt.__name__} imports from {home}, {len(entries)} data entries")


if __name__ == "__main__":
    main()
