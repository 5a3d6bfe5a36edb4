"""Closed surfaces of densities: marching cubes on the centres of elements, capped at the domain's boundary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.export.cubes import EDGES, triangle_table
from sciopt.domains.topology.export.fields import as_density, world_axes

__all__ = ["Surface", "isosurface", "matching_level"]

RIM = 0.05  # bevel of the domain's edges, in element sides
NEAREST = 0.02  # a vertex keeps this share of its edge away from the ends, so that no two coincide


@final
@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles with shared vertices, counter-clockwise seen from outside.

    Args:
        vertices: ``(V, 3)``, x, y, z in lengths.
        triangles: ``(T, 3)`` numbers of vertices.

    Example:
        >>> box = isosurface(np.ones((2, 3, 4)))
        >>> box.check("box")
        >>> box.bounds.tolist(), abs(box.volume / 24 - 1) < 1e-2
        ([[0.0, 0.0, 0.0], [4.0, 3.0, 2.0]], True)
    """

    vertices: np.ndarray
    triangles: np.ndarray

    @property
    def corners(self) -> np.ndarray:
        """Positions of each triangle's vertices, ``(T, 3, 3)``."""
        return self.vertices[self.triangles]

    @cached_property
    def face_vectors(self) -> np.ndarray:
        """Outward normals with the length of twice the area, ``(T, 3)``."""
        a, b, c = (self.vertices[self.triangles[:, k]] for k in range(3))
        return np.cross(b - a, c - a)

    @property
    def volume(self) -> float:
        """Enclosed volume, positive for a closed surface that faces outwards."""
        if not len(self.triangles):
            return 0.0
        centre = self.vertices.mean(0)  # a near origin, for rounding
        return float(np.einsum("ij,ij->", self.vertices[self.triangles[:, 0]] - centre, self.face_vectors) / 6)

    @property
    def area(self) -> float:
        """Total area."""
        return float(np.linalg.norm(self.face_vectors, axis=1).sum() / 2)

    @property
    def bounds(self) -> np.ndarray:
        """Least and greatest coordinates, ``(2, 3)``."""
        return np.stack([self.vertices.min(0), self.vertices.max(0)])

    def check(self, owner: str = "Surface") -> None:
        """Raise unless every edge joins exactly two triangles that run along it in opposite directions.

        Raises:
            ValueError: with the number of edges that do not, or for a surface that is empty or faces inwards.
        """
        if not len(self.triangles):
            raise ValueError(f"{owner}: expected a surface with triangles, got none. Lower the `level`.")
        count = np.int64(len(self.vertices))
        start = self.triangles.astype(np.int64)
        end = np.roll(start, -1, axis=1)
        ahead = np.sort((start * count + end).ravel())
        back = np.sort((end * count + start).ravel())
        repeated = int((ahead[1:] == ahead[:-1]).sum())
        loose = int(np.setdiff1d(ahead, back, assume_unique=repeated == 0).size)
        if repeated or loose or bool((start == end).any()):
            raise ValueError(
                f"{owner}: expected a closed surface, got {loose} `triangles` edges without a partner and {repeated} used "
                "twice in one direction. Repair the mesh, or export it anew."
            )
        if self.volume <= 0:
            raise ValueError(
                f"{owner}: expected `triangles` that face outwards, got the volume {self.volume:g}. Turn them around."
            )


def isosurface(density: Any, *, level: float = 0.5, spacing: float = 1.0, thickness: float | None = None) -> Surface:
    """The closed surface around everything denser than ``level``.

    The density lives in the centres of elements and is trilinear between them. Where material touches the boundary of the
    domain the surface lies in that boundary, so that parts stand flat where they are held. Every centre of an element
    denser than ``level`` is inside, every other outside. Corners that only touch are kept apart, the surface is a manifold
    for any density. A million elements take about a second.

    Args:
        density: ``(nz, ny, nx)`` in [0, 1], z up, index 0 at the bottom; or a 2D design ``(ny, nx)``, row 0 on top,
            which is extruded. Tensor or array.
        level: the density at the surface, strictly between 0 and 1.
        spacing: side of an element, in lengths.
        thickness: of an extruded 2D design, in lengths; a tenth of its longer side by default.

    Raises:
        ValueError: for bad densities and options, and when nothing is denser than ``level``.

    Example:
        >>> ball = np.linalg.norm(np.mgrid[-8:8, -8:8, -8:8] + 0.5, axis=0)
        >>> surface = isosurface(np.clip(6.5 - ball, 0, 1))
        >>> abs(surface.volume / (4 / 3 * np.pi * 6**3) - 1) < 0.02
        True

    References:
        Lorensen, Cline. "Marching cubes: a high resolution 3D surface construction algorithm". SIGGRAPH, 1987.
    """
    field = _options("isosurface", density, level, spacing)
    if field.ndim == 2:
        check_option(
            "isosurface",
            "thickness",
            thickness,
            thickness is None or 0 < thickness < float("inf"),
            "> 0",
            "Leave it out for a tenth of the longer side.",
        )
        depth = max(field.shape) / 10 if thickness is None else thickness / spacing
        field = np.ascontiguousarray(world_axes(field))[None]
        lengths = (depth, *field.shape[1:])
    else:
        if thickness is not None:
            raise ValueError(
                f"isosurface: expected `thickness` for a 2D design alone, got {thickness} with the shape {field.shape}. "
                "Leave it out."
            )
        lengths = field.shape
    if not (field > level).any():
        raise ValueError(
            f"isosurface: expected a `density` above the level {level:g} somewhere, got at most {field.max():g}. "
            "Lower the `level`."
        )
    padded = field
    coordinates = []
    for axis in range(3):
        padded = _cap(padded, axis, level)
        size, n = float(lengths[axis]), field.shape[axis]
        inner = (np.arange(n) + 0.5) * (size / n)
        rim = min(RIM, inner[0] / 2)
        coordinates.append(np.concatenate([[-rim, rim], inner, [size - rim, size + rim]]) * spacing)
    return _march(padded, coordinates, level)


