"""Bodies and solves that the tests of large deformations share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sciopt import Minimize, best_response
from sciopt.domains.topology import SIMP
from sciopt.domains.topology.nonlinear import LoadStepping, block

F64 = torch.float64
SIMP3 = SIMP(young=1.0, young_min=1e-6)


def clamped(counts, lengths, load: float | tuple[float, ...] = 0.0):
    """A box held at x = 0 with a force spread over the end face."""
    body = block(counts, lengths)
    nodes, dim = np.asarray(body.nodes), len(counts)
    root, tip = np.flatnonzero(nodes[:, 0] == 0), np.flatnonzero(nodes[:, 0] == lengths[0])
    force = np.zeros((len(nodes), dim))
    force[tip] = np.asarray(load) / len(tip)
    fixed = (dim * root[:, None] + np.arange(dim)).reshape(-1)
    return replace(body, fixed=fixed, load=force.reshape(-1))


def ones(design):
    return design[None]


def settle(energy, design, **options):
    init = design.new_zeros(energy.size)
    return best_response(Minimize(energy), design, init=init, solver=LoadStepping(balance=energy, **options))


def tip(body, u):
    """Mean displacement of the end face."""
    end = np.flatnonzero(body.nodes[:, 0] == body.nodes[:, 0].max())
    return body.nodal(u)[end].mean(0)
