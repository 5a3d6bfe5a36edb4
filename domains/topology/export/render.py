"""Shaded views of closed surfaces, drawn pixel by pixel in numpy: depth buffer, smooth normals, shadows, dark crevices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from sciopt.domains.topology.export.surface import Surface
from sciopt.domains.topology.voxels import covered

__all__ = ["Camera", "render"]

SAMPLES = 2  # along each side of a pixel
CREASE = np.cos(np.deg2rad(42))  # triangles that differ more from their corners' normal are shown flat
LIGHT = np.array([-0.45, 0.55, 0.75])  # towards the light: to the left of the camera, above, behind it


@final
@dataclass(frozen=True, kw_only=True)
class Camera:
    """A parallel projection.

    Args:
        azimuth: direction of the camera around z, in degrees from x.
        elevation: its height above the horizon, in degrees.

    Example:
        >>> Camera(azimuth=-90, elevation=0).project(np.array([[1.0, 2.0, 3.0]])).round(6)  # from the front
        array([[ 1.,  3., -2.]])
    """

    azimuth: float = -60.0
    elevation: float = 24.0

    @property
    def axes(self) -> np.ndarray:
        """Rows: to the right, upwards, towards the camera."""
        a, e = np.deg2rad([self.azimuth, self.elevation])
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        nearer = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        return np.stack([right, np.cross(nearer, right), nearer])

    def project(self, positions: np.ndarray) -> np.ndarray:
        """Positions ``(..., 3)`` to the right, upwards and towards the camera, in lengths."""
        return positions @ self.axes.T


def render(
    surface: Surface,
    camera: Camera,
    window: tuple[float, float, float, float],
    width: int,
    *,
    colour: tuple[float, float, float] = (0.53, 0.66, 0.80),
) -> tuple[np.ndarray, np.ndarray]:
    """Picture of a surface on a transparent ground, and its depth.

    A hundred thousand triangles on a million pixels take about two seconds.

    Args:
        surface: closed, facing outwards.
        camera: where it is seen from.
        window: left, right, bottom, top of the picture in projected lengths.
        width: of the picture in pixels; its height follows.
        colour: of the material, red, green, blue in [0, 1].

    Returns:
        ``(height, width, 4)`` in [0, 1], row 0 on top; depth of the same size towards the camera, -inf on the ground.

    Example:
        >>> from sciopt.domains.topology.export import isosurface
        >>> image, depth = render(isosurface(np.ones((2, 2, 2))), Camera(), (-4, 4, -2, 4), 40)
        >>> image.shape, bool(image[15, 20, 3] == 1), bool(image[0, 0, 3] == 0)
        ((30, 40, 4), True, True)
    """
    scale = SAMPLES * width / (window[1] - window[0])
    nx, ny = SAMPLES * width, SAMPLES * max(1, round(width * (window[3] - window[2]) / (window[1] - window[0])))
    screen = camera.project(surface.vertices)
    screen = (screen - [window[0], window[2], 0]) * scale
    near, depth = _visible(screen, surface.triangles, nx, ny)
    seen = near >= 0
    rows, columns = np.nonzero(seen)
    triangle = near[seen]
    weights = _barycentric(screen[surface.triangles[triangle]], columns + 0.5, rows + 0.5)
    normal = _normals(surface, triangle, weights) @ camera.axes.T
    position = np.einsum("nk,nkd->nd", weights, surface.vertices[surface.triangles[triangle]])

    light = LIGHT / np.linalg.norm(LIGHT)
    lit = np.zeros(near.shape)
    lit[seen] = _lit(surface, position, camera.axes.T @ light, scale)
    lit = _blurred(lit, seen, SAMPLES)  # soft edges of shadows
    slope = np.zeros((*near.shape, 2), dtype=np.float32)
    slope[seen] = -normal[:, :2] / np.clip(normal[:, 2:], 0.35, None)
    crevice = _crevices(depth[::SAMPLES, ::SAMPLES] / SAMPLES, slope[::SAMPLES, ::SAMPLES])
    crevice = crevice.repeat(SAMPLES, 0).repeat(SAMPLES, 1)[seen]

    facing = np.clip(normal @ light, 0, None) * lit[seen]
    sky = 0.5 + 0.5 * (normal @ camera.axes[:, 2])
    half = light + [0, 0, 1]
    shine = np.clip(normal @ (half / np.linalg.norm(half)), 0, None) ** 40 * lit[seen]
    rim = (1 - np.clip(normal[:, 2], 0, 1)) ** 3
    brightness = (0.30 + 0.27 * sky + 0.60 * facing) * crevice * (1 - 0.3 * rim)
    image = np.zeros((ny, nx, 4))
    image[seen, :3] = np.clip(brightness[:, None] * np.array(colour) + 0.18 * shine[:, None], 0, 1)
    image[seen, 3] = 1
    fine = image.reshape(ny // SAMPLES, SAMPLES, nx // SAMPLES, SAMPLES, 4).mean((1, 3))
    fine[..., :3] /= np.maximum(fine[..., 3:], 1e-9)
    depth = depth.reshape(ny // SAMPLES, SAMPLES, nx // SAMPLES, SAMPLES).max((1, 3)) / scale
    return fine[::-1], depth[::-1]


def _visible(screen: np.ndarray, triangles: np.ndarray, nx: int, ny: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest triangle at each point of the raster (-1: none), and its depth; row 0 at the bottom."""
    corners = screen[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = np.flatnonzero(normal[:, 2] > 1e-12)
    near, depth = np.full(nx * ny, -1), np.full(nx * ny, -np.inf)
    for which, i, j in covered(corners[front, :, :2], nx, ny):
        which = front[which]
        a, n = corners[which, 0], normal[which]
        here = a[:, 2] - (n[:, 0] * (i + 0.5 - a[:, 0]) + n[:, 1] * (j + 0.5 - a[:, 1])) / n[:, 2]
        pixel = j * nx + i
        better = here > depth[pixel]
        which, here, pixel = which[better], here[better], pixel[better]
        order = np.argsort(here, kind="stable")  # of several on a pixel the last, nearest one stays
        near[pixel[order]], depth[pixel[order]] = which[order], here[order]
    return near.reshape(ny, nx), depth.reshape(ny, nx)


def _crevices(depth: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Brightness, lower where the surroundings stand out above the plane through a point, so that no flat side darkens."""
    seen = np.isfinite(depth)
    reach = max(1, round(0.04 * depth.shape[1]))
    level = np.where(seen, depth, 0.0).astype(np.float32)
    raised = _blurred(level, seen, reach) - level
    for axis, grid in enumerate(np.indices(depth.shape, dtype=np.float32)[::-1]):
        raised -= slope[..., axis] * (_blurred(np.where(seen, grid, 0), seen, reach) - grid)
    return np.where(seen, 1 - 0.45 * np.clip(raised / reach - 0.1, 0, 1), 1.0)


def _blurred(field: np.ndarray, seen: np.ndarray, reach: int) -> np.ndarray:
    """Means over nearby points that show the surface."""
    from scipy.ndimage import uniform_filter

    pair = [field.astype(np.float32), seen.astype(np.float32)]
    for _ in range(2):
        pair = [uniform_filter(each, 2 * reach + 1, mode="constant") for each in pair]
    return pair[0] / np.maximum(pair[1], 1e-6)


def _barycentric(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of a triangle's corners ``(N, 3, >=2)`` at points."""
    (ax, ay), (bx, by), (cx, cy) = (corners[:, k, :2].T for k in range(3))
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    b = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
    c = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
    return np.clip(np.stack([1 - b - c, b, c], axis=-1), 0, 1)


def _normals(surface: Surface, triangle: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unit normals, smooth but across creases, ``(N, 3)``."""
    faces, count = surface.face_vectors, len(surface.vertices)
    flat = faces / np.maximum(np.linalg.norm(faces, axis=1, keepdims=True), 1e-300)
    smooth, summed = faces, faces
    for _ in range(2):  # the second time over neighbours, against the steps of elements that are void or solid
        summed = np.stack(
            [np.bincount(surface.triangles.ravel(), np.repeat(smooth[:, k], 3), count) for k in range(3)],
            axis=-1,
        )
        summed /= np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-300)
        smooth = summed[surface.triangles].mean(1) * np.linalg.norm(faces, axis=1, keepdims=True)
    corner = summed[surface.triangles[triangle]]
    own = flat[triangle][:, None]
    corner = np.where((corner * own).sum(-1, keepdims=True) > CREASE, corner, own)
    normal = np.einsum("nk,nkd->nd", weights, corner)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)


def _lit(surface: Surface, position: np.ndarray, light: np.ndarray, scale: float) -> np.ndarray:
    """Whether the light reaches positions on the surface, ``(N,)`` of zeros and ones."""
    side = np.cross([0.0, 0.0, 1.0], light)
    side /= max(float(np.linalg.norm(side)), 1e-9)
    axes = np.stack([side, np.cross(light, side), light])
    screen = surface.vertices @ axes.T
    low = screen[:, :2].min(0)
    step = max(float(np.ptp(screen[:, :2], axis=0).max()) / 1500, 1.0 / scale)  # of the map, in lengths
    nx, ny = (int(n) + 2 for n in np.ptp(screen[:, :2], axis=0) / step)
    raster = np.concatenate([(screen[:, :2] - low) / step + 0.5, screen[:, 2:] / step], axis=-1)
    _, depth = _visible(raster, surface.triangles, nx, ny)
    place = position @ axes.T
    i = np.clip(((place[:, 0] - low[0]) / step + 0.5).astype(int), 0, nx - 1)
    j = np.clip(((place[:, 1] - low[1]) / step + 0.5).astype(int), 0, ny - 1)
    return (place[:, 2] / step > depth[j, i] - 4).astype(float)
