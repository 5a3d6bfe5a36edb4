"""The Jacobian of the outer residuals through the inner solution: by tangents, by adjoints, or as products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import Record
from sciopt.outer.evaluate import Evaluation, Evaluator, flat, residuals_of, total_derivative
from sciopt.response import respond
from sciopt.solution import SolveError

__all__ = ["adjoint_product", "dense_jacobian", "residuals_at", "tangent_product"]


def residuals_at(evaluator: Evaluator, point: Tensor, last: Any) -> tuple[Tensor, Any]:
    """Outer residuals ``(k,)`` and theta* at a point, without derivatives."""
    with torch.no_grad():
        phi = evaluator.layout.unflatten(point)
        start = evaluator.start(phi, last)
        solution = respond(
            evaluator.problem.inner, phi, start, evaluator.solver, evaluator.hypergradient, True, Record()
        )
        return residuals_of(evaluator.problem, solution.value, phi), solution.value


def tangent_product(evaluator: Evaluator, evaluation: Evaluation, vector: Tensor) -> Tensor:
    """``J v`` ``(k,)`` by one tangent solve at the solution."""

    def residuals(point: Tensor) -> Tensor:
        ev = evaluator
        phi = ev.layout.unflatten(point)
        start = evaluation.inner_params if ev.restartable else ev.start(phi, None)
        solution = respond(ev.problem.inner, phi, start, ev.solver, ev.hypergradient, True, Record())
        return residuals_of(ev.problem, solution.value, phi)

    return torch.func.jvp(residuals, (evaluation.point,), (vector,))[1]


def adjoint_product(evaluation: Evaluation, vector: Tensor) -> Tensor:
    """``J^T u`` ``(n,)`` by one adjoint solve."""
    graph = evaluation.graph
    assert graph is not None
    with torch.enable_grad():
        weighted = graph.residuals @ vector.detach()
    return torch.add(*total_derivative(weighted, graph.attached, graph.cut, graph.leaves, keep=True))


def dense_jacobian(evaluator: Evaluator, evaluation: Evaluation, chunk_size: int) -> Tensor:
    """``J`` ``(k, n)`` by n tangent or k adjoint solves, whichever are fewer, ``chunk_size`` at a time."""
    assert evaluation.residuals is not None
    rows, columns = evaluation.residuals.numel(), evaluation.point.numel()
    count = min(rows, columns)
    eye = torch.eye(count, dtype=evaluation.point.dtype, device=evaluation.point.device)

    def solve(part: Tensor) -> Tensor:
        if rows < columns:
            return many(lambda block: adjoint_rows(evaluation, block), lambda u: adjoint_product(evaluation, u), part)
        tangent = lambda v: tangent_product(evaluator, evaluation, v)  # noqa: E731
        return many(torch.func.vmap(tangent), tangent, part)

    stacked = torch.cat([solve(part) for part in eye.split(chunk_size)])
    return stacked if rows < columns else stacked.T


def many(together: Any, single: Any, vectors: Tensor) -> Tensor:
    """All products at once, or one by one where an operation has no batching rule."""
    if len(vectors) > 1:
        try:
            return together(vectors)
        except SolveError:
            raise
        except RuntimeError:
            pass
    return torch.stack([single(vector) for vector in vectors])


def adjoint_rows(evaluation: Evaluation, block: Tensor) -> Tensor:
    """``U J`` ``(b, n)`` for rows ``U`` ``(b, k)`` by one batched adjoint solve."""
    graph = evaluation.graph
    assert graph is not None
    count, inputs = len(graph.cut), [*graph.cut, *graph.leaves]
    grads = torch.autograd.grad(
        graph.residuals, inputs, block, allow_unused=True, retain_graph=True, is_grads_batched=True
    )
    seeds, direct = grads[:count], grads[count:]
    live = [(a, s) for a, s in zip(graph.attached, seeds, strict=True) if s is not None and a.requires_grad]
    indirect: Any = [None] * len(graph.leaves)
    if live:
        outputs, cotangents = zip(*live, strict=True)
        indirect = torch.autograd.grad(
            outputs, graph.leaves, cotangents, allow_unused=True, retain_graph=True, is_grads_batched=True
        )
    like = [leaf.expand(len(block), *leaf.shape) for leaf in graph.leaves]
    total = [flat([d], [w]) + flat([i], [w]) for d, i, w in zip(direct, indirect, like, strict=True)]
    return torch.cat([part.reshape(len(block), -1) for part in total], dim=1)
