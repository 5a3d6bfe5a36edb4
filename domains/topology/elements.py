"""Element matrices, integrated exactly from shape functions."""

from __future__ import annotations

import numpy as np

from sciopt.checks import check_option

__all__ = ["plane_stress", "q4_stiffness"]


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
