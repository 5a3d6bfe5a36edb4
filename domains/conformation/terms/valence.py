"""MMFF's bonded terms: value and closed-form gradient of every term from the positions of its atoms.

Points are ``(arity, 3, rows, T)``. Each function comes twice: the value as plain torch operations, for derivatives of any
order in positions and parameters, and value with gradient in the positions, for solvers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciopt.domains.conformation.terms.vectors import cross, dot, length, tiny

__all__ = [
    "angle",
    "angle_gradient",
    "bond",
    "bond_gradient",
    "plane",
    "plane_gradient",
    "torsion",
    "torsion_gradient",
]

MDYNE = 143.9325  # kcal/mol per md A
DEGREE = math.pi / 180
CUBIC_BOND = -2.0  # 1/A
QUARTIC_BOND = 7.0 / 12.0 * CUBIC_BOND**2
CUBIC_ANGLE = -0.4 * DEGREE  # 1/degree, as RDKit; Halgren prints -0.007
STRETCH_BEND = MDYNE * DEGREE
BEND = MDYNE * DEGREE**2


def bond(points: Tensor, stiffness: Tensor, rest: Tensor) -> Tensor:
    """Quartic stretch, Halgren part I, eq. 2: ``stiffness`` [md/A], ``rest`` [A]; kcal/mol."""
    stretch = length(points[0] - points[1]) - rest
    return 0.5 * MDYNE * stiffness * stretch**2 * (1 + CUBIC_BOND * stretch + QUARTIC_BOND * stretch**2)


def bond_gradient(points: Tensor, stiffness: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """`bond` and its gradient ``(2, 3, rows, T)``."""
    d = points[0] - points[1]
    r = length(d)
    stretch = r - rest
    force = 0.5 * MDYNE * stiffness * stretch
    value = force * stretch * (1 + stretch * (CUBIC_BOND + QUARTIC_BOND * stretch))
    slope = force * (2 + stretch * (3 * CUBIC_BOND + 4 * QUARTIC_BOND * stretch))
    g = d * (slope / r)
    return value, torch.stack([g, -g])


def corner(points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unit arms, their lengths, and the cosine between them."""
    a, b = points[0] - points[1], points[2] - points[1]
    ra, rb = length(a), length(b)
    ea, eb = a / ra, b / rb
    return ea, eb, ra, rb, dot(ea, eb)


def inside(c: Tensor) -> Tensor:
    """Cosines within 1 by what its dtype resolves, so that no sine vanishes."""
    border = 1 - torch.finfo(c.dtype).eps
    return c.clamp(-border, border)


def arc(c: Tensor) -> tuple[Tensor, Tensor]:
    """Angle and its sine from the cosine; both with finite derivatives when straight."""
    c = inside(c)
    return torch.acos(c), (1 - c * c).sqrt()


def angle(
    points: Tensor,
    stiffness: Tensor,
    rest: Tensor,
    linear: Tensor,
    first: Tensor,
    second: Tensor,
    first_rest: Tensor,
    second_rest: Tensor,
) -> Tensor:
    """Cubic bend, cosine bend of linear centres, and stretch-bend; Halgren part I, eq. 3 to 5; kcal/mol.

    ``stiffness`` and ``linear`` [md A/rad^2], ``rest`` [degrees], ``first`` and ``second`` [md/rad] couple the two arms'
    stretches over ``first_rest`` and ``second_rest`` [A].
    """
    _, _, ra, rb, c = corner(points)
    bend = arc(c)[0] / DEGREE - rest
    value = 0.5 * BEND * stiffness * bend**2 * (1 + CUBIC_ANGLE * bend)
    value = value + MDYNE * linear * (1 + c)
    return value + STRETCH_BEND * (first * (ra - first_rest) + second * (rb - second_rest)) * bend


