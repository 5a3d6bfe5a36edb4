"""How many starts, how they are embedded, and which of the relaxed ones are kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["Sampling", "embed"]

SLICE = 1.0  # seconds of embedding between two looks at the clock


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Budgets and thresholds of `generate`.

    Args:
        starts_per_conformer: ETKDG starts that are relaxed for each conformer asked for, >= 1; more cost time and find
            more minima.
        rmsd: conformers nearer than this are one [angstrom], over heavy atoms and symmetry; of two the lower in energy is
            kept.
        same_energy: conformers whose energies differ by more are never one [kcal/mol]: they may differ in hydrogens.
        energy_window: conformers higher than this above the lowest one of their molecule are left out [kcal/mol]; None
            keeps all.
        max_attempts: embedding attempts per conformer, >= 1.
        max_seconds: for embedding one molecule; 0: no limit. What was embedded until then is used. RDKit before 2025.03
            is asked between conformers only.
        memory: for the model Hessians of the conformers that are relaxed together [MB], >= 1; the whole run takes a few
            times as much. A single conformer is always relaxed, whatever it needs.

    Example:
        >>> Sampling(energy_window=10.0).starts(50)
        100
    """

    starts_per_conformer: float = 2.0
    rmsd: float = 0.25
    same_energy: float = 0.1
    energy_window: float | None = None
    max_attempts: int = 100
    max_seconds: int = 300
    memory: int = 256

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            check_option("Sampling", name, getattr(self, name), good, wanted, "Leave the default.")

        check("starts_per_conformer", 1.0 <= self.starts_per_conformer < math.inf, ">= 1")
        check("rmsd", 0.0 <= self.rmsd < math.inf, ">= 0 angstrom")
        check("same_energy", self.same_energy >= 0.0, ">= 0 kcal/mol")
        check("energy_window", self.energy_window is None or self.energy_window >= 0.0, ">= 0 kcal/mol, or None")
        check("max_attempts", self.max_attempts >= 1, ">= 1")
        check("max_seconds", self.max_seconds >= 0, ">= 0 seconds")
        check("memory", self.memory >= 1, ">= 1 MB")

    def starts(self, n: int) -> int:
        """How many conformers are embedded for ``n``."""
        return math.ceil(self.starts_per_conformer * n)

    def rows(self, num_atoms: int) -> int:
        """How many conformers of so many atoms are relaxed together."""
        return max(1, int(self.memory * 1e6 / (72.0 * num_atoms**2)))


def embed(mol: Chem.Mol, count: int, seed: int, sampling: Sampling) -> tuple[Tensor, str]:
    """ETKDG conformers ``(C, N, 3)`` with C at most ``count``, and why there are fewer, or an empty text.

    Conformer i is seeded with ``seed + i``, whatever the slices that they are embedded in. ^C, which RDKit takes for itself
    while it embeds, raises KeyboardInterrupt here.
    """
    work, found, done = Chem.Mol(mol), [], 0
    settings: Any = rdDistGeom.ETKDGv3()
    settings.maxIterations, settings.numThreads = sampling.max_attempts, torch.get_num_threads()
    settings.enableSequentialRandomSeeds = settings.trackFailures = True
    started, spent, share = time.monotonic(), 0.0, 1
    while done < count:
        left = sampling.max_seconds - spent
        if sampling.max_seconds and left <= 0:
            break
        if sampling.max_seconds and hasattr(settings, "timeout"):
            settings.timeout = math.ceil(left if found or settings.useRandomCoords else 0.25 * left)
        settings.randomSeed = seed + done
        try:
            with rdBase.BlockLogs():
                asked = min(share, count - done)
                if not rdDistGeom.EmbedMultipleConfs(work, asked, settings) and cancelled(mol, settings, asked):
                    raise KeyboardInterrupt
        except (RuntimeError, ValueError) as error:
            return _empty(mol), f"ETKDG refused the molecule: {str(error).strip().splitlines()[0]}"
        spent = time.monotonic() - started
        if not work.GetNumConformers() and not done:
            if settings.useRandomCoords:
                break
            settings.useRandomCoords = True  # strained cages and macrocycles often need a random start
            continue
        found += [conformer.GetPositions() for conformer in work.GetConformers()]
        done += share
        share = min(64, max(1, int(SLICE * done / max(spent, 1e-3))))
    late = f" within {sampling.max_seconds} s" if sampling.max_seconds and spent >= sampling.max_seconds else ""
    if not found:
        if late:
            return _empty(mol), f"ETKDG found no geometry of {mol.GetNumAtoms()} atoms{late}; allow more time"
        return _empty(mol), (
            f"ETKDG found no geometry in {sampling.max_attempts} attempts, from random coordinates either; check that the "
            "stereochemistry is possible"
        )
    positions = torch.from_numpy(np.stack(found))
    positions = positions[torch.isfinite(positions).all(-1).all(-1)]
    short = f"ETKDG embedded {positions.shape[0]} of {count} starts{late}"
    return positions, short if positions.shape[0] < count else ""


def cancelled(mol: Chem.Mol, settings: Any, asked: int) -> bool:
    """Whether an embedding that gave nothing was cut short by ^C, which RDKit catches and tells by a line of its log alone.

    All attempts are counted when they have failed, and so is a timeout. Fewer mean ^C, or bounds that admit no start, whose
    attempts are not counted at all: one more attempt tells which.
    """
    count = failures(settings)
    if count is None or count >= asked * settings.maxIterations:
        return False
    if count > 0:
        return True
    once: Any = rdDistGeom.ETKDGv3()
    once.randomSeed, once.maxIterations, once.useRandomCoords = 1, 1, settings.useRandomCoords
    once.timeout, once.trackFailures = 2, True
    return bool(rdDistGeom.EmbedMultipleConfs(Chem.Mol(mol), 1, once)) or failures(once) != 0


def failures(settings: Any) -> float | None:
    """Attempts that failed in the last embedding, infinite after a timeout; None where RDKit has no timeouts yet."""
    timeout = rdDistGeom.EmbedFailureCauses.names.get("EXCEEDED_TIMEOUT")
    if timeout is None:
        return None
    counts = list(settings.GetFailureCounts())
    return math.inf if len(counts) > int(timeout) and counts[int(timeout)] else sum(counts)


def _empty(mol: Chem.Mol) -> Tensor:
    return torch.zeros(0, mol.GetNumAtoms(), 3, dtype=torch.float64, device="cpu")
