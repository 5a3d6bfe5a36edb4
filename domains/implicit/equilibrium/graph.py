"""Equilibrium layers on batches of graphs: node states settle by message passing, one status for each graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from sciopt import FixedPoint, Solution
from sciopt.checks import check_option
from sciopt.domains.implicit.equilibrium.layer import held, precision, raised, settle, strategies
from sciopt.domains.implicit.frozen import Frozen
from sciopt.hypergradients import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver

__all__ = ["GraphDEQ"]


class GraphDEQ(nn.Module):
    """``z* = f(z*, x, edge_index)`` on every graph of a PyG batch: messages travel as far as they need to.

    Use it in place of a deep stack of graph convolutions that share weights. Any PyG layer serves inside f. Each graph is a
    problem of its own, with its own status; graphs that have settled are dropped. Freezing, gradients and warm starts as for
    `DEQ`. States are padded to the largest graph of the batch.

    Args:
        f: map ``(z, x, edge_index) -> z`` (or ``(z, x, edge_index, edge_attr)`` where edge attributes are given), ``z`` of
            shape ``(nodes, channels)``; messages must stay within a graph.
        channels: features of a node's state.
        solver: as for `DEQ`.
        hypergradient: as for `DEQ`.
        throw: as for `DEQ`.

    Raises:
        TypeError: when ``f`` is not callable, or the strategies are of the wrong kind.

    Example:
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])  # a ring of three nodes, and two that are linked
        >>> spread = lambda z, x, edges: x + 0.5 * torch.zeros_like(z).index_add(0, edges[1], z[edges[0]])
        >>> layer = GraphDEQ(spread, channels=1)
        >>> x = torch.ones(5, 1, dtype=torch.float64)
        >>> z, solution = layer(x, ring, torch.tensor([0, 0, 0, 1, 1]), return_solution=True)
        >>> z.squeeze(-1), solution.status_code
        (tensor([2.0000, 2.0000, 2.0000, 1.0000, 1.5000], dtype=torch.float64), tensor([0, 0]))

    References:
        Gu, Chang, Zhu, Sojoudi, El Ghaoui. "Implicit graph neural networks". NeurIPS 2020.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        *,
        channels: int,
        solver: AbstractSolver | None = None,
        hypergradient: AbstractHypergradient | None = None,
        throw: bool = True,
    ) -> None:
        super().__init__()
        if not callable(f):
            raise TypeError(f"GraphDEQ: expected `f` to be callable as f(z, x, edge_index), got {f!r}. Pass a module.")
        check_option("GraphDEQ", "channels", channels, channels >= 1, ">= 1", "Pass the width of the node states.")
        self.f, self.channels, self.throw = f, channels, throw
        self.solver, self.hypergradient = strategies("GraphDEQ", solver, hypergradient)

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        *,
        edge_attr: Tensor | None = None,
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
        edge_attr: Tensor | None = None,
        init: Tensor | None = None,
        return_solution: Literal[True],
    ) -> tuple[Tensor, Solution]: ...  # pragma: no cover

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        batch: Tensor | None = None,
        *,
        edge_attr: Tensor | None = None,
        init: Tensor | None = None,
        return_solution: bool = False,
    ) -> Tensor | tuple[Tensor, Solution]:
        """The settled node states.

        Args:
            x: node inputs ``(nodes, ...)``.
            edge_index: int64 ``(2, edges)``, source and target node.
            batch: graph of each node, int64 ``(nodes,)``, in ascending order; None: one graph.
            edge_attr: edge inputs ``(edges, ...)``, handed to f when given.
            init: states to start from ``(nodes, channels)``; None: zeros.
            return_solution: also return the `Solution`, with a status, residual norm and step count per graph.

        Returns:
            ``z`` ``(nodes, channels)``; with ``return_solution`` the pair ``(z, solution)``.

        Raises:
            ValueError: for shapes that do not fit, nodes that are not sorted by graph, or edges between graphs.
            SolveError: with ``throw``, when a graph does not settle, or its adjoint does not.
        """
        nodes = x.shape[0]
        batch = torch.zeros(nodes, dtype=torch.int64, device=x.device) if batch is None else batch
        check_graphs(nodes, edge_index, batch, edge_attr, init, self.channels)
        dtype = precision(self.f, [x, edge_attr, init])
        x, edge_attr, init = raised(x, dtype), raised(edge_attr, dtype), raised(init, dtype)
        graphs = Graphs.of(x, edge_index, batch, edge_attr)
        flat = x.new_zeros(nodes, self.channels, dtype=dtype) if init is None else init
        z0 = graphs.padded(flat)
        frozen = held("GraphDEQ", self.f, z0)
        solution = settle(self, graph_problem(frozen, graphs), graphs.floats(), z0, silent=not return_solution)
        z = graphs.nodes(solution.value)
        frozen.conclude(z.detach(), *graphs.inputs(graphs.floats()))
        return (z, solution) if return_solution else z


