"""A table of numbers that grows."""

from __future__ import annotations

import numpy as np


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
