"""Designs into files: pictures, animations, surfaces to print, fields to look at, tables."""

from sciopt.domains.topology.export.stl import read_stl, write_stl
from sciopt.domains.topology.export.surface import Surface, isosurface, matching_level

__all__ = [
    "Surface",
    "isosurface",
    "matching_level",
    "read_stl",
    "write_stl",
]
