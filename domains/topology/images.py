"""Masks and starting densities from files: pictures, STL surfaces and VTK images, brought onto the grid."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sciopt.checks import check_option
from sciopt.domains.topology.export.fields import as_numpy
from sciopt.domains.topology.export.stl import read_stl
from sciopt.domains.topology.export.vtk_read import read_vti
from sciopt.domains.topology.voxels import voxelize

__all__ = ["field_of_vti", "read_density", "read_image", "read_mask", "resample"]

SAMPLES = 3  # of a surface, along each axis of an element
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def resample(field: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A field over elements on another grid of the same domain: each new element gets the mean over what it covers.

    Keeps the mean and the range exactly; costs one small matrix product per axis.

    Args:
        field: values over elements, any number of axes.
        shape: of the new grid, as many axes.

    Returns:
        float64 array of that shape.

    Raises:
        ValueError: for another number of axes, or sizes below one.

    Example:
        >>> resample([[0.0, 1.0, 1.0]], (2, 2))
        array([[0.33333333, 1.        ],
               [0.33333333, 1.        ]])
    """
    result = as_numpy(field).astype(np.float64)
    ok = len(shape) == result.ndim and all(n >= 1 for n in shape) and bool(result.size)
    check_option(
        "resample", "shape", tuple(shape), ok, f"of {result.ndim} sizes >= 1", "Give the elements along each axis."
    )
    for axis, n in enumerate(shape):
        m = result.shape[axis]
        if n == m:
            continue
        new, old = np.arange(n + 1) / n, np.arange(m + 1) / m
        overlap = np.minimum(new[1:, None], old[1:]) - np.maximum(new[:-1, None], old[:-1])
        weights = np.clip(overlap, 0, None)
        weights /= weights.sum(1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result)


