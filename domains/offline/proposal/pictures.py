"""Pictures of a proposal: how far to trust the model, and what the batch looks like; each draws into given axes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_calibration",
    "draw_coverage",
    "draw_letters",
    "draw_novelty",
    "draw_scores",
    "draw_values",
    "write_picture",
]

INK, OLD, NEW, WARN = "#17202a", "#9aa5ae", "#0b6e78", "#c77700"
MOST_POINTS = 1500
FIRST_LEVELS = 12


def draw_calibration(
    axes: Axes, observed: Tensor, predicted: Tensor, deviation: Tensor, *, name: str = "score"
) -> None:
    """Left-out scores against their predictions, with one standard deviation, and the diagonal of perfect ones.

    Args:
        axes: to draw into.
        observed: scores ``(n,)``.
        predicted: what the model says of each without it ``(n,)``.
        deviation: its standard deviations ``(n,)``.
        name: of the score.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_calibration(axes, torch.arange(3.0), torch.arange(3.0), torch.ones(3))
        >>> axes.get_ylabel()
        'score, measured'
    """
    rows = _some(len(observed))
    x, y, s = (values.detach().cpu()[rows].numpy() for values in (predicted, observed, deviation))
    bars = len(rows) <= 400
    if bars:
        axes.errorbar(x, y, xerr=s, fmt="none", ecolor=OLD, elinewidth=0.6, alpha=0.6, zorder=1)
    axes.scatter(x, y, s=9 if bars else 5, color=NEW, alpha=0.75 if bars else 0.4, linewidths=0, zorder=2)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    pad = 0.05 * (high - low) or 1.0
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=INK, lw=0.8, zorder=3)
    reach = float(high - low)  # error bars do not decide how much is seen
    axes.set(xlim=(low - max(pad, 0.12 * reach), high + max(pad, 0.12 * reach)), ylim=(low - pad, high + pad))
    title = "Predicted without them" + ("" if len(rows) == len(observed) else f" ({len(rows)} of {len(observed)})")
    _named(axes, f"{_cut(name, 40)}, predicted", f"{_cut(name, 24)}, measured", title)


def draw_coverage(axes: Axes, nominal: Sequence[float], reached: Sequence[float], *, count: int | None = None) -> None:
    """How often the intervals hold what they should: on the diagonal when the uncertainties are right.

    Args:
        axes: to draw into.
        nominal: shares that the intervals promise.
        reached: shares that they hold.
        count: rows that were counted: a band shows how far chance alone may lead.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_coverage(axes, [0.5, 0.9], [0.4, 0.8], count=50)
        >>> axes.get_title()
        'Are the uncertainties right?'
    """
    axes.plot([0, 1], [0, 1], color=INK, lw=0.8)
    if count:
        p = torch.linspace(0, 1, 101, dtype=torch.float64)
        half = 1.96 * (p * (1 - p) / count).sqrt()
        axes.fill_between(p.numpy(), (p - half).numpy(), (p + half).numpy(), color=OLD, alpha=0.3, lw=0)
    order = sorted(range(len(nominal)), key=lambda i: nominal[i])
    axes.plot([nominal[i] for i in order], [reached[i] for i in order], "o-", color=NEW, ms=4, lw=1.4)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.02))
    _named(axes, "share promised by the intervals", "share of rows inside", "Are the uncertainties right?")


def draw_scores(
    axes: Axes,
    known: Tensor,
    predicted: Tensor,
    *,
    name: str = "score",
    maximize: bool = True,
    best: float | None = None,
) -> None:
    """Histograms of the scores in the table and of the predictions for the batch, each as shares of its own.

    Args:
        axes: to draw into.
        known: scores of the table ``(n,)``.
        predicted: scores predicted for the batch ``(m,)``.
        name: of the score.
        maximize: whether the best is the largest.
        best: the best measured score, where it is not simply that, as when repeats are averaged.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_scores(axes, torch.arange(9.0), torch.tensor([9.0]))
        >>> axes.get_xlabel()
        'score'
    """
    old, new = known.detach().cpu(), predicted.detach().cpu()
    both = torch.cat([old, new])
    low, high = float(both.min()), float(both.max())
    pad = 0.5 * max(1.0, 1e-6 * abs(low)) if high == low else 0.0
    count = max(12, min(40, len(old) // 5)) + 1
    bins = torch.linspace(low - pad, high + pad, count, dtype=torch.float64).tolist()
    for values, colour, label, alpha in (
        (old, OLD, f"table ({len(old)})", 0.8),
        (new, NEW, f"batch ({len(new)})", 0.6),
    ):
        axes.hist(
            values.tolist(), bins=bins, weights=[1 / len(values)] * len(values), color=colour, alpha=alpha, label=label
        )
    top = float(old.max() if maximize else old.min()) if best is None else best
    axes.axvline(top, color=WARN, lw=1.2, ls="--", label="best measured")
    axes.legend(frameon=False, fontsize=8)
    _named(axes, name, "share", "Measured, and predicted for the batch")


def draw_novelty(
    axes: Axes, novelty: Tensor, predicted: Tensor, deviation: Tensor, *, best: float | None = None, name: str = "score"
) -> None:
    """Predictions of the batch, with one standard deviation, against the distance to the nearest row of the table.

    Args:
        axes: to draw into.
        novelty: ``(n,)``.
        predicted: ``(n,)``.
        deviation: ``(n,)``.
        best: the best measured score, as a line.
        name: of the score.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_novelty(axes, torch.ones(2), torch.ones(2), torch.ones(2))
        >>> axes.get_xlabel()
        'novelty: distance to the nearest row of the table'
    """
    x, y, s = (values.detach().cpu() for values in (novelty, predicted, deviation))
    spread = 0.006 * float(x.max())  # equal distances side by side
    x = x + spread * (2 * torch.rand(len(x), dtype=x.dtype, generator=torch.Generator().manual_seed(0)) - 1)
    if len(x) <= 300 and bool(torch.isfinite(s).all()):
        axes.errorbar(x.numpy(), y.numpy(), yerr=s.numpy(), fmt="none", ecolor=OLD, elinewidth=0.7, zorder=1)
    axes.set_xlim(0, 1.08 * max(float(x.max()), 1e-6))
    ranks = list(range(1, len(x) + 1))
    colours = axes.scatter(x.numpy(), y.numpy(), s=16, c=ranks, cmap="viridis", linewidths=0, zorder=2)
    if len(x) > 1 and axes.figure is not None:
        bar = axes.figure.colorbar(colours, ax=axes, pad=0.01, ticks=[1, len(x)])
        bar.set_label("rank", fontsize=8, labelpad=-4)
        bar.ax.tick_params(labelsize=7)
    if best is not None:
        axes.axhline(best, color=WARN, lw=1.2, ls="--", label="best measured")
        axes.legend(frameon=False, fontsize=8)
    axes.locator_params(axis="x", nbins=5)
    _named(
        axes, "novelty: distance to the nearest row of the table", f"{_cut(name, 24)}, predicted", "New, and how good"
    )


def draw_letters(
    axes: Axes,
    sequences: Sequence[str],
    *,
    letters: str,
    length: int,
    title: str = "",
    against: Sequence[str] | None = None,
) -> None:
    """Share of each letter at each position, as a heat map; the commonest letter is written where there is room.

    Args:
        axes: to draw into.
        sequences: of at most ``length`` letters; shorter ones end early.
        letters: rows of the map.
        length: columns of the map.
        title: above it.
        against: other sequences, whose shares are subtracted: blue letters have become more frequent, red ones less.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_letters(axes, ["AC", "AT"], letters="ACGT", length=2)
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['A', 'C', 'G', 'T']
    """
    share = letter_shares(sequences, letters, length)
    if against is not None:
        share = share - letter_shares(against, letters, length)
    low, colours = (0.0, "GnBu") if against is None else (-1.0, "RdBu")
    axes.imshow(share.numpy(), cmap=colours, vmin=low, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(letters)), list(letters), fontsize=7 if len(letters) > 12 else 8, family="monospace")
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1 << 30) if length / step <= 25)
    shown = [k for k in range(length) if (k + 1) % step == 0 or k == 0]
    axes.set_xticks(shown, [str(k + 1) for k in shown], fontsize=8)
    if length <= 40:
        for k in range(length):
            top = int(share[:, k].argmax())
            value = float(share[top, k])
            if value > (0.0 if against is None else 0.15):
                colour = "white" if value > 0.6 else INK
                axes.text(k, top, letters[top], ha="center", va="center", fontsize=7, color=colour, family="monospace")
    _named(axes, "position", "", title)


def letter_shares(sequences: Sequence[str], letters: str, length: int) -> Tensor:
    """Share of each letter at each position ``(letters, length)``, of all sequences.

    Example:
        >>> letter_shares(["A", "AC"], "AC", 2).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    known = torch.full((0x110000,), len(letters), dtype=torch.int64)
    known[torch.tensor([ord(letter) for letter in letters])] = torch.arange(len(letters))
    text = "".join(sequence[:length].ljust(length, "\0") for sequence in sequences).encode("utf-32-le")
    codes = known[torch.frombuffer(bytearray(text), dtype=torch.int32).long()].reshape(len(sequences), length)
    counts = torch.nn.functional.one_hot(codes, len(letters) + 1).sum(0)[:, :-1]
    return counts.T.to(torch.float64) / max(1, len(sequences))


