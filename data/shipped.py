"""Files that the project made itself and ships: found beside the code, and compared with their checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import MappingProxyType

from sciopt.data.fetcher import DataError

__all__ = ["SHIPPED", "shipped"]

SHIPPED = MappingProxyType(
    {"gfn2_conformers.sdf.gz": "c73d162242d63b8ef611b1a9e702041e7c08829fc80bc8ec9d41f9564f59b891"}
)  # name and SHA-256


def shipped(name: str) -> Path:
    """Path of a file that comes with the package, verified.

    Args:
        name: a key of `SHIPPED`.

    Returns:
        Path beside this module.

    Raises:
        ValueError: for an unknown name.
        DataError: when the file is missing or has other contents, as after a broken installation.

    Example:
        >>> shipped("gfn2_conformers.sdf.gz").stat().st_size < 5_000_000
        True
    """
    if name not in SHIPPED:
        raise ValueError(f"shipped: expected `name` among {', '.join(SHIPPED)}, got {name!r}. Correct the name.")
    path = Path(__file__).with_name(name)
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != SHIPPED[name]:
        raise DataError(
            f"shipped: expected {path} with SHA-256 {SHIPPED[name]}, got {found}. Install the package again."
        )
    return path
