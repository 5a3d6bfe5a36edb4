"""Relaxed conformers: the minimum of an energy from every start of a batch, by the core's solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt import Minimize, Solution, Status, best_response
from sciopt.checks import check_rtol_dtype, check_tolerances
from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.mmff import MMFF
from sciopt.domains.conformation.rigid import batch_nullspace, fragment_labels
from sciopt.domains.conformation.terms.energy import AbstractEnergy, row_names_of
from sciopt.inner import LBFGS
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve import LinearOperator
from sciopt.linsolve.abstract import AbstractLinearSolver

__all__ = ["HessianAdjoint", "Relaxed", "relax", "relaxation_problem"]

RIDGE = 3.0  # kcal/mol/A^2 added to the springs of the model Hessian, about the curvature of soft motions
ROUGH = 100.0  # the same while bonds and contacts of a start settle: soft motions wait, the valley stays the start's
TOLERANCE = 1e-2  # kcal/mol/A, norm of a row's gradient; about where RDKit's own minimizer stops
BUDGET = 1_000
STIFF = 2e3  # kcal/mol/A^2, about the largest curvature of a bond
MOST_NUMBERS = 1 << 25  # of the model Hessians of the rows minimised at once: 256 MB in float64, a few times over
LARGEST_MODEL = 3_000  # coordinates of a row; beyond it the Hessian is not modelled, and L-BFGS goes without
WASTE = 0.2  # of padded atoms in a group: larger groups are worth it
SETTLING = LBFGS(rtol=0.0, atol=5.0, max_steps=25, max_change=0.1)
EARLY = LBFGS(rtol=0.0, atol=5e-2, max_steps=BUDGET, max_change=0.1)
LATE = LBFGS(rtol=0.0, atol=TOLERANCE, max_steps=BUDGET, max_change=0.1)


def relaxation_problem(
    energy: AbstractEnergy, batch: ConformerBatch, *, free: bool = True, ridge: float = RIDGE
) -> Minimize:
    """The inner problem ``argmin_x energy(x, outer_params)`` over the rows of a batch.

    It can drop rows, brings the springs of its terms as a model Hessian, and declares the rigid motions of each fragment.

    Args:
        energy: of the rows of the batch.
        batch: the rows; its positions are not used.
        free: whether rigid motions leave the energy unchanged; False with a `PositionRestraint`.
        ridge: added to the diagonal of the model Hessian [kcal/mol/A^2].

    Returns:
        `Minimize` with ``batch_ndim=1`` over positions ``(rows, N, 3)``; outer parameters are those of the energy, a dict, or
        None-like (any tensor) for none.

    Raises:
        ValueError: for an energy of other rows.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> from sciopt import best_response
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
        >>> found = rdDistGeom.EmbedMolecule(mol, randomSeed=7)
        >>> batch = ConformerBatch.from_mols([mol])
        >>> inner = relaxation_problem(MMFF.of(batch), batch)
        >>> best_response(inner, batch.positions.new_zeros(0), init=batch.positions, solver=LATE).status.name
        'CONVERGED'
    """
    if energy.shape != tuple(batch.positions.shape[:2]):
        raise ValueError(
            f"relaxation_problem: expected an energy of {tuple(batch.positions.shape[:2])} rows and atoms, got one of "
            f"{energy.shape}. Make it of the same batch."
        )
    labels = fragment_labels(batch)
    return _problem(energy, labels, free, ridge, None)


def _problem(energy: AbstractEnergy, labels: Tensor, free: bool, ridge: float, chosen: Tensor | None) -> Minimize:
    """The problem of the rows ``chosen`` of a batch (None: all), whose energy and labels are given."""
    pads = (labels < 0).unsqueeze(-1)
    padded = bool(pads.any())

    def mine(outer_params: Any) -> Any:
        given = own(outer_params)
        if given is None or chosen is None:
            return given
        return {name: t.index_select(0, chosen) if name in row_names_of(energy) else t for name, t in given.items()}

    def loss(positions: Tensor, outer_params: Any) -> Tensor:
        value = energy(positions, mine(outer_params))
        if padded:  # padded atoms rest at the origin, so that the Hessian is regular there
            value = value + 0.5 * torch.where(pads, positions * positions, 0.0).sum((-2, -1))
        return value

    def model(positions: Tensor, outer_params: Any) -> Tensor:
        matrix = energy.curvature(positions, mine(outer_params) or {}, exact=False)
        matrix.diagonal(dim1=-2, dim2=-1).add_(ridge)
        return matrix

    def restrict(rows: Tensor) -> Minimize:
        among = rows if chosen is None else chosen.index_select(0, rows)
        return _problem(energy.select(rows), labels.index_select(0, rows), free, ridge, among)

    nullspace = batch_nullspace(labels) if free else None
    modelled = model if 3 * labels.shape[1] <= LARGEST_MODEL else None
    return Minimize(loss, batch_ndim=1, nullspace=nullspace, restrict=restrict, model_hessian=modelled)


def own(outer_params: Any) -> Any:
    """Outer parameters as an energy takes them: a dict, or None."""
    return outer_params if isinstance(outer_params, dict) else None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Relaxed:
    """Minima of a batch.

    Args:
        batch: the rows at their minima.
        energy: ``(rows,)`` [kcal/mol].
        status_code: `Status` codes ``(rows,)``.
        residual_norm: norm of each row's gradient [kcal/mol/A].
        num_steps: evaluations that each row took.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
        >>> found = rdDistGeom.EmbedMolecule(mol, randomSeed=7)
        >>> relaxed = relax(ConformerBatch.from_mols([mol]))
        >>> relaxed.converged.tolist(), relaxed.batch.positions.shape
        ([True], torch.Size([1, 6, 3]))
    """

    batch: ConformerBatch
    energy: Tensor
    status_code: Tensor
    residual_norm: Tensor
    num_steps: Tensor

    @property
    def converged(self) -> Tensor:
        """Which rows reached the tolerance, boolean ``(rows,)``."""
        return self.status_code == int(Status.CONVERGED)

    @property
    def reasons(self) -> list[str]:
        """For each row an empty text, or why it ended short of the tolerance."""
        codes = self.status_code.tolist()
        return ["" if code == Status.CONVERGED else f"{Status(code).name}: {Status(code).advice}" for code in codes]


def relax(
    batch: ConformerBatch,
    energy: Callable[[ConformerBatch], AbstractEnergy] | None = None,
    *,
    solver: AbstractSolver | None = None,
    free: bool = True,
    max_rows: int = 1_024,
) -> Relaxed:
    """Minimise every row from where it stands.

    Rows are grouped by size; in a group each row has its own line search, budget and verdict, and is dropped when it has
    ended. The same batch gives the same bits. For gradients through the minimum call `best_response` with
    `relaxation_problem`.

    Args:
        batch: the starts.
        energy: makes the energy of some rows of the batch; None: MMFF94.
        solver: None: L-BFGS to a gradient of 0.01 kcal/mol/A within 1,000 evaluations, preceded by as many in float32 down to
            0.05, which cost half as much, of which the first 25 settle bonds and contacts.
        free: see `relaxation_problem`.
        max_rows: most rows minimised at once.

    Returns:
        `Relaxed`, rows in the order of the batch; a row that failed keeps its last point and says why.

    Raises:
        MMFFError: from MMFF94, for molecules without parameters.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
        >>> ids = rdDistGeom.EmbedMultipleConfs(mol, 2, randomSeed=7)
        >>> relaxed = relax(ConformerBatch.from_mols([mol]))
        >>> relaxed.converged.tolist(), [round(e, 2) for e in relaxed.energy.tolist()]
        ([True, True], [-1.34, -1.34])
    """
    make = MMFF.of if energy is None else energy
    positions = batch.positions.clone()
    value = positions.new_zeros(len(batch))
    code = torch.zeros(len(batch), dtype=torch.int64, device=positions.device)
    norm, steps = value.clone(), code.clone()
    for rows in groups(batch, max_rows):
        part = batch.rows(rows)
        field = make(part)
        start, early = part.positions, code[rows]
        if solver is None:
            start, early = approach(field, part, free)
        sol = settle(field, part.with_positions(start), LATE if solver is None else solver, free)
        positions[rows, : part.positions.shape[1]] = sol.value
        value[rows] = field(sol.value)
        code[rows], norm[rows], steps[rows] = sol.status_code, sol.residual_norm, sol.num_steps + early
    return Relaxed(
        batch=batch.with_positions(positions), energy=value, status_code=code, residual_norm=norm, num_steps=steps
    )


def groups(batch: ConformerBatch, max_rows: int) -> list[Tensor]:
    """Rows of about one size, no more at once than their matrices allow."""
    out: list[Tensor] = []
    for rows in batch.buckets(waste=WASTE):
        size = 3 * int(batch.num_atoms[rows].max())
        fitting = MOST_NUMBERS // min(size, LARGEST_MODEL) ** 2
        out += rows.split(max(1, min(max_rows, fitting)))
    return out


def approach(energy: AbstractEnergy, batch: ConformerBatch, free: bool) -> tuple[Tensor, Tensor]:
    """Positions near the minima by steps in float32, and how many evaluations each row took."""
    coarse, narrow = energy.to(torch.float32), batch.with_positions(batch.positions.to(torch.float32))
    rough = settle(coarse, narrow, SETTLING, free, ROUGH)
    # what rounding of coordinates leaves of the gradient: a chain of hundreds of angstrom gets no nearer in float32
    noise = (
        STIFF
        * torch.finfo(torch.float32).eps
        * float(narrow.positions.abs().max())
        * narrow.positions[0].numel() ** 0.5
    )
    early = replace(EARLY, atol=max(EARLY.atol, noise))
    close = settle(coarse, narrow.with_positions(rough.value), early, free)
    fine = close.value.isfinite().flatten(1).all(-1)[:, None, None]
    positions = torch.where(fine, close.value.to(batch.positions.dtype), batch.positions)
    return positions, rough.num_steps + close.num_steps


def settle(
    energy: AbstractEnergy, batch: ConformerBatch, solver: AbstractSolver, free: bool, ridge: float = RIDGE
) -> Solution:
    """One solve of all rows from where they stand."""
    problem = relaxation_problem(energy, batch, free=free, ridge=ridge)
    none = batch.positions.new_zeros(1)
    return best_response(problem, none, init=batch.positions, solver=solver, throw=False)


@final
@dataclass(frozen=True, kw_only=True)
class HessianAdjoint(AbstractLinearSolver):
    """Direct adjoint of a relaxation: the energy's exact Hessian, assembled once, by Cholesky on the internal motions.

    Use it in ``Implicit(HessianAdjoint(energy=energy))`` for molecules of up to a few hundred atoms; a relaxation costs
    tens of times more than this solve. Larger ones: ``Implicit(CG(...))``.

    Args:
        energy: the energy of the relaxation's rows, all of them.
        rtol: residual, relative to ``|b| + |H| |u|``, that counts as solved; None: 1e-8 in float64, 1e-4 in float32.

    Returns:
        From `solve`: `Solution`; a row at a saddle, whose Hessian is not positive definite on the internal motions, is
        INDEFINITE.

    Raises:
        ValueError: from `solve`, for an operator that is no relaxation's.

    Example:
        >>> from rdkit import Chem
        >>> from rdkit.Chem import rdDistGeom
        >>> from sciopt.hypergradients import Implicit
        >>> mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
        >>> found = rdDistGeom.EmbedMolecule(mol, randomSeed=7)
        >>> batch = ConformerBatch.from_mols([mol])
        >>> energy = MMFF.of(batch)
        >>> outer = {"bond_length": energy.parameters()["bond_length"].requires_grad_()}
        >>> sol = best_response(relaxation_problem(energy, batch), outer, init=batch.positions,
        ...                     solver=LBFGS(rtol=0.0, atol=1e-6), hypergradient=Implicit(HessianAdjoint(energy=energy)))
        >>> (sol.value[0, 0] - sol.value[0, 1]).norm().backward()  # the carbon-carbon distance
        >>> bool(outer["bond_length"].grad[0, 0] > 0.5)
        True
    """

    direct: ClassVar[bool] = True
    energy: AbstractEnergy
    rtol: float | None = None

    def __post_init__(self) -> None:
        check_tolerances("HessianAdjoint", self.rtol, 0.0)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        if operator.evaluate is None:
            raise ValueError(
                "HessianAdjoint: expected the `operator` of a relaxation, got one without `evaluate`. Use it in Implicit(...) "
                "only."
            )
        rtol = check_rtol_dtype("HessianAdjoint", self.rtol, rhs.dtype)
        with torch.no_grad():
            matrix = operator.evaluate(lambda x, phi: self.energy.curvature(x, own(phi) or {}, exact=True))
            empty = matrix.diagonal(dim1=-2, dim2=-1) == 0  # padded atoms
            matrix = matrix + torch.diag_embed(empty.to(rhs.dtype))
            size = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
            aux: dict[str, Any] = {}
            source = operator.project(rhs)
            if operator.nullspace is not None:
                basis = operator.nullspace
                matrix = matrix + size[..., None, None] * (basis @ basis.mT)
                length = torch.linalg.vector_norm(rhs, dim=-1)
                leak = torch.linalg.vector_norm(rhs - source, dim=-1)
                aux["nullspace_component"] = torch.where(length > 0, leak / length, 0.0)
            factor, info = torch.linalg.cholesky_ex(matrix)
            value = operator.project(torch.cholesky_solve(source.unsqueeze(-1), factor).squeeze(-1))
            norm = torch.linalg.vector_norm(operator.project(operator.mv(value).detach()) - source, dim=-1)
            scale = torch.linalg.vector_norm(source, dim=-1) + size * torch.linalg.vector_norm(value, dim=-1)
        code = torch.where(norm <= rtol * scale, int(Status.CONVERGED), int(Status.STAGNATED))
        code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
        code = torch.where(info != 0, int(Status.INDEFINITE), code)
        code = code.masked_fill((source == 0).all(-1), int(Status.CONVERGED))  # nothing asked of this row
        return Solution(
            value=value,
            status_code=code,
            residual_norm=norm,
            num_steps=torch.ones_like(code),
            state={"scale": scale},
            aux=aux,
        )
