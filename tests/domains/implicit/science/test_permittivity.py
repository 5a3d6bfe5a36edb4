"""The Poisson problem and its inversion: analytic potentials, differences, the discrepancy principle, honest failure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciopt import Status, best_response
from sciopt.domains.implicit.science import Poisson, SmoothPrior, infer_permittivity
from sciopt.hypergradients import Implicit
from sciopt.inner import LinearSolve
from sciopt.linsolve import CG

F64 = torch.float64


def plane(n: int) -> tuple[Tensor, Tensor]:
    place = (torch.arange(n, dtype=F64) + 0.5) / n
    grid = torch.meshgrid(place, place, indexing="ij")
    return grid[0], grid[1]


def potential(poisson: Poisson, log_field: Tensor) -> Tensor:
    n = poisson.cells
    start = torch.zeros(len(poisson.sources), n * n, dtype=F64)
    lu = poisson.direct
    return best_response(
        poisson.problem(), log_field, init=start, solver=LinearSolve(lu), hypergradient=Implicit(lu)
    ).value


def test_potentials_converge_to_an_analytic_one_with_second_order() -> None:
    """u = sin(pi x) sin(pi y) in a medium exp(x): f = -div(exp(x) grad u)."""
    errors = []
    for n in (16, 32, 64):
        x, y = plane(n)
        u = torch.sin(torch.pi * x) * torch.sin(torch.pi * y)
        slope = torch.pi * torch.cos(torch.pi * x) * torch.sin(torch.pi * y)
        source = x.exp() * (2 * torch.pi**2 * u - slope)
        found = potential(Poisson(cells=n, sources=source.reshape(1, -1)), x)
        errors.append(float((found - u.reshape(1, -1)).abs().max()))
    assert errors[2] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5


def test_gradients_agree_with_differences_and_with_cg() -> None:
    x, y = plane(12)
    sources = torch.stack([torch.ones_like(x), torch.sin(6 * x) * y]).reshape(2, -1)
    poisson, field = Poisson(cells=12, sources=sources), torch.sin(5 * x + 3 * y)
    weights = torch.cos(torch.arange(288, dtype=F64)).reshape(2, 144)
    leaf = field.clone().requires_grad_()
    (potential(poisson, leaf) * weights).sum().backward()
    assert leaf.grad is not None
    direction, step = torch.cos(7 * x * y), 1e-5
    ahead, behind = (float((potential(poisson, field + s * direction) * weights).sum()) for s in (step, -step))
    assert float((leaf.grad * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-7)
    krylov = CG(rtol=1e-12)
    other = field.clone().requires_grad_()
    found = best_response(
        poisson.problem(), other, init=torch.zeros(2, 144, dtype=F64), solver=LinearSolve(krylov),
        hypergradient=Implicit(krylov),
    )  # fmt: skip
    (found.value * weights).sum().backward()
    torch.testing.assert_close(other.grad, leaf.grad, rtol=1e-7, atol=1e-10)


def test_fields_of_the_prior_have_its_spread() -> None:
    prior = SmoothPrior(cells=16, std=0.7, mean=0.3)
    gen = torch.Generator().manual_seed(0)
    fields = torch.stack([prior.field(torch.randn(16, 16, dtype=F64, generator=gen)) for _ in range(300)])
    assert float(fields.mean()) == pytest.approx(0.3, abs=0.1)
    assert float((fields - 0.3).square().mean().sqrt()) == pytest.approx(0.7, rel=0.1)
    rough = (fields[:, 1:] - fields[:, :-1]).square().mean().sqrt()
    smooth = SmoothPrior(cells=16, std=0.7, length=0.6)
    gen = torch.Generator().manual_seed(0)
    calm = torch.stack([smooth.field(torch.randn(16, 16, dtype=F64, generator=gen)) for _ in range(50)])
    assert (calm[:, 1:] - calm[:, :-1]).square().mean().sqrt() < 0.7 * rough


def test_a_field_of_64_by_64_cells_is_found_to_its_noise() -> None:
    x, y = plane(64)
    truth = 1.2 * torch.exp(-((x - 0.35) ** 2 + (y - 0.4) ** 2) / 0.02)
    truth = truth - 0.9 * torch.exp(-((x - 0.7) ** 2 + (y - 0.65) ** 2) / 0.03)
    sources = torch.stack([torch.ones_like(x), 4 * torch.sin(torch.pi * x) * torch.sin(2 * torch.pi * y)]).reshape(
        2, -1
    )
    poisson = Poisson(cells=64, sources=sources)
    exact = potential(poisson, truth)
    sensors = torch.arange(4096).reshape(64, 64)[2::5, 2::5].reshape(-1)
    sigma = 0.01 * exact.abs().amax(-1, keepdim=True).expand(2, len(sensors))
    noise = torch.randn(sigma.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    fit = infer_permittivity(poisson, exact[:, sensors] + sigma * noise, sigma, sensors=sensors)
    assert fit.status is Status.CONVERGED
    assert 0.95 < fit.misfit <= 1.03
    assert fit.error(truth) < 0.3  # 0.17 here; knowing nothing is 1
    centre = torch.stack([truth, fit.log_field]).reshape(2, -1)
    assert float(torch.corrcoef(centre)[0, 1]) > 0.95


def test_conjugate_gradients_infer_what_the_factors_do() -> None:
    x, y = plane(8)
    poisson = Poisson(cells=8, sources=torch.ones(1, 64, dtype=F64))
    data = potential(poisson, torch.sin(3 * x) * y) * (1 + 0.02 * torch.cos(9 * x * y).reshape(1, -1))
    by_factors = infer_permittivity(poisson, data, 0.01, alpha=1.0, max_steps=2)
    by_products = infer_permittivity(poisson, data, 0.01, alpha=1.0, max_steps=2, linear_solver=CG(rtol=1e-12))
    torch.testing.assert_close(by_products.log_field, by_factors.log_field, rtol=0, atol=1e-5)


def test_data_that_no_field_explains_are_said() -> None:
    """The potential of a positive source is positive."""
    small = Poisson(cells=5, sources=torch.ones(1, 25, dtype=F64))
    fit = infer_permittivity(small, torch.full((1, 25), -0.1, dtype=F64), 0.03, max_steps=2)
    assert fit.status is Status.STAGNATED and fit.misfit > 10
    poisson = Poisson(cells=8, sources=torch.ones(1, 64, dtype=F64))
    with pytest.raises(ValueError, match="infer_permittivity: expected `data` of shape"):
        infer_permittivity(poisson, torch.ones(2, 64, dtype=F64), 0.1)
    with pytest.raises(ValueError, match="Poisson: expected `sources`"):
        Poisson(cells=8, sources=torch.ones(1, 63, dtype=F64))
