"""Training on conformers: epochs of references, validation on other scaffolds, resumed as if never interrupted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sciopt import Status
from sciopt.checks import check_option
from sciopt.constraints import kabsch
from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.learning.checkpoints import restored, save_model
from sciopt.domains.conformation.learning.graphs import GraphBatch, MoleculeGraph, graph_batch, molecule_graph
from sciopt.domains.conformation.learning.network import DistanceModel, ModelConfig
from sciopt.domains.conformation.learning.objectives import (
    AbstractObjective,
    EndToEnd,
    Matches,
    RowLosses,
    match_table,
    pick,
)
from sciopt.domains.conformation.metrics import EtkdgBaseline, ReferenceEnsemble
from sciopt.domains.conformation.split import ScaffoldSplit, scaffold_split
from sciopt.outer.checkpoint import write

__all__ = ["EpochRecord", "TrainConfig", "TrainResult", "train"]

LATE = 1 << 60  # validation is by the full objective from the first epoch on, so that epochs compare
RUN, LAST, BEST = "run.safetensors", "last.safetensors", "best.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained.

    Args:
        objective: `EndToEnd` or `TwoStage`.
        model: sizes of the network.
        epochs: passes over the training molecules.
        batch_size: rows per step.
        conformers: drawn anew for each molecule in each epoch; fewer where a molecule has fewer.
        repeats: how often each conformer stands in an epoch, one after the other: draws per reference of `EndToEndRecall`.
        guesses: 0: the posterior sees the reference itself, and the inner problem starts there, as published. Else so many
            ETKDG conformers are made of each molecule, and the one nearest to a reference takes its place: the network
            learns to correct ETKDG. Sample it with ``latent=FromStart()``.
        learning_rate: of Adam.
        betas: of Adam; 0.95 and 0.999 are the published ones.
        clip: largest norm of the gradient of a step.
        shares: of molecules in train, validation and test, which share no scaffold.
        seed: of weights, split, order, latent draws and starts.
        dtype: of all numbers; float64 for exact hypergradients.
        device: where it runs.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> TrainConfig(epochs=5).batch_size
        16
    """

    objective: AbstractObjective = field(default_factory=EndToEnd)
    model: ModelConfig = field(default_factory=ModelConfig)
    epochs: int = 100
    batch_size: int = 16
    conformers: int = 1
    repeats: int = 1
    guesses: int = 0
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.95, 0.999)
    clip: float = 10.0
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "conformers", "repeats"):
            value = getattr(self, name)
            check_option(
                "TrainConfig", name, value, isinstance(value, int) and value >= 1, "to be an int >= 1", "Count up."
            )
        good = isinstance(self.guesses, int) and self.guesses >= 0
        check_option("TrainConfig", "guesses", self.guesses, good, "to be an int >= 0", "10 is a good choice.")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            check_option("TrainConfig", name, value, value > 0, "> 0", "Leave the default.")
        known = self.dtype in (torch.float32, torch.float64)
        check_option("TrainConfig", "dtype", self.dtype, known, "torch.float32 or torch.float64", "Leave the default.")


