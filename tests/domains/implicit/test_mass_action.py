"""Mass-action networks: known rates, exact Jacobians, conservation laws, bad input."""

import pytest
import torch
from torch.func import jacrev

from sciopt.domains.implicit.stiff import MassAction, reactions

ZERO = torch.zeros(())


@pytest.fixture
def robertson() -> MassAction:
    return reactions("A -> B", "2 B -> B + C", "B + C -> A + C")


def test_robertson_by_hand(robertson):
    k = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64)
    y = torch.tensor([0.7, 9e-6, 0.3], dtype=torch.float64)
    r1, r2, r3 = 0.04 * y[0], 3e7 * y[1] ** 2, 1e4 * y[1] * y[2]
    torch.testing.assert_close(robertson.dynamics(ZERO, y, k), torch.stack([-r1 + r3, r1 - r2 - r3, r2]))
    assert robertson.conservation.tolist() == [[1, 1, 1]]
    torch.testing.assert_close(robertson.totals(y), y.sum(-1, keepdim=True))


@pytest.mark.parametrize("shared", [True, False])
def test_jacobian_is_the_derivative(generator, shared):
    network = reactions("3 A + B <-> C", "0 -> A", "C -> ", "2 C + A -> 2 B", "A + 2 A -> 0")
    y = torch.rand(4, 3, dtype=torch.float64, generator=generator)
    k = torch.rand(6 if shared else (4, 6), dtype=torch.float64, generator=generator)
    for i in range(4):
        own = k if shared else k[i]
        truth = jacrev(lambda c, own=own: network.dynamics(ZERO, c, own))(y[i])
        torch.testing.assert_close(network.jacobian(ZERO, y, k)[i], truth, rtol=1e-13, atol=1e-14)
        single = network.dynamics(ZERO, y[i], own)
        torch.testing.assert_close(network.dynamics(ZERO, y, k)[i], single, rtol=1e-13, atol=1e-14)


def test_inflow_alone():
    network = reactions("0 -> A")
    y = torch.zeros(5, 1)
    assert network.dynamics(ZERO, y, torch.tensor([2.0])).tolist() == [[2.0]] * 5
    assert network.jacobian(ZERO, y, torch.tensor([2.0])).shape == (5, 1, 1)
    assert network.conservation.numel() == 0 and network.totals(y).shape == (5, 0)


def test_enzyme_laws_are_orthogonal_to_every_reaction():
    network = reactions("E + S <-> ES", "ES -> E + P", "P + I <-> PI")
    laws = network.conservation
    assert laws.shape == (3, 6)
    assert (network.stoichiometry @ laws.mT).abs().max() == 0
    assert torch.linalg.matrix_rank(laws) == 3


def test_reading_text():
    network = reactions("H+ + OH- <=> H2O", "2H2O -> H3O+ + OH-", "A+B->2*C")
    assert network.species == ("H+", "OH-", "H2O", "H3O+", "A", "B", "C")
    assert network.reactants[2] == (0, 0, 2, 0, 0, 0, 0) and network.products[3][-1] == 2
    assert reactions("A -> B", species=("B", "A")).reactants == ((0, 1),)
    assert reactions("A -> B") == reactions("A -> B")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reactions(), "at least one reaction"),
        (lambda: reactions("A + B"), "one arrow"),
        (lambda: reactions("A -> B -> C"), "one arrow"),
        (lambda: reactions("A & B -> C"), "terms like 'A' or '2 B'"),
        (lambda: reactions("A -> B", species=("A",)), "to name each of"),
        (lambda: MassAction(("A",), ((1, 2),), ((0,),)), "rows of 1 whole numbers"),
        (lambda: MassAction(("A",), ((1,),), ((0,), (1,))), "as many rows"),
        (lambda: MassAction(("A",), ((-1,),), ((0,),)), "whole numbers >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
