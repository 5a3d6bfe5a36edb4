"""`NeuralODE`: a layer whose output is the state that a learned differential equation reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sciopt import InitialValue, Solution, best_response
from sciopt.domains.implicit.frozen import Frozen
from sciopt.domains.implicit.noise import Masks
from sciopt.domains.implicit.ode.context import Split, check_context, parted
from sciopt.domains.implicit.ode.integrals import AbstractIntegral
from sciopt.hypergradients import AbstractHypergradient
from sciopt.steppers import AbstractStepper, Tsit5
from sciopt.transforms import is_wrapped, under_transform

__all__ = ["NeuralODE"]


@final
class NeuralODE(nn.Module):
    """``z(T)`` of ``dz/dt = f(t, z)`` or ``f(t, z, x)``, ``z(0)`` the input: a residual network of continuous depth.

    Every row of the batch has step sizes, and if wanted times, of its own, and is dropped when it has arrived. The gradient
    is by default that of the steps that were taken (exact, one state kept per step); it reaches the input, the times, the
    context x and every tensor that f uses. During a solve f is held still: dropout masks are drawn once per call,
    batch-norm statistics are updated once and kept; the solve and its derivative run outside autocast.

    Args:
        field: ``f(t, z) -> dz/dt`` or ``f(t, z, x)``, any module or callable, on z ``(batch, ...)``; t is
            ``(batch, 1, ..., 1)``, as many dimensions as z (for ``rowwise=False``: ``()``).
        solver: a stepper with its tolerances; None: ``Tsit5()``. Fixed steps: ``RK4(num_steps=20)``.
        hypergradient: how the solve is differentiated; None: exactly (`Unrolled`).
        times: default output times ``(k,)`` or ``(k, batch)``, the start first; None: from 0 to 1.
        trajectory: return all output times ``(k, batch, ...)`` instead of the last.
        integrals: quantities to integrate along the way (`KineticEnergy`, `JacobianNorm`, `Divergence`), found in
            ``solution.aux["integrals"]``. They count in the error control.
        rowwise: whether row i of f depends on row i of its inputs alone; False: one system, one step size for all rows.
        with_solution: return ``(value, solution)``; the `Solution` tells status, steps and evaluations of each row.
        throw: raise `SolveError` when a row fails; False: its row holds the last good state and has no
            derivative, and ``solution`` tells.

    Raises:
        TypeError: for strategies that are none.
        ValueError: for ``rowwise=True`` when the rows of f depend on one another.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> node = NeuralODE(lambda t, z: net(z))
        >>> node(torch.ones(5, 2)).shape, node(torch.ones(5, 2), torch.linspace(0, 1, 4)).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))

    References:
        Chen et al. "Neural ordinary differential equations". NeurIPS 2018.
    """

    times: Tensor | None

    def __init__(
        self,
        field: Callable[..., Tensor],
        *,
        solver: AbstractStepper | None = None,
        hypergradient: AbstractHypergradient | None = None,
        times: Tensor | None = None,
        trajectory: bool = False,
        integrals: Sequence[AbstractIntegral] = (),
        rowwise: bool = True,
        with_solution: bool = False,
        throw: bool = True,
    ) -> None:
        super().__init__()
        expect("field", field, callable(field), "a module or a function f(t, z)", "Pass the network.")
        solver = Tsit5() if solver is None else solver
        expect("solver", solver, isinstance(solver, AbstractStepper), "a stepper", "Pass an object such as Tsit5().")
        kind = hypergradient is None or isinstance(hypergradient, AbstractHypergradient)
        expect("hypergradient", hypergradient, kind, "a hypergradient or None", "Pass an object such as Unrolled().")
        known = all(isinstance(i, AbstractIntegral) for i in integrals)
        expect("integrals", integrals, known, "integrals", "Pass objects such as KineticEnergy().")
        expect(
            "integrals", integrals, rowwise or not integrals, "none with rowwise=False", "Integrals are kept per row."
        )
        self.field, self.solver, self.hypergradient = field, solver, hypergradient
        self.register_buffer("times", times, persistent=False)
        self.trajectory, self.integrals, self.rowwise = trajectory, tuple(integrals), rowwise
        self.with_solution, self.throw = with_solution, throw

    def forward(
        self, z0: Tensor, times: Tensor | None = None, x: Any = None, *, generator: torch.Generator | None = None
    ) -> Any:
        """The state at the last of the ``times`` (with ``trajectory``: at all).

        Args:
            z0: start, ``(batch, ...)``, float32 or float64, any device.
            times: output times ``(k,)``, or ``(k, batch)`` for times of each row's own; None: those of the layer.
            x: context of f, a tensor or tree of tensors ``(batch, ...)``, constant in time; gradients reach it.
            generator: source of dropout masks and of the noise of integrals; None: torch's global one.

        Returns:
            ``(batch, ...)``, or ``(k, batch, ...)`` with ``trajectory``; with ``with_solution`` a pair of it and the
            `Solution`.

        Raises:
            SolveError: with ``throw``, when a row fails.
        """
        expect("z0", z0, isinstance(z0, Tensor) and z0.ndim > 0, "a tensor (batch, ...)", "Add the batch in front.")
        if torch.is_autocast_enabled(z0.device.type):  # what comes from layers before may be in half precision
            z0, x = widened(z0), pytree.tree_map(widened, x)
        with torch.autocast(z0.device.type, enabled=False):
            solution = self.solve(z0, times, x, generator)
        state = solution.value
        value = state["z"] if isinstance(state, dict) else state
        out = value if self.trajectory else value[-1]
        return (out, self.reported(solution, out)) if self.with_solution else out

    def reported(self, solution: Solution, out: Tensor) -> Solution:
        """The solution with the layer's value, integrals among its remarks."""
        aux = dict(solution.aux)
        if self.integrals:
            held = solution.value["integrals"]
            aux["integrals"] = held if self.trajectory else held[-1]
        return Solution(
            value=out,
            status_code=solution.status_code,
            residual_norm=solution.residual_norm,
            num_steps=solution.num_steps,
            state=solution.state,
            aux=aux,
        )

    def solve(self, z0: Tensor, times: Tensor | None, x: Any, generator: torch.Generator | None) -> Solution:
        """State the initial-value problem and solve it."""
        times = self.times if times is None else times
        if times is None:
            times = torch.tensor([0.0, 1.0], dtype=z0.dtype, device=z0.device)
        times = times.to(z0)
        phi, split = parted(x, z0)
        check_context(x, z0, self.rowwise)
        frozen = Frozen(self.field, Masks(generator), "NeuralODE")
        start = times[0].expand(len(z0)) if self.rowwise else times[0]
        with torch.no_grad():
            frozen.begin(*arguments(start.detach(), z0.detach(), pytree.tree_map(detached, x)))
            noise = [integral.noise(z0.detach(), generator) for integral in self.integrals]
        flow = Flow(frozen, split, self.integrals, tuple(noise))
        self.check(flow, start, z0, phi)
        init: Any = z0
        if self.integrals:
            init = {"z": z0, "integrals": z0.new_zeros(len(z0), len(self.integrals))}
        problem = flow.problem(times, self.rowwise)
        return best_response(
            problem, phi, init=init, solver=self.solver, hypergradient=self.hypergradient, throw=self.throw
        )

    def check(self, flow: Flow, start: Tensor, z0: Tensor, phi: Any) -> None:
        """Evaluate once on all rows and once on some: shapes, buffers, and whether the rows stand alone."""
        t, z = start.detach(), z0.detach()
        out = flow.frozen.check_still(*flow.inputs(t, z, phi))
        if not isinstance(out, Tensor) or out.shape != z.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"NeuralODE: expected `field` to return dz/dt of shape {tuple(z.shape)}, got {got}. Return one slope per "
                "entry of z."
            )
        if not self.rowwise or len(z) < 2 or under_transform() or is_wrapped(out):
            return
        rows = torch.arange(len(z) - 1, len(z), device=z.device)
        with torch.no_grad():
            alone = flow.restricted(rows)
            part = alone.frozen(*alone.inputs(t[rows], z[rows], phi))
        gap, size = (part - out[rows]).abs().max(), out[rows].abs().max()
        if bool(gap > 1e-2 * size + 1e-6):
            raise ValueError(
                f"NeuralODE: expected a `field` whose rows stand alone, got one whose last row changes by {float(gap):.1e} "
                "when it is evaluated without the others. Pass rowwise=False (batch norm: keep running statistics)."
            )


