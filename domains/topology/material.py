"""Stiffness of a material of intermediate density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sciopt.checks import check_option

__all__ = ["SIMP"]


@final
@dataclass(frozen=True, kw_only=True)
class SIMP:
    """Modified solid isotropic material with penalisation: ``E = E_min + density**penalty (E_0 - E_min)``.

    Args:
        young: Young's modulus E_0 of the solid, force per area.
        young_min: modulus of the void, small and positive so that the structure stays regular.
        penalty: exponent p; 1 does not penalise, 3 leads to black and white.

    Raises:
        ValueError: unless ``0 < young_min < young`` and ``penalty >= 1``.

    Example:
        >>> import torch
        >>> SIMP(young_min=0.001)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0010, 0.1259, 1.0000])

    References:
        Andreassen et al. "Efficient topology optimization in MATLAB using 88 lines of code". 2011. Eq. 1.
    """

    young: float = 1.0
    young_min: float = 1e-9
    penalty: float = 3.0

    def __post_init__(self) -> None:
        ok = 0 < self.young_min < self.young
        check_option("SIMP", "young_min", self.young_min, ok, "in (0, young)", "1e-9 of young is usual.")
        check_option("SIMP", "penalty", self.penalty, self.penalty >= 1, ">= 1", "3 is the usual choice.")

    def __call__(self, density: Tensor) -> Tensor:
        """Young's modulus for densities in [0, 1], elementwise."""
        return self.young_min + density**self.penalty * (self.young - self.young_min)
