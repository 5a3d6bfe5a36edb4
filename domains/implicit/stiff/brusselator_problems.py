"""The Brusselator in a stirred tank and, with diffusion, along a line."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.domains.implicit.stiff.example import StiffExample
from sciopt.domains.implicit.stiff.mass_action import reactions
from sciopt.domains.implicit.stiff.statement import double, shared

__all__ = ["brusselator", "brusselator_line"]


def brusselator(a: float = 1.0, b: float = 3.0, *, batch_ndim: int = 0) -> StiffExample:
    """The Brusselator 0 -> X, 2 X + Y -> 3 X, X -> Y, X -> 0 with rate constants a, 1, b, 1 in a stirred tank.

    Its steady state is X = a, Y = b / a; it loses stability, and oscillations begin, at b = 1 + a^2.

    Args:
        a: rate of inflow.
        b: rate constant of X -> Y.
        batch_ndim: 1 for a batch of starts ``(batch, 2)`` or of rate constants ``(batch, 4)``.

    Returns:
        `StiffExample`: dimensionless, times 0 and 20.

    Example:
        >>> brusselator().network.species
        ('X', 'Y')

    References:
        Prigogine, Lefever. "Symmetry breaking instabilities in dissipative systems II". J. Chem. Physics 48, 1968.
    """
    network = reactions("0 -> X", "2 X + Y -> 3 X", "X -> Y", "X -> 0")
    return StiffExample(
        problem=network.problem(double(0.0, 20.0), batch_ndim=batch_ndim),
        init=double(1.5, 3.0),
        outer_params=double(a, 1.0, b, 1.0),
        names=network.species,
        parameter_names=("a", "autocatalysis", "b", "outflow"),
        units="dimensionless",
        source="Prigogine, Lefever 1968.",
        network=network,
    )


def brusselator_line(cells: int = 40, *, batch_ndim: int = 0) -> StiffExample:
    """The Brusselator with diffusion on 0 < x < 1, by central differences: stiffness grows with the square of ``cells``.

    ``u_t = a + u^2 v - (b + 1) u + d u_xx``, ``v_t = b u - u^2 v + d v_xx``, with u = a and v = b / a at both ends and
    ``u(x, 0) = 1 + sin(2 pi x)``, ``v(x, 0) = 3``. Parameters a, b, d = 1, 3, 1/50.

    Args:
        cells: number N of inner grid points; the state is ``(2 N,)``, u before v.
        batch_ndim: 1 for a batch of starts ``(batch, 2 N)`` or of parameters ``(batch, 3)``.

    Returns:
        `StiffExample`: dimensionless, times 0 and 10.

    Raises:
        ValueError: for fewer than two points.

    Example:
        >>> brusselator_line(8).init.shape
        torch.Size([16])

    References:
        Hairer, Wanner. "Solving Ordinary Differential Equations II". Springer 1996. Section IV.1, problem BRUSS.
    """
    if not isinstance(cells, int) or cells < 2:
        raise ValueError(
            f"brusselator_line: expected `cells` to be an int >= 2, got {cells!r}. Use 40 for a usual grid."
        )

    def spread(w: Tensor, end: Tensor) -> Tensor:
        wide = torch.cat([end, w, end], -1)
        return (wide[..., 2:] - 2 * w + wide[..., :-2]) * (cells + 1) ** 2

    def dynamics(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        a, b, d = (p.unsqueeze(-1).expand(*y.shape[:-1], 1) for p in phi.unbind(-1))
        u, v = y.chunk(2, -1)
        source = u * u * v
        return torch.cat([a + source - (b + 1) * u + d * spread(u, a), b * u - source + d * spread(v, b / a)], -1)

    def jacobian(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        b, d = phi[..., 1, None], phi[..., 2, None, None]
        u, v = y.chunk(2, -1)
        eye = torch.eye(cells, dtype=y.dtype, device=y.device)
        laplace = (
            torch.diag(torch.ones(cells - 1).to(y), 1) + torch.diag(torch.ones(cells - 1).to(y), -1) - 2 * eye
        ) * (cells + 1) ** 2
        uu, uv = torch.diag_embed(2 * u * v - b - 1), torch.diag_embed(u * u)
        vu, vv = torch.diag_embed(b - 2 * u * v), torch.diag_embed(-u * u)
        return torch.cat([torch.cat([uu + d * laplace, uv], -1), torch.cat([vu, vv + d * laplace], -1)], -2)

    x = torch.arange(1, cells + 1, dtype=torch.float64) / (cells + 1)
    start = torch.cat([1 + torch.sin(2 * torch.pi * x), torch.full_like(x, 3.0)])
    return StiffExample(
        problem=shared(dynamics, jacobian, double(0.0, 10.0), batch_ndim),
        init=start,
        outer_params=double(1.0, 3.0, 0.02),
        names=tuple(f"{name}{i}" for name in "uv" for i in range(1, cells + 1)),
        parameter_names=("a", "b", "diffusion"),
        units="dimensionless",
        source="Hairer, Wanner 1996, section IV.1.",
    )
