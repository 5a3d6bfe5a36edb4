"""Tasks from public measurements: TF-Bind-8 for any transcription factor, and GB1's four sites."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import torch

from sciopt.data import fetch, registry
from sciopt.domains.offline.spaces import AMINO_ACIDS, DNA, CategoricalSpace
from sciopt.domains.offline.task import AbstractVisibleRule, AtMostQuantile, SampleBelow, Table, TableTask

__all__ = ["gb1", "tf_bind_8", "transcription_factors"]

FOLDER, SUFFIX = "offline/tf_binding/", "_8mers.txt"
GB1_FILE = "offline/gb1/four_mutations_full_data.csv.zip"


def transcription_factors() -> list[str]:
    """Names that `tf_bind_8` knows from the data registry.

    Example:
        >>> transcription_factors()
        ['CRX_REF_R1', 'EGR2_REF_R1', 'NR1H4_REF_R1', 'SIX6_REF_R1']
    """
    names = [name for name in registry() if name.startswith(FOLDER) and name.endswith(SUFFIX)]
    return sorted(name[len(FOLDER) : -len(SUFFIX)] for name in names)


def tf_bind_8(factor: str | Path = "SIX6_REF_R1", rule: AbstractVisibleRule | None = None) -> TableTask:
    """Binding of a transcription factor to all 65,536 DNA 8-mers, the half of lowest E-score visible.

    Each row of a file holds an 8-mer and its reverse complement with one score; the table has both, so that the 256
    palindromes stand in it twice, as in the published task: 65,792 rows, 32,898 of them visible for SIX6.

    Args:
        factor: a name of `transcription_factors`, or the path of a file of the same form.
        rule: what is visible; None: scores at or below the median.

    Returns:
        `TableTask` over DNA of length 8; scores are E-scores, unitless.

    Raises:
        ValueError: for an unknown name, or a file of another form.
        DataError: when the file cannot be had.

    Example:
        >>> tf_bind_8("FOX")
        Traceback (most recent call last):
        ValueError: tf_bind_8: expected `factor` as a path or one of CRX_REF_R1, EGR2_REF_R1, NR1H4_REF_R1, SIX6_REF_R1, ...

    References:
        Barrera et al. "Survey of variation in human transcription factors". Science 351, 2016. Trabucco et al.
        "Design-Bench". ICML 2022, TF Bind 8.
    """
    if isinstance(factor, Path):
        path = factor
    elif factor in transcription_factors():
        path = fetch(f"{FOLDER}{factor}{SUFFIX}")
    else:
        raise ValueError(
            f"tf_bind_8: expected `factor` as a path or one of {', '.join(transcription_factors())}, got {factor!r}. Correct "
            "the name, or pass pathlib.Path(...) for a file."
        )
    space = CategoricalSpace(length=8, alphabet=DNA)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row]
        designs = space.encode([row[0] for row in rows[1:]] + [row[1] for row in rows[1:]])
        scores = torch.tensor([float(row[2]) for row in rows[1:]], dtype=torch.float64).repeat(2)
    except (IndexError, ValueError, csv.Error) as error:
        raise ValueError(
            f"tf_bind_8: expected columns 8-mer, reverse complement, E-score under a header, separated by tabs, got a file "
            f"{path.name} where that fails: {error} Check the file."
        ) from error
    return TableTask(
        domain=space,
        table=Table(designs=designs, scores=scores),
        rule=AtMostQuantile(quantile=0.5) if rule is None else rule,
    )


def gb1(rule: AbstractVisibleRule | None = None) -> TableTask:
    """Fitness of 149,361 variants of protein GB1 at four sites (39, 40, 41, 54; wild type VDGV), normalised by the best.

    Args:
        rule: what is visible; None: 2,000 rows below the 0.99 quantile, seed 0.

    Returns:
        `TableTask` over four amino acids; fitness of the wild type is 1. Designs without measurement score NaN and are not
        in `TableTask.pool`.

    Raises:
        DataError: when the file cannot be had.

    Example:
        >>> gb1().bounds  # doctest: +SKIP
        (0.0, 8.76196565571)

    References:
        Wu et al. "Adaptation in protein fitness landscapes is facilitated by indirect paths". eLife 5, 2016. Dallago et al.
        "FLIP". NeurIPS Datasets 2021.
    """
    space = CategoricalSpace(length=4, alphabet=AMINO_ACIDS)
    with zipfile.ZipFile(fetch(GB1_FILE)) as archive:
        name = next(item for item in archive.namelist() if item.endswith(".csv"))
        with io.TextIOWrapper(archive.open(name), encoding="utf-8", newline="") as text:
            reader = csv.reader(text)
            header = next(reader)
            one, two = header.index("Variants"), header.index("Fitness")
            rows = [(row[one], float(row[two])) for row in reader]
    return TableTask(
        domain=space,
        table=Table(
            designs=space.encode([sequence for sequence, _ in rows]),
            scores=torch.tensor([score for _, score in rows], dtype=torch.float64),
        ),
        rule=SampleBelow(quantile=0.99, count=2000, seed=0) if rule is None else rule,
        floor=0.0,
    )
