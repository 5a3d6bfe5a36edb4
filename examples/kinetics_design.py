# %% [markdown]
# # Rate constants of a stiff mechanism, and what to measure next
#
# Robertson's reaction runs over nine decades of rate constants: A -> B slowly, 2 B -> B + C fast, B + C -> A + C in between.
# Few noisy samples of one run tell how large the constants are, but not all of them well. The fit is Gauss-Newton through the
# stiff solver; the exact Hessian, second derivatives of the solver included, says how well each constant is known; and the
# times that tell most *next* maximise the determinant of the information, again by second derivatives through the solver.
#
#     python examples/kinetics_design.py kinetics_design.png

# %%
import os
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sciopt.domains.implicit.science import (
    Noise,
    TimeWindow,
    fit_rates,
    mass_action_model,
    plan_measurements,
    simulate,
)
from sciopt.domains.implicit.science.experiments import Experiments
from sciopt.domains.implicit.stiff import robertson
from sciopt.steppers import Rodas5P

smoke = bool(os.environ.get("SCIOPT_SMOKE"))
steps = 1 if smoke else 30

# %% The mechanism, and one run sampled at a few early times: the trace B is measured, too, to a tenth of its height.
example = robertson()
assert example.network is not None
solver = Rodas5P(rtol=1e-3 if smoke else 1e-5, atol=1e-7 if smoke else 1e-9)
model = mass_action_model(example.network, parameters=example.parameter_names, solver=solver)
truth = example.outer_params.log()
start = example.init.unsqueeze(0)
early = torch.tensor([0.0, 0.3, 1.0, 2.0, 3.0], dtype=torch.float64)
noise = Noise(absolute=torch.tensor([0.01, 2e-6, 0.01], dtype=torch.float64))
generator = torch.Generator().manual_seed(4)
first = simulate(model, truth, start, early, noise, generator)

# %% The fit. Beside the exact uncertainties stand those that Gauss-Newton's approximation of the Hessian would report.
guess = truth + torch.tensor([0.4, -0.4, 0.4])
fit = fit_rates(model, first, start=guess, change_atol=1e-3, max_steps=steps)
print(fit.table())
print("\n".join(fit.identifiability.describe()))

# %% Three more samples, anywhere between 0.1 and 1,000: where? Times that are a tenth apart count as different.
window = TimeWindow(first=0.1, last=1000.0, spacing=1.1, logarithmic=True)
plan = plan_measurements(
    model,
    fit.log_rates,
    init=start,
    window=window,
    count=1 if smoke else 3,
    noise=noise,
    known=fit.hessian,
    candidates=10 if smoke else 40,
    max_steps=0 if smoke else 5,
)
print("measure next at", ", ".join(f"{t:.3g}" for t in plan.times[1:].tolist()), f"(gain {plan.gain:.2f} nats)")

# %% Was the promise kept? The new samples are drawn, and everything is fitted again; the same number of samples evenly
# spread over the early window stands beside.


def extended(times: torch.Tensor) -> Experiments:
    """The first samples and new ones at these times."""
    order = torch.cat([early[1:], times]).argsort()
    fresh = simulate(model, truth, start, torch.cat([early[:1], times]), noise, torch.Generator().manual_seed(7))
    data = torch.cat([first.data, fresh.data])[order]
    instants = torch.cat([early[1:], times])[order]
    return Experiments(init=start, times=torch.cat([early[:1], instants]), data=data, noise=noise)


planned = fit_rates(model, extended(plan.times[1:]), start=fit.log_rates, change_atol=1e-3, max_steps=steps)
even = torch.linspace(0.5, 2.5, len(plan.times) - 1, dtype=torch.float64)
usual = fit_rates(model, extended(even), start=fit.log_rates, change_atol=1e-3, max_steps=steps)
print(planned.table())

# %% The picture: courses with the samples and the times to come, and the uncertainties.
figure = Figure(figsize=(10, 3.4), layout="constrained")
smooth = torch.cat([early[:1], torch.logspace(-1, 3, 30 if smoke else 100, dtype=torch.float64)])
with torch.no_grad():
    exact = model.predict(truth, start, smooth)[:, 0].numpy()
    fitted = model.predict(planned.log_rates, start, smooth)[:, 0].numpy()
samples, spread = (v[:, 0].numpy() for v in (first.data, noise.sigma(first.data)))
for place, (species, scale) in enumerate((("A", 1.0), ("B", 1e5))):
    axes = figure.add_subplot(1, 3, place + 1)
    axes.plot(smooth[1:].numpy(), scale * exact[:, place], color="black", lw=0.8, label="truth")
    axes.plot(smooth[1:].numpy(), scale * fitted[:, place], color="tab:blue", label="fit with the new samples")
    axes.errorbar(
        early[1:].numpy(), scale * samples[:, place], scale * spread[:, place], fmt="o", ms=3, color="tab:orange",
        label="first samples",
    )  # fmt: skip
    for t in plan.times[1:].tolist():
        axes.axvline(t, color="tab:green", ls="--", lw=1.0)
    axes.set(xscale="log", xlabel="time", title=species if scale == 1.0 else f"{species} x {scale:.0e}")
axes = figure.axes[0]
axes.plot([], [], color="tab:green", ls="--", lw=1.0, label="measure next")
axes.legend(frameon=False, fontsize=7)
axes = figure.add_subplot(1, 3, 3)
bars = {
    "first samples": fit.errors,
    "with three evenly spread": usual.errors,
    "expected of the plan": plan.errors,
    "with the plan": planned.errors,
}
for i, (label, errors) in enumerate(bars.items()):
    axes.bar((torch.arange(3) + 0.2 * (i - 1.5)).numpy(), errors.numpy(), 0.19, label=label)
axes.set_xticks(range(3), [f"{name}" for name in fit.names])
axes.set(ylabel="standard error of the logarithm", yscale="log")
axes.legend(frameon=False, fontsize=7)
out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "kinetics_design.png"
figure.savefig(out, dpi=150)
print(f"picture: {out}")
