"""Pictures and animations: where things are drawn, what hides what, and that files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sciopt.domains.topology import Grid
from sciopt.domains.topology.export import (
    Camera,
    FrameStore,
    Surface,
    draw_isosurface,
    isosurface,
    render,
    write_animation,
)
from sciopt.domains.topology.presets import cantilever_3d
from sciopt.domains.topology.voxels import covered

FRONT = Camera(azimuth=-90, elevation=0)


def test_adjoining_triangles_cover_every_point_once() -> None:
    """Corners and sides through points of the raster are the hard ones."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(9), np.arange(7))
    nodes = np.stack([x, y], axis=-1) + rng.choice([0.0, 0.5, 0.25], (7, 9, 2))
    a, b, c, d = nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, 1:], nodes[1:, :-1]
    triangles = np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 2), np.stack([a, c, d], 2).reshape(-1, 3, 2)])
    count = np.zeros((12, 12), dtype=int)
    for _, i, j in covered(triangles, 12, 12):
        np.add.at(count, (j, i), 1)
    assert count[1:6, 1:8].min() == count.max() == 1


def test_the_camera_is_a_rotation() -> None:
    for camera in (Camera(), FRONT, Camera(azimuth=77, elevation=-20)):
        np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-15)
        assert np.linalg.det(camera.axes) == pytest.approx(1)


def test_a_box_seen_from_the_front_fills_its_window() -> None:
    density = np.zeros((4, 2, 6))
    density[2:, :, :3] = 1  # the upper left
    image, depth = render(isosurface(density), FRONT, (0, 6, 0, 4), 60)
    assert image.shape == (40, 60, 4)
    solid = image[..., 3] > 0.5
    assert solid[1:14, 1:24].all() and not solid[21:].any() and not solid[:, 31:].any()
    np.testing.assert_allclose(depth[2:14, 2:24], 0, atol=0.05)  # the front is y = 0
    assert np.isneginf(depth[30, 30]) and image[..., :3].min() >= 0 and image.max() <= 1


def test_what_is_nearer_hides_what_is_behind() -> None:
    density = np.zeros((4, 4, 4))
    density[:, 3, :] = 1
    density[1:3, 0, 1:3] = 1
    _, depth = render(isosurface(density), FRONT, (0, 4, 0, 4), 40)
    assert depth[20, 20] == pytest.approx(0, abs=0.05) and depth[3, 3] == pytest.approx(-3, abs=0.05)
    _, depth = render(isosurface(density), Camera(azimuth=90, elevation=0), (-4, 0, 0, 4), 40)
    assert depth[20, 20] == pytest.approx(4, abs=0.05)  # from behind the wall hides the block


def test_light_comes_from_above_and_casts_shadows() -> None:
    density = np.zeros((8, 8, 8))
    density[0] = 1
    camera = Camera(azimuth=-90, elevation=60)
    free, _ = render(isosurface(density), camera, (-1, 9, -1, 9), 80)
    density[5:7, 2:6, 2:6] = 1  # a block that floats over the floor
    under, depth = render(isosurface(density), camera, (-1, 9, -1, 9), 80)
    floor = np.isfinite(depth) & (np.abs(free[..., 3] - 1) < 1e-9)
    same = floor & (np.abs(under[..., :3] - free[..., :3]).max(-1) < 0.03)
    darker = floor & (under[..., :3].sum(-1) < 0.8 * free[..., :3].sum(-1))
    assert same.sum() > 200 and darker.sum() > 100


