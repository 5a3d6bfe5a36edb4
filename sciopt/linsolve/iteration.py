"""What all iterative solvers share: the start, the verdict on the true residual, restarts, the `Solution`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype
from sciopt.linsolve.abstract import AbstractPreconditioner
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["Product", "Progress", "check_system", "dot", "power_of_two", "preconditioning", "probe_norm", "run"]

Product = Callable[[Tensor], Tensor]
dot = torch.linalg.vecdot


def preconditioning(operator: LinearOperator, preconditioner: AbstractPreconditioner | None) -> Product | None:
    """The built preconditioner, restricted to the complement of the null space; None without one."""
    if preconditioner is None:
        return None
    product = preconditioner.build(operator)
    return product if operator.nullspace is None else lambda vector: operator.project(product(vector))


@dataclass(kw_only=True)
class Progress:
    """State of a running solve; recurrences advance ``x``, ``status`` and ``steps`` of the rows that are RUNNING.

    Rows are scaled by a power of two so that the right-hand side has entries of size one. Rows that do not run
    have a zero ``residual``.

    Args:
        rhs: scaled right-hand side ``(*batch, m)``, projected on the complement of the null space.
        x: iterate ``(*batch, n)``, owned and updated in place.
        residual: ``rhs - A x`` ``(*batch, m)``, owned by the recurrence.
        threshold: residual norm that counts as converged ``(*batch,)``.
        rhs_norm: norm of ``rhs`` ``(*batch,)``.
        status: codes ``(*batch,)``.
        steps: steps taken ``(*batch,)``.
        operator_norm: lower estimate of the norm of A ``(*batch,)``, raised by recurrences.
        poisoned: rows whose products are not finite, even of a zero vector; None when there are none.
        unseen: first products still to be checked for rows that never ran.
        fresh: whether ``residual`` is the true residual at ``x`` for the rows that ran.
        aux: certificate entries; ``min_*`` and ``max_*`` are merged over restarts.
    """

    rhs: Tensor
    x: Tensor
    residual: Tensor
    threshold: Tensor
    rhs_norm: Tensor
    status: Tensor
    steps: Tensor
    operator_norm: Tensor
    fresh: bool = False
    poisoned: Tensor | None = None
    unseen: int = 3
    aux: dict[str, Tensor] = field(default_factory=dict)

    @property
    def running(self) -> Tensor:
        """Rows still to be advanced ``(*batch,)``."""
        return self.status == int(Status.RUNNING)

    def settle(self, rows: Tensor, status: Status, steps: int | None = None) -> None:
        """Give a status to rows ``(*batch,)``, and add to their step count."""
        self.status = self.status.masked_fill(rows, int(status))
        if steps:
            self.steps = torch.where(rows, self.steps + steps, self.steps)

    def guard(self, product: Tensor) -> Tensor:
        """A product, with zeros in the rows that would poison their stopped state."""
        if self.unseen and self.status.numel() > 1:
            self.unseen -= 1
            self.poison(~self.running & ~torch.isfinite(product).all(-1))
        return product if self.poisoned is None else product.masked_fill(self.poisoned.unsqueeze(-1), 0)

    def poison(self, rows: Tensor) -> None:
        """Remember stopped rows ``(*batch,)`` whose products are not finite; reads one value on the host."""
        if bool(rows.any()):
            self.poisoned = rows if self.poisoned is None else self.poisoned | rows

    def reject(self, rows: Tensor, *vectors: Tensor) -> Tensor:
        """Stop running rows whose preconditioned residual is not finite, before they step; returns the rows left."""
        bad = self.running & ~rows
        self.settle(bad, Status.NONFINITE)
        self.poison(bad)
        for vector in vectors:
            vector.masked_fill_(bad.unsqueeze(-1), 0)
        return self.running

    def note(self, **entries: Tensor) -> None:
        """Merge certificate entries: smallest of ``min_*``, largest of ``max_*``; NaN where a row has none."""
        for name, new in entries.items():
            old = self.aux.get(name)
            if old is not None:
                new = torch.fmin(old, new) if name.startswith("min") else torch.fmax(old, new)
            self.aux[name] = new


def check_system(owner: str, operator: LinearOperator, rhs: Tensor, x0: Tensor | None, *, square: bool = True) -> None:
    """Shapes, dtypes and devices of a system; raises ValueError or TypeError."""
    m, n = operator.shape
    if square and m != n:
        raise ValueError(f"{owner}: expected a square operator, got `shape` {operator.shape}. Use LSMR.")
    for name, vector, size in (("rhs", rhs, m), ("x0", x0, n)):
        if vector is None:
            continue
        expected = (*operator.batch_shape, size)
        if tuple(vector.shape) != expected:
            raise ValueError(
                f"{owner}: expected `{name}` of shape {expected}, got {tuple(vector.shape)}. "
                "Shape it as the operator's batch and size say; expand it where it is shared by the batch."
            )
        if vector.dtype != operator.dtype or vector.device != operator.device:
            raise TypeError(
                f"{owner}: expected `{name}` in {operator.dtype} on {operator.device}, got {vector.dtype} on "
                f"{vector.device}. Convert with .to(dtype=..., device=...) before the call."
            )


def probe_norm(operator: LinearOperator, like: Tensor) -> Tensor:
    """Lower estimate of the norm of A from one product with a fixed dense vector; tells rounding from curvature."""
    index = torch.arange(1, like.shape[-1] + 1, device=like.device, dtype=like.dtype)
    vector = operator.project(torch.cos(index * index).expand_as(like))
    return torch.linalg.vector_norm(operator.mv(vector), dim=-1) / torch.linalg.vector_norm(vector, dim=-1)


def power_of_two(size: Tensor) -> Tensor:
    """The power of two next below each entry; one for zero, infinite and NaN entries."""
    mantissa = torch.frexp(size)[0]
    scale = size / (2 * mantissa)  # exact
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))


@torch.no_grad()
def run(
    owner: str,
    operator: LinearOperator,
    rhs: Tensor,
    x0: Tensor | None,
    *,
    rtol: float | None,
    atol: float,
    max_steps: int | None,
    recurrence: Callable[[Progress, int], None],
    least_squares: bool = False,
) -> Solution:
    """Drive a recurrence until every row has a verdict based on its true residual.

    ``recurrence(progress, budget)`` advances the running rows by at most ``budget`` steps. Afterwards the true
    residual decides: rows whose recurrence claims convergence while the true residual is still above the threshold,
    rows that broke down, and rows that just paused are restarted from where they are as long as that helps.
    With ``least_squares`` the normal residual ``A^T (b - A x)`` may decide instead, see `LSMR`.
    """
    check_system(owner, operator, rhs, x0, square=not least_squares)
    rtol = check_rtol_dtype(owner, rtol, operator.dtype)
    if max_steps is None:
        max_steps = min(max(10 * operator.shape[1], 100), 10_000)
    progress, scale, leak = _begin(operator, rhs, x0, rtol, atol)
    norm = _norm(progress.residual)
    if operator.shape == (1, 1):
        _solve_scalars(operator, progress)
    if bool(progress.running.any()):
        norm = _advance(operator, progress, norm, max_steps, recurrence, rtol if least_squares else None)
    poisoned = progress.status == int(Status.NONFINITE)
    norm = norm.masked_fill(poisoned & (norm == 0), torch.nan)
    value = progress.x.mul_(scale.unsqueeze(-1))
    if leak is not None:
        progress.aux["nullspace_component"] = leak
    if "normal_residual_norm" in progress.aux:
        progress.aux["normal_residual_norm"] = progress.aux["normal_residual_norm"] * scale
    return Solution(
        value=value, status_code=progress.status, residual_norm=norm * scale, num_steps=progress.steps, aux=progress.aux
    )


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dim=-1)


def _begin(
    operator: LinearOperator, rhs: Tensor, x0: Tensor | None, rtol: float, atol: float
) -> tuple[Progress, Tensor, Tensor | None]:
    scale = power_of_two(rhs.abs().amax(-1)) if rhs.shape[-1] else rhs.new_ones(rhs.shape[:-1])
    b = rhs / scale.unsqueeze(-1)
    if x0 is None:
        x = b.new_zeros(*b.shape[:-1], operator.shape[1])
    else:
        x = operator.project(x0 / scale.unsqueeze(-1))
    bad = ~(torch.isfinite(b).all(-1) & torch.isfinite(x).all(-1))
    b = b.masked_fill(bad.unsqueeze(-1), 0)
    x = x.masked_fill(bad.unsqueeze(-1), 0)
    leak = None
    norm = _norm(b)
    if operator.nullspace is not None:
        full, b = norm, operator.project(b)
        norm = _norm(b)
        outside = norm <= 10 * torch.finfo(b.dtype).eps * full  # nothing but rounding is left in the range
        b = b.masked_fill(outside.unsqueeze(-1), 0)
        norm = norm.masked_fill(outside, 0)
        component = torch.linalg.vector_norm((operator.nullspace.mT @ rhs.unsqueeze(-1)).squeeze(-1), dim=-1)
        leak = torch.where(full > 0, component / (full * scale), torch.zeros_like(full))
    zero = norm == 0
    threshold = atol / scale + rtol * norm
    if x0 is None:
        residual = b.clone()
    else:
        x = x.masked_fill(zero.unsqueeze(-1), 0)
        residual = b - operator.project(operator.mv(x))
    progress = Progress(
        rhs=b,
        x=x,
        residual=residual,
        threshold=threshold,
        rhs_norm=norm,
        status=torch.full(scale.shape, int(Status.RUNNING), device=b.device),
        steps=torch.zeros(scale.shape, dtype=torch.int64, device=b.device),
        operator_norm=torch.zeros_like(scale),
    )
    start = _norm(residual)
    progress.settle(zero | (start <= threshold), Status.CONVERGED)
    progress.settle(bad | ~(torch.isfinite(start) | zero), Status.NONFINITE)
    progress.residual = residual.masked_fill((~progress.running & ~(start <= threshold)).unsqueeze(-1), 0)
    return progress, scale, leak


def _solve_scalars(operator: LinearOperator, progress: Progress) -> None:
    """1x1 systems by one division."""
    rows = progress.running
    a = operator.mv(torch.ones_like(progress.x))
    regular = rows & torch.isfinite(a[..., 0]) & (a[..., 0] != 0)
    progress.x = torch.where(regular.unsqueeze(-1), progress.rhs / a, progress.x)
    progress.settle(rows & ~regular, Status.SINGULAR, 1)
    progress.settle(rows & ~torch.isfinite(a[..., 0]), Status.NONFINITE)
    progress.settle(regular, Status.CONVERGED, 1)
    if operator.positive_definite:
        progress.settle(regular & (a[..., 0] < 0), Status.INDEFINITE)
    progress.residual = torch.where(regular.unsqueeze(-1), progress.rhs - a * progress.x, progress.residual)
    curvature = a[..., 0]
    if operator.symmetric:
        progress.note(min_ritz=curvature, max_ritz=curvature)


def _advance(
    operator: LinearOperator,
    progress: Progress,
    last: Tensor,
    max_steps: int,
    recurrence: Callable[[Progress, int], None],
    normal_rtol: float | None,
) -> Tensor:
    """Rounds of a recurrence; returns the true residual norms."""
    eps = torch.finfo(last.dtype).eps
    spent = 0
    while True:
        mine = progress.running
        recurrence(progress, max_steps - spent)
        residual = progress.residual if progress.fresh else progress.rhs - operator.project(operator.mv(progress.x))
        norm = torch.where(mine, _norm(residual), last)
        good = norm <= progress.threshold
        fitted = good if normal_rtol is None else good | _fitted(operator, progress, residual, norm, normal_rtol)
        code = progress.status
        finite = torch.isfinite(norm)
        paused = mine & (code == int(Status.RUNNING)) & ~fitted & finite
        claimed = mine & (code == int(Status.CONVERGED)) & ~fitted & finite
        broken = mine & (code == int(Status.BREAKDOWN)) & ~fitted & finite
        keep = (code == int(Status.INDEFINITE)) | (code == int(Status.NONFINITE))
        left = progress.steps < max_steps
        again = left & ((paused & (norm < (1 - 10 * eps) * last)) | ((claimed | broken) & (norm < 0.5 * last)))
        progress.settle(mine & ~finite, Status.NONFINITE)
        progress.settle(mine & fitted & ~keep, Status.CONVERGED)
        if operator.shape[0] <= operator.shape[1]:
            progress.settle(mine & fitted & ~good & ~keep, Status.SINGULAR)
        progress.settle(paused & ~left, Status.MAX_STEPS)
        progress.settle((paused & left) | claimed, Status.STAGNATED)
        progress.settle(again, Status.RUNNING)
        stuck = _stuck(progress) & (progress.threshold > 0)
        flags = torch.stack([again.any(), (torch.where(again, progress.steps, 0)).max(), stuck.any()])
        more, taken, failed = flags.tolist()
        if not more:
            if failed:
                _find_singular(operator, progress, stuck, residual, norm)
            return norm
        spent = int(taken)
        last = norm
        progress.residual = residual.masked_fill(~again.unsqueeze(-1), 0)


def _fitted(operator: LinearOperator, progress: Progress, residual: Tensor, norm: Tensor, rtol: float) -> Tensor:
    """Rows at a least-squares solution: ``|A^T r| <= tol |A| |r|``."""
    image = operator.project(operator.transpose().mv(residual))
    normal = _norm(image)
    progress.aux["normal_residual_norm"] = normal
    return normal <= normal_tolerance(operator, rtol) * progress.operator_norm * norm


def normal_tolerance(operator: LinearOperator, rtol: float) -> float:
    """Relative size of the normal residual that counts as zero.

    Systems with at least as many unknowns as equations are expected to have a solution: there it is close to rounding.
    """
    m, n = operator.shape
    return rtol if m > n else torch.finfo(operator.dtype).eps ** 0.75


def _stuck(progress: Progress) -> Tensor:
    codes = (Status.MAX_STEPS, Status.STAGNATED, Status.BREAKDOWN)
    return torch.stack([progress.status == int(code) for code in codes]).any(0)


def _find_singular(operator: LinearOperator, progress: Progress, rows: Tensor, residual: Tensor, norm: Tensor) -> None:
    """Tell SINGULAR from other failures, to rounding: ``A x = 0`` with ``x != 0``, or ``A^T r = 0`` with ``r != 0``.

    A residual at rounding level says nothing. Deliberately truncated solves (tolerances zero) do not come here.
    """
    if operator.shape[0] > operator.shape[1]:
        return
    eps = torch.finfo(norm.dtype).eps
    scale = torch.fmax(progress.operator_norm, probe_norm(operator, progress.x))
    size = _norm(progress.x)
    lost = (_norm(progress.rhs - residual) <= 100 * eps * scale * size) & (size > 0)
    if operator.rmv is not None:
        image = operator.project(operator.transpose().mv(residual))
        lost = lost | (_norm(image) <= 10 * eps**0.5 * scale * norm)
    visible = norm > 1e3 * eps * progress.rhs_norm
    progress.settle(rows & lost & visible, Status.SINGULAR)
