"""What the kernel of a wide network is worth against a Gaussian one, on small tables."""

from __future__ import annotations

from sciopt.domains.offline import AbstractTask, Ehrlich, EvolutionarySearch
from sciopt.kernels import NTK, RBF, DenseNetwork
from tests.benchmarks.ablation import Pair, ablation


@ablation("wide network instead of a Gaussian kernel")
def kernels(task: AbstractTask) -> Pair:
    allowed = task.feasible if isinstance(task, Ehrlich) else None
    width = (task.space.length * (task.space.letters - 1)) ** 0.5
    return Pair(
        on=EvolutionarySearch(kernel=NTK(DenseNetwork(hidden_layers=5)), rounds=10, allowed=allowed),
        off=EvolutionarySearch(kernel=RBF(length_scale=width), rounds=10, allowed=allowed),
    )
