"""Rodas5P: a Rosenbrock method of order five for stiff systems and index-1 differential-algebraic equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt, check_one_step, tolerances
from sciopt.steppers.field import Field
from sciopt.steppers.stage_solve import factored, implicit_matrix
from sciopt.transforms import under_transform

__all__ = ["Rodas5P"]

STAGES = 8
GAMMA = 0.21193756319429014
NODES = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
SLOPES = (
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
    0,
    0,
    0,
)
# Rows: a_ij of the argument of stage i; the last two add the latest stage to the argument before.
ARGUMENTS = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946, 1.0),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946, 1.0, 1.0),
)
# Rows: C_ij of the right-hand side of stage i.
COUPLINGS = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002),
        *(-54.66780262877968, -9.48861652309627),
    ),
)
# Dense output: y(s) = (1 - s) y0 + s (y1 + (1 - s) (k0 + s (k1 + s k2))), k = DENSE @ stages.
DENSE = (
    (
        *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204, 0.524948541321073),
        *(1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
    ),
    (
        *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796, 20.176138334709044),
        *(15.98066361424651, -6.789040303419874, -6.710236069923372),
    ),
    (
        *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643, -52.072871366152654),
        *(-59.78993625266729, -0.15582684282751913, 4.883087185713722),
    ),
)


@final
@dataclass(frozen=True, kw_only=True)
class Rodas5P(AbstractOneStep):
    """Rosenbrock-Wanner method of order 5(4) with stiff dense output of order 4: the default for stiff systems.

    L-stable and stiffly accurate, without Newton iterations: each step takes one Jacobian, one LU factorisation and eight
    solves per problem. It keeps linear invariants to rounding and solves index-1 differential-algebraic equations
    (`InitialValue` with a singular ``mass``) from consistent initial values. Give the problem its ``jacobian`` where there
    is a formula: n products by autograd cost more than the rest of a small step. For hundreds of unknowns the dense
    matrices dominate.

    Args:
        rtol: relative tolerance of the local error; default 1e-6 in float64, 1e-4 in float32.
        atol: absolute tolerance of the local error, in units of the state; default 1e-9 in float64, 1e-6 in float32.
        max_steps: largest number of trial steps of one problem.
        first_step: length of the first step, in units of time; None: chosen from the first slopes.
        num_steps: take this many equal steps without error control; None: adaptive steps.
        nonnegative: reject steps that end with a component below ``-atol``, and try a smaller one. Nothing is clipped:
            clipping would break conservation laws and derivatives. A field that pushes a zero component below zero then
            ends with `Status.STAGNATED`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> fast = InitialValue(lambda t, y, rate: -rate * (y - torch.cos(t)), times)
        >>> rate = torch.tensor(1e6, dtype=torch.float64)
        >>> solution = best_response(fast, rate, init=torch.zeros(1, dtype=torch.float64), solver=Rodas5P())
        >>> round(solution.value[-1].item(), 6), bool(solution.num_steps < 60)  # cos(1)
        (0.540303, True)

    References:
        Steinebach. "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia Differential
        Equations package". BIT Numerical Mathematics 63:27, 2023. Hairer, Wanner. "Solving Ordinary Differential Equations
        II". Springer 1996. Section IV.7.
    """

    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5
    dense_order: ClassVar[int] = 4
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 10_000
    first_step: float | None = None
    num_steps: int | None = None
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        """See `AbstractOneStep.attempt`."""
        if field.lean and not torch.is_grad_enabled():
            stages = lean_stages(field, t, h, y, start)
        else:
            stages = plain_stages(field, t, h, y)
        end = y + stages @ coefficients(y, field)["end"]
        error = stages[..., -1]
        ok = (end >= -tolerances(self, y.dtype)[1]).all(-1) if self.nonnegative else None
        return Attempt(y=end, error=error, dense=(stages,), ok=ok)

    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        """See `AbstractOneStep.interpolate`."""
        k = attempt.dense[0] @ y.new_tensor(DENSE).mT
        s = fraction.unsqueeze(-1)
        bend = k[..., 0] + s * (k[..., 1] + s * k[..., 2])
        return (1 - s) * y + s * (attempt.y + (1 - s) * bend)


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
    """The same numbers in scratch space, where nothing is recorded."""
    solve, scaled, drift = setting(field, t, h, y)
    mass = field.mass
    pairs = coefficients(y, field)["pairs"]
    key = ("stages", y.shape)
    if key not in field.scratch:
        field.scratch[key] = y.new_empty(STAGES, *y.shape)
    space = field.scratch[key]
    flat = space.flatten(1)
    for i in range(STAGES):
        if i == 0:
            rhs = scaled * (field(t, y) if start is None else start)
        else:
            argument, couple = (pairs[i, :, :i] @ flat[:i]).view(2, *y.shape).unbind()
            couple = couple if mass is None else couple @ mass.to(y).mT
            rhs = torch.addcmul(couple, scaled, field(torch.add(t, h, alpha=NODES[i]), y + argument))
        if drift is not None and SLOPES[i]:
            rhs = rhs + SLOPES[i] * drift
        space[i] = solve(rhs)
    return space.permute(1, 2, 0)
