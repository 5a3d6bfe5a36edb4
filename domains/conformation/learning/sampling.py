"""Conformers from a trained network: latent draws, distances, structures, checked for stereochemistry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.conformation.batch import ConformerBatch, check_mol
from sciopt.domains.conformation.learning.graphs import GraphBatch, graph_batch, molecule_graph
from sciopt.domains.conformation.learning.network import DistanceModel
from sciopt.domains.conformation.learning.starts import AbstractStart, GivenStart
from sciopt.domains.conformation.learning.structures import InnerOptions, reconstruct
from sciopt.domains.conformation.metrics import EtkdgBaseline, GeneratedEnsemble
from sciopt.domains.conformation.mmff import MMFFError
from sciopt.domains.conformation.relaxation import relax
from sciopt.domains.conformation.stereo import stereo_errors, stereo_terms

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = [
    "AbstractLatentSource",
    "FromPrior",
    "FromStart",
    "SampleOptions",
    "SampledEnsemble",
    "sample",
    "sample_many",
]


class AbstractLatentSource(ABC):
    """Where the latent variable of a sample comes from."""

    @abstractmethod
    def draw(self, model: DistanceModel, rows: GraphBatch, start: Tensor, generator: torch.Generator) -> Tensor:
        """Latent numbers ``(atoms, latent)`` for starting positions ``(rows, N, 3)``."""


@final
@dataclass(frozen=True, kw_only=True)
class FromPrior(AbstractLatentSource):
    """``z ~ p(z | graph)``, as published.

    Args:
        temperature: scale of the draw about the prior's mean; 0 for the mean.

    Example:
        >>> FromPrior(temperature=0.5).temperature
        0.5
    """

    temperature: float = 1.0

    def draw(self, model: DistanceModel, rows: GraphBatch, start: Tensor, generator: torch.Generator) -> Tensor:
        prior = model.prior(rows)
        return prior.mean + self.temperature * (prior.sample(generator) - prior.mean)


@final
@dataclass(frozen=True, kw_only=True)
class FromStart(AbstractLatentSource):
    """``z ~ q(z | graph, start)``: the network corrects the conformer that it starts from; for ETKDG starts.

    Example:
        >>> FromStart()
        FromStart()
    """

    def draw(self, model: DistanceModel, rows: GraphBatch, start: Tensor, generator: torch.Generator) -> Tensor:
        return model.posterior(rows, rows.distances(start)).sample(generator)


@final
@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How conformers are drawn.

    Args:
        latent: where ``z`` comes from.
        start: where the inner problem starts; None: ETKDG conformers. `SpectralStart` and `RandomStart` need no ETKDG, but
            more rounds.
        inner: how distances become coordinates.
        polish: whether to relax the structures with MMFF94 at the end.
        rounds: how often missing conformers are drawn again.
        batch_size: most structures settled at once.
        seed: of everything random.

    Example:
        >>> SampleOptions(polish=True).rounds
        3
    """

    latent: AbstractLatentSource = field(default_factory=FromPrior)
    start: AbstractStart | None = None
    inner: InnerOptions = field(default_factory=InnerOptions)
    polish: bool = False
    rounds: int = 3
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "batch_size"):
            value = getattr(self, name)
            good = isinstance(value, int) and value >= 1
            check_option("SampleOptions", name, value, good, "to be an int >= 1", "Leave the default.")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class SampledEnsemble:
    """Conformers of one molecule.

    Args:
        mol: a copy that holds them.
        positions: ``(C, N, 3)`` [A], on the CPU in float64.
        energy: ``(C,)`` [kcal/mol]: MMFF94 where polished, else of the distances, relative to a perfect fit.
        drawn: structures that were made.
        unsettled: of these, how many did not converge to a minimum.
        misshapen: how many had the wrong stereochemistry.
        failure: why there are fewer than asked for, or an empty text.
    """

    mol: Any
    positions: Tensor
    energy: Tensor
    drawn: int
    unsettled: int
    misshapen: int
    failure: str = ""

    def generated(self) -> GeneratedEnsemble:
        """What `evaluate` scores."""
        return GeneratedEnsemble(positions=self.positions, failure=self.failure)


