"""How a finished design fares: its compliances under scenarios it was not made for, and what foresight was worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import SolveError, Status, best_response
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.settling import settle
from sciopt.domains.topology.uncertainty.problem import StochasticProblem
from sciopt.domains.topology.uncertainty.scenarios import Scenarios
from sciopt.outer import CVaR, Expectation

__all__ = ["ScenarioStatistics", "StochasticValue", "assess", "compare", "mean_value_problem", "wait_and_see"]

AT_ONCE = 2_000_000  # unknowns of all scenarios that settle in one batch
UNSUPPORTED = 1e3  # times the compliance of a solid domain: the load rests on void


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ScenarioStatistics:
    """The compliances of one design.

    The standard errors are those of independent scenarios of equal weight, as drawn by ``Sampling(quasi=False)``.

    Args:
        values: compliance of each scenario ``(S,)``, force times length.
        weights: probabilities ``(S,)``.
        level: of the CVaR.
        unsupported: scenarios whose compliance is a thousand times that of a solid domain or more.

    Example:
        >>> seen = ScenarioStatistics(values=torch.tensor([1.0, 2.0, 6.0, 3.0]), weights=torch.full((4,), 0.25), level=0.5)
        >>> seen.expected, seen.cvar, seen.worst, round(seen.standard_error, 3)
        (3.0, 4.5, 6.0, 1.08)
    """

    values: Tensor
    weights: Tensor
    level: float = 0.9
    unsupported: int = 0

    @property
    def expected(self) -> float:
        """The mean."""
        return float(Expectation()(self.values, self.weights))

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return float((self.weights * (self.values - self.expected).square()).sum().sqrt())

    @property
    def standard_error(self) -> float:
        """Of `expected`; NaN for a single scenario."""
        return standard_error(self.values)

    @property
    def cvar(self) -> float:
        """The mean of the worst ``1 - level``."""
        return float(CVaR(level=self.level)(self.values, self.weights))

    @property
    def cvar_error(self) -> float:
        """Standard error of `cvar`, for many scenarios; NaN for a single one."""
        quantile = torch.quantile(self.values, self.level)
        return standard_error((self.values - quantile).clamp(min=0) / (1 - self.level))

    @property
    def worst(self) -> float:
        """The largest compliance."""
        return float(self.values.max())

    @property
    def worst_scenario(self) -> int:
        """Its number."""
        return int(self.values.argmax())


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values; NaN for a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def assess(
    base: ComplianceProblem,
    density: Tensor,
    scenarios: Scenarios,
    *,
    level: float = 0.9,
    multigrid: bool | None = None,
) -> ScenarioStatistics:
    """Compliances of a design under scenarios, in as many batches as memory asks for; no derivatives.

    Args:
        base: the problem.
        density: design, as ``base`` takes it.
        scenarios: preferably others than those it was made for.
        level: of the CVaR.
        multigrid: as for `settle`.

    Raises:
        SolveError: when a structure does not settle; loads that are cut off are counted instead.

    Example:
        >>> from sciopt.domains.topology import Grid, bridge
        >>> from sciopt.domains.topology.uncertainty import RandomDirection, Sampling
        >>> base = ComplianceProblem(structure=bridge(Grid(nx=8, ny=4)), volume_fraction=0.5)
        >>> many = Sampling(count=1000, quasi=False)
        >>> unseen = many.draw(RandomDirection(), base.structure, torch.Generator().manual_seed(1))
        >>> seen = assess(base, base.start(), unseen)
        >>> seen.expected < seen.cvar < seen.worst, seen.unsupported
        (True, 0)
    """
    base.check(density)
    values = compliances(base, density, scenarios, multigrid)
    if scenarios.coefficients is None:
        loads = Scenarios.of_loads(base.structure.load[None])
    else:
        loads = Scenarios(basis=scenarios.basis, coefficients=scenarios.coefficients)
    solid = compliances(base, torch.ones_like(density), loads, multigrid)
    unsupported = int((values >= UNSUPPORTED * solid).logical_and(solid > 0).sum())
    return ScenarioStatistics(
        values=values, weights=scenarios.probabilities.to(values), level=level, unsupported=unsupported
    )


def compliances(base: ComplianceProblem, density: Tensor, scenarios: Scenarios, multigrid: bool | None) -> Tensor:
    """Compliance of each scenario ``(S,)``."""
    unknowns = base.structure.free.size
    rows = scenarios.count if scenarios.stiffness is None else max(1, AT_ONCE // unknowns)
    out = []
    with torch.no_grad():
        for begin in range(0, scenarios.count, rows):
            part = StochasticProblem(base=base, scenarios=scenarios.rows(slice(begin, begin + rows)))
            solver = settle(part.energy, multigrid=multigrid).solver
            state = best_response(part.bilevel.inner, density, init=part.rest(density), solver=solver, throw=False)
            code = state.status_code
            cut_off = (code == int(Status.SINGULAR)) & ("advice" in state.aux)  # counted as not supported, below
            if bool(((code != int(Status.CONVERGED)) & ~cut_off).any()):
                raise SolveError(type(solver).__name__, state)
            out.append(part.values(state.value, density))
    return torch.cat(out)


def mean_value_problem(base: ComplianceProblem, scenarios: Scenarios) -> StochasticProblem:
    """The deterministic problem of the expected load and the expected stiffness.

    Raises:
        ValueError: when the expected load is zero: there is no such problem then.

    Example:
        >>> from sciopt.domains.topology import Grid, bridge
        >>> base = ComplianceProblem(structure=bridge(Grid(nx=4, ny=2)), volume_fraction=0.5)
        >>> mean_value_problem(base, Scenarios(stiffness=torch.tensor([0.5, 1.5])[:, None, None])).scenarios.stiffness.item()
        1.0
    """
    return StochasticProblem(base=base, scenarios=scenarios.mean())


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StochasticValue:
    """What it was worth to design for all scenarios instead of their mean.

    Args:
        stochastic: how the design for the scenarios fares.
        deterministic: how the design for the mean fares under the same scenarios.

    Example:
        >>> ours, theirs = (ScenarioStatistics(values=torch.tensor(v), weights=torch.full((2,), 0.5))
        ...                 for v in ([2.0, 3.0], [1.0, 9.0]))
        >>> StochasticValue(stochastic=ours, deterministic=theirs).value
        2.5

    References:
        Birge, Louveaux. "Introduction to Stochastic Programming", 2nd ed., 2011. Section 4.2: VSS = EEV - RP.
    """

    stochastic: ScenarioStatistics
    deterministic: ScenarioStatistics

    @property
    def value(self) -> float:
        """Value of the stochastic solution: expected compliance of the deterministic design minus the other's."""
        return self.deterministic.expected - self.stochastic.expected

    @property
    def standard_error(self) -> float:
        """Of `value`, from the differences scenario by scenario."""
        return standard_error(self.deterministic.values - self.stochastic.values)

    @property
    def cvar_value(self) -> float:
        """The same for the CVaR."""
        return self.deterministic.cvar - self.stochastic.cvar

    @property
    def worst_value(self) -> float:
        """The same for the worst scenario."""
        return self.deterministic.worst - self.stochastic.worst

    def warnings(self) -> list[str]:
        """Sentences for the reader about what is not as it should be."""
        out = []
        total = len(self.stochastic.values)
        for name, seen in (("mean-value", self.deterministic), ("stochastic", self.stochastic)):
            if seen.unsupported:
                out.append(
                    f"The {name} design does not support {seen.unsupported} of {total} scenarios: their compliances are at "
                    f"least {UNSUPPORTED:g} times those of a solid domain and rest on the stiffness of the void. "
                    "Differences of such numbers say that a design fails, not by how much."
                )
        if self.value < -2 * self.standard_error:
            out.append(
                f"The value of the stochastic solution is negative ({self.value:.4g}): the problem is not convex and the "
                "stochastic design is a worse local optimum, or it minimises another risk than the expectation, or its "
                "scenarios are too few. Take more of them, or another filter radius."
            )
        return out