@final
@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Means over the rows of one epoch.

    Args:
        epoch: counted from 0.
        loss: in training.
        likelihood: negative log-likelihood per distance, in training.
        divergence: KL term per distance, in training.
        rmsd: of the structures from their references [A], in training; NaN where none was made.
        failed: share of rows in training whose inner problem failed.
        saddles: share of rows in training that ended on a saddle.
        skipped: steps left out because their gradient was not finite.
        validation: loss on the validation molecules; NaN without any.
        validation_rmsd: as ``rmsd``, on the validation molecules.
        seconds: of the epoch.
    """

    epoch: int
    loss: float
    likelihood: float
    divergence: float
    rmsd: float
    failed: float
    saddles: float
    skipped: int
    validation: float
    validation_rmsd: float
    seconds: float


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class TrainResult:
    """A trained network and how it came about.

    Args:
        model: after the last epoch.
        best: weights of the epoch with the lowest validation loss (of the last one without validation).
        history: one record per epoch.
        split: which molecules were used for what.
        config: as given.
    """

    model: DistanceModel
    best: dict[str, Tensor]
    history: tuple[EpochRecord, ...]
    split: ScaffoldSplit
    config: TrainConfig

    def best_model(self) -> DistanceModel:
        """A network with the best weights."""
        model = DistanceModel(self.model.config, torch.Generator())
        like = next(self.model.parameters())
        model.to(dtype=like.dtype, device=like.device).load_state_dict(self.best)
        return model

    def curves(self) -> dict[str, list[float]]:
        """Each quantity of the records by epoch."""
        return {item.name: [float(getattr(row, item.name)) for row in self.history] for item in fields(EpochRecord)}


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """Molecules with what training needs of them, made once."""

    references: Sequence[ReferenceEnsemble]
    graphs: list[MoleculeGraph]
    matches: Matches
    guesses: list[Tensor]
    like: Tensor

    def rows(self, chosen: Sequence[tuple[int, int]]) -> tuple[ConformerBatch, GraphBatch, Matches, Tensor]:
        """Batch, graphs, matches and guesses of (molecule, conformer) pairs."""
        numbers = sorted({molecule for molecule, _ in chosen})
        local = {number: place for place, number in enumerate(numbers)}
        mols = tuple(self.references[number].mol for number in numbers)
        width = max(mol.GetNumAtoms() for mol in mols)
        positions = self.like.new_zeros(len(chosen), width, 3)
        guess = torch.zeros_like(positions)
        for row, (molecule, conformer) in enumerate(chosen):
            found = self.references[molecule].positions[conformer]
            positions[row, : found.shape[0]] = found.to(positions)
            guess[row, : found.shape[0]] = self.guesses[molecule][conformer].to(positions)
        index = torch.tensor([local[molecule] for molecule, _ in chosen], device=self.like.device)
        batch = ConformerBatch(mols=mols, positions=positions, molecule=index, conformer=torch.full_like(index, -1))
        matches = self.matches.rows(torch.tensor([molecule for molecule, _ in chosen], device=self.like.device))
        return batch, graph_batch(batch, [self.graphs[number] for number in numbers]), matches, guess


def train(
    dataset: Sequence[ReferenceEnsemble],
    config: TrainConfig | None = None,
    *,
    initial: DistanceModel | None = None,
    folder: Path | None = None,
    progress: Callable[[EpochRecord], None] | None = None,
) -> TrainResult:
    """Train a `DistanceModel` on conformers.

    With a folder the run is saved after every epoch, the weights of the last and of the best epoch are written for
    `load_model`, and a run that was interrupted there goes on as if it had not been: same numbers, bit for bit (on the CPU).
    To train longer, call again with more epochs.

    Args:
        dataset: molecules with explicit hydrogens and their conformers; two atoms or more each.
        config: None: end to end with the defaults.
        initial: a trained network of the configured sizes, whose weights are the start (fine-tuning, or the second half of a
            training); None: fresh weights.
        folder: where checkpoints go; made if needed.
        progress: called after each epoch.

    Returns:
        `TrainResult`.

    Raises:
        ValueError: for an empty dataset, molecules without conformers, or a split that leaves nothing to train on.
        CheckpointError: for a checkpoint that is damaged, or of another dataset or configuration.

    Example:
        >>> from rdkit import Chem
        >>> from sciopt.domains.conformation.learning.objectives import TwoStage
        >>> from sciopt.domains.conformation.metrics import EtkdgBaseline
        >>> mols = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in ("CCO", "CCN", "CCC", "CCF")]
        >>> known = [EtkdgBaseline(oversample=1).generate(mol, 2).positions for mol in mols]
        >>> data = [ReferenceEnsemble(name="", mol=mol, positions=x) for mol, x in zip(mols, known)]
        >>> small = ModelConfig(hidden=16, layers=1)
        >>> config = TrainConfig(objective=TwoStage(), model=small, epochs=5, learning_rate=0.01, shares=(0.75, 0.25, 0.0))
        >>> loss = train(data, config).curves()["loss"]
        >>> loss[-1] < loss[0]
        True

    References:
        Xu et al. "An End-to-End Framework for Molecular Conformation Generation via Bilevel Programming". ICML, 2021.
    """
    chosen = config or TrainConfig()
    check_dataset(dataset)
    setup = torch.Generator().manual_seed(chosen.seed)
    split = scaffold_split([item.mol for item in dataset], generator=setup, shares=chosen.shares)
    if not split.train:
        raise ValueError(
            f"train: expected `shares` that leave molecules to train on, got {split.describe()}. Give train a larger share."
        )
    model = DistanceModel(chosen.model, setup).to(device=chosen.device, dtype=chosen.dtype)
    if initial is not None:
        if initial.config != chosen.model:
            raise ValueError(
                f"train: expected `initial` of the configured sizes {chosen.model}, got {initial.config}. Set "
                "`model=initial.config`."
            )
        model.load_state_dict(initial.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=chosen.learning_rate, betas=chosen.betas)
    generator = torch.Generator().manual_seed(chosen.seed + 1)
    like = next(model.parameters())
    prepared = Prepared(
        dataset,
        [molecule_graph(item.mol) for item in dataset],
        match_table([item.mol for item in dataset], like=like.detach()),
        [nearest_guesses(item, chosen.guesses, chosen.seed) for item in dataset],
        like.detach(),
    )
    history: list[EpochRecord] = []
    best, lowest = snapshot(model), float("inf")
    fingerprint = {"config": repr(replace(chosen, epochs=1)), "dataset": digest(dataset)}
    if initial is not None:
        fingerprint["initial"] = hashlib.sha256(b"".join(bits(p) for p in initial.state_dict().values())).hexdigest()
    path = None if folder is None else folder / RUN
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            state = restored("train", path, fingerprint, like.device)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            generator.set_state(state["generator"].cpu())
            best, lowest = state["best"], state["lowest"]
            history = [EpochRecord(**row) for row in state["history"]]
    while len(history) < chosen.epochs:
        record = one_epoch(model, optimizer, prepared, split, chosen, generator, len(history))
        history.append(record)
        score = record.validation if split.validation else -float(record.epoch)
        if score < lowest or not history[:-1]:
            best, lowest = snapshot(model), score
        if path is not None:
            state = {
                "model": dict(model.state_dict()),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "best": best,
                "lowest": lowest,
                "history": [asdict(row) for row in history],
            }
            write(path, state, fingerprint)
            save_model(model, path.with_name(LAST))
            if lowest == score:
                save_model(model, path.with_name(BEST))
        if progress is not None:
            progress(record)
    return TrainResult(model=model, best=best, history=tuple(history), split=split, config=chosen)


def one_epoch(
    model: DistanceModel,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    split: ScaffoldSplit,
    config: TrainConfig,
    generator: torch.Generator,
    epoch: int,
) -> EpochRecord:
    """Every training molecule once, then the validation molecules."""
    began = time.monotonic()
    rows = draw(prepared.references, split.train, config.conformers, generator)
    seen, skipped = [], 0
    for part in parts_of(rows, config):
        batch, graphs, matches, guess = prepared.rows(part)
        optimizer.zero_grad()
        losses = config.objective.losses(model, batch, graphs, matches, guess, generator, epoch)
        losses.total.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if bool(torch.isfinite(norm)):
            optimizer.step()
        else:
            skipped += 1
        seen.append(detached(losses))
    means = summary(seen)
    most = config.conformers if config.objective.ensembles else 1
    held = [(k, c) for k in split.validation for c in range(min(most, prepared.references[k].positions.shape[0]))]
    checked = []
    apart = torch.Generator().manual_seed(config.seed + 2)  # the same draws in every epoch
    with torch.no_grad():
        for part in parts_of(held, config):
            batch, graphs, matches, guess = prepared.rows(part)
            checked.append(detached(config.objective.losses(model, batch, graphs, matches, guess, apart, LATE)))
    other = summary(checked)
    return EpochRecord(
        epoch=epoch,
        **means,
        skipped=skipped,
        validation=other["loss"],
        validation_rmsd=other["rmsd"],
        seconds=time.monotonic() - began,
    )


def draw(
    references: Sequence[ReferenceEnsemble], molecules: Sequence[int], count: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Some conformers of each molecule, in random order."""
    rows = []
    for place in torch.randperm(len(molecules), generator=generator, device=generator.device).tolist():
        known = references[molecules[place]].positions.shape[0]
        picked = torch.randperm(known, generator=generator, device=generator.device)[:count].tolist()
        rows += [(molecules[place], conformer) for conformer in picked]
    return rows