def read_image(path: Path | str, *, dark_is_solid: bool = True) -> np.ndarray:
    """The density that a picture shows, one element per pixel.

    Args:
        path: PNG, or another format that Pillow reads; colours count by their luminance, what is transparent is void.
        dark_is_solid: black is 1 and white 0, as in this domain's own pictures; else the other way round.

    Returns:
        Densities ``(height, width)`` in [0, 1], float64, row 0 on top.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is cut off or is no picture.

    Example:
        >>> import tempfile
        >>> from matplotlib import image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image.imsave(Path(folder) / "a.png", [[0.0, 1.0]], cmap="gray_r")
        ...     read_image(Path(folder) / "a.png")
        array([[0., 1.]])
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    data = path.open("rb")
    with data, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(data) as picture:
                picture.load()
                if picture.mode.startswith("I"):  # 16 bits in PNG
                    light = np.asarray(picture, dtype=np.float64) / 65535
                    alpha = np.ones_like(light)
                else:
                    rgba = picture.convert("RGBA")
                    light = np.asarray(rgba.convert("RGB").convert("L"), dtype=np.float64) / 255
                    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float64) / 255
        except UnidentifiedImageError:
            raise ValueError(
                f"read_image: expected `path` to be a picture that Pillow knows, got {path}. Save it as PNG."
            ) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f"read_image: expected `path` of a usual size, got {path}: {error} Scale it down."
            ) from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ValueError(
                f"read_image: expected `path` to be a whole picture, got {path} ({error}). Save it again as PNG."
            ) from None
    return np.clip(alpha * (1 - light if dark_is_solid else light), 0, 1)


def field_of_vti(path: Path | str, *, name: str | None = None) -> np.ndarray:
    """One scalar field over the elements of a ``.vti`` file; fields over nodes are averaged onto the elements.

    Args:
        path: file, see `read_vti`.
        name: of the field. By default ``density``, else the one the file puts forward, else the only one.

    Returns:
        float64 ``(nz, ny, nx)``, z up, or ``(ny, nx)``, row 0 on top.

    Raises:
        ValueError: for an unknown name, with those there are; for several fields and no name; for vectors.
    """
    image = read_vti(path)
    fields = {**image.point_data, **image.cell_data}
    if name is None:
        scalars = [key for key, value in fields.items() if value.ndim == len(image.shape)]
        usual = [key for key in ("density", image.scalars) if key in fields]
        chosen = usual[0] if usual else (scalars[0] if len(scalars) == 1 else None)
    else:
        chosen = name if name in fields else None
    if chosen is None:
        raise ValueError(
            f"field_of_vti: expected `name` to be one of {sorted(fields)}, got {name!r} with {path}. Name the field to read."
        )
    field = fields[chosen].astype(np.float64)
    axes = len(image.shape)
    if field.ndim != axes:
        raise ValueError(
            f"field_of_vti: expected a scalar field, got {chosen!r} with {field.shape[-1]} components in {path}. "
            "Give the `name` of another field."
        )
    if chosen not in image.cell_data:
        for axis in range(axes):
            low, high = (field.take(range(s, s + field.shape[axis] - 1), axis=axis) for s in (0, 1))
            field = 0.5 * (low + high)
    return field


def read_density(
    path: Path | str,
    shape: tuple[int, ...],
    *,
    name: str | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    box: Any = None,
) -> np.ndarray:
    """A density on the grid from a picture (2D), an STL surface or a VTK image, by the file's suffix.

    Pictures and VTK images are stretched to the grid by `resample`. A surface gives each element the share of it that is
    inside (see `voxelize`).

    Args:
        path: ``.png`` and other pictures, ``.stl``, ``.vti``.
        shape: of the grid, ``(ny, nx)``, row 0 on top, or ``(nz, ny, nx)``, z up.
        name: of the field, VTK alone.
        limits: values that become 0 and 1, VTK alone.
        box: the domain in the coordinates of the surface, STL alone.

    Returns:
        Densities in [0, 1] of that shape, float64.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for other suffixes, broken files, fields of another dimension, values outside ``limits``.

    Example:
        >>> import tempfile
        >>> from sciopt.domains.topology.export import write_vti
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_density(write_vti(Path(folder) / "a.vti", [[0.0, 1.0], [1.0, 1.0]]), (1, 2))
        array([[0.5, 1. ]])
    """
    path = Path(path)
    suffix = path.suffix.lower()
    for option, value, owner in (("name", name, ".vti"), ("box", box, ".stl")):
        if value is not None and suffix != owner:
            raise ValueError(
                f"read_density: expected `{option}` with {owner} files alone, got {value!r}. Leave it out."
            )
    if suffix == ".stl":
        return voxelize(read_stl(path), shape, box=box, samples=SAMPLES)
    if suffix == ".vti":
        field = field_of_vti(path, name=name)
        low, high = limits
        check_option("read_density", "limits", limits, low < high, "as (low, high)", "(0, 255) reads bytes.")
        if not (np.isfinite(field).all() and field.min() >= low - 1e-6 and field.max() <= high + 1e-6):
            raise ValueError(
                f"read_density: expected values within `limits` = {limits}, got {field.min():g} to {field.max():g} in {path}. "
                "Give the values that mean void and solid."
            )
        field = np.clip((field - low) / (high - low), 0, 1)
    elif suffix in PICTURES:
        field = read_image(path)
    else:
        raise ValueError(
            f"read_density: expected `path` to a picture, .stl or .vti, got {path.name!r}. Convert it to one of them."
        )
    if field.ndim != len(shape):
        raise ValueError(
            f"read_density: expected a file with {len(shape)} axes for `shape` {tuple(shape)}, got {field.ndim} in {path}. "
            "Give a grid of the file's dimension."
        )
    return resample(field, shape)


def read_mask(path: Path | str, shape: tuple[int, ...], *, level: float = 0.5, box: Any = None) -> np.ndarray:
    """Which elements a file marks: those whose `read_density` is above ``level``; bool, of that shape.

    Example:
        >>> import tempfile
        >>> from sciopt.domains.topology.export import write_stl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_mask(write_stl(Path(folder) / "a.stl", [[1.0, 0.0], [1.0, 1.0]]), (2, 2))
        array([[ True, False],
               [ True,  True]])
    """
    check_option("read_mask", "level", level, 0 <= level < 1, "in [0, 1)", "0.5 takes what is mostly filled.")
    return read_density(path, shape, box=box) > level
