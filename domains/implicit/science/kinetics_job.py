"""``implicit.kinetics``: rate constants with uncertainties, and the best next measurement times, as a campaign's design."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sciopt.campaign.registry import JobContext, JobResult
from sciopt.domains.implicit.science.kinetics_table import read_measurements

if TYPE_CHECKING:
    from torch import Tensor

    from sciopt.domains.implicit.science.experiments import Experiments, KineticModel

__all__ = ["KineticsOptions", "run_kinetics"]


class KineticsOptions(BaseModel):
    """Options of ``implicit.kinetics``: Robertson's reaction where nothing else is said.

    Example:
        >>> KineticsOptions().observed
        ['A', 'B', 'C']
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    reactions: list[str] = Field(
        default=["A -> B", "2 B -> B + C", "B + C -> A + C"],
        min_length=1,
        description="mass-action steps, e.g. 'E + S <-> ES'; a reversible one has two rate constants",
    )
    rates: list[float] = Field(
        default=[0.04, 3e7, 1e4],
        min_length=1,
        description="true rate constants that data are simulated with; with `data` the guess that the fit starts from "
        "[units of concentration and time]",
    )
    start_factor: float = Field(
        default=1.5, gt=0, description="the fit starts from `rates` times and divided by this, in turns [1]"
    )
    amounts: list[dict[str, float]] = Field(
        default=[{"A": 1.0}, {"A": 1.0, "C": 0.5}],
        min_length=1,
        description="concentrations at time zero, one mapping for each experiment [concentration]",
    )
    observed: list[str] = Field(default=["A", "B", "C"], min_length=1, description="species that are measured")
    errors: list[float] = Field(
        default=[0.01, 1e-6, 0.01],
        min_length=1,
        description="standard error of each observed species [concentration]",
    )
    relative_error: float = Field(default=0.0, ge=0, description="relative part of the standard errors [1]")
    data: str | None = Field(
        default=None,
        description="CSV with the columns experiment (from 1), time and the observed species; none: data are simulated",
    )
    first_time: float = Field(
        default=0.1, gt=0, description="first simulated measurement, and earliest next one [time]"
    )
    last_time: float = Field(default=100.0, gt=0, description="last simulated measurement, and latest next one [time]")
    measurements: int = Field(default=8, ge=1, le=1000, description="simulated times, evenly spaced in their logarithm")
    next_times: int = Field(default=3, ge=0, le=50, description="next measurement times to plan; 0: none")
    spacing: float = Field(default=1.2, ge=1, description="least ratio of two planned times [1]")
    refinements: int = Field(
        default=3, ge=0, le=100, description="gradient steps on the planned times; 0: the grid alone"
    )
    rtol: float = Field(default=1e-5, gt=0, lt=0.1, description="relative tolerance of the time steps [1]")
    max_steps: int = Field(default=30, ge=1, le=1000, description="most steps of the fit")

    @model_validator(mode="after")
    def _fits_together(self) -> KineticsOptions:
        from sciopt.domains.implicit.stiff import reactions

        network = reactions(*self.reactions)
        if len(self.rates) != len(network.reactants) or min(self.rates) <= 0:
            raise ValueError(
                f"expected {len(network.reactants)} positive `rates`, got {self.rates}. Give one for each direction of each "
                "reaction."
            )
        named = {*self.observed, *(name for amounts in self.amounts for name in amounts)}
        if not named <= set(network.species) or len(set(self.observed)) != len(self.observed):
            raise ValueError(
                f"expected `observed` and `amounts` to name species among {list(network.species)}, got {sorted(named)}. Name "
                "each observed one once."
            )
        if len(self.errors) != len(self.observed) or min(self.errors) <= 0:
            raise ValueError(
                f"expected one positive number in `errors` for each of {self.observed}, got {self.errors}. Say how large the "
                "errors are."
            )
        if not self.first_time < self.last_time:
            raise ValueError(
                f"expected `first_time` < `last_time`, got {self.first_time} and {self.last_time}. Swap them."
            )
        if self.data is not None:  # before any worker starts
            read_measurements(self.data, self.observed, len(self.amounts))
        room = self.last_time / self.first_time
        if self.next_times > 1 and self.spacing ** (self.next_times - 1) >= room:
            raise ValueError(
                f"expected `next_times` that fit between `first_time` and `last_time` with their `spacing`, got "
                f"{self.next_times}. Lower the number or the spacing."
            )
        return self


