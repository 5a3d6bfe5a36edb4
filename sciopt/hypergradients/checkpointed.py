"""Reverse mode through many steps from few stored states: segments are recomputed backwards.

An autograd function of its own: `torch.utils.checkpoint` around steps that call `autograd.grad` themselves is several times
slower and saves little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.hypergradients.steps import Path
from sciopt.problem.captures import mark_derived
from sciopt.solution import Solution

__all__ = ["respond_checkpointed"]


def respond_checkpointed(
    path: Path, x0: Tensor, args: Sequence[Tensor], total: int, checkpoints: int, *, exact: bool
) -> Solution:
    """Flat solution after ``total`` steps whose backward pass keeps ``checkpoints`` states."""
    segments = max(1, min(checkpoints, total))
    bounds = [round(i * total / segments) for i in range(segments + 1)]
    holder: dict[str, Any] = {}
    x = _Segments.apply(path, bounds, holder, x0.view_as(x0), *(a.view_as(a) for a in args))
    mark_derived(x)
    return path.finish(x, holder.pop("state"), total, exact=exact)


def own(tree: Any) -> Any:
    """A copy that later steps cannot write into (a solver may update the state of its run in place); sharing is kept."""
    copies: dict[int, Tensor] = {}

    def copy(t: Any) -> Any:
        return copies.setdefault(id(t), t.clone()) if isinstance(t, Tensor) else t

    return pytree.tree_map(copy, tree)


def _is_float(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def _leaf(t: Any, wanted: bool = True) -> Any:
    return t.detach().requires_grad_(wanted) if _is_float(t) else t


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, path: Path, bounds: list[int], holder: Any, x0: Tensor, *args: Tensor) -> Tensor:
        kept: list[tuple[Tensor, Any]] = []
        with torch.no_grad():
            path.visited.clear()
            x, state = path.begin(x0, args)
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                kept.append(own((x, state)))
                x, state = path.advance(x, state, args, start, stop)
        holder["state"] = state
        ctx.path, ctx.bounds, ctx.kept = path, bounds, kept
        ctx.trajectory = path.recurrence is not None and path.recurrence.trajectory
        ctx.save_for_backward(x0, *args)
        return x.clone() if x is x0 else x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x0, *args = ctx.saved_tensors
        path: Path = ctx.path
        bounds: list[int] = ctx.bounds
        if torch.is_grad_enabled():
            return (None, None, None, *_plain_vjp(path, bounds[-1], x0, args, grad))
        leaves = [_leaf(a, need) for a, need in zip(args, ctx.needs_input_grad[4:], strict=True)]
        wanted = [a for a in leaves if a.requires_grad]
        totals: list[Tensor | None] = [None] * len(wanted)
        grads_out: list[Tensor | None] = [grad]
        state_grads: list[Tensor | None] | None = None
        for i in reversed(range(len(bounds) - 1)):
            with torch.enable_grad():
                if i:
                    x = _leaf(ctx.kept[i][0])
                    state = pytree.tree_map(_leaf, ctx.kept[i][1])
                    inputs = [x, *filter(_is_float, pytree.tree_leaves(state))]
                else:
                    x = _leaf(x0)
                    inputs = [x]
                    x, state = path.begin(x, leaves)
                x, state = path.advance(x, state, leaves, bounds[i], bounds[i + 1])
            outputs = [x, *filter(_is_float, pytree.tree_leaves(state))]
            grads = grads_out if state_grads is None else [*grads_out, *state_grads]
            live = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None and o.requires_grad]
            pulled = torch.autograd.grad(
                [o for o, _ in live], [*inputs, *wanted], [g for _, g in live], allow_unused=True
            )
            grads_out, state_grads = [pulled[0]], list(pulled[1 : len(inputs)])
            for k, g in enumerate(pulled[len(inputs) :]):
                before = totals[k]
                totals[k] = g if before is None else before if g is None else before + g
        filled = iter(torch.zeros_like(a) if g is None else g for a, g in zip(wanted, totals, strict=True))
        return (None, None, None, grads_out[0], *(next(filled) if a.requires_grad else None for a in leaves))


def _plain_vjp(path: Path, total: int, x0: Tensor, args: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The same product, differentiable: a plain unroll under `torch.func.vjp`."""

    def unrolled(x0: Tensor, *args: Tensor) -> Tensor:
        x, state = path.begin(x0, args)
        return path.advance(x, state, args, 0, total)[0]

    return torch.func.vjp(unrolled, x0, *args)[1](grad)
