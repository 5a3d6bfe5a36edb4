"""A problem bound to its tensors: flat functions of ``(x, args)``, batched, re-batched by vmap.

`System` is the pure description (hashable by identity, no tensors that carry derivatives); `Oracle` adds the arguments and
answers the solvers' questions: value, gradient, residual, linearization. Every answer is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.linsolve import LinearOperator
from sciopt.params import Layout, under_transform
from sciopt.problem.base import AbstractProblem, Tree
from sciopt.problem.captures import substitute
from sciopt.problem.equations import FixedPoint
from sciopt.problem.evolution import InitialValue
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.quadratic import QuadraticProgram
from sciopt.transforms import depends_on_others, is_wrapped

__all__ = ["Oracle", "System"]

RESTRICTABLE = (Minimize, FixedPoint, InitialValue)


@dataclass(frozen=True, eq=False)
class System:
    """One inner problem as flat functions: ``x`` is ``(*batch, n)``, ``args`` the outer leaves and captured tensors.

    ``lanes`` holds, innermost first, the ``in_dims`` of the arguments for each vmap level that was turned into a leading
    batch dimension of ``x``.
    """

    problem: AbstractProblem
    layout: Layout
    outer_spec: Any
    num_outer: int
    captured: tuple[Tensor, ...] = ()
    lanes: tuple[tuple[int | None, ...], ...] = ()
    lane_sizes: tuple[int, ...] = ()
    counter: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[Tensor, ...]] = field(
        default_factory=list
    )  # a start's residual, for who asks first; start, arguments

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of ``x``: vmap levels, outermost first, then the problem's own batch."""
        return (*reversed(self.lane_sizes), *self.layout.batch_shape)

    def vmapped(self, in_dims: Sequence[int | None], size: int) -> System:
        """The same system with one more leading batch dimension; ``in_dims`` are those of the arguments."""
        return replace(self, lanes=(*self.lanes, tuple(in_dims)), lane_sizes=(*self.lane_sizes, size))

    @property
    def restrictable(self) -> bool:
        """Whether `restricted` can be asked for."""
        problem = self.problem
        return isinstance(problem, RESTRICTABLE) and problem.restrict is not None and not self.lanes

    def restricted(self, rows: Tensor) -> System:
        """The system of some rows of the batch, int64 ``(k,)``, with the same arguments."""
        whole = self.problem
        assert isinstance(whole, RESTRICTABLE) and whole.restrict is not None
        problem = whole.restrict(rows)
        if not isinstance(problem, type(whole)) or problem.batch_ndim != 1:
            name = type(whole).__name__
            raise TypeError(
                f"{name}: expected `restrict` to return a {name} with batch_ndim=1, got {problem!r}. Return the problem "
                "of the chosen rows."
            )
        return replace(self, problem=problem, layout=replace(self.layout, batch_shape=(rows.shape[0],)))

    def outer(self, args: Sequence[Tensor]) -> Tree:
        """The outer parameters as the user's tree."""
        return pytree.tree_unflatten(list(args[: self.num_outer]), self.outer_spec)

    def call(self, function: Callable[[Tree, Tree], Any], x: Tensor, args: Sequence[Tensor], *more: Tensor) -> Any:
        """``function(inner_tree, outer_tree, *more)`` on flat ``x``, through the vmap levels."""
        count = len(args)

        def base(x: Tensor, *rest: Tensor) -> Any:
            with substitute(self.captured, rest[self.num_outer : count]):
                return function(self.layout.unflatten(x), self.outer(rest), *rest[count:])

        for dims in self.lanes:
            base = torch.vmap(base, in_dims=(0, *dims, *(0 for _ in more)))
        return base(x, *args, *more)

    def value(self, x: Tensor, args: Sequence[Tensor]) -> Tensor:
        """Objective ``(*batch,)``."""
        return self.call(self.problem.objective, x, args)

    def residual(self, x: Tensor, args: Sequence[Tensor]) -> Tensor:
        """Optimality residual ``(*batch, n)``, pure and differentiable under any transform."""

        def flat(inner: Tree, outer: Tree) -> Tensor:
            return self.layout.flatten(self.problem.optimality(inner, outer))

        return self.call(flat, x, args)

    def project(self, x: Tensor, step_size: float | Tensor, args: Sequence[Tensor]) -> Tensor:
        """Proximal map of `Minimize`; ``step_size`` is a number or a tensor that broadcasts against ``(*batch, 1)``."""
        problem = self.problem
        assert isinstance(problem, Minimize)

        def flat(inner: Tree, outer: Tree, *step: Tensor) -> Tensor:
            return self.layout.flatten(problem.project(inner, step[0] if step else step_size, outer))

        if isinstance(step_size, Tensor) and step_size.ndim:
            return self.call(flat, x, args, step_size.expand(*self.batch_shape, 1))
        return self.call(flat, x, args)

    def nullspace(self, x: Tensor, args: Sequence[Tensor]) -> Tensor | None:
        """Orthonormal basis ``(*batch, n, k)`` of the declared null space at ``x``, detached; None when undeclared."""
        modes = self.problem.nullspace
        if modes is None:
            return None
        with torch.no_grad():
            basis = self.call(modes, x.detach(), [a.detach() for a in args])
            if basis.ndim != x.ndim + 1 or basis.shape[:-1] != x.shape:
                raise ValueError(
                    f"{type(self.problem).__name__}: expected `nullspace` to return (*batch, n, k) with (*batch, n) = "
                    f"{tuple(x.shape)}, got {tuple(basis.shape)}. Give one column per direction."
                )
            u, s, _ = torch.linalg.svd(basis, full_matrices=False)
            keep = s > s[..., :1] * basis.shape[-2] * torch.finfo(s.dtype).eps * 10
            return u * keep.unsqueeze(-2)


