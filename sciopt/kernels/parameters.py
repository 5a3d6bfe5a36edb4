"""The tensors inside a kernel: found, and put back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["kernel_tensors", "with_kernel_tensors"]


def kernel_tensors(kernel: Any) -> list[Tensor]:
    """Tensors among the fields of a kernel and of the kernels, networks and activations inside it, in order.

    Args:
        kernel: any (nested) frozen dataclass.

    Returns:
        The tensors themselves, not copies.

    Example:
        >>> import torch
        >>> from sciopt.kernels import RBF
        >>> kernel_tensors(RBF(length_scale=torch.tensor(2.0)))
        [tensor(2.)]
    """
    found: list[Tensor] = []
    for item in fields(kernel):
        value = getattr(kernel, item.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif is_dataclass(value) and not isinstance(value, type):
            found += kernel_tensors(value)
    return found


def with_kernel_tensors(kernel: Any, tensors: list[Tensor]) -> Any:
    """The same kernel with other tensors in the order of `kernel_tensors`.

    Args:
        kernel: any (nested) frozen dataclass.
        tensors: one for each of `kernel_tensors`.

    Returns:
        A new kernel.

    Example:
        >>> import torch
        >>> from sciopt.kernels import RBF
        >>> with_kernel_tensors(RBF(length_scale=torch.tensor(2.0)), [torch.tensor(3.0)]).length_scale
        tensor(3.)
    """
    left = list(tensors)
    made = _fill(kernel, left)
    if left:
        raise ValueError(
            f"with_kernel_tensors: expected {len(kernel_tensors(kernel))} `tensors`, got {len(tensors)}. Pass one for each "
            "of kernel_tensors(kernel)."
        )
    return made


def _fill(kernel: Any, left: list[Tensor]) -> Any:
    changes: dict[str, Any] = {}
    for item in fields(kernel):
        value = getattr(kernel, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = left.pop(0)
        elif is_dataclass(value) and not isinstance(value, type) and kernel_tensors(value):
            changes[item.name] = _fill(value, left)
    return replace(kernel, **changes) if changes else kernel
