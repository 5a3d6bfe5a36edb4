"""Kinetic experiments: what was measured, how well, and the model that predicts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import best_response
from sciopt.domains.implicit.stiff import MassAction
from sciopt.inner.abstract import AbstractSolver
from sciopt.problem import InitialValue
from sciopt.steppers import Rodas5P

__all__ = ["Experiments", "KineticModel", "Noise", "mass_action_model", "simulate"]


@final
@dataclass(frozen=True, kw_only=True)
class Noise:
    """Independent Gaussian errors with standard deviation ``sqrt(absolute^2 + (relative value)^2)``.

    Args:
        absolute: in the units of the data, >= 0; a number, or one for each observable ``(m,)``.
        relative: unitless, >= 0.

    Raises:
        ValueError: when both are zero or one is negative.

    Example:
        >>> Noise(absolute=0.3, relative=0.1).sigma(torch.tensor([4.0]))
        tensor([0.5000])
    """

    absolute: float | Tensor = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        least = float(torch.as_tensor(self.absolute).min())
        if least < 0 or self.relative < 0 or least + self.relative <= 0:
            raise ValueError(
                f"Noise: expected `absolute` and `relative` >= 0 and not both zero, got {self.absolute!r} and "
                f"{self.relative!r}. Say how large the errors are."
            )

    def sigma(self, values: Tensor) -> Tensor:
        """Standard errors of these values, ``(..., m)``."""
        floor = torch.as_tensor(self.absolute, dtype=values.dtype, device=values.device)
        return (floor**2 + (self.relative * values) ** 2).sqrt().expand(values.shape)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class KineticModel:
    """Predictions of a reaction mechanism for given logarithms of its rate constants.

    Args:
        statement: ``times -> InitialValue`` of a batch (``batch_ndim=1``) whose outer parameters are the natural logarithms
            of the rate constants ``(r,)``, shared by the batch, or ``(e, r)``.
        parameters: names of the r rate constants.
        observables: names of the m measured quantities.
        observe: concentrations ``(..., n)`` to measured quantities ``(..., m)``.
        solver: a stepper; its tolerances should be far below the noise.

    Example:
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> model = mass_action_model(reactions("A -> B"), observed=("B",))
        >>> start, times = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> model.predict(torch.zeros(1, dtype=torch.float64), start, times).round(decimals=3)  # 1 - exp(-1)
        tensor([[[0.6320]]], dtype=torch.float64)
    """

    statement: Callable[[Tensor], InitialValue]
    parameters: tuple[str, ...]
    observables: tuple[str, ...]
    observe: Callable[[Tensor], Tensor]
    solver: AbstractSolver

    def states(self, log_rates: Tensor, init: Tensor, times: Tensor) -> Tensor:
        """Concentrations ``(k, e, n)`` at all but the first of the times, differentiable in everything.

        Args:
            log_rates: ``(r,)`` or ``(e, r)``.
            init: concentrations at the first time ``(e, n)``.
            times: ``(k + 1,)`` or ``(k + 1, e)``, the start first.
        """
        return best_response(self.statement(times), log_rates, init=init, solver=self.solver).value[1:]

    def predict(self, log_rates: Tensor, init: Tensor, times: Tensor) -> Tensor:
        """Measured quantities ``(k, e, m)`` at all but the first of the times; arguments as for `states`."""
        return self.observe(self.states(log_rates, init, times))


def mass_action_model(
    network: MassAction,
    *,
    observed: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
    solver: AbstractSolver | None = None,
) -> KineticModel:
    """The model of a mass-action network of which some species are measured.

    Args:
        network: the reactions.
        observed: names of the measured species; None: all.
        parameters: names of the rate constants; None: k1, k2, ...
        solver: None: ``Rodas5P(rtol=1e-6, atol=1e-10)``, for noise of a percent and concentrations near one.

    Returns:
        `KineticModel`.

    Raises:
        ValueError: for a species that is not in the network, or a wrong number of names.

    Example:
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> mass_action_model(reactions("A <-> B")).parameters
        ('k1', 'k2')
    """
    names = network.species if observed is None else tuple(observed)
    unknown = [name for name in names if name not in network.species]
    if unknown or not names:
        raise ValueError(
            f"mass_action_model: expected `observed` among {list(network.species)}, got {list(names)}. Name species of the "
            "network."
        )
    count = len(network.reactants)
    labels = tuple(f"k{i + 1}" for i in range(count)) if parameters is None else tuple(parameters)
    if len(labels) != count:
        raise ValueError(
            f"mass_action_model: expected {count} names in `parameters`, got {len(labels)}. Give one for each reaction."
        )
    places = [network.species.index(name) for name in names]
    return KineticModel(
        statement=lambda times: network.problem(times, batch_ndim=1, log_rates=True),
        parameters=labels,
        observables=names,
        observe=lambda y: y[..., places],
        solver=Rodas5P(rtol=1e-6, atol=1e-10) if solver is None else solver,
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Experiments:
    """Measured courses of e experiments that share their times, or have their own.

    Args:
        init: concentrations at the first time ``(e, n)``, known exactly.
        times: ``(k + 1,)`` or ``(k + 1, e)``, growing, the start first.
        data: measurements at all but the first time ``(k, e, m)``; NaN where one is missing.
        noise: their errors.

    Raises:
        ValueError: for shapes that do not fit, or no measurement at all.

    Example:
        >>> start, times = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0, 2.0])
        >>> Experiments(init=start, times=times, data=torch.ones(2, 1, 1), noise=Noise(absolute=0.1)).count
        2
    """

    init: Tensor
    times: Tensor
    data: Tensor
    noise: Noise

    def __post_init__(self) -> None:
        count = self.init.shape[0] if self.init.ndim == 2 else -1
        ok = self.data.ndim == 3 and self.data.shape[:2] == (len(self.times) - 1, count)
        if not ok or (self.times.ndim == 2 and self.times.shape[1] != count):
            raise ValueError(
                f"Experiments: expected `init` (e, n), `times` (k + 1,) or (k + 1, e) and `data` (k, e, m), got "
                f"{tuple(self.init.shape)}, {tuple(self.times.shape)} and {tuple(self.data.shape)}. Put the start first among "
                "the times; nothing is measured there."
            )
        if self.count == 0:
            raise ValueError("Experiments: expected measurements in `data`, got none but NaN. Pass what was measured.")

    @property
    def measured(self) -> Tensor:
        """Which entries of the data are there, ``(k, e, m)``."""
        return torch.isfinite(self.data)

    @property
    def count(self) -> int:
        """Number of measurements."""
        return int(self.measured.sum())

    def residuals(self, predicted: Tensor) -> Tensor:
        """``(predicted - data) / sigma``, flat, zero where nothing was measured; sigma is that of the data."""
        there = self.measured
        data = torch.where(there, self.data, 0.0)
        sigma = torch.where(there, self.noise.sigma(data), 1.0)
        return torch.where(there, (predicted - data) / sigma, 0.0).reshape(-1)


def simulate(
    model: KineticModel, log_rates: Tensor, init: Tensor, times: Tensor, noise: Noise, generator: torch.Generator
) -> Experiments:
    """Experiments with data made by the model and random errors.

    Args:
        model: the mechanism.
        log_rates: true logarithms of the rate constants ``(r,)``.
        init: ``(e, n)``.
        times: ``(k + 1,)`` or ``(k + 1, e)``.
        noise: the errors.
        generator: source of randomness, on the CPU.

    Example:
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> model, start = mass_action_model(reactions("A -> B")), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> times, gen = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> simulate(model, torch.zeros(1, dtype=torch.float64), start, times, Noise(absolute=0.01), gen).count
        2
    """
    with torch.no_grad():
        exact = model.predict(log_rates, init, times)
    errors = torch.randn(exact.shape, dtype=exact.dtype, generator=generator).to(exact.device)
    return Experiments(init=init, times=times, data=exact + noise.sigma(exact) * errors, noise=noise)
