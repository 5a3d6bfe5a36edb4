"""Strain energy densities as functions of the displacement gradient, and their blend with a linear one in the void."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = [
    "AbstractMaterial",
    "LinearElastic",
    "LowDensityBlend",
    "NeoHookean",
    "SaintVenantKirchhoff",
    "blended",
    "blended_moduli",
    "differentiated",
]


class AbstractMaterial(ABC):
    """An isotropic material of unit Young's modulus; in 2D the strain is plane."""

    poisson: float

    @abstractmethod
    def __call__(self, gradient: Tensor) -> Tensor:
        """Energy per volume at rest ``(*shape,)`` for displacement gradients ``H = F - 1``, ``(*shape, dim, dim)``."""

    @abstractmethod
    def moduli(self, gradient: Tensor) -> Tensor:
        """Its second derivative ``d2 W / dH_ij dH_kl``, ``(*shape, dim, dim, dim, dim)``; see `differentiated`."""

    @property
    def lame(self) -> tuple[float, float]:
        """Lame's constants (lambda, mu) for a unit Young's modulus."""
        nu = self.poisson
        return nu / ((1 + nu) * (1 - 2 * nu)), 0.5 / (1 + nu)


def differentiated(material: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    """``d2 W / dH_ij dH_kl`` by `torch.func`: what a material without a formula for its moduli returns from `moduli`.

    Example:
        >>> law, rest = NeoHookean(), torch.zeros(2, 2)
        >>> torch.allclose(differentiated(law, rest), law.moduli(rest), atol=1e-6)
        True
    """
    dim = gradient.shape[-1]
    flat = gradient.reshape(-1, dim, dim)
    return torch.func.vmap(torch.func.jacrev(torch.func.jacrev(material)))(flat).reshape(*gradient.shape, dim, dim)


def check_poisson(owner: str, poisson: float) -> None:
    """Refuse values for which the energy is not convex at rest."""
    advice = "0.3 is usual, 0.45 for rubber; bilinear elements lock as it comes close to 0.5."
    check_option(owner, "poisson", poisson, -1 < poisson < 0.5, "in (-1, 0.5)", advice)


@final
@dataclass(frozen=True, kw_only=True)
class LinearElastic(AbstractMaterial):
    """``lambda/2 tr(e)^2 + mu e:e`` of the small strain ``e = sym H``: not invariant under finite rotations.

    Args:
        poisson: Poisson's ratio, in (-1, 0.5).

    Example:
        >>> LinearElastic(poisson=0.0)(torch.tensor([[0.5, 0.0], [0.0, 0.0]])).item()  # E e^2 / 2
        0.125
    """

    poisson: float = 0.3

    def __post_init__(self) -> None:
        check_poisson("LinearElastic", self.poisson)

    def __call__(self, gradient: Tensor) -> Tensor:
        return quadratic(0.5 * (gradient + gradient.mT), self.lame)

    def moduli(self, gradient: Tensor) -> Tensor:
        return isotropic(gradient, self.lame).expand(*gradient.shape, *gradient.shape[-2:])


@final
@dataclass(frozen=True, kw_only=True)
class SaintVenantKirchhoff(AbstractMaterial):
    """``lambda/2 tr(E)^2 + mu E:E`` of the Green strain ``E = (H + H^T + H^T H) / 2``.

    For large rotations at small strains. It softens under compression and lets elements turn inside out.

    Args:
        poisson: Poisson's ratio, in (-1, 0.5).

    Example:
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]) - torch.eye(2)
        >>> SaintVenantKirchhoff()(turn).item()
        0.0
    """

    poisson: float = 0.3

    def __post_init__(self) -> None:
        check_poisson("SaintVenantKirchhoff", self.poisson)

    def __call__(self, gradient: Tensor) -> Tensor:
        return quadratic(0.5 * (gradient + gradient.mT + gradient.mT @ gradient), self.lame)

    def moduli(self, gradient: Tensor) -> Tensor:
        lame, shear = self.lame
        eye = identity(gradient)
        deformation = gradient + eye
        strain = 0.5 * (gradient + gradient.mT + gradient.mT @ gradient)
        stress = lame * strain.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * eye + 2 * shear * strain
        tangent = isotropic(gradient, self.lame)
        bent = torch.einsum("...im,mjnl,...kn->...ijkl", deformation, tangent, deformation)
        return bent + torch.einsum("ik,...jl->...ijkl", eye, stress)


@final
@dataclass(frozen=True, kw_only=True)
class NeoHookean(AbstractMaterial):
    """``mu/2 (tr C - 3 - 2 ln J) + lambda/2 (ln J)^2``: a compressible rubber, infinitely stiff against collapse.

    NaN where an element is turned inside out (J <= 0), which the solvers take as a step too far.

    Args:
        poisson: Poisson's ratio at rest, in (-1, 0.5).

    Example:
        >>> bool(torch.isnan(NeoHookean()(torch.diag(torch.tensor([-2.0, 0.0])))))
        True

    References:
        Bonet, Wood. "Nonlinear continuum mechanics for finite element analysis". 2nd ed. 2008. Eq. 6.27.
    """

    poisson: float = 0.3

    def __post_init__(self) -> None:
        check_poisson("NeoHookean", self.poisson)

    def __call__(self, gradient: Tensor) -> Tensor:
        lame, shear = self.lame
        # In terms of H, so that small strains do not cancel: tr C - dim = 2 tr H + H:H and J - 1 from the minors of H.
        trace = gradient.diagonal(dim1=-2, dim2=-1).sum(-1)
        log = torch.log1p(growth(gradient))
        stretch = 2 * trace + gradient.square().sum((-2, -1))
        return 0.5 * shear * (stretch - 2 * log) + 0.5 * lame * log.square()

    def moduli(self, gradient: Tensor) -> Tensor:
        lame, shear = self.lame
        eye = identity(gradient)
        inverse = torch.linalg.inv_ex(gradient + eye)[0].mT
        log = torch.log1p(growth(gradient))[..., None, None, None, None]
        crossed = torch.einsum("...il,...kj->...ijkl", inverse, inverse)
        outer = torch.einsum("...ij,...kl->...ijkl", inverse, inverse)
        return shear * torch.einsum("ik,jl->ijkl", eye, eye) + (shear - lame * log) * crossed + lame * outer


def identity(gradient: Tensor) -> Tensor:
    """The unit tensor ``(dim, dim)``."""
    return torch.eye(gradient.shape[-1], dtype=gradient.dtype, device=gradient.device)


def isotropic(gradient: Tensor, lame: tuple[float, float]) -> Tensor:
    """``lambda d_ij d_kl + mu (d_ik d_jl + d_il d_jk)``, ``(dim, dim, dim, dim)``."""
    eye = identity(gradient)
    pairs = torch.einsum("ik,jl->ijkl", eye, eye)
    return lame[0] * torch.einsum("ij,kl->ijkl", eye, eye) + lame[1] * (pairs + pairs.transpose(-1, -2))


def quadratic(strain: Tensor, lame: tuple[float, float]) -> Tensor:
    """``lambda/2 tr(e)^2 + mu e:e``."""
    trace = strain.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * lame[0] * trace.square() + lame[1] * strain.square().sum((-2, -1))


def growth(h: Tensor) -> Tensor:
    """``det(1 + H) - 1`` without cancellation, for 2 x 2 and 3 x 3."""
    trace = h.diagonal(dim1=-2, dim2=-1).sum(-1)
    if h.shape[-1] == 2:
        return trace + h[..., 0, 0] * h[..., 1, 1] - h[..., 0, 1] * h[..., 1, 0]
    minors = 0.5 * (trace.square() - (h * h.mT).sum((-2, -1)))
    return trace + minors + (torch.linalg.cross(h[..., 0, :], h[..., 1, :]) * h[..., 2, :]).sum(-1)


@final
@dataclass(frozen=True, kw_only=True)
class LowDensityBlend:
    """How nonlinear an element is: gamma = 1 in the solid, 0 in the void, where large strains would break Newton's method.

    ``gamma = (tanh(b t) + tanh(b (density^p - t))) / (tanh(b t) + tanh(b (1 - t)))`` with threshold t and sharpness b.

    Args:
        penalty: exponent p of the stiffness, as in `SIMP`.
        threshold: relative stiffness below which an element is linear.
        sharpness: of the step.

    Example:
        >>> LowDensityBlend()(torch.tensor([0.0, 0.1, 1.0])).round(decimals=3)
        tensor([0., 0., 1.])

    References:
        Wang, Lazarov, Sigmund, Jensen. "Interpolation scheme for fictitious domain techniques and topology optimization of
        finite strain elastic problems". Comput. Methods Appl. Mech. Engrg. 276 (2014), section 3.
    """

    penalty: float = 3.0
    threshold: float = 0.01
    sharpness: float = 500.0

    def __post_init__(self) -> None:
        check_option("LowDensityBlend", "penalty", self.penalty, self.penalty >= 1, ">= 1", "Use the one of SIMP.")
        ok = 0 < self.threshold < 1
        check_option("LowDensityBlend", "threshold", self.threshold, ok, "in (0, 1)", "0.01 is usual.")
        check_option("LowDensityBlend", "sharpness", self.sharpness, self.sharpness > 0, "> 0", "500 is usual.")

    def __call__(self, density: Tensor) -> Tensor:
        """gamma for densities in [0, 1], elementwise."""
        b, t = self.sharpness, self.threshold
        low, high = torch.tanh(density.new_tensor([b * t, b * (1 - t)]))
        return (low + torch.tanh(b * (density**self.penalty - t))) / (low + high)


def blended(material: AbstractMaterial, gradient: Tensor, gamma: Tensor | None) -> Tensor:
    """``W(gamma H) - W_linear(gamma H) + W_linear(H)``: the material at gamma = 1, the linear one at 0."""
    if gamma is None:
        return material(gradient)
    linear = LinearElastic(poisson=material.poisson)
    shrunk = gamma[..., None, None] * gradient
    return material(shrunk) + (1 - gamma.square()) * linear(gradient)


def blended_moduli(material: AbstractMaterial, gradient: Tensor, gamma: Tensor | None) -> Tensor:
    """Second derivative of `blended` in H, ``(*shape, dim, dim, dim, dim)``."""
    if gamma is None:
        return material.moduli(gradient)
    square = gamma.square()[..., None, None, None, None]
    nonlinear = material.moduli(gamma[..., None, None] * gradient)
    return square * nonlinear + (1 - square) * isotropic(gradient, material.lame)
