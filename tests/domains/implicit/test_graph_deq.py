"""Equilibria on batches of graphs: alone or together, dense truth, PyG layers, dropped graphs, permutations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv

from sciopt.domains.implicit.equilibrium import GraphDEQ, ImplicitGNN
from sciopt.inner import Anderson, Picard
from sciopt.solution import Status
from tests.domains.implicit.deq_cases import relative
from tests.helpers import randn

WIDTH = 3


def collate(graphs: list[Any]) -> Any:
    """A PyG batch, whose attributes no type checker knows."""
    return Batch.from_data_list(graphs)


def both_ways(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([*pairs, *[(b, a) for a, b in pairs]]).T


@pytest.fixture
def graphs(generator: torch.Generator) -> list[Any]:
    """A ring, a path, a lone atom and a star."""
    ring = [(i, (i + 1) % 5) for i in range(5)]
    path = [(i, i + 1) for i in range(6)]
    star = [(0, i) for i in range(1, 4)]
    sizes = [
        (5, both_ways(ring)),
        (7, both_ways(path)),
        (1, torch.zeros(2, 0, dtype=torch.int64)),
        (4, both_ways(star)),
    ]
    return [Data(x=randn(n, 2, generator=generator), edge_index=edges) for n, edges in sizes]


def dense_truth(layer: ImplicitGNN, data: Any, steps: int = 400) -> Tensor:
    """The same network by dense matrices and plain iteration."""
    n = len(data.x)
    adjacency = torch.eye(n, dtype=torch.float64)
    adjacency[data.edge_index[1], data.edge_index[0]] += 1
    root = adjacency.sum(1).rsqrt()
    S = root.unsqueeze(1) * adjacency * root
    W = layer.W * (layer.kappa / torch.linalg.matrix_norm(layer.W, 2).clamp_min(1.0))
    z = torch.zeros(n, layer.W.shape[0], dtype=torch.float64)
    for _ in range(steps):
        z = torch.tanh(S @ z @ W + data.x @ layer.U + layer.b)
    return z


def test_implicit_gnn_against_dense_plain_iteration(graphs: list[Any], generator: torch.Generator) -> None:
    layer = ImplicitGNN(2, WIDTH, solver=Anderson(rtol=1e-14), generator=generator, dtype=torch.float64)
    batch = collate(graphs)
    z, solution = layer(batch.x, batch.edge_index, batch.batch, return_solution=True)
    assert solution.status_code.tolist() == [0, 0, 0, 0]
    truth = torch.cat([dense_truth(layer, graph) for graph in graphs])
    torch.testing.assert_close(z, truth, rtol=1e-11, atol=1e-12)
    leaves = list(layer.parameters())
    weight = torch.cos(torch.arange(z.numel(), dtype=torch.float64)).reshape(z.shape)

    def derivatives(z: Tensor) -> list[Tensor]:
        first = torch.autograd.grad((z * weight).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)]

    for place, (a, b) in enumerate(zip(derivatives(z), derivatives(truth), strict=True)):
        assert relative(a, b) < (1e-10 if place < 3 else 1e-8)
    with torch.no_grad():
        layer.W.mul_(100)  # well posed by construction
    assert layer(batch.x, batch.edge_index, batch.batch, return_solution=True)[1].status is Status.CONVERGED


def test_graphs_do_not_see_each_other(graphs: list[Any], generator: torch.Generator) -> None:
    layer = ImplicitGNN(2, WIDTH, solver=Anderson(rtol=1e-12), generator=generator, dtype=torch.float64)
    order = [2, 0, 3, 1]
    batch, shuffled = collate(graphs), collate([graphs[i] for i in order])
    z = layer(batch.x, batch.edge_index, batch.batch)
    mixed = layer(shuffled.x, shuffled.edge_index, shuffled.batch)
    parts = dict(zip(order, mixed.split([len(graphs[i].x) for i in order]), strict=True))
    torch.testing.assert_close(torch.cat([parts[i] for i in range(4)]), z, rtol=1e-10, atol=1e-11)
    alone = layer(graphs[1].x, graphs[1].edge_index)
    torch.testing.assert_close(parts[1], alone, rtol=1e-10, atol=1e-11)
    # relabelled nodes of one graph: the same states, relabelled
    perm = torch.randperm(7, generator=generator)
    turned = layer(graphs[1].x[perm], torch.argsort(perm)[graphs[1].edge_index])
    torch.testing.assert_close(turned, alone[perm], rtol=1e-10, atol=1e-11)


def test_a_graph_that_fails_is_named_and_settled_ones_are_dropped(graphs: list[Any]) -> None:
    batch = collate(graphs)
    rate = torch.tensor([0.1, 0.6, 0.0, 2.0], dtype=torch.float64)[batch.batch].unsqueeze(-1)
    seen: list[int] = []

    def f(z: Tensor, x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        seen.append(len(z))
        spread = torch.zeros_like(z).index_add(0, edges[1], weight * z[edges[0]])
        return x[:, :1] * torch.tanh(spread + z) * (1 + 9 * (x[:, :1] > 1)) + x[:, :1] * z + x[:, 1:]

    x = torch.cat([rate, batch.x], -1)
    weight = torch.full((batch.edge_index.shape[1], 1), 0.1, dtype=torch.float64)
    layer = GraphDEQ(f, channels=2, solver=Picard(max_steps=60), throw=False)
    z, solution = layer(x, batch.edge_index, batch.batch, edge_attr=weight, return_solution=True)
    assert solution.converged.tolist()[0] and solution.converged.tolist()[2] and not solution.converged.tolist()[3]
    assert seen[0] == 17 and min(seen) <= 11
    part = layer(x[:5], graphs[0].edge_index, edge_attr=weight[:10])
    torch.testing.assert_close(z[:5], part, rtol=1e-9, atol=1e-10)


def test_pyg_layers_with_dropout_train(graphs: list[Any], generator: torch.Generator) -> None:
    torch.manual_seed(1)

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embed = GCNConv(8, 8), nn.Embedding(3, 8)
            self.dropout, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(8)

        def forward(self, z: Tensor, kind: Tensor, edge_index: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.dropout(self.conv(z, edge_index)) + self.norm(self.embed(kind)))

    body = Body()
    layer = GraphDEQ(body, channels=8, solver=Anderson(rtol=1e-5))
    head = nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 2e-2)
    batch = collate(graphs)
    kind = torch.randint(0, 3, (17,), generator=generator)
    size = torch.bincount(batch.batch).float()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        z, solution = layer(kind, batch.edge_index, batch.batch, return_solution=True)
        assert bool(solution.converged.all())
        total = torch.zeros(4, 8).index_add(0, batch.batch, z)
        loss = (head(total).squeeze(-1) - size).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0] and int(body.norm.num_batches_tracked or 0) == 40


def test_bad_graphs_are_refused_by_name(graphs: list[Any]) -> None:
    layer = ImplicitGNN(2, WIDTH, dtype=torch.float64)
    batch = collate(graphs)
    x, edges = batch.x, batch.edge_index
    with pytest.raises(ValueError, match="expected edges within graphs, got one between two"):
        layer(x, torch.tensor([[0], [6]]), batch.batch)
    with pytest.raises(ValueError, match="GraphDEQ: expected `batch` of shape \\(17,\\) in ascending order"):
        layer(x, edges, batch.batch.flip(0))
    with pytest.raises(ValueError, match="GraphDEQ: expected `edge_index` within \\[0, 17\\)"):
        GraphDEQ(lambda z, x, e: z, channels=2)(x, torch.tensor([[0], [17]]))
    with pytest.raises(ValueError, match="GraphDEQ: expected `edge_index` int64 of shape"):
        GraphDEQ(lambda z, x, e: z, channels=2)(x, edges.T)
    with pytest.raises(ValueError, match="GraphDEQ: expected `init` of shape \\(17, 3\\)"):
        layer(x, edges, batch.batch, init=torch.zeros(17, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="GraphDEQ: expected `f` to return states of shape"):
        GraphDEQ(lambda z, x, e: z[:3], channels=2)(x, edges, batch.batch)
    with pytest.raises(ValueError, match="ImplicitGNN: expected `kappa` in"):
        ImplicitGNN(2, 2, kappa=1.0)
    with pytest.raises(TypeError, match="GraphDEQ: expected `f` to be callable"):
        GraphDEQ(None, channels=2)  # pyright: ignore[reportArgumentType]
