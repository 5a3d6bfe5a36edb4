"""Loads that no material joins to the supports: void carries them, and what it gives is no compliance."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sciopt.solution import Solution, Status

__all__ = ["Anchored", "refuse_cut_off"]

VOID = 1e-8  # an element is void below this share of the largest modulus: SIMP's 1e-9, and densities up to 0.002
CARRIED = 0.1  # share of the work that void may take before material is looked for
UNSURE = (
    1e-3  # the same where the residual is above the tolerance: steps that were cut short have not reached the void yet
)
LOADED = 1e-6  # of the largest force: what counts as a loaded unknown


@runtime_checkable
class Anchored(Protocol):
    """An energy of elements on a grid that knows which unknowns a given material joins to what holds them."""

    @property
    def load(self) -> Tensor:
        """Right-hand side ``(n,)``, or one per load case ``(cases, n)``."""
        ...

    def held(self, material: np.ndarray, loaded: np.ndarray) -> np.ndarray:
        """Which free unknowns ``(n,)`` lie on ``material`` (bool, ``(elements,)``) that is held; only islands of material
        with unknowns in ``loaded`` (bool, ``(n,)``) need be looked at."""
        ...

    def stored(self, moduli: Tensor, unknowns: Tensor) -> Tensor:
        """Energy ``(*batch,)`` in elements of these moduli ``(*batch, elements)`` at ``(*batch, n)``."""
        ...

    def place_of(self, unknown: int) -> str:
        """Where a free unknown is, for messages."""
        ...


def refuse_cut_off(energy: object, solution: Solution, force: Tensor, moduli: Tensor, tolerance: Tensor) -> Solution:
    """The solution, with status `Status.SINGULAR` and a word on it for loads that are cut off from the supports.

    A load of which void stores the work is looked at: it is cut off when none of it acts on material that is held, or
    when some of it does not and the residual is above the tolerance, as rounding of huge displacements leaves it. Elements
    join across sides; a corner is a hinge. Costs one pass over the elements where there is void, and a look for islands
    where it carries a load.

    Args:
        energy: the structure; where it is not `Anchored`, the solution is returned as it is.
        solution: of a solve, with flat ``value`` ``(*batch, n)``.
        force: right-hand sides ``(*batch, n)``.
        moduli: of each element ``(*batch, elements)``, or with ones in the place of trailing dimensions of the batch.
        tolerance: residual ``(*batch,)`` at which the solve is as good as asked for.

    Returns:
        The solution itself, or a copy with other statuses and ``aux["advice"]``.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.domains.topology import SIMP, DirectEquilibrium, ElasticEnergy, FactorCache, Grid, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> gap = torch.ones(2, 4, dtype=torch.float64)
        >>> gap[:, 1] = 0.0
        >>> solution = best_response(Minimize(energy), gap, init=torch.zeros(energy.size, dtype=torch.float64),
        ...                          solver=DirectEquilibrium(cache=FactorCache(energy)), throw=False)
        >>> solution.status.name, solution.aux["advice"][:60]
        ('SINGULAR', 'The load at (4, 1) is cut off: no near-solid elements join i')
    """
    if not isinstance(energy, Anchored):
        return solution
    largest = moduli.amax(-1, keepdim=True)
    void = torch.where(moduli < VOID * largest, moduli, 0.0)
    if not bool(void.any()):
        return solution
    value = solution.value.double()  # rounding drowns the strains of a huge displacement in float32
    work = (force * value).sum(-1).abs()
    carried = 2 * energy.stored(void.double(), value)
    loose = solution.residual_norm > tolerance
    suspect = ~(carried <= torch.where(loose, UNSURE, CARRIED) * work) & torch.isfinite(carried)
    rows = torch.nonzero(suspect.reshape(-1)).reshape(-1).tolist()
    if not rows:
        return solution
    lead = force.shape[:-1]
    solid = (moduli >= VOID * largest).expand(*lead, moduli.shape[-1]).reshape(-1, moduli.shape[-1]).cpu().numpy()
    size = force.reshape(-1, force.shape[-1]).abs()
    loaded = (size > LOADED * size.amax(-1, keepdim=True)).cpu().numpy()
    rough = loose.reshape(-1).tolist()
    code = solution.status_code.clone().reshape(-1)
    words: list[str] = []
    for row in rows:  # designs that fail: few, and each has islands of its own
        held = energy.held(solid[row], loaded[row])
        off = np.flatnonzero(loaded[row] & ~held)
        if off.size == loaded[row].sum() or (off.size and rough[row]):
            code[row] = int(Status.SINGULAR)
            words.append(f"{case_of(energy, row, lead)} at {energy.place_of(int(off[0]))}")
    if not words:
        return solution
    shown = ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
    verb, them = ("is", "it") if len(words) == 1 else ("are", "them")
    advice = (
        f"The {shown} {verb} cut off: no near-solid elements join {them} to supports (void is a modulus below {VOID:g} of the "
        "largest, and a corner is a hinge), and a compliance through void means nothing. Start from a design that is joined, "
        "raise the volume fraction or the filter radius, or take a stiffer void (`young_min`)."
    )
    return replace(solution, status_code=code.view(solution.status_code.shape), aux={**solution.aux, "advice": advice})


def case_of(energy: Anchored, row: int, lead: torch.Size) -> str:
    """Name of a row of a batch: the design, if there are several, and the load case, if there are any."""
    name, cases = "load", lead[-1] if energy.load.ndim > 1 and lead else 1
    if energy.load.ndim > 1:
        name = f"load of case {row % cases}"
    return f"{name} of design {row // cases}" if lead.numel() > cases else name
