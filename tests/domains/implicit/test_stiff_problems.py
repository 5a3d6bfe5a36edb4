"""The ready stiff problems: their formulas against the written-out ones, exact Jacobians, laws, batches."""

import numpy as np
import pytest
import torch
from torch.func import jacrev

from sciopt import best_response
from sciopt.domains.implicit import (
    Speciation,
    acid_base,
    brusselator,
    brusselator_line,
    enzyme_cascade,
    hires,
    oregonator,
    robertson,
    robertson_dae,
    van_der_pol,
)
from sciopt.inner import Newton

MADE = {
    "robertson": robertson,
    "robertson_dae": robertson_dae,
    "hires": hires,
    "oregonator": oregonator,
    "van_der_pol": van_der_pol,
    "brusselator": brusselator,
    "brusselator_line": lambda **more: brusselator_line(5, **more),
    "enzyme_cascade": enzyme_cascade,
}
ZERO = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("name", MADE)
def test_jacobians_and_batches(name, generator):
    make = MADE[name]
    example, batched = make(), make(batch_ndim=1)
    y = torch.rand(3, len(example.init), dtype=torch.float64, generator=generator) + 0.1
    phi = example.outer_params * (
        1 + 0.1 * torch.rand(3, len(example.outer_params), dtype=torch.float64, generator=generator)
    )
    assert len(example.names) == len(example.init) and len(example.parameter_names) == len(example.outer_params)
    time = torch.zeros(3, 1, dtype=torch.float64)
    whole = batched.problem
    assert whole.jacobian is not None and whole.restrict is not None and example.problem.jacobian is not None
    rows = torch.tensor([2, 0])
    some = whole.restrict(rows).restrict(torch.tensor([1]))
    torch.testing.assert_close(some.dynamics(time[:1], y[:1], phi), whole.dynamics(time, y, phi)[:1])
    for i in range(3):
        truth = jacrev(lambda v, i=i: example.problem.dynamics(ZERO, v, phi[i]))(y[i])
        scale = truth.abs().max()
        torch.testing.assert_close(example.problem.jacobian(ZERO, y[i], phi[i]), truth, rtol=1e-12, atol=1e-13 * scale)
        torch.testing.assert_close(whole.jacobian(time, y, phi)[i], truth, rtol=1e-12, atol=1e-13 * scale)
        torch.testing.assert_close(whole.jacobian(time, y, phi[i])[i], truth, rtol=1e-12, atol=1e-13 * scale)


def test_hires_as_the_test_set_writes_it():
    y = torch.tensor(np.linspace(0.1, 0.8, 8))
    a = y.tolist()
    truth = [
        -1.71 * a[0] + 0.43 * a[1] + 8.32 * a[2] + 0.0007,
        1.71 * a[0] - 8.75 * a[1],
        -10.03 * a[2] + 0.43 * a[3] + 0.035 * a[4],
        8.32 * a[1] + 1.71 * a[2] - 1.12 * a[3],
        -1.745 * a[4] + 0.43 * a[5] + 0.43 * a[6],
        -280 * a[5] * a[7] + 0.69 * a[3] + 1.71 * a[4] - 0.43 * a[5] + 0.69 * a[6],
        280 * a[5] * a[7] - 1.81 * a[6],
        -280 * a[5] * a[7] + 1.81 * a[6],
    ]
    example = hires()
    value = example.problem.dynamics(ZERO, y, example.outer_params)
    torch.testing.assert_close(value, torch.tensor(truth, dtype=torch.float64), rtol=1e-13, atol=1e-14)


def test_brusselator_loses_stability_where_the_books_say():
    for a in (0.5, 1.0, 2.0):
        for b, stable in ((0.99 * (1 + a * a), True), (1.01 * (1 + a * a), False)):
            example = brusselator(a, b)
            state = torch.tensor([a, b / a], dtype=torch.float64)
            assert example.problem.dynamics(ZERO, state, example.outer_params).abs().max() < 1e-12
            assert example.problem.jacobian is not None
            growth = torch.linalg.eigvals(example.problem.jacobian(ZERO, state, example.outer_params)).real.max()
            assert (growth < 0) == stable


def test_brusselator_line_tends_to_the_equation(generator):
    errors = []
    for cells in (19, 39):  # u = 1 + sin(2 pi x), v = 3: everything is known
        example = brusselator_line(cells)
        x = torch.arange(1, cells + 1, dtype=torch.float64) / (cells + 1)
        u = example.init[:cells]
        rate = example.problem.dynamics(ZERO, example.init, example.outer_params)[:cells]
        truth = 1 + 3 * u * u - 4 * u - 0.02 * (2 * torch.pi) ** 2 * torch.sin(2 * torch.pi * x)
        errors.append((rate - truth).abs().max().item())
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_acetic_acid_against_the_cubic():
    constant, water, amount = 10**-4.756, 10**-13.995, 0.01
    acetic, phi = acid_base({"acetate": (amount, (4.756,))})
    root = best_response(acetic.problem(), phi, init=acetic.start(phi), solver=Newton(rtol=1e-12))
    # h^3 + K h^2 - (K c + K_w) h - K K_w = 0
    cubic = np.roots([1, constant, -(constant * amount + water), -constant * water])
    truth = -np.log10(max(r.real for r in cubic if abs(r.imag) < 1e-12))
    assert abs(acetic.ph(root.value).item() - truth) < 1e-9


def test_phosphate_titration_and_its_slope():
    constants = (2.148, 7.198, 12.35)
    phosphate, phi = acid_base({"phosphate": (0.1, constants)})
    assert phosphate.species[2:] == ("phosphate", "H phosphate", "H2 phosphate", "H3 phosphate")
    base = torch.tensor([0.0, 0.05, 0.15, 0.25], dtype=torch.float64, requires_grad=True)
    totals = torch.stack([phi["totals"][0] - base, phi["totals"][1].expand(4)], -1)
    batch = {"log10_beta": phi["log10_beta"], "totals": totals}
    root = best_response(phosphate.problem(batch_ndim=1), batch, init=phosphate.start(batch), solver=Newton(rtol=1e-12))
    ph = phosphate.ph(root.value)
    # at the half-equivalence points the pH is near the pK_a; the first is shifted by the free protons
    assert (ph[2] - constants[1]).abs() < 0.02 and 1.5 < ph[0] < 1.7 and 2.1 < ph[1] < 2.5
    amount = phosphate.concentrations(root.value, batch)
    torch.testing.assert_close(amount[:, 2:].sum(-1), torch.full((4,), 0.1, dtype=torch.float64), rtol=1e-10, atol=0)
    charge = amount @ torch.tensor([1.0, -1, -3, -2, -1, 0], dtype=torch.float64) + base
    assert charge.abs().max() < 1e-11
    # buffer capacity: d base / d pH = ln 10 (h + oh + sum over pairs), by the derivative of the charge balance
    (slope,) = torch.autograd.grad(ph.sum(), base)
    h, oh, a, ha, h2a, h3a = amount.detach().unbind(-1)
    number = (ha + 2 * h2a + 3 * h3a) / 0.1
    spread = (ha + 4 * h2a + 9 * h3a) / 0.1 - number**2
    capacity = np.log(10) * (h + oh + 0.1 * spread)
    torch.testing.assert_close(slope, 1 / capacity, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: acid_base({"a": (-1.0, (4.0,))}), "a concentration >= 0"),
        (lambda: acid_base({"a": (1.0, ())}), "at least one pK_a"),
        (lambda: Speciation(("H+",), ("H+",), ((1, 2),)), "1 rows of 1 numbers"),
        (lambda: brusselator_line(1), "`cells` to be an int >= 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
