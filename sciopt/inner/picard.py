"""Picard iteration: apply the map until nothing moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.rows import base_state, check_growth, norm
from sciopt.problem.equations import FixedPoint, RootFind
from sciopt.problem.system import Oracle

__all__ = ["Picard", "equation_start", "equation_scale"]


def equation_scale(oracle: Oracle, x: Tensor, start: Tensor) -> Tensor:
    """What ``rtol`` refers to: ``|x|`` for a fixed point, the residual norm at the start for other equations."""
    return norm(x) if isinstance(oracle.problem, FixedPoint) else start


def equation_start(oracle: Oracle, x: Tensor, residual: Tensor) -> dict[str, Any]:
    """The first state of a solver for equations."""
    if residual.dtype != x.dtype:
        raise TypeError(
            f"{type(oracle.problem).__name__}: expected a function that keeps the dtype of the inner parameters, {x.dtype}, "
            f"got {residual.dtype}. Convert what it captures, or start from an `init` of that dtype."
        )
    start = norm(residual)
    eps = torch.finfo(x.dtype).eps
    size = norm(x)
    scale = equation_scale(oracle, x, start)
    state = base_state(start, scale, residual=residual, start=torch.maximum(start, eps**0.5 * size))
    if isinstance(oracle.problem, FixedPoint):  # here |J| is about one: a map applied in rounding moves |x| by eps
        state["floor"] = 10 * eps * torch.where(torch.isfinite(start), torch.maximum(size, start), 0.0)
    return state


@final
@dataclass(frozen=True, kw_only=True)
class Picard(AbstractIterativeSolver):
    """Damped Picard iteration ``x <- (1 - damping) x + damping f(x)``; for a root, ``x <- x - damping residual(x)``.

    Use it for maps that contract well, and to unroll a map exactly. One evaluation per step (and one at the start), no
    memory; a map whose derivative has an eigenvalue outside the unit circle makes it diverge. `Anderson` is faster on
    slow maps.

    Args:
        damping: weight of the new point, in (0, 1]; 1 applies the map itself.
        rtol: relative tolerance on ``|f(x) - x| / |x|`` (for a root, on the residual over its norm at the start); None:
            1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|f(x) - x|``.
        max_steps: step budget.

    Raises:
        ValueError: if ``damping`` is outside (0, 1].

    Example:
        >>> from sciopt import FixedPoint, best_response
        >>> problem = FixedPoint(lambda x, phi: torch.cos(x) * phi)
        >>> best_response(problem, torch.ones(1), init=torch.ones(1), solver=Picard(rtol=1e-5)).status.name
        'CONVERGED'

    References:
        Banach. "Sur les operations dans les ensembles abstraits". Fundamenta Mathematicae 3 (1922).
    """

    solves: ClassVar = (FixedPoint, RootFind)
    looks_after: ClassVar = True
    damping: float = 1.0
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1_000

    def __post_init__(self) -> None:
        check_tolerances("Picard", self.rtol, self.atol, self.max_steps)
        ok = 0 < self.damping <= 1
        check_option("Picard", "damping", self.damping, ok, "in (0, 1]", "Use 1 to apply the map itself.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        return equation_start(oracle, x, oracle.residual(x))

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        moved = torch.sub(x, state["residual"], alpha=self.damping)
        residual = oracle.residual(moved)
        size = norm(residual)
        new = {**state, "residual": residual, "residual_norm": size}
        if isinstance(oracle.problem, FixedPoint):
            new["scale"] = norm(moved)
        new["status_code"] = check_growth(state["status_code"], size, state["start"])
        return moved, new
