"""On/off ablations of offline searches: the same search with and without one idea, on 3 tasks x 8 seeds.

    @ablation("sample weights by validation")
    def weights(task: AbstractTask) -> Pair:
        return Pair(on=LocalProxy(weights=True), off=LocalProxy(weights=False))

Every module ``ablate_*.py`` of this folder is imported by the runner. A seed chooses what is visible and drives the search; on
and off see the same table and the same seed, so differences are paired. What each seed gave is kept in ``results/ablations``
as CSV, one file per ablation, and ``results/ablations.md`` is made from all of them.

    python -m tests.benchmarks.ablation --only '*weights*'
    python -m tests.benchmarks.ablation --table
"""

from __future__ import annotations

import argparse
import csv
import importlib
import pkgutil
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import final

import torch

from sciopt.domains.offline import (
    AbstractSearch,
    AbstractTask,
    Ehrlich,
    SampleBelow,
    evaluate_batch,
    gb1,
    tf_bind_8,
)

__all__ = ["ABLATIONS", "TASKS", "Pair", "ablation", "main", "table"]

DESIGNS = 128
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "ablations"
FIELDS: tuple[str, ...] = ("task", "seed", "on_best", "off_best", "on_median", "off_median", "seconds")

TASKS: dict[str, Callable[[int], AbstractTask]] = {
    "TF-Bind-8": lambda seed: tf_bind_8(rule=SampleBelow(quantile=0.5, count=1000, seed=seed)),
    "GB1": lambda seed: gb1(rule=SampleBelow(quantile=0.9, count=1000, seed=seed)),
    "Ehrlich": lambda seed: Ehrlich(states=16, length=24, motifs=3, rows=1000, seed=seed),
}


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two searches that differ in one idea."""

    on: AbstractSearch
    off: AbstractSearch


ABLATIONS: dict[str, Callable[[AbstractTask], Pair]] = {}


def ablation(name: str) -> Callable[[Callable[[AbstractTask], Pair]], Callable[[AbstractTask], Pair]]:
    """Register the decorated function: a task's pair of searches (on Ehrlich functions both may know what is feasible)."""

    def register(make: Callable[[AbstractTask], Pair]) -> Callable[[AbstractTask], Pair]:
        if name in ABLATIONS:
            raise ValueError(f"ablation: expected `name` to be unique, got {name!r} twice. Rename one of them.")
        ABLATIONS[name] = make
        return make

    return register


def run(name: str, seeds: int) -> list[dict[str, str]]:
    """One row per task and seed."""
    rows = []
    for label, make_task in TASKS.items():
        for seed in range(seeds):
            task = make_task(seed)
            pair, start = ABLATIONS[name](task), time.process_time()
            found = {}
            for side, search in (("on", pair.on), ("off", pair.off)):
                generator = torch.Generator().manual_seed(seed)
                made = search.propose(task.space, task.visible(), DESIGNS, generator=generator, pool=task.pool())
                found[side] = evaluate_batch(task, made.designs)
            row = {"task": label, "seed": str(seed), "seconds": f"{time.process_time() - start:.1f}"}
            row |= {f"{side}_best": f"{report.best:.4f}" for side, report in found.items()}
            row |= {f"{side}_median": f"{report.median:.4f}" for side, report in found.items()}
            rows.append(row)
            print(name, row, flush=True)
    return rows


def paired(rows: Sequence[dict[str, str]], what: str) -> str:
    """``on - off`` with its standard error over the seeds."""
    differences = [float(row[f"on_{what}"]) - float(row[f"off_{what}"]) for row in rows]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{statistics.mean(differences):+.3f} +- {error:.3f}"


def table(folder: Path = RESULTS) -> str:
    """All kept ablations in one Markdown table; means over the seeds."""
    lines = [
        "# Ablations of offline design",
        "",
        "Each idea on and off, same visible table and same seed; normalised scores of 128 designs, means over the seeds, the",
        "paired difference with its standard error. Made by `python -m tests.benchmarks.ablation`.",
        "",
        "| idea | task | seeds | best on | best off | difference | median on | median off | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            name, rows = file.readline().strip().lstrip("# "), list(csv.DictReader(file))
        for label in dict.fromkeys(row["task"] for row in rows):
            mine = [row for row in rows if row["task"] == label]
            cells = [name, label, str(len(mine))]
            for what in ("best", "median"):
                for side in ("on", "off"):
                    cells.append(f"{statistics.mean(float(row[f'{side}_{what}']) for row in mine):.3f}")
                cells.append(paired(mine, what))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ablation")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to run")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    options = parser.parse_args(arguments)
    if not options.table:
        for module in pkgutil.iter_modules([str(FOLDER)]):
            if module.name.startswith("ablate_"):
                importlib.import_module(f"tests.benchmarks.{module.name}")
        names = [name for name in ABLATIONS if fnmatchcase(name, options.only)]
        if not names:
            parser.error(f"expected `--only` to match one of {sorted(ABLATIONS)}, got {options.only!r}")
        RESULTS.mkdir(parents=True, exist_ok=True)
        for name in names:
            rows = run(name, options.seeds)
            path = RESULTS / (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                file.write(f"# {name}\n")
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    (RESULTS.parent / "ablations.md").write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    # the decorators of ablate_*.py register in the module of this name, not in __main__
    from tests.benchmarks.ablation import main as entry

    raise SystemExit(entry())
