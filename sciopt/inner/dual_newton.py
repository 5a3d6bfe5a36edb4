"""Penalised logistic regression with fewer rows than weights: Newton in the dual, one product of the size of the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sciopt.checks import check_option, check_tree
from sciopt.inner.rows import any_row

__all__ = ["logistic_dual"]


def logistic_dual(
    features: Tensor,
    labels: Tensor,
    penalty: Tensor | float,
    weights: Tensor | None = None,
    *,
    order: int = 2,
    max_steps: int = 30,
) -> Tensor:
    """``argmin_w sum_i weights_i softplus(-z_i features_i w) + w' diag(penalty) w / 2``, z = +-1, for ``n < d``.

    Use it as a `sciopt.hypergradients.ClosedForm` for hyperparameters of logistic regression on few rows with many
    features. The solution is ``P^-1 X' a``, so that every Newton step runs in n dimensions: ``n^2 d`` operations once,
    ``n^3`` per step, to rounding. Derivatives come from ``order`` steps with the final Newton matrix kept fixed, each of
    which makes one more order exact for four products with ``features``; `logistic_newton` has every order, at
    ``n^2 d`` per step.

    Args:
        features: X, ``(*batch, n, d)``.
        labels: ``(*batch, n)``, 0 or 1.
        penalty: a number, or one entry per weight ``(*batch, d)``; positive.
        weights: ``(*batch, n)``, one positive weight per row; None: ones.
        order: highest order of derivatives that is exact.
        max_steps: budget of Newton steps; the result of a spent budget is no minimum, and `ClosedForm` says so.

    Returns:
        Weights ``(*batch, d)``.

    Raises:
        ValueError: for shapes that do not fit or options out of range.

    Example:
        >>> X = torch.tensor([[1.0, 0.0, 1.0], [0.0, -1.0, 1.0]])
        >>> logistic_dual(X, torch.tensor([1.0, 0.0]), 1.0).abs().round(decimals=4)
        tensor([0.4011, 0.4011, 0.0000])

    References:
        Keerthi, Duan, Shevade, Poo. "A fast dual algorithm for kernel logistic regression". Machine Learning 61 (2005).
        Bolte, Pauwels, Vaiter. "One-step differentiation of iterative algorithms". NeurIPS 2023.
    """
    check_tree("logistic_dual", "features", features)
    check_option("logistic_dual", "order", order, order >= 1, ">= 1", "1 serves gradients, 2 serves Hessians.")
    if features.ndim < 2 or labels.shape[-1:] != features.shape[-2:-1]:
        raise ValueError(
            f"logistic_dual: expected `features` (*batch, n, d) and `labels` (*batch, n), got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}. Give one label per row."
        )
    scale = torch.as_tensor(penalty, dtype=features.dtype, device=features.device)
    scale = scale.expand(*scale.shape[:-1], features.shape[-1])
    instance = torch.ones_like(labels) if weights is None else weights
    with torch.no_grad():
        rows = features / scale.unsqueeze(-2)  # P^-1 X'
        dual, root, factor = _newton(rows @ features.mT, labels, instance, max_steps)
        w = _times(rows.mT, dual)
        data, fixed = features.detach(), scale.detach()
    for _ in range(order):
        slopes = _slopes(_times(features, w), labels, instance)
        grad = _times(features.mT, slopes) + scale * w
        base = grad / fixed
        inner = torch.cholesky_solve((root * _times(data, base)).unsqueeze(-1), factor).squeeze(-1)
        w = w - (base - _times(rows.mT, root * inner))
    return w


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _slopes(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """``weights (sigmoid(scores) - labels)``, accurate for rows far on their side too."""
    return weights * ((1 - labels) * torch.sigmoid(scores) - labels * torch.sigmoid(-scores))


def _newton(gram: Tensor, labels: Tensor, weights: Tensor, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dual solution a with ``a + weights (sigmoid(K a) - y) = 0``, and what the Newton matrix at it is made of."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    dual = torch.zeros_like(weights * gram[..., 0])
    eps = torch.finfo(gram.dtype).eps

    def curvature(scores: Tensor) -> tuple[Tensor, Tensor]:
        root = (weights * torch.sigmoid(scores) * torch.sigmoid(-scores)).sqrt()
        return root, torch.linalg.cholesky_ex(eye + root.unsqueeze(-1) * gram * root.unsqueeze(-2))[0]

    def loss(dual: Tensor, scores: Tensor) -> Tensor:
        return (weights * (softplus(scores) - labels * scores)).sum(-1) + 0.5 * (dual * scores).sum(-1)

    scores = _times(gram, dual)
    value = loss(dual, scores)
    before = torch.full_like(value, torch.inf)
    for _ in range(max_steps):
        miss = dual + _slopes(scores, labels, weights)
        size = miss.abs().amax(-1) / dual.abs().amax(-1)
        done = (size <= 4 * eps) | ((size <= 1e-4) & (size > 0.1 * before))  # squared at every step, or rounding
        if not any_row(~done):
            break
        before = size
        root, factor = curvature(scores)
        image = (root * _times(gram, miss)).unsqueeze(-1)
        move = root * torch.cholesky_solve(image, factor).squeeze(-1) - miss
        length = torch.ones_like(value)
        trial = dual + move
        for _ in range(8):  # shorten what overshoots; near the end values differ by rounding only
            worse = ~(loss(trial, _times(gram, trial)) <= value + 100 * eps * value.abs())
            if not any_row(worse):
                break
            length = torch.where(worse, 0.25 * length, length)
            trial = dual + length.unsqueeze(-1) * move
        dual, scores = trial, _times(gram, trial)
        value = loss(dual, scores)
    return dual, *curvature(scores)
