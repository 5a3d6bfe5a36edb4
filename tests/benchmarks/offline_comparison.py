"""Every search on every task, best and median of 128 designs: the table of docs/offline.md.

Means over 8 seeds where there is chance, in the search or in what is visible. What each run gave is kept as CSV beside the
table, and what is there is not run again: remove rows to measure anew.

    python -m tests.benchmarks.offline_comparison
    python -m tests.benchmarks.offline_comparison --only 'CMAES' --tasks 'GB1*'
    python -m tests.benchmarks.offline_comparison --table
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline import (
    BDI,
    CMAES,
    AbstractSearch,
    AbstractSymmetry,
    AbstractTask,
    CategoricalSpace,
    CbAS,
    CommitteeRanking,
    Conservative,
    Ehrlich,
    EvolutionarySearch,
    ExhaustiveRanking,
    GradientAscent,
    MotifSearch,
    MutateTheBest,
    Proposal,
    RandomSearch,
    ReverseComplement,
    SampleBelow,
    SequenceColumn,
    Table,
    WithinMutations,
    evaluate_batch,
    gb1,
    propose,
    tf_bind_8,
)

__all__ = ["SEARCHES", "TASKS", "main", "results", "run", "table"]

DESIGNS, SEEDS = 128, 8
FOLDER = Path(__file__).parent / "results"
STORE = FOLDER / "offline_comparison.csv"
FIELDS: tuple[str, ...] = ("task", "search", "seed", "best", "median", "novelty", "diversity", "seconds")

# A task by its seed, which decides what is visible where that is chance, and whether it is.
TASKS: dict[str, tuple[Callable[[int], AbstractTask], bool]] = {
    "SIX6": (lambda seed: tf_bind_8("SIX6_REF_R1"), False),
    "CRX": (lambda seed: tf_bind_8("CRX_REF_R1"), False),
    "EGR2": (lambda seed: tf_bind_8("EGR2_REF_R1"), False),
    "NR1H4": (lambda seed: tf_bind_8("NR1H4_REF_R1"), False),
    "GB1": (lambda seed: gb1(rule=SampleBelow(quantile=0.99, count=2000, seed=seed)), True),
    "GB1, two mutations": (lambda seed: gb1(rule=WithinMutations(reference="VDGV", mutations=2)), False),
    "Ehrlich": (lambda seed: Ehrlich(states=16, length=24, motifs=3, rows=1000, seed=seed), True),
}

# A search for a task, None where it does not apply, and whether it draws at random.
SEARCHES: dict[str, tuple[Callable[[AbstractTask], AbstractSearch | None], bool]] = {
    "RandomSearch": (lambda task: RandomSearch(), True),
    "MutateTheBest": (lambda task: MutateTheBest(), True),
    "GradientAscent": (lambda task: GradientAscent(), True),
    "GradientAscent, least of 5": (lambda task: GradientAscent(members=5, least=True, rows=2000), True),
    "Conservative": (lambda task: Conservative(rows=2000), True),
    "CbAS": (lambda task: CbAS(rows=2000), True),
    "CMAES": (lambda task: CMAES(rows=2000), True),
    "BDI": (lambda task: BDI(), False),
    "EvolutionarySearch": (lambda task: EvolutionarySearch(rounds=10, allowed=feasible(task)), True),
    "ExhaustiveRanking": (lambda task: enumerable(task, ExhaustiveRanking()), False),
    "ExhaustiveRanking, double strands": (lambda task: double_strands(task), False),
    "CommitteeRanking": (lambda task: enumerable(task, CommitteeRanking()), True),
    "MotifSearch": (lambda task: movable(task), True),
    "propose": (lambda task: Proposing(symmetry=strands(task)), False),
}


@final
@dataclass(frozen=True, kw_only=True)
class Proposing(AbstractSearch):
    """What `sciopt propose` does, on a table of sequences."""

    symmetry: AbstractSymmetry | None = None

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; the seed is 0."""
        made = propose(
            space.decode(table.designs),
            table.scores,
            n=count,
            columns=[SequenceColumn(name="sequence", length=space.length, alphabet=space.alphabet)],
            pool=None if pool is None else space.decode(pool),
            symmetry=self.symmetry,
        )
        return Proposal(designs=space.encode([row["sequence"] for row in made.rows]), predicted=made.predicted)


