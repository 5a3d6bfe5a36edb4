"""``implicit.permittivity``: a permittivity field inferred from noisy potentials, as a campaign's design."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sciopt.campaign.registry import JobContext, JobResult

__all__ = ["PermittivityOptions", "run_permittivity"]


class PermittivityOptions(BaseModel):
    """Options of ``implicit.permittivity``: a phantom of round inclusions, measured and found again.

    Example:
        >>> PermittivityOptions().cells
        64
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    cells: int = Field(default=64, ge=8, le=512, description="cells along each side of the unit square")
    inclusions: list[tuple[float, float, float, float]] = Field(
        default=[(0.35, 0.4, 0.1, 1.2), (0.7, 0.65, 0.12, -0.9)],
        description="x, y and radius [sides of the square] and log-permittivity of each soft inclusion [1]",
    )
    sources: int = Field(default=2, ge=1, le=16, description="number of charge patterns")
    sensor_spacing: int = Field(default=5, ge=1, description="distance of two sensors [cells]")
    noise: float = Field(default=0.01, gt=0, lt=1, description="standard error in parts of the largest potential [1]")
    length: float = Field(default=0.15, gt=0, description="correlation length of the prior [sides of the square]")
    max_steps: int = Field(
        default=12, ge=1, le=1000, description="most Gauss-Newton steps for each weight of the prior"
    )


def run_permittivity(options: PermittivityOptions, context: JobContext) -> JobResult:
    """Make the data, infer the field, and compare it with the phantom."""
    import torch

    from sciopt import best_response
    from sciopt.domains.implicit.science.permittivity import SmoothPrior, infer_permittivity
    from sciopt.domains.implicit.science.pictures import draw_fields
    from sciopt.domains.implicit.science.poisson import Poisson
    from sciopt.inner import LinearSolve

    n = options.cells
    place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x, y = torch.meshgrid(place, place, indexing="ij")
    truth = torch.zeros_like(x)
    for cx, cy, radius, value in options.inclusions:
        truth = truth + value * torch.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / radius**2) / 2)
    waves = [(i, j) for total in range(2, 12) for i in range(1, total) for j in [total - i]]
    patterns = [torch.sin(torch.pi * i * x) * torch.sin(torch.pi * j * y) * (i * i + j * j) for i, j in waves]
    poisson = Poisson(cells=n, sources=torch.stack(patterns[: options.sources]).reshape(options.sources, -1))
    start = torch.zeros(options.sources, n * n, dtype=torch.float64)
    exact = best_response(poisson.problem(), truth, init=start, solver=LinearSolve(poisson.direct)).value
    offset = options.sensor_spacing // 2
    sensors = torch.arange(n * n).reshape(n, n)[offset :: options.sensor_spacing, offset :: options.sensor_spacing]
    sensors = sensors.reshape(-1)
    sigma = options.noise * exact.abs().amax(-1, keepdim=True).expand(options.sources, len(sensors))
    data = exact[:, sensors] + sigma * torch.randn(sigma.shape, dtype=torch.float64, generator=context.generator)
    history: list[float] = []

    def note(record) -> None:
        history.append(float(record.value))
        context.report_progress(len(history), float(record.value), {})

    fit = infer_permittivity(
        poisson,
        data,
        sigma,
        sensors=sensors,
        prior=SmoothPrior(cells=n, length=options.length),
        max_steps=options.max_steps,
        callbacks=[note],
    )
    return JobResult(
        objective=fit.misfit,
        status=fit.status.name,
        metrics={
            "relative error of the field [1]": fit.error(truth),
            "misfit per measurement [1]": fit.misfit,
            "measurements": data.numel(),
            "unknowns": n * n,
            "weight of the prior [1]": fit.alpha,
        },
        certificate={"discrepancy": abs(fit.misfit - 1)},
        history={"value": history},
        arrays={"log_field": fit.log_field.numpy(), "truth": truth.numpy(), "data": data.numpy()},
        figures={"field": lambda path: draw_fields(path, truth, fit.log_field, sensors)},
        warnings=[] if fit.misfit <= 1.03 else ["no weight of the prior fits the data to their errors"],
    )
