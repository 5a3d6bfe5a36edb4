"""RNA tasks: stable folds, a wanted fold, binding to a target, with the ViennaRNA package as oracle."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.search import shuffled, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import AbstractTask, Table

__all__ = ["RNA", "AbstractFoldScore", "FoldStability", "RNATask", "TargetBinding", "TargetFold"]

RNA = "ACGU"
GAS_CONSTANT = 1.98717e-3  # kcal / (mol K), as in the package
TEMPERATURE = 310.15  # K, the package's default
LEAST_LOOP = 3  # bases in a hairpin


class AbstractFoldScore(ABC):
    """What an RNA sequence is scored by. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def length(self, wanted: int | None) -> int:
        """Length of the sequences, where the score determines it; or the wanted one."""

    @abstractmethod
    def values(self, sequences: Sequence[str]) -> list[float]:
        """Scores, the higher the better."""

    @abstractmethod
    def top(self, length: int) -> float:
        """The score that is normalised to 1, of a design that is known to be good."""


@final
@dataclass(frozen=True, kw_only=True)
class FoldStability(AbstractFoldScore):
    """Minus the minimum free energy of folding, in kcal/mol.

    Normalised by the hairpin of G and C alone with a loop of four A, which other designs may exceed.

    Example:
        >>> FoldStability().values(["GGGGAAAACCCC"])  # doctest: +SKIP
        [5.4]

    References:
        Sinai et al. "AdaLead: a simple and robust adaptive greedy search algorithm for sequence design". arXiv:2010.02141,
        2020 (RNA landscapes). Lorenz et al. "ViennaRNA package 2.0". Algorithms Mol. Biol. 6, 2011.
    """

    def length(self, wanted: int | None) -> int:
        """See `AbstractFoldScore.length`; 20 unless told."""
        return 20 if wanted is None else wanted

    def values(self, sequences: Sequence[str]) -> list[float]:
        """See `AbstractFoldScore.values`."""
        package = vienna("FoldStability")
        return [-float(package.fold(sequence)[1]) for sequence in sequences]

    def top(self, length: int) -> float:
        """See `AbstractFoldScore.top`."""
        arm = (length - LEAST_LOOP - 1) // 2
        return self.values(["G" * arm + "A" * (length - 2 * arm) + "C" * arm])[0]


