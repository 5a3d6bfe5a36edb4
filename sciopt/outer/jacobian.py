"""The Jacobian of the outer residuals through the inner solution: by tangents, by adjoints, or as products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import Record
from sciopt.outer.evaluate import Evaluation, Evaluator, residuals_of, total_derivative
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
    """``J^T u`` ``(n,)`` by one adjoint solve; under `torch.func.vmap` by one batched solve."""
    graph = evaluation.graph
    assert graph is not None
    return torch.add(
        *total_derivative(graph.residuals, graph.attached, graph.cut, graph.leaves, keep=True, seed=vector)
    )


def dense_jacobian(evaluator: Evaluator, evaluation: Evaluation, chunk_size: int) -> Tensor:
    """``J`` ``(k, n)`` by n tangent or k adjoint solves, whichever are fewer, ``chunk_size`` at a time."""
    assert evaluation.residuals is not None
    rows, columns = evaluation.residuals.numel(), evaluation.point.numel()
    count = min(rows, columns)
    eye = torch.eye(count, dtype=evaluation.point.dtype, device=evaluation.point.device)

    def solve(part: Tensor) -> Tensor:
        if rows < columns:
            return many(lambda u: adjoint_product(evaluation, u), part)
        return many(lambda v: tangent_product(evaluator, evaluation, v), part)

    stacked = torch.cat([solve(part) for part in eye.split(chunk_size)])
    return stacked if rows < columns else stacked.T


def many(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """All products at once, or one by one where an operation has no batching rule."""
    if len(vectors) > 1:
        try:
            return torch.func.vmap(product)(vectors)
        except SolveError:
            raise
        except RuntimeError:
            pass
    return torch.stack([product(vector) for vector in vectors])