class Graphs:
    """A batch of graphs, or some of them, between flat nodes and states padded to the largest graph.

    Args:
        x: node inputs.
        edge_index: edges between these nodes.
        edge_attr: edge inputs, or None.
        graph: graph of each node.
        position: number of each node within its graph.
        count: number of graphs.
        width: nodes that each graph has room for.
    """

    def __init__(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None,
        graph: Tensor,
        position: Tensor,
        count: int,
        width: int,
    ) -> None:
        self.x, self.edge_index, self.edge_attr = x, edge_index, edge_attr
        self.graph, self.position, self.count, self.width = graph, position, count, width
        self.place = graph * width + position

    @staticmethod
    def of(x: Tensor, edge_index: Tensor, batch: Tensor, edge_attr: Tensor | None) -> Graphs:
        """The whole batch."""
        sizes = torch.bincount(batch) if batch.numel() else batch.new_zeros(1)
        position = torch.arange(batch.shape[0], device=batch.device) - (sizes.cumsum(0) - sizes)[batch]
        return Graphs(x, edge_index, edge_attr, batch, position, sizes.shape[0], max(int(sizes.max()), 1))

    def floats(self) -> list[Tensor]:
        """Inputs that derivatives may reach."""
        return [t for t in (self.x, self.edge_attr) if t is not None and t.is_floating_point()]

    def inputs(self, floats: Sequence[Tensor]) -> tuple[Any, ...]:
        """Arguments of f after z, with these floating-point inputs."""
        found = iter(floats)
        x = next(found) if self.x.is_floating_point() else self.x
        if self.edge_attr is None:
            return x, self.edge_index
        return x, self.edge_index, next(found) if self.edge_attr.is_floating_point() else self.edge_attr

    def padded(self, flat: Tensor) -> Tensor:
        """Node states ``(nodes, c)`` as ``(graphs, width, c)``, zeros where there is no node."""
        room = flat.new_zeros(self.count * self.width, *flat.shape[1:])
        return room.index_copy(0, self.place, flat).unflatten(0, (self.count, self.width))

    def nodes(self, padded: Tensor) -> Tensor:
        """The reverse of `padded`."""
        return padded.flatten(0, 1).index_select(0, self.place)

    def chosen(self, rows: Tensor) -> tuple[Graphs, Tensor, Tensor]:
        """Some of the graphs, in the order of ``rows``, with the nodes and edges that belong to them."""
        number = self.graph.new_full((self.count,), -1).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
        nodes = torch.nonzero(number[self.graph] >= 0).squeeze(-1)
        label = self.graph.new_full(self.graph.shape, -1)
        label[nodes] = torch.arange(len(nodes), device=nodes.device)
        edges = torch.nonzero(label[self.edge_index[0]] >= 0).squeeze(-1)
        attr = None if self.edge_attr is None else self.edge_attr.detach().index_select(0, edges)
        some = Graphs(
            self.x.detach().index_select(0, nodes),
            label[self.edge_index.index_select(1, edges)],
            attr,
            number[self.graph.index_select(0, nodes)],
            self.position.index_select(0, nodes),
            len(rows),
            self.width,
        )
        return some, nodes, edges


def graph_problem(frozen: Frozen, graphs: Graphs) -> FixedPoint:
    """The layer's equation for a batch of graphs, and the same for some of them."""

    def whole(z: Tensor, floats: Sequence[Tensor]) -> Tensor:
        flat = graphs.nodes(z)
        out = frozen(flat, *graphs.inputs(floats))
        if not isinstance(out, Tensor) or out.shape != flat.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"GraphDEQ: expected `f` to return states of shape (nodes, channels) = {tuple(flat.shape)}, got {got}. "
                "Return a new z."
            )
        return graphs.padded(out)

    def restrict(rows: Tensor) -> FixedPoint:
        some, nodes, edges = graphs.chosen(rows)
        kept: list[Any] = []  # the inputs of the chosen graphs, taken out once

        def part(z: Tensor, floats: Sequence[Tensor]) -> Tensor:
            if frozen.random:  # masks belong to the whole batch
                full = z.new_zeros(graphs.count, *z.shape[1:]).index_copy(0, rows, z)
                return whole(full, floats).index_select(0, rows)
            if not kept or kept[0] is not floats[0]:
                picks = [nodes] if graphs.x.is_floating_point() else []
                picks += [edges] if graphs.edge_attr is not None and graphs.edge_attr.is_floating_point() else []
                chosen = [t.index_select(0, pick) for t, pick in zip(floats, picks, strict=False)]
                kept[:] = [floats[0], some.inputs(chosen)]
            return some.padded(frozen(some.nodes(z), *kept[1]))

        return FixedPoint(part, batch_ndim=1, restrict=restrict)

    return FixedPoint(whole, batch_ndim=1, restrict=restrict)


def check_graphs(
    nodes: int, edge_index: Tensor, batch: Tensor, edge_attr: Tensor | None, init: Tensor | None, channels: int
) -> None:
    """Shapes and the separation of the graphs."""
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"GraphDEQ: expected `edge_index` int64 of shape (2, edges), got {edge_index.dtype} {tuple(edge_index.shape)}. "
            "Pass it as PyG's Data holds it."
        )
    if tuple(batch.shape) != (nodes,) or bool((batch.diff() < 0).any()):
        raise ValueError(
            f"GraphDEQ: expected `batch` of shape ({nodes},) in ascending order, got {tuple(batch.shape)}. Collate graphs "
            "with torch_geometric.data.Batch, or sort the nodes by graph."
        )
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= nodes):
        raise ValueError(
            f"GraphDEQ: expected `edge_index` within [0, {nodes}), got entries from {int(edge_index.min())} to "
            f"{int(edge_index.max())}. Number the nodes of `x` from 0."
        )
    if bool((batch[edge_index[0]] != batch[edge_index[1]]).any()):
        raise ValueError(
            "GraphDEQ: expected edges within graphs, got one between two. Correct `batch` or `edge_index`."
        )
    if edge_attr is not None and edge_attr.shape[0] != edge_index.shape[1]:
        raise ValueError(
            f"GraphDEQ: expected `edge_attr` with {edge_index.shape[1]} rows, got {edge_attr.shape[0]}. Give one row per edge."
        )
    if init is not None and tuple(init.shape) != (nodes, channels):
        raise ValueError(
            f"GraphDEQ: expected `init` of shape {(nodes, channels)}, got {tuple(init.shape)}. Pass states of the same nodes."
        )
