"""``report.html``: a whole campaign in one file, with pictures inside and nothing fetched from anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sciopt.view.chart import line_chart
from sciopt.view.page import facts_table, page, picture_tag, sortable_table, table_cell, value_text, write_page

if TYPE_CHECKING:
    from sciopt.campaign.folder import Entry, Overview
    from sciopt.campaign.results import FinishedDesign

__all__ = ["render_report", "write_report"]

_SMALL_CHARTS = 4
_COLUMNS, _METRICS = 6, 2  # options and metrics that the comparison shows


def write_report(seen: Overview) -> Path:
    """Write ``report.html`` into the campaign's folder, through a rename; returns its path."""
    return write_page(seen.directory / "report.html", render_report(seen))


def render_report(seen: Overview) -> str:
    """The report as HTML text."""
    varying = _varying(seen)
    body = [
        _summary(seen),
        "<h2>Designs</h2>",
        _gallery(seen) if any(_first_figure(entry) for entry in seen.entries) else "",
        '<h3>Comparison</h3><div class="scroll">' + _table(seen, varying) + "</div>",
        "<h2>One by one</h2>",
        *(_design(entry, varying) for entry in seen.entries),
        _software(seen),
    ]
    return page(f"{seen.name}: campaign report", body)


def _summary(seen: Overview) -> str:
    results = [entry.result for entry in seen.entries if entry.result is not None]
    numbers: list[tuple[str, str]] = [(str(len(seen.entries)), "designs"), (str(len(results)), "finished")]
    unsure = sum(result.status != "CONVERGED" for result in results)
    numbers += [(str(unsure), "not converged")] if unsure else []
    for state in ("FAILED", "RUNNING", "PENDING", "DAMAGED"):
        if count := seen.count(state):
            numbers.append((str(count), {"PENDING": "not run yet"}.get(state, state.lower())))
    numbers.append((_seconds(sum(float(result.run["seconds"]) for result in results)), "computing time"))
    items = "".join(f"<li><b>{escape(number)}</b><span>{escape(what)}</span></li>" for number, what in numbers)
    problems = ", ".join(dict.fromkeys(entry.design.problem for entry in seen.entries))
    notes = list(seen.remarks)
    if seen.removed:
        notes.append(f"{seen.removed} finished designs of earlier specs are in the folder and not in this report.")
    if seen.runner:
        notes.append(f"The campaign was still being run by {seen.runner}.")
    boxes = "".join(f'<p class="box">{escape(note)}</p>' for note in notes)
    return (
        f'<h1>{escape(seen.name)}</h1><p class="lead">Campaign report, written {time.strftime("%Y-%m-%d %H:%M")}. '
        f'Problem: {escape(problems)}.</p><ul class="numbers">{items}</ul>{boxes}'
    )


def _gallery(seen: Overview) -> str:
    cards = []
    for entry in seen.entries:
        figure = _first_figure(entry)
        picture = _image(figure, entry.design.label) if figure else f'<span class="none">{_state_text(entry)}</span>'
        result = entry.result
        small = f"objective {value_text(result.objective)}" if result else escape(entry.state.lower())
        cards.append(
            f'<a href="#d-{entry.design.key[:16]}"><span class="frame">{picture}</span>'
            f"<strong>{escape(entry.design.label)}</strong><small>{small}</small></a>"
        )
    return f'<div class="gallery">{"".join(cards)}</div>'


def _table(seen: Overview, varying: list[str]) -> str:
    shared = [name for name in _metric_names(seen) if name not in (*varying, "steps")][:_METRICS]
    names = ["#", "design", "status", "objective", *varying, *shared, "steps", "seconds", "seed"]
    rows = []
    for number, entry in enumerate(seen.entries, 1):
        result = entry.result
        cells = [table_cell(number), f'<td><a href="#d-{entry.design.key[:16]}">{escape(entry.design.label)}</a></td>']
        cells += [f"<td>{_badge(entry)}</td>", table_cell(result.objective if result else "")]
        options = _flat(entry.design.options)
        cells += [table_cell(options.get(name, "")) for name in varying]
        cells += [table_cell(result.metrics.get(name, "") if result else "") for name in shared]
        cells += [
            table_cell(_steps(result) if result else ""),
            table_cell(round(result.run["seconds"], 1) if result else ""),
        ]
        rows.append([*cells, table_cell(entry.design.seed)])
    return sortable_table(names, rows)


def _design(entry: Entry, varying: list[str]) -> str:
    design, result = entry.design, entry.result
    head = (
        f'<section class="design" id="d-{design.key[:16]}"><header><h2>{escape(design.label)}</h2>{_badge(entry)}'
        f'<code title="key of the design: its folder under designs/">{design.key[:16]}</code></header>'
    )
    options = _flat(design.options)
    ordered = [*(name for name in varying if name in options), *(name for name in options if name not in varying)]
    facts = facts_table("Options", {name: options[name] for name in ordered})
    asked = f"{design.problem}, version {design.version}, seed {design.seed}"
    if result is None:
        return head + _trouble(entry) + f'<p class="lead">{escape(asked)}</p>{facts}</section>'
    advice = (
        "" if result.status == "CONVERGED" else f'<p class="box">{escape(result.status)}: {escape(result.advice)}</p>'
    )
    warnings = "".join(f'<p class="box">{escape(text)}</p>' for text in result.warnings)
    figures = "".join(
        f"<figure>{_image(path, f'{name} of {design.label}')}<figcaption>{escape(name)}</figcaption></figure>"
        for name, path in result.figures.items()
    )
    run = result.run
    done = {
        "problem": asked,
        "computed": run["started"],
        "time": _seconds(float(run["seconds"])),
        "threads": run["threads"],
        "attempts": max(entry.attempts, 1),
        "folder": f"designs/{design.key[:16]}...",
        "arrays": result.arrays.name if result.arrays else "none",
    }
    left = figures + _charts(result)
    outcome = {"objective": result.objective, **result.metrics}
    right = facts_table("Outcome", outcome) + facts_table(
        "Certificate", {"status": result.status, **result.certificate}
    )
    right += facts + facts_table("Run", done) + _files(result)
    return f'{head}{advice}{warnings}<div class="columns"><div>{left}</div><div>{right}</div></div></section>'


