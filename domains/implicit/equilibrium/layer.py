"""The deep equilibrium layer: `best_response` of a fixed point, as a module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from sciopt import FixedPoint, Solution, best_response
from sciopt.domains.implicit.equilibrium.gradients import approximation
from sciopt.domains.implicit.frozen import Frozen
from sciopt.domains.implicit.modules import modules_of
from sciopt.domains.implicit.noise import Rewound
from sciopt.hypergradients import AbstractHypergradient, HypergradientWarning, Implicit, NeumannOrKrylov
from sciopt.hypergradients.precision import full_precision
from sciopt.inner import Anderson
from sciopt.inner.abstract import AbstractSolver
from sciopt.transforms import under_transform

__all__ = ["DEQ"]


class DEQ(nn.Module):
    """``z*(x) = f(z*(x), x)``: the output of infinitely many layers that share their weights, in the memory of one.

    Use it in place of a deep stack of equal layers. The forward pass solves for the fixed point of every sample of the batch
    on its own (samples that are done are dropped), the backward pass solves one linear system with the map's derivative
    there; neither records iterations. Gradients reach ``x``, the parameters of ``f`` and every tensor that ``f`` captures, to
    any order and under `torch.func`. A sample that has not converged raises, or is reported.

    During a solve f is one fixed function: dropout draws one mask per call, which the adjoint uses too; batch norm normalises
    by its running statistics, which take in those of the solution once per call in training mode (not under `torch.func`, and
    no derivative passes through them); autocast is off, and lower precision is raised to that of the parameters, or to
    float32. No object remembers a solve: for a warm start pass the previous solution as ``init``.

    Args:
        f: map ``(z, x) -> z`` with ``z`` of shape ``(batch, ...)``, a module, a bound method of one, or any function; each
            sample's output must depend on that sample alone, unless ``per_sample`` is False.
        shape: shape of one sample's ``z``; None: that of ``x`` (of its first floating-point tensor).
        solver: forward solver (`Picard`, `Anderson`, `Broyden`, `Newton`); None: ``Anderson()``.
        hypergradient: how z* is differentiated; None: ``Implicit(NeumannOrKrylov())``, exact. Approximations (`OneStep`,
            `phantom_gradient`) are labelled as such in ``solution.aux["gradient"]``; `gradient_error` measures them.
        per_sample: whether the leading dimension numbers independent samples; False: ``z`` is one problem of any shape, for
            maps that mix samples and for use under `torch.vmap`.
        throw: raise `SolveError` when a sample fails; False: report it in the solution's status, or warn when that is not
            asked for.

    Raises:
        TypeError: when ``f`` is not callable, or the strategies are of the wrong kind.

    Example:
        >>> torch.manual_seed(0); cell = nn.Linear(3, 3).double()  # doctest: +ELLIPSIS
        <torch...>
        >>> layer = DEQ(lambda z, x: torch.tanh(0.5 * cell(z) + x))
        >>> x = torch.zeros(2, 3, dtype=torch.float64)
        >>> z, solution = layer(x, return_solution=True)
        >>> bool(torch.allclose(z, torch.tanh(0.5 * cell(z) + x))), solution.status_code
        (True, tensor([0, 0]))
        >>> z.sum().backward()
        >>> cell.weight.grad.shape
        torch.Size([3, 3])

    References:
        Bai, Kolter, Koltun. "Deep equilibrium models". NeurIPS 2019.
    """

    def __init__(
        self,
        f: Callable[[Tensor, Any], Tensor],
        *,
        shape: Sequence[int] | None = None,
        solver: AbstractSolver | None = None,
        hypergradient: AbstractHypergradient | None = None,
        per_sample: bool = True,
        throw: bool = True,
    ) -> None:
        super().__init__()
        if not callable(f):
            raise TypeError(f"DEQ: expected `f` to be callable as f(z, x), got {f!r}. Pass a module or a function.")
        self.f = f
        self.shape = None if shape is None else tuple(shape)
        self.solver, self.hypergradient = strategies("DEQ", solver, hypergradient)
        self.per_sample = per_sample
        self.throw = throw

    @overload
    def forward(
        self, x: Any, *, init: Tensor | None = None, return_solution: Literal[False] = False
    ) -> Tensor: ...  # pragma: no cover

    @overload
    def forward(
        self, x: Any, *, init: Tensor | None = None, return_solution: Literal[True]
    ) -> tuple[Tensor, Solution]: ...  # pragma: no cover

    def forward(
        self, x: Any, *, init: Tensor | None = None, return_solution: bool = False
    ) -> Tensor | tuple[Tensor, Solution]:
        """The equilibrium of every sample.

        Args:
            x: input, a tensor ``(batch, ...)`` or a tree of such tensors, any float dtype (integers and masks may be among
                them), any device.
            init: start ``(batch, *shape)``, e.g. the solution of a similar batch; None: zeros.
            return_solution: also return the `Solution`, with a status, residual norm and number of steps per sample.

        Returns:
            ``z`` of shape ``(batch, *shape)``; with ``return_solution`` the pair ``(z, solution)``.

        Raises:
            ValueError: for tensors of different batch sizes, or a map that returns another shape.
            SolveError: with ``throw``, when a sample does not converge, or its adjoint does not.
        """
        leaves, spec = pytree.tree_flatten(x)
        dtype = precision(self.f, [*leaves, init])
        leaves = [raised(leaf, dtype) for leaf in leaves]
        z0 = raised(init, dtype) if init is not None else self._start(leaves, dtype)
        if self.per_sample:
            check_samples(leaves, z0)
        frozen, inputs = held("DEQ", self.f, z0), Inputs(leaves, spec)
        problem = fixed_point(frozen, inputs, z0.shape, self.per_sample)
        solution = settle(self, problem, inputs.floats, z0, silent=not return_solution)
        frozen.conclude(solution.value.detach(), inputs.tree(inputs.floats))
        return (solution.value, solution) if return_solution else solution.value

    def _start(self, leaves: Sequence[Any], dtype: torch.dtype) -> Tensor:
        like = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)
        if self.shape is None:
            if like is None:
                raise ValueError(
                    "DEQ: expected `shape` or `init` for an input without floating-point tensors, got neither."
                )
            return like.detach().new_zeros(like.shape)
        any_tensor = next((t for t in leaves if isinstance(t, Tensor)), None)
        if any_tensor is None:
            raise ValueError(f"DEQ: expected `x` to hold a tensor, got {leaves!r}. Pass `init`.")
        lead = any_tensor.shape[:1] if self.per_sample else ()
        return torch.zeros((*lead, *self.shape), dtype=dtype, device=any_tensor.device)


def strategies(
    owner: str, solver: AbstractSolver | None, hypergradient: AbstractHypergradient | None
) -> tuple[AbstractSolver, AbstractHypergradient]:
    """The strategies of a layer, checked, with the defaults filled in."""
    solver = Anderson() if solver is None else solver
    hypergradient = Implicit(NeumannOrKrylov()) if hypergradient is None else hypergradient
    if not isinstance(solver, AbstractSolver):
        raise TypeError(f"{owner}: expected `solver` to be a solver, got {solver!r}. Pass an object, e.g. Anderson().")
    if not isinstance(hypergradient, AbstractHypergradient):
        raise TypeError(
            f"{owner}: expected `hypergradient` to be a hypergradient, got {hypergradient!r}. Pass an object, e.g. OneStep()."
        )
    return solver, hypergradient


class Strategies(Protocol):
    """What a layer solves and differentiates with."""

    solver: AbstractSolver
    hypergradient: AbstractHypergradient
    throw: bool


def settle(layer: Strategies, problem: FixedPoint, floats: Sequence[Tensor], z0: Tensor, *, silent: bool) -> Solution:
    """The layer's equilibrium in full precision, labelled; warns of failures that would otherwise be silent."""
    with full_precision(z0):
        solution = best_response(
            problem,
            list(floats) or [z0.new_zeros(())],
            init=z0,
            solver=layer.solver,
            hypergradient=layer.hypergradient,
            throw=layer.throw,
        )
    if under_transform():
        return solution
    if silent and not layer.throw and not bool(solution.converged.all()):
        name = type(layer).__name__
        warnings.warn(
            f"{name}: expected every sample to converge, got {solution.status.name} in rows {solution.failed_rows[:8]}; "
            f"values and gradients there are not those of an equilibrium. {solution.status.advice}",
            HypergradientWarning,
            stacklevel=3,
        )
    label = approximation(layer.hypergradient)
    return solution if label is None else replace(solution, aux={**solution.aux, "gradient": label})


