# %% [markdown]
# # An inner problem of your own
#
# A chain of masses on springs hangs between two walls; its shape settles at minimum energy. Choose the rest lengths so that
# the settled chain follows a given curve. Thirty lines state it; the core gives exact hypergradients, a batch, a bound on
# their error, and a Gauss-Newton outer step.

# %%
import os

import torch

from sciopt import BilevelProblem, Minimize, best_response, hypergradcheck, hypergradient, optimize
from sciopt.inner import NewtonCG
from sciopt.outer import GaussNewtonStep

smoke = bool(os.environ.get("SCIOPT_SMOKE"))
masses = 8 if smoke else 24
walls = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)


def energy(positions: torch.Tensor, rest_lengths: torch.Tensor) -> torch.Tensor:
    """Springs of stiffness 5000 between neighbours, and gravity; positions (*batch, masses, 2), energy (*batch,)."""
    ends = walls.expand(*positions.shape[:-2], 2, 2)
    chain = torch.cat([ends[..., :1, :], positions, ends[..., 1:, :]], dim=-2)
    lengths = (chain[..., 1:, :] - chain[..., :-1, :]).square().sum(-1).sqrt()
    return 2500 * (lengths - rest_lengths).square().sum(-1) + 0.5 * positions[..., 1].sum(-1)


# %% The bi-level problem: the settled chain shall hang in a parabola.
x = torch.linspace(0, 1, masses + 2, dtype=torch.float64)[1:-1]
wanted = -x * (1 - x)
problem = BilevelProblem(
    inner=Minimize(energy),
    outer_residuals=lambda positions, rest_lengths: positions[:, 1] - wanted,
)
start = torch.stack([x, -0.5 * x * (1 - x)], dim=-1)
rest_lengths = torch.full((masses + 1,), 1.0 / masses, dtype=torch.float64)
solver = NewtonCG(rtol=1e-10)

# %% One hypergradient as a value, with its certificate, and its check against differences of the re-solved problem.
hg = hypergradient(problem, rest_lengths, init=start, solver=solver)
print(f"outer loss {float(hg.value):.3e}, |hypergradient| {float(hg.grad.norm()):.3e}, {hg.status.name}")
print(f"error bound {hg.error_bound:.1e} ({hg.certificate.kind.value if hg.certificate else 'none'}); {hg.notes[0]}")
check = hypergradcheck(problem, rest_lengths, init=start, solver=solver, generator=torch.Generator().manual_seed(0))
print(f"largest difference from the re-solved problem: {float(check.relative_error.max()):.1e}")

# %% The design.
bounds = (0.5 / masses, 2.0 / masses)
result = optimize(
    problem, rest_lengths, init=start, solver=solver, outer=GaussNewtonStep(), bounds=bounds, max_steps=20
)
print(f"{result.status.name} after {result.num_steps} steps: outer loss {result.value:.3e}")

# %% A batch: three chains of different lengths settle at once; one derivative for each, inside ordinary autograd.
lengths = (result.outer_params * torch.tensor([[0.95], [1.0], [1.05]], dtype=torch.float64)).requires_grad_()
settled = best_response(
    Minimize(energy, batch_ndim=1), lengths, init=result.inner_params.expand(3, masses, 2), solver=solver
)
lowest = settled.value[..., 1].amin(-1)
(slopes,) = torch.autograd.grad(lowest.sum(), lengths)
print(
    "lowest point", [round(v, 4) for v in lowest.tolist()], "and its slope in the first length", slopes[:, 0].tolist()
)
