"""Run all bars of a tier one after the other, print one table, keep it in ``results/``.

    python -m tests.benchmarks.run --tier bench
    python -m tests.benchmarks.run --tier validate --only '*ridge*'

The exit status is 1 when a bar is missed or raises; a peer that is not installed is a line, not a failure.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from tests.benchmarks.machine import describe
from tests.benchmarks.table import BARS, TIERS, Bars, Row, render

FOLDER = Path(__file__).parent
FRAME = {"run", "table", "machine", "measure", "ablation"}


def load_bars() -> None:
    """Import every module of this folder, which registers its bars; one that cannot be imported stops the run."""
    for module in pkgutil.iter_modules([str(FOLDER)]):
        if module.name not in FRAME:
            importlib.import_module(f"tests.benchmarks.{module.name}")


def run(bars: Bars, tier: str, only: str = "*") -> list[Row]:
    """Rows of the tier's bars whose names match ``only`` (shell pattern)."""
    rows = []
    for item in bars.by_name.values():
        if item.tier == tier and fnmatchcase(item.name, only):
            print(f"... {item.name}", flush=True)
            rows.append(item.run())
    return rows


def document(tier: str, rows: Sequence[Row]) -> str:
    """The kept table: date, commit and hardware, then the rows."""
    missed = sum(row.met is False or row.failed for row in rows)
    head = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **describe()}
    facts = "\n".join(f"- {key}: {value}" for key, value in head.items())
    summary = f"{len(rows)} bars, {missed} missed or failed."
    return f"# make {tier}\n\n{facts}\n\n{render(rows)}\n\n{summary}\n"


def main(arguments: Sequence[str] | None = None, bars: Bars = BARS, results: Path = FOLDER / "results") -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    parser.add_argument("--tier", choices=TIERS, required=True)
    parser.add_argument("--only", default=None, metavar="PATTERN", help="names to run; the kept table stays as it is")
    options = parser.parse_args(arguments)
    if bars is BARS:
        load_bars()
    rows = run(bars, options.tier, options.only or "*")
    if not rows:
        parser.error(f"expected a bar of tier {options.tier} that matches {options.only or '*'!r}, got none")
    text = document(options.tier, rows)
    print(text)
    if options.only is None:
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{options.tier}.md").write_text(text, encoding="utf-8")
    return int(any(row.met is False or row.failed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