def held(owner: str, f: Callable[..., Tensor], like: Tensor) -> Frozen:
    """The layer's map as it is now, in full precision.

    Raises:
        ValueError: for batch norm without running statistics in training mode, which couples the samples.
    """
    for part in f.modules() if isinstance(f, nn.Module) else ():
        if part.training and isinstance(part, _BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"{owner}: expected normalisation that keeps the samples apart, got {part} without running statistics in "
                "training mode. Set track_running_stats=True (frozen during a solve), or use LayerNorm or GroupNorm."
            )
    return Frozen(f, Rewound(like.device), owner)


def precision(f: Callable[..., Tensor], values: Sequence[Any]) -> torch.dtype:
    """float64 or float32: that of the parameters, else of the first input that has one of them."""
    own = (p for module in modules_of(f)[:1] for p in module.parameters() if p.is_floating_point())
    for tensor in (*own, *(t for t in values if isinstance(t, Tensor))):
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor.dtype
    return torch.float32


class Inputs:
    """The layer's input as floating-point tensors, which derivatives may reach, and the rest."""

    def __init__(self, leaves: Sequence[Any], spec: Any) -> None:
        self.leaves, self.spec = list(leaves), spec
        self.where = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
        self.floats = [leaves[i] for i in self.where]

    def tree(self, floats: Sequence[Tensor], rows: Tensor | None = None) -> Any:
        """The caller's tree with these floating-point tensors, of some rows only."""
        if rows is None and len(self.leaves) == 1 and self.spec.is_leaf():
            return floats[0] if self.where else self.leaves[0]
        leaves = list(self.leaves)
        for i, value in zip(self.where, floats, strict=False):
            leaves[i] = value
        if rows is not None:
            leaves = [t.index_select(0, rows) if isinstance(t, Tensor) else t for t in leaves]
        return pytree.tree_unflatten(leaves, self.spec)


