"""What is trained for: likely distances alone, or structures through the inner problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor

from sciopt import Status
from sciopt.checks import check_option
from sciopt.constraints import kabsch
from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.learning.graphs import GraphBatch
from sciopt.domains.conformation.learning.network import DistanceModel, DistancePrediction, kl_divergence
from sciopt.domains.conformation.learning.starts import AbstractStart, GivenStart, SpectralStart
from sciopt.domains.conformation.learning.structures import InnerOptions, reconstruct
from sciopt.domains.conformation.metrics import atom_matches

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = [
    "AbstractObjective",
    "EndToEnd",
    "EndToEndRecall",
    "Matches",
    "RowLosses",
    "TwoStage",
    "aligned_rmsd",
    "match_table",
]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RowLosses:
    """Losses of the rows of a batch.

    Args:
        total: ``(rows,)``, what is minimised; attached to autograd.
        likelihood: negative logarithm of the likelihood per distance ``(rows,)``, detached.
        divergence: KL term per distance ``(rows,)``, detached.
        rmsd: of the structure from the reference after alignment ``(rows,)`` [A], detached; NaN where there is none.
        status_code: of the inner problem ``(rows,)``; -1 where it was not solved.
    """

    total: Tensor
    likelihood: Tensor
    divergence: Tensor
    rmsd: Tensor
    status_code: Tensor


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Matches:
    """Equivalent numberings of molecules, padded: ``mobile`` ``(molecules, A, H)`` laid on ``target`` ``(molecules, H)``.

    Args:
        mobile: int64; numberings that a molecule does not have repeat its first.
        target: int64.
        weight: ``(molecules, H)``, one for atoms that count and zero for padding.
    """

    mobile: Tensor
    target: Tensor
    weight: Tensor

    def rows(self, index: Tensor) -> Matches:
        """Tables of some molecules, int64 ``(k,)``."""
        return Matches(mobile=self.mobile[index], target=self.target[index], weight=self.weight[index])


def match_table(mols: Sequence[Mol], *, symmetric: bool = True, most: int = 24, like: Tensor) -> Matches:
    """Heavy-atom numberings of molecules that the graph's symmetry makes equal; of all atoms where none is heavy.

    Args:
        mols: the molecules.
        symmetric: False: the given numbering alone.
        most: numberings kept per molecule.
        like: a tensor of the device and dtype wanted.

    Returns:
        `Matches`.

    Example:
        >>> from rdkit import Chem
        >>> match_table([Chem.MolFromSmiles("Cc1ccccc1")], like=torch.zeros(1)).mobile.shape
        torch.Size([1, 2, 7])
    """
    found = []
    for mol in mols:
        heavy = any(atom.GetAtomicNum() > 1 for atom in mol.GetAtoms())
        found.append(atom_matches(mol, hydrogens=not heavy, max_matches=most if symmetric else 1))
    many = max(item.mobile.shape[0] for item in found)
    wide = max(item.mobile.shape[1] for item in found)
    mobile = torch.zeros(len(found), many, wide, dtype=torch.int64)
    target = torch.zeros(len(found), wide, dtype=torch.int64)
    weight = torch.zeros(len(found), wide, dtype=torch.float64)
    for number, item in enumerate(found):
        count, size = item.mobile.shape
        mobile[number, :, :size] = item.mobile[:1]
        mobile[number, :count, :size] = item.mobile
        target[number, :size] = item.target
        weight[number, :size] = 1.0
    return Matches(mobile=mobile.to(like.device), target=target.to(like.device), weight=weight.to(like))


def aligned_rmsd(positions: Tensor, reference: Tensor, matches: Matches) -> Tensor:
    """RMSD of each row from its reference, least over superpositions and equivalent numberings ``(rows,)``.

    Args:
        positions: ``(rows, N, 3)`` [A].
        reference: ``(rows, N, 3)`` [A].
        matches: of each row.

    Returns:
        Angstrom, differentiable in both; the derivative is that of the numbering found.
    """
    goal = take(reference, matches.target)
    many = matches.mobile.shape[1]
    with torch.no_grad():
        each = torch.stack([take(positions.detach(), matches.mobile[:, a]) for a in range(many)], dim=1)
        spread = kabsch(each, goal.detach().unsqueeze(1), matches.weight.unsqueeze(1)).msd if many > 1 else None
        best = matches.mobile[:, 0] if spread is None else pick(matches.mobile, spread.argmin(1))
    return kabsch(take(positions, best), goal, matches.weight).rmsd


def take(positions: Tensor, index: Tensor) -> Tensor:
    """Atoms ``(rows, H)`` of positions ``(rows, N, 3)``."""
    return positions.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Row ``index[r]`` of each ``table[r]``."""
    return table[torch.arange(table.shape[0], device=table.device), index]