class Oracle:
    """A `System` with its arguments bound: what a solver asks.

    With ``differentiable=False`` answers are detached (the fast path); with True they stay attached to autograd or to the
    active `torch.func` transform, for unrolling.
    """

    def __init__(self, system: System, args: Sequence[Tensor], *, differentiable: bool = False) -> None:
        self.system = system
        self.problem = system.problem
        self.differentiable = differentiable
        self.args = tuple(args) if differentiable else tuple(a.detach() for a in args)
        self.counter = system.counter
        self.batch_shape = system.batch_shape
        self.in_place = False  # set by a run that owns its solver's state and records nothing
        self.bare = system if differentiable else without_captures(system, self.args)  # for what records nothing

    def restricted(self, rows: Tensor) -> Oracle:
        """The oracle of some rows, with the same arguments and counter; see `System.restricted`."""
        oracle = Oracle(self.system.restricted(rows), self.args)
        oracle.in_place = self.in_place
        return oracle

    def model_hessian(self, x: Tensor) -> Tensor | None:
        """The declared model of the Hessian ``(*batch, n, n)`` at ``x``, detached; None when there is none."""
        model = self.problem.model_hessian if isinstance(self.problem, Minimize) else None
        if model is None:
            return None
        with torch.no_grad():
            matrix = self.system.call(model, x.detach(), [a.detach() for a in self.args])
        if tuple(matrix.shape) != (*x.shape, x.shape[-1]):
            raise ValueError(
                f"Minimize: expected `model_hessian` to return (*batch, n, n) = {(*x.shape, x.shape[-1])}, got "
                f"{tuple(matrix.shape)}. Give one matrix per problem, in the flat order of the inner parameters."
            )
        return matrix

    @property
    def size(self) -> int:
        """Length n of the flat unknown."""
        return self.system.layout.size

    def value(self, x: Tensor) -> Tensor:
        """Objective ``(*batch,)``."""
        self.counter["value"] += 1
        if self.differentiable:
            return self.system.value(x, self.args)
        with torch.no_grad():
            return self.bare.value(x, self.args)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Objective ``(*batch,)`` and its gradient ``(*batch, n)``."""
        self.counter["gradient"] += 1
        if self.differentiable and under_transform():
            grad, value = torch.func.grad(self._summed, has_aux=True)(x)
            return value, grad
        with torch.enable_grad():
            attached = self.differentiable and x.requires_grad
            x = x if attached else x.detach().requires_grad_()
            value = self.system.value(x, self.args)
            if not value.requires_grad:
                raise ValueError(
                    f"{type(self.problem).__name__}: expected a loss that depends on the inner parameters, got one without a "
                    "gradient. Use the first argument of the loss, and do not detach it."
                )
            (grad,) = torch.autograd.grad(value.sum(), x, create_graph=self.differentiable, materialize_grads=True)
        if attached or (self.differentiable and depends_on_others((value, grad), x)):
            return value, grad
        return value.detach(), grad.detach()

    def _summed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.system.value(x, self.args)
        return value.sum(), value

    def residual(self, x: Tensor) -> Tensor:
        """Optimality residual ``(*batch, n)``."""
        if isinstance(self.problem, LeastSquares) or (isinstance(self.problem, Minimize) and self.problem.smooth):
            return self.value_and_grad(x)[1]
        self.counter["residual"] += 1
        if isinstance(self.problem, Minimize):
            grad = self.value_and_grad(x)[1]
            return x - self.project(x - grad, 1.0)
        if self.differentiable:
            return self.system.residual(x, self.args)
        if self.system.asked:
            known, *where = self.system.asked.pop()
            if all(same(a, b) for a, b in zip(where, (x, *self.args), strict=False)):
                return known
        with torch.no_grad():
            return self.bare.residual(x, self.args).detach()

    def fixed_point_map(self, x: Tensor) -> Tensor:
        """``x - residual(x)``: the map of a `FixedPoint`, a unit gradient or Richardson step of the others."""
        return x - self.residual(x)

    def project(self, x: Tensor, step_size: float | Tensor) -> Tensor:
        """Proximal map or projection of a `Minimize` problem (the identity when it has none)."""
        if not isinstance(self.problem, Minimize) or self.problem.smooth:
            return x
        if self.differentiable:
            return self.system.project(x, step_size, self.args)
        with torch.no_grad():
            return self.bare.project(x, step_size, self.args)

    def residual_vector(self, x: Tensor) -> Tensor:
        """Residuals ``(*batch, m)`` of a `LeastSquares` problem."""
        self.counter["residual"] += 1
        assert isinstance(self.problem, LeastSquares)
        if self.differentiable:
            return self.system.call(self.problem.residual_vector, x, self.args)
        with torch.no_grad():
            return self.bare.call(self.problem.residual_vector, x, self.args)

    def linearize(self, x: Tensor, *, attached: bool = False) -> tuple[Tensor, LinearOperator]:
        """Residual at ``x`` and its derivative as an operator ``(*batch, n) -> (*batch, n)``, built once, applied often.

        With ``attached`` the residual keeps its graph, for a product with its derivative in the arguments.
        """
        self.counter["linearize"] += 1
        tags = self.problem.jacobian_tags
        nullspace = self.system.nullspace(x, self.args) if tags else None
        out, operator, recorded = self._linear(self._attached_residual, x, tags=tags, nullspace=nullspace)
        problem = self.problem
        if isinstance(problem, QuadraticProgram):
            matrix = problem.jacobian
            operator = replace(operator, matrix=lambda: self.system.call(matrix, x.detach(), self.args))
        attached = attached or recorded
        return (out if attached else out.detach()), operator

    def jacobian(self, x: Tensor) -> tuple[Tensor, LinearOperator]:
        """Residuals of a `LeastSquares` problem and their Jacobian ``(*batch, n) -> (*batch, m)``."""
        self.counter["linearize"] += 1
        problem = self.problem
        assert isinstance(problem, LeastSquares)
        out, operator, recorded = self._linear(
            lambda y: self.system.call(problem.residual_vector, y, self.args), x, tags=frozenset()
        )
        return (out if recorded else out.detach()), operator

    def _attached_residual(self, x: Tensor) -> Tensor:
        """The residual as a function of ``x`` that autograd can differentiate again."""
        problem = self.problem
        smooth = isinstance(problem, LeastSquares) or (isinstance(problem, Minimize) and problem.smooth)
        if not smooth or under_transform():
            return self.system.residual(x, self.args)
        value = self.system.value(x, self.args)
        return torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)[0]

    def _linear(
        self, function: Callable[[Tensor], Tensor], x: Tensor, *, tags: Any, nullspace: Tensor | None = None
    ) -> tuple[Tensor, LinearOperator, bool]:
        """The value at ``x``, the derivative there, and whether both stay attached to what they depend on besides ``x``."""
        keep = self.differentiable
        if keep and under_transform():
            out, pull = torch.func.vjp(function, x)[:2]

            def rmv(u: Tensor) -> Tensor:
                self.counter["product"] += 1
                return pull(u)[0]

            def mv(v: Tensor) -> Tensor:
                self.counter["product"] += 1
                return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(out))[1](v)[0]
        else:
            with torch.enable_grad():
                attached = keep and x.requires_grad
                x = x if attached else x.detach().requires_grad_()
                out = function(x)
                keep = attached or (keep and depends_on_others((out,), x))
                dummy = torch.zeros_like(out, requires_grad=True)
                pulled: list[Tensor] = []

            def rmv(u: Tensor) -> Tensor:
                self.counter["product"] += 1
                return product(out, x, u, keep)

            def mv(v: Tensor) -> Tensor:
                if not pulled:
                    with torch.enable_grad():
                        pulled.append(product(out, x, dummy, True))
                self.counter["product"] += 1
                return product(pulled[0], dummy, v, keep)

        symmetric = bool(tags)
        operator = LinearOperator(
            mv=rmv if symmetric else mv,
            rmv=rmv,
            shape=(out.shape[-1], x.shape[-1]),
            batch_shape=tuple(x.shape[:-1]),
            dtype=x.dtype,
            device=x.device,
            tags=tags,
            nullspace=nullspace,
            evaluate=lambda function: self.system.call(function, x, self.args),
        )
        return out, operator, keep


def without_captures(system: System, args: Sequence[Tensor]) -> System:
    """The same system without substitution, where the captured tensors are the arguments themselves and plain.

    Substitution looks at every torch call of the problem's functions: in inner steps that costs more than small functions.
    """
    if not system.captured or under_transform():
        return system
    for original, value in zip(system.captured, args[system.num_outer :], strict=True):
        if not same(original, value):
            return system
    return replace(system, captured=())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two plain tensors are one and the same memory."""
    if is_wrapped(a) or is_wrapped(b) or a.data_ptr() != b.data_ptr():
        return False
    return a.shape == b.shape and a.stride() == b.stride()


def product(output: Tensor, point: Tensor, cotangent: Tensor, keep: bool) -> Tensor:
    """``cotangent^T d output / d point`` from a retained graph; zeros where there is no dependence."""
    if not output.requires_grad:
        return torch.zeros_like(point)
    with torch.enable_grad() if keep else torch.no_grad():
        return torch.autograd.grad(
            output, point, cotangent, retain_graph=True, create_graph=keep, materialize_grads=True
        )[0]
