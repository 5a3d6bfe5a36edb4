"""Mass-action kinetics: reactions in, right-hand side, analytic Jacobian and conservation laws out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sciopt.domains.implicit.stiff.statement import shared
from sciopt.problem import InitialValue
from sciopt.transforms import under_transform

__all__ = ["MassAction", "reactions"]

TERM = re.compile(r"^(\d+)?\s*\*?\s*([A-Za-z_][\w\[\]()+\-^']*)$")
NOTHING = ("", "0", "∅")


@final
@dataclass(frozen=True)
class MassAction:
    """``dy/dt = sum_j v_j k_j prod_i y_i^orders_ji``: a network of elementary reactions.

    Its methods have the signatures of `InitialValue`: the state are the concentrations ``(*batch, n)``, the outer
    parameters the rate constants ``(r,)`` or ``(*batch, r)``. Build it from text with `reactions`, or from matrices.
    Concentrations and rate constants have the user's units, e.g. mol/l and 1/s for a reaction of first order.

    Args:
        species: n names, in the order of the state.
        reactants: r rows of n numbers >= 0 of molecules on the left-hand side; they are the reaction orders too.
        products: r rows of n numbers >= 0 on the right-hand side.

    Raises:
        ValueError: for matrices of other shapes, or numbers that are not whole or negative.

    Example:
        >>> network = MassAction(("A", "B"), reactants=((1, 0),), products=((0, 1),))
        >>> network.dynamics(torch.tensor(0.0), torch.tensor([2.0, 0.0]), torch.tensor([3.0]))
        tensor([-6.,  6.])
        >>> network.conservation
        tensor([[1., 1.]], dtype=torch.float64)

    References:
        Hairer, Wanner. "Solving Ordinary Differential Equations II". Springer 1996. Section IV.10.
    """

    species: tuple[str, ...]
    reactants: tuple[tuple[int, ...], ...]
    products: tuple[tuple[int, ...], ...]
    tables: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("reactants", "products"):
            rows: Any = getattr(self, name)
            whole = all(isinstance(m, int) and m >= 0 for row in rows for m in row)
            if not rows or not whole or any(len(row) != len(self.species) for row in rows):
                raise ValueError(
                    f"MassAction: expected `{name}` as rows of {len(self.species)} whole numbers >= 0, got {rows!r}. "
                    "Give one row per reaction, one entry per species."
                )
        if len(self.reactants) != len(self.products):
            raise ValueError(
                f"MassAction: expected as many rows of `products` as of `reactants` ({len(self.reactants)}), got "
                f"{len(self.products)}. Give both sides of every reaction."
            )

    @property
    def stoichiometry(self) -> Tensor:
        """Net change of each species by each reaction, ``(r, n)``, float64."""
        change = [
            [p - q for p, q in zip(*rows, strict=True)] for rows in zip(self.products, self.reactants, strict=True)
        ]
        return torch.tensor(change, dtype=torch.float64)

    @property
    def conservation(self) -> Tensor:
        """Linear invariants as rows ``(c, n)`` of whole numbers, float64: ``conservation @ y`` stays as it was."""
        return torch.tensor(null_space(self.stoichiometry.int().tolist(), len(self.species)), dtype=torch.float64)

    def totals(self, y: Tensor) -> Tensor:
        """What is conserved, ``(*batch, c)``, of the concentrations ``(*batch, n)``."""
        return y @ self.conservation.reshape(-1, len(self.species)).to(y).mT

    def rates(self, y: Tensor, rate_constants: Tensor) -> Tensor:
        """Rate of each reaction, ``(*batch, r)``."""
        factors = self._factors(y)
        rate = rate_constants
        for factor in factors:
            rate = rate * factor
        return rate.expand((*y.shape[:-1], rate.shape[-1])) if not factors else rate

    def dynamics(self, t: Tensor, y: Tensor, rate_constants: Tensor) -> Tensor:
        """``dy/dt``, ``(*batch, n)``, of the concentrations ``(*batch, n)``; the time does not enter."""
        return self.rates(y, rate_constants) @ self._tables(y).change

    def jacobian(self, t: Tensor, y: Tensor, rate_constants: Tensor) -> Tensor:
        """Derivative of `dynamics` in the concentrations, ``(*batch, n, n)``."""
        factors = self._factors(y)
        outers = self._tables(y).outer
        total: Any = y.new_zeros(())
        for i in range(len(factors)):
            partial = rate_constants
            for j, factor in enumerate(factors):
                if j != i:
                    partial = partial * factor
            total = total + partial @ outers[i]
        n = len(self.species)
        return total.expand((*y.shape[:-1], n * n)).reshape(*y.shape[:-1], n, n)

    def problem(self, times: Tensor, *, batch_ndim: int = 0, log_rates: bool = False) -> InitialValue:
        """The initial-value problem of this network; the outer parameters are the rate constants.

        Args:
            times: as for `InitialValue`, in the unit of time of the rate constants.
            batch_ndim: leading dimensions of the concentrations that number independent problems; with 1, finished
                problems are dropped, and the rate constants are ``(r,)`` or ``(batch, r)``.
            log_rates: True when the outer parameters are natural logarithms of the rate constants.

        Example:
            >>> problem = reactions("A -> B").problem(torch.tensor([0.0, 1.0]))
            >>> problem.dynamics(torch.tensor(0.0), torch.tensor([1.0, 0.0]), torch.tensor([2.0]))
            tensor([-2.,  2.])
        """
        if not log_rates:
            return shared(self.dynamics, self.jacobian, times, batch_ndim)
        return shared(
            lambda t, y, phi: self.dynamics(t, y, phi.exp()),
            lambda t, y, phi: self.jacobian(t, y, phi.exp()),
            times,
            batch_ndim,
        )

    def _factors(self, y: Tensor) -> tuple[Tensor, ...]:
        """The concentrations that multiply each rate constant: as many ``(*batch, r)`` as the highest order."""
        tables = self._tables(y)
        if not tables.depth:
            return ()
        # a product with zeros and ones takes one operation, and one backwards
        picked = torch.nn.functional.linear(y, tables.pick, tables.one)
        return picked.unflatten(-1, (tables.depth, -1)).unbind(-2)

    def _tables(self, like: Tensor) -> Tables:
        """What the evaluations need, made once for each dtype and device."""
        key = (like.dtype, like.device)
        if key not in self.tables:
            n = len(self.species)
            chosen = [[i for i, m in enumerate(row) for _ in range(m)] for row in self.reactants]
            change = self.stoichiometry.to(like.device, like.dtype)
            depth = max(len(row) for row in chosen)
            index = [[row[level] if level < len(row) else n for row in chosen] for level in range(depth)]
            unit = torch.eye(n + 1, dtype=like.dtype, device=like.device)[torch.tensor(index, dtype=torch.int64)]
            outer = (change.unsqueeze(-1) * unit[..., :n].unsqueeze(-2)).flatten(-2) if depth else unit
            made = Tables(depth, unit[..., :n].flatten(0, -2), unit[..., n].flatten(), change, outer)
            if under_transform():  # what is made there must not outlive it
                return made
            self.tables[key] = made
        return self.tables[key]


class Tables(NamedTuple):
    """A network as matrices."""

    depth: int  # the highest order
    pick: Tensor  # (depth * r, n): which concentration is a factor
    one: Tensor  # (depth * r,): 1 where there is none
    change: Tensor  # (r, n) stoichiometry
    outer: Tensor  # (depth, r, n * n): what each factor's derivative adds to the Jacobian


def reactions(*equations: str, species: Sequence[str] | None = None) -> MassAction:
    """A mass-action network from reactions in text, e.g. ``"2 B -> B + C"``.

    ``->`` is one reaction, ``<->`` (or ``<=>``) two, forward and then backward, each with a rate constant of its own, in
    the order of the text. A side may be empty or ``0`` (inflow, outflow). Species on both sides act as catalysts.

    Args:
        equations: one string per reaction.
        species: names in the order of the state; None: the order of first appearance.

    Returns:
        `MassAction` with the rate constants ``(r,)`` as its outer parameters.

    Raises:
        ValueError: for text that cannot be read, or species that are not in ``species``.

    Example:
        >>> network = reactions("A -> B", "2 B -> B + C", "B + C -> A + C")
        >>> network.species, network.conservation.tolist()
        (('A', 'B', 'C'), [[1.0, 1.0, 1.0]])
    """
    sides = [pair for text in equations for pair in _read_equation(text)]
    if not sides:
        raise ValueError("reactions: expected at least one reaction, got none. Write it as 'A + B -> C'.")
    seen = dict.fromkeys(name for pair in sides for side in pair for name in side)
    names = tuple(species) if species is not None else tuple(seen)
    unknown = [name for name in seen if name not in names]
    if unknown or len(set(names)) != len(names):
        raise ValueError(
            f"reactions: expected `species` to name each of {list(seen)} once, got {list(names)}. Add the missing names."
        )
    table = [[tuple(side.get(name, 0) for name in names) for side in pair] for pair in sides]
    return MassAction(names, tuple(left for left, _ in table), tuple(right for _, right in table))


def _read_equation(text: str) -> list[tuple[dict[str, int], dict[str, int]]]:
    """One reaction or, for a reversible one, two, as (reactants, products)."""
    arrows = re.findall(r"<->|<=>|->", text)
    if len(arrows) != 1:
        raise ValueError(f"reactions: expected one arrow (-> or <->), got {text!r}. Write it as 'A + B -> C'.")
    left, right = (_read_side(side, text) for side in text.split(arrows[0]))
    return [(left, right)] if arrows[0] == "->" else [(left, right), (right, left)]


def _read_side(side: str, text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    if side.strip() in NOTHING:
        return counts
    for term in re.split(r"\s+\+\s+|(?<=[\w\])'])\+(?=[\dA-Za-z_])", side.strip()):
        match = TERM.match(term.strip())
        if match is None:
            raise ValueError(
                f"reactions: expected terms like 'A' or '2 B' joined by ' + ', got {term!r} in {text!r}. Names start with a "
                "letter."
            )
        counts[match[2]] = counts.get(match[2], 0) + int(match[1] or 1)
    return counts


def null_space(rows: Iterable[Sequence[int]], n: int) -> list[list[int]]:
    """Whole-number basis of the vectors of length n that are orthogonal to every row, by exact elimination."""
    matrix = [[Fraction(x) for x in row] for row in rows]
    pivots: list[int] = []
    for column in range(n):
        place = next((i for i in range(len(pivots), len(matrix)) if matrix[i][column] != 0), None)
        if place is None:
            continue
        top = len(pivots)
        matrix[top], matrix[place] = matrix[place], matrix[top]
        head = matrix[top][column]
        matrix[top] = [x / head for x in matrix[top]]
        for i, row in enumerate(matrix):
            if i != top and row[column] != 0:
                matrix[i] = [x - row[column] * p for x, p in zip(row, matrix[top], strict=True)]
        pivots.append(column)
    basis = []
    for free in (column for column in range(n) if column not in pivots):
        vector = [Fraction(int(column == free)) for column in range(n)]
        for i, pivot in enumerate(pivots):
            vector[pivot] = -matrix[i][free]
        scale = lcm(*(x.denominator for x in vector))
        basis.append([int(x * scale) for x in vector])
    return basis
