"""Latent ODEs: irregular time series as the trace of a hidden trajectory."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sciopt.domains.implicit.ode.neural_ode import NeuralODE

__all__ = ["LatentODE"]


@final
class LatentODE(nn.Module):
    """A variational autoencoder of time series whose code is the start of a trajectory.

    A recurrent encoder reads the observations backwards, with the time between them and the mask of what was seen, to a
    normal distribution of z(0); a `NeuralODE` carries z(0) to any times; a decoder maps states to observations. Every series
    has times of its own.

    Args:
        ode: the layer on ``(batch, latent)``, with ``trajectory=True``.
        decoder: ``(..., latent) -> (..., channels)``.
        channels: entries of one observation.
        latent: entries of the hidden state.
        hidden: width of the encoder.
        noise: standard deviation of an observation, in its units.

    Raises:
        ValueError: for a layer that returns no trajectories.

    Example:
        >>> field = nn.Linear(4, 4)
        >>> ode = NeuralODE(lambda t, z: field(z), trajectory=True)
        >>> model = LatentODE(ode, nn.Linear(4, 2), channels=2, latent=4)
        >>> times = torch.rand(6, 3).cumsum(0)  # six instants of three series
        >>> model.elbo(torch.randn(6, 3, 2), times).shape, model(torch.randn(6, 3, 2), times).shape
        (torch.Size([3]), torch.Size([6, 3, 2]))

    References:
        Rubanova, Chen, Duvenaud. "Latent ODEs for irregularly-sampled time series". NeurIPS 2019.
    """

    def __init__(
        self, ode: NeuralODE, decoder: nn.Module, *, channels: int, latent: int, hidden: int = 32, noise: float = 0.1
    ) -> None:
        super().__init__()
        if not ode.trajectory or ode.with_solution:
            raise ValueError(
                "LatentODE: expected `ode` with trajectory=True and without `with_solution`, got "
                f"trajectory={ode.trajectory}, with_solution={ode.with_solution}. Build it so."
            )
        self.ode, self.decoder, self.noise = ode, decoder, noise
        self.encoder = nn.GRU(2 * channels + 1, hidden)
        self.head = nn.Linear(hidden, 2 * latent)

    def encode(self, values: Tensor, times: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of z at the first time, both ``(batch, latent)``."""
        mask = torch.ones_like(values) if mask is None else mask.to(values)
        gaps = torch.diff(times, dim=0, append=times[-1:]).unsqueeze(-1)
        read = torch.cat([values * mask, mask, gaps.to(values)], -1).flip(0)
        mean, log_std = self.head(self.encoder(read)[1][0]).chunk(2, -1)
        return mean, log_std

    def forward(self, values: Tensor, times: Tensor, mask: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """The series ``(k, batch, channels)`` at the times ``at`` (None: ``times``), from the mean of the code.

        Args:
            values: observations ``(n, batch, channels)``.
            times: their times ``(n, batch)``, growing; the code is the state at the first.
            mask: 1 where an entry was seen, like ``values``; None: everywhere.
            at: times ``(k, batch)`` to predict, starting at or after the first of ``times``.
        """
        mean, _ = self.encode(values, times, mask)
        return self.decode(mean, times, times if at is None else at)

    def decode(self, z0: Tensor, times: Tensor, at: Tensor) -> Tensor:
        """Observations ``(k, batch, channels)`` of the trajectory from ``z0`` at the first of ``times``."""
        return self.decoder(self.ode(z0, torch.cat([times[:1], at]))[1:])

    def elbo(
        self,
        values: Tensor,
        times: Tensor,
        mask: Tensor | None = None,
        *,
        weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Evidence lower bound ``(batch,)``, up to a constant, from one draw of the code.

        Args:
            values: as in `forward`.
            times: likewise.
            mask: likewise.
            weight: factor of the divergence between code and prior, annealed from 0 to 1 in training.
            generator: source of the draw; None: torch's global one.
        """
        mean, log_std = self.encode(values, times, mask)
        draw = torch.empty_like(mean).normal_(generator=generator)
        found = self.decode(mean + log_std.exp() * draw, times, times)
        seen = torch.ones_like(values) if mask is None else mask.to(values)
        likelihood = -0.5 * (((found - values) / self.noise).square() * seen).sum((0, 2))
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        return likelihood - weight * divergence
