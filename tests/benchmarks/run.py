"""Run all bars of a tier one after the other, print one table, keep it in ``results/``.

    python -m tests.benchmarks.run --tier bench
    python -m tests.benchmarks.run --tier validate --only '*ridge*'
    python -m tests.benchmarks.run --tier bench --only '*ridge*' --merge

The exit status is 1 when a bar is missed or raises; a peer that is not installed is a line, not a failure.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
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


def merged(kept: str, rows: Sequence[Row], when: str) -> str:
    """The kept table with these rows in place of those of the same names, or at its end, and when they were measured."""
    lines = kept.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("| name"))
    last = next(k for k in range(first, len(lines)) if not lines[k].startswith("|"))
    width = lines[first].index("|", 1) - 2
    for row in rows:
        line = render([replace(row, note=f"{row.note} [{when}]".strip())]).splitlines()[-1]
        name, rest = line[2:].split(" |", 1)
        line = f"| {name.strip().ljust(width)}|{rest}"
        places = [k for k in range(first + 2, last) if lines[k].split(" |", 1)[0][2:].strip() == name.strip()]
        if places:
            lines[places[0]] = line
        else:
            lines.insert(last, line)
            last += 1
    verdicts = [line.split(" |")[3].strip() for line in lines[first + 2 : last]]
    missed = sum(verdict in ("NO", "ERROR") for verdict in verdicts)
    lines[last + 1] = f"{len(verdicts)} bars, {missed} missed or failed."
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, bars: Bars = BARS, results: Path = FOLDER / "results") -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    parser.add_argument("--tier", choices=TIERS, required=True)
    parser.add_argument("--only", default=None, metavar="PATTERN", help="names to run; the kept table stays as it is")
    parser.add_argument("--merge", action="store_true", help="put the rows that were run into the kept table")
    options = parser.parse_args(arguments)
    if bars is BARS:
        load_bars()
    rows = run(bars, options.tier, options.only or "*")
    if not rows:
        parser.error(f"expected a bar of tier {options.tier} that matches {options.only or '*'!r}, got none")
    text = document(options.tier, rows)
    print(text)
    path = results / f"{options.tier}.md"
    if options.merge and path.exists():
        when = f"{datetime.now(UTC):%Y-%m-%d}, {describe()['commit']}"
        path.write_text(merged(path.read_text(encoding="utf-8"), rows, when), encoding="utf-8")
    elif options.only is None:
        results.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return int(any(row.met is False or row.failed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
