"""The stages of a Rosenbrock step: by plain operations, in scratch space, and with a backward pass of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sciopt.steppers.field import Field
from sciopt.steppers.rosenbrock_tableau import ARGUMENTS, COUPLINGS, GAMMA, NODES, SLOPES, STAGES
from sciopt.steppers.stage_solve import factored, implicit_matrix
from sciopt.transforms import under_transform

__all__ = ["Stages", "coefficients", "lean_stages", "plain_stages"]


def coefficients(like: Tensor, field: Field) -> dict[str, Tensor]:
    """The tableau as tensors, made once per field."""
    if "rodas5p" not in field.scratch:
        pad = [[*a, *(0.0,) * (STAGES - len(a))] for a in ARGUMENTS]
        couple = [[*c, *(0.0,) * (STAGES - len(c))] for c in COUPLINGS]
        field.scratch["rodas5p"] = {
            # (stage, 2, earlier stage)
            "pairs": torch.stack([like.new_tensor(pad), GAMMA * like.new_tensor(couple)], 1),
            "end": like.new_tensor((*ARGUMENTS[-1], 1.0)),
        }
    return field.scratch["rodas5p"]


def slope_in_time(field: Field, t: Tensor, y: Tensor) -> Tensor | None:
    """``df/dt``, ``(rows, n)``, None where the right-hand side does not look at the time."""
    if "autonomous" not in field.scratch:
        field.scratch["autonomous"] = is_autonomous(field, t, y)
    return None if field.scratch["autonomous"] else field.time_derivative(t, y)


def is_autonomous(field: Field, t: Tensor, y: Tensor) -> bool:
    """Whether autograd finds no way from the time to the right-hand side."""
    if under_transform():
        return False
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        out = field(t, y.detach())
        return not out.requires_grad or torch.autograd.grad(out.sum(), t, allow_unused=True)[0] is None


def setting(field: Field, t: Tensor, h: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor | None]:
    """What all stages of a step share: the solve, ``gamma h`` as a column, and ``gamma h^2 df/dt``."""
    scaled = GAMMA * h
    solve = factored(implicit_matrix(field, field.jacobian(t, y), scaled))
    slope = slope_in_time(field, t, y)
    return solve, scaled.unsqueeze(-1), None if slope is None else (scaled * h).unsqueeze(-1) * slope


def plain_stages(field: Field, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """The stages U_i, ``(rows, n, 8)``, by operations that every transform can follow.

    ``(M - gamma h J) U_i = gamma h f(t + c_i h, y + sum_j a_ij U_j) + gamma M sum_j C_ij U_j + gamma h^2 d_i df/dt``.
    """
    solve, scaled, drift = setting(field, t, h, y)
    mass = field.mass
    pairs = coefficients(y, field)["pairs"]
    stages: list[Tensor] = []
    for i in range(STAGES):
        if i == 0:
            rhs = scaled * field(t, y)
        else:
            mix = torch.stack(stages, -1) @ pairs[i, :, :i].mT
            couple = mix[..., 1] if mass is None else mix[..., 1] @ mass.to(y).mT
            rhs = torch.addcmul(couple, scaled, field(t + NODES[i] * h, y + mix[..., 0]))
        if drift is not None and SLOPES[i]:
            rhs = rhs + SLOPES[i] * drift
        stages.append(solve(rhs))
    return torch.stack(stages, -1)


def lean_stages(field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None) -> Tensor:
    """The same numbers as ``(8, rows, n)`` in scratch space, where nothing is recorded."""
    solve, scaled, drift = setting(field, t, h, y)
    key = ("stages", y.shape)
    if key not in field.scratch:
        field.scratch[key] = y.new_empty(STAGES, *y.shape)
    space = field.scratch[key]

    def slope(i: int, time: Tensor, place: Tensor) -> Tensor:
        return start if i == 0 and start is not None else field(time, place)

    fill_stages(field, t, h, y, space, slope, solve, scaled, drift)
    return space


def fill_stages(
    field: Field,
    t: Tensor,
    h: Tensor,
    y: Tensor,
    space: Tensor,
    slope: Callable[[int, Tensor, Tensor], Tensor],
    solve: Callable[[Tensor], Tensor],
    scaled: Tensor,
    drift: Tensor | None,
) -> None:
    """Write the stages into ``space`` ``(8, rows, n)``; ``slope(i, time, place)`` evaluates the right-hand side."""
    mass = field.mass
    pairs = coefficients(y, field)["pairs"]
    flat = space.flatten(1)
    for i in range(STAGES):
        if i == 0:
            rhs = scaled * slope(0, t, y)
        else:
            argument, couple = (pairs[i, :, :i] @ flat[:i]).view(2, *y.shape).unbind()
            couple = couple if mass is None else couple @ mass.to(y).mT
            rhs = torch.addcmul(couple, scaled, slope(i, torch.add(t, h, alpha=NODES[i]), y + argument))
        if drift is not None and SLOPES[i]:
            rhs = rhs + SLOPES[i] * drift
        space[i] = solve(rhs)


class Stages(torch.autograd.Function):
    """The stages ``(8, rows, n)`` with a backward pass of one transposed solve and one product per stage.

    Only the right-hand sides and the Jacobian are recorded. The field's arguments are passed along for autograd to see; the
    step size is not differentiated. Second derivatives go through `plain_stages`.
    """

    @staticmethod
    def forward(ctx: Any, field: Field, t: Tensor, h: Tensor, y: Tensor, *args: Tensor) -> Tensor:
        moving = ctx.needs_input_grad[1]
        with torch.enable_grad():
            t0, y0 = t.detach().requires_grad_(moving), y.detach().requires_grad_()
            jacobian = field.jacobian(t0, y0)
            drift = slope_in_time(field, t0, y0)
        scaled = GAMMA * h
        packed, pivots, _ = torch.linalg.lu_factor_ex(implicit_matrix(field, jacobian.detach(), scaled))
        space = y.new_empty(STAGES, *y.shape)
        record: list[tuple[Tensor, Tensor, Tensor]] = []

        def slope(i: int, time: Tensor, place: Tensor) -> Tensor:
            with torch.enable_grad():
                time, place = time.detach().requires_grad_(moving), place.detach().requires_grad_()
                rate = field(time, place)
            record.append((time, place, rate))
            return rate.detach()

        def solve(b: Tensor) -> Tensor:
            return torch.linalg.lu_solve(packed, pivots, b.unsqueeze(-1)).squeeze(-1)

        push = None if drift is None else (scaled * h).unsqueeze(-1) * drift.detach()
        fill_stages(field, t, h, y, space, slope, solve, scaled.unsqueeze(-1), push)
        ctx.record, ctx.start, ctx.factors = record, (t0, y0, jacobian, drift), (packed, pivots)
        ctx.field, ctx.given = field, (t, h, y)
        ctx.save_for_backward(space)
        return space

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # the chain of the stages runs through the cotangent of y, wanted or not
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need or i == 3]
        out: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, pull_stages(ctx, wanted, cotangents[0]), strict=True):
            out[i] = grad
        return tuple(out)


def pull_stages(ctx: Any, wanted: list[int], cotangent: Tensor) -> list[Tensor | None]:
    """Cotangents of the inputs of `Stages` numbered by ``wanted``: 1: t, 3: y (always), from 4: the field's arguments."""
    (space,) = ctx.saved_tensors
    field, (_, h, y), (packed, pivots) = ctx.field, ctx.given, ctx.factors
    (t0, y0, jacobian, drift), mass = ctx.start, ctx.field.mass
    pairs = coefficients(y, field)["pairs"]
    scaled = (GAMMA * h).unsqueeze(-1)
    bars = cotangent.clone()
    flat = bars.flatten(1)
    total: list[Tensor | None] = [None] * len(wanted)
    leaves = [field.args[i - 4] if i >= 4 else None for i in wanted]

    def add(outputs: list[Tensor], seeds: list[Tensor], time: Tensor, place: Tensor) -> None:
        inputs: Any = [time if i == 1 else place if i == 3 else leaf for i, leaf in zip(wanted, leaves, strict=True)]
        live = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        if not live:
            return
        found = torch.autograd.grad([o for o, _ in live], inputs, [s for _, s in live], allow_unused=True)
        for k, grad in enumerate(found):
            before = total[k]
            total[k] = before if grad is None else grad if before is None else before + grad

    at = wanted.index(3)
    duals = torch.empty_like(bars)
    for i in reversed(range(STAGES)):
        duals[i] = torch.linalg.lu_solve(packed, pivots, bars[i].unsqueeze(-1), adjoint=True).squeeze(-1)
        time, place, rate = ctx.record[i]
        kept, total[at] = total[at], None
        add([rate], [scaled * duals[i]], time, place)
        moved = total[at]
        if i:
            back = duals[i] if mass is None else duals[i] @ mass.to(y)
            moved = torch.zeros_like(back) if moved is None else moved
            flat[:i] += (pairs[i, :, :i].mT @ torch.stack([moved, back]).flatten(1)).view(i, -1)
        total[at] = kept if moved is None else moved if kept is None else kept + moved
    outer = torch.einsum("sri,srj->rij", duals, space) * scaled.unsqueeze(-1)
    outputs, seeds = [jacobian], [outer]
    if drift is not None:
        outputs.append(drift)
        seeds.append((scaled * h.unsqueeze(-1)) * torch.tensordot(duals.new_tensor(SLOPES), duals, 1))
    add(outputs, seeds, t0, y0)
    return total