def matching_level(density: Any, *, rtol: float = 1e-3, max_steps: int = 20) -> float:
    """The level whose surface encloses as much as the density adds up to, found by bisection.

    Use it where grey elements matter: ``isosurface(density, level=matching_level(density))`` has the mass of the design.

    Args:
        density: as for `isosurface`.
        rtol: relative difference of the volumes to stop at; black and white designs may not get there.
        max_steps: largest number of surfaces that are made.

    Example:
        >>> density = np.tile(np.linspace(0, 1, 20), (8, 8, 1))
        >>> level = matching_level(density)
        >>> abs(isosurface(density, level=level).volume / float(density.sum()) - 1) < 1e-3
        True
    """
    field = _options("matching_level", density, 0.5, 1.0)
    wanted = field.sum()
    low, high = 0.0, float(field.max())
    if wanted <= 0:
        raise ValueError("matching_level: expected a `density` above zero somewhere, got none. There is no surface.")
    best, error = 0.5 * high, np.inf
    for _ in range(max_steps):
        level = 0.5 * (low + high)
        volume = isosurface(field, level=level, thickness=1.0 if field.ndim == 2 else None).volume
        low, high = (level, high) if volume > wanted else (low, level)
        if abs(volume / wanted - 1) < error:
            best, error = level, abs(volume / wanted - 1)
        if error <= rtol:
            break
    return best


def _options(owner: str, density: Any, level: float, spacing: float) -> np.ndarray:
    field = as_density(owner, density)
    check_option(owner, "level", level, 0 < level < 1, "in (0, 1)", "0.5 is between void and solid.")
    check_option(owner, "spacing", spacing, 0 < spacing < float("inf"), "> 0", "Give the side of an element.")
    return field


def _cap(field: np.ndarray, axis: int, level: float) -> np.ndarray:
    """Two more layers at both ends of an axis: the last one again, and its mirror image about the level."""
    layers = []
    for end in (0, -1):
        last = np.take(field, [end], axis=axis)
        layers.append((last, np.where(last > level, 2 * level - last, last)))
    return np.concatenate([layers[0][1], layers[0][0], field, layers[1][0], layers[1][1]], axis=axis)


def _march(values: np.ndarray, coordinates: list[np.ndarray], level: float) -> Surface:
    """Marching cubes on a rectilinear grid ``values (nz, ny, nx)``; all values on the outside are below the level."""
    inside = values > level
    shape = values.shape
    strides = (shape[1] * shape[2], shape[2], 1)  # of z, y, x
    nz, ny, nx = (n - 1 for n in shape)
    case = np.zeros((nz, ny, nx), dtype=np.uint8)
    for corner in range(8):
        x, y, z = corner & 1, corner >> 1 & 1, corner >> 2
        case |= inside[z : z + nz, y : y + ny, x : x + nx].view(np.uint8) << corner
    cells = np.flatnonzero((case != 0) & (case != 255))
    kind = case.reshape(-1)[cells]
    first = np.ravel_multi_index(np.unravel_index(cells, case.shape), shape)

    # One vertex on every cut edge, numbered over the three axes in turn.
    flat = values.reshape(-1)
    number = np.full((3, flat.size), -1, dtype=np.int32)
    vertices = []
    total = 0
    for axis in range(3):  # x, y, z
        along = 2 - axis
        low, high = (inside.take(range(s, s + shape[along] - 1), axis=along) for s in (0, 1))
        where = np.nonzero(low != high)
        start = np.ravel_multi_index(where, shape)
        a, b = flat[start], flat[start + strides[along]]
        t = np.clip((level - a) / (b - a), NEAREST, 1 - NEAREST)
        position = np.stack([coordinates[2 - k][where[2 - k]] for k in range(3)], axis=-1)
        position[:, axis] += t * np.diff(coordinates[along])[where[along]]
        number[axis, start] = np.arange(total, total + start.size)
        vertices.append(position)
        total += start.size

    table, count = triangle_table()
    edge_axis = np.array([axis for axis, _ in EDGES])
    edge_step = np.array([(c & 1) + (c >> 1 & 1) * strides[1] + (c >> 2) * strides[0] for _, c in EDGES])
    cell = np.repeat(np.arange(cells.size), count[kind])
    place = np.arange(cell.size) - np.repeat(np.cumsum(count[kind]) - count[kind], count[kind])
    edge = table[kind[cell], place]
    triangles = number[edge_axis[edge], first[cell][:, None] + edge_step[edge]]
    return Surface(np.concatenate(vertices), triangles)
