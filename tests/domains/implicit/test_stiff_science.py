"""Stiff kinetics against independent integrators and published figures: values, sensitivities, steady states."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sciopt import best_response
from sciopt.domains.implicit import brusselator, brusselator_line, enzyme_cascade, reactions, robertson, van_der_pol
from sciopt.inner import Newton
from sciopt.steppers import Kvaerno5, Rodas5P, steady_state


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def robertson_with_sensitivities(end: float) -> tuple[np.ndarray, np.ndarray]:
    """State and ``d y / d ln k`` at ``end`` by SciPy's Radau on the variational equations, independent of this package."""
    k = np.array([0.04, 3e7, 1e4])

    def jacobian(y):
        return np.array(
            [
                [-k[0], k[2] * y[2], k[2] * y[1]],
                [k[0], -2 * k[1] * y[1] - k[2] * y[2], -k[2] * y[1]],
                [0.0, 2 * k[1] * y[1], 0.0],
            ]
        )

    def field(t, z):
        y, s = z[:3], z[3:].reshape(3, 3)
        r = k * np.array([y[0], y[1] ** 2, y[1] * y[2]])
        by_rate = np.array([[-r[0], 0, r[2]], [r[0], -r[1], -r[2]], [0, r[1], 0]])
        return np.concatenate([[r[2] - r[0], r[0] - r[1] - r[2], r[1]], (jacobian(y) @ s + by_rate).ravel()])

    start = np.concatenate([[1.0, 0, 0], np.zeros(9)])
    solution = solve_ivp(field, (0, end), start, method="Radau", rtol=1e-9, atol=1e-14)
    return solution.y[:3, -1], solution.y[3:, -1].reshape(3, 3)


@pytest.mark.parametrize(
    "solver", [Rodas5P(rtol=1e-8, atol=1e-12), Kvaerno5(rtol=1e-7, atol=1e-11)], ids=["rodas", "kvaerno"]
)
def test_robertson_and_its_logarithmic_sensitivities(solver):
    """Six digits at t = 100, sensitivities to 1e-4: the bar; both are met with room."""
    value, slopes = robertson_with_sensitivities(100.0)
    example = robertson(log_rates=True).at(double(0.0, 100.0))
    k = example.outer_params.clone().requires_grad_()
    end = best_response(example.problem, k, init=example.init, solver=solver).value[-1]
    np.testing.assert_allclose(end.detach().numpy(), value, rtol=1e-7)
    ours = torch.stack([torch.autograd.grad(end[i], k, retain_graph=True)[0] for i in range(3)]).numpy()
    np.testing.assert_allclose(ours / value[:, None], slopes / value[:, None], rtol=1e-5, atol=1e-7)


def test_robertson_over_eleven_decades_with_its_gradient():
    """At late times y1 falls as 1/t: its sensitivities are those of ``y1 = (k2 k3' ... ) / t``, known in closed form."""
    example = robertson(log_rates=True).at(double(0.0, 4e11))
    k = example.outer_params.clone().requires_grad_()
    solution = best_response(example.problem, k, init=example.init, solver=Rodas5P(rtol=1e-6, atol=1e-14))
    end = solution.value[-1]
    # quasi-steady state for y3 = 1: k1 y1 = k3 y2 and dy1/dt = -k2 y2^2, so y1 = k3^2 / (k1^2 k2 t), y2 = k3 / (k1 k2 t)
    k1, k2, k3 = example.outer_params.exp()
    late = 4e11
    torch.testing.assert_close(end[0].detach(), k3**2 / (k1**2 * k2 * late), rtol=1e-3, atol=0)
    torch.testing.assert_close(end[1].detach(), k3 / (k1 * k2 * late), rtol=1e-3, atol=0)
    (slope,) = torch.autograd.grad(end[0].log(), k)
    torch.testing.assert_close(slope, double(-2.0, -1.0, 2.0), rtol=1e-3, atol=1e-3)
    assert (end.sum() - 1).abs() < 1e-12


def test_van_der_pol_against_radau():
    """Relaxation oscillation with mu = 1,000, away from the jumps."""
    times = np.array([0.0, 300.0, 700.0, 1200.0, 2000.0])

    def field(t, y):
        return [y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]]

    def jacobian(t, y):
        return [[0, 1], [-2000 * y[0] * y[1] - 1, 1000 * (1 - y[0] ** 2)]]

    truth = solve_ivp(field, (0, 2000), [2.0, 0.0], "Radau", times, rtol=1e-7, atol=1e-10, jac=jacobian).y.T
    example = van_der_pol().at(torch.tensor(times))
    for solver in (Rodas5P(rtol=1e-5, atol=1e-8), Kvaerno5(rtol=1e-5, atol=1e-8)):
        value = best_response(example.problem, example.outer_params, init=example.init, solver=solver).value.numpy()
        np.testing.assert_allclose(value[1:], truth[1:], rtol=3e-4)