def sample(model: DistanceModel, mol: Mol, count: int, options: SampleOptions | None = None) -> SampledEnsemble:
    """Conformers of a molecule that the network has never seen; `sample_many` of one.

    Args:
        model: trained; its device and dtype are used.
        mol: with explicit hydrogens and two atoms or more; conformers are not looked at.
        count: how many, >= 1.
        options: see `SampleOptions`.

    Returns:
        `SampledEnsemble`; same seed, same conformers (on the CPU).

    Raises:
        TypeError: for something that is not a molecule.
        ValueError: for a count below one, implicit hydrogens, or a single atom.

    Example:
        >>> from rdkit import Chem
        >>> from sciopt.domains.conformation.learning.network import ModelConfig
        >>> model = DistanceModel(ModelConfig(hidden=16, layers=1), torch.Generator().manual_seed(0)).double()
        >>> sample(model, Chem.AddHs(Chem.MolFromSmiles("CCO")), 4).positions.shape
        torch.Size([4, 9, 3])
    """
    return sample_many(model, [mol], [count], options)[0]


@torch.no_grad()
def sample_many(
    model: DistanceModel, mols: Sequence[Mol], counts: Sequence[int], options: SampleOptions | None = None
) -> list[SampledEnsemble]:
    """Conformers of many molecules, those of about one size at a time.

    Structures whose inner problem fails or ends on a saddle, and those without the requested stereochemistry, are dropped
    and drawn again. Distances do not know left from right: a structure whose mirror image is right is mirrored.

    Args:
        model: trained; its device and dtype are used.
        mols: with explicit hydrogens and two atoms or more; conformers are not looked at.
        counts: how many of each, >= 1.
        options: see `SampleOptions`.

    Returns:
        One `SampledEnsemble` per molecule, in their order; same call, same conformers (on the CPU).

    Raises:
        TypeError: for something that is not a molecule.
        ValueError: for counts below one or of another number, implicit hydrogens, or a single atom.

    Example:
        >>> from rdkit import Chem
        >>> from sciopt.domains.conformation.learning.network import ModelConfig
        >>> model = DistanceModel(ModelConfig(hidden=16, layers=1), torch.Generator().manual_seed(0)).double()
        >>> mols = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in ("CCO", "CCN")]
        >>> [item.positions.shape[0] for item in sample_many(model, mols, [2, 3])]
        [2, 3]
    """
    chosen = options or SampleOptions()
    owner = "sample"
    if len(mols) != len(counts):
        raise ValueError(
            f"{owner}: expected one of `counts` per molecule, got {len(counts)} for {len(mols)}. Give each a number."
        )
    for number, (mol, count) in enumerate(zip(mols, counts, strict=True)):
        check_mol(owner, mol, number)
        check_option(owner, "count", count, count >= 1, ">= 1", "Ask for at least one conformer.")
        size = mol.GetNumAtoms()
        check_option(owner, "mol", size, size >= 2, "with two atoms or more", "Skip single atoms.")
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(chosen.seed)
    made = [Draft(mol, count) for mol, count in zip(mols, counts, strict=True)]
    for number in range(chosen.rounds):
        begun = []
        for draft in made:
            if draft.missing and not draft.reason:
                start, draft.reason = starting(draft.mol, draft.missing, chosen, number, like)
                begun += [(draft, row) for row in start]
        begun.sort(key=lambda item: item[0].mol.GetNumAtoms())
        for first in range(0, len(begun), chosen.batch_size):
            settle_rows(model, begun[first : first + chosen.batch_size], chosen, generator)
    return [draft.ensemble() for draft in made]


