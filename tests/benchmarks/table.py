"""Bars: a bar is a function that measures one number, the bound it has to keep, and the tier it runs in.

    @bar("logistic hyperparameters against the best torch peer", tier="bench", bar=">= 3x")
    def logistic() -> Measured:
        torchopt = peer("torchopt")
        ...
        return Measured(times["torchopt"] / times["sciopt"], f"ours {times['sciopt']:.2f} s")

Every module of this folder is imported by the runner, so a new file of bars needs no registration of its own. Import
peers with `peer` inside the function: a missing one becomes a line of the table.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, final

__all__ = ["BARS", "Bar", "Bars", "Bound", "Measured", "PeerMissing", "Row", "bar", "peer", "render"]

Tier = Literal["validate", "bench"]
TIERS: tuple[Tier, ...] = ("validate", "bench")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class PeerMissing(Exception):
    """A package to compare with is not installed."""


def peer(module: str) -> Any:
    """Import a peer package when a bar needs it; raises `PeerMissing` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise PeerMissing(f"peer not installed: {error.name}") from error
        raise


@final
@dataclass(frozen=True)
class Measured:
    """What a bar found: the number that is compared with the bound, and a note for the table."""

    value: float
    note: str = ""


@final
@dataclass(frozen=True)
class Bound:
    """A bound such as ``<= 1.5x``, ``>= 10 designs/s`` or ``< 1e-10``.

    Example:
        >>> Bound.parse("<= 1.5x").holds(1.4), Bound.parse("<= 1.5x").holds(float("nan"))
        (True, False)
    """

    compare: str
    limit: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read ``<comparison> <number><unit>``; raises ValueError for anything else."""
        match = re.fullmatch(r"\s*(<=|>=|<|>)\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(.*?)\s*", text)
        if match is None:
            raise ValueError(f"Bound: expected `bar` like '<= 1.5x', got {text!r}. Write comparison, number, unit.")
        return cls(match[1], float(match[2]), match[3])

    def holds(self, value: float) -> bool:
        """Whether the value keeps the bound; NaN never does."""
        return not math.isnan(value) and _COMPARE[self.compare](value, self.limit)


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; ``met`` is None where nothing could be compared."""

    name: str
    measured: str
    bar: str
    met: bool | None
    note: str
    seconds: float = 0.0
    failed: bool = False

    @property
    def verdict(self) -> str:
        """What stands in the column "met?"."""
        if self.failed:
            return "ERROR"
        return {True: "yes", False: "NO", None: "-"}[self.met]


@final
@dataclass(frozen=True, kw_only=True)
class Bar:
    """A registered bar; ``bound`` is None for a number that is reported without a bound."""

    name: str
    tier: Tier
    text: str
    bound: Bound | None
    measure: Callable[[], Measured]

    def run(self) -> Row:
        """Measure; whatever goes wrong becomes a line of the table."""
        start = time.perf_counter()
        measured, met, failed = "-", None, False
        try:
            found = self.measure()
            measured = f"{found.value:.3g}{self.bound.unit if self.bound else ''}"
            met = self.bound.holds(found.value) if self.bound else None
            note = found.note
        except PeerMissing as missing:
            note = str(missing)
        except Exception as error:
            traceback.print_exc()
            note, failed = f"raised {type(error).__name__}: {error}", True
        seconds = time.perf_counter() - start
        return Row(name=self.name, measured=measured, bar=self.text, met=met, note=note, seconds=seconds, failed=failed)


@final
@dataclass
class Bars:
    """A collection of bars by name."""

    by_name: dict[str, Bar] = field(default_factory=dict)

    def bar(
        self, name: str, *, tier: Tier, bar: str | None
    ) -> Callable[[Callable[[], Measured]], Callable[[], Measured]]:
        """Register the decorated function.

        Args:
            name: what is measured, as the table shows it; unique.
            tier: "validate" (accuracy, full size) or "bench" (speed and memory).
            bar: the bound, e.g. ``"<= 1.5x"``, or None for a number that is only reported.
        """
        if tier not in TIERS:
            raise ValueError(f"bar: expected `tier` to be one of {TIERS}, got {tier!r}. Correct the decorator.")
        bound = None if bar is None else Bound.parse(bar)

        def register(measure: Callable[[], Measured]) -> Callable[[], Measured]:
            if name in self.by_name:
                raise ValueError(f"bar: expected `name` to be unique, got {name!r} twice. Rename one of them.")
            self.by_name[name] = Bar(name=name, tier=tier, text=bar or "reported", bound=bound, measure=measure)
            return measure

        return register


BARS = Bars()
bar = BARS.bar


def render(rows: Iterable[Row]) -> str:
    """The table in Markdown, columns aligned so that it reads in a terminal too."""
    clean = lambda text: " ".join(text.split()).replace("|", "\\|")  # noqa: E731
    table = [["name", "measured", "bar", "met?", "time", "note"]]
    table += [[clean(r.name), r.measured, clean(r.bar), r.verdict, f"{r.seconds:.1f} s", clean(r.note)] for r in rows]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    lines = [
        "| " + " | ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[5]]) + " |" for line in table
    ]
    lines.insert(1, "| " + " | ".join(["-" * max(w, 3) for w in widths] + ["---"]) + " |")
    return "\n".join(lines)
