"""Versions and the machine, as they stand in results and reports."""

from __future__ import annotations

import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["machine", "sciopt_version"]


def sciopt_version() -> str:
    """Version of the installed package, or of the checkout it runs from.

    Example:
        >>> isinstance(sciopt_version(), str)
        True
    """
    try:
        return version("sciopt")
    except PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        return (
            tomllib.loads(file.read_text("utf-8"))["project"]["version"] + " (checkout)" if file.exists() else "unknown"
        )


def machine() -> dict[str, Any]:
    """Versions of what results depend on, and the device.

    Example:
        >>> sorted(machine())
        ['cuda', 'platform', 'versions']
    """
    import torch

    found = {"sciopt": sciopt_version(), "torch": torch.__version__, "python": platform.python_version()}
    for name in ("numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"versions": found, "platform": platform.platform(), "cuda": device}
