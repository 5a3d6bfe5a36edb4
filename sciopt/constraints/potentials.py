"""Pair potentials: energy of a pair as a function of its squared distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.constraints.common import safe_sqrt

__all__ = ["AbstractPairPotential", "Harmonic", "LennardJones", "Morse"]


class AbstractPairPotential(ABC):
    """Energy of one pair; a new potential is a frozen dataclass with ``names`` and ``energy``."""

    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def energy(self, square: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Energies ``(*batch, P)`` from squared distances ``(*batch, P)`` and the parameters in ``names``.

        Finite with finite derivatives down to ``square = 0``.
        """


@final
@dataclass(frozen=True)
class Harmonic(AbstractPairPotential):
    """``1/2 stiffness (r - length)^2``. The gradient at r = 0, where it has a kink, is taken as zero.

    Example:
        >>> Harmonic().energy(torch.tensor(4.0), {"stiffness": torch.tensor(2.0), "length": torch.tensor(1.0)})
        tensor(1.)
    """

    names: ClassVar[tuple[str, ...]] = ("stiffness", "length")

    def energy(self, square: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * params["stiffness"] * (safe_sqrt(square) - params["length"]).square()


@final
@dataclass(frozen=True)
class Morse(AbstractPairPotential):
    """``depth ((1 - exp(-decay (r - length)))^2 - 1)``: minus ``depth`` at ``length``, zero far away.

    Finite at r = 0, where the gradient, which has a kink there, is taken as zero.

    Example:
        >>> params = {"depth": torch.tensor(3.0), "decay": torch.tensor(2.0), "length": torch.tensor(1.0)}
        >>> Morse().energy(torch.tensor(1.0), params)
        tensor(-3.)

    References:
        Morse. "Diatomic molecules according to the wave mechanics. II". Physical Review, 1929, eq. 4.
    """

    names: ClassVar[tuple[str, ...]] = ("depth", "decay", "length")

    def energy(self, square: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        decayed = (-params["decay"] * (safe_sqrt(square) - params["length"])).exp()
        return params["depth"] * decayed * (decayed - 2.0)


@final
@dataclass(frozen=True)
class LennardJones(AbstractPairPotential):
    """``4 epsilon ((sigma / r)^12 - (sigma / r)^6)`` with a soft core below ``core * sigma``.

    Inside the core the energy goes on as its second-order Taylor polynomial in r^2: continuous up to the second
    derivative in the positions, finite and with zero gradient at r = 0. Structures at rest never see it; starts with
    overlapping atoms do.

    Args:
        core: radius of the soft core in units of sigma, in (0, 1).

    Example:
        >>> params = {"epsilon": torch.tensor(1.0), "sigma": torch.tensor(1.0)}
        >>> LennardJones().energy(torch.tensor([1.0, 0.0]), params).isfinite()
        tensor([True, True])

    References:
        Jones. "On the determination of molecular fields. II". Proceedings of the Royal Society A, 1924.
    """

    core: float = 0.5
    names: ClassVar[tuple[str, ...]] = ("epsilon", "sigma")

    def __post_init__(self) -> None:
        check_option("LennardJones", "core", self.core, 0 < self.core < 1, "in (0, 1)", "0.5 is a good choice.")

    def energy(self, square: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        scaled = square / params["sigma"].square()  # q = (r / sigma)^2
        edge = self.core**2
        cube = torch.where(scaled > edge, scaled, 1.0) ** -3
        outside = cube * (cube - 1.0)
        value = edge**-6 - edge**-3
        slope = -6.0 * edge**-7 + 3.0 * edge**-4
        curvature = 42.0 * edge**-8 - 12.0 * edge**-5
        step = torch.where(scaled > edge, 0.0, scaled - edge)
        inside = value + step * (slope + 0.5 * curvature * step)
        return 4.0 * params["epsilon"] * torch.where(scaled > edge, outside, inside)