def angle_gradient(
    points: Tensor,
    stiffness: Tensor,
    rest: Tensor,
    linear: Tensor,
    first: Tensor,
    second: Tensor,
    first_rest: Tensor,
    second_rest: Tensor,
) -> tuple[Tensor, Tensor]:
    """`angle` and its gradient ``(3, 3, rows, T)``."""
    ea, eb, ra, rb, c = corner(points)
    theta, sine = arc(c)
    bend = theta / DEGREE - rest
    half = 0.5 * BEND * stiffness * bend
    mixed = STRETCH_BEND * torch.addcmul(first * (ra - first_rest), second, rb - second_rest)
    value = half * bend * (1 + CUBIC_ANGLE * bend) + mixed * bend + MDYNE * linear * (1 + c)
    by_bend = half * (2 + 3 * CUBIC_ANGLE * bend) + mixed
    by_cosine = MDYNE * linear - by_bend / (DEGREE * sine)
    pull = STRETCH_BEND * bend
    ga = (eb - c * ea) * (by_cosine / ra) + ea * (pull * first)
    gb = (ea - c * eb) * (by_cosine / rb) + eb * (pull * second)
    return value, torch.stack([ga, -(ga + gb), gb])


def lift(points: Tensor) -> tuple[Tensor, ...]:
    a, b, e = points[0] - points[1], points[2] - points[1], points[3] - points[1]
    n = cross(a, b)
    rn, re = length(n), length(e)
    u, w = n / rn, e / re
    return a, b, u, w, rn, re, inside(dot(u, w))


def plane(points: Tensor, stiffness: Tensor) -> Tensor:
    """Out-of-plane bend ``1/2 k chi^2``, chi the Wilson angle; Halgren part I, eq. 6; ``stiffness`` [md A/rad^2]."""
    return 0.5 * MDYNE * stiffness * torch.asin(lift(points)[-1]) ** 2


def plane_gradient(points: Tensor, stiffness: Tensor) -> tuple[Tensor, Tensor]:
    """`plane` and its gradient ``(4, 3, rows, T)``."""
    a, b, u, w, rn, re, s = lift(points)
    chi = torch.asin(s)
    pull = MDYNE * stiffness * chi
    slope = pull / (1 - s * s).sqrt()
    q = (w - s * u) * (slope / rn)
    ge = (u - s * w) * (slope / re)
    ga, gb = cross(b, q), cross(q, a)
    return 0.5 * pull * chi, torch.stack([ga, -(ga + gb + ge), gb, ge])


def torsion(points: Tensor, v1: Tensor, v2: Tensor, v3: Tensor) -> Tensor:
    """Three-fold cosine series; Halgren part I, eq. 7; barriers in kcal/mol."""
    r1, r2, r4 = points[0] - points[1], points[2] - points[1], points[3] - points[2]
    t1, t2 = cross(r1, r2), cross(r4, r2)
    c = dot(t1, t2) / (length(t1) * length(t2))
    return 0.5 * (v1 * (1 + c) + v2 * (2 - 2 * c * c) + v3 * (1 + c * (4 * c * c - 3)))


def torsion_gradient(points: Tensor, v1: Tensor, v2: Tensor, v3: Tensor) -> tuple[Tensor, Tensor]:
    """`torsion` and its gradient ``(4, 3, rows, T)``, along the normals of the two planes."""
    r1, r2, r4 = points[0] - points[1], points[2] - points[1], points[3] - points[2]
    t1, t2 = cross(r1, r2), cross(r4, r2)
    least = tiny(points.dtype)
    s1, s2, axis2 = (dot(v, v).clamp_min_(least) for v in (t1, t2, r2))
    inverse = (s1 * s2).rsqrt_()
    c = dot(t1, t2).mul_(inverse)
    square = c * c
    value = v1 * (1 + c) + v2 * (2 - 2 * square) + v3 * (1 + c * (4 * square - 3))
    slope = v1 - 4 * v2 * c + v3 * (12 * square - 3)
    turn = dot(r1, t2).mul_(inverse).mul_(slope).mul_(0.5)  # -dE/dphi over the length of the axis
    g1 = t1 * (turn * axis2 / s1).neg_()
    g4 = t2 * (turn * axis2 / s2)
    middle = g1 * (dot(r1, r2) / axis2) + g4 * (dot(r4, r2) / axis2)
    return value.mul_(0.5), torch.stack([g1, middle - g1, -g4 - middle, g4])
