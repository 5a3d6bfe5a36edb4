"""Trees of tensors: one flat view for the solvers, the caller's own structure for the caller."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.transforms import under_transform

__all__ = ["Layout", "ravel", "tree_leaves", "tree_map", "under_transform"]

tree_leaves = pytree.tree_leaves
tree_map = pytree.tree_map


@dataclass(frozen=True)
class Layout:
    """How a tree of tensors lies in one flat tensor ``(*batch, n)``.

    Every leaf has shape ``(*batch, *shape)``; leaves share dtype and device.

    Example:
        >>> layout, flat = ravel({"a": torch.zeros(2, 3), "b": torch.ones(2)}, batch_ndim=1)
        >>> flat.shape, layout.unflatten(flat)["b"]
        (torch.Size([2, 4]), tensor([1., 1.]))
    """

    spec: Any
    shapes: tuple[tuple[int, ...], ...]
    batch_shape: tuple[int, ...]

    @cached_property
    def bare(self) -> bool:
        """Whether the tree is a lone tensor."""
        return self.spec.is_leaf()

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each leaf."""
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes)

    def flatten(self, tree: Any) -> Tensor:
        """Tree to ``(*batch, n)``; raises ValueError when the structure or a shape differs."""
        if self.bare and isinstance(tree, Tensor):
            leaves = [tree]  # what flattening would say, without its cost in every inner step
        else:
            leaves, spec = pytree.tree_flatten(tree)
            self._check_spec(spec)
        batch = self.batch_shape
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if tuple(leaf.shape) != (*batch, *shape):
                raise ValueError(
                    f"Layout: expected a leaf of shape {(*batch, *shape)}, got {tuple(leaf.shape)}. "
                    "Return tensors shaped as the inner parameters."
                )
        if len(leaves) == 1:
            return leaves[0].reshape(*batch, self.size)
        return torch.cat([leaf.reshape(*batch, size) for leaf, size in zip(leaves, self.sizes, strict=True)], dim=-1)

    def _check_spec(self, spec: Any) -> None:
        if spec != self.spec:
            raise ValueError(
                f"Layout: expected a tree with the structure of the inner parameters, {self.spec}, got {spec}. "
                "Return the same keys that came in."
            )

    def unflatten(self, flat: Tensor) -> Any:
        """``(*any, n)`` to the tree, leaves ``(*any, *shape)``; views where possible."""
        lead = flat.shape[:-1]
        if self.bare:
            return flat.reshape((*lead, *self.shapes[0]))
        if len(self.shapes) == 1:
            leaves = [flat.reshape((*lead, *self.shapes[0]))]
        else:
            parts = flat.split(self.sizes, dim=-1)
            leaves = [part.reshape((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def ravel(tree: Any, batch_ndim: int = 0) -> tuple[Layout, Tensor]:
    """Layout and flat tensor of a tree whose leaves carry ``batch_ndim`` leading batch dimensions."""
    leaves, spec = pytree.tree_flatten(tree)
    batch = tuple(leaves[0].shape[:batch_ndim])
    layout = Layout(spec, tuple(tuple(leaf.shape[batch_ndim:]) for leaf in leaves), batch)
    return layout, layout.flatten(tree)
