"""Reading regular grids from VTK's XML files: text, inline binary and appended (raw or base64), zlib, lzma or plain."""

from __future__ import annotations

import base64
import binascii
import lzma
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final
from xml.etree import ElementTree

import numpy as np

__all__ = ["ImageData", "read_vti"]

TYPES = {f"{'U' if s == 'u' else ''}Int{8 * n}": f"{s}{n}" for s in "iu" for n in (1, 2, 4, 8)}
TYPES |= {"Float32": "f4", "Float64": "f8"}
OPENERS = {"vtkZLibDataCompressor": zlib.decompress, "vtkLZMADataCompressor": lzma.decompress}
APPENDED = re.compile(rb"<AppendedData\b[^>]*>")


@final
@dataclass(frozen=True, eq=False)
class ImageData:
    """Fields of a regular grid, in this domain's order of axes.

    Args:
        shape: elements along each axis, ``(nz, ny, nx)`` or ``(ny, nx)``.
        cell_data: fields over elements by name, ``(nz, ny, nx)`` with z up, or ``(ny, nx)`` with row 0 on top for a grid
            that is flat in z; components, if there are several, are a last axis.
        point_data: fields over nodes, one more along each axis.
        scalars: name of the field the file puts forward, or an empty word.
        spacing: distances of nodes along x, y, z.
        origin: position of the first node, x, y, z.
    """

    shape: tuple[int, ...]
    cell_data: dict[str, np.ndarray]
    point_data: dict[str, np.ndarray]
    scalars: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...]


def read_vti(path: Path | str) -> ImageData:
    """Read VTK ImageData as ParaView, VTK or `write_vti` write it.

    Args:
        path: a serial ``.vti`` file of one piece.

    Returns:
        `ImageData` with the arrays in the file's precision.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is cut off, damaged, or of another kind, naming what was expected where.

    Example:
        >>> import tempfile
        >>> text = '''<VTKFile type="ImageData"><ImageData WholeExtent="0 2 0 1 0 0" Origin="0 0 0" Spacing="1 1 1">
        ... <Piece Extent="0 2 0 1 0 0"><CellData><DataArray type="Float32" Name="a" format="ascii"> 0.5 1 </DataArray>
        ... </CellData></Piece></ImageData></VTKFile>'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.vti").write_text(text)
        ...     read_vti(Path(folder) / "a.vti").cell_data["a"]
        array([[0.5, 1. ]], dtype=float32)

    References:
        VTK file formats, docs.vtk.org: XML formats, serial ImageData.
    """
    return _Reader(Path(path)).read()


