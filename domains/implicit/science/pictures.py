"""Pictures of fits, plans and fields; matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sciopt.domains.implicit.science.design import MeasurementPlan
from sciopt.domains.implicit.science.experiments import Experiments, KineticModel
from sciopt.domains.implicit.science.fit import KineticFit

__all__ = ["draw_courses", "draw_fields", "draw_uncertainties"]


def draw_courses(
    path: Path,
    model: KineticModel,
    experiments: Experiments,
    fit: KineticFit,
    plan: MeasurementPlan | None = None,
    *,
    title: str = "",
) -> None:
    """Write a picture of the data with their errors, the fitted courses, and the next measurement times.

    Args:
        path: file to write; the format follows the suffix.
        model: the mechanism.
        experiments: the data; the first experiments share one axes for each observable.
        fit: the fit.
        plan: the next measurements, drawn as vertical lines; None: none.
        title: line above the picture.

    Example:
        >>> draw_courses.__name__
        'draw_courses'
    """
    from matplotlib.figure import Figure

    times = experiments.times if experiments.times.ndim == 1 else experiments.times[:, 0]
    seen = times[1:]
    ends = torch.stack([seen[0], seen[-1]]).log()
    if plan is not None:
        ends = torch.stack([torch.minimum(ends[0], plan.times[1].log()), torch.maximum(ends[1], plan.times[-1].log())])
    smooth = torch.cat([times[:1], torch.linspace(float(ends[0]), float(ends[1]), 120, dtype=seen.dtype).exp()])
    with torch.no_grad():
        lines = model.predict(fit.log_rates, experiments.init, smooth)
        sigma = experiments.noise.sigma(experiments.data)
    count = len(model.observables)
    figure = Figure(figsize=(3.3 * count + 0.4, 3.0), layout="constrained")
    for j, name in enumerate(model.observables):
        axes = figure.add_subplot(1, count, j + 1)
        for e in range(experiments.init.shape[0]):
            color = f"C{e}"
            axes.errorbar(
                seen.numpy(),
                experiments.data[:, e, j].numpy(),
                sigma[:, e, j].numpy(),
                fmt="o",
                ms=3,
                lw=0.8,
                color=color,
            )
            axes.plot(smooth[1:].numpy(), lines[:, e, j].numpy(), color=color, lw=1.2)
        if plan is not None:
            for t in plan.times[1:].tolist():
                axes.axvline(t, color="tab:green", lw=1.0, ls="--", label="next" if t == plan.times[1] else None)
            if j == 0:
                axes.legend(frameon=False, fontsize=8)
        axes.set(xscale="log", xlabel="time", title=f"concentration of {name}")
        axes.title.set_fontsize(9)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def draw_uncertainties(path: Path, fit: KineticFit, plan: MeasurementPlan | None = None, *, title: str = "") -> None:
    """Write a picture of the standard errors of the log-rates: exact, of Gauss-Newton, and after the next measurements.

    Args:
        path: file to write.
        fit: the fit.
        plan: the next measurements, or None.
        title: line above the picture.

    Example:
        >>> draw_uncertainties.__name__
        'draw_uncertainties'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    bars = [("exact Hessian", fit.errors), ("Gauss-Newton", fit.errors_gauss_newton)]
    if plan is not None:
        bars.append(("after the next measurements", plan.errors))
    place = torch.arange(len(fit.names), dtype=torch.float64)
    for i, (label, values) in enumerate(bars):
        shown = torch.where(torch.isfinite(values), values, torch.nan)
        axes.bar((place + 0.27 * (i - 1)).numpy(), shown.numpy(), 0.25, label=label)
    axes.set_xticks(place.numpy(), [f"{n} = {float(v):.3g}" for n, v in zip(fit.names, fit.rates, strict=True)])
    known = torch.cat([values[torch.isfinite(values)] for _, values in bars])
    wide = bool(known.numel()) and float(known.max()) > 30 * float(known.min())
    axes.set(ylabel="standard error of the logarithm", yscale="log" if wide else "linear")
    axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def draw_fields(path: Path, truth: Tensor, found: Tensor, sensors: Tensor | None = None, *, title: str = "") -> None:
    """Write a picture of a true and an inferred field ``(n, n)`` and their difference.

    Args:
        path: file to write.
        truth: logarithm of the true permittivity.
        found: of the inferred one.
        sensors: measured cells, int64 ``(k,)``, drawn as dots; None: none.
        title: line above the picture.

    Example:
        >>> draw_fields.__name__
        'draw_fields'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    low, high = float(truth.min()), float(truth.max())
    n = truth.shape[0]
    for i, (name, field) in enumerate((("true", truth), ("inferred", found), ("difference", found - truth))):
        axes = figure.add_subplot(1, 3, i + 1)
        spread = max(abs(low), abs(high))
        limits = {"vmin": -spread, "vmax": spread, "cmap": "RdBu_r"}
        drawn = axes.imshow(field.T.numpy(), origin="lower", extent=(0, 1, 0, 1), **limits)
        if sensors is not None and i == 1:
            axes.plot((sensors // n + 0.5).numpy() / n, (sensors % n + 0.5).numpy() / n, "k.", ms=1)
        axes.set_title(f"log permittivity, {name}" if i < 2 else name, fontsize=9)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