def feasible(task: AbstractTask) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Known constraints of a task."""
    return task.feasible if isinstance(task, Ehrlich) else None


def enumerable(task: AbstractTask, search: AbstractSearch) -> AbstractSearch | None:
    """The search where all designs can be ranked."""
    return None if isinstance(task, Ehrlich) else search


def strands(task: AbstractTask) -> AbstractSymmetry | None:
    """Both strands of DNA."""
    return ReverseComplement() if set(task.space.alphabet) == set("ACGT") else None


def double_strands(task: AbstractTask) -> AbstractSearch | None:
    """The ranking that knows both strands, on DNA."""
    return None if strands(task) is None else ExhaustiveRanking(symmetry=strands(task))


def movable(task: AbstractTask) -> AbstractSearch | None:
    """The search for motifs where sequences are long enough for them to stand here or there."""
    return MotifSearch() if task.space.length >= 12 else None


def run(task_name: str, search_name: str, seed: int) -> dict[str, str] | None:
    """One batch, judged; None where the search does not apply."""
    task = TASKS[task_name][0](seed)
    search = SEARCHES[search_name][0](task)
    if search is None:
        return None
    start, generator = time.process_time(), torch.Generator().manual_seed(seed)
    made = search.propose(task.space, task.visible(), DESIGNS, generator=generator, pool=task.pool())
    seconds = time.process_time() - start
    report = evaluate_batch(task, made.designs)
    row = {"task": task_name, "search": search_name, "seed": str(seed), "seconds": f"{seconds:.1f}"}
    return row | {name: f"{getattr(report, name):.4f}" for name in ("best", "median", "novelty", "diversity")}


def results() -> list[dict[str, str]]:
    """What is kept."""
    if not STORE.exists():
        return []
    with STORE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(searches: str, tasks: str) -> None:
    """All runs that match and are not kept yet; each is kept at once."""
    known = {(row["task"], row["search"], row["seed"]) for row in results()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not STORE.exists():
        STORE.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    for search_name, (_, draws) in SEARCHES.items():
        for task_name, (_, sampled) in TASKS.items():
            if not (fnmatchcase(search_name, searches) and fnmatchcase(task_name, tasks)):
                continue
            for seed in range(SEEDS if draws or sampled else 1):
                row = None if (task_name, search_name, str(seed)) in known else run(task_name, search_name, seed)
                if row is not None:
                    with STORE.open("a", encoding="utf-8", newline="") as file:
                        csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)
                    print(row, flush=True)


def table() -> str:
    """Best and median of every search on every task, in Markdown."""
    rows = results()
    lines = [
        "# Offline searches compared",
        "",
        f"Normalised scores of {DESIGNS} designs, best / median; means over {SEEDS} seeds where there is chance, in the",
        "search or in what is visible. Made by `python -m tests.benchmarks.offline_comparison`.",
        "",
        "| search | " + " | ".join(TASKS) + " |",
        "| --- |" + " --- |" * len(TASKS),
    ]
    for search_name in SEARCHES:
        cells = []
        for task_name in TASKS:
            mine = [row for row in rows if (row["task"], row["search"]) == (task_name, search_name)]
            means = [f"{statistics.mean(float(row[k]) for row in mine):.3f}" for k in ("best", "median") if mine]
            cells.append(" / ".join(means))
        lines.append(f"| {search_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.offline_comparison")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="searches to run")
    parser.add_argument("--tasks", default="*", metavar="PATTERN", help="tasks to run them on")
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    options = parser.parse_args(arguments)
    if not options.table:
        torch.set_num_threads(1)
        measure(options.only, options.tasks)
    (FOLDER / "offline_comparison.md").write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
