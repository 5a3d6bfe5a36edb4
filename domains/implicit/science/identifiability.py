"""Which combinations of parameters the data determine: eigendirections of the information, stiff and sloppy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Identifiability", "identifiability"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Identifiability:
    """The eigendirections of an information matrix of log-parameters, the best determined first.

    Args:
        information: eigenvalues ``(r,)``, falling; negative ones: the point is no maximum of the posterior.
        directions: eigenvectors as columns ``(r, r)``.
        errors: standard error along each direction, in units of the natural logarithm ``(r,)``; infinite where nothing is
            known.
        sloppy: whether the error exceeds the threshold ``(r,)``, bool.
        names: of the parameters.

    Example:
        >>> identifiability(torch.diag(torch.tensor([100.0, 1e-4])), ("k1", "k2")).sloppy
        tensor([False,  True])
    """

    information: Tensor
    directions: Tensor
    errors: Tensor
    sloppy: Tensor
    names: tuple[str, ...]

    @property
    def determined(self) -> bool:
        """Whether every direction is known better than the threshold."""
        return not bool(self.sloppy.any())

    def describe(self) -> list[str]:
        """One line per direction, e.g. ``k1^0.7 k2^-0.7: known to a factor of 1.02``."""
        lines = []
        for i, error in enumerate(self.errors.tolist()):
            vector = self.directions[:, i]
            vector = vector * torch.sign(vector[vector.abs().argmax()])
            parts = [
                f"{name}^{float(power):.2g}"
                for name, power in zip(self.names, vector, strict=True)
                if abs(power) > 0.15
            ]
            factor = "not known" if error > 20 else f"known to a factor of {float(torch.tensor(error).exp()):.3g}"
            lines.append(f"{' '.join(parts)}: {factor}{' (sloppy)' if bool(self.sloppy[i]) else ''}")
        return lines


def identifiability(information: Tensor, names: tuple[str, ...], *, threshold: float = 1.0) -> Identifiability:
    """Eigendirections of an information matrix ``(r, r)`` of natural logarithms of parameters.

    Args:
        information: Fisher information, or the Hessian of the negative logarithm of the posterior; symmetric.
        names: of the r parameters.
        threshold: standard error of the logarithm beyond which a direction is called sloppy; 1 is a factor of e.

    Returns:
        `Identifiability`.

    Example:
        >>> identifiability(torch.eye(2), ("a", "b")).determined
        False

    References:
        Gutenkunst et al. "Universally sloppy parameter sensitivities in systems biology models". PLoS Comput. Biol. 3 (2007).
    """
    values, vectors = torch.linalg.eigh(0.5 * (information + information.mT))
    values, vectors = values.flip(-1), vectors.flip(-1)
    errors = torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), torch.inf)
    return Identifiability(
        information=values, directions=vectors, errors=errors, sloppy=errors >= threshold, names=names
    )