def fixed_point(frozen: Frozen, inputs: Inputs, shape: Sequence[int], per_sample: bool) -> FixedPoint:
    """The layer's equation, and the same for some of its samples."""

    def whole(z: Tensor, floats: Sequence[Tensor]) -> Tensor:
        out = frozen(z, inputs.tree(floats))
        if not isinstance(out, Tensor) or out.shape != z.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"DEQ: expected `f(z, x)` of the shape of z, {tuple(z.shape)}, got {got}. Return a new z.")
        return out

    def restrict(rows: Tensor) -> FixedPoint:
        kept: list[tuple[Tensor | None, Any]] = []  # the chosen rows of x, taken out once

        def some(z: Tensor, floats: Sequence[Tensor]) -> Tensor:
            if frozen.random:  # masks belong to the whole batch
                full = z.new_zeros(shape).index_copy(0, rows, z)
                return frozen(full, inputs.tree(floats)).index_select(0, rows)
            first = floats[0]
            if not kept or kept[0][0] is not first:
                kept[:] = [(first, inputs.tree(floats, rows))]
            return frozen(z, kept[0][1])

        return FixedPoint(some, batch_ndim=1, restrict=restrict)

    return FixedPoint(whole, batch_ndim=int(per_sample), restrict=restrict if per_sample else None)


def raised(leaf: Any, dtype: torch.dtype) -> Any:
    """Half-precision tensors in the layer's precision."""
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.to(dtype) if half else leaf


def check_samples(leaves: Sequence[Any], z0: Tensor) -> None:
    """Every tensor numbers the same samples."""
    sizes = {tuple(t.shape[:1]) for t in (*leaves, z0) if isinstance(t, Tensor)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"DEQ: expected every tensor of `x` and `init` to have the same leading batch dimension, got leading shapes "
            f"{sorted(sizes)}. Let f capture what the samples share, or set per_sample=False."
        )