def test_reaction_diffusion_against_radau():
    example = brusselator_line(20)
    phi = example.outer_params
    zero = torch.zeros((), dtype=torch.float64)

    def field(t, y):
        return example.problem.dynamics(zero, torch.tensor(y), phi).numpy()

    truth = solve_ivp(field, (0, 10), example.init.numpy(), "Radau", rtol=1e-6, atol=1e-8).y[:, -1]
    value = best_response(example.problem, phi, init=example.init, solver=Rodas5P()).value[-1]
    np.testing.assert_allclose(value.numpy(), truth, rtol=1e-4)


def test_the_cascade_is_the_switch_that_was_published():
    """Huang and Ferrell: Hill coefficients 4.9 of MAPK, 1.7 of MAPKK, 1.0 of MAPKKK; seven laws, one root per stimulus."""
    stimulus = torch.logspace(-6, -1, 200, dtype=torch.float64)
    example = enzyme_cascade(batch_ndim=1)
    network = example.network
    assert network is not None
    start = example.init.repeat(200, 1)
    start[:, network.species.index("E1")] = stimulus
    stiff = Rodas5P(rtol=1e-4, atol=1e-9)
    settled = best_response(example.at(double(0.0, 1e4)).problem, example.outer_params, init=start, solver=stiff).value[
        -1
    ]
    phi = {"outer_params": example.outer_params, "totals": network.totals(start)}
    root = steady_state(example.problem, network.conservation)
    state = best_response(root, phi, init=settled, solver=Newton(rtol=1e-10)).value
    torch.testing.assert_close(network.totals(state), phi["totals"], rtol=1e-11, atol=1e-15)
    assert (state - settled).abs().max() < 1e-7 and state.min() > -1e-12
    for name, published in (("Kpp", 4.9), ("KKpp", 1.7), ("KKK'", 1.0)):
        share = state[:, network.species.index(name)].numpy()
        low, high = (np.interp(level * share[-1], share, stimulus.log10().numpy()) for level in (0.1, 0.9))
        assert abs(np.log10(81) / (high - low) - published) < 0.1


def test_steady_state_gradients():
    """Enzyme with fast exchange: the root and its derivatives in closed form, totals included."""
    network = reactions("A <-> B", "B <-> C")
    problem = network.problem(double(0.0, 1.0))
    k, total = double(2.0, 3.0, 5.0, 0.5).requires_grad_(), double(1.5).requires_grad_()
    phi = {"outer_params": k, "totals": total}
    state = best_response(
        steady_state(problem, network.conservation), phi, init=double(1.0, 0.1, 0.2), solver=Newton()
    ).value
    weights = torch.stack([torch.ones_like(k[0]), k[0] / k[1], k[0] / k[1] * k[2] / k[3]])
    truth = total * weights / weights.sum()
    torch.testing.assert_close(state, truth)
    for i in range(3):
        ours = torch.autograd.grad(state[i], [k, total], retain_graph=True)
        exact = torch.autograd.grad(truth[i], [k, total], retain_graph=True)
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)
    # it is where a long run ends, and its gradient the limit of the run's
    far = network.problem(double(0.0, 200.0))
    start = torch.cat([total, torch.zeros(2, dtype=torch.float64)])
    run = best_response(far, k, init=start, solver=Rodas5P(rtol=1e-9, atol=1e-13)).value[-1]
    torch.testing.assert_close(run, truth, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(run[2], k)[0], torch.autograd.grad(truth[2], k)[0], rtol=1e-6, atol=1e-9
    )


def test_steady_state_without_laws_and_bad_laws():
    example = brusselator(1.0, 1.5)
    root = best_response(steady_state(example.problem), example.outer_params, init=example.init, solver=Newton())
    torch.testing.assert_close(root.value, double(1.0, 1.5))
    with pytest.raises(ValueError, match="independent rows"):
        steady_state(example.problem, torch.ones(2, 2))
    wrong = steady_state(example.problem, torch.ones(1, 3))
    with pytest.raises(ValueError, match="with 2 columns, got 3"):
        wrong.optimality(example.init, {"outer_params": example.outer_params, "totals": double(1.0)})