def draw_values(
    axes: Axes,
    known: Sequence[Any],
    scores: Tensor,
    proposed: Sequence[Any],
    predicted: Tensor,
    *,
    name: str,
    log: bool = False,
    levels: Sequence[Any] | None = None,
) -> None:
    """Scores against one column of the design, measured and predicted; categories side by side.

    Args:
        axes: to draw into.
        known: values of the column in the table.
        scores: measured ``(n,)``.
        proposed: values of the column in the batch.
        predicted: for the batch ``(m,)``.
        name: of the column.
        log: draw the column logarithmically.
        levels: of a category; None: a number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot()
        >>> draw_values(axes, ["a", "b"], torch.ones(2), ["a"], torch.ones(1), name="kind", levels=["a", "b"])
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['a', 'b']
    """
    if log and levels is None:
        axes.set_xscale("log")
    rows = _some(len(known))
    y_old, y_new = scores.detach().cpu()[rows].numpy(), predicted.detach().cpu().numpy()
    x_old, x_new = [known[i] for i in rows.tolist()], list(proposed)
    if levels is not None:
        place = {level: k for k, level in enumerate(levels)}
        shift = torch.rand(len(x_old) + len(x_new), generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
        jitter = shift.tolist()
        x_old = [place[v] + d for v, d in zip(x_old, jitter[: len(x_old)], strict=True)]
        x_new = [place[v] + d for v, d in zip(x_new, jitter[len(x_old) :], strict=True)]
        texts = [_short(level) for level in levels]
        step = -(-len(levels) // FIRST_LEVELS)
        turned = len(levels) > 4 or max(map(len, texts)) > 6
        axes.set_xticks(
            range(0, len(levels), step),
            texts[::step],
            fontsize=7,
            rotation=60 if turned else 0,
            ha="right" if turned else "center",
        )
    axes.scatter(x_old, y_old, s=5 if len(x_old) > 200 else 12, color=OLD, alpha=0.6, linewidths=0)
    axes.scatter(x_new, y_new, s=8 if len(x_new) > 50 else 16, color=NEW, alpha=0.8, linewidths=0)
    axes.tick_params(labelsize=7)
    axes.set_title(_short(name, 28), fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _some(count: int) -> Tensor:
    """Rows to draw: all, or as many as a picture can show, evenly spread."""
    if count <= MOST_POINTS:
        return torch.arange(count)
    return torch.linspace(0, count - 1, MOST_POINTS).round().long()


def write_picture(figure: Figure, target: Path | IO[bytes], *, dpi: int = 130) -> None:
    """Write a figure as PNG; letters that no font has are drawn as boxes, without a warning for each.

    Example:
        >>> import io
        >>> from matplotlib.figure import Figure
        >>> file = io.BytesIO()
        >>> write_picture(Figure(figsize=(1, 1)), file)
        >>> file.getvalue()[1:4]
        b'PNG'
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from")
        figure.savefig(target, format="png", dpi=dpi, facecolor="white")


def literal(text: str) -> str:
    """Text as it is: no part of it is a formula, whatever dollars it holds.

    Example:
        >>> print(literal("$5 or $6"))
        \\$5 or \\$6
    """
    return text.replace("$", r"\$")


def _short(value: Any, most: int = 14) -> str:
    return literal(_cut(value, most))


def _cut(value: Any, most: int) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most // 2 - 1] + "..." + text[len(text) - (most - 2 - most // 2) :]


def _named(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=_short(x, 60), ylabel=_short(y, 40))
    axes.set_title(_short(title, 90), fontsize=10)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
