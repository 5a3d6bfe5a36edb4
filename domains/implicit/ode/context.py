"""What a right-hand side is told besides time and state: the context of each row, cut when rows are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.transforms import carries_derivative

__all__ = ["Split", "check_context", "parted"]


@final
@dataclass(frozen=True, eq=False)
class Split:
    """The context's structure: which of its leaves are differentiable (None here), and the others."""

    spec: Any
    fixed: tuple[Tensor | None, ...]

    @cached_property
    def whole(self) -> Any:
        """The context where none of it is differentiable, else None."""
        return None if any(leaf is None for leaf in self.fixed) else pytree.tree_unflatten(self.fixed, self.spec)

    def restricted(self, rows: Tensor) -> Split:
        """The context of some rows."""
        return Split(self.spec, tuple(None if leaf is None else leaf.index_select(0, rows) for leaf in self.fixed))

    def join(self, phi: Any, rows: Tensor | None) -> Any:
        """The whole context; its differentiable leaves are those of all rows, and cut here."""
        if self.whole is not None:
            return self.whole
        cut = (lambda v: v) if rows is None else (lambda v: v.index_select(0, rows))
        leaves = [cut(phi[str(i)]) if leaf is None else leaf for i, leaf in enumerate(self.fixed)]
        return pytree.tree_unflatten(leaves, self.spec)


def parted(x: Any, z0: Tensor) -> tuple[Any, Split]:
    """Outer parameters from a context, and how to put it together again."""
    if x is None:
        return z0.new_zeros(()), Split(None, ())
    leaves, spec = pytree.tree_flatten(x)
    live = [isinstance(leaf, Tensor) and leaf.dtype == z0.dtype and carries_derivative(leaf) for leaf in leaves]
    phi = {str(i): leaf for i, leaf in enumerate(leaves) if live[i]}
    fixed = tuple(None if str(i) in phi else leaf for i, leaf in enumerate(leaves))
    return phi or z0.new_zeros(()), Split(spec, fixed)


def check_context(x: Any, z0: Tensor, rowwise: bool) -> None:
    """Every tensor of the context has one entry per row, and carries no derivative that would be lost."""
    for leaf in pytree.tree_leaves(x) if x is not None else ():
        if not isinstance(leaf, Tensor) or (rowwise and (not leaf.ndim or len(leaf) != len(z0))):
            got = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"NeuralODE: expected `x` to be tensors ({len(z0)}, ...), got {got}. Let f capture what is the "
                "same for all rows."
            )
        if leaf.dtype != z0.dtype and carries_derivative(leaf):
            raise ValueError(
                f"NeuralODE: expected `x` to be {z0.dtype} where a gradient is wanted, got {leaf.dtype}. Convert it to "
                "the dtype of `z0`."
            )