class Draft:
    """What there is of one molecule so far."""

    def __init__(self, mol: Mol, count: int) -> None:
        self.mol, self.count = mol, count
        self.graph, self.terms = molecule_graph(mol), stereo_terms(mol)
        self.kept: list[Tensor] = []
        self.energies: list[Tensor] = []
        self.drawn, self.unsettled, self.misshapen, self.reason = 0, 0, 0, ""

    @property
    def missing(self) -> int:
        """How many conformers are still wanted."""
        return self.count - sum(part.shape[0] for part in self.kept)

    def take(self, positions: Tensor, energy: Tensor, fine: Tensor) -> None:
        """Keep what settled and has the stereochemistry, mirrored where that gives it."""
        right, mirrored = (stereo_errors(self.mol, x, self.terms).ok for x in (positions, -positions))
        x = torch.where((mirrored & ~right)[:, None, None], -positions, positions)
        shaped = right | mirrored
        self.drawn += positions.shape[0]
        self.unsettled += int((~fine).sum())
        self.misshapen += int((fine & ~shaped).sum())
        self.kept.append(x[fine & shaped][: self.missing])
        self.energies.append(energy[fine & shaped][: self.kept[-1].shape[0]])

    def ensemble(self) -> SampledEnsemble:
        """The result, with a reason where something is missing."""
        blank = torch.zeros(0, self.mol.GetNumAtoms(), 3, dtype=torch.float64, device="cpu")
        positions = torch.cat([blank, *self.kept])
        failure = (
            ""
            if not self.missing
            else self.reason
            or (
                f"{positions.shape[0]} of {self.count} conformers: of {self.drawn} drawn {self.unsettled} did not settle and "
                f"{self.misshapen} had the wrong stereochemistry"
            )
        )
        return SampledEnsemble(
            mol=filled(self.mol, positions),
            positions=positions,
            energy=torch.cat([blank[:, 0, 0], *self.energies]),
            drawn=self.drawn,
            unsettled=self.unsettled,
            misshapen=self.misshapen,
            failure=failure,
        )


def starting(mol: Mol, count: int, options: SampleOptions, number: int, like: Tensor) -> tuple[Tensor, str]:
    """Positions to begin with ``(count, N, 3)``: ETKDG conformers, or empty ones that another start fills."""
    if options.start is not None:
        return like.new_zeros(count, mol.GetNumAtoms(), 3), ""
    embedded = EtkdgBaseline(oversample=1, seed=options.seed + 7919 * number).generate(mol, count)
    return embedded.positions.to(like), "" if embedded.positions.shape[0] else embedded.failure


def settle_rows(
    model: DistanceModel, begun: Sequence[tuple[Draft, Tensor]], options: SampleOptions, generator: torch.Generator
) -> None:
    """Draw, settle and hand out some rows, those of a molecule in a run."""
    drafts = list(dict.fromkeys(draft for draft, _ in begun))
    place = {draft: number for number, draft in enumerate(drafts)}
    positions = begun[0][1].new_zeros(len(begun), max(draft.mol.GetNumAtoms() for draft in drafts), 3)
    for number, (_, start) in enumerate(begun):
        positions[number, : start.shape[0]] = start
    index = torch.tensor([place[draft] for draft, _ in begun], device=positions.device)
    batch = ConformerBatch(
        mols=tuple(draft.mol for draft in drafts), positions=positions, molecule=index, conformer=index * 0 - 1
    )
    rows = graph_batch(batch, [draft.graph for draft in drafts])
    prediction = model.decode(rows, options.latent.draw(model, rows, batch.positions, generator))
    start = (options.start or GivenStart()).positions(batch, rows, prediction, generator)
    settled = reconstruct(batch.with_positions(start), rows, prediction, options.inner)
    fine = settled.trusted
    safe = torch.where(fine[:, None, None], settled.positions, start)
    for number, draft in enumerate(drafts):
        own = torch.nonzero(index == number).squeeze(-1)
        size = draft.mol.GetNumAtoms()
        x, energy, good = safe[own, :size], settled.energy[own], fine[own]
        if options.polish:
            x, energy, good = polished(draft.mol, x, energy, good)
        draft.take(x.cpu().double(), energy.cpu().double(), good.cpu())


def polished(mol: Mol, positions: Tensor, energy: Tensor, fine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relaxed with MMFF94; as they are where it has no parameters."""
    index = torch.zeros(positions.shape[0], dtype=torch.int64, device=positions.device)
    batch = ConformerBatch(mols=(mol,), positions=positions.contiguous(), molecule=index, conformer=index - 1)
    try:
        done = relax(batch)
    except MMFFError:
        return positions, energy, fine
    return done.batch.positions, done.energy, fine & done.converged


def filled(mol: Mol, positions: Tensor) -> Any:
    """A copy of the molecule with these conformers."""
    index = torch.zeros(positions.shape[0], dtype=torch.int64, device=positions.device)
    made = ConformerBatch(mols=(mol,), positions=positions, molecule=index, conformer=index - 1).to_mols()
    return made[0]
