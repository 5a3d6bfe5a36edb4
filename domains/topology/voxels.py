"""Closed surfaces into densities, by counting how often rays cross them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.export.fields import as_numpy, world_axes
from sciopt.domains.topology.export.surface import Surface

__all__ = ["covered", "voxelize"]

PAIRS = 1 << 21  # of a triangle and a ray in one block
ASIDE = (1.3e-4, 0.9e-4)  # rays pass this far off the centres, in cells: edges of surfaces often lie on centres


def voxelize(surface: Surface, shape: tuple[int, ...], *, box: Any = None, samples: int = 1) -> np.ndarray:
    """Share of each element that lies inside a closed surface, found by ray parity.

    A point is inside if a ray from it crosses the surface an odd number of times. Rays along z through every column of
    the grid meet all triangles in vectorised blocks; a million elements and 200,000 triangles take less than a second.

    Args:
        surface: closed; its orientation does not matter.
        shape: of the result, ``(nz, ny, nx)``, z up; or ``(ny, nx)``, row 0 on top, where the surface is seen along z and
            the share is that of its thickness.
        box: the domain's least and greatest corner ``(2, 3)`` in the coordinates of the surface. By default the surface
            fills the grid as far as it can without being distorted, in the middle.
        samples: points along each axis of an element; 1 asks for the centres only, which gives zeros and ones.

    Returns:
        Densities ``shape``, float64.

    Raises:
        ValueError: for a surface with holes, with the number of rays that noticed; bad shapes and boxes.

    Example:
        >>> from sciopt.domains.topology.export import isosurface
        >>> mask = np.array([[1.0, 0, 0], [1, 1, 1]])
        >>> voxelize(isosurface(mask, thickness=1.0), (2, 3), box=[[0, 0, 0], [3, 2, 1]])
        array([[1., 0., 0.],
               [1., 1., 1.]])
    """
    ok = len(shape) in (2, 3) and all(isinstance(n, int | np.integer) and n >= 1 for n in shape)
    check_option("voxelize", "shape", tuple(shape), ok, "to be (ny, nx) or (nz, ny, nx)", "Give the elements per axis.")
    check_option("voxelize", "samples", samples, samples >= 1, ">= 1", "3 gives shares in steps of 1/27.")
    if not len(surface.triangles):
        raise ValueError("voxelize: expected a `surface` with triangles, got none. Read or export it again.")
    full = np.array([1, *shape] if len(shape) == 2 else shape)  # z, y, x
    low, high = _box(surface, full[::-1], box, flat=len(shape) == 2)
    fine = full * samples
    corners = (surface.corners - low) / (high - low) * fine[::-1]  # rays at i + 0.5
    columns = int(fine[1] * fine[2])
    crossings = np.zeros(int(fine[0] + 1) * columns, dtype=np.int32)
    for ray, height in _hits(corners, int(fine[2]), int(fine[1])):
        above = np.clip(np.ceil(height - 0.5), 0, fine[0]).astype(np.int64)  # first point that the crossing is under
        crossings += np.bincount(above * columns + ray, minlength=crossings.size).astype(np.int32)
    crossings = crossings.reshape(int(fine[0]) + 1, -1)
    odd = int((crossings.sum(0) % 2).sum())
    if odd:
        raise ValueError(
            f"voxelize: expected a closed `surface`, got an odd number of crossings on {odd} of {columns} rays. "
            "Repair the mesh; `surface.check()` says how many edges are open."
        )
    inside = (np.cumsum(crossings[:-1], axis=0) % 2).astype(np.float64)
    split = [part for n in full for part in (int(n), samples)]
    density = inside.reshape(split).mean((1, 3, 5))
    return density if len(shape) == 3 else np.ascontiguousarray(world_axes(density[0]))


def _box(surface: Surface, counts: np.ndarray, box: Any, flat: bool) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the domain, x y z."""
    if box is not None:
        corners = as_numpy(box).astype(np.float64)
        if corners.shape != (2, 3) or not np.isfinite(corners).all() or not (corners[0] < corners[1]).all():
            raise ValueError(
                f"voxelize: expected `box` as least and greatest corner, shape (2, 3), got {corners.tolist()}. "
                "Give ((x0, y0, z0), (x1, y1, z1))."
            )
        return corners[0], corners[1]
    low, high = surface.bounds
    extent = high - low
    if not (extent > 0).all():
        raise ValueError(f"voxelize: expected a `surface` around a volume, got the extents {extent.tolist()}.")
    if flat:  # only x and y have to keep their proportion
        side = np.append(np.repeat((extent[:2] / counts[:2]).max(), 2), extent[2])
    else:
        side = np.repeat((extent / counts).max(), 3)
    middle = (low + high) / 2
    return middle - side * counts / 2, middle + side * counts / 2


def _hits(corners: np.ndarray, nx: int, ny: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of rays and the heights at which they cross triangles, in blocks."""
    flat = corners[..., :2] - np.array(ASIDE)
    for which, i, j in covered(flat, nx, ny):
        a, b, c = (corners[which, k] for k in range(3))
        normal = np.cross(b - a, c - a)
        off = np.stack([i, j], axis=-1) + 0.5 - flat[which, 0]
        real = normal[:, 2] != 0
        slope = normal[real, :2] / normal[real, 2:]
        yield (j * nx + i)[real], a[real, 2] - (slope * off[real]).sum(1)


def covered(flat: np.ndarray, nx: int, ny: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Points ``(i + 0.5, j + 0.5)`` of an ``nx`` by ``ny`` raster inside flat triangles ``(T, 3, 2)``, in blocks.

    Each triangle is cut into rows, each row runs from one side of the triangle to another. Where a side meets a row is
    computed from the side's lower end, whichever triangle it belongs to, so that triangles that share a side share no
    point and leave none out. Yields numbers of triangles, i and j.
    """
    y = flat[..., 1]
    first, last = (np.clip(np.ceil(end - 0.5), 0, ny).astype(np.int64) for end in (y.min(1), y.max(1)))
    which, j = _ranges(first, last)
    height = j + 0.5
    left, right = np.full(len(j), np.inf), np.full(len(j), -np.inf)
    for k in range(3):
        a, b = flat[:, k], flat[:, (k + 1) % 3]
        turned = ((a[:, 1] > b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] > b[:, 0])))[:, None]
        a, b = np.where(turned, b, a), np.where(turned, a, b)
        rise = b[:, 1] - a[:, 1]
        slope = (b[:, 0] - a[:, 0]) / np.where(rise == 0, 1.0, rise)
        x = a[which, 0] + (height - a[which, 1]) * slope[which]
        met = (a[which, 1] <= height) & (height < b[which, 1])
        left, right = np.where(met, np.minimum(left, x), left), np.where(met, np.maximum(right, x), right)
    start, stop = (np.clip(np.ceil(end - 0.5), 0, nx) for end in (left, right))
    keep = np.flatnonzero(start < stop)
    which, j, start, stop = which[keep], j[keep], start[keep].astype(np.int64), stop[keep].astype(np.int64)
    ends = np.cumsum(stop - start)
    begin = 0
    while begin < len(which):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS, side="right")))
        row, i = _ranges(start[begin:end], stop[begin:end])
        yield which[begin:end][row], i, j[begin:end][row]
        begin = end


def _ranges(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All members of the ranges ``start[k]:stop[k]``, and the k of each."""
    count = np.maximum(stop - start, 0)
    which = np.repeat(np.arange(len(start)), count)
    before = np.cumsum(count) - count
    return which, np.arange(len(which)) + np.repeat(start - before, count)
