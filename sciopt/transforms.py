"""The little that sciopt needs to know about active `torch.func` transforms; the one place that reads torch's internals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

__all__ = [
    "carries_derivative",
    "depends_on_others",
    "forward_levels",
    "level_of",
    "plain",
    "reverse_levels",
    "top_level",
    "uncompiled",
    "under_transform",
    "unwrapped",
]

_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009  (a compiled module without type stubs)


def top_level() -> int:
    """Number of the innermost active transform, 0 outside."""
    interpreter = _functorch.peek_interpreter_stack()
    return 0 if interpreter is None else interpreter.level()


def under_transform() -> bool:
    """Whether a `torch.func` transform (grad, vjp, jvp, vmap, functionalize) or a forward-mode level is active."""
    return _functorch.peek_interpreter_stack() is not None or getattr(forward_ad, "_current_level") >= 0  # noqa: B009


def uncompiled() -> AbstractContextManager[Any]:
    """A context in which functions of `torch.compile` run as they were written: where each torch call is looked at."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform has wrapped the tensor."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def level_of(tensor: Tensor) -> int:
    """Number of the transform that wrapped the tensor, -1 for plain tensors."""
    return _functorch.maybe_get_level(tensor) if is_wrapped(tensor) else -1


def forward_levels() -> int:
    """Number of nested forward-mode transforms (jvp, jacfwd) that are active."""
    kind = _functorch.TransformType.Jvp
    return sum(level.key() == kind for level in retrieve_all_functorch_interpreters())


def reverse_levels() -> int:
    """Number of nested reverse-mode transforms (grad, vjp, jacrev) that are active."""
    kind = _functorch.TransformType.Grad
    return sum(level.key() == kind for level in retrieve_all_functorch_interpreters())


def carries_derivative(tensor: Tensor) -> bool:
    """Whether a derivative or a batch may flow through the tensor: requires grad, dual, or batched, at any level."""
    while True:
        if tensor.requires_grad:
            return True
        if _functorch.is_batchedtensor(tensor):  # asked first: torch cannot unpack a batched dual
            return True
        dual = tensor.is_floating_point() and getattr(forward_ad, "_current_level") >= 0  # noqa: B009
        if dual and forward_ad.unpack_dual(tensor).tangent is not None:
            return True
        if not is_wrapped(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)


def depends_on_others(outputs: Sequence[Tensor], leaf: Tensor) -> bool:
    """Whether the graph of the outputs reaches a leaf other than ``leaf``."""
    stack = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not leaf:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def first_of(tensor: Tensor, dim: int) -> Tensor:
    """The first slice along a dimension; zeros where there is none."""
    if tensor.shape[dim]:
        return tensor.select(dim, 0)
    return tensor.new_zeros([n for i, n in enumerate(tensor.shape) if i != dim % tensor.ndim])


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside all wrappers of transforms, for one that carries no derivative and no batch."""
    while is_wrapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def plain(tensor: Tensor) -> Tensor:
    """A detached tensor with the same values, free of every transform; of a batched one, its first entry."""
    while is_wrapped(tensor):
        batched = _functorch.is_batchedtensor(tensor)
        dim = _functorch.maybe_get_bdim(tensor) if batched else 0
        tensor = _functorch.get_unwrapped(tensor)
        tensor = first_of(tensor, dim) if batched else tensor
    return tensor.detach()
