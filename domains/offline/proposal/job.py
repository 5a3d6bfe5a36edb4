"""``offline.propose``: the next batch for a table on disk, or for a task whose oracle then judges it, in a campaign."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sciopt.campaign.registry import JobContext, JobResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sciopt.domains.offline.proposal.batch import ProposedBatch
    from sciopt.domains.offline.task import AbstractTask

__all__ = ["ProposeOptions", "run_propose"]

TASKS = Literal["nk", "rough_mount_fuji", "tf_bind_8", "gb1"]


class ProposeOptions(BaseModel):
    """Options of ``offline.propose``: a table, or a task.

    Example:
        >>> ProposeOptions(task="nk").n
        128
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    tables: list[str] = Field(
        default=[],
        description="CSV or TSV files with designs and scores, paths from where the campaign is run; rows without a score "
        "are pending",
    )
    score: str = Field(default="score", min_length=1, description="column of the scores")
    design: list[str] = Field(default=[], description="design columns; none: all that are obviously no labels")
    column: list[str] = Field(
        default=[], description="`name=kind` for columns: sequence, category, number, integer or log"
    )
    bounds: list[str] = Field(
        default=[], description="`name=low:high` for numbers; the measured range where nothing is said"
    )
    pool: str | None = Field(default=None, description="table of the only designs that may be proposed; none: all")
    constraints: list[str] = Field(default=[], description="what a design has to satisfy, as in `sciopt propose`")
    minimize: bool = Field(default=False, description="whether the smallest score is the best")
    decimal_comma: bool = Field(default=False, description="whether numbers are written as 0,5")
    double_strand: bool = Field(default=False, description="whether DNA and its reverse complement are one design")
    task: TASKS | None = Field(
        default=None,
        description="instead of tables: a task with an exact oracle, which is asked after the proposal alone",
    )
    length: int = Field(default=8, ge=2, le=11, description="positions of the DNA of the task nk or rough_mount_fuji")
    factor: str = Field(default="SIX6_REF_R1", description="transcription factor of the task tf_bind_8")
    known: int = Field(
        default=500, ge=2, le=40_000, description="rows of the task's visible part that are used, at random"
    )
    n: int = Field(default=128, ge=1, le=10_000, description="designs to propose")
    acquisition: Literal["ucb", "ei", "greedy"] | None = Field(
        default=None,
        description="choose by prediction plus uncertainty, expected improvement, or prediction alone; none: the default of "
        "`sciopt propose`",
    )
    weight: float | None = Field(default=None, ge=0, description="of the uncertainty in ucb")
    checksum: str | None = Field(
        default=None,
        description="SHA-256 of the files; filled in by itself, so that results that are added count as new",
    )

    @model_validator(mode="after")
    def _can_be_read(self) -> ProposeOptions:
        from sciopt.domains.offline.proposal.request import acquisition

        if bool(self.tables) == (self.task is not None):
            raise ValueError(
                f"expected either `tables` or a `task`, got {self.tables or 'none'} and {self.task or 'none'}. Name one."
            )
        acquisition(self.acquisition, self.weight)
        if self.tables:
            told = _checksum([*self.tables, *([self.pool] if self.pool else [])])
            if self.checksum not in (None, told):
                raise ValueError(
                    f"expected the files to be those of `checksum` {self.checksum[:8]}..., got {told[:8]}.... Leave out "
                    "`checksum`, or run the campaign anew."
                )
            # so that a bad cell or constraint is an error before anything starts
            _request(self).check(constraints=self.constraints, double_strand=self.double_strand)
            self.checksum = told
        elif self.task == "tf_bind_8":
            from sciopt.domains.offline.measured import transcription_factors

            if self.factor not in transcription_factors():
                raise ValueError(
                    f"expected `factor` out of {', '.join(transcription_factors())}, got {self.factor!r}. Correct the name."
                )
        return self


def _checksum(paths: list[str]) -> str:
    """Of all files together; SHA-256 in hex."""
    from sciopt.domains.offline.proposal.table_file import TableError

    total = hashlib.sha256()
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise TableError(f"{path}: expected a table, got none ({error.strerror}). Check the path.") from error
    return total.hexdigest()


def _request(options: ProposeOptions) -> Any:
    from sciopt.domains.offline.proposal.request import read_request

    return read_request(
        options.tables,
        score=options.score,
        designs=options.design,
        kinds=options.column,
        bounds=options.bounds,
        pool=options.pool,
        minimize=options.minimize,
        decimal_comma=options.decimal_comma,
    )