class AbstractObjective(ABC):
    """What the weights of a `DistanceModel` are chosen for; ``ensembles``: rows of one molecule are scored together."""

    ensembles: ClassVar[bool] = False

    @abstractmethod
    def losses(
        self,
        model: DistanceModel,
        batch: ConformerBatch,
        rows: GraphBatch,
        matches: Matches,
        guess: Tensor,
        generator: torch.Generator,
        epoch: int,
    ) -> RowLosses:
        """Losses of reference conformers, one per row; ``guess`` ``(rows, N, 3)`` is what the posterior sees of them."""


def variational(
    model: DistanceModel, rows: GraphBatch, distances: Tensor, seen: Tensor, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and scale of distances under a draw from the posterior, and the two terms of the ELBO per row and distance."""
    if noise > 0:
        jitter = torch.randn(seen.shape, generator=generator, dtype=torch.float64, device=generator.device)
        seen = seen + noise * jitter.to(seen)
    posterior, prior = model.posterior(rows, seen), model.prior(rows)
    prediction = model.decode(rows, posterior.sample(generator))
    count = rows.per_row(torch.ones_like(distances))
    likelihood = rows.per_row(prediction.negative_log_likelihood(distances)) / count
    each = kl_divergence(posterior, prior)
    divergence = each.new_zeros(rows.size[0]).index_add(0, rows.data.batch, each) / count
    return prediction.mean, prediction.scale, likelihood, divergence


@final
@dataclass(frozen=True, kw_only=True)
class TwoStage(AbstractObjective):
    """The ELBO of the distances alone; coordinates are made of them only when conformers are wanted. The baseline.

    Args:
        divergence_weight: of the KL term.
        noise: added to the distances that the posterior sees [A].

    Example:
        >>> TwoStage().divergence_weight
        1.0
    """

    divergence_weight: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_weights("TwoStage", divergence_weight=self.divergence_weight, noise=self.noise)

    def losses(
        self,
        model: DistanceModel,
        batch: ConformerBatch,
        rows: GraphBatch,
        matches: Matches,
        guess: Tensor,
        generator: torch.Generator,
        epoch: int,
    ) -> RowLosses:
        distances, seen = rows.distances(batch.positions), rows.distances(guess)
        _, _, likelihood, divergence = variational(model, rows, distances, seen, self.noise, generator)
        missing = torch.full_like(likelihood, float("nan")).detach()
        return RowLosses(
            total=likelihood + self.divergence_weight * divergence,
            likelihood=likelihood.detach(),
            divergence=divergence.detach(),
            rmsd=missing,
            status_code=torch.full_like(batch.molecule, -1),
        )


@final
@dataclass(frozen=True, kw_only=True)
class EndToEnd(AbstractObjective):
    """RMSD of the structures that the distances settle into, plus the ELBO of the distances.

    The derivative of the RMSD goes through the inner problem by the hypergradient of ``inner``. Rows whose inner problem
    failed or ended on a saddle keep the distance terms only.

    Args:
        alignment_weight: of the RMSD [1/A].
        distance_weight: of the likelihood of the distances.
        divergence_weight: of the KL term.
        noise: added to the distances that the posterior sees [A].
        warmup: epochs without the RMSD, in which distances learn to make sense.
        inner: how distances become coordinates.
        start: where the inner problem starts.
        mirrors: whether the mirror image of a structure counts as well, for starts that do not know left from right; `sample`
            mirrors structures into the stereochemistry asked for.

    Example:
        >>> EndToEnd(alignment_weight=5.0).warmup
        0

    References:
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021,
        eqs. 4-8.
    """

    alignment_weight: float = 10.0
    distance_weight: float = 1.0
    divergence_weight: float = 1.0
    noise: float = 0.0
    warmup: int = 0
    inner: InnerOptions = field(default_factory=InnerOptions)
    start: AbstractStart = field(default_factory=lambda: GivenStart(noise=0.1))
    mirrors: bool = False

    def __post_init__(self) -> None:
        check_weights(
            "EndToEnd",
            alignment_weight=self.alignment_weight,
            distance_weight=self.distance_weight,
            divergence_weight=self.divergence_weight,
            noise=self.noise,
            warmup=self.warmup,
        )

    def losses(
        self,
        model: DistanceModel,
        batch: ConformerBatch,
        rows: GraphBatch,
        matches: Matches,
        guess: Tensor,
        generator: torch.Generator,
        epoch: int,
    ) -> RowLosses:
        distances, seen = rows.distances(batch.positions), rows.distances(guess)
        mean, scale, likelihood, divergence = variational(model, rows, distances, seen, self.noise, generator)
        total = self.distance_weight * likelihood + self.divergence_weight * divergence
        rmsd = torch.full_like(likelihood, float("nan")).detach()
        code = torch.full_like(batch.molecule, -1)
        if epoch >= self.warmup:
            prediction = DistancePrediction(mean, scale)
            near = batch.with_positions(guess)
            start = batch.with_positions(self.start.positions(near, rows, prediction, generator))
            settled = reconstruct(start, rows, prediction, self.inner)
            off = aligned_rmsd(settled.positions, batch.positions, matches)
            if self.mirrors:
                off = torch.minimum(off, aligned_rmsd(-settled.positions, batch.positions, matches))
            good = settled.trusted & torch.isfinite(off)
            total = total + self.alignment_weight * torch.where(good, off, 0.0)
            rmsd = torch.where(good, off.detach(), float("nan"))
            code = torch.where(
                good | (settled.status_code != int(Status.CONVERGED)), settled.status_code, int(Status.NONFINITE)
            )
        return RowLosses(
            total=total,
            likelihood=likelihood.detach(),
            divergence=divergence.detach(),
            rmsd=rmsd,
            status_code=code,
        )


@final
@dataclass(frozen=True, kw_only=True)
class EndToEndRecall(AbstractObjective):
    """The MAT-R and MAT-P of draws from the prior, through the inner problem, plus the ELBO of the distances.

    What is trained is what is asked for at the end: every row draws from the prior, settles from a start as in `sample`,
    and every reference is compared with the nearest draw of its molecule. Nothing has to pass through the posterior, so a
    latent variable that the ELBO leaves unused gets a use. Give rows of a molecule together, each reference ``repeats``
    times (`TrainConfig`). Draws whose inner problem failed or ended on a saddle are left out.

    Args:
        alignment_weight: of the RMSD [1/A].
        precision: share of MAT-P (each draw and its nearest reference) in it; the rest is MAT-R.
        distance_weight: of the likelihood of the distances.
        divergence_weight: of the KL term.
        noise: added to the distances that the posterior sees [A].
        warmup: epochs without the RMSD, in which distances learn to make sense.
        inner: how distances become coordinates.
        start: where the inner problem starts.
        mirrors: whether the mirror image of a structure counts as well, for starts that do not know left from right.

    Example:
        >>> EndToEndRecall(warmup=20).precision
        0.3

    References:
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021,
        eqs. 13-14 (the scores). Guzman-Rivera, Batra, Kohli. "Multiple choice learning". NeurIPS, 2012 (the least of
        several losses).
    """

    ensembles: ClassVar[bool] = True
    alignment_weight: float = 10.0
    precision: float = 0.3
    distance_weight: float = 1.0
    divergence_weight: float = 1.0
    noise: float = 0.0
    warmup: int = 0
    inner: InnerOptions = field(default_factory=InnerOptions)
    start: AbstractStart = field(default_factory=SpectralStart)
    mirrors: bool = True

    def __post_init__(self) -> None:
        check_weights(
            "EndToEndRecall",
            alignment_weight=self.alignment_weight,
            distance_weight=self.distance_weight,
            divergence_weight=self.divergence_weight,
            noise=self.noise,
            warmup=self.warmup,
        )
        good = 0 <= self.precision <= 1
        check_option("EndToEndRecall", "precision", self.precision, good, "in [0, 1]", "Leave the default.")

    def losses(
        self,
        model: DistanceModel,
        batch: ConformerBatch,
        rows: GraphBatch,
        matches: Matches,
        guess: Tensor,
        generator: torch.Generator,
        epoch: int,
    ) -> RowLosses:
        distances, seen = rows.distances(batch.positions), rows.distances(guess)
        _, _, likelihood, divergence = variational(model, rows, distances, seen, self.noise, generator)
        total = self.distance_weight * likelihood + self.divergence_weight * divergence
        rmsd = torch.full_like(likelihood, float("nan")).detach()
        code = torch.full_like(batch.molecule, -1)
        if epoch >= self.warmup:
            prediction = model.decode(rows, model.prior(rows).sample(generator))
            start = batch.with_positions(self.start.positions(batch.with_positions(guess), rows, prediction, generator))
            settled = reconstruct(start, rows, prediction, self.inner)
            drawn, known = torch.nonzero(batch.molecule.unsqueeze(1) == batch.molecule, as_tuple=True)
            made, goal, equal = settled.positions[drawn], batch.positions[known], matches.rows(known)
            off = aligned_rmsd(made, goal, equal)
            if self.mirrors:
                off = torch.minimum(off, aligned_rmsd(-made, goal, equal))
            usable = settled.trusted[drawn] & torch.isfinite(off)
            nearest, found = least(off, usable, known, len(batch))
            closest, placed = least(off, usable, drawn, len(batch))
            share = (1 - self.precision) * nearest + self.precision * closest
            total = total + self.alignment_weight * share
            rmsd = torch.where(found, nearest.detach(), float("nan"))
            lost = (settled.status_code == int(Status.CONVERGED)) & ~placed
            code = torch.where(lost, int(Status.NONFINITE), settled.status_code)
        return RowLosses(
            total=total,
            likelihood=likelihood.detach(),
            divergence=divergence.detach(),
            rmsd=rmsd,
            status_code=code,
        )


def least(values: Tensor, usable: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least usable value of each group ``(count,)``, zero where there is none, and the groups that have one."""
    far = torch.where(usable, values.detach(), float("inf"))
    lowest = far.new_full((count,), float("inf")).scatter_reduce(0, group, far, "amin")
    place = torch.arange(values.shape[0], device=values.device)
    best = usable & (far == lowest[group])
    chosen = torch.full_like(group[:1].expand(count), values.shape[0]).scatter_reduce(
        0, group, torch.where(best, place, values.shape[0]), "amin"
    )
    found = chosen < values.shape[0]
    return torch.where(found, values[torch.where(found, chosen, 0)], 0.0), found


def check_weights(owner: str, **values: float) -> None:
    """Refuse negative weights."""
    for name, value in values.items():
        check_option(owner, name, value, value >= 0, ">= 0", "Leave the default.")
