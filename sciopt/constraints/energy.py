"""Energies as inner problems: quadratic forms, sums over pairs, elastic networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from sciopt.constraints.common import check_indices, named_params, per_term, safe_sqrt, squared_distances
from sciopt.constraints.potentials import AbstractPairPotential
from sciopt.constraints.rigid import connected_fragments, rigid_nullspace
from sciopt.problem import Minimize

__all__ = ["HarmonicNetwork", "PairEnergy", "QuadraticForm"]

Labels = Tensor | Sequence[int]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class QuadraticForm:
    """``1/2 x.A x - b.x``: linear elasticity, Gaussian log-densities, any small-displacement model.

    Both parts may be outer parameters: ``{"matrix": A, "linear": b}``, or a bare tensor for ``b``. What is given here
    is the default that an outer parameter of the same name overrides.

    Args:
        matrix: ``(n, n)`` or ``(*batch, n, n)``, or a function ``(*batch, n) -> (*batch, n)`` that is linear and
            symmetric. Only the symmetric part of a matrix counts.
        linear: ``(n,)`` or ``(*batch, n)``; None for zero.

    Example:
        >>> import torch
        >>> energy = QuadraticForm(matrix=torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        >>> energy(torch.ones(2), torch.tensor([1.0, 0.0]))
        tensor(2.)
        >>> energy.problem().optimality(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]))
        tensor([0., 0.])
    """

    matrix: Tensor | Callable[[Tensor], Tensor] | None = None
    linear: Tensor | None = None

    def __call__(self, x: Tensor, outer_params: Any = None) -> Tensor:
        """Energy ``(*batch,)`` of ``x`` with shape ``(*batch, n)``."""
        fixed = {k: v for k, v in (("matrix", self.matrix), ("linear", self.linear)) if v is not None}
        params = named_params("QuadraticForm", outer_params, fixed, ("matrix",), ("linear",), main="linear")
        matrix = params["matrix"]
        if isinstance(matrix, Tensor):
            if matrix.ndim < 2 or matrix.shape[-2:] != (x.shape[-1], x.shape[-1]):
                raise ValueError(
                    f"QuadraticForm: expected `matrix` of shape (*batch, {x.shape[-1]}, {x.shape[-1]}), got "
                    f"{tuple(matrix.shape)}. Match it to the last dimension of the inner parameters."
                )
            product = (matrix @ x.unsqueeze(-1)).squeeze(-1)
        else:
            product = matrix(x)
        value = 0.5 * (x * product).sum(-1)
        return value if "linear" not in params else value - (params["linear"] * x).sum(-1)

    def problem(self, *, batch_ndim: int = 0, nullspace: Callable[[Any, Any], Tensor] | None = None) -> Minimize:
        """The minimum over ``x``; declare ``nullspace`` when the matrix is singular (free bodies)."""
        return Minimize(self, batch_ndim=batch_ndim, nullspace=nullspace)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PairEnergy:
    """Sum over a pair list of a potential of the distance: non-bonded terms, bonds, clusters.

    Invariant under rigid motions. At coincident points the gradient is zero, never NaN.

    Args:
        pairs: integer tensor ``(P, 2)``; each interaction once. Lists of your own making (cut-offs, exclusions) and
            `all_pairs` are equally good.
        potential: `Harmonic`, `LennardJones`, `Morse` or another `AbstractPairPotential`.
        params: parameters that are no design variables, by the names the potential lists in ``names``; numbers or
            tensors that broadcast against ``(*batch, P)``. Outer parameters of the same name take precedence.

    Raises:
        TypeError, ValueError: for pairs that are not distinct site numbers, and for unknown, missing or misshapen
            parameters.

    Example:
        >>> import torch
        >>> from sciopt.constraints import LennardJones
        >>> energy = PairEnergy(pairs=torch.tensor([[0, 1]]), potential=LennardJones(), params={"epsilon": 2.0})
        >>> dimer = torch.tensor([[0.0, 0.0, 0.0], [2.0 ** (1 / 6), 0.0, 0.0]])
        >>> round(float(energy(dimer, {"sigma": torch.tensor(1.0)})), 5)
        -2.0
    """

    pairs: Tensor
    potential: AbstractPairPotential
    params: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", check_indices("PairEnergy", "pairs", self.pairs, 2))

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        """Energy ``(*batch,)`` of positions ``(*batch, N, d)``."""
        names = self.potential.names
        given = named_params("PairEnergy", outer_params, self.params, names)
        square = squared_distances(positions, self.pairs)
        values = {k: per_term("PairEnergy", k, given[k], self.pairs.shape[0], positions) for k in names}
        return self.potential.energy(square, values).sum(-1)

    def problem(self, *, num_sites: int, batch_ndim: int = 0, fragments: Labels | None = None) -> Minimize:
        """The relaxed structure; null space: the rigid motions of each connected part (or of ``fragments``)."""
        if fragments is None:
            fragments = connected_fragments(self.pairs, num_sites)
        return Minimize(self, batch_ndim=batch_ndim, nullspace=rigid_nullspace(fragments))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class HarmonicNetwork:
    """Elastic network ``1/2 sum_e k_e (|x_i - x_j| - l_e)^2``, free or anchored, with dead loads.

    Spring structures, coarse protein models (each residue a node), tensegrity. With anchors,
    ``1/2 sum_a k_a |x_a - p_a|^2`` ties nodes to places and removes the rigid motions from the null space; a load adds
    ``-sum_i f_i.x_i``.

    Parameters, each an outer one or fixed in ``params``: ``length`` ``(*batch, E)`` and ``stiffness`` ``(*batch, E)``
    (a bare outer tensor is ``length``), ``load`` ``(*batch, N, d)``, and with anchors ``anchor_positions``
    ``(*batch, A, d)`` and ``anchor_stiffness`` ``(*batch, A)``.

    Args:
        edges: integer tensor ``(E, 2)``.
        anchors: integer tensor ``(A,)`` of nodes tied to places, or None.
        params: parameters that are no design variables.

    Example:
        >>> import torch
        >>> bar = HarmonicNetwork(edges=torch.tensor([[0, 1]]), params={"stiffness": 2.0})
        >>> bar(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([2.0]))
        tensor(1.)

    References:
        Tirion. "Large amplitude elastic motions in proteins from a single-parameter, atomic analysis". Physical Review
        Letters, 1996, eq. 1.
    """

    edges: Tensor
    anchors: Tensor | None = None
    params: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", check_indices("HarmonicNetwork", "edges", self.edges, 2))
        if self.anchors is not None:
            anchors = check_indices("HarmonicNetwork", "anchors", self.anchors.unsqueeze(-1), 1).squeeze(-1)
            object.__setattr__(self, "anchors", anchors)

    def __call__(self, positions: Tensor, outer_params: Any = None) -> Tensor:
        """Energy ``(*batch,)`` of positions ``(*batch, N, d)``."""
        required = ("length", "stiffness")
        if self.anchors is not None:
            required = (*required, "anchor_positions", "anchor_stiffness")
        params = named_params("HarmonicNetwork", outer_params, self.params, required, ("load",), main="length")
        count = self.edges.shape[0]
        length = per_term("HarmonicNetwork", "length", params["length"], count, positions)
        stiffness = per_term("HarmonicNetwork", "stiffness", params["stiffness"], count, positions)
        stretch = safe_sqrt(squared_distances(positions, self.edges)) - length
        value = 0.5 * (stiffness * stretch.square()).sum(-1)
        if self.anchors is not None:
            away = positions.index_select(-2, self.anchors.to(positions.device)) - params["anchor_positions"]
            pull = per_term(
                "HarmonicNetwork", "anchor_stiffness", params["anchor_stiffness"], self.anchors.shape[0], positions
            )
            value = value + 0.5 * (pull * away.square().sum(-1)).sum(-1)
        if "load" in params:
            value = value - (params["load"] * positions).sum((-2, -1))
        return value

    def problem(
        self, *, num_sites: int, batch_ndim: int = 0, fragments: Labels | None = None, loaded: bool = False
    ) -> Minimize:
        """The network at rest.

        Args:
            num_sites: number of nodes N.
            batch_ndim: leading dimensions of ``positions`` that number independent networks.
            fragments: labels of the parts that move freely; default: the connected parts of the edges.
            loaded: whether a load acts; it breaks the invariance under rigid motions, so no null space is declared.

        Returns:
            `Minimize` over ``positions``, with the rigid motions as its null space unless anchored or loaded.
        """
        if self.anchors is not None or loaded:
            return Minimize(self, batch_ndim=batch_ndim)
        if fragments is None:
            fragments = connected_fragments(self.edges, num_sites)
        return Minimize(self, batch_ndim=batch_ndim, nullspace=rigid_nullspace(fragments))
