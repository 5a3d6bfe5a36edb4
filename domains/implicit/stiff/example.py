"""A ready stiff problem: the statement, its data, and the published numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from sciopt.domains.implicit.stiff.mass_action import MassAction
from sciopt.problem import InitialValue

__all__ = ["StiffExample"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StiffExample:
    """An initial-value problem with its start, its parameters and, where the literature gives one, its final state.

    ``best_response(example.problem, example.outer_params, init=example.init, solver=Rodas5P())`` solves it; ``at`` gives
    other times. Made by `robertson`, `hires`, `oregonator`, `van_der_pol`, `brusselator` and `enzyme_cascade`.

    Args:
        problem: the statement.
        init: state at the first time, ``(n,)``.
        outer_params: parameters ``(p,)``.
        names: names of the state's entries.
        parameter_names: names of the parameters.
        units: units of time, state and parameters.
        source: where the problem and the reference come from.
        reference: published state at the last of the problem's default times, ``(n,)``; None where there is none.
        network: the reactions, where the problem is a mass-action network.

    Example:
        >>> from sciopt.domains.implicit.stiff import robertson
        >>> example = robertson()
        >>> example.names, example.init.tolist()
        (('A', 'B', 'C'), [1.0, 0.0, 0.0])
    """

    problem: InitialValue
    init: Tensor
    outer_params: Tensor
    names: tuple[str, ...]
    parameter_names: tuple[str, ...]
    units: str
    source: str
    reference: Tensor | None = None
    network: MassAction | None = None

    def at(self, times: Tensor) -> StiffExample:
        """The same problem observed at other times ``(k,)``; the reference is dropped."""
        return replace(self, problem=replace(self.problem, times=times), reference=None)
