"""What a finished design is handed out as: functions that write its pictures and files, for `JobResult`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sciopt.domains.topology.export.animation import FrameStore, write_animation
from sciopt.domains.topology.export.pictures3d import draw_isosurface
from sciopt.domains.topology.export.stl import write_stl
from sciopt.domains.topology.export.table import write_history
from sciopt.domains.topology.export.vtk import write_vti
from sciopt.domains.topology.structure import Structure

__all__ = ["design_figures", "design_files"]

LEAST = 2  # frames of an animation


def design_figures(density: Any, structure: Any, *, title: str = "") -> dict[str, Callable[[Path], object]]:
    """Pictures beyond the image of the density: the shaded surface of a design in three dimensions.

    Args:
        density: built densities; others than ``(nz, ny, nx)`` have no surface.
        structure: its supports and loads are drawn if it is a `Structure`.
        title: line above the picture.

    Example:
        >>> from sciopt.domains.topology import Grid, cantilever
        >>> design_figures(np.ones((2, 4)), cantilever(Grid(nx=4, ny=2)))
        {}
    """
    if np.ndim(density) != 3:
        return {}
    marks = structure if isinstance(structure, Structure) else None
    return {"surface": partial(draw_isosurface, design=density, structure=marks, title=title)}


def design_files(
    density: Any, history: Mapping[str, Sequence[float]], *, frames: FrameStore | None = None
) -> dict[str, Callable[[Path], object]]:
    """Functions that write ``design.stl`` (if anything is dense enough), ``design.vti``, ``history.csv``, ``history.gif``.

    Args:
        density: built densities, ``(ny, nx)`` or ``(nz, ny, nx)``; others (areas of bars) have a table alone.
        history: columns of the table.
        frames: densities on the way, for the animation.

    Example:
        >>> sorted(design_files(np.ones((2, 4)), {"step": [0.0]}))
        ['design.stl', 'design.vti', 'history.csv']
    """
    files: dict[str, Callable[[Path], object]] = {}
    if np.ndim(density) in (2, 3):
        files["design.vti"] = partial(write_vti, density=density)
        if np.max(density) > 0.5:
            files["design.stl"] = partial(write_stl, design=density)
    if history:
        files["history.csv"] = partial(write_history, history=history)
    if frames is not None and len(frames.frames) >= LEAST:
        titles = [f"step {step}" for step in frames.steps]
        files["history.gif"] = partial(write_animation, frames=frames.frames, titles=titles)
    return files
