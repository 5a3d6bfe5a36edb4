"""Cheap gradients of an equilibrium: what they leave out, and how much that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.checks import check_option
from sciopt.hypergradients import (
    AbstractHypergradient,
    FirstOrder,
    Implicit,
    NeumannOrKrylov,
    OneStep,
    Unrolled,
)
from sciopt.linsolve import Neumann

if TYPE_CHECKING:
    from sciopt.domains.implicit.equilibrium.layer import DEQ

__all__ = ["GradientError", "approximation", "gradient_error", "phantom_gradient"]


def phantom_gradient(num_steps: int = 5, *, damping: float = 0.5) -> Implicit:
    """The exact adjoint's series cut after ``num_steps`` damped terms: ``damping * sum_i ((1 - damping) I + damping J)^i``.

    Use it when an approximate gradient is good enough: it costs ``num_steps`` products whatever the map, and never fails.
    The error shrinks as the damped map's contraction to the power of ``num_steps``; `gradient_error` measures it.

    Args:
        num_steps: terms of the series.
        damping: weight of a term, in (0, 1].

    Returns:
        The hypergradient for `DEQ`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.implicit.equilibrium import DEQ
        >>> layer = DEQ(lambda z, x: 0.5 * z + x, hypergradient=phantom_gradient(2, damping=1.0))
        >>> x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
        >>> layer(x).sum().backward()
        >>> x.grad  # 1 + 0.5; exact: 2
        tensor([[1.5000, 1.5000]], dtype=torch.float64)

    References:
        Geng, Zhang, Bai, Wang, Lin. "On training implicit models". NeurIPS 2021, eq. 10 (Neumann-series form).
    """
    ok = isinstance(num_steps, int) and num_steps >= 1
    check_option("phantom_gradient", "num_steps", num_steps, ok, "to be an int >= 1", "5 is a common choice.")
    check_option("phantom_gradient", "damping", damping, 0 < damping <= 1, "in (0, 1]", "0.5 is a common choice.")
    return Implicit(Neumann(step_size=damping, rtol=0.0, atol=0.0, max_steps=num_steps))


def approximation(hypergradient: AbstractHypergradient) -> str | None:
    """What a method leaves out of an equilibrium's gradient; None when it is exact to its tolerances."""
    if isinstance(hypergradient, OneStep):
        return "approximate: one step (the inverse of I - J is replaced by a multiple of I)"
    if isinstance(hypergradient, FirstOrder):
        return "approximate: z* counts as a constant"
    if isinstance(hypergradient, Unrolled) and hypergradient.truncate is not None:
        return f"approximate: the last {hypergradient.truncate} iterations only"
    if isinstance(hypergradient, Implicit):
        solver = hypergradient.linear_solver
        if isinstance(solver, Neumann) and solver.rtol == 0 and solver.atol == 0:
            return f"approximate: phantom gradient of {solver.max_steps} terms"
    exact = Implicit | Unrolled
    return None if isinstance(hypergradient, exact) else f"by {type(hypergradient).__name__}"


@final
@dataclass(frozen=True, kw_only=True)
class GradientError:
    """How far a layer's gradient is from the exact one, all parameters and inputs together.

    Args:
        relative: norm of the difference over the norm of the exact gradient.
        cosine: between the two; 1 for the right direction, at most 0 for one that does not descend.
        by_name: relative error of each parameter of ``f`` and of each floating-point tensor of the input (``x.0``, ...).
    """

    relative: float
    cosine: float
    by_name: dict[str, float] = field(default_factory=dict)


def gradient_error(
    layer: DEQ, x: Any, loss: Callable[[Tensor], Tensor], *, init: Tensor | None = None
) -> GradientError:
    """Measure a layer's gradient of ``loss(z*)`` against the exact adjoint, at the same solution.

    Use it now and then while training with `OneStep` or `phantom_gradient`: it costs one exact adjoint solve. Dropout draws
    the same mask in both; batch norm statistics and the generators stay as they are.

    Args:
        layer: the layer with its approximate hypergradient.
        x: input as for the layer.
        loss: from z ``(batch, ...)`` to a scalar.
        init: start of the solve.

    Returns:
        `GradientError`.

    Raises:
        SolveError: when the forward or the exact adjoint solve fails.
        ValueError: when nothing carries a gradient.

    Example:
        >>> from sciopt.domains.implicit.equilibrium import DEQ
        >>> from sciopt.hypergradients import OneStep
        >>> layer = DEQ(lambda z, x: 0.5 * z + x, hypergradient=OneStep())
        >>> gradient_error(layer, torch.ones(4, 2, dtype=torch.float64), torch.sum).relative  # 1 instead of 2
        0.5
    """
    leaves, spec = pytree.tree_flatten(x)
    leaves = [t.detach().clone().requires_grad_() if is_float(t) else t for t in leaves]
    names = {f"x.{i}": t for i, t in enumerate(leaves) if is_float(t)}
    names |= {name: p for name, p in layer.named_parameters() if p.requires_grad}
    if not names:
        raise ValueError(
            "gradient_error: expected an input or a parameter with a gradient, got none. Pass floats in `x`."
        )
    tree = pytree.tree_unflatten(leaves, spec)
    exact = type(layer)(
        layer.f,
        shape=layer.shape,
        solver=layer.solver,
        hypergradient=Implicit(NeumannOrKrylov()),
        per_sample=layer.per_sample,
    )
    found = []
    for candidate in (layer, exact):
        buffers = [b.clone() for b in layer.buffers()]
        with torch.random.fork_rng():
            value = loss(candidate(tree, init=init))
        found.append(torch.autograd.grad(value, list(names.values()), materialize_grads=True, allow_unused=True))
        for buffer, before in zip(layer.buffers(), buffers, strict=True):
            buffer.copy_(before)
    mine, right = (torch.cat([g.reshape(-1) for g in grads]) for grads in found)
    sizes = [float(g.norm()) for g in found[1]]
    errors = [float((a - b).norm()) for a, b in zip(*found, strict=True)]
    return GradientError(
        relative=ratio(float((mine - right).norm()), float(right.norm())),
        cosine=ratio(float(mine @ right), float(mine.norm() * right.norm())),
        by_name={name: ratio(error, size) for name, error, size in zip(names, errors, sizes, strict=True)},
    )


def is_float(value: Any) -> bool:
    """Whether a value is a tensor that a derivative may reach."""
    return isinstance(value, Tensor) and value.is_floating_point()


def ratio(a: float, b: float) -> float:
    """``a / b``, where 0 / 0 counts as 0."""
    return a / b if b else (0.0 if a == 0 else float("inf"))
