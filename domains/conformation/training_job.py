"""``conformation.train``: a network trained on reference conformers, scored on scaffolds it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from sciopt.campaign.registry import JobContext, JobResult

if TYPE_CHECKING:
    from sciopt.domains.conformation.learning import AbstractObjective, TrainResult
    from sciopt.domains.conformation.metrics import Evaluation, ReferenceEnsemble

__all__ = ["TrainOptions", "run_train"]


class TrainOptions(BaseModel):
    """Options of ``conformation.train``.

    Example:
        >>> TrainOptions(epochs=5).references
        'small molecules'
    """

    model_config = ConfigDict(extra="forbid")

    references: str = Field(
        default="small molecules",
        min_length=1,
        description="SDF of conformers with hydrogens, records of one molecule in a run; or 'small molecules', 'drugs' or "
        "'all' of the GFN2-xTB conformers that come with the package",
    )
    molecules: int | None = Field(default=None, ge=3, description="only the first so many molecules; none: all")
    objective: Literal["two stages", "end to end", "recall"] = Field(
        default="recall",
        description="likelihood of distances alone; RMSD of settled structures too; or MAT-R of structures drawn as in use",
    )
    epochs: int = Field(default=30, ge=1, le=100_000, description="passes over the training molecules")
    warmup: int = Field(default=20, ge=0, description="of these, first ones for the likelihood alone")
    hidden: int = Field(default=32, ge=1, le=1024, description="width of the network [1]")
    latent: int = Field(default=4, ge=1, le=256, description="latent numbers per atom [1]")
    layers: int = Field(default=3, ge=1, le=32, description="rounds of message passing [1]")
    conformers: int = Field(default=4, ge=1, le=1000, description="of a molecule in an epoch, at most")
    batch_size: int = Field(default=32, ge=1, le=4096, description="rows per step")
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="of Adam")
    divergence_weight: float = Field(default=0.01, ge=0, description="of the KL term of the latent variable")
    test_share: float = Field(default=0.2, gt=0, lt=0.8, description="of the molecules, held out by scaffold [1]")
    validation_share: float = Field(default=0.1, ge=0, lt=0.2, description="of the molecules, to choose the epoch [1]")
    start: Literal["distances", "ETKDG"] = Field(
        default="distances", description="where conformers start: the predicted distances themselves, or ETKDG"
    )


def run_train(options: TrainOptions, context: JobContext) -> JobResult:
    """Train, sample the held-out molecules, and put curves and scores beside the baseline into the report."""
    from sciopt.domains.conformation.learning import (
        GivenStart,
        InnerOptions,
        ModelConfig,
        SampleOptions,
        SpectralStart,
        TrainConfig,
        sample_many,
        save_model,
        train,
    )
    from sciopt.domains.conformation.metrics import evaluate, score_rows
    from sciopt.inner import LBFGS

    data, failures = read(options)
    inner = InnerOptions(solver=LBFGS(rtol=0.0, atol=1e-2, max_steps=300))
    free = options.start == "distances"
    config = TrainConfig(
        objective=objective(options, inner, SpectralStart() if free else GivenStart(noise=0.1)),
        model=ModelConfig(hidden=options.hidden, latent=options.latent, layers=options.layers),
        epochs=options.epochs,
        batch_size=options.batch_size,
        conformers=options.conformers,
        repeats=2 if options.objective == "recall" else 1,
        learning_rate=options.learning_rate,
        shares=(1.0 - options.test_share - options.validation_share, options.validation_share, options.test_share),
        seed=context.seed,
    )

    def report(record) -> None:
        context.report_progress(record.epoch, record.loss, {"rmsd": record.rmsd, "validation": record.validation})

    result = train(data, config, folder=context.workdir / "checkpoints", progress=report)
    model, test = result.best_model(), [data[number] for number in result.split.test]
    if not test:
        raise ValueError(
            f"conformation.train: expected molecules left for the test, got {result.split.describe()}. Raise `test_share`, "
            "or give more molecules."
        )
    sampling = SampleOptions(start=SpectralStart() if free else None, inner=inner, seed=context.seed)
    drawn = sample_many(model, [item.mol for item in test], [2 * item.positions.shape[0] for item in test], sampling)
    ready = iter(drawn)
    scores = evaluate(lambda mol, count: next(ready).generated(), test, thresholds=(0.5, 1.25), name="network")
    curves = {name: column for name, column in result.curves().items() if name not in ("epoch", "seconds")}
    return JobResult(
        objective=mean_of([score.matching_recall for score in scores.scores]),
        status="CONVERGED",
        metrics={
            "MAT-R [angstrom]": mean_of([score.matching_recall for score in scores.scores]),
            "MAT-R, RDKit then cluster [angstrom]": mean_of([score.matching_recall for score in scores.baseline]),
            "MAT-P [angstrom]": mean_of([score.matching_precision for score in scores.scores]),
            "COV-R at 0.5 angstrom [1]": mean_of([score.coverage_recall[0] for score in scores.scores]),
            "molecules without conformers": sum(score.num_generated == 0 for score in scores.scores),
            "split": result.split.describe(),
            "weights": sum(p.numel() for p in model.parameters()),
            "seconds of training": sum(record.seconds for record in result.history),
        },
        history={"step": [float(record.epoch) for record in result.history], **curves},
        certificate={
            "share of inner problems failed in the last epoch": result.history[-1].failed,
            "share on a saddle in the last epoch": result.history[-1].saddles,
            "steps skipped": sum(record.skipped for record in result.history),
        },
        figures={"training": lambda path: draw_training(path, result, scores)},
        files={
            "best.safetensors": lambda path: save_model(model, path),
            "last.safetensors": lambda path: save_model(result.model, path),
            "scores.csv": lambda path: path.write_text(score_rows(scores.scores), encoding="utf-8"),
            "baseline.csv": lambda path: path.write_text(score_rows(scores.baseline), encoding="utf-8"),
        },
        warnings=[
            *failures,
            *(f"{item.name}: {made.failure}" for item, made in zip(test, drawn, strict=True) if made.failure),
        ],
    )


def read(options: TrainOptions) -> tuple[list[ReferenceEnsemble], list[str]]:
    """The conformer sets asked for, and what could not be read."""
    from sciopt.domains.conformation.io import Gfn2Group, load_gfn2_conformers, read_sdf_ensembles
    from sciopt.domains.conformation.metrics import ReferenceEnsemble

    shipped = {"small molecules": Gfn2Group.SMALL, "drugs": Gfn2Group.DRUGS, "all": None}
    if options.references in shipped:
        found = load_gfn2_conformers(shipped[options.references])
    else:
        found = read_sdf_ensembles(Path(options.references))
    sets = [item for item in found.sets if item.record.mol.GetNumAtoms() > 2][: options.molecules]
    data = [ReferenceEnsemble(name=item.record.name, mol=item.record.mol, positions=item.positions) for item in sets]
    return data, [str(failure) for failure in found.failures]


def objective(options: TrainOptions, inner, start) -> AbstractObjective:
    """What is trained for."""
    from sciopt.domains.conformation.learning import EndToEnd, EndToEndRecall, TwoStage

    weight = options.divergence_weight
    if options.objective == "two stages":
        return TwoStage(divergence_weight=weight)
    if options.objective == "end to end":
        return EndToEnd(divergence_weight=weight, inner=inner, start=start, warmup=options.warmup)
    return EndToEndRecall(divergence_weight=weight, inner=inner, start=start, warmup=options.warmup, mirrors=False)


def mean_of(values: list[float]) -> float:
    """Mean of the finite values; NaN for none."""
    finite = [value for value in values if value < float("inf")]
    return sum(finite) / len(finite) if finite else float("nan")


def draw_training(path: Path, result: TrainResult, scores: Evaluation) -> None:
    """Curves of likelihood and RMSD, and MAT-R of each held-out molecule against the baseline's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    curves = result.curves()
    left.plot(curves["epoch"], curves["likelihood"], color="#1f4e79")
    left.set(xlabel="epoch", ylabel="-log likelihood per distance")
    middle.plot(curves["epoch"], curves["rmsd"], color="#1f4e79", label="training")
    middle.plot(curves["epoch"], curves["validation_rmsd"], color="#d8322a", label="validation")
    middle.set(xlabel="epoch", ylabel="RMSD of structures [angstrom]")
    middle.legend(frameon=False)
    pairs = [(b.matching_recall, s.matching_recall) for s, b in zip(scores.scores, scores.baseline, strict=True)]
    pairs = [pair for pair in pairs if max(pair) < float("inf")]
    right.plot([pair[0] for pair in pairs], [pair[1] for pair in pairs], ".", color="#1f4e79")
    most = max([0.1, *(max(pair) for pair in pairs)])
    right.plot([0, most], [0, most], color="black", linewidth=0.5)
    right.set(xlabel="MAT-R, RDKit [angstrom]", ylabel="MAT-R, network [angstrom]")
    for axes in (left, middle, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
