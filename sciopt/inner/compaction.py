"""Dropping finished rows: the rest of a batch goes on as a smaller batch, and every row finds its place at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciopt.problem.system import Oracle
from sciopt.transforms import under_transform

__all__ = ["RowBook", "worth_compacting"]

SHARE = 0.85  # of the rows that still run; below it copying them is cheaper than carrying the others
Entries = tuple[
    Tensor, Tensor, Tensor, Tensor, dict[str, Any]
]  # point, norm, steps, status code, and the solver's state


def worth_compacting(oracle: Oracle, x: Tensor, state: dict[str, Any], active: int) -> bool:
    """Whether rows should be dropped: enough have ended, the problem says how, nothing is recorded, and the state has one
    entry per row (or plain numbers, which hold for all)."""
    if (
        x.ndim != 2
        or active > SHARE * x.shape[0]
        or oracle.differentiable
        or not oracle.system.restrictable
        or under_transform()
    ):
        return False
    return all(isinstance(v, int) or (isinstance(v, Tensor) and v.shape[:1] == x.shape[:1]) for v in state.values())


class RowBook:
    """The whole batch as it was left, and which of its rows still run.

    Histories (entries of three dimensions and more) are not kept for rows that have ended: they would double the memory, and
    nobody steps on from them. They come back as zeros.

    Args:
        oracle: of the whole batch.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.rows: Tensor | None = None  # of the whole batch, in the order of the running one; None: all
        self.size = 0
        self.kept: list[Tensor | None] = []
        self.taken: list[Tensor] = []

    def shrink(self, entries: Entries, running: Tensor) -> tuple[Oracle, Entries]:
        """Leave all entries behind, and return the oracle and the entries of the rows that run."""
        self._leave(flat(entries))
        chosen = torch.nonzero(running).squeeze(-1)
        self.rows = chosen if self.rows is None else self.rows.index_select(0, chosen)
        self.taken = [tensor.index_select(0, chosen) for tensor in flat(entries)]
        return self.oracle.restricted(self.rows), like(entries, self.taken)

    def whole_of(self, entries: Entries) -> Entries:
        """Every row's entries, from the last ones of the running rows and those left behind."""
        current = flat(entries)
        self._leave(current)
        assert self.rows is not None
        whole = []
        for old, last in zip(self.kept, current, strict=True):
            if old is None:
                old = last.new_zeros(self.size, *last.shape[1:]).index_copy_(0, self.rows, last)
            whole.append(old)
        return like(entries, whole)

    def _leave(self, current: list[Tensor]) -> None:
        if self.rows is None:
            self.size = current[0].shape[0]
            self.kept = [None if tensor.ndim > 2 else tensor.clone() for tensor in current]
            return
        for place, tensor in enumerate(current):
            old = self.kept[place]
            if old is not None and tensor is not self.taken[place]:  # what no step has replaced stands there already
                old.index_copy_(0, self.rows, tensor)


def flat(entries: Entries) -> list[Tensor]:
    """All tensors in a fixed order."""
    return [*entries[:4], *(entries[4][name] for name in tensors_of(entries[4]))]


def like(entries: Entries, tensors: list[Tensor]) -> Entries:
    """The reverse of `flat`."""
    x, norm, steps, code = tensors[:4]
    state = entries[4]
    return x, norm, steps, code, {**state, **dict(zip(tensors_of(state), tensors[4:], strict=True))}


def tensors_of(state: dict[str, Any]) -> list[str]:
    """Names of the state's tensors, sorted."""
    return sorted(name for name, value in state.items() if isinstance(value, Tensor))
