"""Checks at public entries: what was expected, what came, what to do next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciopt.params import tree_leaves
from sciopt.transforms import is_wrapped

__all__ = ["check_finite", "check_option", "check_tolerances", "check_tree", "default_rtol"]


def default_rtol(dtype: torch.dtype) -> float:
    """Default relative tolerance: 1e-8 in float64, 1e-4 in float32 (the square root of eps is 3.5e-4)."""
    return 1e-8 if dtype == torch.float64 else 1e-4


def check_option(owner: str, name: str, value: Any, ok: bool, expected: str, advice: str) -> None:
    """Raise ValueError in the project's form when an option is out of range."""
    if not ok:
        raise ValueError(f"{owner}: expected `{name}` {expected}, got {value!r}. {advice}")


def check_tolerances(owner: str, rtol: float | None, atol: float, max_steps: int | None = None) -> None:
    """Ranges of the options that every iterative class has."""
    if rtol is not None:
        check_option(owner, "rtol", rtol, 0 <= rtol < 1, "in [0, 1)", "Use 0 with atol > 0, or leave the default.")
    check_option(owner, "atol", atol, atol >= 0, ">= 0", "Use 0 to stop by rtol alone.")
    if max_steps is not None:
        ok = isinstance(max_steps, int) and not isinstance(max_steps, bool) and max_steps >= 0
        check_option(owner, "max_steps", max_steps, ok, "to be an int >= 0", "Pass the largest number of steps.")


def check_rtol_dtype(owner: str, rtol: float | None, dtype: torch.dtype) -> float:
    """The relative tolerance to use for ``dtype``; refuses one that rounding cannot reach."""
    if rtol is None:
        return default_rtol(dtype)
    floor = 10 * torch.finfo(dtype).eps
    check_option(
        owner, "rtol", rtol, rtol == 0 or rtol >= floor, f"0 or >= {floor:.1e} for {dtype}", "Loosen it or use float64."
    )
    return rtol


def check_tree(owner: str, name: str, tree: Any, like: Tensor | None = None) -> list[Tensor]:
    """Leaves of a tree of floating-point tensors of one dtype and device (those of ``like`` if given).

    Raises:
        TypeError: for leaves that are not floating-point tensors, or of mixed dtype or device.
        ValueError: for an empty tree.
    """
    leaves = tree_leaves(tree)
    if not leaves:
        raise ValueError(
            f"{owner}: expected `{name}` to hold at least one tensor, got {tree!r}. Pass a tensor or a dict."
        )
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{owner}: expected `{name}` to be a tensor or a dict of tensors, got {type(leaf).__name__}. "
                "Wrap numbers with torch.tensor; pass modules through torch.func.functional_call."
            )
        if not leaf.is_floating_point():
            raise TypeError(
                f"{owner}: expected `{name}` in a real floating-point dtype, got {leaf.dtype}. Convert it first."
            )
    first = leaves[0] if like is None else like
    for leaf in leaves:
        if leaf.dtype != first.dtype or leaf.device != first.device:
            raise TypeError(
                f"{owner}: expected `{name}` all in {first.dtype} on {first.device}, got {leaf.dtype} on {leaf.device}. "
                "Convert with .to(dtype=..., device=...) before the call."
            )
    return leaves


def check_finite(owner: str, name: str, leaves: list[Tensor]) -> None:
    """Raise ValueError when a leaf holds NaN or Inf; silent under transforms, where values cannot be read."""
    readable = [leaf.detach() for leaf in leaves if not is_wrapped(leaf)]
    if not readable or bool(torch.isfinite(torch.stack([leaf.sum() for leaf in readable])).all()):
        return  # a sum is finite only if every entry is
    for leaf in readable:
        bad = ~torch.isfinite(leaf)
        if bool(bad.any()):
            where = torch.nonzero(bad)[0].tolist()
            raise ValueError(
                f"{owner}: expected finite `{name}`, got {int(bad.sum())} NaN or Inf entries of {leaf.numel()}, the first "
                f"at index {where}. Clean the input first."
            )
