"""Autocast ends where a solve begins, also in a backward pass that runs under it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision"]


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device, where it is on.

    The adjoint's products would otherwise be rounded to half precision, and its residual could not fall below that.
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
