"""The stiff methods once more, as the papers write them: slow, plain, for one problem, differentiated by unrolling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev

from sciopt.steppers import kvaerno5
from sciopt.steppers import rosenbrock_tableau as rodas5p

Function = Callable[[Tensor, Tensor, Tensor], Tensor]  # t, y, phi


def textbook_rodas5p() -> dict[str, Tensor]:
    """alpha_ij, gamma_ij, b_i and the embedded b_i of the Rosenbrock method ``k_i = f(y + sum alpha k) + J sum gamma k``."""
    stages, double = rodas5p.STAGES, torch.float64
    a, c = torch.zeros(stages, stages, dtype=double), torch.zeros(stages, stages, dtype=double)
    for i in range(stages):
        a[i, :i] = torch.tensor(rodas5p.ARGUMENTS[i], dtype=double)
        c[i, :i] = torch.tensor(rodas5p.COUPLINGS[i], dtype=double)
    gamma = torch.linalg.inv(torch.eye(stages, dtype=double) / rodas5p.GAMMA - c)
    end = torch.cat([a[-1, :-1], torch.ones(1, dtype=double)])
    return {"alpha": a @ gamma, "gamma": gamma, "b": end @ gamma, "embedded": a[-1] @ gamma}


def rodas5p_step(f: Function, t: Tensor, h: Tensor, y: Tensor, phi: Tensor, mass: Tensor | None = None) -> Tensor:
    """``M k_i = f(t + alpha_i h, y + h sum alpha_ij k_j) + h J sum gamma_ij k_j + gamma_i h df/dt``."""
    table = textbook_rodas5p()
    alpha, gamma, b = table["alpha"], table["gamma"], table["b"]
    jacobian, slope = jacrev(f, 1)(t, y, phi), jacrev(f, 0)(t, y, phi)
    mass = torch.eye(len(y), dtype=y.dtype) if mass is None else mass
    inverse = torch.linalg.inv(mass - rodas5p.GAMMA * h * jacobian)
    slopes: list[Tensor] = []
    for i in range(len(b)):
        place, past = y, torch.zeros_like(y)
        for j, k in enumerate(slopes):
            place, past = place + h * alpha[i, j] * k, past + gamma[i, j] * k
        rhs = f(t + alpha[i].sum() * h, place, phi) + h * jacobian @ past + gamma[i].sum() * h * slope
        slopes.append(inverse @ rhs)
    return y + h * sum(weight * k for weight, k in zip(b, slopes, strict=True))


def kvaerno5_step(f: Function, t: Tensor, h: Tensor, y: Tensor, phi: Tensor, mass: Tensor | None = None) -> Tensor:
    """Every stage by twelve recorded Newton steps."""
    mass = torch.eye(len(y), dtype=y.dtype) if mass is None else mass
    places, slopes = [y], [f(t, y, phi)]
    for i in range(1, len(kvaerno5.NODES)):
        time = t + kvaerno5.NODES[i] * h
        known = sum(a * k for a, k in zip(kvaerno5.ARGUMENTS[i], slopes, strict=True))
        place = places[-1]
        for _ in range(12):
            residual = mass @ (place - y) - h * (known + kvaerno5.GAMMA * f(time, place, phi))
            place = place - torch.linalg.inv(mass - h * kvaerno5.GAMMA * jacrev(f, 1)(time, place, phi)) @ residual
        places.append(place)
        slopes.append(f(time, place, phi))
    return places[-1]
