"""Measuring time and memory the same way in every bar."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["peak_bytes", "side_by_side"]


def side_by_side(
    runs: Mapping[str, Callable[[], Any]], *, repeat: int = 5, warmup: int = 1, max_seconds: float = 120.0
) -> dict[str, float]:
    """Median seconds of each function, taken in turns so that a busy machine slows all alike.

    Args:
        runs: functions by name; each has to finish its work before it returns (``jax.block_until_ready``; CUDA is
            synchronised here).
        repeat: rounds that count.
        warmup: rounds before, which compile and fill caches.
        max_seconds: after this many seconds of counted rounds no further round begins.

    Example:
        >>> sorted(side_by_side({"a": lambda: None, "b": lambda: None}, repeat=2))
        ['a', 'b']
    """
    for _ in range(warmup):
        for call in runs.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for _ in range(repeat):
        for name, call in runs.items():
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin > max_seconds:
            break
    return {name: statistics.median(found) for name, found in times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Storages(TorchDispatchMode):
    """Bytes of tensor storages that were made inside and are still alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf.untyped_storage(), outside=True)
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage, outside: bool = False) -> None:
        key, size = storage._cdata, 0 if outside else storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes of tensors made by ``call`` that lived at once: results, saved activations, gradients.

    Counted on tensor storages, so it is exact and repeatable on the CPU; scratch memory inside one operator does not
    show. On a machine with CUDA, the CUDA allocator's own peak where that is larger.

    Example:
        >>> peak_bytes(lambda: (torch.zeros(1000, dtype=torch.float64) + 1).sum())
        16000
    """
    cuda = torch.cuda.is_available()
    _synchronize()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with _Storages() as storages:
        call()
    _synchronize()
    return max(storages.peak, torch.cuda.max_memory_allocated() - before if cuda else 0)
