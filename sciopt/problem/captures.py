"""Tensors that a loss captures (closures, modules, wrapped ones): found, substituted, or refused.

A custom autograd function sees its arguments only; a captured tensor would silently lose its gradient. `find_captures`
runs the function once under a `TorchFunctionMode` and lists the foreign tensors that carry derivatives; `substitute` runs
it with replacements in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sciopt.transforms import carries_derivative, is_wrapped, level_of, plain, top_level, uncompiled

__all__ = ["find_captures", "mark_derived", "substitute"]

_recorders: ContextVar[tuple[_Recorder, ...]] = ContextVar("recorders", default=())


class _Recorder(TorchFunctionMode):
    """Lists, in order of first use, the foreign tensors that carry a derivative, and runs with plain copies of them."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.entry_level = top_level()
        self.own = {id(t): t for t in known}  # keeps references, so that an id is not used twice
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def mark(self, tensors: Any) -> None:
        """Tensors made inside the function are not foreign."""
        for t in pytree.tree_leaves(tensors):
            if isinstance(t, Tensor) and carries_derivative(t):
                self.own[id(t)] = t

    def _swap(self, t: Any) -> Any:
        if not isinstance(t, Tensor) or id(t) in self.own:
            return t
        if id(t) not in self.found:
            if t.is_complex() or level_of(t) > self.entry_level or not carries_derivative(t):
                return t
            self.found[id(t)] = (t, plain(t))
        return self.found[id(t)][1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(self._swap, (args, kwargs or {}))
        out = func(*args, **kwargs)
        self.mark(out)
        return out


class _Substitution(TorchFunctionMode):
    def __init__(self, originals: Sequence[Tensor], replacements: Sequence[Tensor]) -> None:
        super().__init__()
        self.table = {id(o): r for o, r in zip(originals, replacements, strict=True)}

    def _swap(self, x: Any) -> Any:
        return self.table.get(id(x), x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(id(x) in self.table for x in pytree.tree_leaves((args, kwargs))):
            args, kwargs = pytree.tree_map(self._swap, (args, kwargs))
        return func(*args, **kwargs)


def mark_derived(tensors: Any) -> None:
    """Tell active recorders that these outputs of a custom function are not foreign."""
    for recorder in _recorders.get():
        recorder.mark(tensors)


@contextmanager
def substitute(originals: Sequence[Tensor], replacements: Sequence[Tensor]) -> Iterator[None]:
    """Run the body with each original replaced wherever it enters a torch call."""
    if not originals:
        yield
        return
    with uncompiled(), _Substitution(originals, replacements):
        yield


def find_captures(owner: str, function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Any]:
    """Foreign tensors with derivatives that ``function(*inputs)`` uses, and its result; ``inputs`` plain and detached.

    Raises:
        TypeError: when a second run finds other tensors, or the result carries a derivative all the same: then a tensor
            enters through a custom ``autograd.Function``, out of sight.
    """
    found, out = _record(function, inputs)
    fresh: set[int] = set()
    if any(is_wrapped(t) or not t.is_leaf for t in found):  # parameters are not made anew by a second run
        again, out = _record(function, inputs)
        fresh = {id(t) for t in again} - {id(t) for t in found}
    if fresh or any(carries_derivative(t) for t in pytree.tree_leaves(out) if isinstance(t, Tensor)):
        raise TypeError(
            f"{owner}: expected every captured tensor that carries a gradient to enter through torch operations, got one "
            "that cannot be lifted (complex, or used by a custom autograd.Function, an extension, or torch.autograd.grad). "
            "Pass it in `outer_params` (complex numbers as view_as_real), take inner derivatives with torch.func.grad, or "
            "detach it if no gradient is wanted."
        )
    return found, out


def _record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Any]:
    """Foreign tensors of one run, and its result."""
    recorder = _Recorder(inputs)
    token = _recorders.set((*_recorders.get(), recorder))
    try:
        with torch.enable_grad(), uncompiled(), recorder:
            out = function(*inputs)
    finally:
        _recorders.reset(token)
    return tuple(original for original, _ in recorder.found.values()), out
