"""The small models against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sciopt.domains.implicit.ode import (
    AugmentedODE,
    ContinuousFlow,
    Divergence,
    HamiltonianField,
    JacobianNorm,
    KineticEnergy,
    LatentODE,
    NeuralODE,
)
from sciopt.steppers import RK4, Leapfrog, Tsit5

TIGHT = Tsit5(rtol=1e-9, atol=1e-11)


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Affine(nn.Module):
    """dz/dt = z A^T + b."""

    def __init__(self, generator, n=3):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(0.5 * draw(generator, n, n)), nn.Parameter(draw(generator, n))

    def forward(self, t, z):
        return z @ self.matrix.T + self.shift


def test_integrals_along_an_exponential():
    rate, z0 = 0.7, torch.tensor([[1.0, 2.0], [0.5, 0.0]], dtype=torch.float64)
    parts = (KineticEnergy(), JacobianNorm(), Divergence(), Divergence(samples=2))
    node = NeuralODE(lambda t, z: rate * z, solver=TIGHT, integrals=parts, with_solution=True)
    value, solution = node(z0, generator=torch.Generator().manual_seed(3))
    noise = torch.empty_like(z0).normal_(generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(value, math.exp(rate) * z0, rtol=1e-7, atol=0)
    growth = rate * (math.exp(2 * rate) - 1) / 2  # integral of (rate exp(rate t))^2
    kinetic, jacobian, trace, estimate = solution.aux["integrals"].unbind(-1)
    torch.testing.assert_close(kinetic, growth * z0.square().mean(-1), rtol=1e-7, atol=0)
    torch.testing.assert_close(jacobian, rate**2 * noise.square().mean(-1), rtol=1e-7, atol=0)
    torch.testing.assert_close(trace, torch.full_like(trace, 2 * rate), rtol=1e-9, atol=0)
    torch.testing.assert_close(estimate, trace, rtol=1e-9, atol=0)  # exact for a multiple of the identity


def test_integrals_of_a_batch_with_rows_dropped_are_those_of_each_row_alone(generator):
    speed = torch.logspace(0, 1.3, 6, dtype=torch.float64).unsqueeze(-1)
    z0, field = draw(generator, 6, 3), Affine(generator)
    node = NeuralODE(
        lambda t, z, x: x * torch.tanh(field(t, z)),
        solver=Tsit5(rtol=1e-7),
        integrals=(KineticEnergy(), Divergence()),
        with_solution=True,
    )
    together = node(z0, None, speed)[1].aux["integrals"]
    alone = [node(z0[i : i + 1], None, speed[i : i + 1])[1].aux["integrals"] for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


def test_regularisers_have_the_right_gradient(generator):
    field, z0, seed = Affine(generator, 2), draw(generator, 4, 2), 5
    parts = (KineticEnergy(), JacobianNorm())
    node = NeuralODE(lambda t, z: torch.tanh(field(t, z)), solver=RK4(num_steps=8), integrals=parts, with_solution=True)

    def penalty():
        return node(z0, generator=torch.Generator().manual_seed(seed))[1].aux["integrals"].sum()

    (grad,) = torch.autograd.grad(penalty(), field.matrix)
    direction, eps = draw(generator, 2, 2), 1e-5
    with torch.no_grad():
        field.matrix.add_(eps * direction)
        above = penalty()
        field.matrix.sub_(2 * eps * direction)
        below = penalty()
    torch.testing.assert_close((grad * direction).sum(), (above - below) / (2 * eps), rtol=1e-7, atol=1e-9)


def affine_log_density(field, x):
    """The normal that the affine flow makes of the standard one, at ``x``."""
    n = len(field.shift)
    block = torch.zeros(n + 1, n + 1, dtype=x.dtype)
    block[:n, :n], block[:n, n] = field.matrix, field.shift
    whole = torch.linalg.matrix_exp(block)
    spread, mean = whole[:n, :n], whole[:n, n]
    return torch.distributions.MultivariateNormal(mean, spread @ spread.T).log_prob(x)


def test_the_density_of_an_affine_flow_and_its_gradient(generator):
    field, x = Affine(generator), draw(generator, 5, 3)
    flow = ContinuousFlow(field, solver=TIGHT)
    found, expected = flow.log_prob(x), affine_log_density(field, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    ours = torch.autograd.grad(found.sum(), list(field.parameters()))
    theirs = torch.autograd.grad(expected.sum(), list(field.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_hutchinsons_estimate_has_the_right_mean_and_spread(generator):
    field, x = Affine(generator), draw(generator, 1, 3).expand(4000, 3)
    found = ContinuousFlow(field, trace=Divergence(samples=1), solver=RK4(num_steps=8)).log_prob(x, generator=generator)
    exact = affine_log_density(field, x[:1])
    off = field.matrix + field.matrix.T - 2 * torch.diag(field.matrix.diag())
    variance = 0.5 * off.square().sum().detach()  # of signs: half the squared off-diagonal entries of A + A^T
    error = float((found.mean() - exact).detach().abs())
    assert error < 5 * float((variance / 4000).sqrt())
    torch.testing.assert_close(found.var().detach(), variance, rtol=0.15, atol=0)
    assert found.unique().numel() > 1


def test_samples_of_a_flow_have_its_moments(generator):
    field = Affine(generator)
    draws = ContinuousFlow(field).sample(20_000, like=field.shift.detach(), generator=generator).detach()
    block = torch.zeros(4, 4, dtype=torch.float64)
    block[:3, :3], block[:3, 3] = field.matrix.detach(), field.shift.detach()
    whole = torch.linalg.matrix_exp(block)
    covariance = whole[:3, :3] @ whole[:3, :3].T
    spread = covariance.diag().max().sqrt()
    torch.testing.assert_close(draws.mean(0), whole[:3, 3], rtol=0, atol=float(0.04 * spread))
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=float(0.05 * spread**2))


def test_an_augmented_flow_reflects_a_line_and_a_plain_one_cannot(generator):
    turn = math.pi * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    z0 = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(-1)
    flip = AugmentedODE(NeuralODE(lambda t, z: z @ turn, solver=TIGHT), extra=1)
    torch.testing.assert_close(flip(z0), -z0, rtol=1e-7, atol=1e-8)
    assert AugmentedODE(flip.ode, extra=1, keep=True)(z0).shape == (5, 2)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    plain = NeuralODE(lambda t, z: 5 * net(z), solver=TIGHT)(z0)
    assert bool((plain.diff(dim=0) > 0).all())  # order on a line is kept by every flow
    with pytest.raises(ValueError, match="expected `extra` to be an int >= 0"):
        AugmentedODE(flip.ode, extra=-1)


def pendulum(q, p):
    return 0.5 * p.square().sum(-1) - q.cos().sum(-1)


def test_a_hamiltonian_layer_keeps_its_energy(generator):
    z0 = draw(generator, 6, 4)
    field = HamiltonianField(pendulum)
    z1 = NeuralODE(field, solver=TIGHT)(z0, torch.tensor([0.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(pendulum(z1[:, :2], z1[:, 2:]), pendulum(z0[:, :2], z0[:, 2:]), rtol=0, atol=1e-7)
    assert float((z1 - z0).norm()) > 1
    with pytest.raises(ValueError, match="expected positions and as many momenta in the last dimension, got 3"):
        NeuralODE(field)(z0[:, :3])


def test_gradients_reach_the_energys_parameters(generator):
    stiffness = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    field = HamiltonianField(lambda q, p: 0.5 * (p.square() + stiffness * q.square()).sum(-1))
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    NeuralODE(field, solver=TIGHT)(z0)[0, 0].backward()  # cos(sqrt(k))
    assert stiffness.grad is not None
    expected = -math.sin(math.sqrt(2)) / (2 * math.sqrt(2))
    torch.testing.assert_close(stiffness.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_leapfrog_lets_the_energy_oscillate_but_not_drift_and_runs_back_to_the_start(generator):
    z0, span = 0.5 * draw(generator, 3, 2), torch.tensor([0.0, 50.0], dtype=torch.float64)
    times = torch.linspace(0, 80, 81, dtype=torch.float64)
    energy = {}
    for solver in (Leapfrog(num_steps=640), RK4(num_steps=160)):  # as many evaluations
        z = NeuralODE(HamiltonianField(pendulum), solver=solver, trajectory=True, times=times)(z0)
        energy[type(solver)] = (pendulum(z[..., :1], z[..., 1:]) - pendulum(z0[:, :1], z0[:, 1:])).abs()
    late, early = energy[Leapfrog][-20:].max(), energy[Leapfrog][:20].max()
    assert float(late) < 1.5 * float(early) < 0.01
    assert float(energy[RK4][-20:].max()) > 3 * float(energy[RK4][:20].max())
    node = NeuralODE(HamiltonianField(pendulum), solver=Leapfrog(num_steps=100))
    torch.testing.assert_close(node(node(z0, span), span.flip(0)), z0, rtol=0, atol=1e-9)


def test_a_latent_ode_learns_irregular_series(generator):
    torch.manual_seed(0)
    count, phase = 48, torch.rand(48) * 6
    times = (torch.rand(12, count) * 0.2 + 0.02).cumsum(0)  # of each series' own
    values = torch.stack([torch.sin(2 * times + phase), torch.cos(2 * times + phase)], -1)
    mask = (torch.rand(12, count, 2) < 0.8).float()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

        def forward(self, t, z):
            return self.net(z)

    ode = NeuralODE(Field(), solver=Tsit5(rtol=1e-2, atol=1e-3), trajectory=True)
    model = LatentODE(ode, nn.Linear(4, 2), channels=2, latent=4, hidden=16, noise=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = -model.elbo(values, times, mask).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        changed = model(values + 9 * (1 - mask), times, mask)  # what was not seen is not read
        torch.testing.assert_close(changed, model(values, times, mask))
        mean, _ = model.encode(values, times, mask)
        torch.testing.assert_close(model(values, times, mask)[0], model.decoder(mean), rtol=1e-4, atol=1e-5)
        ahead = times[-1:] + torch.tensor([[0.1], [0.2]])
        assert model(values, times, mask, ahead).shape == (2, count, 2)
    with pytest.raises(ValueError, match="expected `ode` with trajectory=True"):
        LatentODE(NeuralODE(Field()), nn.Linear(4, 2), channels=2, latent=4)
