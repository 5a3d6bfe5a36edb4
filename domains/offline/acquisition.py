"""Which candidates to test together, given their joint posterior: confidence bounds, expected improvement, plain means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_finite, check_option
from sciopt.domains.offline.diversity import AbstractDiversity, Conditional

__all__ = ["AbstractAcquisition", "GreedyMean", "SampledExpectedImprovement", "UpperConfidence", "posterior_root"]


class AbstractAcquisition(ABC):
    """A way to choose a batch among candidates. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def choose(
        self,
        mean: Tensor,
        covariance: Tensor,
        best: float,
        count: int,
        *,
        generator: torch.Generator,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """The chosen candidates, in the order of their choice.

        Args:
            mean: posterior means of the candidates ``(q,)``, the higher the better.
            covariance: their joint posterior covariance ``(q, q)``.
            best: the highest score known.
            count: designs to choose.
            generator: the one source of chance.
            similarity: of the candidates ``(q, q)``, in [0, 1], such as 1 - Hamming / length; for ``diversity`` alone.

        Returns:
            Distinct indices, int64 ``(count,)``.

        Raises:
            ValueError: for shapes that do not fit, NaN, fewer candidates than ``count``, or a ``diversity`` without
                similarities.
        """


@final
@dataclass(frozen=True, kw_only=True)
class GreedyMean(AbstractAcquisition):
    """The highest means: what to test when no second batch will follow and the model is trusted.

    Args:
        diversity: what alike designs cost; None: nothing.

    Example:
        >>> mean = torch.tensor([1.0, 3.0, 2.0])
        >>> GreedyMean().choose(mean, torch.eye(3), 0.0, 2, generator=torch.Generator())
        tensor([1, 2])
    """

    diversity: AbstractDiversity | None = None

    def choose(
        self,
        mean: Tensor,
        covariance: Tensor,
        best: float,
        count: int,
        *,
        generator: torch.Generator,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """See `AbstractAcquisition.choose`; nothing is drawn at random."""
        _check("GreedyMean", mean, covariance, best, count, similarity, self.diversity)
        return _greedy(lambda: mean, lambda index: None, count, self.diversity, similarity)


@final
@dataclass(frozen=True, kw_only=True)
class UpperConfidence(AbstractAcquisition):
    """Mean plus ``weight`` standard deviations, one design after another, each told what the others will have measured.

    A measurement at a chosen design lowers the uncertainty of its neighbours whatever it will be, so the covariance is
    conditioned on each choice while the mean stays: the batch spreads by itself. Costs ``count^2 q`` in all.

    Args:
        weight: standard deviations added to the mean, >= 0; 0 is `GreedyMean`.
        noise: variance of a measurement, in squared units of the scores, >= 0.
        diversity: what alike designs cost besides; None: nothing.

    Example:
        >>> mean, covariance = torch.zeros(3), torch.tensor([[1.0, 0.9, 0.0], [0.9, 0.9, 0.0], [0.0, 0.0, 0.5]])
        >>> UpperConfidence(weight=1.0).choose(mean, covariance, 0.0, 2, generator=torch.Generator())
        tensor([0, 2])

    References:
        Srinivas, Krause, Kakade, Seeger. "Gaussian process optimization in the bandit setting". ICML 2010, eq. 6.
        Desautels, Krause, Burdick. "Parallelizing exploration-exploitation tradeoffs in Gaussian process bandit
        optimization". JMLR 15, 2014, eq. 7 (GP-BUCB).
    """

    weight: float = 1.0
    noise: float = 0.0
    diversity: AbstractDiversity | None = None

    def __post_init__(self) -> None:
        ok = 0 <= self.weight < float("inf")
        check_option("UpperConfidence", "weight", self.weight, ok, "finite and >= 0", "1 is a good start.")
        check_option("UpperConfidence", "noise", self.noise, self.noise >= 0, ">= 0", "0 if unknown.")

    def choose(
        self,
        mean: Tensor,
        covariance: Tensor,
        best: float,
        count: int,
        *,
        generator: torch.Generator,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """See `AbstractAcquisition.choose`; nothing is drawn at random."""
        _check("UpperConfidence", mean, covariance, best, count, similarity, self.diversity)
        state = Conditional(covariance, count, self.noise)
        return _greedy(
            lambda: mean + self.weight * state.variance.sqrt(), state.observe, count, self.diversity, similarity
        )


@final
@dataclass(frozen=True, kw_only=True)
class SampledExpectedImprovement(AbstractAcquisition):
    """Expected improvement of the whole batch over ``best``, by joint draws of the posterior, greedy over fixed draws.

    Each choice adds most to ``E[max(0, max over batch - best)]``; with fixed draws this gain is submodular, so that the
    greedy batch has at least 63 % of the best batch's. Where no draw improves any more, the highest means fill up. Costs
    one Cholesky factor of the covariance, then ``draws * q`` per choice.

    Args:
        draws: joint draws, >= 1; a batch uses at most as many before means fill up.
        diversity: what alike designs cost besides; None: nothing.

    Example:
        >>> mean, covariance = torch.zeros(3), torch.diag(torch.tensor([4.0, 1.0, 2.0]))
        >>> SampledExpectedImprovement().choose(mean, covariance, 0.0, 2, generator=torch.Generator().manual_seed(0))
        tensor([0, 2])

    References:
        Wilson, Hutter, Deisenroth. "Maximizing acquisition functions for Bayesian optimization". NeurIPS 2018, section 3.
    """

    draws: int = 1024
    diversity: AbstractDiversity | None = None

    def __post_init__(self) -> None:
        check_option("SampledExpectedImprovement", "draws", self.draws, self.draws >= 1, ">= 1", "Leave the default.")

    def choose(
        self,
        mean: Tensor,
        covariance: Tensor,
        best: float,
        count: int,
        *,
        generator: torch.Generator,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """See `AbstractAcquisition.choose`."""
        _check("SampledExpectedImprovement", mean, covariance, best, count, similarity, self.diversity)
        root = posterior_root(covariance)
        noise = torch.randn(self.draws, len(mean), generator=generator, dtype=mean.dtype, device=generator.device)
        draws = mean + noise.to(mean.device) @ root.mT
        reached = mean.new_full((self.draws, 1), best)
        order = torch.finfo(mean.dtype).eps * (mean - mean.mean())  # far below any gain; decides where every gain is 0

        def gains() -> Tensor:
            return (draws - reached).clamp(min=0).mean(0) + order

        def take(index: Tensor) -> None:
            nonlocal reached
            reached = torch.maximum(reached, draws.index_select(1, index))

        return _greedy(gains, take, count, self.diversity, similarity)


def posterior_root(covariance: Tensor) -> Tensor:
    """``R`` with ``R R^T`` the covariance, which may be singular: Cholesky with the least jitter that lets it pass.

    Args:
        covariance: ``(q, q)``, positive semi-definite up to rounding.

    Returns:
        Lower triangular ``(q, q)``; the jitter is at most 1e-6 of the largest variance (1e-3 in float32).

    Raises:
        ValueError: for a matrix that is not positive semi-definite.

    Example:
        >>> posterior_root(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))[:, 0].round(decimals=3)
        tensor([2., 1.])
    """
    eps = torch.finfo(covariance.dtype).eps
    scale = covariance.diagonal().amax().clamp(min=torch.finfo(covariance.dtype).tiny)
    most = 1e-6 if covariance.dtype == torch.float64 else 1e-3
    jitter = 8 * eps
    while jitter <= most:
        shifted = covariance + torch.diag_embed(jitter * scale.expand(len(covariance)))
        root, info = torch.linalg.cholesky_ex(shifted)
        if not int(info):
            return root
        jitter *= 10
    raise ValueError(
        f"posterior_root: expected `covariance` to be positive semi-definite, got a matrix that is not with {most:g} of its "
        f"largest variance {float(scale):.3g} added to the diagonal. Compute the posterior in float64, or with more ridge."
    )


def _greedy(
    values: Callable[[], Tensor],
    take: Callable[[Tensor], None],
    count: int,
    diversity: AbstractDiversity | None,
    similarity: Tensor | None,
) -> Tensor:
    """Indices ``(count,)``: each time the highest value plus the term of diversity, told to both."""
    chosen: list[Tensor] = []
    first = values()
    open_ = torch.zeros_like(first)
    state, scale = None, first
    if diversity is not None and similarity is not None:
        state = diversity.start(similarity.to(first), count)
        spread = first.std(correction=0)
        scale = torch.where(spread > 0, spread, 1.0)
    for step in range(count):
        value = (values() if step else first) + open_
        if diversity is not None and state is not None:
            value = value + scale * diversity.terms(state)
        index = value.argmax().reshape(1)
        chosen.append(index)
        open_ = open_.index_fill(0, index, -torch.inf)
        if step + 1 < count:
            take(index)
            state = None if diversity is None or state is None else diversity.update(state, index)
    return torch.cat(chosen)


def _check(
    owner: str,
    mean: Tensor,
    covariance: Tensor,
    best: float,
    count: int,
    similarity: Tensor | None,
    diversity: AbstractDiversity | None,
) -> None:
    """Bad arguments of `AbstractAcquisition.choose`."""
    q = len(mean) if mean.ndim == 1 else -1
    for name, matrix in (("covariance", covariance), ("similarity", similarity)):
        if matrix is not None and (q < 0 or matrix.shape != (q, q)):
            raise ValueError(
                f"{owner}: expected `mean` of shape (q,) and `{name}` of shape (q, q), got {tuple(mean.shape)} and "
                f"{tuple(matrix.shape)}. Pass one mean per candidate and all pairs."
            )
        if matrix is not None:
            check_finite(owner, name, [matrix])
    check_finite(owner, "mean", [mean])
    if covariance.dtype != mean.dtype or not mean.is_floating_point():
        raise ValueError(
            f"{owner}: expected `mean` and `covariance` in one floating-point dtype, got {mean.dtype} and "
            f"{covariance.dtype}. Convert one of them."
        )
    check_option(owner, "best", best, best == best and abs(best) < float("inf"), "to be finite", "Pass a known score.")
    check_option(owner, "count", count, 1 <= count <= q, f"in [1, {q}], the number of candidates", "Choose fewer.")
    if diversity is not None and similarity is None:
        raise ValueError(
            f"{owner}: expected `similarity` of shape ({q}, {q}) for `diversity`, got None. Pass 1 - Hamming / length."
        )
