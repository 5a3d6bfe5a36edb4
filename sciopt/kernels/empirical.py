"""The tangent kernel of a finite network at its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sciopt.kernels.abstract import AbstractKernel, check_points

__all__ = ["EmpiricalNTK"]


@final
@dataclass(frozen=True, eq=False)
class EmpiricalNTK(AbstractKernel):
    """``k(x, x') = <df(x)/dtheta, df(x')/dtheta> / outputs`` of any module, at its present parameters.

    Use it to linearise a trained network, or to see how far a finite one is from its wide limit. Each point is passed
    alone, as a batch of one. Holds the gradients of one tile's rows, ``(rows + columns) outputs`` times the parameters, at
    a time. Gradients reach the points, not the module's parameters.

    Args:
        module: maps ``(1, *point)`` to ``(1,)`` or ``(1, outputs)``; deterministic (``eval`` mode).

    Raises:
        TypeError: for something else than a module with parameters.
        ValueError: for outputs of another shape.

    Example:
        >>> module = torch.nn.Linear(3, 1)
        >>> EmpiricalNTK(module).pair(torch.ones(1, 3), torch.ones(2, 3))
        tensor([[4., 4.]])

    References:
        Jacot, Gabriel, Hongler. "Neural tangent kernel". NeurIPS 2018, section 4.
    """

    module: nn.Module

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module) or not list(self.module.parameters()):
            raise TypeError(
                f"EmpiricalNTK: expected `module` to be a torch.nn.Module with parameters, got {type(self.module).__name__}. "
                "Wrap the function in a module."
            )

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        check_points("EmpiricalNTK", left, right)
        one, two = self._gradients(left), self._gradients(right)
        outputs = next(iter(one.values())).shape[1]
        return sum((one[k].flatten(1) @ two[k].flatten(1).mT for k in one), left.new_zeros(())) / outputs

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        total = points.new_zeros(len(points))
        outputs = 1
        parts = []
        for chunk in points.split(64):
            grads = self._gradients(chunk)
            outputs = next(iter(grads.values())).shape[1]
            parts.append(sum((g.flatten(1).square().sum(-1) for g in grads.values()), total[: len(chunk)]))
        return torch.cat(parts) / outputs if parts else total

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None

    def _gradients(self, points: Tensor) -> dict[str, Tensor]:
        """Jacobian of each point's outputs in each parameter, ``(n, outputs, *parameter)``."""
        parameters = {k: p.detach() for k, p in self.module.named_parameters()}
        buffers = dict(self.module.named_buffers())

        def value(numbers: dict[str, Tensor], point: Tensor) -> Tensor:
            out = torch.func.functional_call(self.module, {**numbers, **buffers}, (point.unsqueeze(0),))
            if not isinstance(out, Tensor) or out.shape[:1] != (1,) or out.ndim > 2:
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(
                    f"EmpiricalNTK: expected `module` to return (1,) or (1, outputs) for one point, got {got}. Add a readout."
                )
            return out.reshape(-1)

        jacobian: Callable[..., dict[str, Tensor]] = torch.func.jacrev(value)
        return torch.func.vmap(jacobian, in_dims=(None, 0))(parameters, points)
