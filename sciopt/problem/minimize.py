"""Minima: smooth losses, with an optional box, proximal term or declared null space, and sums of squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.params import tree_leaves, tree_map
from sciopt.problem.base import AbstractProblem, Tree, check_restrict
from sciopt.transforms import is_wrapped

__all__ = ["LeastSquares", "Minimize"]

_MINIMUM = frozenset({Tag.SYMMETRIC, Tag.POSITIVE_DEFINITE})
Prox = Callable[[Tree, float | Tensor, Tree], Tree]
Box = tuple[Any, Any] | Callable[[Tree], tuple[Any, Any]]


def _check_scalar(owner: str, value: Tensor, inner_params: Tree, batch_ndim: int) -> Tensor:
    leaf = tree_leaves(inner_params)[0]
    batch = tuple(leaf.shape[:batch_ndim])
    if not isinstance(value, Tensor) or tuple(value.shape) != batch:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{owner}: expected the loss to have the batch shape {batch}, got {got}. Reduce over everything but the "
            "leading batch dimensions, or set `batch_ndim`."
        )
    return value


@final
@dataclass(frozen=True)
class Minimize(AbstractProblem):
    """``theta*(phi) = argmin_theta inner_loss(theta, phi)``, a strict local minimum (on the complement of the null space).

    Use it for training losses and energies. The implicit hypergradient takes the Hessian as positive definite; negative
    curvature is reported as `Status.INDEFINITE`.

    Args:
        inner_loss: ``(inner_params, outer_params) -> (*batch,)``.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.
        nullspace: ``(inner_params, outer_params) -> (*batch, n, k)``, directions along which the loss is constant
            (rigid motions), in the flat order of the leaves; need not be orthonormal.
        box: ``(lower, upper)``, each a number, tensor or tree broadcastable to ``inner_params`` (None: unbounded), or a
            function of ``outer_params`` that returns the pair.
        prox: ``(inner_params, step_size, outer_params) -> inner_params``, the proximal map of a non-smooth term that is
            added to ``inner_loss`` (soft thresholding for an l1 penalty).
        closed_form: ``outer_params -> inner_params``, the solution as a differentiable formula where there is one; `Auto`
            uses it.
        restrict: with ``batch_ndim=1``, ``rows -> Minimize``: the same problem for some of its rows only (int64 ``(k,)``),
            whose functions take the inner parameters of those rows and all outer parameters. Iterative solvers then drop
            the rows that have ended instead of computing them to no end.
        model_hessian: ``(inner_params, outer_params) -> (*batch, n, n)``, a symmetric positive definite model of the
            Hessian (springs for bonds), in the flat order of the leaves. `LBFGS` starts from its inverse.

    Raises:
        ValueError: when the loss does not have the batch shape, or both ``box`` and ``prox`` are given.

    Example:
        >>> problem = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
        >>> problem.optimality(torch.zeros(2), torch.ones(2))
        tensor([-2., -2.])

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 1-5.
    """

    inner_loss: Callable[[Tree, Tree], Tensor]
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None
    box: Box | None = None
    prox: Prox | None = None
    closed_form: Callable[[Tree], Tree] | None = None
    restrict: Callable[[Tensor], Minimize] | None = None
    model_hessian: Callable[[Tree, Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        check_restrict(self)
        if self.box is not None and self.prox is not None:
            raise ValueError(
                "Minimize: expected at most one of `box` and `prox`, got both. Put the box into the proximal map."
            )

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        value = self.inner_loss(inner_params, outer_params)
        return _check_scalar("Minimize", value, inner_params, self.batch_ndim)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        """The user's start, once the box has been checked to hold a point."""
        if self.box is not None:
            lower, upper = self.box(outer_params) if callable(self.box) else self.box
            inside = clip_tree(init, lower, upper)
            for before, after in zip(tree_leaves(inside), tree_leaves(clip_tree(inside, lower, None)), strict=True):
                if not is_wrapped(after) and not torch.equal(before, after):
                    raise ValueError(
                        "Minimize: expected `box` as (lower, upper) with lower <= upper everywhere, got bounds that cross by "
                        f"{float((after - before).max()):.3g} or are NaN. Swap or widen them."
                    )
        return init

    def project(self, inner_params: Tree, step_size: float | Tensor, outer_params: Tree) -> Tree:
        """The proximal map (``prox``, or the projection onto ``box``); the identity when there is neither."""
        if self.prox is not None:
            return self.prox(inner_params, step_size, outer_params)
        if self.box is not None:
            lower, upper = self.box(outer_params) if callable(self.box) else self.box
            return clip_tree(inner_params, lower, upper)
        return inner_params

    @property
    def smooth(self) -> bool:
        """Whether the solution is a stationary point of the loss itself."""
        return self.box is None and self.prox is None

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        grad = torch.func.grad(lambda p: self.objective(p, outer_params).sum())(inner_params)
        if self.smooth:
            return grad
        moved = self.project(tree_map(lambda x, g: x - g, inner_params, grad), 1.0, outer_params)
        return tree_map(lambda x, m: x - m, inner_params, moved)

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return _MINIMUM if self.smooth else frozenset()


def clip_tree(tree: Tree, lower: Any, upper: Any) -> Tree:
    """Clip every leaf between bounds given as numbers, tensors, or trees of the same structure (None: no bound)."""
    if isinstance(tree, Tensor):
        if lower is not None:
            tree = torch.maximum(tree, torch.as_tensor(lower, dtype=tree.dtype, device=tree.device))
        if upper is not None:
            tree = torch.minimum(tree, torch.as_tensor(upper, dtype=tree.dtype, device=tree.device))
        return tree

    def side(bound: Any, key: Any) -> Any:
        return bound if bound is None or isinstance(bound, (int, float, Tensor)) else bound[key]

    if isinstance(tree, dict):
        return {key: clip_tree(value, side(lower, key), side(upper, key)) for key, value in tree.items()}
    parts = [clip_tree(value, side(lower, i), side(upper, i)) for i, value in enumerate(tree)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


@final
@dataclass(frozen=True)
class LeastSquares(AbstractProblem):
    """``theta*(phi) = argmin_theta 1/2 |residuals(theta, phi)|^2``, solved by Gauss-Newton or as a minimum.

    Args:
        residuals: ``(inner_params, outer_params) -> (*batch, m)``.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.
        nullspace: as for `Minimize`.

    Example:
        >>> problem = LeastSquares(lambda theta, phi: theta - phi)
        >>> problem.optimality(torch.zeros(2), torch.ones(2))
        tensor([-1., -1.])
    """

    residuals: Callable[[Tree, Tree], Tensor]
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def residual_vector(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        """The residuals, checked to be ``(*batch, m)``."""
        r = self.residuals(inner_params, outer_params)
        if not isinstance(r, Tensor) or r.ndim != self.batch_ndim + 1:
            got = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
            raise ValueError(
                f"LeastSquares: expected residuals of shape (*batch, m) with {self.batch_ndim} batch dimensions, got {got}. "
                "Flatten the residuals of each problem into one dimension."
            )
        return r

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        return 0.5 * self.residual_vector(inner_params, outer_params).square().sum(-1)

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        return torch.func.grad(lambda p: self.objective(p, outer_params).sum())(inner_params)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        return init

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return _MINIMUM
