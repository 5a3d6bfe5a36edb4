"""Springs along internal coordinates: how each bonded term holds its atoms, for model Hessians.

Every function returns a stiffness ``(rows, T)`` and the derivative of the coordinate ``(arity, 3, rows, T)``; the model is
``stiffness b b^T``, positive semidefinite wherever it is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.domains.conformation.terms.valence import MDYNE, corner, lift
from sciopt.domains.conformation.terms.vectors import cross, dot, length

__all__ = ["angle_spring", "bond_spring", "plane_spring", "straight_spring", "torsion_spring"]

FLAT = 0.1  # sine below which an angle's own derivative is damped
PARALLEL = {torch.float32: 1e-3, torch.float64: 1e-6}  # sine below which rounding decides on the plane of an angle


def bond_spring(points: Tensor, stiffness: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The bond's length."""
    d = points[0] - points[1]
    e = d / length(d)
    return MDYNE * stiffness, torch.stack([e, -e])


def angle_spring(points: Tensor, stiffness: Tensor, rest: Tensor, linear: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """The angle; near the straight line, where it has no derivative, its damped one, of linear centres that in any plane."""
    ea, eb, ra, rb, c = corner(points)
    normal, sine = normal_of(ea, eb)
    share = torch.where(linear > 0, 1.0, sine / sine.clamp_min(FLAT))
    ga, gb = cross(ea, normal) * (share / ra), cross(normal, eb) * (share / rb)
    return MDYNE * (stiffness + linear), torch.stack([ga, -(ga + gb), gb])


def straight_spring(points: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """The bend of a linear centre out of the plane of `angle_spring`, as stiff as within it where straight."""
    ea, eb, ra, rb, c = corner(points)
    normal, _ = normal_of(ea, eb)
    ga, gb = normal / ra, normal / rb
    return MDYNE * linear * c.neg().clamp_min(0.0), torch.stack([ga, -(ga + gb), gb])


def normal_of(ea: Tensor, eb: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normal ``(3, rows, T)`` of the plane of two unit vectors, any one across them where they are parallel; their
    sine."""
    n = cross(ea, eb)
    sine = dot(n, n).sqrt()
    axis = torch.zeros_like(ea).scatter_(0, ea.abs().argmin(0, keepdim=True), 1.0)
    other = cross(ea, axis)
    flat = sine < PARALLEL[ea.dtype]
    return torch.where(flat, other / length(other), n / torch.where(flat, 1.0, sine)), sine


def plane_spring(points: Tensor, stiffness: Tensor) -> tuple[Tensor, Tensor]:
    """The Wilson angle."""
    a, b, u, w, rn, re, s = lift(points)
    cosine = (1 - s * s).clamp_min(FLAT**2).sqrt()
    q, ge = (w - s * u) / (rn * cosine), (u - s * w) / (re * cosine)
    ga, gb = cross(b, q), cross(q, a)
    return MDYNE * stiffness, torch.stack([ga, -(ga + gb + ge), gb, ge])


def torsion_spring(points: Tensor, v1: Tensor, v2: Tensor, v3: Tensor) -> tuple[Tensor, Tensor]:
    """The dihedral angle, with the curvature at the bottom of each cosine."""
    r1, r2, r4 = points[0] - points[1], points[2] - points[1], points[3] - points[2]
    t1, t2 = cross(r1, r2), cross(r4, r2)
    axis = length(r2)
    least = FLAT**2 * axis**2
    s1 = torch.maximum(dot(t1, t1), least * dot(r1, r1)).clamp_min(1e-8)
    s2 = torch.maximum(dot(t2, t2), least * dot(r4, r4)).clamp_min(1e-8)
    g1, g4 = t1 * (axis / s1), -t2 * (axis / s2)
    middle = g1 * (dot(r1, r2) / axis**2) + g4 * (dot(r4, r2) / axis**2)
    curvature = 0.5 * (v1.abs() + 4 * v2.abs() + 9 * v3.abs())
    return curvature, torch.stack([g1, -g1 + middle, -g4 - middle, g4])
