"""Tables that grow, and their first rows without a copy: a long search asks for these at each candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np

Item = TypeVar("Item")


class Rows:
    """A table of numbers to which rows are added; asking for its first rows copies nothing."""

    def __init__(self, width: int) -> None:
        self._table, self._count = np.empty((64, width)), 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: float | tuple[float, ...]) -> None:
        if self._count == len(self._table):
            self._table = np.concatenate((self._table, np.empty_like(self._table)))
        self._table[self._count] = row
        self._count += 1

    def first(self, count: int) -> np.ndarray:
        """Shape ``(count, width)``, not to be written to."""
        rows = self._table[:count]
        rows.flags.writeable = False
        return rows


class First(Sequence[Item]):
    """The first `count` items of a list that only grows."""

    def __init__(self, items: list[Item], count: int) -> None:
        assert count <= len(items)
        self._items, self._count = items, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return self._items[: self._count][at]
        return self._items[range(self._count)[at]]


class Looked:
    """How far an algorithm has looked at its records, whose violations are others once the constraints are."""

    def __init__(self) -> None:
        self._violations = np.zeros(0)

    def __call__(self, violations: np.ndarray) -> int:
        """How many of these were looked at the last time and are as they were then: all of them or none. From then on
        all that are given count as looked at."""
        before, self._violations = self._violations, violations
        return len(before) if np.array_equal(violations[: len(before)], before) else 0
