"""Element matrices, integrated exactly from shape functions."""

from __future__ import annotations

import itertools

import numpy as np

from sciopt.checks import check_option

__all__ = [
    "conductance",
    "elastic_stiffness",
    "elasticity",
    "h8_stiffness",
    "mass",
    "plane_stress",
    "q4_stiffness",
    "solid_elasticity",
    "strain_at_centre",
]


def plane_stress(poisson: float) -> np.ndarray:
    """Elasticity matrix ``(3, 3)`` of plane stress for a unit Young's modulus.

    Args:
        poisson: Poisson's ratio, in (-1, 0.5], unitless.

    Example:
        >>> plane_stress(0.0)[2, 2].item()
        0.5
    """
    ok = -1 < poisson <= 0.5
    check_option("plane_stress", "poisson", poisson, ok, "in (-1, 0.5]", "0.3 is the value of most benchmarks.")
    shear = (1 - poisson) / 2
    return np.array([[1.0, poisson, 0.0], [poisson, 1.0, 0.0], [0.0, 0.0, shear]]) / (1 - poisson**2)


def q4_stiffness(poisson: float = 0.3) -> np.ndarray:
    """Stiffness matrix ``(8, 8)`` of the bilinear square element of side 1, unit thickness and unit Young's modulus.

    Two by two Gauss points integrate it exactly. Corners run counter-clockwise from the lower left, x before y.

    Args:
        poisson: Poisson's ratio, unitless.

    Returns:
        Symmetric float64 array with the three rigid motions as null space.

    Example:
        >>> round(q4_stiffness(0.3)[0, 0].item() * (1 - 0.3**2), 12)  # 1/2 - nu/6
        0.45

    References:
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Section 3.1.
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    gauss = np.sqrt(1 / 3)
    material = plane_stress(poisson)
    stiffness = np.zeros((8, 8))
    for s, t in gauss * corners:
        # N_a = (1 + s s_a)(1 + t t_a) / 4 on [-1, 1]^2; the side is 1, so d/dx = 2 d/ds and the area element is 1/4.
        d_x = corners[:, 0] * (1 + t * corners[:, 1]) / 2
        d_y = corners[:, 1] * (1 + s * corners[:, 0]) / 2
        strain = np.zeros((3, 8))
        strain[0, 0::2] = strain[2, 1::2] = d_x
        strain[1, 1::2] = strain[2, 0::2] = d_y
        stiffness += strain.T @ material @ strain / 4
    return (stiffness + stiffness.T) / 2


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


def elasticity(ndim: int, poisson: float) -> np.ndarray:
    """Elasticity matrix of a unit modulus: `plane_stress` in two dimensions, `solid_elasticity` in three.

    Example:
        >>> elasticity(2, 0.3).shape, elasticity(3, 0.3).shape
        ((3, 3), (6, 6))
    """
    return plane_stress(poisson) if ndim == 2 else solid_elasticity(poisson)


def elastic_stiffness(ndim: int, poisson: float = 0.3) -> np.ndarray:
    """Stiffness of the element of a `Grid`, corners in its order: `q4_stiffness` or `h8_stiffness`.

    Example:
        >>> elastic_stiffness(2).shape, elastic_stiffness(3).shape
        ((8, 8), (24, 24))
    """
    return q4_stiffness(poisson) if ndim == 2 else h8_stiffness(poisson)


def reference_corners(ndim: int) -> np.ndarray:
    """Corners ``(2^d, d)`` of ``[-1, 1]^d`` in the order of a `Grid`."""
    if ndim == 2:
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    return np.array(list(itertools.product((-1.0, 1.0), repeat=3)))[:, ::-1]


def shape_gradients(ndim: int, point: np.ndarray) -> np.ndarray:
    """Derivatives ``(d, 2^d)`` of the corner functions of an element of side 1 at a point of ``[-1, 1]^d``."""
    corners = reference_corners(ndim)
    factor = (1 + point * corners) / 2
    return np.stack([corners[:, i] * np.delete(factor, i, axis=1).prod(axis=1) for i in range(ndim)])


def conductance(ndim: int) -> np.ndarray:
    """Conductance matrix ``(2^d, 2^d)`` of the element of side 1 and unit conductivity: ``int grad N . grad N``.

    Example:
        >>> np.round(6 * conductance(2)[0]).tolist()
        [4.0, -1.0, -2.0, -1.0]
    """
    total = np.zeros((2**ndim, 2**ndim))
    for point in reference_corners(ndim) / np.sqrt(3):
        grad = shape_gradients(ndim, point)
        total += grad.T @ grad / 2**ndim
    return (total + total.T) / 2


def mass(ndim: int) -> np.ndarray:
    """Consistent mass matrix ``(d 2^d, d 2^d)`` of the element of side 1 and unit density.

    Example:
        >>> mass(2).sum().round(12).item(), mass(3).sum().round(12).item()  # the element's mass, once per direction
        (2.0, 3.0)
    """
    corners = reference_corners(ndim)
    total = np.zeros((2**ndim, 2**ndim))
    for point in corners / np.sqrt(3):
        values = ((1 + point * corners) / 2).prod(axis=1)
        total += np.outer(values, values) / 2**ndim
    return np.kron(total, np.eye(ndim))


def strain_at_centre(ndim: int) -> np.ndarray:
    """Strains at the centre of an element from its corners' displacements, ``(3 or 6, d 2^d)``, engineering shears.

    Example:
        >>> np.abs(strain_at_centre(2)).max().item()
        0.5
    """
    grad = shape_gradients(ndim, np.zeros(ndim))
    pairs = ((0, 1), (1, 2), (2, 0))[: 2 * ndim - 3]
    strain = np.zeros((ndim + len(pairs), ndim * 2**ndim))
    for i in range(ndim):
        strain[i, i::ndim] = grad[i]
    for row, (i, j) in enumerate(pairs, start=ndim):
        strain[row, i::ndim] = grad[j]
        strain[row, j::ndim] = grad[i]
    return strain
