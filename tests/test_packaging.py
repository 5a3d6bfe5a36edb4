"""The package frame: what is listed is there, what is there is listed, and the two mapped folders are guarded."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages_on_disk() -> set[str]:
    found = set()
    for name, folder in TABLE["tool"]["setuptools"]["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            through_link = any((ROOT / folder).joinpath(*parts[: i + 1]).is_symlink() for i in range(len(parts)))
            if not through_link:
                found.add(".".join([name, *parts]))
    return found


def test_every_folder_with_an_init_is_listed_once():
    listed = TABLE["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == _packages_on_disk()


@pytest.mark.parametrize("name", ["domains", "data"])
def test_mapped_folder_is_linked_relatively(name):
    link = ROOT / "sciopt" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ["domains", "data"])
def test_bare_import_of_a_mapped_folder_is_refused_with_advice(name):
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"ImportError: {name}: expected to be imported as `sciopt.{name}`" in run.stderr
    assert "Write `import sciopt." in run.stderr


def test_constraints_pin_every_dependency():
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = TABLE["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    wanted += TABLE["build-system"]["requires"]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", spec)[0]).lower() for spec in wanted} - {"sciopt"}
    assert names <= pinned
    assert pins["torch"] == "2.13.0"


def test_import_rules_name_modules_that_exist():
    """Optional layers (in parentheses) may be missing; everything else in the tower must be there."""
    tower = next(c for c in TABLE["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    for layer in tower["layers"]:
        for module in (part.strip() for part in layer.split("|")):
            if not module.startswith("("):
                assert (ROOT / "sciopt" / module).is_dir() or (ROOT / "sciopt" / f"{module}.py").is_file(), module


def test_data_files_of_packages_are_shipped():
    patterns = TABLE["tool"]["setuptools"]["package-data"]["*"]
    for folder in ("sciopt", "domains", "data"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts:
                assert any(path.match(pattern) for pattern in patterns), f"{path} would be missing from the wheel"
    json.loads((ROOT / "data" / "registry.json").read_text())
