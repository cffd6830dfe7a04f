"""Rungs: all candidates are scored as they inherit their weights, and the best of them again after some steps by
themselves.

Successive halving (Jamieson and Talwalkar 2016) without waiting for a generation, as ASHA does it (Li et al. 2020):
a candidate climbs if its nondominated rank on the rung that it has is among the best share of those of candidates
0 ... k - W. So who climbs is a function of records that are the same on any number of workers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nas.search.pareto import ranks
from nas.search.rows import Rows

Point = tuple[float, ...]
RECENT = 100  # so many of those that climbed last say what a climb brings


class Rung(NamedTuple):
    """A score of its own.

    Attributes:
        share: of the candidates that have been scored on the rung below, those that come here.
        steps: for which a child is trained by itself before it is scored; 0: as it inherits its weights.
    """

    share: float = 1.0
    steps: int = 0


INHERITED = (Rung(),)  # the one rung of a search that trains nobody


class Ladder:
    """What candidates had on every rung, in the order of their numbers.

    Attributes:
        scored: a table of points for each rung, NaN where a candidate failed or was not there.
        expected: their points on the last rung; of those that did not climb there the point that they have, moved by
            what the last `RECENT` before them gained, in the median, that went on from there to the last rung. So no
            row ever changes, and no algorithm confuses who was trained with who is good.
    """

    def __init__(self, rungs: Sequence[Rung], objectives: int) -> None:
        self.rungs = rungs
        self.scored = [Rows(objectives) for _ in rungs]
        self.expected = Rows(objectives) if len(rungs) > 1 else self.scored[0]
        self._gains = [deque[np.ndarray](maxlen=RECENT) for _ in rungs]  # from each rung to the last one

    def __len__(self) -> int:
        return len(self.scored[-1])

    def climbs(self, point: Point, rung: int, known: int) -> bool:
        """Whether less than the next rung's share of what the first `known` candidates had on this rung, and of
        `point`, have a lower nondominated rank than `point`."""
        if rung + 1 >= len(self.rungs) or not all(map(math.isfinite, point)):
            return False
        others = self.scored[rung].first(known)
        found = ranks(np.vstack((others[np.isfinite(others).all(axis=1)], point)))
        return bool((found < found[-1]).sum() < self.rungs[rung + 1].share * len(found))

    def append(self, points: Sequence[Point]) -> None:
        """Take in the next candidate: its points from the first rung to the highest that it came to."""
        nothing = (math.nan,) * len(points[0])
        for rung, table in enumerate(self.scored):
            table.append(points[rung] if rung < len(points) else nothing)
        if len(self.rungs) == 1:
            return
        if len(points) == len(self.rungs):
            for gains, point in zip(self._gains, points, strict=True):
                if math.isfinite(points[-1][0]):
                    gains.append(np.subtract(points[-1], point))
            self.expected.append(points[-1])
        else:
            recent = self._gains[len(points) - 1]
            moved = np.add(points[-1], np.median(recent, axis=0)) if recent else points[-1]
            self.expected.append(tuple(moved))