@final
@dataclass(frozen=True, kw_only=True)
class TargetFold(AbstractFoldScore):
    """Probability of a wanted secondary structure among all that a sequence takes at 37 degrees Celsius: inverse folding.

    At most 1. Its logarithm is less skewed; sequences that cannot form the structure score almost 0.

    Args:
        structure: in dots and brackets.

    Raises:
        ValueError: for brackets that do not match.

    Example:
        >>> TargetFold(structure="((((....))))").length(None)
        12

    References:
        Zadeh, Wolfe, Pierce. "Nucleic acid sequence design via efficient ensemble defect optimization". J. Comput. Chem. 32,
        2011, eq. 1 (the probability of a structure).
    """

    structure: str

    def __post_init__(self) -> None:
        depth = 0
        for sign in self.structure:
            depth += {"(": 1, ")": -1, ".": 0}.get(sign, -len(self.structure) - 1)
            if depth < 0:
                break
        ok = depth == 0 and len(self.structure) > 0
        check_option("TargetFold", "structure", self.structure, ok, "of matching ( ) and dots", "E.g. ((...)).")

    def length(self, wanted: int | None) -> int:
        """See `AbstractFoldScore.length`."""
        ok = wanted in (None, len(self.structure))
        check_option("RNATask", "length", wanted, ok, f"{len(self.structure)}, that of `structure`", "Leave it out.")
        return len(self.structure)

    def values(self, sequences: Sequence[str]) -> list[float]:
        """See `AbstractFoldScore.values`."""
        package, out = vienna("TargetFold"), []
        for sequence in sequences:
            fold = package.fold_compound(sequence)
            fold.exp_params_rescale(float(fold.mfe()[1]))
            fold.pf()
            out.append(float(fold.pr_structure(self.structure)))
        return out

    def top(self, length: int) -> float:
        """See `AbstractFoldScore.top`: 1, which no sequence quite reaches."""
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class TargetBinding(AbstractFoldScore):
    """Minus the energy of the duplexes with one or more targets, in kcal/mol, averaged over the targets.

    Normalised by the mean over the targets of what the reverse complement of their best window reaches; with several
    targets no design need reach it, with one a design may exceed it.

    Args:
        targets: RNA sequences, at least as long as the designs.

    Raises:
        ValueError: for no targets, or unknown letters.

    Example:
        >>> TargetBinding(targets=("GGGG",)).values(["CCCC"])  # doctest: +SKIP
        [5.8]

    References:
        Sinai et al. "AdaLead: a simple and robust adaptive greedy search algorithm for sequence design". arXiv:2010.02141,
        2020 (RNA landscapes).
    """

    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        ok = len(self.targets) > 0 and all(target and set(target) <= set(RNA) for target in self.targets)
        check_option("TargetBinding", "targets", self.targets, ok, f"sequences of {RNA}", "Write U for T.")

    def length(self, wanted: int | None) -> int:
        """See `AbstractFoldScore.length`; 14, or the shortest target, unless told."""
        least = min(map(len, self.targets))
        chosen = min(14, least) if wanted is None else wanted
        check_option(
            "RNATask", "length", wanted, chosen <= least, f"at most {least}, the shortest target", "Shorten it."
        )
        return chosen

    def values(self, sequences: Sequence[str]) -> list[float]:
        """See `AbstractFoldScore.values`."""
        package = vienna("TargetBinding")
        return [
            -sum(float(package.duplexfold(sequence, target).energy) for target in self.targets) / len(self.targets)
            for sequence in sequences
        ]

    def top(self, length: int) -> float:
        """See `AbstractFoldScore.top`."""
        partner = str.maketrans(RNA, "UGCA")
        best = []
        for target in self.targets:
            windows = [target[k : k + length][::-1].translate(partner) for k in range(len(target) - length + 1)]
            best.append(max(TargetBinding(targets=(target,)).values(windows)))
        return sum(best) / len(best)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RNATask(AbstractTask):
    """RNA sequences scored by their folds; visible are random ones and mutants of the better of them, up to a ceiling.

    Scores are exact: dynamic programming over all secondary structures, with the package's default energies. A call costs
    0.1 to 1 ms a sequence at lengths up to 50.

    Args:
        goal: what is scored.
        length: of the sequences, 4 or more; None: what the goal says.
        rows: visible designs.
        ceiling: largest visible score, as a share of what is normalised to 1, in (0, 1].
        seed: of the draws.

    Raises:
        ImportError: without the package ViennaRNA.
        ValueError: for sizes out of range.

    Example:
        >>> RNATask(goal=FoldStability(), length=12).space.alphabet  # doctest: +SKIP
        'ACGU'
    """

    goal: AbstractFoldScore
    length: int | None = None
    rows: int = 2000
    ceiling: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        vienna("RNATask")
        size = self.goal.length(self.length)
        check_option("RNATask", "length", size, size >= 4, ">= 4", "20 is a good start.")
        check_option("RNATask", "ceiling", self.ceiling, 0 < self.ceiling <= 1, "in (0, 1]", "0.5 is usual.")
        ok = 2 <= self.rows <= 4**size / 4
        check_option(
            "RNATask", "rows", self.rows, ok, "at least 2 and few enough to be drawn", "Lengthen the sequence."
        )

    @property
    def space(self) -> CategoricalSpace:
        """See `AbstractTask.space`."""
        return CategoricalSpace(length=self.goal.length(self.length), alphabet=RNA)

    @property
    def bounds(self) -> tuple[float, float]:
        """See `AbstractTask.bounds`: a sequence that does nothing, and the goal's good design."""
        return 0.0, self._top

    @cached_property
    def _top(self) -> float:
        return self.goal.top(self.space.length)

    def pool(self) -> None:
        """See `AbstractTask.pool`: the whole space."""
        return None

    def score(self, designs: Tensor) -> Tensor:
        """See `AbstractTask.score`."""
        found = self.goal.values(self.space.decode(designs))
        return torch.tensor(found, dtype=torch.float64, device=designs.device) + 0.0  # not -0.0

    def visible(self) -> Table:
        """Half random designs, half mutants of the better ones, round by round, none above the ceiling.

        Raises:
            ValueError: where so many different designs cannot be found below the ceiling.
        """
        generator = torch.Generator().manual_seed(self.seed)
        size, limit = self.space.length, self.ceiling * self.bounds[1]
        designs = torch.unique(self.space.random(self.rows // 2, generator), dim=0)
        scores = self.score(designs)
        designs, scores = designs[scores <= limit], scores[scores <= limit]
        for _ in range(100):
            if len(designs) >= self.rows or not len(designs):
                break
            best = designs[scores.argsort(descending=True, stable=True)[: max(16, self.rows // 10)]]
            best = best.repeat(-(-self.rows // (4 * len(best))), 1)
            fresh = without(self.space.mutated(best, 1 + size // 16, generator), designs)
            fresh = shuffled(fresh, generator)[: self.rows - len(designs)]
            found = self.score(fresh)
            designs = torch.cat([designs, fresh[found <= limit]])
            scores = torch.cat([scores, found[found <= limit]])
        if len(designs) < self.rows:
            raise ValueError(
                f"RNATask: expected `rows` = {self.rows} designs with scores up to `ceiling` = {self.ceiling} of the best, "
                f"got {len(designs)}. Lower rows, raise the ceiling, or lengthen the sequence."
            )
        return Table(designs=designs, scores=scores)


def vienna(owner: str) -> Any:
    """The ViennaRNA package.

    Raises:
        ImportError: where it is not installed.
    """
    try:
        return importlib.import_module("RNA")
    except ImportError as error:
        raise ImportError(
            f"{owner}: expected the package ViennaRNA, got none. Install it: pip install 'sciopt[offline]', or use another "
            "task, such as Ehrlich."
        ) from error
