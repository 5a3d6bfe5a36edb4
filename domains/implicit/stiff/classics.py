"""The stiff classics of the IVP test set: Robertson, HIRES, Oregonator, Van der Pol."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sciopt.domains.implicit.stiff.example import StiffExample
from sciopt.domains.implicit.stiff.mass_action import reactions
from sciopt.domains.implicit.stiff.statement import double, shared
from sciopt.problem import InitialValue

__all__ = ["hires", "oregonator", "robertson", "robertson_dae", "van_der_pol"]

TEST_SET = "Mazzia, Magherini. Test Set for Initial Value Problem Solvers, release 2.4. University of Bari, 2008."


def robertson(*, batch_ndim: int = 0, log_rates: bool = False) -> StiffExample:
    """Robertson's autocatalytic reaction: A -> B, 2 B -> B + C, B + C -> A + C over eleven decades of time.

    Args:
        batch_ndim: 1 for a batch of starts ``(batch, 3)`` or of rate constants ``(batch, 3)``.
        log_rates: True for natural logarithms of the rate constants as parameters.

    Returns:
        `StiffExample`: dimensionless, times 0 and 1e11, reference of the test set there.

    Example:
        >>> robertson().reference
        tensor([2.0833e-08, 8.3334e-14, 1.0000e+00], dtype=torch.float64)

    References:
        Robertson. "The solution of a set of reaction rate equations". In Numerical Analysis: An Introduction, 1966. Test
        set, problem ROBER.
    """
    network = reactions("A -> B", "2 B -> B + C", "B + C -> A + C")
    rates = double(0.04, 3e7, 1e4)
    return StiffExample(
        problem=network.problem(double(0.0, 1e11), batch_ndim=batch_ndim, log_rates=log_rates),
        init=double(1.0, 0.0, 0.0),
        outer_params=rates.log() if log_rates else rates,
        names=network.species,
        parameter_names=("k1", "k2", "k3"),
        units="dimensionless",
        source=f"Robertson 1966; reference: {TEST_SET} Problem ROBER.",
        reference=double(0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
        network=network,
    )


def robertson_dae(*, batch_ndim: int = 0) -> StiffExample:
    """Robertson's reaction as an index-1 differential-algebraic equation: C from the conservation of mass.

    Args:
        batch_ndim: 1 for a batch of starts ``(batch, 3)``, which must satisfy A + B + C = 1, or of rate constants.

    Returns:
        `StiffExample` with the mass matrix diag(1, 1, 0); times and reference of `robertson`.

    Example:
        >>> robertson_dae().problem.mass.diagonal().tolist()
        [1.0, 1.0, 0.0]

    References:
        Hindmarsh et al. "SUNDIALS". ACM Transactions on Mathematical Software 31, 2005 (example of IDA).
    """
    plain = robertson(batch_ndim=batch_ndim)
    network = plain.network
    assert network is not None

    def balanced(full: InitialValue) -> InitialValue:
        def dynamics(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
            rate = full.dynamics(t, y, phi)
            return torch.cat([rate[..., :2], y.sum(-1, keepdim=True) - 1], -1)

        def jacobian(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
            assert full.jacobian is not None
            matrix = full.jacobian(t, y, phi)
            return torch.cat([matrix[..., :2, :], torch.ones_like(matrix[..., :1, :])], -2)

        def restrict(rows: Tensor) -> InitialValue:
            assert full.restrict is not None
            return balanced(full.restrict(rows))

        mass = torch.diag(double(1.0, 1.0, 0.0))
        own = None if full.restrict is None else restrict
        return replace(full, dynamics=dynamics, jacobian=jacobian, mass=mass, restrict=own)

    return replace(plain, problem=balanced(plain.problem))


def hires(*, batch_ndim: int = 0) -> StiffExample:
    """HIRES: the high-irradiance response of photomorphogenesis by phytochrome, eight species.

    Args:
        batch_ndim: 1 for a batch of starts ``(batch, 8)`` or of rate constants ``(batch, 15)``.

    Returns:
        `StiffExample`: dimensionless, times 0 and 321.8122, reference of the test set there.

    Example:
        >>> hires().network.species
        ('Pr', 'Pfr', 'PrX', 'PfrX', 'PrY', 'PfrY', 'PfrYE', 'E')

    References:
        Schaefer. "A new approach to explain the high irradiance responses of photomorphogenesis on the basis of
        phytochrome". J. Math. Biology 2, 1975. Test set, problem HIRES.
    """
    table = (
        *(("0 -> Pr", 0.0007), ("Pr -> Pfr", 1.71), ("Pfr -> Pr", 0.43), ("PrX -> Pr", 8.32), ("Pfr -> PfrX", 8.32)),
        *(("PrX -> PfrX", 1.71), ("PfrX -> PrX", 0.43), ("PrY -> PrX", 0.035), ("PfrX -> PfrY", 0.69)),
        *(("PrY -> PfrY", 1.71), ("PfrY -> PrY", 0.43), ("PfrYE -> PrY + E", 0.43), ("PfrYE -> PfrY + E", 0.69)),
        *(("PfrYE -> E", 0.69), ("PfrY + E -> PfrYE", 280.0)),
    )
    species = ("Pr", "Pfr", "PrX", "PfrX", "PrY", "PfrY", "PfrYE", "E")
    network = reactions(*(text for text, _ in table), species=species)
    return StiffExample(
        problem=network.problem(double(0.0, 321.8122), batch_ndim=batch_ndim),
        init=double(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
        outer_params=double(*(rate for _, rate in table)),
        names=species,
        parameter_names=tuple(text for text, _ in table),
        units="dimensionless",
        source=f"Schaefer 1975; reference: {TEST_SET} Problem HIRES.",
        reference=double(
            *(0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2),
            *(0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2),
        ),
        network=network,
    )


def oregonator(*, batch_ndim: int = 0) -> StiffExample:
    """The Oregonator of Field and Noyes: relaxation oscillations of the Belousov-Zhabotinskii reaction.

    Args:
        batch_ndim: 1 for a batch of starts ``(batch, 3)`` or of parameters ``(batch, 3)``.

    Returns:
        `StiffExample`: dimensionless, times 0 and 360, reference of the test set there. Parameters s, q, w of
        ``y1' = s (y2 + y1 (1 - q y1 - y2))``, ``y2' = (y3 - (1 + y1) y2) / s``, ``y3' = w (y1 - y3)``.

    Example:
        >>> oregonator().outer_params
        tensor([7.7270e+01, 8.3750e-06, 1.6100e-01], dtype=torch.float64)

    References:
        Field, Noyes. "Oscillations in chemical systems IV". J. Chem. Physics 60, 1974. Test set, problem OREGO.
    """

    def dynamics(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        (s, q, w), (a, b, c) = phi.unbind(-1), y.unbind(-1)
        return torch.stack([s * (b + a * (1 - q * a - b)), (c - (1 + a) * b) / s, w * (a - c)], -1)

    def jacobian(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        (s, q, w), (a, b, _) = phi.unbind(-1), y.unbind(-1)
        s, q, w, zero = s + 0 * a, q + 0 * a, w + 0 * a, 0 * a
        top = torch.stack([s * (1 - 2 * q * a - b), s * (1 - a), zero], -1)
        middle = torch.stack([-b / s, -(1 + a) / s, 1 / s], -1)
        return torch.stack([top, middle, torch.stack([w, zero, -w], -1)], -2)

    return StiffExample(
        problem=shared(dynamics, jacobian, double(0.0, 360.0), batch_ndim),
        init=double(1.0, 2.0, 3.0),
        outer_params=double(77.27, 8.375e-6, 0.161),
        names=("HBrO2", "Br-", "Ce(IV)"),
        parameter_names=("s", "q", "w"),
        units="dimensionless",
        source=f"Field, Noyes 1974; reference: {TEST_SET} Problem OREGO.",
        reference=double(0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
    )


def van_der_pol(mu: float = 1000.0, *, batch_ndim: int = 0) -> StiffExample:
    """Van der Pol's oscillator ``x'' = mu (1 - x^2) x' - x`` as a first-order system; stiff for large mu.

    Args:
        mu: strength of the damping, the one parameter.
        batch_ndim: 1 for a batch of starts ``(batch, 2)`` or of parameters ``(batch, 1)``.

    Returns:
        `StiffExample`: dimensionless, times 0 and 2,000; the reference of the test set for mu = 1,000, else None.

    Example:
        >>> van_der_pol().reference
        tensor([ 1.7062e+00, -8.9281e-04], dtype=torch.float64)

    References:
        Van der Pol. "On relaxation oscillations". Philosophical Magazine 2, 1926. Test set, problem VDPOLM.
    """

    def dynamics(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        strength, (x, v) = phi[..., 0], y.unbind(-1)
        return torch.stack([v, strength * (1 - x * x) * v - x], -1)

    def jacobian(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        strength, (x, v) = phi[..., 0], y.unbind(-1)
        one = torch.ones_like(x)
        bottom = torch.stack([-2 * strength * x * v - 1, strength * (1 - x * x)], -1)
        return torch.stack([torch.stack([0 * one, one], -1), bottom], -2)

    known = double(0.1706167732170469e1, -0.8928097010248125e-3)
    return StiffExample(
        problem=shared(dynamics, jacobian, double(0.0, 2000.0), batch_ndim),
        init=double(2.0, 0.0),
        outer_params=double(mu),
        names=("x", "v"),
        parameter_names=("mu",),
        units="dimensionless",
        source=f"Van der Pol 1926; reference: {TEST_SET} Problem VDPOLM.",
        reference=known if mu == 1000.0 else None,
    )
