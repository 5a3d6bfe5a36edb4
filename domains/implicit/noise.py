"""How the random numbers of a map are held still during a solve: masks that are drawn once, or a generator set back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["Masks", "Rewound"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
NOISY = (nn.RReLU,)  # random while training, and not a factor on their input


class Masks:
    """Dropout masks drawn once per call of each layer, so that rows of a batch keep their own.

    Args:
        generator: where masks come from; None: torch's global generator, as dropout itself.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self.drawn: dict[nn.Module, list[Tensor]] = {}
        self.batch: int | None = None

    def over(self, parts: Sequence[nn.Module]) -> None:
        """Learn the layers of the map."""
        self.drawn = {part: [] for part in parts if part.training and isinstance(part, DROPOUTS) and part.p > 0}

    def refuses(self, part: nn.Module, known: bool) -> str | None:
        """What is wrong with a layer that runs; None: nothing. ``known``: it is one of those of `over`."""
        if part.training and (isinstance(part, NOISY) or is_odd_dropout(part)):
            return (
                f"expected layers that can be held still, got {type(part).__name__} in training mode. Put it in eval mode, "
                "or use nn.Dropout."
            )
        hidden = not known and part.training and isinstance(part, DROPOUTS) and part.p > 0
        return unfound(part) if hidden else None

    @contextmanager
    def first(self, batch: int | None) -> Iterator[None]:
        """A context in which an evaluation draws the masks."""
        self.batch = batch
        with self.patched(self.draw):
            yield

    def again(self) -> Any:
        """A context in which an evaluation sees the random numbers of the first."""
        place = dict.fromkeys(self.drawn, 0)

        def repeat(layer: Any, x: Tensor) -> Tensor:
            masks, k = self.drawn[layer], place[layer]
            if k >= len(masks) or not fits(masks[k], x):
                raise ValueError(
                    f"Frozen: expected the {type(layer).__name__} layers to be called as in the first evaluation, got call "
                    f"{k + 1} on shape {tuple(x.shape)}. Keep the flow of the module independent of its input."
                )
            place[layer] = k + 1
            return x * masks[k]

        return self.patched(repeat)

    def draw(self, layer: Any, x: Tensor) -> Tensor:
        """Apply a dropout layer with a new mask, and keep the mask."""
        shape = x.shape if isinstance(layer, nn.Dropout) else (*x.shape[:2], *(1,) * (x.ndim - 2))
        keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - layer.p, generator=self.generator)
        mask = keep / (1 - layer.p) if layer.p < 1 else keep
        self.drawn[layer].append(mask)
        return x * mask

    def restricted(self, rows: Tensor) -> Masks:
        """The masks of some rows of the batch."""
        cut = Masks(self.generator)
        cut.drawn = {layer: [self.cut(mask, rows) for mask in masks] for layer, masks in self.drawn.items()}
        return cut

    def cut(self, mask: Tensor, rows: Tensor) -> Tensor:
        """A mask of some rows."""
        if self.batch is None or len(mask) != self.batch:
            raise ValueError(
                f"Frozen: expected dropout on tensors with the batch ({self.batch}) in front, got a mask of shape "
                f"{tuple(mask.shape)}. Keep the batch in front, or evaluate all rows together (rowwise=False)."
            )
        return mask.index_select(0, rows)

    @contextmanager
    def patched(self, dropout: Any) -> Iterator[None]:
        """Dropout layers replaced."""
        for layer in self.drawn:
            layer.__dict__["forward"] = partial(dropout, layer)
        try:
            yield
        finally:
            for layer in self.drawn:
                layer.__dict__.pop("forward", None)


class Rewound:
    """torch's generators set back to where they were at the start, for random numbers of any kind, on the whole batch.

    Args:
        device: where random numbers would be drawn, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.random: bool | None = None  # known after the first evaluation
        self.entry = self.state()
        self.exit = self.entry

    def over(self, parts: Sequence[nn.Module]) -> None:
        """Learn the layers of the map."""

    def refuses(self, part: nn.Module, known: bool) -> str | None:
        """What is wrong with a layer that runs; None: nothing. ``known``: it is one of those of `over`."""
        return None

    @contextmanager
    def again(self) -> Iterator[None]:
        """A context in which an evaluation sees the random numbers of the first."""
        if self.random is False:
            yield
            return
        outside = self.state()
        self.restore(self.entry)
        try:
            yield
        finally:
            after = self.state()
            self.restore(outside)
        if self.random is None:
            self.random = any(not torch.equal(a, b) for a, b in zip(self.entry, after, strict=True))
            self.exit = after

    def state(self) -> list[Tensor]:
        """Where the generators stand."""
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def restore(self, states: list[Tensor]) -> None:
        """Set the generators back."""
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)


def is_odd_dropout(part: nn.Module) -> bool:
    """Whether a layer is a dropout whose mask is not a factor."""
    return isinstance(part, _DropoutNd) and not isinstance(part, DROPOUTS) and part.p > 0


def fits(mask: Tensor, x: Tensor) -> bool:
    """Whether a mask broadcasts to exactly ``x``."""
    return mask.ndim == x.ndim and all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))


def unfound(part: nn.Module) -> str:
    """The message for a layer that runs and was not found."""
    return (
        f"expected `f` whose modules can be found, got {type(part).__name__}, which runs inside and is reached in no way "
        "that can be followed. Pass it as an nn.Module, or let f close over it."
    )
