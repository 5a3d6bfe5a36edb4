"""NeuralODE gradients side by side: torchdiffeq's adjoint and torchode, at equal worst-sample error; memory and exactness.

256 trajectories of one network whose time scales spread tenfold. Each engine takes the loosest tolerance (of half-decades)
with which its worst sample is as near to a tight reference as the bar says; then their gradients are timed in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from sciopt.domains.implicit.ode import NeuralODE
from sciopt.hypergradients import TorchDiffEqAdjoint, Unrolled
from sciopt.steppers import RK4, AbstractStepper, Dopri5, TorchDiffEq, Tsit5
from tests.benchmarks.measure import peak_bytes, side_by_side
from tests.benchmarks.table import Measured, bar, peer

ROWS, SIZE, WIDTH, ERROR = 256, 8, 64, 1e-5
TOLERANCES = tuple(10.0 ** (-k / 2) for k in range(4, 24))
Run = Callable[[], Tensor]


class Field(nn.Module):
    """``speed * net(z)``: every trajectory has a time scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(SIZE, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, SIZE)]
        self.net = nn.Sequential(*layers).double()
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(2.0)

    def forward(self, t: Tensor, z: Tensor, speed: Tensor) -> Tensor:
        return speed * self.net(z)


@cache
def setting() -> tuple[Field, Tensor, Tensor]:
    """The network, the starts and the time scales, in no order."""
    field = Field()
    start = torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    return field, start, torch.logspace(0, 1, ROWS, dtype=torch.float64)[order].unsqueeze(-1)


@cache
def truth() -> Tensor:
    """States at time 1, by a tight solve."""
    field, start, speed = setting()
    with torch.no_grad():
        return NeuralODE(field, solver=Tsit5(rtol=1e-12, atol=1e-13))(start, None, speed)


def ours(solver: AbstractStepper, hypergradient: object = None) -> Run:
    """States by a stepper of the project, or by torchdiffeq behind it."""
    field, start, speed = setting()
    kind = hypergradient if isinstance(hypergradient, (Unrolled, TorchDiffEqAdjoint)) else None
    node = NeuralODE(field, solver=solver, hypergradient=kind)
    return lambda: node(start, None, speed)


def torchdiffeq_adjoint(rtol: float, seminorm: bool = False) -> Run:
    """States by ``torchdiffeq.odeint_adjoint`` itself."""
    torchdiffeq = peer("torchdiffeq")
    field, start, speed = setting()
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"adjoint_options": {"norm": "seminorm"}} if seminorm else {}

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = field

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.field(t, z, speed)

    bound = Bound()
    return lambda: torchdiffeq.odeint_adjoint(bound, start, times, rtol=rtol, atol=rtol, **options)[-1]


def torchode(rtol: float) -> Run:
    """States by torchode's Tsit5 with its default controller, per-sample as ours."""
    to = peer("torchode")
    field, start, speed = setting()
    term = to.ODETerm(lambda t, z: field(t, z, speed))
    solver = to.AutoDiffAdjoint(to.Tsit5(term=term), to.IntegralController(atol=rtol, rtol=rtol, term=term))
    ends = torch.zeros(ROWS, dtype=torch.float64), torch.ones(ROWS, dtype=torch.float64)
    at = ends[1].unsqueeze(-1)
    return lambda: solver.solve(to.InitialValueProblem(y0=start, t_start=ends[0], t_end=ends[1], t_eval=at)).ys[:, -1]


def worst(run: Run) -> float:
    """Largest error of any sample."""
    with torch.no_grad():
        return float((run() - truth()).abs().max())


def loosest(make: Callable[[float], Run]) -> tuple[Run, float, float]:
    """The run with the loosest tolerance that keeps the error, its tolerance and its error."""
    for rtol in TOLERANCES:
        run = make(rtol)
        error = worst(run)
        if error <= ERROR:
            return run, rtol, error
    raise RuntimeError(f"no tolerance of {TOLERANCES[-1]:.0e} and above keeps the worst sample's error at {ERROR}")


