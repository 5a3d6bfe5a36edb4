"""A module held still: parameters, masks and statistics as they were when a solve began, whenever it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sciopt.transforms import is_wrapped, under_transform

__all__ = ["Frozen"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
NOISY = (nn.RReLU,)  # random while training, and not a factor on their input


class Frozen:
    """A module as it is now: a function of its inputs alone, for as long as a solve and its derivative need it.

    A solver evaluates a network many times, and once more in the backward pass. Here every evaluation sees

    - the parameters and buffers of the moment at which this was made (under `torch.func.functional_call` those that were
      put in, also when the call has long ended);
    - dropout masks that were drawn once (one per call of the layer inside ``module``; rows of a batch keep their own);
    - batch-norm statistics updated once, from the first evaluation, and then held.

    Args:
        module: any callable; what is no `torch.nn.Module` is evaluated as it stands.
        generator: where dropout masks come from; None: torch's global generator, as dropout itself.

    Raises:
        TypeError: for a module that is random in training mode and no dropout with a mask (AlphaDropout, RReLU).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> frozen, x = Frozen(net), torch.ones(3, 2)
        >>> frozen.begin(x)
        >>> bool((frozen(x) == frozen(x)).all()), net.training
        (True, True)
    """

    def __init__(self, module: Callable[..., Any], generator: torch.Generator | None = None) -> None:
        self.module, self.generator = module, generator
        self.slots: list[tuple[dict[str, Any], str, Any]] = []
        self.masks: dict[nn.Module, list[Tensor]] = {}
        self.norms: list[nn.Module] = []
        self.batch: int | None = None
        if not isinstance(module, nn.Module):
            return
        for part in module.modules():
            if part.training and (isinstance(part, NOISY) or is_odd_dropout(part)):
                raise TypeError(
                    f"Frozen: expected layers that can be held still, got {type(part).__name__} in training mode. Put it in "
                    "eval mode, or use nn.Dropout."
                )
            if part.training and isinstance(part, DROPOUTS) and part.p > 0:
                self.masks[part] = []
            if part.training and isinstance(part, _BatchNorm) and part.track_running_stats:
                self.norms.append(part)
        self.remember()

    def remember(self) -> None:
        """Note the tensors of every layer."""
        assert isinstance(self.module, nn.Module)
        self.slots = [
            (table, name, value)
            for part in self.module.modules()
            for table in (part._parameters, part._buffers)
            for name, value in table.items()
            if value is not None
        ]

    @property
    def random(self) -> bool:
        """Whether there are masks to draw or statistics to update before the first evaluation."""
        return bool(self.masks or self.norms)

    def begin(self, *args: Any) -> None:
        """Draw the masks and update the statistics, by one evaluation at these inputs; without a derivative."""
        if not self.random:
            return
        first = next((a for a in args if isinstance(a, Tensor) and a.ndim), None)
        self.batch = None if first is None else len(first)
        with torch.no_grad(), self.patched(self.draw, norms=False):
            self.module(*args)
        held = {id(part._buffers) for part in self.norms}
        self.slots = [
            (table, name, value.clone() if id(table) in held and isinstance(value, Tensor) else value)
            for table, name, value in self.slots
        ]

    def draw(self, layer: Any, x: Tensor) -> Tensor:
        """Apply a dropout layer with a new mask, and keep the mask."""
        shape = x.shape if isinstance(layer, nn.Dropout) else (*x.shape[:2], *(1,) * (x.ndim - 2))
        keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - layer.p, generator=self.generator)
        mask = keep / (1 - layer.p) if layer.p < 1 else keep
        self.masks[layer].append(mask)
        return x * mask

    def restricted(self, rows: Tensor) -> Frozen:
        """The same module on some rows of the batch: masks are cut, the rest is shared."""
        cut = Frozen(lambda: None)
        cut.module, cut.slots, cut.norms = self.module, self.slots, self.norms
        cut.masks = {layer: [self.cut(mask, rows) for mask in masks] for layer, masks in self.masks.items()}
        return cut

    def cut(self, mask: Tensor, rows: Tensor) -> Tensor:
        """A mask of some rows."""
        if self.batch is None or len(mask) != self.batch:
            raise ValueError(
                f"Frozen: expected dropout on tensors with the batch ({self.batch}) in front, got a mask of shape "
                f"{tuple(mask.shape)}. Keep the batch in front, or evaluate all rows together (rowwise=False)."
            )
        return mask.index_select(0, rows)

    def __call__(self, *args: Any) -> Any:
        if not self.masks and not self.norms:
            for table, name, value in self.slots:
                if table.get(name) is not value:
                    break
            else:
                return self.module(*args)
            with self.put_in():
                return self.module(*args)
        place = dict.fromkeys(self.masks, 0)

        def again(layer: Any, x: Tensor) -> Tensor:
            masks, k = self.masks[layer], place[layer]
            if k >= len(masks) or not fits(masks[k], x):
                raise ValueError(
                    f"Frozen: expected the {type(layer).__name__} layers to be called as in the first evaluation, got call "
                    f"{k + 1} on shape {tuple(x.shape)}. Keep the flow of the module independent of its input."
                )
            place[layer] = k + 1
            return x * masks[k]

        with self.put_in(), self.patched(again, norms=True):
            return self.module(*args)

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """The remembered tensors in their places."""
        before = [(table, name, table.get(name)) for table, name, value in self.slots if table.get(name) is not value]
        for table, name, value in self.slots:
            table[name] = value
        try:
            yield
        finally:
            for table, name, value in before:
                table[name] = value

    @contextmanager
    def patched(self, dropout: Callable[[Any, Tensor], Tensor], *, norms: bool) -> Iterator[None]:
        """Dropout layers replaced; batch norms, if wanted, on their statistics."""
        for layer in self.masks:
            layer.__dict__["forward"] = partial(dropout, layer)
        quiet = [layer for layer in self.norms if norms and layer.training]
        for layer in quiet:
            layer.training = False
        try:
            yield
        finally:
            for layer in self.masks:
                layer.__dict__.pop("forward", None)
            for layer in quiet:
                layer.training = True

    def check_still(self, what: str, *args: Any) -> Any:
        """Evaluate once, without a derivative, and raise when that changed a buffer of the module."""
        table = [value for _, _, value in self.slots if isinstance(value, Tensor) and not is_wrapped(value)]
        before = [value._version for value in table]
        with torch.no_grad():
            out = self(*args)
        if not under_transform() and before != [value._version for value in table]:
            raise TypeError(
                f"{what}: expected a module that leaves its buffers alone, got one that changes them at each evaluation. Put "
                "the layer that does in eval mode (spectral norm, quantisation observers)."
            )
        return out


def is_odd_dropout(part: nn.Module) -> bool:
    """Whether a layer is a dropout whose mask is not a factor."""
    return isinstance(part, _DropoutNd) and not isinstance(part, DROPOUTS) and part.p > 0


def fits(mask: Tensor, x: Tensor) -> bool:
    """Whether a mask broadcasts to exactly ``x``."""
    return mask.ndim == x.ndim and all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))
