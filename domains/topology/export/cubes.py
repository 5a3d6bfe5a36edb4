"""The table of marching cubes, made at first use from one rule, so that surfaces are closed by construction.

Corner c of a cube lies at the bits of c: x is bit 0, y bit 1, z bit 2. On a face whose corners alternate the inside
corners are kept apart; both cubes that share the face see the same four signs and draw the same lines. The lines of the
six faces close to loops around the inside. A loop is cut into triangles without a chord that lies in a face, because
the neighbour might draw that chord too; all 256 cases have such a way.

References:
    Lorensen, Cline. "Marching cubes: a high resolution 3D surface construction algorithm". SIGGRAPH, 1987.
    Montani, Scateni, Scopigno. "A modified look-up table for implicit disambiguation of marching cubes". The Visual
    Computer, 1994.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["EDGES", "triangle_table"]

# Edges as (axis, first corner): the second corner has the axis' bit set.
EDGES = tuple((axis, corner) for axis in range(3) for corner in range(8) if not corner >> axis & 1)
_EDGE_OF = {frozenset((corner, corner | 1 << axis)): k for k, (axis, corner) in enumerate(EDGES)}


@cache
def _faces() -> tuple[tuple[int, ...], ...]:
    """Corners of the six faces, counter-clockwise from outside."""
    faces = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        for side in (0, 1):
            ring = (0, u, u | v, v) if side else (0, v, u | v, u)
            faces.append(tuple(corner | side << axis for corner in ring))
    return tuple(faces)


@cache
def _faces_of_edge() -> tuple[frozenset[int], ...]:
    return tuple(
        frozenset(f for f, face in enumerate(_faces()) if {corner, corner | 1 << axis} <= set(face))
        for axis, corner in EDGES
    )


def _loops(case: int) -> list[list[int]]:
    """Closed polygons of cut edges; seen from outside the solid they run counter-clockwise."""
    following = {}
    for face in _faces():
        inside = [bool(case >> corner & 1) for corner in face]
        cuts = [_EDGE_OF[frozenset((face[i], face[(i + 1) % 4]))] for i in range(4)]
        for i in range(4):
            # Going round counter-clockwise, the solid is entered on edge i and left on the first edge after it.
            if not inside[i] and inside[(i + 1) % 4]:
                j = next(j % 4 for j in range(i + 1, i + 4) if not inside[(j + 1) % 4])
                following[cuts[i]] = cuts[j]
    loops = []
    while following:
        loop = [next(iter(following))]
        while (after := following.pop(loop[-1])) != loop[0]:
            loop.append(after)
        loops.append(loop)
    return loops


def _in_a_face(a: int, b: int) -> bool:
    return bool(_faces_of_edge()[a] & _faces_of_edge()[b])


def _cut(loop: list[int]) -> list[tuple[int, int, int]] | None:
    """Triangles of a polygon with no diagonal in a face of the cube, or None."""
    if len(loop) == 3:
        return [(loop[0], loop[1], loop[2])]
    first, last = loop[0], loop[-1]
    for k in range(1, len(loop) - 1):  # the triangle on the polygon's last side
        tip = loop[k]
        if (k > 1 and _in_a_face(first, tip)) or (k < len(loop) - 2 and _in_a_face(tip, last)):
            continue
        left = [] if k == 1 else _cut(loop[: k + 1])
        right = [] if k == len(loop) - 2 else _cut(loop[k:])
        if left is not None and right is not None:
            return [*left, (first, tip, last), *right]
    return None


@cache
def triangle_table() -> tuple[np.ndarray, np.ndarray]:
    """Triangles of all 256 cases; bit c of a case says that corner c is inside.

    Returns:
        ``triangles (256, 5, 3)``, numbers of cut edges in `EDGES`, -1 where there is none, and their number ``(256,)``.

    Example:
        >>> triangles, count = triangle_table()
        >>> int(count[1]), int(count[255]), int(count.max())
        (1, 0, 5)
    """
    listed = []
    for case in range(256):
        cuts = [_cut(loop) for loop in _loops(case)]
        listed.append([triangle for cut in cuts if cut is not None for triangle in cut])
    count = np.array([len(each) for each in listed])
    table = np.full((256, int(count.max()), 3), -1)
    for case, triangles in enumerate(listed):
        if triangles:
            table[case, : len(triangles)] = triangles
    return table, count
