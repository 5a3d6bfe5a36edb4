"""End-to-end training against two stages on held-out scaffolds: same network, data, start, CPU time and sampling.

    python -m tests.benchmarks.conformation_learning --out learning.json
    python -m tests.benchmarks.conformation_learning --report learning.json --picture docs/conformation_learning.png

On the shipped GFN2-xTB set. Both ways start from the same network, trained for the likelihood of distances. One goes on so;
the other is trained for MAT-R of its own structures through the inner problem, for as many CPU seconds. Of either the epoch
with the lowest loss on validation molecules is kept; conformers are drawn from the prior and built without ETKDG, two per
reference. Not a bar of `make validate`, because it takes an hour; ``results/conformation_learning.md`` keeps its table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

SEEDS, WARMUP, EPOCHS = 3, 40, 4
WAYS = ("before", "two_stage", "end_to_end", "starts")
NAMES = {
    "before": "both, at the fork",
    "two_stage": "two stages",
    "end_to_end": "end to end",
    "starts": "ETKDG, as many",
}


def references(group: Any) -> list[Any]:
    """Conformer sets of the shipped set; None: all of it."""
    from sciopt.domains.conformation import ReferenceEnsemble
    from sciopt.domains.conformation.io import load_gfn2_conformers

    sets = [item for item in load_gfn2_conformers(group).sets if item.record.mol.GetNumAtoms() > 2]
    return [ReferenceEnsemble(name=item.record.name, mol=item.record.mol, positions=item.positions) for item in sets]


def one_seed(data: Sequence[Any], seed: int, warmup: int, epochs: int) -> dict[str, Any]:
    """Train both ways from one start, sample the test molecules, and score them beside ETKDG."""
    from sciopt.domains.conformation.learning import (
        EndToEndRecall,
        InnerOptions,
        ModelConfig,
        SampleOptions,
        SpectralStart,
        TrainConfig,
        TwoStage,
        sample_many,
        train,
    )
    from sciopt.domains.conformation.metrics import EtkdgBaseline, score_ensemble
    from sciopt.inner import LBFGS

    inner = InnerOptions(solver=LBFGS(rtol=0.0, atol=1e-2, max_steps=300))
    apart = TwoStage(divergence_weight=0.01)
    through = EndToEndRecall(divergence_weight=0.01, inner=inner, mirrors=False)
    first = TrainConfig(
        objective=apart,
        model=ModelConfig(hidden=32, latent=4, layers=3),
        epochs=warmup,
        conformers=4,
        learning_rate=2e-3,
        shares=(0.7, 0.1, 0.2),
        seed=seed,
    )
    began = time.process_time()
    base = train(data, first)
    spent = {"before": time.process_time() - began}
    per_epoch = spent["before"] / warmup
    second = replace(first, learning_rate=5e-4)
    began = time.process_time()
    bilevel = train(
        data, replace(second, objective=through, epochs=epochs, repeats=2, batch_size=32), initial=base.model
    )
    spent["end_to_end"] = time.process_time() - began
    began, more = time.process_time(), max(1, round(spent["end_to_end"] / per_epoch))
    plain = train(data, replace(second, epochs=more), initial=base.model)
    spent["two_stage"] = time.process_time() - began
    models = {"before": base.best_model(), "two_stage": plain.best_model(), "end_to_end": bilevel.best_model()}
    test = [data[number] for number in base.split.test]
    mols, counts = [item.mol for item in test], [2 * item.positions.shape[0] for item in test]
    options = SampleOptions(start=SpectralStart(), inner=inner, batch_size=128, seed=seed)
    out: dict[str, Any] = {"seed": seed, "split": base.split.describe(), "test": [item.name for item in test]}
    for name, model in models.items():
        drawn = sample_many(model, mols, counts, options)
        out[name] = {
            "scores": [
                score_ensemble(item.mol, made.positions, item.positions, thresholds=(0.5, 1.25), num_requested=count)
                for item, made, count in zip(test, drawn, counts, strict=True)
            ],
            "unsettled": sum(made.unsettled for made in drawn),
            "misshapen": sum(made.misshapen for made in drawn),
            "drawn": sum(made.drawn for made in drawn),
            "seconds": spent[name],
        }
    etkdg = EtkdgBaseline(oversample=1, seed=seed, relax=False)
    out["starts"] = {
        "scores": [
            score_ensemble(item.mol, etkdg.generate(item.mol, count).positions, item.positions, thresholds=(0.5, 1.25))
            for item, count in zip(test, counts, strict=True)
        ]
    }
    for name in WAYS:
        scores = out[name].pop("scores")
        out[name]["mat_r"] = [score.matching_recall for score in scores]
        out[name]["mat_p"] = [score.matching_precision for score in scores]
        out[name]["cov_r"] = [score.coverage_recall[0] for score in scores]
    for name, result in (("before", base), ("two_stage", plain), ("end_to_end", bilevel)):
        out[name]["curves"] = result.curves()
    return out


def mean(run: dict[str, Any], name: str, kind: str = "mat_r") -> float:
    """Mean over the test molecules for which every way gave conformers."""
    fine = [k for k in range(len(run["test"])) if all(run[way]["mat_r"][k] < float("inf") for way in WAYS)]
    return statistics.fmean(run[name][kind][k] for k in fine)


def gain(run: dict[str, Any]) -> float:
    """By how many percent end-to-end training lowers MAT-R below that of two stages."""
    return 100 * (1 - mean(run, "end_to_end") / mean(run, "two_stage"))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    around = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} +- {around:.{digits}f}"


def report(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: scores with their spread over seeds, then the training curves of the second half."""
    lines = [
        "| over seeds | MAT-R [A] | MAT-P [A] | COV-R at 0.5 A | wrong stereo | not settled | CPU-s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in WAYS:
        scores = [spread([mean(run, name, kind) for run in runs]) for kind in ("mat_r", "mat_p", "cov_r")]
        rest = ["", "", ""]
        if "drawn" in runs[0][name]:
            drawn = sum(run[name]["drawn"] for run in runs)
            rest = [f"{sum(run[name][kind] for run in runs)} of {drawn}" for kind in ("misshapen", "unsettled")]
            rest.append(spread([run[name]["seconds"] for run in runs], 0))
        lines.append("| " + " | ".join([NAMES[name], *scores, *rest]) + " |")
    lines += ["", f"MAT-R lower by {spread([gain(run) for run in runs], 1)} % end to end than in two stages.", ""]
    lines += ["| epoch end to end | MAT-R in training [A] | in validation [A] | failed or saddle [%] |"]
    lines += ["| --- | --- | --- | --- |"]
    for epoch in range(len(runs[0]["end_to_end"]["curves"]["rmsd"])):
        curves = [run["end_to_end"]["curves"] for run in runs]
        bad = [100 * (c["failed"][epoch] + c["saddles"][epoch]) for c in curves]
        both = [spread([c[kind][epoch] for c in curves]) for kind in ("rmsd", "validation_rmsd")]
        lines.append(f"| {epoch + 1} | {both[0]} | {both[1]} | {spread(bad, 1)} |")
    return "\n".join(lines)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Training curves, and MAT-R molecule by molecule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for run in runs:
        before = run["before"]["curves"]
        start = sum(before["seconds"])
        apart, through = run["two_stage"]["curves"], run["end_to_end"]["curves"]
        for curves, color, begin, label in (
            (before, "tab:gray", 0.0, "both"),
            (apart, "tab:orange", start, "two stages"),
            (through, "tab:blue", start, "end to end"),
        ):
            times = begin + torch.tensor(curves["seconds"]).cumsum(0)
            name = label if run is runs[0] else None
            left.plot(times, curves["likelihood"], color=color, label=name, linewidth=1)
        epochs = range(1, len(through["rmsd"]) + 1)
        for kind, style in (("rmsd", "-"), ("validation_rmsd", "--")):
            label = {"rmsd": "training", "validation_rmsd": "validation"}[kind] if run is runs[0] else None
            middle.plot(epochs, through[kind], style, color="tab:blue", label=label, linewidth=1)
        right.plot(
            run["two_stage"]["mat_r"], run["end_to_end"]["mat_r"], ".", label=f"seed {run['seed']}", markersize=4
        )
    left.set(xlabel="time [s]", ylabel="-log likelihood per distance")
    middle.set(xlabel="epoch end to end", ylabel="MAT-R of draws [angstrom]")
    largest = right.get_xlim()[1]
    right.plot([0, largest], [0, largest], color="black", linewidth=0.5)
    right.set(xlabel="MAT-R, two stages [angstrom]", ylabel="MAT-R, end to end [angstrom]")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run from the command line."""
    from sciopt.domains.conformation.io import Gfn2Group

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = {"small": Gfn2Group.SMALL, "drugs": Gfn2Group.DRUGS, "all": None}
    parser.add_argument("--group", choices=sorted(groups), default="small")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=WARMUP, help="epochs before the fork")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs end to end")
    parser.add_argument("--out", type=Path, default=None, help="JSON to write after every seed")
    parser.add_argument("--report", type=Path, default=None, help="JSON to read instead of running")
    parser.add_argument("--picture", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs = [] if given.report is None else json.loads(given.report.read_text())
    if given.report is None:
        data = references(groups[given.group])
        for seed in range(given.first, given.first + given.seeds):
            runs.append(one_seed(data, seed, given.warmup, given.epochs))
            print(f"seed {seed}, {runs[-1]['split']}: lower by {gain(runs[-1]):.1f} %", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(runs))
    print(report(runs))
    if given.picture is not None:
        draw(runs, given.picture)


if __name__ == "__main__":
    main()
