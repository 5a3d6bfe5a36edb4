"""VTK's XML files for ParaView and its kin: regular grids (.vti) and the solid elements alone (.vtu)."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.export.fields import as_density, as_numpy, replacing, world_axes

__all__ = ["write_vti", "write_vtu"]

BLOCK = 1 << 20  # bytes that are compressed at a time
TYPES = {"f4": "Float32", "f8": "Float64", "i4": "Int32", "i8": "Int64", "u1": "UInt8", "u2": "UInt16"}
QUAD, HEXAHEDRON = 9, 12
CORNERS_2D = ((0, 0), (0, 1), (1, 1), (1, 0))  # (y, x)
CORNERS = tuple((z, *corner) for z in (0, 1) for corner in CORNERS_2D)  # (z, y, x)


def write_vti(
    path: Path | str,
    density: Any,
    *,
    spacing: float = 1.0,
    cell_data: Mapping[str, Any] | None = None,
    point_data: Mapping[str, Any] | None = None,
) -> Path:
    """Write a density and further fields as VTK ImageData, zlib-compressed, in the precision they have.

    Args:
        path: file to write, in a folder that exists; replaced as a whole or not at all.
        density: ``(nz, ny, nx)`` in [0, 1], z up, index 0 at the bottom; or ``(ny, nx)``, row 0 on top. It becomes the
            cell field ``density``.
        spacing: side of an element, in lengths; the domain's least corner is the origin.
        cell_data: further fields over elements, of the density's shape, with an axis of components after it or not.
        point_data: fields over nodes, one more along each axis, e.g. displacements ``(nz + 1, ny + 1, nx + 1, 3)`` or
            ``(ny + 1, nx + 1, 2)`` with row 0 on top; vectors of two components get a third one of zero.

    Returns:
        The path.

    Raises:
        ValueError: for fields of other shapes, or names used twice.

    Example:
        >>> import tempfile
        >>> from sciopt.domains.topology.export import read_vti
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_vti(Path(folder) / "a.vti", [[0.25, 1.0]], cell_data={"part": np.array([[3, 4]])})
        ...     read_vti(path).cell_data["part"]
        array([[3, 4]])

    References:
        VTK file formats, docs.vtk.org: XML formats, serial ImageData.
    """
    field, cells, points = _fields("write_vti", density, cell_data, point_data)
    check_option("write_vti", "spacing", spacing, 0 < spacing < float("inf"), "> 0", "Give the side of an element.")
    shape = field.shape[::-1] if field.ndim == 3 else (*field.shape[::-1], 0)
    extent = " ".join(f"0 {n}" for n in shape)
    blocks = _Blocks()
    body = [
        f'<ImageData WholeExtent="{extent}" Origin="0 0 0" Spacing="{spacing!r} {spacing!r} {spacing!r}">',
        f'<Piece Extent="{extent}">',
        *_section("PointData", {name: _rows(value, field.ndim) for name, value in points.items()}, blocks),
        *_section("CellData", {name: _rows(value, field.ndim) for name, value in cells.items()}, blocks, "density"),
        "</Piece>",
        "</ImageData>",
    ]
    return _write(path, "ImageData", body, blocks)


def write_vtu(
    path: Path | str,
    density: Any,
    *,
    threshold: float = 0.5,
    spacing: float = 1.0,
    cell_data: Mapping[str, Any] | None = None,
    point_data: Mapping[str, Any] | None = None,
) -> Path:
    """Write the elements denser than ``threshold`` as an unstructured mesh of squares or cubes that share their nodes.

    For other analysis programs, and for looking at stresses of what is built without the void around it.

    Args:
        path: as for `write_vti`.
        density: as for `write_vti`.
        threshold: elements up to this density are left out; below zero keeps all.
        spacing: as for `write_vti`.
        cell_data: as for `write_vti`.
        point_data: as for `write_vti`.

    Returns:
        The path.

    Raises:
        ValueError: for fields of other shapes, or when no element is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_vtu(Path(folder) / "a.vtu", [[0.25, 1.0], [1.0, 1.0]])
        ...     'NumberOfPoints="8" NumberOfCells="3"' in path.read_text()
        True
    """
    field, cells, points = _fields("write_vtu", density, cell_data, point_data)
    check_option("write_vtu", "spacing", spacing, 0 < spacing < float("inf"), "> 0", "Give the side of an element.")
    upright = world_axes(field)
    kept = np.stack(np.nonzero(upright > threshold), axis=-1)  # (E, ndim)
    if not len(kept):
        raise ValueError(
            f"write_vtu: expected a `density` above the threshold {threshold:g} somewhere, got at most {field.max():g}. "
            "Lower the `threshold`."
        )
    nodes = tuple(n + 1 for n in field.shape)
    corners = np.array(CORNERS if field.ndim == 3 else CORNERS_2D)
    grid = np.ravel_multi_index(tuple(np.moveaxis(kept[:, None] + corners, -1, 0)), nodes)
    used, connectivity = np.unique(grid, return_inverse=True)
    connectivity = connectivity.reshape(grid.shape)
    where = np.stack(np.unravel_index(used, nodes)[::-1], axis=-1).astype(np.float64) * spacing  # x, y (, z)
    if field.ndim == 2:
        where = np.pad(where, ((0, 0), (0, 1)))
    chosen = np.ravel_multi_index(tuple(kept.T), field.shape)
    count, kind = len(kept), HEXAHEDRON if field.ndim == 3 else QUAD
    blocks = _Blocks()
    body = [
        "<UnstructuredGrid>",
        f'<Piece NumberOfPoints="{len(used)}" NumberOfCells="{count}">',
        *_section("PointData", {name: _rows(value, field.ndim)[used] for name, value in points.items()}, blocks),
        *_section("CellData", {n: _rows(v, field.ndim)[chosen] for n, v in cells.items()}, blocks, "density"),
        *_section("Points", {"Points": where}, blocks),
        *_section(
            "Cells",
            {
                "connectivity": connectivity.reshape(-1).astype(np.int64),
                "offsets": np.arange(1, count + 1, dtype=np.int64) * len(corners),
                "types": np.full(count, kind, dtype=np.uint8),
            },
            blocks,
        ),
        "</Piece>",
        "</UnstructuredGrid>",
    ]
    return _write(path, "UnstructuredGrid", body, blocks)


class _Blocks:
    """Arrays of the appended section, and where each begins."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: np.ndarray) -> int:
        """Store an array; returns its offset."""
        data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        pieces = [zlib.compress(data[i : i + BLOCK], 6) for i in range(0, len(data), BLOCK)]
        sizes = [len(pieces), BLOCK, len(data) % BLOCK, *map(len, pieces)]
        header = base64.b64encode(np.array(sizes, dtype="<u8").tobytes())
        offset = self.size
        self.parts += [header, base64.b64encode(b"".join(pieces))]
        self.size += len(self.parts[-1]) + len(header)
        return offset