def parts_of(rows: Sequence[tuple[int, int]], config: TrainConfig) -> list[list[tuple[int, int]]]:
    """Batches of about ``batch_size`` rows, each pair repeated; rows of a molecule, which stand together, stay together."""
    out: list[list[tuple[int, int]]] = [[]]
    for place, row in enumerate(rows):
        if len(out[-1]) >= config.batch_size and rows[place - 1][0] != row[0]:
            out.append([])
        out[-1] += [row] * config.repeats
    return [part for part in out if part]


def detached(losses: RowLosses) -> RowLosses:
    """Without the graph."""
    return replace(losses, total=losses.total.detach())


def summary(parts: Sequence[RowLosses]) -> dict[str, float]:
    """Means over rows; NaN where there is nothing to take one of."""
    if not parts:
        return dict.fromkeys(("loss", "likelihood", "divergence", "rmsd", "failed", "saddles"), float("nan"))
    code = torch.cat([part.status_code for part in parts])
    good, saddle, idle = code == int(Status.CONVERGED), code == int(Status.INDEFINITE), code == -1
    return {
        "loss": float(torch.cat([part.total for part in parts]).mean()),
        "likelihood": float(torch.cat([part.likelihood for part in parts]).mean()),
        "divergence": float(torch.cat([part.divergence for part in parts]).mean()),
        "rmsd": float(torch.cat([part.rmsd for part in parts]).nanmean()),
        "failed": float((~(good | saddle | idle)).double().mean()),
        "saddles": float(saddle.double().mean()),
    }