def gradient(run: Run) -> list[Tensor]:
    """Of a loss over the final states, in every parameter."""
    return list(torch.autograd.grad(run().square().sum(), list(setting()[0].parameters())))


def against(name: str, make: Callable[[float], Run]) -> Measured:
    """Time of a peer's gradient over ours, at equal worst-sample error."""
    mine, my_rtol, my_error = loosest(lambda rtol: ours(Tsit5(rtol=rtol, atol=rtol)))
    theirs, rtol, error = loosest(make)
    times = side_by_side({"ours": partial(gradient, mine), name: partial(gradient, theirs)}, repeat=7)
    apart = gap(gradient(mine), gradient(theirs))
    note = f"{1e3 * times['ours']:.0f} ms (rtol {my_rtol:.0e}, worst error {my_error:.0e}) against "
    note += f"{1e3 * times[name]:.0f} ms (rtol {rtol:.0e}, {error:.0e}); gradients differ by {apart:.0e}"
    return Measured(times[name] / times["ours"], note)


def gap(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative difference of two gradients."""
    one, other = (torch.cat([g.reshape(-1) for g in gs]) for gs in (found, expected))
    return float((one - other).norm() / other.norm())


@bar(
    "NeuralODE gradient, 256 trajectories over 10x of time scales: torchdiffeq adjoint / ours",
    tier="bench",
    bar=">= 3x",
)
def speed_against_adjoint() -> Measured:
    return against("torchdiffeq adjoint", torchdiffeq_adjoint)


@bar("NeuralODE gradient, the same: torchdiffeq seminorm adjoint / ours", tier="bench", bar=">= 2x")
def speed_against_seminorm() -> Measured:
    return against("seminorm adjoint", partial(torchdiffeq_adjoint, seminorm=True))


@bar("NeuralODE gradient, the same: torchdiffeq, direct / ours", tier="bench", bar=">= 1x")
def speed_against_direct() -> Measured:
    return against("torchdiffeq direct", lambda rtol: ours(TorchDiffEq(rtol=rtol, atol=rtol), Unrolled()))


@bar("NeuralODE gradient, the same: torchode / ours", tier="bench", bar=">= 2x")
def speed_against_torchode() -> Measured:
    return against("torchode", torchode)


@bar("NeuralODE gradient, 200 RK4 steps: memory / direct backpropagation through them", tier="bench", bar="<= 0.5x")
def memory() -> Measured:
    run, direct = ours(RK4(num_steps=200)), partial(by_hand, 200)
    few, many = (peak_bytes(partial(gradient, call)) for call in (run, direct))
    apart = gap(gradient(run), gradient(direct))
    note = f"{few / 2**20:.1f} MiB against {many / 2**20:.1f} MiB of tensors; gradients differ by {apart:.0e}"
    return Measured(few / many, note)


@bar("NeuralODE gradient, adaptive: memory / torchdiffeq's direct backpropagation", tier="bench", bar="<= 0.5x")
def memory_adaptive() -> Measured:
    run, direct = ours(Dopri5(rtol=1e-6)), ours(TorchDiffEq(rtol=1e-6), Unrolled())
    few, many = (peak_bytes(partial(gradient, call)) for call in (run, direct))
    return Measured(few / many, f"{few / 2**20:.1f} MiB against {many / 2**20:.1f} MiB of tensors")


@bar("NeuralODE gradient, 200 RK4 steps: relative difference from direct backpropagation", tier="bench", bar="<= 1e-10")
def exactness() -> Measured:
    return Measured(gap(gradient(ours(RK4(num_steps=200))), gradient(partial(by_hand, 200))))


def by_hand(steps: int) -> Tensor:
    """Classical Runge-Kutta written out, recorded by autograd as it goes."""
    field, z, speed = setting()
    h, t = 1 / steps, torch.zeros(())
    for _ in range(steps):
        a = field(t, z, speed)
        b = field(t, z + h / 2 * a, speed)
        c = field(t, z + h / 2 * b, speed)
        d = field(t, z + h * c, speed)
        z = z + h / 6 * (a + 2 * b + 2 * c + d)
    return z