class _Reader:
    """One file while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes()
        # Raw appended data are no XML: cut out what lies between the underscore and the closing tag.
        self.appended, self.raw = b"", False
        found = APPENDED.search(data)
        if found:
            begin, end = data.find(b"_", found.end()) + 1, data.rfind(b"</AppendedData>")
            if not begin or end < begin:
                self.fail(
                    "an AppendedData section with a beginning and an end", "none", "The file is cut off; save it again."
                )
            self.raw = b"raw" in found.group()
            self.appended = data[begin:end]
            data = data[: found.end()] + data[end:]
        try:
            if b"<!DOCTYPE" in data:
                self.fail("plain VTK XML", "a document type declaration", "Save it again from ParaView.")
            self.root = ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            self.fail(
                "VTK XML", f"what no XML parser reads ({error})", "The file is cut off or no .vti; save it again."
            )

    def fail(self, expected: str, got: str, advice: str) -> NoReturn:
        raise ValueError(f"read_vti: expected `path` to hold {expected}, got {got} in {self.path}. {advice}") from None

    def read(self) -> ImageData:
        root = self.root
        kind = root.get("type") if root.tag == "VTKFile" else f"<{root.tag}>"
        image = root.find("ImageData")
        if kind != "ImageData" or image is None:
            self.fail("VTK ImageData", str(kind), "Resample it to an image in ParaView, then save it as .vti.")
        order = root.get("byte_order", "LittleEndian")
        header = root.get("header_type", "UInt32")
        compressor = root.get("compressor", "")
        if order not in ("LittleEndian", "BigEndian") or header not in ("UInt32", "UInt64"):
            self.fail("a known byte_order and header_type", f"{order}, {header}", "Save it again from ParaView.")
        if compressor and compressor not in OPENERS:
            self.fail("zlib, lzma or no compression", compressor, "Choose zlib when you save it from ParaView.")
        self.order = "<" if order == "LittleEndian" else ">"
        self.header = np.dtype(self.order + ("u4" if header == "UInt32" else "u8"))
        self.open = OPENERS.get(compressor)
        pieces = image.findall("Piece")
        if len(pieces) != 1 or pieces[0].get("Extent", "").split() != image.get("WholeExtent", "").split():
            self.fail(
                "one piece of the whole extent", f"{len(pieces)} pieces", "Merge them in ParaView and save again."
            )
        direction = self.numbers(image, "Direction", "1 0 0 0 1 0 0 0 1", 9)
        if not np.array_equal(direction, np.eye(3).reshape(-1)):
            self.fail("axes along x, y, z", f"Direction {direction.tolist()}", "Resample it without a rotation.")
        extent = self.numbers(image, "WholeExtent", "", 6)
        cells = (extent[1::2] - extent[::2]).astype(int)  # x, y, z
        if (cells < 0).any() or not cells[:2].all():
            self.fail(
                "a grid with elements along x and y", f"the extent {extent.tolist()}", "Give it in the x-y plane."
            )
        found = {}
        for section, counts in (("CellData", np.maximum(cells, 1)), ("PointData", cells + 1)):
            arrays = pieces[0].findall(f"{section}/DataArray")
            found[section] = {a.get("Name", ""): self.shaped(a, counts, bool(cells[2])) for a in arrays}
        sections = [pieces[0].find(section) for section in found]
        return ImageData(
            shape=tuple(int(n) for n in (cells[::-1] if cells[2] else cells[1::-1])),
            cell_data=found["CellData"],
            point_data=found["PointData"],
            scalars=next((s.get("Scalars", "") for s in sections if s is not None and s.get("Scalars")), ""),
            spacing=tuple(self.numbers(image, "Spacing", "1 1 1", 3).tolist()),
            origin=tuple(self.numbers(image, "Origin", "0 0 0", 3).tolist()),
        )

    def numbers(self, node: ElementTree.Element, name: str, default: str, count: int) -> np.ndarray:
        words = node.get(name, default).split()
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            self.fail(f"{count} numbers as {name}", repr(node.get(name)), "Save it again from ParaView.")
        return values

    def shaped(self, node: ElementTree.Element, counts: np.ndarray, solid: bool) -> np.ndarray:
        name, components = node.get("Name", ""), int(node.get("NumberOfComponents") or 1)
        if node.get("type") not in TYPES:
            self.fail(f"a numeric array {name!r}", str(node.get("type")), "Remove that array.")
        dtype = np.dtype(self.order + TYPES[node.get("type", "")])
        values = self.values(node, name, dtype)
        wanted = int(counts.prod()) * components
        if values.size != wanted:
            self.fail(f"{wanted} values of {name!r}", str(values.size), "The file is damaged; save it again.")
        shape = counts[::-1].tolist() if solid else counts[1::-1].tolist()
        values = values.astype(dtype.newbyteorder("=")).reshape([*shape, components] if components > 1 else shape)
        return values if solid else np.ascontiguousarray(values[::-1])

    def values(self, node: ElementTree.Element, name: str, dtype: np.dtype) -> np.ndarray:
        """The array as a flat one, from wherever it is."""
        form, text = node.get("format", "ascii"), (node.text or "").encode()
        try:
            if form == "ascii":
                return np.array(text.split(), dtype=np.float64 if dtype.kind == "f" else np.int64).astype(dtype)
            if form == "binary":
                data = self.unpack(_Base64(b"".join(text.split())))
            elif form == "appended":
                offset = int(node.get("offset", ""))
                if not 0 <= offset < len(self.appended):
                    self.fail(
                        f"{name!r} inside the appended data", f"offset {offset}", "The file is cut off; save it again."
                    )
                rest = self.appended[offset:]
                data = self.unpack(_Raw(rest) if self.raw else _Base64(rest))
            else:
                self.fail(f"{name!r} as ascii, binary or appended", form, "Save it again from ParaView.")
            return np.frombuffer(data, dtype)
        except (ValueError, OverflowError, zlib.error, lzma.LZMAError, binascii.Error) as error:
            if str(error).startswith("read_vti:"):
                raise
            self.fail(
                f"the numbers of {name!r}", f"{type(error).__name__} ({error})", "The file is damaged; save it again."
            )

    def unpack(self, source: _Raw | _Base64) -> bytes:
        """Data behind a header: their size, or for compressed ones the number and sizes of blocks."""
        size = self.header.itemsize
        if self.open is None:
            (length,) = np.frombuffer(source.head(size), self.header)
            return source.after(size, int(length))
        (count,) = np.frombuffer(source.head(size), self.header)
        if not count:
            return b""
        full = size * (3 + int(count))
        sizes = np.frombuffer(source.head(full), self.header).astype(np.int64)
        ends = np.cumsum(sizes[3:])
        packed = source.after(full, int(ends[-1]))
        return b"".join(self.open(packed[end - n : end]) for end, n in zip(ends, sizes[3:], strict=True))


class _Raw:
    """Bytes as they are."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def head(self, size: int) -> bytes:
        return self.exactly(0, size)

    def after(self, header: int, size: int) -> bytes:
        return self.exactly(header, size)

    def exactly(self, start: int, size: int) -> bytes:
        if start + size > len(self.data):
            raise ValueError(f"{start + size} bytes announced, {len(self.data)} there")
        return self.data[start : start + size]


class _Base64:
    """Base64 whose header is encoded by itself, or together with what follows."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def head(self, size: int) -> bytes:
        return self.decode(0, size)[:size]

    def after(self, header: int, size: int) -> bytes:
        length = 4 * -(-header // 3)
        # VTK encodes headers of blocks by themselves, header and data of plain arrays together. The former end in
        # padding, or between two groups, where both ways look the same.
        if header % 3 == 0 or self.text[length - 1 : length] == b"=":
            return self.decode(length, size)
        return self.decode(0, header + size)[header:]

    def decode(self, start: int, size: int) -> bytes:
        text = self.text[start : start + 4 * -(-size // 3)]
        data = base64.b64decode(text, validate=True)
        if len(data) < size:
            raise ValueError(f"{size} bytes announced, {len(data)} there")
        return data[:size]