@final
@dataclass(frozen=True, eq=False)
class Flow:
    """The right-hand side of one solve."""

    frozen: Frozen
    split: Split
    integrals: tuple[AbstractIntegral, ...]
    noise: tuple[Tensor | None, ...]
    rows: Tensor | None = None

    def restricted(self, rows: Tensor) -> Flow:
        """The flow of some rows of the whole batch."""
        noise = tuple(None if n is None else n.index_select(0, rows) for n in self.noise)
        return Flow(self.frozen.restricted(rows), self.split.restricted(rows), self.integrals, noise, rows)

    def problem(self, times: Tensor, rowwise: bool) -> InitialValue:
        """The initial-value problem, which knows how to drop rows."""
        if not rowwise:
            return InitialValue(self.dynamics, times)

        def restrict(rows: Tensor) -> InitialValue:
            some = times.reshape(len(times), -1)[:, :1].expand(-1, len(rows))  # not read
            return InitialValue(self.restricted(rows).dynamics, some, batch_ndim=1)

        return InitialValue(self.dynamics, times, batch_ndim=1, restrict=restrict)

    def inputs(self, t: Tensor, z: Tensor, phi: Any) -> tuple[Any, ...]:
        """What the user's function takes."""
        if t.ndim and t.ndim != z.ndim:
            t = t.reshape(-1, *(1,) * (z.ndim - 1))
        if self.split.spec is None:
            return t, z
        return t, z, self.split.join(phi, self.rows)

    def dynamics(self, t: Tensor, state: Any, phi: Any) -> Any:
        """``f`` on the solver's state, outside autocast."""
        if torch.is_autocast_enabled(t.device.type):  # a backward pass may be called inside
            with torch.autocast(t.device.type, enabled=False):
                return self.slope(t, state, phi)
        return self.slope(t, state, phi)

    def slope(self, t: Tensor, state: Any, phi: Any) -> Any:
        if not self.integrals:
            return self.frozen(*self.inputs(t, state, phi))
        z = state["z"]
        t, _, *x = self.inputs(t, z, phi)
        if any(integral.pulls for integral in self.integrals):
            dz, back = torch.func.vjp(lambda z: self.frozen(t, z, *x), z)[:2]
            pull = lambda u: back(u)[0]  # noqa: E731
        else:
            dz, pull = self.frozen(t, z, *x), no_pull
        rates = [i.rate(dz, pull, noise) for i, noise in zip(self.integrals, self.noise, strict=True)]
        return {"z": dz, "integrals": torch.stack(rates, -1)}


def arguments(t: Tensor, z: Tensor, x: Any) -> tuple[Any, ...]:
    """Arguments of the user's function at the start."""
    t = t.reshape(-1, *(1,) * (z.ndim - 1)) if t.ndim else t
    return (t, z) if x is None else (t, z, x)


def widened(leaf: Any) -> Any:
    """A tensor of half precision as a single one."""
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.float() if half else leaf


def detached(leaf: Any) -> Any:
    """A leaf without its graph."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def no_pull(u: Tensor) -> Tensor:
    """Stands for the product that no integral asks for."""
    raise NotImplementedError(
        "AbstractIntegral: expected `pulls` to be True where `pull` is used, got False. Declare it."
    )


def expect(name: str, value: Any, ok: bool, what: str, advice: str) -> None:
    """Raise for an argument of the wrong kind."""
    if not ok:
        shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        kind = ValueError if name in ("x", "integrals") else TypeError
        raise kind(f"NeuralODE: expected `{name}` to be {what}, got {shown}. {advice}")
