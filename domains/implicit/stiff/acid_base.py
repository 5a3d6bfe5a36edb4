"""Chemical speciation at equilibrium: acids and bases in water, solved in the logarithms of the concentrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import final

import torch
from torch import Tensor

from sciopt.problem import RootFind

__all__ = ["Speciation", "acid_base"]


@final
@dataclass(frozen=True)
class Speciation:
    """Species that form from components, ``c_i = beta_i prod_j x_j^nu_ij``, with the totals of the components given.

    The unknowns are the natural logarithms of the components' free concentrations, so that every concentration stays
    positive over any number of decades; each component's mass balance is a difference of logarithms. Outer
    parameters: a dict with ``log10_beta`` ``(s,)`` or ``(*batch, s)``, the decadic logarithms of the formation constants,
    and ``totals`` ``(c,)`` or ``(*batch, c)`` in mol/l, above zero for a
    component that no species gives off. Activities are taken for concentrations.

    Args:
        components: c names.
        species: s names; the components are among them, with a unit row and ``log10_beta = 0``.
        table: s rows of c numbers nu_ij, negative where a component is given off.

    Raises:
        ValueError: for a table of another shape.

    Example:
        >>> water, phi = acid_base({})
        >>> water.components, water.species, water.table
        (('H+',), ('H+', 'OH-'), ((1,), (-1,)))

    References:
        Morel, Hering. "Principles and Applications of Aquatic Chemistry". Wiley 1993. Chapter 1.
    """

    components: tuple[str, ...]
    species: tuple[str, ...]
    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.table) != len(self.species) or any(len(row) != len(self.components) for row in self.table):
            raise ValueError(
                f"Speciation: expected `table` with {len(self.species)} rows of {len(self.components)} numbers, got "
                f"{self.table!r}. Give one row per species, one entry per component."
            )

    def concentrations(self, log_free: Tensor, outer_params: Mapping[str, Tensor]) -> Tensor:
        """Concentration of every species, mol/l, ``(*batch, s)``, from the logarithms of the free components."""
        powers = log_free @ log_free.new_tensor(self.table).mT
        return (powers + log(10.0) * outer_params["log10_beta"]).exp()

    def ph(self, log_free: Tensor) -> Tensor:
        """``-log10`` of the free concentration of the component H+, ``(*batch,)``."""
        return -log_free[..., self.components.index("H+")] / log(10.0)

    def residual(self, log_free: Tensor, outer_params: Mapping[str, Tensor]) -> Tensor:
        """Logarithm of what each component has over what it should have, ``(*batch, c)``: nearly linear in the unknowns."""
        table = log_free.new_tensor(self.table)
        amount = self.concentrations(log_free, outer_params)
        totals = outer_params["totals"]
        held = amount @ table.clamp(min=0) + torch.where(totals > 0, 0.0, -totals)
        owed = amount @ (-table).clamp(min=0) + torch.where(totals > 0, totals, 0.0)
        return held.log() - owed.log()

    def problem(self, *, batch_ndim: int = 0) -> RootFind:
        """The equilibrium as a root; start from `start`, solve with `Newton`; see `acid_base`."""
        return RootFind(self.residual, batch_ndim=batch_ndim)

    def start(self, outer_params: Mapping[str, Tensor]) -> Tensor:
        """A start for the logarithms, ``(*batch, c)``: the best of pH 0, 0.5, ..., 14 with the other components in balance."""
        with torch.no_grad():
            fixed = {name: leaf.detach().unsqueeze(-2) for name, leaf in outer_params.items()}
            totals = fixed["totals"]
            grid = -log(10.0) * torch.arange(29, dtype=totals.dtype, device=totals.device) / 2
            hydrogen = torch.tensor([name == "H+" for name in self.components], device=totals.device)
            others = totals.abs().clamp_min(1e-12).log().expand(*totals.shape[:-2], len(grid), -1)
            trial = torch.where(hydrogen, grid.unsqueeze(-1), others)
            powers = trial.new_tensor(self.table).amax(0).clamp_min(1)
            for _ in range(3):
                trial = torch.where(hydrogen, trial, trial - self.residual(trial, fixed) / powers)
            size = torch.nan_to_num(self.residual(trial, fixed), nan=torch.inf).square().sum(-1)
            best = size.argmin(-1)[..., None, None].expand(*size.shape[:-1], 1, trial.shape[-1])
            return trial.gather(-2, best).squeeze(-2)


def acid_base(
    acids: Mapping[str, tuple[float, Sequence[float]]], *, strong_base: float = 0.0, pkw: float = 13.995
) -> tuple[Speciation, dict[str, Tensor]]:
    """Weak acids and a strong base in water at 25 degrees Celsius: the species, and the parameters of the mixture.

    Args:
        acids: for each acid the concentration of its fully protonated form, mol/l, and its pK_a, the first dissociation
            first. The key names the fully deprotonated form.
        strong_base: concentration of a strong base such as NaOH, mol/l; negative: of a strong acid.
        pkw: ``-log10`` of the ionic product of water in (mol/l)^2.

    Returns:
        `Speciation`, and its outer parameters ``log10_beta`` and ``totals``, float64; every entry may become a design
        variable or a batch.

    Raises:
        ValueError: for an acid without a pK_a or with a negative concentration.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.inner import Newton
        >>> acetic, phi = acid_base({"acetate": (0.1, (4.756,))})
        >>> root = best_response(acetic.problem(), phi, init=acetic.start(phi), solver=Newton())
        >>> round(acetic.ph(root.value).item(), 3)
        2.881

    References:
        Morel, Hering 1993, chapter 1. Constants: CRC Handbook of Chemistry and Physics, dissociation constants of acids.
    """
    components = ("H+", *acids)
    species, logs, totals = ["H+", "OH-"], [0.0, -pkw], [-strong_base]
    table = [[sign] + [0] * len(acids) for sign in (1, -1)]
    for k, (name, (amount, constants)) in enumerate(acids.items()):
        if not constants or amount < 0:
            raise ValueError(
                f"acid_base: expected a concentration >= 0 and at least one pK_a for {name!r}, got {amount!r} and "
                f"{tuple(constants)!r}. Give (mol/l, (pK_a1, ...))."
            )
        for protons in range(len(constants) + 1):
            row = [protons] + [0] * len(acids)
            row[1 + k] = 1
            table.append(row)
            species.append(f"{('', 'H', *(f'H{m}' for m in range(2, protons + 1)))[protons]} {name}".strip())
            logs.append(float(sum(constants[len(constants) - protons :])))
        totals[0] += amount * len(constants)
        totals.append(amount)
    parameters = {
        "log10_beta": torch.tensor(logs, dtype=torch.float64),
        "totals": torch.tensor(totals, dtype=torch.float64),
    }
    return Speciation(components, tuple(species), tuple(tuple(row) for row in table)), parameters
