"""VTK files: those VTK itself wrote are read, ours hold what the format asks for, broken ones are named."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from sciopt.domains.topology.export import read_vti, write_vti, write_vtu

WRITTEN_BY_VTK = Path(__file__).parent / "vtk_files"  # by VTK 9.7, one for each way to store numbers
DTYPES = {"Float32": "<f4", "Float64": "<f8", "Int64": "<i8", "UInt8": "u1", "Int32": "<i4"}


@pytest.mark.parametrize(
    "name",
    ["ascii", "binary", "binary_zlib", "raw", "raw_zlib", "base64", "base64_lzma", "big_endian", "flat"],
)
def test_files_of_vtk_are_read(name: str) -> None:
    image = read_vti(WRITTEN_BY_VTK / f"{name}.vti")
    shape = (3, 4) if name == "flat" else (2, 3, 4)
    assert image.shape == shape and image.scalars == "density"
    assert image.spacing == (0.5, 0.5, 0.5) and image.origin == (1.0, 2.0, 3.0)
    upright = (lambda field: field[::-1]) if name == "flat" else (lambda field: field)
    count = int(np.prod(shape))
    np.testing.assert_array_equal(upright(image.cell_data["density"]).reshape(-1), np.arange(count) / count)
    np.testing.assert_array_equal(upright(image.cell_data["part"]).reshape(-1), np.arange(count))
    assert image.cell_data["part"].dtype == np.uint8 and image.point_data["move"].dtype == np.float32
    nodes = tuple(n + 1 for n in shape)
    assert image.point_data["move"].shape == (*nodes, 3)
    move = upright(image.point_data["move"]).reshape(-1)
    np.testing.assert_array_equal(move, np.arange(3 * np.prod(nodes)) * 0.25)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (1, 1, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fields_come_back_to_the_bit(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    density = rng.random(shape).astype(dtype)
    nodes = tuple(n + 1 for n in shape)
    move, part = rng.standard_normal((*nodes, len(shape))), rng.integers(0, 9, shape)
    path = write_vti(
        tmp_path / "a.vti",
        torch.from_numpy(density),
        spacing=0.1,
        cell_data={'part <1> & "2"': part, "mask": density > 0.5},
        point_data={"move": move},
    )
    back = read_vti(path)
    assert back.shape == shape and back.spacing == (0.1, 0.1, 0.1) and list(tmp_path.iterdir()) == [path]
    assert back.cell_data["density"].dtype == dtype
    np.testing.assert_array_equal(back.cell_data["density"], density)
    np.testing.assert_array_equal(back.cell_data['part <1> & "2"'], part)
    np.testing.assert_array_equal(back.cell_data["mask"], density > 0.5)
    np.testing.assert_array_equal(back.point_data["move"][..., : len(shape)], move)
    assert back.point_data["move"].shape[-1] == 3


def test_fields_of_several_blocks(tmp_path: Path) -> None:
    density = np.random.default_rng(0).random((1, 400, 500))
    np.testing.assert_array_equal(read_vti(write_vti(tmp_path / "a.vti", density)).cell_data["density"], density)


def strict_vtu(path: Path) -> tuple[dict[str, str], dict[str, dict[str, np.ndarray]]]:
    """Read an unstructured grid by the letter of the format, sharing nothing with the package."""
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "VTKFile" and root.attrib == {
        "type": "UnstructuredGrid",
        "version": "1.0",
        "byte_order": "LittleEndian",
        "header_type": "UInt64",
        "compressor": "vtkZLibDataCompressor",
    }
    grid, appended = root
    assert grid.tag == "UnstructuredGrid" and appended.attrib == {"encoding": "base64"}
    text = (appended.text or "").strip()
    assert text[0] == "_"
    (piece,) = grid
    assert [section.tag for section in piece] == ["PointData", "CellData", "Points", "Cells"]
    found: dict[str, dict[str, np.ndarray]] = {}
    end = 1
    for section in piece:
        found[section.tag] = {}
        for array in section:
            assert array.tag == "DataArray" and array.get("format") == "appended"
            at = int(array.attrib["offset"]) + 1
            assert at == end  # nothing between, nothing twice
            count = int.from_bytes(base64.b64decode(text[at : at + 12])[:8], "little")
            length = 4 * -(-8 * (3 + count) // 3)
            header = np.frombuffer(base64.b64decode(text[at : at + length], validate=True), "<u8").tolist()
            packed = sum(header[3:])
            end = at + length + 4 * -(-packed // 3)
            data = base64.b64decode(text[at + length : end], validate=True)
            plain, start = b"", 0
            for k, size in enumerate(header[3:]):
                block = zlib.decompress(data[start : start + size])
                assert len(block) == (header[2] if k == count - 1 and header[2] else header[1])
                plain, start = plain + block, start + size
            values = np.frombuffer(plain, DTYPES[array.attrib["type"]])
            components = int(array.get("NumberOfComponents", 1))
            found[section.tag][array.attrib["Name"]] = values.reshape(-1, components) if components > 1 else values
    assert end == len(text)
    return dict(piece.attrib), found


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4)])
def test_unstructured_meshes_hold_the_solid_elements(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    density, ndim = rng.random(shape), len(shape)
    density.flat[0] = 1
    nodes = np.stack(np.meshgrid(*[np.arange(n + 1.0) for n in shape], indexing="ij")[::-1], axis=-1)  # x, y (, z)
    if ndim == 2:
        nodes[..., 1] = shape[0] - nodes[..., 1]  # row 0 on top
    path = write_vtu(tmp_path / "a.vtu", density, spacing=0.5, point_data={"where": nodes})
    sizes, found = strict_vtu(path)
    count = int((density > 0.5).sum())
    points, cells = found["Points"]["Points"], found["Cells"]
    assert sizes == {"NumberOfPoints": str(len(points)), "NumberOfCells": str(count)}
    assert (cells["types"] == (12 if ndim == 3 else 9)).all() and len(cells["types"]) == count
    corners = cells["connectivity"].reshape(count, 2**ndim)
    np.testing.assert_array_equal(cells["offsets"], np.arange(1, count + 1) * 2**ndim)
    assert set(corners.ravel().tolist()) == set(range(len(points)))  # no node without an element
    np.testing.assert_allclose(found["PointData"]["where"][:, :ndim] * 0.5, points[:, :ndim])
    p = points[corners]
    np.testing.assert_allclose(np.cross(p[:, 1] - p[:, 0], p[:, 3] - p[:, 0]), [[0, 0, 0.25]] * count)  # right-handed
    np.testing.assert_allclose(p[:, 2] - p[:, 3], p[:, 1] - p[:, 0])
    if ndim == 3:
        np.testing.assert_allclose(p[:, 4:] - p[:, :4], np.broadcast_to([0, 0, 0.5], (count, 4, 3)))
    index = (p.mean(1)[:, :ndim] * 2 - 0.5).round().astype(int).T[::-1]
    if ndim == 2:
        index[0] = shape[0] - 1 - index[0]
    np.testing.assert_array_equal(found["CellData"]["density"], density[tuple(index)])
    assert (
        len(strict_vtu(write_vtu(tmp_path / "b.vtu", density, threshold=-1.0))[1]["Points"]["Points"])
        == nodes[..., 0].size
    )


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_an_independent_reader_sees_the_same_mesh(shape: tuple[int, ...], tmp_path: Path) -> None:
    import meshio  # reads no .vti; note that it ends the process on files it cannot read

    density = np.random.default_rng(0).random(shape)
    mesh: Any = meshio.read(write_vtu(tmp_path / "a.vtu", density, cell_data={"twice": 2 * density}))
    (block,) = mesh.cells
    assert block.type == ("hexahedron" if len(shape) == 3 else "quad")
    upright = density if len(shape) == 3 else density[::-1]
    where = np.argwhere(upright > 0.5)
    np.testing.assert_allclose(mesh.points[block.data].mean(1)[:, : len(shape)], where[:, ::-1] + 0.5)
    np.testing.assert_array_equal(mesh.cell_data["density"][0], upright[upright > 0.5])
    np.testing.assert_array_equal(mesh.cell_data["twice"][0], 2 * upright[upright > 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell_data": {"a": np.ones((2, 2))}}, r"`cell_data\['a'\]` of shape \(2, 3\) or with components after it"),
        ({"point_data": {"a": np.ones((2, 3))}}, r"`point_data\['a'\]` of shape \(3, 4\).*one value per node"),
        ({"cell_data": {"density": np.ones((2, 3))}}, "expected other names in `cell_data` than density"),
        ({"cell_data": {"a": np.ones((2, 3), dtype=complex)}}, "of one of Float32"),
        ({"spacing": -1.0}, "expected `spacing` > 0"),
    ],
)
def test_bad_fields(options: dict, message: str, tmp_path: Path) -> None:
    for write in (write_vti, write_vtu):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "a.vti", np.ones((2, 3)), **options)
    with pytest.raises(ValueError, match="write_vtu: expected a `density` above the threshold"):
        write_vtu(tmp_path / "a.vtu", np.zeros((2, 3)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["ascii", "binary", "binary_zlib", "raw", "raw_zlib", "base64", "base64_lzma"])
def test_a_cut_or_damaged_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    """At every length, and with bytes replaced, a file either reads or is refused by name; nothing else is raised."""
    data = (WRITTEN_BY_VTK / f"{name}.vti").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "a.vti"
    for length in range(0, len(data) - 12, 41):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="^read_vti: expected `path` to hold"):
            read_vti(path)
    for _ in range(60):
        bad = bytearray(data)
        bad[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(bad)
        try:
            read_vti(path)
        except ValueError as error:
            assert str(error).startswith("read_vti: expected")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vtkLZ4", "vtkLZ4", "zlib, lzma or no compression, got vtkLZ4DataCompressor"),
        ('type="ImageData"', 'type="PolyData"', "VTK ImageData, got PolyData"),
        ('Extent="0 4 0 3 0 2" O', 'Extent="0 4 0 3 0 9" O', "one piece of the whole extent"),
        ('Extent="0 4', 'Extent="0 -4', "elements along x and y"),
        ('Extent="0 4', 'Extent="0 5', "expected `path` to hold 30 values of 'density', got 24"),
        ('Spacing="0.5', 'Spacing="wide', "3 numbers as Spacing"),
        ('Direction="1', 'Direction="-1', "axes along x, y, z"),
        ('type="Float64"', 'type="String"', "a numeric array 'density', got String"),
        ('byte_order="', 'byte_order="x', "a known byte_order"),
        ("<VTKFile", "<!DOCTYPE a><VTKFile", "a document type declaration"),
        ("0.5 ", "half ", "the numbers of 'density', got ValueError"),
    ],
)
def test_what_is_not_understood_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    name = "lz4" if old == new else "ascii"
    text = (WRITTEN_BY_VTK / f"{name}.vti").read_text(encoding="latin1")
    assert old in text
    (tmp_path / "a.vti").write_text(text.replace(old, new), encoding="latin1")
    with pytest.raises(ValueError, match=message):
        read_vti(tmp_path / "a.vti")
