"""Motifs grown from the strongest pairs, letter by letter, and settled in turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.rules.motifs import Motif, motif_of
from sciopt.domains.offline.rules.scales import AbstractScale, Effects, ProductScale
from sciopt.domains.offline.rules.screening import centred, extension_gains, foremost, level_gain, pair_statistics
from sciopt.domains.offline.rules.sites import Sites

__all__ = ["Discovery", "Growth"]

EXPLAINED = 1 - 1e-5  # share of the variance at which nothing is left to be found
REMEMBERED = 16  # fits, since the same motifs are often fitted again
REGROWN = 4  # motifs that are left out in turn


@final
@dataclass(frozen=True, kw_only=True)
class Discovery:
    """How motifs are looked for.

    Args:
        span: most positions from a motif's first to its last letter; None: the length.
        motifs: most motifs.
        letters: most letters in each.
        level: largest chance of a motif under the null, which every motif that is kept must stay below.
        draws: of the null, whose tail is extrapolated by Gumbel's law.
        sweeps: most rounds of exchanging letters after each new motif.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> Discovery(motifs=2).letters
        8
    """

    span: int | None = None
    motifs: int = 12
    letters: int = 8
    level: float = 0.01
    draws: int = 12
    sweeps: int = 3

    def __post_init__(self) -> None:
        ok = self.span is None or self.span >= 2
        check_option("Discovery", "span", self.span, ok, ">= 2 or None", "None allows the whole length.")
        check_option("Discovery", "motifs", self.motifs, self.motifs >= 1, ">= 1", "12 is a good start.")
        check_option("Discovery", "letters", self.letters, self.letters >= 2, ">= 2", "8 is a good start.")
        check_option("Discovery", "level", self.level, 0 < self.level < 1, "in (0, 1)", "0.01 is strict.")
        check_option("Discovery", "draws", self.draws, self.draws >= 10, ">= 10", "12 fits the tail.")
        check_option("Discovery", "sweeps", self.sweeps, self.sweeps >= 0, ">= 0", "3 is a good start.")


class Growth:
    """The state of one search: the table, the motifs so far, and their effects."""

    def __init__(self, sites: Sites, scores: Tensor, scale: AbstractScale, options: Discovery) -> None:
        self.sites, self.scores, self.scale, self.options = sites, scores, scale, options
        self.span = min(sites.length, options.span or sites.length)
        self.motifs: list[Motif] = []
        self.effects = scale.fit([], self.designs, scores)
        self.fits: dict[tuple[Motif, ...], Effects] = {}
        pairs = (self.span - 1) * sites.letters**2
        # of a pair's statistic: rarely reached by independent noise
        self.threshold = (2 * math.log(pairs)) ** 0.5 + 1.5
        self.longer: dict[Motif, tuple[Motif, float]] = {}  # what `extended` gives while the others stand still
        self.stable: set[tuple[Motif, frozenset[Motif]]] = set()  # motifs that nothing improves beside these others
        self.whole: set[Motif] = set()  # motifs that were not worth a split
        self.cut = (self.threshold - 1) ** 2  # of the gain of one letter

    @property
    def designs(self) -> Tensor:
        """The designs ``(n, length)``."""
        return self.sites.designs

    def refit(self) -> None:
        """Effects of the motifs as they are now."""
        key = tuple(self.motifs)
        known = self.fits.pop(key, None)
        self.effects = self.scale.fit(self.motifs, self.designs, self.scores) if known is None else known
        self.fits[key] = self.effects  # the latest last
        if len(self.fits) > REMEMBERED:
            del self.fits[next(iter(self.fits))]

    def target(self, index: int) -> tuple[Tensor, Tensor]:
        """What the motif of this index has to explain, the others given."""
        weight = self.effects.weight
        left = self.effects.residual + self.effects.part(index, self.motifs[index], self.designs)
        return centred(torch.where(weight > 0, left, 0.0), weight), weight

    def extended(self, motif: Motif, left: Tensor, weight: Tensor) -> tuple[Motif, float]:
        """The best motif with one more letter, and its gain."""
        known = self.longer.get(motif)
        if known is not None:
            return known
        places, gains = extension_gains(motif, self.sites, left, weight, self.span)
        if not gains.numel() or not bool(torch.isfinite(gains).any()):
            return motif, float("-inf")
        best = foremost(gains)
        element = (int(places[best // self.sites.letters]), best % self.sites.letters)
        made = motif_of([*motif.elements, element])
        self.longer[motif] = made, level_gain(made, self.sites, left, weight)
        return self.longer[motif]

    def improve(self, index: int) -> bool:
        """Add, exchange and drop letters of one motif while the others stand still; whether anything changed."""
        key = (self.motifs[index], frozenset(self.motifs))
        if key in self.stable:
            return False
        self.refit()
        left, weight = self.target(index)
        self.longer.clear()
        motif = start = self.motifs[index]
        gain = level_gain(motif, self.sites, left, weight)
        total, rows = float((weight * left.square()).sum()), int((weight > 0).sum())

        def needed(reached: float) -> float:  # in units of the variance that would be left
            return self.cut * max(total - reached, 1e-9 * total) / rows

        while len(motif) < self.options.letters:
            longer, reached = self.extended(motif, left, weight)
            if reached - gain <= needed(reached):
                break
            motif, gain = longer, reached
        for element in motif.elements:
            if len(motif) <= 2:
                break
            if element not in motif.elements:  # exchanges may have moved the first letter: the next sweep sees to it
                continue
            rest = motif.without(element)
            other, reached = self.extended(rest, left, weight)
            without = level_gain(rest, self.sites, left, weight)
            if max(reached, gain) - without < needed(max(reached, gain)):
                motif, gain = rest, without
            elif reached > gain * (1 + 1e-6):
                motif, gain = other, reached
        self.motifs[index] = motif
        if motif == start:
            self.stable.add(key)
        return motif != start

    def prune(self) -> bool:
        """Drop motifs that no longer explain anything, the weakest first; whether any went."""
        before = len(self.motifs)
        while self.motifs:
            self.refit()
            gains = [level_gain(m, self.sites, *self.target(k)) for k, m in enumerate(self.motifs)]
            least = min(range(len(gains)), key=gains.__getitem__)
            if gains[least] >= self.cut:
                break
            del self.motifs[least]
        return len(self.motifs) < before

    def worth(self) -> float:
        """What is to be lowered: minus twice the log-likelihood, and a price for each letter."""
        rows = int((self.effects.weight > 0).sum())
        return rows * math.log(max(1 - self.effects.explained, 1e-12)) + self.cut * sum(map(len, self.motifs))

    def settle(self) -> None:
        """Improve motifs in turns, and drop what has become superfluous, until nothing changes."""
        for _ in range(self.options.sweeps):
            changed = [self.improve(index) for index in range(len(self.motifs))]
            if not (self.prune() or any(changed)):
                break
        self.refit()

    def split(self) -> bool:
        """Cut a motif that has swallowed parts of two into these; whether it was worth it."""
        interleaved = not isinstance(self.scale, ProductScale)  # whose fits take too long for all subsets
        for index, motif in enumerate(self.motifs):
            if len(motif) < 4 or self.effects.explained >= EXPLAINED or motif in self.whole:
                continue
            known, best, kept = list(self.motifs), self.worth(), None
            for mask in range(1, 1 << (len(motif) - 1)):  # the last letter is always in the second part
                one = [e for k, e in enumerate(motif.elements) if mask >> k & 1]
                two = [e for k, e in enumerate(motif.elements) if not mask >> k & 1]
                if min(len(one), len(two)) < 2 or (one[-1] > two[0] and not interleaved):
                    continue
                self.motifs = [*known[:index], motif_of(one), *known[index + 1 :], motif_of(two)]
                self.refit()
                if self.worth() < best:
                    best, kept = self.worth(), self.motifs
            self.motifs = known if kept is None else kept
            self.refit()
            if kept is not None:
                return True
            self.whole.add(motif)
        return False

    def regrow(self) -> bool:
        """Leave out one motif and let the others grow, the shortest first; whether it was worth it."""
        for motif in sorted(self.motifs, key=len)[:REGROWN]:
            known, before = list(self.motifs), self.worth()
            self.motifs = [kept for kept in known if kept != motif]
            self.refit()
            self.settle()
            if self.worth() < before - 1e-6 * abs(before):
                return True
            self.motifs = known
            self.refit()
        return False

    def grow(self) -> None:
        """Start motifs from the strongest pairs that are left, one after the other."""
        while len(self.motifs) < self.options.motifs and self.effects.explained < EXPLAINED:
            statistics = pair_statistics(self.sites, self.effects.residual, self.effects.weight, self.span)
            if float(statistics.max()) < self.threshold:
                break
            best, letters = foremost(statistics), self.sites.letters
            shift, first, second = best // letters**2 + 1, best // letters % letters, best % letters
            known, before = list(self.motifs), self.worth()
            self.motifs.append(Motif(letters=(first, second), offsets=(0, shift)))
            self.improve(len(self.motifs) - 1)
            self.settle()
            while self.split():
                self.settle()
            if self.motifs == known or self.worth() >= before:
                self.motifs = known
                self.refit()
                break

    def run(self) -> None:
        """Grow, and where something stays unexplained, leave out and grow again."""
        self.grow()
        for _ in range(self.options.sweeps):
            if self.effects.explained >= EXPLAINED or not self.motifs or not self.regrow():
                break
            self.grow()