def test_pictures_are_written_whole_with_all_marks(tmp_path: Path) -> None:
    grid = Grid(nx=8, ny=4, nz=4)
    path = draw_isosurface(
        tmp_path / "a.png", np.full(grid.shape, 0.3), cantilever_3d(grid), title="grey start", width=3.0
    )
    with Image.open(path) as picture:
        assert picture.size[0] == 390
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80)
    body = (pixels[..., 2] > pixels[..., 0] + 20) & (pixels[..., 0] > 40)
    assert red.sum() > 100 and body.mean() > 0.1
    rows, columns = np.nonzero(red)
    assert columns.mean() > 0.6 * picture.size[0]  # the load is at the right end
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="expected `path` in a folder that exists"):
        draw_isosurface(tmp_path / "none" / "a.png", np.ones((2, 2, 2)))
    with pytest.raises(ValueError):
        draw_isosurface(tmp_path / "a.unknown", np.ones((2, 2, 2)), width=1.0)
    assert list(tmp_path.iterdir()) == [path]


def test_flat_designs_and_surfaces_have_pictures_too(tmp_path: Path) -> None:
    for design in (np.eye(4), Surface(*vars_of(isosurface(np.ones((2, 2, 2)))))):
        assert draw_isosurface(tmp_path / "a.png", design, width=2.0).read_bytes().startswith(b"\x89PNG")


def vars_of(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    return surface.vertices, surface.triangles


@pytest.mark.parametrize("ndim", [2, 3])
def test_animations_show_each_frame_and_rest_on_the_last(ndim: int, tmp_path: Path) -> None:
    shape = (3, 4, 6)[3 - ndim :]
    frames = [np.zeros(shape), np.full(shape, 0.5), np.ones(shape)]
    frames[1][..., :3] = 0
    path = write_animation(tmp_path / "a.gif", frames, titles=["a", "b", "c"], fps=10)
    seen, times = [], []
    with Image.open(path) as movie:
        assert movie.n_frames == 3 and movie.info["loop"] == 0  # type: ignore[attr-defined]
        for k in range(3):
            movie.seek(k)
            times.append(movie.info["duration"])
            seen.append(np.asarray(movie.convert("L")).astype(float))
    assert times == [100, 100, 1500] and len({each.shape for each in seen}) == 1
    if ndim == 2:
        middle = [each[each.shape[0] // 2 + 10] for each in seen]
        assert middle[0][100] > 250 and middle[1][100] > 250 and 100 < middle[1][-100] < 150 and middle[2][100] < 5
    else:
        assert (seen[1] != seen[2]).mean() > 0.05


def test_a_store_keeps_a_bounded_even_choice() -> None:
    for count in (1, 5, 6, 7, 100, 1001):
        store = FrameStore(limit=6)
        for step in range(count):
            store.add(np.full((2, 3), step / 1001))
        steps = store.steps
        assert steps[0] == 0 and steps[-1] == count - 1 and len(steps) == len(store.frames) <= 6
        assert len(set(np.diff(steps[:-1]).tolist())) <= 1 and len(steps) >= min(count, 3)
        np.testing.assert_allclose([frame[0, 0] for frame in store.frames], np.array(steps) / 1001, atol=0.002)
    assert FrameStore().frames == []


def test_bad_animations_are_refused(tmp_path: Path) -> None:
    path, one = tmp_path / "a.gif", np.ones((2, 2))
    cases: list[tuple[list, dict[str, Any], str]] = [
        ([], {}, r"`frames` of one shape, got \[\]"),
        ([one, np.ones((2, 3))], {}, r"`frames` of one shape, got \[\(2, 2\), \(2, 3\)\]"),
        ([one], {"titles": []}, "one of `titles` per frame, got 0 for 1"),
        ([one], {"fps": 0.0}, "`fps` in"),
        ([one * 2], {}, r"`density` in \[0, 1\]"),
    ]
    for frames, options, message in cases:
        with pytest.raises(ValueError, match=message):
            write_animation(path, frames, **options)
    with pytest.raises(ValueError, match="to end in .gif"):
        write_animation(tmp_path / "a.mp4", [one])
    with pytest.raises(ValueError, match="FrameStore: expected `limit`"):
        FrameStore(limit=5)
    assert not list(tmp_path.iterdir())