def _fields(
    owner: str, density: Any, cell_data: Mapping[str, Any] | None, point_data: Mapping[str, Any] | None
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The density, and all fields by name with the density among the cells'."""
    field = as_density(owner, density)
    given = as_numpy(density)
    cells = {"density": field.astype(np.float32) if given.dtype == np.float32 else field}
    points: dict[str, np.ndarray] = {}
    shapes = {"cell_data": field.shape, "point_data": tuple(n + 1 for n in field.shape)}
    for what, source, target in (("cell_data", cell_data, cells), ("point_data", point_data, points)):
        for name, value in (source or {}).items():
            array, shape = as_numpy(value), shapes[what]
            if name in target:
                raise ValueError(f"{owner}: expected other names in `{what}` than density, got it twice. Rename it.")
            if array.shape[: field.ndim] != shape or array.ndim > field.ndim + 1:
                raise ValueError(
                    f"{owner}: expected `{what}[{name!r}]` of shape {shape} or with components after it, got "
                    f"{array.shape}. Give one value per {'element' if what == 'cell_data' else 'node'}."
                )
            if array.dtype == bool:
                array = array.astype(np.uint8)
            if array.dtype.str[1:] not in TYPES:
                known = ", ".join(TYPES.values())
                raise ValueError(
                    f"{owner}: expected `{what}[{name!r}]` of one of {known}, got {array.dtype}. Convert it."
                )
            target[name] = array
    return field, cells, points


def _rows(array: np.ndarray, ndim: int) -> np.ndarray:
    """Values in VTK's order (x fastest, then y, then z), ``(N,)`` or ``(N, C)`` with pairs filled up to three."""
    upright = array[::-1] if ndim == 2 else array
    if array.ndim == ndim:
        return upright.reshape(-1)
    rows = upright.reshape(-1, array.shape[-1])
    return np.pad(rows, ((0, 0), (0, 1))) if rows.shape[1] == 2 else rows


def _section(kind: str, arrays: Mapping[str, np.ndarray], blocks: _Blocks, scalars: str = "") -> list[str]:
    lines = [f"<{kind} Scalars={quoteattr(scalars)}>" if scalars else f"<{kind}>"]
    for name, rows in arrays.items():
        components = f' NumberOfComponents="{rows.shape[1]}"' if rows.ndim == 2 else ""
        lines.append(
            f'<DataArray type="{TYPES[rows.dtype.str[1:]]}" Name={quoteattr(name)}{components} format="appended" '
            f'offset="{blocks.add(rows)}"/>'
        )
    return [*lines, f"</{kind}>"]


def _write(path: Path | str, kind: str, body: list[str], blocks: _Blocks) -> Path:
    head = (
        f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64" '
        'compressor="vtkZLibDataCompressor">\n'
    )
    with replacing(path) as aside, aside.open("wb") as file:
        file.write((head + "\n".join(body) + '\n<AppendedData encoding="base64">\n_').encode())
        file.writelines(blocks.parts)
        file.write(b"\n</AppendedData>\n</VTKFile>\n")
    return Path(path)
