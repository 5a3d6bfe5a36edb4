"""The Problem noun: what is solved, stated as a residual that is zero at the settled state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sciopt.linsolve import Tag

__all__ = ["AbstractProblem", "Tree", "check_restrict", "no_objective"]

Tree = Any  # a tensor or a (nested) dict, list or tuple of tensors


class AbstractProblem(ABC):
    """What is solved. Concrete problems are frozen dataclasses; every function takes ``(inner_params, outer_params)``.

    ``batch_ndim`` leading dimensions of every leaf of the inner parameters number independent problems; the outer
    parameters may be shared by all of them or carry the same dimensions, as the problem's function likes.
    """

    batch_ndim: int
    nullspace: Callable[[Tree, Tree], Tensor] | None

    @abstractmethod
    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        """Residual with the structure of ``inner_params``, zero at theta*(phi); differentiable."""

    @property
    @abstractmethod
    def jacobian_tags(self) -> frozenset[Tag]:
        """Declared structure of the derivative of `optimality` in ``inner_params`` at a solution."""

    @abstractmethod
    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        """The scalar that a solution minimises, shape ``(*batch,)``; TypeError for problems that have none."""

    @abstractmethod
    def start(self, init: Tree, outer_params: Tree) -> Tree:
        """The full unknown from the user's start (multipliers and the like appended)."""

    @abstractmethod
    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        """The user's value and what else the full unknown holds, by name."""


def no_objective(problem: AbstractProblem) -> TypeError:
    """What `AbstractProblem.objective` raises where there is none."""
    return TypeError(
        f"{type(problem).__name__}: expected a problem with an objective (Minimize or LeastSquares) for this solver, "
        "got one without. Use a solver for equations: Picard, Anderson, Broyden or Newton."
    )


def check_restrict(problem: Any) -> None:
    """Rows can be dropped along one batch dimension only."""
    if problem.restrict is not None and problem.batch_ndim != 1:
        raise ValueError(
            f"{type(problem).__name__}: expected `restrict` with batch_ndim=1, got batch_ndim={problem.batch_ndim}. Rows are "
            "counted along one batch dimension: flatten the others."
        )
