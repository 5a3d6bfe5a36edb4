"""What ``sciopt doctor`` looks at: is this machine ready, and what would make it so."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

from sciopt.campaign.engine import available_cores
from sciopt.campaign.errors import CampaignError
from sciopt.campaign.registry import GROUP, domains, kinds

__all__ = ["Finding", "examine"]

_MODULES = {
    "torch-geometric": "torch_geometric",
    "rdkit": "rdkit",
    "torchdiffeq": "torchdiffeq",
    "scipy": "scipy",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
    "click": "click",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "pooch": "pooch",
    "platformdirs": "platformdirs",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination; ``level`` is ``ok``, ``note`` or ``PROBLEM``."""

    level: str
    what: str
    text: str


def examine(directory: Path) -> Iterator[Finding]:
    """Look at Python, torch, devices, dependencies, the domains, the data mirror and the folder to write in.

    Example:
        >>> next(iter(examine(Path(".")))).what
        'python'
    """
    good = sys.version_info >= (3, 11)
    advice = "" if good else "; install Python 3.11 or later"
    yield Finding(level="ok" if good else "PROBLEM", what="python", text=f"{platform.python_version()}{advice}")
    yield Finding(level="ok", what="platform", text=f"{platform.platform()}, {available_cores()} cores")
    yield _installed()
    yield from _torch()
    for name, module in _MODULES.items():
        yield _dependency(name, module)
    yield from _domains()
    yield from _data()
    yield _compiler()
    yield _writable(directory)


def _installed() -> Finding:
    try:
        requires("sciopt")
        return Finding(level="ok", what="sciopt", text=version("sciopt"))
    except PackageNotFoundError:
        return Finding(
            level="note", what="sciopt", text="runs from a checkout that is not installed (pip install -e .)"
        )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding(level="PROBLEM", what="torch", text=f"{type(error).__name__}: {error}; pip install torch")
        return
    yield Finding(level="ok", what="torch", text=f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding(level="ok", what="cuda", text=names)
    else:
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Finding(level="note", what="cuda", text=f"no device ({build}); everything runs on the CPU")


def _dependency(name: str, module: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(level="PROBLEM", what=name, text=f"not installed; pip install {name}")
    if importlib.util.find_spec(module) is None:
        return Finding(level="PROBLEM", what=name, text=f"{found}, but `{module}` cannot be found; reinstall {name}")
    return Finding(level="ok", what=name, text=found)


def _domains() -> Iterator[Finding]:
    registered = {point.name for point in entry_points(group=GROUP)}
    try:
        known = domains()
    except CampaignError as error:
        yield Finding(level="PROBLEM", what="problems", text=str(error))
        return
    for name in known:
        try:
            found = ", ".join(kinds(name))
            how = "" if name in registered else " (not from an installed package)"
            yield Finding(level="ok", what=f"problems of {name}", text=found + how)
        except CampaignError as error:
            yield Finding(level="PROBLEM", what=f"problems of {name}", text=str(error))


def _data() -> Iterator[Finding]:
    mirror = os.environ.get("SCIOPT_DATA_MIRROR")
    if not mirror:
        yield Finding(
            level="note", what="data mirror", text="SCIOPT_DATA_MIRROR is not set; files come from their public URLs"
        )
    elif Path(mirror).is_dir():
        yield Finding(level="ok", what="data mirror", text=mirror)
    else:
        yield Finding(level="PROBLEM", what="data mirror", text=f"{mirror} is not a folder; correct SCIOPT_DATA_MIRROR")


def _compiler() -> Finding:
    names = ([os.environ["CXX"]] if os.environ.get("CXX") else []) + ["c++", "g++", "clang++", "cl"]
    found = next(filter(None, map(shutil.which, names)), None)
    text = found or "none; nothing needs one (torch.compile would use it)"
    return Finding(level="ok" if found else "note", what="C++ compiler", text=text)


def _writable(directory: Path) -> Finding:
    folder = directory
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            level="PROBLEM", what="write access", text=f"{folder}: {error.strerror}; choose a folder with --out"
        )
    free = shutil.disk_usage(folder).free / 1e9
    level = "ok" if free > 0.5 else "PROBLEM"
    return Finding(level=level, what="write access", text=f"{folder.resolve()}, {free:.1f} GB free")
