"""Element stiffness matrices in the order of a lattice: the bilinear square and the trilinear cube."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.topology.elements import q4_stiffness

__all__ = ["element_stiffness", "h8_stiffness", "solid_elasticity"]


def solid_elasticity(poisson: float) -> np.ndarray:
    """Elasticity matrix ``(6, 6)`` of an isotropic solid of unit modulus; strains xx, yy, zz, xy, yz, zx (engineering).

    Args:
        poisson: Poisson's ratio, in (-1, 0.5), unitless.

    Example:
        >>> solid_elasticity(0.0).diagonal().tolist()
        [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    """
    advice = "0.3 is the value of most benchmarks; incompressible solids need a mixed element."
    check_option("solid_elasticity", "poisson", poisson, -1 < poisson < 0.5, "in (-1, 0.5)", advice)
    lame = poisson / ((1 + poisson) * (1 - 2 * poisson))
    shear = 1 / (2 * (1 + poisson))
    matrix = np.zeros((6, 6))
    matrix[:3, :3] = lame
    matrix[range(3), range(3)] += 2 * shear
    matrix[range(3, 6), range(3, 6)] = shear
    return matrix


def h8_stiffness(poisson: float = 0.3) -> np.ndarray:
    """Stiffness matrix ``(24, 24)`` of the trilinear cube of side 1 and unit Young's modulus.

    Two by two by two Gauss points integrate it exactly. Corners run with x fastest, then y, then z, each from low to
    high; three displacements x, y, z per corner.

    Args:
        poisson: Poisson's ratio, unitless.

    Returns:
        Symmetric float64 array with the six rigid motions as null space.

    Example:
        >>> K = h8_stiffness(0.3)
        >>> int((np.linalg.eigvalsh(K) > 1e-12).sum())
        18
    """
    # axis order of a corner is (z, y, x), as in itertools.product; component order is (x, y, z)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))[:, ::-1]
    material = solid_elasticity(poisson)
    stiffness = np.zeros((24, 24))
    for point in corners / np.sqrt(3):
        # N_a = prod_i (1 + s_i s_ai) / 8 on [-1, 1]^3; the side is 1: d/dx = 2 d/ds, the volume element is 1/8
        factor = 1 + point * corners
        grad = [2 / 8 * corners[:, i] * np.delete(factor, i, axis=1).prod(axis=1) for i in range(3)]
        strain = np.zeros((6, 24))
        for i in range(3):
            strain[i, i::3] = grad[i]
        for row, (i, j) in zip((3, 4, 5), ((0, 1), (1, 2), (2, 0)), strict=True):
            strain[row, i::3] = grad[j]
            strain[row, j::3] = grad[i]
        stiffness += strain.T @ material @ strain / 8
    return (stiffness + stiffness.T) / 2


def element_stiffness(ndim: int, poisson: float = 0.3) -> Tensor:
    """Element of a `Lattice`: plane stress with axes (row downwards, column) or a cube with axes (z, y, x).

    Components are (right, up) in two dimensions, as in `Grid`, and (x, y, z) in three.

    Args:
        ndim: 2 or 3.
        poisson: Poisson's ratio, unitless.

    Returns:
        float64 ``(d 2^d, d 2^d)``.

    Example:
        >>> element_stiffness(2).shape, element_stiffness(3).shape
        (torch.Size([8, 8]), torch.Size([24, 24]))
    """
    check_option("element_stiffness", "ndim", ndim, ndim in (2, 3), "to be 2 or 3", "Use the axes of the lattice.")
    if ndim == 3:
        return torch.from_numpy(h8_stiffness(poisson))
    corners = np.array([3, 2, 0, 1])  # upper left, upper right, lower left, lower right, of counter-clockwise ones
    order = (2 * corners[:, None] + np.arange(2)).reshape(-1)
    return torch.from_numpy(q4_stiffness(poisson)[np.ix_(order, order)])
