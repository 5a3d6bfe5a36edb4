"""Explicit gradient update: differentiate the iterations that led to theta*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.hypergradients.abstract import AbstractHypergradient, Request
from sciopt.hypergradients.checkpointed import respond_checkpointed
from sciopt.hypergradients.evolved import respond_evolved
from sciopt.hypergradients.steps import plan
from sciopt.params import under_transform
from sciopt.problem import InitialValue
from sciopt.solution import Solution

__all__ = ["Unrolled"]


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled(AbstractHypergradient):
    """Reverse mode through the inner steps: the exact derivative of what was computed, converged or not.

    Use it for short inner runs (MAML), for `Recurrence`, and when the inner problem has no regular minimum. Time T steps,
    memory T states unless ``checkpoints`` or ``truncate`` is set. The derivative reaches ``init`` too.

    Args:
        num_steps: take exactly this many steps; None: the solver's own stopping rule (a fixed number lets it run
            without host synchronisation, and a spent budget is then no failure).
        truncate: differentiate the last ``truncate`` steps of each problem only; biased, the error falls as the contraction
            rate to the power of ``truncate``.
        checkpoints: number of states kept in the forward pass; the steps between are recomputed in the backward pass, so
            memory is that of ``checkpoints`` states and ``T / checkpoints`` recorded steps, and time about one forward
            pass more. Second derivatives and `torch.func` transforms fall back to a plain unroll.

    Raises:
        ValueError: for options out of range, or both ``truncate`` and ``checkpoints``.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.inner import GradientDescent
        >>> problem = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
        >>> phi = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> solver = GradientDescent(step_size=0.5)
        >>> init = torch.zeros(1, dtype=torch.float64)
        >>> best_response(problem, phi, init=init, solver=solver, hypergradient=Unrolled(num_steps=2)).value.backward()
        >>> phi.grad
        tensor([0.7500], dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 18 and 28-32. Shaban et al.
        "Truncated back-propagation for bilevel optimization". AISTATS 2019.
    """

    num_steps: int | None = None
    truncate: int | None = None
    checkpoints: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "truncate", "checkpoints"):
            value = getattr(self, name)
            if value is not None:
                ok = isinstance(value, int) and value >= (0 if name == "num_steps" else 1)
                check_option("Unrolled", name, value, ok, "to be a positive int or None", "Pass a number of steps.")
        if self.truncate is not None and self.checkpoints is not None:
            raise ValueError(
                "Unrolled: expected at most one of `truncate` and `checkpoints`, got both. A truncated run already keeps "
                "few steps."
            )

    @property
    def needs_captures(self) -> bool:
        # counting the steps of a run under vmap is a custom function too
        return self.checkpoints is not None or (self.num_steps is None and under_transform())

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        if isinstance(request.system.problem, InitialValue):
            given = [name for name in ("num_steps", "truncate", "checkpoints") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"Unrolled: expected no `{given[0]}` for an InitialValue, got {getattr(self, given[0])}. Its steps are "
                    "kept as checkpoints anyway; equal steps are an option of the stepper."
                )
            return respond_evolved(request, x0, args)
        path, total = plan(request, x0, args, self.num_steps)
        exact = self.num_steps is not None
        if self.checkpoints is not None and path.recurrence is not None and path.recurrence.trajectory:
            raise ValueError(
                "Unrolled: expected no `checkpoints` for a Recurrence with trajectory=True, got "
                f"{self.checkpoints}. The trajectory holds every state anyway: leave `checkpoints` out."
            )
        if self.checkpoints is not None and torch.is_grad_enabled() and not under_transform():
            return respond_checkpointed(path, x0, args, total, self.checkpoints, exact=exact)
        path.truncate = self.truncate or 0
        quiet = max(0, min(path.counts) - path.truncate) if path.truncate else 0
        x, state = path.begin(x0 if total else anchored(x0, args), args)
        if quiet:
            x, state = path.advance(x, state, args, 0, quiet, recorded=False)
        x, state = path.advance(x, state, args, quiet, total)
        return path.finish(x, state, total, exact=exact)


def anchored(x0: Tensor, args: Sequence[Tensor]) -> Tensor:
    """The start of a run without steps, for autograd a function of the arguments: their derivatives are zero, not missing."""
    zeros = (torch.where(torch.zeros_like(a, dtype=torch.bool), a, 0).sum() for a in args if a.is_floating_point())
    return x0 + torch.stack([zero.to(x0.dtype) for zero in zeros]).sum()
