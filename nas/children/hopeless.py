"""When scoring a candidate may end early: once it cannot come onto the front any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.search.core import Objective
from nas.search.pareto import dominates
from nas.tasks.task import Task

SIGMAS = 4.0  # of what the examples that were not seen may change, where a small risk is taken
LOOKS = 16  # at what a candidate has come to, at equal shares of the examples
EACH = 8  # examples of each part, without which nothing is known of how parts differ


@dataclass(frozen=True)
class Hopeless:
    """Whether some candidate of the bar is better in everything than this one can still become.

    Attributes:
        task: gives the figures.
        objective: what counts.
        bar: the front that the candidate is held against, see `nas.search.journal.Candidate`.
        cost: the candidate's.
        examples: on which it would be scored in all.
        likely: hold against the bar what it most probably can become, `SIGMAS` standard errors better than it is now,
            with the correction for examples that are drawn without putting back (Cochran 1977, section 2.7); else what
            it becomes where all that is left goes best.
    """

    task: Task
    objective: Objective
    bar: Sequence[tuple[float, ...]]
    cost: Mapping[str, float]
    examples: int
    likely: bool

    @property
    def every(self) -> int:
        """Examples between two looks: the same ones whatever is scored at once."""
        return -(-self.examples // LOOKS)

    def __call__(self, sums: Mapping[str, float], parts: Sequence[Mapping[str, float]], seen: int) -> bool:
        """After `seen` examples.

        Args:
            sums: of `Task.scores` so far.
            parts: the figures on disjoint parts of what was seen; empty where there are none.
        """
        left = self.examples - seen
        best = self._probably(sums, parts, seen) if self.likely else self.task.best(sums, left)
        if any(name not in best and name not in self.cost for name in self.objective.names):
            return False
        point = self.objective.point(best, self.cost)
        return all(map(math.isfinite, point)) and any(dominates(other, point) for other in self.bar)

    def _probably(self, sums: Mapping[str, float], parts: Sequence[Mapping[str, float]], seen: int) -> dict[str, float]:
        if len(parts) < 2 or seen < EACH * len(parts):
            return {}
        share, found = max(0.0, 1 - seen / self.examples), {}
        for name, value in self.task.summarise(dict(sums)).items():
            error = float(np.std([part[name] for part in parts], ddof=1)) * math.sqrt(share / len(parts))
            if not error:  # all parts alike: all wrong so far, say
                continue
            found[name] = value + (SIGMAS if self.task.metrics[name] == "higher" else -SIGMAS) * error
        return found