def nearest_guesses(item: ReferenceEnsemble, count: int, seed: int) -> Tensor:
    """For each reference the nearest of some ETKDG conformers ``(R, N, 3)``, atom by atom; itself where there is none."""
    if not count:
        return item.positions
    made = EtkdgBaseline(oversample=1, seed=seed).generate(item.mol, count).positions.to(item.positions)
    if not made.shape[0]:
        return item.positions
    fit = kabsch(made.unsqueeze(0), item.positions.unsqueeze(1))
    return pick(fit.aligned, fit.msd.argmin(1))


def snapshot(model: DistanceModel) -> dict[str, Tensor]:
    """A copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def bits(tensor: Tensor) -> bytes:
    """The numbers of a tensor as bytes."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def digest(dataset: Sequence[ReferenceEnsemble]) -> str:
    """Checksum of names, graphs and coordinates."""
    from rdkit import Chem

    total = hashlib.sha256()
    for item in dataset:
        total.update(f"{item.name}\n{Chem.MolToSmiles(item.mol, canonical=False)}\n".encode())
        total.update(item.positions.detach().cpu().double().contiguous().numpy().tobytes())
    return total.hexdigest()


def check_dataset(dataset: Sequence[ReferenceEnsemble]) -> None:
    """Refuse what cannot be trained on, before anything is computed."""
    if not dataset:
        raise ValueError("train: expected at least one molecule in `dataset`, got none. Read conformers first.")
    for number, item in enumerate(dataset):
        shape = tuple(item.positions.shape)
        atoms = item.mol.GetNumAtoms()
        if len(shape) != 3 or shape[0] < 1 or shape[1:] != (atoms, 3) or atoms < 2:
            raise ValueError(
                f"train: expected `dataset` of molecules of two atoms or more with positions (R, N, 3), got {shape} for "
                f"{atoms} atoms as number {number} ({item.name}). Leave it out."
            )
        if not bool(torch.isfinite(item.positions).all()):
            raise ValueError(
                f"train: expected finite positions, got NaN or Inf in number {number} ({item.name}). Drop it."
            )
