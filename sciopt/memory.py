"""Peak memory of a block of code: the device's own count on CUDA, the resident set on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

__all__ = ["PeakMemory", "resident"]


class PeakMemory:
    """Context manager; `bytes` is the peak above the memory in use at the start (NaN where it cannot be read).

    On Linux the kernel's high-water mark is reset at the start; elsewhere the CPU reading is NaN.

    Args:
        tensors: anything whose first tensor tells the device.

    Example:
        >>> with PeakMemory([torch.zeros(1)]) as peak:
        ...     x = torch.ones(1000)
        >>> peak.bytes >= 0 or peak.bytes != peak.bytes
        True
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        first = next((t for t in tensors if isinstance(t, Tensor)), None)
        self.device = first.device if first is not None and first.is_cuda else None
        self.bytes = float("nan")

    def __enter__(self) -> PeakMemory:
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = float(torch.cuda.memory_allocated(self.device))
        else:
            try:
                with open("/proc/self/clear_refs", "w") as handle:
                    handle.write("5")
            except OSError:
                pass
            self._start = resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device is not None:
            self.bytes = float(torch.cuda.max_memory_allocated(self.device)) - self._start
        else:
            self.bytes = max(resident("VmHWM") - self._start, 0.0)


def resident(field: str) -> float:
    """A field of /proc/self/status in bytes, NaN where there is none."""
    try:
        with open("/proc/self/status") as handle:
            for line in handle:
                if line.startswith(field + ":"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float("nan")
