"""A map held still: parameters, random numbers and statistics as they were when a solve began, whenever it is evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

from sciopt.domains.implicit.modules import modules_of
from sciopt.domains.implicit.noise import Masks, Rewound, unfound
from sciopt.hypergradients.precision import full_precision
from sciopt.transforms import is_wrapped, uncompiled, under_transform

__all__ = ["Frozen"]


class Frozen:
    """A map as it is now: a function of its inputs alone, for as long as a solve and its derivative need it.

    A solver evaluates a network many times, and once more in the backward pass. Here every evaluation sees

    - the parameters and buffers of the moment at which this was made (under `torch.func.functional_call` those that were
      put in, also when the call has long ended);
    - the same random numbers, as ``noise`` says;
    - the running statistics of normalisation layers, which are updated once: before the solve, from an evaluation at its
      start (`begin`), or after it, from one at its solution (`conclude`).

    The modules behind ``f`` are searched (`modules_of`); one with tensors of its own that runs in the first evaluation and
    was not found raises.

    Args:
        f: any callable.
        noise: `Masks` or `Rewound`; None: ``Masks()``.
        owner: the class that errors name.

    Raises:
        TypeError: in the first evaluation, for modules that cannot be found or held still.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> frozen, x = Frozen(lambda x: net(x)), torch.ones(3, 2)
        >>> frozen.begin(x)
        >>> bool((frozen(x) == frozen(x)).all()), net.training
        (True, True)
    """

    def __init__(self, f: Callable[..., Any], noise: Masks | Rewound | None = None, owner: str = "Frozen") -> None:
        self.f, self.owner = f, owner
        self.noise = Masks() if noise is None else noise
        self.parts = modules_of(f)
        self.noise.over(self.parts)
        rewound = isinstance(self.noise, Rewound)
        self.norms = [part for part in self.parts if part.training and is_updated(part, power_iteration=rewound)]
        self.watched = False
        self.remember()

    def remember(self) -> None:
        """Note the tensors of every layer, and copies of the statistics."""
        held = {id(part._buffers) for part in self.norms}
        self.slots: list[tuple[dict[str, Any], str, Tensor]] = [
            (table, name, value.clone() if id(table) in held else value)
            for part in self.parts
            for table in (part._parameters, part._buffers)
            for name, value in table.items()
            if isinstance(value, Tensor)
        ]

    @property
    def random(self) -> bool:
        """Whether an evaluation draws random numbers, known after the first."""
        return bool(self.noise.drawn if isinstance(self.noise, Masks) else self.noise.random)

    def begin(self, *args: Any) -> None:
        """Draw the masks and update the statistics, by one evaluation at these inputs; without a derivative."""
        assert isinstance(self.noise, Masks)
        if not self.noise.drawn and not self.norms:
            return
        first = next((a for a in args if isinstance(a, Tensor) and a.ndim), None)
        with torch.no_grad(), self.watch(), self.noise.first(None if first is None else len(first)):
            self.evaluate(*args)
        self.remember()

    def conclude(self, *args: Any) -> None:
        """Update the statistics by one evaluation at these inputs, and let generators go on as after one evaluation."""
        assert isinstance(self.noise, Rewound)
        if self.norms and not under_transform():
            self.noise.restore(self.noise.entry)
            with torch.no_grad():
                self.evaluate(*args)
        if self.noise.random:
            self.noise.restore(self.noise.exit)

    def restricted(self, rows: Tensor) -> Frozen:
        """The same map on some rows of the batch: masks are cut, the rest is shared."""
        assert isinstance(self.noise, Masks)
        cut = object.__new__(Frozen)
        cut.__dict__.update(self.__dict__)
        cut.noise = self.noise.restricted(rows)
        return cut

    def __call__(self, *args: Any) -> Any:
        if not self.watched:
            with self.watch(), self.noise.again(), self.put_in():
                return self.evaluate(*args)
        still = self.noise.random is False if isinstance(self.noise, Rewound) else not self.noise.drawn
        if still and not self.norms and self.in_place():
            return self.evaluate(*args)
        with nullcontext() if still else self.noise.again(), self.put_in():
            return self.evaluate(*args)

    def evaluate(self, *args: Any) -> Any:
        """The map outside autocast, which a backward pass may be called in."""
        with full_precision(args[0]):
            return self.f(*args)

    def in_place(self) -> bool:
        """Whether every remembered tensor is where it belongs; asked in each evaluation."""
        for table, name, value in self.slots:  # noqa: SIM110  (a loop costs half of what all() does)
            if table.get(name) is not value:
                return False
        return True

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """The remembered tensors in their places, and normalisation by running statistics."""
        before = [(table, name, table.get(name)) for table, name, value in self.slots if table.get(name) is not value]
        quiet = [layer for layer in self.norms if layer.training]
        try:
            for table, name, value in self.slots:
                table[name] = value
            for layer in quiet:
                layer.training = False
            yield
        finally:
            for layer in quiet:
                layer.training = True
            for table, name, value in before:
                table[name] = value

    @contextmanager
    def watch(self) -> Iterator[None]:
        """The first evaluation: raise for a module that runs and cannot be held still."""
        found = set(map(id, self.parts))

        def look(part: nn.Module, _: Any) -> None:
            known = id(part) in found
            trouble = self.noise.refuses(part, known)
            if trouble is None and not known and has_tensors(part):
                trouble = unfound(part)
            if trouble is not None:
                raise TypeError(f"{self.owner}: {trouble}")

        handle = register_module_forward_pre_hook(look)
        try:
            with uncompiled(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using `torch.compile")  # our hook may well fire twice
                yield
        finally:
            handle.remove()
        self.watched = True

    def check_still(self, *args: Any) -> Any:
        """Evaluate once, without a derivative, and raise when that changed a buffer of the modules."""
        table = [value for _, _, value in self.slots if not is_wrapped(value)]
        before = [value._version for value in table]
        with torch.no_grad():
            out = self(*args)
        if not under_transform() and before != [value._version for value in table]:
            raise TypeError(
                f"{self.owner}: expected a module that leaves its buffers alone, got one that changes them at each "
                "evaluation. Put the layer that does in eval mode (spectral norm, quantisation observers)."
            )
        return out


def is_updated(part: nn.Module, *, power_iteration: bool) -> bool:
    """Whether a module in training mode changes its own buffers as it is used, so that a solve must hold them."""
    if isinstance(part, _NormBase):
        return part.track_running_stats and part.running_mean is not None
    return power_iteration and type(part).__name__ == "_SpectralNorm"  # one power iteration per use


def has_tensors(part: nn.Module) -> bool:
    """Whether a module itself owns parameters or buffers."""
    return any(isinstance(value, Tensor) for table in (part._parameters, part._buffers) for value in table.values())
