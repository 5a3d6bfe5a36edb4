"""Designs into files: pictures, animations, surfaces to print, fields to look at, tables."""

from sciopt.domains.topology.export.animation import FrameStore, write_animation
from sciopt.domains.topology.export.outputs import design_figures, design_files
from sciopt.domains.topology.export.pictures3d import draw_isosurface
from sciopt.domains.topology.export.render import Camera, render
from sciopt.domains.topology.export.stl import read_stl, write_stl
from sciopt.domains.topology.export.surface import Surface, isosurface, matching_level
from sciopt.domains.topology.export.table import read_history, write_history
from sciopt.domains.topology.export.vtk import write_vti, write_vtu
from sciopt.domains.topology.export.vtk_read import ImageData, read_vti

__all__ = [
    "Camera",
    "FrameStore",
    "ImageData",
    "Surface",
    "design_figures",
    "design_files",
    "draw_isosurface",
    "isosurface",
    "matching_level",
    "read_history",
    "read_stl",
    "read_vti",
    "render",
    "write_animation",
    "write_history",
    "write_stl",
    "write_vti",
    "write_vtu",
]