def run_kinetics(options: KineticsOptions, context: JobContext) -> JobResult:
    """Fit, report uncertainties and sloppy directions, and plan the next measurements."""
    import torch

    from sciopt.domains.implicit.science.design import TimeWindow, plan_measurements
    from sciopt.domains.implicit.science.experiments import mass_action_model
    from sciopt.domains.implicit.science.fit import fit_rates
    from sciopt.domains.implicit.science.pictures import draw_courses, draw_uncertainties
    from sciopt.domains.implicit.stiff import reactions
    from sciopt.steppers import Rodas5P

    solver = Rodas5P(rtol=options.rtol, atol=options.rtol * 1e-4)
    model = mass_action_model(reactions(*options.reactions), observed=options.observed, solver=solver)
    guess = torch.tensor(options.rates, dtype=torch.float64).log()
    experiments = measured(options, model, guess, context.generator)
    turns = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(guess))[: len(guess)]
    start = guess + turns * float(torch.tensor(options.start_factor).log())
    fit = fit_rates(
        model,
        experiments,
        start=start,
        max_steps=options.max_steps,
        change_atol=1e-3,
        callbacks=[lambda record: context.report_progress(record.step, record.value, {})],
        throw=False,
    )
    plan, notes = None, []
    if not fit.identifiability.determined:
        notes.append("the data do not determine every rate constant: " + "; ".join(fit.identifiability.describe()))
    if options.next_times and bool(torch.isfinite(fit.covariance).all()):
        rough = Rodas5P(rtol=max(options.rtol, 1e-4), atol=max(options.rtol, 1e-4) * 1e-4)  # enough to plan by
        plan = plan_measurements(
            replace(model, solver=rough),
            fit.log_rates,
            init=experiments.init,
            window=TimeWindow(
                first=options.first_time, last=options.last_time, spacing=options.spacing, logarithmic=True
            ),
            count=options.next_times,
            noise=experiments.noise,
            known=fit.hessian,
            candidates=max(30, options.next_times),
            max_steps=options.refinements,
        )
    elif options.next_times:
        notes.append("no measurements are planned: the Hessian at the fit is not positive definite")
    metrics: dict[str, float | int | str | bool] = {"chi2 per degree of freedom [1]": fit.chi2 / max(1, fit.freedom)}
    for i, name in enumerate(fit.names):
        metrics[name] = float(fit.rates[i])
        metrics[f"{name}, standard error of the logarithm [1]"] = float(fit.errors[i])
        if plan is not None:
            metrics[f"{name}, expected after the next measurements [1]"] = float(plan.errors[i])
    for i, line in enumerate(fit.identifiability.describe()):
        metrics[f"direction {i + 1}"] = line
    if plan is not None:
        metrics["next times [time]"] = ", ".join(f"{t:.4g}" for t in plan.times[1:].tolist())
        metrics["expected gain [nats]"] = plan.gain
    gap = (fit.hessian - fit.fisher).abs().max() / fit.hessian.abs().max()
    arrays = {
        "log_rates": fit.log_rates,
        "covariance": fit.covariance,
        "hessian": fit.hessian,
        "data": experiments.data,
    }
    if plan is not None:
        arrays["next_times"] = plan.times[1:]
    text = "\n".join([fit.table(), "", *fit.identifiability.describe(), ""])
    return JobResult(
        objective=0.5 * fit.chi2,
        status=fit.status.name,
        metrics=metrics,
        certificate={"gradient_norm": fit.history["grad_norm"][-1], "hessian_beyond_gauss_newton": float(gap)},
        history={"value": fit.history["value"], "grad_norm": fit.history["grad_norm"]},
        arrays={name: value.numpy() for name, value in arrays.items()},
        figures={
            "courses": lambda path: draw_courses(path, model, experiments, fit, plan, title="data, fit, next times"),
            "uncertainties": lambda path: draw_uncertainties(path, fit, plan),
        },
        files={"rates.txt": lambda path: path.write_text(text, encoding="utf-8")},
        warnings=notes,
    )


def measured(options: KineticsOptions, model: KineticModel, guess: Tensor, generator) -> Experiments:
    """The data of the file, or simulated ones."""
    import torch

    from sciopt.domains.implicit.science.experiments import Experiments, Noise, simulate
    from sciopt.domains.implicit.stiff import reactions

    species = reactions(*options.reactions).species
    init = torch.tensor([[row.get(name, 0.0) for name in species] for row in options.amounts], dtype=torch.float64)
    noise = Noise(absolute=torch.tensor(options.errors, dtype=torch.float64), relative=options.relative_error)
    if options.data is None:
        ends = torch.tensor([options.first_time, options.last_time], dtype=torch.float64).log()
        times = torch.linspace(float(ends[0]), float(ends[1]), options.measurements, dtype=torch.float64).exp()
        return simulate(model, guess, init, torch.cat([times.new_zeros(1), times]), noise, generator)
    rows = read_measurements(options.data, options.observed, len(init))
    instants = sorted({row.time for row in rows})
    values = torch.full((len(instants), len(init), len(options.observed)), torch.nan, dtype=torch.float64)
    for row in rows:
        for j, value in enumerate(row.values):
            if value == value:  # a gap leaves what another line says
                values[instants.index(row.time), row.experiment, j] = value
    times = torch.tensor([0.0, *instants], dtype=torch.float64)
    return Experiments(init=init, times=times, data=values, noise=noise)
