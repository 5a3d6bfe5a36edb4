"""Gauss quadrature on four-node quadrilaterals and eight-node bricks, any shape."""

from __future__ import annotations

import numpy as np

__all__ = ["CORNERS", "FACES", "cell_gradients", "gauss_points", "shape_gradients", "shape_values"]

_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])

CORNERS: dict[int, np.ndarray] = {
    1: np.array([[-1], [1]]),
    2: _SQUARE,
    3: np.concatenate([np.c_[_SQUARE, -np.ones(4, int)], np.c_[_SQUARE, np.ones(4, int)]]),
}
"""Corners of the reference cell ``[-1, 1]^dim``."""

FACES: dict[int, np.ndarray] = {
    2: np.array([[0, 1], [1, 2], [2, 3], [3, 0]]),
    3: np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]),
}
"""Corners of the faces of a cell, such that their normals point outwards."""


def gauss_points(dim: int) -> np.ndarray:
    """The ``2^dim`` Gauss points of the reference cell, weight 1 each.

    Example:
        >>> gauss_points(1).round(3).tolist()
        [[-0.577], [0.577]]
    """
    return CORNERS[dim] / np.sqrt(3)


def shape_values(dim: int) -> np.ndarray:
    """Shape functions at the Gauss points, ``(points, corners)``.

    Example:
        >>> shape_values(2).sum(1).round(12).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    return np.prod((1 + gauss_points(dim)[:, None] * CORNERS[dim]) / 2, axis=-1)


def shape_gradients(dim: int) -> np.ndarray:
    """Their gradients in reference coordinates, ``(points, corners, dim)``."""
    factors = (1 + gauss_points(dim)[:, None] * CORNERS[dim]) / 2
    out = np.empty((len(factors), len(factors), dim)) if dim > 1 else np.empty((2, 2, 1))
    for axis in range(dim):
        others = np.delete(factors, axis, axis=-1).prod(-1)
        out[..., axis] = others * CORNERS[dim][:, axis] / 2
    return out


def cell_gradients(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape gradients in space and the volumes of the quadrature points, for cells ``(num_elements, corners, dim)``.

    Equal cells share one row.

    Returns:
        ``(num_elements or 1, points, corners, dim)`` and ``(num_elements or 1, points)``; the volumes are negative
        where a cell is turned inside out.

    Example:
        >>> gradients, weights = cell_gradients(np.array([[[0.0, 0], [2, 0], [2, 1], [0, 1]]]))
        >>> round(weights.sum().item(), 12)
        2.0

    References:
        Hughes. "The finite element method". 1987. Sections 3.2, 3.8 and 3.9.
    """
    around = corners - corners[:, :1]
    size = np.abs(around).max()
    if np.abs(around - around[:1]).max() <= 1e-12 * size:
        corners = corners[:1]
    reference = shape_gradients(corners.shape[-1])
    jacobian = np.einsum("eci,gcj->egij", corners, reference)
    volume = np.linalg.det(jacobian)
    safe = np.where((volume != 0)[..., None, None], jacobian, np.eye(corners.shape[-1]))
    return np.einsum("gcj,egji->egci", reference, np.linalg.inv(safe)), volume
