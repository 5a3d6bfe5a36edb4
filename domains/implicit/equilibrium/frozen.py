"""One call's view of the layer's map: the same function in every iteration and in the adjoint, whatever training mode does.

Dropout draws one mask per call, batch norm uses its running statistics, parameters and buffers are those of the moment of the
call (also under `torch.func.functional_call`), and autocast is off.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sciopt.hypergradients.precision import full_precision
from sciopt.transforms import under_transform

__all__ = ["FrozenMap", "modules_of"]

Map = Callable[..., Tensor]


def modules_of(f: Any, depth: int = 2) -> list[nn.Module]:
    """The modules behind a map: itself, the owner of a bound method, those that a function closes over or names."""
    if isinstance(f, nn.Module):
        return [f]
    if isinstance(f, functools.partial):
        return [m for part in (f.func, *f.args, *f.keywords.values()) for m in modules_of(part, depth)]
    found = modules_of(f.__self__, 0) if inspect.ismethod(f) else []
    function = getattr(f, "__func__", f)
    if not inspect.isfunction(function) or depth == 0:
        return found
    try:
        reached = inspect.getclosurevars(function)
    except ValueError:  # a variable that is not assigned yet
        return found
    for value in (*reached.nonlocals.values(), *reached.globals.values()):
        if isinstance(value, nn.Module) or inspect.isroutine(value) or isinstance(value, functools.partial):
            found += [module for module in modules_of(value, depth - 1) if all(module is not m for m in found)]
    return found


class FrozenMap:
    """``f(z, *inputs)`` as one fixed function of its arguments and of the parameters found now.

    Args:
        f: the layer's map.
        like: a tensor on the device where random numbers would be drawn.

    Raises:
        ValueError: for batch norm without running statistics in training mode, which couples the samples.
    """

    def __init__(self, f: Map, like: Tensor) -> None:
        self.f = f
        self.device = like.device
        self.random: bool | None = None  # known after the first call
        self.entry = self._rng()
        self.exit = self.entry
        self.places: list[tuple[dict[str, Any], str]] = []
        self.tensors: list[Tensor] = []
        self.norms: list[nn.Module] = []
        for module in modules_of(f):
            self._collect(module, known=module is f)

    def _collect(self, module: nn.Module, known: bool) -> None:
        """Note tensors and what has to be held; a module that f only closes over may have parts that f does not use."""
        for part in module.modules():
            frozen = part.training and freezes(part, known)
            if frozen:
                self.norms.append(part)
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if isinstance(tensor, Tensor):
                        self.places.append((table, name))
                        self.tensors.append(tensor.clone() if frozen and table is part._buffers else tensor)

    def __call__(self, z: Tensor, *inputs: Any) -> Tensor:
        """The map; leaves the generators as they were."""
        if self.random is False:
            return self._quiet(z, *inputs)
        outside = self._rng()
        self._set_rng(self.entry)
        out = self._quiet(z, *inputs)
        after = self._rng()
        self._set_rng(outside)
        if self.random is None:
            self.random = any(not torch.equal(a, b) for a, b in zip(self.entry, after, strict=True))
            self.exit = after
        return out

    def _quiet(self, z: Tensor, *inputs: Any) -> Tensor:
        """The map with the noted tensors in place, normalisation by running statistics, and full precision."""
        before = [table[name] for table, name in self.places]
        if all(old is tensor for old, tensor in zip(before, self.tensors, strict=True)) and not self.norms:
            with full_precision(z):
                return self.f(z, *inputs)
        try:
            for (table, name), tensor in zip(self.places, self.tensors, strict=True):
                table[name] = tensor
            for part in self.norms:
                part.training = False
            with full_precision(z):
                return self.f(z, *inputs)
        finally:
            for part in self.norms:
                part.training = True
            for (table, name), tensor in zip(self.places, before, strict=True):
                table[name] = tensor

    def conclude(self, z: Tensor, *inputs: Any) -> None:
        """After the solve: running statistics take in the solution's, once; generators go on as after one call of f."""
        if self.norms and not under_transform():
            self._set_rng(self.entry)
            with torch.no_grad(), full_precision(z):
                self.f(z.detach(), *inputs)
        if self.random:
            self._set_rng(self.exit)

    def _rng(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _set_rng(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)


def freezes(part: nn.Module, known: bool) -> bool:
    """Whether a module in training mode changes its own buffers as it is used, so that a solve must hold them."""
    if isinstance(part, _NormBase):
        if part.track_running_stats and part.running_mean is not None:
            return True
        if isinstance(part, _BatchNorm) and known:
            raise ValueError(
                f"DEQ: expected normalisation that keeps the samples apart, got {part} without running statistics in training "
                "mode. Set track_running_stats=True (frozen during a solve), or use LayerNorm or GroupNorm."
            )
    return type(part).__name__ == "_SpectralNorm"  # one power iteration per use
