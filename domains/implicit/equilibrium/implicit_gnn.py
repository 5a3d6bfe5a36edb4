"""An implicit graph network that is well posed whatever its parameters are."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from sciopt import Solution
from sciopt.checks import check_option
from sciopt.domains.implicit.equilibrium.graph import GraphDEQ
from sciopt.domains.implicit.equilibrium.layer import strategies
from sciopt.hypergradients import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver

__all__ = ["ImplicitGNN"]


class ImplicitGNN(nn.Module):
    """``z* = tanh(kappa S z* W / max(1, |W|) + U x + b)``: a graph network of infinite depth that contracts by ``kappa``.

    Use it to learn on molecules and other small graphs where distant nodes matter. S is the symmetrically normalised adjacency
    with self-loops, of norm at most 1, so there is exactly one equilibrium for every W, U and b, and plain iteration reaches
    it at rate ``kappa``. What does not change within a solve is computed once, before it.

    Args:
        inputs: features of a node's x.
        channels: features of a node's state.
        kappa: contraction factor, in (0, 1).
        solver: as for `DEQ`.
        hypergradient: as for `DEQ`.
        throw: as for `DEQ`.
        generator: source of the initial parameters, on the CPU; None: torch's own.
        dtype: of the parameters; None: torch's default.
        device: of the parameters.

    Raises:
        ValueError: for ``kappa`` out of range.

    Example:
        >>> layer = ImplicitGNN(2, 4, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(3, 2), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])).shape
        torch.Size([3, 4])

    References:
        Gu, Chang, Zhu, Sojoudi, El Ghaoui. "Implicit graph neural networks". NeurIPS 2020, section 3 (well-posedness). Kipf,
        Welling. "Semi-supervised classification with graph convolutional networks". ICLR 2017 (S).
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        kappa: float = 0.9,
        solver: AbstractSolver | None = None,
        hypergradient: AbstractHypergradient | None = None,
        throw: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_option("ImplicitGNN", "kappa", kappa, 0 < kappa < 1, "in (0, 1)", "0.9 is a good choice.")
        self.kappa, self.throw = kappa, throw
        self.solver, self.hypergradient = strategies("ImplicitGNN", solver, hypergradient)

        def draw(rows: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(rows, channels, generator=generator, dtype=dtype) / rows**0.5).to(device))

        self.W, self.U = draw(channels), draw(inputs)
        self.b = nn.Parameter(torch.zeros(channels, dtype=dtype, device=device))

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        *,
        edge_weight: Tensor | None = None,
        init: Tensor | None = None,
        return_solution: Literal[False] = False,
    ) -> Tensor: ...  # pragma: no cover

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        *,
        edge_weight: Tensor | None = None,
        init: Tensor | None = None,
        return_solution: Literal[True],
    ) -> tuple[Tensor, Solution]: ...  # pragma: no cover

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        *,
        edge_weight: Tensor | None = None,
        init: Tensor | None = None,
        return_solution: bool = False,
    ) -> Tensor | tuple[Tensor, Solution]:
        """The settled node states; arguments as for `GraphDEQ`.

        Args:
            x: node inputs ``(nodes, inputs)``.
            edge_index: int64 ``(2, edges)``, every edge both ways.
            batch: graph of each node, in ascending order; None: one graph.
            edge_weight: ``(edges,)``, not negative and the same both ways; None: ones.
            init: states to start from ``(nodes, channels)``; None: zeros.
            return_solution: also return the `Solution`.

        Returns:
            ``z`` ``(nodes, channels)``, or ``(z, solution)``.

        Raises:
            ValueError: as `GraphDEQ`.
            SolveError: with ``throw``, when a graph does not settle.
        """
        source, target = edge_index[0], edge_index[1]
        weight = x.new_ones(source.shape) if edge_weight is None else edge_weight
        scale = x.new_ones(x.shape[:1]).index_add(0, target, weight).rsqrt()
        W = self.W * (self.kappa / torch.linalg.matrix_norm(self.W, 2).clamp_min(1.0))

        def settle(z: Tensor, inputs: Tensor, edges: Tensor, coupling: Tensor) -> Tensor:
            sent = z @ W
            kept = inputs[:, -1:] * sent
            gathered = kept.index_add(0, edges[1], coupling * sent.index_select(0, edges[0]))
            return torch.tanh(gathered + inputs[:, :-1])

        layer = GraphDEQ(
            settle,
            channels=self.W.shape[0],
            solver=self.solver,
            hypergradient=self.hypergradient,
            throw=self.throw,
        )
        inputs = torch.cat([x @ self.U + self.b, scale.square().unsqueeze(-1)], -1)
        coupling = (scale[source] * scale[target] * weight).unsqueeze(-1)
        if return_solution:
            return layer(inputs, edge_index, batch, edge_attr=coupling, init=init, return_solution=True)
        return layer(inputs, edge_index, batch, edge_attr=coupling, init=init)