def run_propose(options: ProposeOptions, context: JobContext) -> JobResult:
    """Propose, draw, and, where there is an oracle, ask it what the batch is worth."""
    from sciopt.domains.offline.proposal.batch_file import write_batch
    from sciopt.domains.offline.proposal.report import (
        calibration_figure,
        design_figures,
        render_proposal,
        scores_figure,
    )
    from sciopt.domains.offline.proposal.request import acquisition

    task = None if options.task is None else _task(options)
    said: list[str] = []
    if task is None:
        request = _request(options)
        designs, scores, score = request.observed.designs, request.observed.scores, request.score
        title = request.title
        said = [*request.told, *request.observed.notes]
        batch = request.propose(
            n=options.n,
            constraints=options.constraints,
            seed=context.seed,
            acquisition=acquisition(options.acquisition, options.weight),
            double_strand=options.double_strand,
        )
    else:
        score, title = "score", f"Next batch for the task {options.task}"
        designs, scores, batch = _from_task(task, options, context)
    metrics, measured = _metrics(batch), None
    if task is not None:
        measured = _judged(task, batch, metrics)
    import torch

    known = [(row, value) for row, value in zip(designs, scores, strict=True) if math.isfinite(value)]
    rows, values = [row for row, _ in known], torch.tensor([value for _, value in known], dtype=torch.float64)
    figures: dict[str, Figure] = {}
    if batch.calibration is not None:
        figures["calibration"] = calibration_figure(batch, name=score)
    figures["scores"] = scores_figure(batch, values, name=score)
    figures |= dict(design_figures(batch, rows, values, name=score))
    arrays = {
        "codes": batch.codes,
        "predicted": batch.predicted,
        "uncertainty": batch.uncertainty,
        "novelty": batch.novelty,
    }
    if measured is not None:
        arrays["oracle"] = measured
    seen = batch.calibration
    certificate: dict[str, float | int | str] = {}
    if seen is not None:
        certificate = {f"rmse ({seen.method})": seen.rmse, "rank correlation": seen.rank_correlation}
        certificate |= {f"share inside the {p:.0%} interval": reached for p, reached in seen.coverage.items()}
    best = float(batch.predicted.max() if batch.maximize else batch.predicted.min())

    def page(path: Path) -> None:
        path.write_text(render_proposal(batch, designs, scores, score=score, title=title, said=said), encoding="utf-8")

    return JobResult(
        objective=-best if batch.maximize else best,
        status="CONVERGED",
        metrics=metrics,
        certificate=certificate,
        arrays={name: value.numpy() for name, value in arrays.items()},
        figures={name: _saved(figure) for name, figure in figures.items()},
        files={"batch.csv": lambda path: write_batch(path, batch, score), "report.html": page},
        warnings=[note for note in batch.notes if not any(note.startswith(f"{name}: ") for name in batch.space.names)],
    )


def _task(options: ProposeOptions) -> AbstractTask:
    from sciopt.domains.offline.landscapes import nk_landscape, rough_mount_fuji
    from sciopt.domains.offline.measured import gb1, tf_bind_8

    if options.task == "tf_bind_8":
        return tf_bind_8(options.factor)
    if options.task == "gb1":
        return gb1()
    if options.task == "nk":
        return nk_landscape(length=options.length, neighbours=2, alphabet="ACGT")
    return rough_mount_fuji(length=options.length, roughness=0.1, alphabet="ACGT")


def _from_task(
    task: AbstractTask, options: ProposeOptions, context: JobContext
) -> tuple[list[dict[str, Any]], list[float], ProposedBatch]:
    """Visible rows of a task as a table, and the batch for it."""
    import torch

    from sciopt.domains.offline.proposal.next_batch import propose
    from sciopt.domains.offline.proposal.request import acquisition
    from sciopt.domains.offline.symmetry import ReverseComplement

    visible, pool = task.visible(), task.pool()
    some = torch.randperm(len(visible), generator=context.generator)[: options.known].sort().values
    designs = [{"sequence": text} for text in task.space.decode(visible.designs[some])]
    scores = visible.scores[some].tolist()
    batch = propose(
        designs,
        scores,
        n=options.n,
        constraints=options.constraints,
        pool=None if pool is None else task.space.decode(pool),
        seed=context.seed,
        acquisition=acquisition(options.acquisition, options.weight),
        symmetry=ReverseComplement() if options.double_strand else None,
    )
    return designs, scores, batch


def _metrics(batch: ProposedBatch) -> dict[str, float | int | str | bool]:
    return {
        "designs": len(batch),
        "measured designs": batch.measured,
        "best measured": batch.best_score,
        "median predicted": float(batch.predicted.median()),
        "median novelty [1]": float(batch.novelty.median()),
        "diversity [1]": batch.diversity,
    }


def _judged(task: AbstractTask, batch: ProposedBatch, metrics: dict[str, float | int | str | bool]) -> Any:
    """What the oracle says of the batch, in the published measure; adds to the metrics."""
    from sciopt.domains.offline.metrics import evaluate_batch

    report = evaluate_batch(task, task.space.encode([row["sequence"] for row in batch.rows]))
    low, high = task.bounds
    metrics["best measured, normalised [1]"] = (batch.best_score - low) / (high - low)
    metrics["oracle's best, normalised [1]"] = report.best
    metrics["oracle's median, normalised [1]"] = report.median
    return report.scores


def _saved(figure: Figure) -> Any:
    """A function that writes the figure to the path it is given."""
    from sciopt.domains.offline.proposal.pictures import write_picture

    return lambda path: write_picture(figure, path)
