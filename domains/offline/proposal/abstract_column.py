"""What every column of a table of designs can do, and how its values are shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["AbstractColumn", "shown"]


def shown(value: Any, most: int = 60) -> str:
    """A value for messages, cut in the middle where it is long.

    Example:
        >>> shown("ACGT"), shown("A" * 400 + "CC", 8)
        ("'ACGT'", "'AAAA...AACC' (402 letters)")
    """
    if isinstance(value, str) and len(value) > most:
        return f"{value[: most // 2] + '...' + value[len(value) - most // 2 :]!r} ({len(value)} letters)"
    text = repr(value)
    return text if len(text) <= most + 2 or isinstance(value, str) else text[:most] + "..."


class AbstractColumn(ABC):
    """One column of a design. Codes are float64: a letter's or level's index, or the number itself."""

    name: str

    @property
    @abstractmethod
    def width(self) -> int:
        """Codes per design."""

    @property
    @abstractmethod
    def choices(self) -> int:
        """Values that a code can take; 0: a number."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """Values as codes ``(n, width)``; a ValueError names the row of a value that does not belong."""

    @abstractmethod
    def decode(self, codes: Tensor) -> list[Any]:
        """Codes ``(n, width)`` as values."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""
