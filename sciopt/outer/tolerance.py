"""Inner tolerances that tighten as the outer run goes on: early steps need no accurate hypergradient."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, final

from sciopt.checks import check_option

__all__ = ["DecreasingTolerance"]


@final
@dataclass(frozen=True, kw_only=True)
class DecreasingTolerance:
    """Relative inner tolerance ``max(last, first * factor**step)``; the default adjoint of `Implicit` follows it.

    Use it with first-order outer methods when inner solves are expensive; the hypergradient's error then sums to a finite
    number, which is what convergence needs. Line searches (`ScipyLBFGSB`, `ScipySLSQP`) want accurate values from the
    start.

    Args:
        first: tolerance of the first step.
        factor: ratio of the tolerances of successive steps.
        last: smallest tolerance.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> [round(DecreasingTolerance(first=0.1, factor=0.1, last=1e-3).at(step), 6) for step in range(4)]
        [0.1, 0.01, 0.001, 0.001]

    References:
        Pedregosa. "Hyperparameter optimization with approximate gradient". ICML 2016, section 4 (exponential decrease).
    """

    first: float = 0.1
    factor: float = 0.9
    last: float = 1e-8

    def __post_init__(self) -> None:
        name = "DecreasingTolerance"
        check_option(name, "first", self.first, 0 < self.first < 1, "in (0, 1)", "0.1 is the published choice.")
        check_option(name, "factor", self.factor, 0 < self.factor < 1, "in (0, 1)", "0.9 is the published choice.")
        check_option(name, "last", self.last, 0 < self.last <= self.first, "in (0, first]", "1e-8 suits float64.")

    def at(self, step: int) -> float:
        """The tolerance of a step."""
        return max(self.last, self.first * self.factor**step)

    def check(self, solver: Any) -> None:
        """Raise TypeError for a solver without ``rtol``."""
        if not is_dataclass(solver) or "rtol" not in {f.name for f in fields(solver)}:
            raise TypeError(
                f"DecreasingTolerance: expected an inner `solver` with `rtol`, got {type(solver).__name__}. Name an iterative "
                "solver, for example solver=LBFGS(), or drop `inner_tolerance`."
            )

    def tighten(self, solver: Any, step: int) -> Any:
        """The solver with the tolerance of a step."""
        return replace(solver, rtol=self.at(step))
