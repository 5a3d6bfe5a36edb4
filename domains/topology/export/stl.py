"""STL, the format of printers and of most computer-aided design: written in binary, read in both of its forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sciopt.domains.topology.export.fields import replacing
from sciopt.domains.topology.export.surface import Surface, isosurface

__all__ = ["read_stl", "write_stl"]

RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
HEADER = 84  # bytes before the records: a comment of 80 and the number of triangles
NUMBER = rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
VERTEX = re.compile(rb"\bvertex\s+(" + NUMBER + rb")\s+(" + NUMBER + rb")\s+(" + NUMBER + rb")(?=\s)")


def write_stl(
    path: Path | str, design: Any, *, level: float = 0.5, spacing: float = 1.0, thickness: float | None = None
) -> Path:
    """Write a watertight binary STL; x to the right, z up, one corner of the domain at the origin.

    The surface is checked before anything is written: every edge joins two triangles, the volume is positive, and
    positions stay apart after rounding to the format's float32.

    Args:
        path: file to write, in a folder that exists; replaced as a whole or not at all.
        design: a `Surface`, or a density for `isosurface`: ``(nz, ny, nx)`` with z up, or ``(ny, nx)`` with row 0 on top,
            which is extruded.
        level: the density at the surface.
        spacing: side of an element in the unit of the file, for most programs mm.
        thickness: of an extruded 2D design, in the unit of the file.

    Returns:
        The path.

    Raises:
        ValueError: for bad densities and options, or a `Surface` that is not closed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_stl(Path(folder) / "plate.stl", np.ones((2, 4)), thickness=1.0)
        ...     abs(read_stl(path).volume - 8) < 0.04
        True
    """
    surface = design if isinstance(design, Surface) else None
    if surface is None:
        surface = isosurface(design, level=level, spacing=spacing, thickness=thickness)
    rounded = Surface(surface.vertices.astype(np.float32).astype(np.float64), surface.triangles)
    rounded.check("write_stl")
    merged = len(rounded.vertices) - len(np.unique(_keys(rounded.vertices)))
    if merged:
        raise ValueError(
            f"write_stl: expected `design` with vertices that differ in float32, got {merged} that coincide. "
            "Move the surface nearer to the origin, or join the vertices."
        )
    records = np.zeros(len(rounded.triangles), dtype=RECORD)
    length = np.linalg.norm(rounded.face_vectors, axis=1, keepdims=True)
    records["normal"] = rounded.face_vectors / np.maximum(length, np.finfo(float).tiny)
    records["corners"] = rounded.corners
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(b"binary STL".ljust(80) + np.uint32(len(records)).astype("<u4").tobytes())
        file.write(records.tobytes())
    return Path(path)


def read_stl(path: Path | str) -> Surface:
    """Read an STL, binary or text, and join vertices at equal positions; holes are not an error here.

    Args:
        path: file to read. `Surface.check` says whether it is closed.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is cut off, is not an STL, has no triangle, or holds NaN or infinities.

    Example:
        >>> import tempfile
        >>> text = "solid a facet normal 0 0 1 outer loop vertex 0 0 0 vertex 1 0 0 vertex 0 1e0 0 endloop endfacet endsolid"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.stl").write_text(text)
        ...     read_stl(Path(folder) / "a.stl").area
        0.5
    """
    path = Path(path)
    data = path.read_bytes()
    count = int.from_bytes(data[80:HEADER], "little") if len(data) >= HEADER else -1
    if len(data) == HEADER + RECORD.itemsize * count:
        corners = np.frombuffer(data, RECORD, offset=HEADER)["corners"].astype(np.float64)
    elif data.lstrip()[:5].lower() == b"solid" and b"\0" not in data:
        corners = _text(path, data)
    else:
        said = f"{HEADER + RECORD.itemsize * count} bytes for {count} triangles" if count >= 0 else f"{HEADER} bytes"
        raise ValueError(
            f"read_stl: expected `path` to be an STL of {said}, got {len(data)} bytes in {path}. "
            "The file is cut off or no STL; export it again."
        )
    if not len(corners):
        raise ValueError(f"read_stl: expected `path` with triangles, got none in {path}. Export the part again.")
    if not np.isfinite(corners).all():
        bad = int(np.flatnonzero(~np.isfinite(corners).all((1, 2)))[0])
        raise ValueError(f"read_stl: expected finite positions in `path`, got NaN or Inf in triangle {bad} of {path}.")
    flat = corners.reshape(-1, 3) + 0.0  # -0 is 0
    _, first, triangles = np.unique(_keys(flat), return_index=True, return_inverse=True)
    return Surface(flat[first], triangles.reshape(-1, 3))


def _keys(positions: np.ndarray) -> np.ndarray:
    """One sortable value per row."""
    return np.ascontiguousarray(positions + 0.0).view(np.dtype((np.void, 3 * positions.itemsize))).reshape(-1)


def _text(path: Path, data: bytes) -> np.ndarray:
    found = VERTEX.findall(data + b"\n")
    facets, lower = data.lower().count(b"endfacet"), data.lower()
    words = len(re.findall(rb"\bvertex\b", lower))
    if len(found) != 3 * facets or words != len(found) or b"endsolid" not in lower:
        raise ValueError(
            f"read_stl: expected three vertices of three numbers in each facet of `path`, got {len(found)} readable ones of "
            f"{words} in {facets} whole facets of {path}. The file is cut off or damaged; export it again."
        )
    return np.array(found, dtype=np.float64).reshape(-1, 3, 3)
