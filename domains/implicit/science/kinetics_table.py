"""The measurements of a kinetics job: a CSV file, read and checked line by line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["Measurement", "read_measurements"]


@final
@dataclass(frozen=True)
class Measurement:
    """One line of the file.

    Args:
        experiment: which experiment, from 0.
        time: when [time].
        values: of the observed species [concentration]; NaN where nothing was measured.
    """

    experiment: int
    time: float
    values: tuple[float, ...]


def read_measurements(path: str | Path, observed: Sequence[str], experiments: int) -> list[Measurement]:
    """All measurements of a CSV file with the columns experiment (from 1), time and the observed species.

    Args:
        path: the file.
        observed: names of the measured species; an empty cell is a gap.
        experiments: how many there are.

    Raises:
        ValueError: for a file that cannot be read, missing columns, and cells that are no numbers or out of range; names the
            file and the line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write("experiment,time,A\\n1,0.5,0.9\\n")
        ...     file.flush()
        ...     read_measurements(file.name, ["A"], 1)
        [Measurement(experiment=0, time=0.5, values=(0.9,))]
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, row) for row in reader]
            names = {name.strip() for name in reader.fieldnames or () if name}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise wrong(path, "a CSV file in UTF-8", str(error), "Check the path and the encoding.") from error
    wanted = {"experiment", "time", *observed}
    if not lines or not wanted <= names:
        got = f"{sorted(names)}" if names else "an empty file" if not lines else "no header"
        got = f"{got} and no rows" if names and not lines else got
        raise wrong(f"{path}, line 1", f"the columns {sorted(wanted)}", got, "Name them in the first line.")
    found = []
    for number, row in lines:
        cells = {key.strip(): (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        place = f"{path}, line {number}"
        if not any(cells.values()):
            continue
        experiment = figure(place, "experiment", cells["experiment"])
        if experiment != round(experiment) or not 1 <= experiment <= experiments:
            what = f"an `experiment` from 1 to {experiments}"
            raise wrong(place, what, repr(cells["experiment"]), "Give `amounts` for each experiment.")
        time = figure(place, "time", cells["time"])
        if not time > 0:
            raise wrong(place, "a `time` > 0", repr(cells["time"]), "At time zero the `amounts` are known.")
        values = tuple(figure(place, name, cells[name]) if cells[name] else math.nan for name in observed)
        found.append(Measurement(int(experiment) - 1, time, values))
    if not found:
        raise wrong(path, "measurements", "empty lines alone", "Add a line for each.")
    return found


def figure(place: str, name: str, cell: str) -> float:
    """A cell as a finite number."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise wrong(
            place, f"a number in `{name}`", repr(cell), "Leave the cell of a species empty where it was not measured."
        )
    return value


def wrong(place: str | Path, expected: str, got: str, advice: str) -> ValueError:
    """The error for a file."""
    return ValueError(f"implicit.kinetics: {place}: expected `data` with {expected}, got {got}. {advice}")
