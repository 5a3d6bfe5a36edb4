"""Named ready structures beyond the beams of `structure`: arch, L-bracket, and three dimensions."""

from __future__ import annotations

from collections.abc import Callable

from sciopt.domains.topology.builder import Box, Builder
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.structure import PRESETS, Structure

__all__ = ["STRUCTURES", "bridge_3d", "cantilever_3d", "l_bracket", "michell", "tower"]


def michell(grid: Grid) -> Structure:
    """Michell's arch: pinned at the lower left, a roller at the lower right, a unit force down amid the lower edge.

    Example:
        >>> michell(Grid(nx=8, ny=4)).fixed.size
        3

    References:
        Michell. "The limits of economy of material in frame-structures". Phil. Mag. 8, 1904.
    """
    made = Builder(grid=grid, name="michell").hold(Box(x=0, y=0)).hold(Box(x=grid.nx, y=0), "y")
    return made.push(Box(x=grid.nx // 2, y=0), (0, -1)).build()


def l_bracket(grid: Grid) -> Structure:
    """L-shaped bracket: clamped on top of the upright, a unit force down at the tip of the foot, spread over a short edge
    so that its stress stays finite; the upper right of the box, 3/5 of each side, is empty. The benchmark of stress.

    Example:
        >>> bracket = l_bracket(Grid(nx=10, ny=10))
        >>> int(bracket.active.sum()), bracket.load.sum().round(12).item()
        (64, -1.0)

    References:
        Le, Norato, Bruns, Ha, Tortorelli. "Stress-based topology optimization for continua". 2010. Fig. 5.
    """
    width, height = max(1, round(0.4 * grid.nx)), max(1, round(0.4 * grid.ny))
    tip = max(1, grid.nx // 20)
    made = Builder(grid=grid, name="l_bracket").hold(Box(x=(0, width), y=grid.ny))
    made = made.push(Box(x=(grid.nx - tip, grid.nx), y=height), (0, -1))
    return made.void(Box(x=(width, grid.nx), y=(height, grid.ny))).build()


def cantilever_3d(grid: Grid) -> Structure:
    """Clamped on the face x = 0, a total unit force down along the lower edge of the opposite face.

    Example:
        >>> cantilever_3d(Grid(nx=4, ny=2, nz=2)).fixed.size
        27

    References:
        Liu, Tovar. "An efficient 3D topology optimization code written in Matlab". 2014. Section 4.1.
    """
    made = Builder(grid=grid, name="cantilever_3d").hold(Box(x=0))
    return made.push(Box(x=grid.nx, z=0), (0, 0, -1)).build()


def bridge_3d(grid: Grid) -> Structure:
    """A solid deck under a total unit load, held along the lower edges of both ends.

    Example:
        >>> bridge_3d(Grid(nx=6, ny=2, nz=3)).active.sum().item()
        24
    """
    made = Builder(grid=grid, name="bridge_3d").hold(Box(x=0, z=0)).hold(Box(x=grid.nx, z=0))
    deck = Box(z=(0, 1))
    return made.push(Box(z=0), (0, 0, -1)).solid(deck).build()


def tower(grid: Grid) -> Structure:
    """A tower on its clamped base, with three load cases at its top: weight, and wind along x and along y.

    Example:
        >>> tower(Grid(nx=2, ny=2, nz=6)).num_cases
        3
    """
    top = Box(x=grid.nx // 2, y=grid.ny // 2, z=grid.nz)
    made = Builder(grid=grid, name="tower").hold(Box(z=0)).push(top, (0, 0, -1))
    return made.push(top, (0.3, 0, 0), case=1).push(top, (0, 0.3, 0), case=2).build()


STRUCTURES: dict[str, Callable[[Grid], Structure]] = {
    **PRESETS,
    "michell": michell,
    "l_bracket": l_bracket,
    "cantilever_3d": cantilever_3d,
    "bridge_3d": bridge_3d,
    "tower": tower,
}