def _files(result: FinishedDesign) -> str:
    """Links to the files of a design; relative, so that a campaign's folder can be moved as a whole."""
    links = "".join(
        f'<li><a href="designs/{quote(result.design.key)}/files/{quote(name)}">{escape(name)}</a> '
        f"({_bytes(path.stat().st_size)})</li>"
        for name, path in result.files.items()
    )
    return f"<h3>Files</h3><ul>{links}</ul>" if links else ""


def _bytes(size: int) -> str:
    return f"{size} B" if size < 10_000 else f"{size / 1e3:.0f} kB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"


def _trouble(entry: Entry) -> str:
    if entry.state not in ("FAILED", "DAMAGED"):
        return f'<p class="box">{_state_text(entry)}</p>'
    text = f'<p class="box bad">{escape(entry.reason or "no reason was recorded")}</p>'
    if entry.attempts > 1:
        text += f"<p>Tried {entry.attempts} times.</p>"
    if entry.trace:
        text += f"<details open><summary>Traceback</summary><pre>{escape(entry.trace.strip())}</pre></details>"
    return text


def _charts(result: FinishedDesign) -> str:
    columns = dict(result.history)
    x_label = "step"
    count = len(next(iter(columns.values()), []))
    x = columns.pop("step", [float(i) for i in range(count)])
    if count < 2 or not columns:
        return ""
    main = "objective" if "objective" in columns else next(iter(columns))
    charts = [line_chart(x, columns.pop(main), title=main, x_label=x_label)]
    for name in list(columns)[:_SMALL_CHARTS]:
        charts.append(line_chart(x, columns[name], title=name, x_label=x_label, height=130))
    return "<h3>Convergence</h3>" + "".join(charts)


def _software(seen: Overview) -> str:
    runs = [entry.result.run for entry in seen.entries if entry.result is not None]
    if not runs:
        return ""
    found: dict[str, list[str]] = {}
    for run in runs:
        facts = {**run["versions"], "platform": run["platform"], "CUDA device": run["cuda"], "threads": run["threads"]}
        for name, value in facts.items():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    seeds = sorted({entry.design.seed for entry in seen.entries})
    found["seeds"] = [", ".join(map(str, seeds[:20])) + (", ..." if len(seeds) > 20 else "")]
    found["versions of the problems"] = sorted({f"{e.design.problem} {e.design.version}" for e in seen.entries})
    table = facts_table("", {name: "; ".join(values) for name, values in found.items()})
    return (
        f'<h2>What it ran with</h2><div class="design">{table}</div>'
        "<footer>Problem, options and seed determine a design; its folder "
        "<code>designs/&lt;key&gt;</code> holds result.json, the arrays, the pictures and the files, with checksums.</footer>"
    )


def _varying(seen: Overview) -> list[str]:
    """Options that differ between designs, in the order they are first met."""
    values: dict[str, set[str]] = {}
    for entry in seen.entries:
        for name, value in _flat(entry.design.options).items():
            values.setdefault(name, set()).add(json.dumps(value, sort_keys=True))
    return [name for name, different in values.items() if len(different) > 1][:_COLUMNS]


def _metric_names(seen: Overview) -> list[str]:
    """Metrics that fit into a column: numbers that do not repeat the objective, under a short name."""
    results = [entry.result for entry in seen.entries if entry.result]
    names = dict.fromkeys(name for result in results for name in result.metrics if len(name) <= 20)
    repeats = {name for name in names if all(result.metrics.get(name) == result.objective for result in results)}
    words = {name for name in names if any(isinstance(result.metrics.get(name), str) for result in results)}
    return [name for name in names if name not in repeats | words]


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return flat


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _steps(result: FinishedDesign) -> int | str:
    """The steps that the problem counts itself, or the length of its history."""
    if isinstance(counted := result.metrics.get("steps"), (int, float)):
        return int(counted)
    columns: Iterable[list[float]] = result.history.values()
    return max((len(column) for column in columns), default=0) or ""


def _badge(entry: Entry) -> str:
    if entry.result is not None:
        good = entry.result.status == "CONVERGED"
        return f'<span class="badge {"good" if good else "warn"}">{escape(entry.result.status)}</span>'
    bad = entry.state in ("FAILED", "DAMAGED")
    return f'<span class="badge{" bad" if bad else ""}">{escape(entry.state)}</span>'


def _state_text(entry: Entry) -> str:
    if entry.state == "RUNNING" and entry.step is not None:
        return f"running, at step {entry.step} with objective {entry.objective:.6g}"
    return {"PENDING": "not run yet", "RUNNING": "running", "FAILED": "failed", "DAMAGED": "damaged"}[entry.state]


def _first_figure(entry: Entry) -> Path | None:
    return next(iter(entry.result.figures.values()), None) if entry.result else None


def _image(path: Path, text: str) -> str:
    return picture_tag(path.read_bytes(), text)
