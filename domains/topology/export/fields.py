"""What every exporter needs: a checked density in world axes, and files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["as_density", "as_numpy", "replacing", "world_axes"]

ROUNDING = 1e-6  # what an outer step may leave outside [0, 1]


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary name beside ``path`` and rename it when the block ends well; on an error nothing is left.

    The temporary name has the same suffix, so that writers that choose the format by it work.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "a.txt"
        ...     with replacing(target) as file:
        ...         _ = file.write_text("whole")
        ...     target.read_text(), len(list(Path(folder).iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: expected `path` in a folder that exists, got {path}. Create {path.parent}.")
    aside = path.with_name(f".{path.stem[:40]}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def as_numpy(field: Any) -> np.ndarray:
    """A numpy array of a tensor (any device, with or without a graph) or of anything numpy takes."""
    if hasattr(field, "detach"):
        field = field.detach().cpu().numpy()
    return np.asarray(field)


def as_density(owner: str, density: Any) -> np.ndarray:
    """The density as float64 ``(ny, nx)`` or ``(nz, ny, nx)``, checked and clipped to [0, 1].

    Raises:
        ValueError: for another number of axes, empty axes, NaN or infinities, or values outside [0, 1].

    Example:
        >>> as_density("demo", [[0.0, 1.0]]).shape
        (1, 2)
    """
    field = as_numpy(density)
    if field.ndim not in (2, 3) or not field.size:
        raise ValueError(
            f"{owner}: expected `density` of shape (ny, nx) or (nz, ny, nx), got {field.shape}. "
            "Give one number per element."
        )
    field = field.astype(np.float64)
    if not np.isfinite(field).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(field))[0])
        raise ValueError(
            f"{owner}: expected a finite `density`, got {field[where]} in element {where}. "
            "Look at the run that made it; its status says what happened."
        )
    low, high = float(field.min()), float(field.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{owner}: expected `density` in [0, 1], got values from {low:g} to {high:g}. Give physical densities."
        )
    return np.clip(field, 0.0, 1.0)


def world_axes(field: np.ndarray) -> np.ndarray:
    """The field with all axes ascending along the world's: 2D images, whose row 0 is on top, are turned over.

    Works on ``(ny, nx)`` and ``(nz, ny, nx)`` alike; in three dimensions index 0 is at z = 0 (the bottom), y = 0 and
    x = 0 already. It is its own inverse.

    Example:
        >>> world_axes(np.array([[1.0], [0.0]]))[:, 0]
        array([0., 1.])
    """
    return field[::-1] if field.ndim == 2 else field
