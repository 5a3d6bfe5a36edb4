"""Surfaces are closed for any density, agree with it everywhere, and survive the way through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciopt.domains.topology.export import Surface, isosurface, matching_level, read_stl, write_stl
from sciopt.domains.topology.export.cubes import EDGES, triangle_table
from sciopt.domains.topology.voxels import voxelize


def random_density(seed: int, kind: str, ndim: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, ndim))
    field = {
        "grey": rng.random(shape),
        "black and white": rng.integers(0, 2, shape).astype(float),
        "at the level": rng.choice([0.0, 0.5, np.nextafter(0.5, 1), 1.0], shape),
    }[kind]
    field.flat[0] = 1.0
    return field


def gyroid(n: int) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.linspace(0, 2 * np.pi, n)] * 3, indexing="ij")
    return np.clip(0.5 + np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x), 0, 1)


def test_the_table_has_the_known_size_and_uses_every_cut_edge() -> None:
    table, count = triangle_table()
    assert count.sum() == 820 and count.max() == 5  # as in the published table
    for case in range(256):
        used = set(table[case, : count[case]].ravel().tolist())
        cut = {k for k, (axis, c) in enumerate(EDGES) if (case >> c & 1) != (case >> (c | 1 << axis) & 1)}
        assert used == cut, case


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["grey", "black and white", "at the level"]),
    ndim=st.sampled_from([2, 3]),
)
def test_any_density_gives_a_manifold_that_encloses_just_the_dense_elements(
    seed: int, kind: str, ndim: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    density = random_density(seed, kind, ndim)
    path = write_stl(tmp_path_factory.mktemp("stl") / "a.stl", density)
    surface = read_stl(path)  # joined by position: whatever coincides would show as a bad edge
    surface.check()
    assert len(surface.vertices) == len(isosurface(density).vertices)
    assert np.linalg.norm(surface.face_vectors, axis=1).min() > 1e-6
    lengths = density.shape[::-1] if ndim == 3 else (*density.shape[::-1], max(density.shape) / 10)
    assert (surface.bounds >= -1e-6).all() and (surface.bounds <= np.array(lengths) + 1e-6).all()
    built = voxelize(surface, density.shape, box=[np.zeros(3), lengths])
    np.testing.assert_array_equal(built, density > 0.5)


def test_volumes_of_known_bodies() -> None:
    full = isosurface(np.ones((5, 6, 7)), spacing=2.0)
    assert full.volume == pytest.approx(8 * 210, rel=1e-3) and full.area == pytest.approx(4 * 214, rel=0.01)
    errors = []
    for n in (8, 16, 32):
        radius = np.linalg.norm((np.mgrid[:n, :n, :n] + 0.5) / n - 0.5, axis=0)
        ball = np.clip(0.5 + n * (0.4 - radius), 0, 1)
        surface = isosurface(ball, spacing=1 / n)
        errors.append(abs(surface.volume / (4 / 3 * np.pi * 0.4**3) - 1))
    assert errors[2] < errors[0] / 8 and errors[2] < 0.01  # second order in the element size
    plate = isosurface(np.ones((4, 8)), thickness=0.5)
    assert plate.volume == pytest.approx(16, rel=5e-3)
    half = isosurface(np.repeat([[1.0, 0.0]], 2, 0).repeat(5, 1), thickness=1.0)
    assert half.volume == pytest.approx(10, rel=0.02)


def test_two_dimensional_designs_stand_upright() -> None:
    """Row 0 of an image is the top: the mass of this one is in its upper left."""
    density = np.zeros((4, 6))
    density[0, :3] = 1
    low, high = isosurface(density, spacing=0.5, thickness=2.0).bounds
    np.testing.assert_allclose(low, [0, 1.5, 0], atol=0.03)
    np.testing.assert_allclose(high, [1.5, 2.0, 2.0], atol=0.03)


def test_three_dimensional_designs_have_their_axes_in_order() -> None:
    density = np.zeros((3, 4, 5))
    density[2, 0, 1] = 1  # z, y, x
    middle = isosurface(density).bounds.mean(0)
    np.testing.assert_allclose(middle, [1.5, 0.5, 2.5], atol=0.03)


def test_the_matching_level_keeps_the_mass() -> None:
    density = gyroid(20) ** 2
    wrong = isosurface(density).volume
    right = isosurface(density, level=matching_level(density)).volume
    assert abs(right / density.sum() - 1) < 1e-3 < abs(wrong / density.sum() - 1)


def test_spans_of_dtypes_and_devices() -> None:
    field = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    single = isosurface(field.requires_grad_())
    np.testing.assert_array_equal(single.vertices, isosurface(field.detach().double().numpy()).vertices)


@pytest.mark.parametrize(
    ("density", "options", "message"),
    [
        (np.zeros((2, 2, 2)), {}, "isosurface: expected a `density` above the level 0.5 somewhere, got at most 0"),
        (np.ones(3), {}, r"`density` of shape \(ny, nx\) or \(nz, ny, nx\), got \(3,\)"),
        (np.ones((0, 3)), {}, "got \\(0, 3\\)"),
        (np.full((2, 2), np.nan), {}, r"a finite `density`, got nan in element \(0, 0\)"),
        (np.full((2, 2), 1.5), {}, r"`density` in \[0, 1\], got values from 1.5 to 1.5"),
        (np.ones((2, 2)), {"level": 1.0}, "expected `level` in"),
        (np.ones((2, 2)), {"spacing": 0.0}, "expected `spacing` > 0"),
        (np.ones((2, 2)), {"thickness": -1.0}, "expected `thickness` > 0"),
        (np.ones((2, 2, 2)), {"thickness": 1.0}, "expected `thickness` for a 2D design alone"),
    ],
)
def test_bad_densities_and_options(tmp_path: Path, density: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_stl(tmp_path / "a.stl", density, **options)
    assert not list(tmp_path.iterdir())


def test_surfaces_that_are_not_closed_are_refused(tmp_path: Path) -> None:
    box = isosurface(np.ones((2, 2, 2)))
    twice = np.concatenate([box.triangles, box.triangles + len(box.vertices)])
    cases = [
        (Surface(box.vertices, box.triangles[1:]), "3 `triangles` edges without a partner"),
        (Surface(box.vertices, np.concatenate([box.triangles, box.triangles[:1]])), "3 used twice"),
        (Surface(box.vertices, box.triangles[:, ::-1]), "expected `triangles` that face outwards"),
        (Surface(box.vertices, box.triangles[:0]), "expected a surface with triangles"),
        (Surface(np.tile(box.vertices, (2, 1)), twice), "differ in float32"),
    ]
    for surface, message in cases:
        with pytest.raises(ValueError, match=message):
            write_stl(tmp_path / "a.stl", surface)
    with pytest.raises(ValueError, match="got an odd number of crossings"):
        voxelize(Surface(box.vertices, box.triangles[len(box.triangles) // 2 :]), (8, 8, 8), box=[[0] * 3, [2] * 3])
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        write_stl(tmp_path / "none" / "a.stl", box)


def test_a_binary_file_has_the_layout_of_the_format(tmp_path: Path) -> None:
    surface = isosurface(gyroid(8))
    data = write_stl(tmp_path / "a.stl", surface).read_bytes()
    assert len(data) == 84 + 50 * len(surface.triangles) and not data.startswith(b"solid")
    values = np.frombuffer(data[84:134], "<f4", 12).reshape(4, 3)
    np.testing.assert_allclose(values[1:], surface.corners[0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(values[0]), 1, rtol=1e-6)
    assert values[0] @ surface.face_vectors[0] > 0


def test_text_files_are_read(tmp_path: Path) -> None:
    surface = isosurface(gyroid(6))
    facets = [
        "facet normal 0 0 0\n outer loop\n"
        + "".join("  vertex {:.9e} {:.9e} {:.9e}\n".format(*v) for v in corners)
        + " endloop\nendfacet\n"
        for corners in surface.corners.astype(np.float32)
    ]
    text = "solid gyroid\n" + "".join(facets) + "endsolid gyroid\n"
    (tmp_path / "a.stl").write_text(text)
    back = read_stl(tmp_path / "a.stl")
    back.check()
    assert back.volume == pytest.approx(surface.volume, rel=1e-6)
    for bad in (text[: len(text) // 2], text.replace("vertex", "vertex x", 1), text.replace("endsolid gyroid", "")):
        (tmp_path / "a.stl").write_text(bad)
        with pytest.raises(ValueError, match="read_stl: expected three vertices of three numbers in each facet"):
            read_stl(tmp_path / "a.stl")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected `path` to be an STL of 84 bytes, got 0 bytes"),
        (b"\x89PNG\r\n" + bytes(200), "The file is cut off or no STL"),
        (bytes(80) + (2).to_bytes(4, "little") + bytes(50), "of 184 bytes for 2 triangles, got 134 bytes"),
        (bytes(84), "expected `path` with triangles, got none"),
        (bytes(80) + (1).to_bytes(4, "little") + b"\xff" * 50, "expected finite positions in `path`"),
    ],
)
def test_broken_files_give_one_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.stl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_stl(tmp_path / "a.stl")


def test_voxels_of_a_box_at_any_place_and_share() -> None:
    box = isosurface(np.ones((2, 2, 2)))
    moved = Surface(box.vertices * 3.0 + [10.0, -7.0, 2.5], box.triangles)
    np.testing.assert_array_equal(voxelize(moved, (4, 4, 4)), 1)  # fills the grid by default
    wide = voxelize(moved, (4, 4, 8))
    np.testing.assert_array_equal(wide, np.broadcast_to([0, 0, 1, 1, 1, 1, 0, 0], (4, 4, 8)))  # in the middle
    np.testing.assert_array_equal(voxelize(moved, (4, 8)), wide[0])
    partial = voxelize(moved, (1, 1, 2), box=[[10, -7, 2.5], [26, -1, 8.5]], samples=8)
    np.testing.assert_allclose(partial, [[[0.75, 0.0]]])
    inward = Surface(moved.vertices, moved.triangles[:, ::-1])
    np.testing.assert_array_equal(voxelize(inward, (4, 4, 8)), wide)
    for bad in ([[0, 0, 0], [0, 1, 1]], [0, 1], [[0, 0, 0], [1, 1, np.inf]]):
        with pytest.raises(ValueError, match="voxelize: expected `box`"):
            voxelize(moved, (2, 2), box=bad)
    with pytest.raises(ValueError, match="voxelize: expected `shape`"):
        voxelize(moved, (2,))
