"""Ehrlich functions: motifs with spacings to be planted in a feasible sequence, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import AbstractTask, Table

__all__ = ["Ehrlich"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ehrlich(AbstractTask):
    """``f(x) = prod_i h(x, motif_i)`` for feasible sequences, ``-inf`` for others; the optimum is 1.

    A sequence is feasible when no two neighbours form a banned transition. ``h`` is the largest share of a motif, with its
    spacing, found at any place, rounded down to a multiple of 1 / quantization: no motif may be missing, so most sequences
    score 0. Motifs and bans are drawn so that all motifs fit, one after the other, into a feasible sequence. Visible are
    sequences of the chain of allowed transitions and mutants of them with scores up to ``ceiling``.

    Args:
        states: letters, 4 to 62.
        length: sequence length, at least ``motifs * motif_length``.
        motifs: number of motifs, c.
        motif_length: letters in each, k; no letter comes twice in a motif.
        quantization: levels of h, at most k; None: k.
        seed: of the transition matrix, the motifs and the spacings.
        rows: visible designs.
        ceiling: largest visible score.

    Raises:
        ValueError: for sizes that do not fit.

    Example:
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3)
        >>> task.score(task.optimum())
        tensor([1.], dtype=torch.float64)

    References:
        Stanton et al. "Closed-form test functions for biophysical sequence design benchmarking". arXiv:2407.00236, 2024,
        section 4.
    """

    states: int = 32
    length: int = 32
    motifs: int = 4
    motif_length: int = 4
    quantization: int | None = None
    seed: int = 0
    rows: int = 5000
    ceiling: float = 0.5

    def __post_init__(self) -> None:
        owner = "Ehrlich"
        check_option(owner, "states", self.states, 4 <= self.states <= len(LETTERS), "in [4, 62]", "32 is published.")
        ok = 1 <= self.motif_length <= self.states // 2
        check_option(owner, "motif_length", self.motif_length, ok, "between 1 and half of `states`", "4 is published.")
        ok = self.motifs >= 1 and self.length >= self.motifs * self.motif_length
        check_option(owner, "length", self.length, ok, "at least motifs * motif_length", "Lengthen the sequence.")
        ok = self.quantization is None or 1 <= self.quantization <= self.motif_length
        check_option(
            owner, "quantization", self.quantization, ok, "between 1 and motif_length", "Use None for all levels."
        )

    @property
    def space(self) -> CategoricalSpace:
        """See `AbstractTask.space`."""
        return CategoricalSpace(length=self.length, alphabet=LETTERS[: self.states])

    @property
    def bounds(self) -> tuple[float, float]:
        """See `AbstractTask.bounds`."""
        return 0.0, 1.0

    def pool(self) -> None:
        """See `AbstractTask.pool`: the whole space, of which `feasible` tells the allowed part."""
        return None

    @cached_property
    def transitions(self) -> Tensor:
        """Transition probabilities ``(states, states)``; zeros are banned. Each state may follow itself."""
        generator = torch.Generator().manual_seed(self.seed)
        n = self.states
        banned = torch.rand(n, n, generator=generator, device=generator.device).argsort(-1).argsort(-1) < int(0.4 * n)
        ring = torch.randperm(n, generator=generator, device=generator.device)
        banned[ring, ring.roll(-1)] = False  # every state can be reached
        banned.fill_diagonal_(False)
        weights = torch.randn(n, n, generator=generator, device=generator.device, dtype=torch.float64).mul(2).exp()
        weights = torch.where(banned, 0.0, weights)
        return weights / weights.sum(-1, keepdim=True)

    @cached_property
    def _plan(self) -> tuple[Tensor, Tensor]:
        """Motifs ``(c, k)`` and the offsets of their letters ``(c, k)``."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        allowed = self.transitions > 0
        motifs: list[list[int]] = []
        current = int(torch.randint(self.states, (), generator=generator, device=generator.device))
        for _ in range(self.motifs):
            for _ in range(1000):  # a walk without repeated letters, which the ring makes possible sooner or later
                walk, at = [], current
                for _ in range(self.motif_length):
                    options = allowed[at].clone()
                    options[walk] = False
                    if not bool(options.any()):
                        break
                    at = int(torch.multinomial(options.double(), 1, generator=generator))
                    walk.append(at)
                if len(walk) == self.motif_length:
                    break
            else:
                raise ValueError(
                    "Ehrlich: expected motifs without repeated letters to exist, got none. Raise `states`."
                )
            motifs.append(walk)
            current = walk[-1]
        room = self.length // self.motifs
        offsets = []
        for _ in range(self.motifs):
            rest = 1 + torch.randperm(room - 1, generator=generator, device=generator.device)[: self.motif_length - 1]
            offsets.append([0, *rest.sort().values.tolist()])
        return torch.tensor(motifs), torch.tensor(offsets)

    def motif(self, index: int) -> tuple[list[int], list[int]]:
        """Letters of one planted motif and their offsets from its first."""
        motifs, offsets = self._plan
        return motifs[index].tolist(), offsets[index].tolist()

    def feasible(self, designs: Tensor) -> Tensor:
        """Which designs have no banned transition, bool ``(n,)``."""
        x = self.space.check(designs)
        return (self.transitions.to(x.device)[x[:, :-1], x[:, 1:]] > 0).all(-1)

    def score(self, designs: Tensor) -> Tensor:
        """See `AbstractTask.score`."""
        x = self.space.check(designs)
        levels = self.quantization or self.motif_length
        value = torch.ones(len(x), dtype=torch.float64, device=x.device)
        for motif, offset in zip(*(part.to(x.device) for part in self._plan), strict=True):
            starts = torch.arange(self.length - int(offset[-1]), device=x.device)
            found = (x[:, starts.unsqueeze(-1) + offset] == motif).sum(-1).amax(-1)
            value = value * (found * levels // self.motif_length).double() / levels
        return torch.where(self.feasible(x), value, -torch.inf)

    def optimum(self) -> Tensor:
        """One optimal design ``(1, length)``: the motifs one after the other, their gaps filled with repeats."""
        motifs, offsets = self._plan
        room = self.length // self.motifs
        out = torch.empty(1, self.length, dtype=torch.int64)
        for k, (motif, offset) in enumerate(zip(motifs, offsets, strict=True)):
            end = self.length if k == self.motifs - 1 else (k + 1) * room
            for j, letter in enumerate(motif):
                out[0, k * room + int(offset[j]) : end] = letter
        return out

    def initial(self, count: int, generator: torch.Generator) -> Tensor:
        """Sequences of the chain of allowed transitions, ``(count, length)``: feasible by construction."""
        state = torch.randint(self.states, (count,), generator=generator, device=generator.device)
        columns = [state]
        for _ in range(self.length - 1):
            state = torch.multinomial(self.transitions[state], 1, generator=generator).squeeze(-1)
            columns.append(state)
        return torch.stack(columns, -1)

    def visible(self) -> Table:
        """Half chain samples, half feasible mutants of the better ones, best rounds kept, none above the ceiling."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        known = self.initial(self.rows, generator)
        found = known[: self.rows // 2]
        parents = known
        while len(found) < self.rows:
            scores = self.score(parents)
            top = parents[scores.argsort(descending=True, stable=True)[: max(64, self.rows // 10)]]
            children = self.space.mutated(top.repeat(10, 1), max(1, self.length // 16), generator)
            value = self.score(children)
            children = children[(value >= 0) & (value <= self.ceiling)]
            found = torch.unique(torch.cat([found, children]), dim=0)
            parents = torch.cat([top, children])
        scores = self.score(found)
        keep = torch.nonzero(scores <= self.ceiling).squeeze(-1)
        order = torch.randperm(len(keep), generator=generator, device=generator.device)[: self.rows]
        return Table(designs=found[keep[order]], scores=scores[keep[order]])