def compare(
    base: ComplianceProblem,
    scenarios: Scenarios,
    *,
    stochastic: Tensor,
    deterministic: Tensor,
    level: float = 0.9,
    multigrid: bool | None = None,
) -> StochasticValue:
    """Assess two designs under the same held-out scenarios.

    Args:
        base: the problem.
        scenarios: others than those the designs were made for.
        stochastic: design for the scenarios.
        deterministic: design for their mean (see `mean_value_problem`).
        level: of the CVaR.
        multigrid: as for `settle`.

    Example:
        >>> from sciopt.domains.topology import Grid, bridge
        >>> from sciopt.domains.topology.uncertainty import RandomDirection, Sampling
        >>> base = ComplianceProblem(structure=bridge(Grid(nx=8, ny=4)), volume_fraction=0.5)
        >>> unseen = Sampling(count=10, quasi=False).draw(RandomDirection(), base.structure, torch.Generator())
        >>> compare(base, unseen, stochastic=base.start(), deterministic=base.start()).value
        0.0
    """
    ours, theirs = (
        assess(base, density, scenarios, level=level, multigrid=multigrid) for density in (stochastic, deterministic)
    )
    return StochasticValue(stochastic=ours, deterministic=theirs)


def wait_and_see(
    base: ComplianceProblem, scenarios: Scenarios, design: Callable[[StochasticProblem], Tensor]
) -> ScenarioStatistics:
    """Compliances if each scenario had a design of its own: a bound, up to local optima, of what any design reaches.

    The expected value of perfect information is the expected compliance of a design under these scenarios minus the one
    returned here. Costs one optimization per scenario.

    Args:
        base: the problem.
        scenarios: a few scenarios.
        design: the optimal design of a problem of one scenario.

    Example:
        >>> from sciopt.domains.topology import Grid, bridge
        >>> base = ComplianceProblem(structure=bridge(Grid(nx=4, ny=2)), volume_fraction=0.5)
        >>> made = Scenarios.of_loads(base.structure.load[None] * [[1.0], [2.0]])
        >>> seen = wait_and_see(base, made, lambda problem: problem.start())  # no optimization at all
        >>> round((seen.values[1] / seen.values[0]).item(), 6)
        4.0

    References:
        Birge, Louveaux. "Introduction to Stochastic Programming", 2nd ed., 2011. Section 4.1: EVPI = RP - WS.
    """
    values = []
    for s in range(scenarios.count):
        alone = scenarios.rows(slice(s, s + 1))
        values.append(compliances(base, design(StochasticProblem(base=base, scenarios=alone)), alone, None))
    found = torch.cat(values)
    return ScenarioStatistics(values=found, weights=scenarios.probabilities.to(found))
