"""Evolution towards the best network within a budget: the search of ViT-ResNAS (Liao, Karaman, Sze 2021, section 4).

The cost counts only as a budget, a window of a few percent as a rule; parents are the fittest of all that were judged
so far. Where the authors' mutation may draw the value that is there, ours draws another, and changes one choice at
least; their first networks are shrunk from the largest one until they fit the window, ours are uniform draws that do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field, PositiveInt

from nas.config.section import Section
from nas.search.core import Search
from nas.space import Arch

PARENTS = 0.15  # share of the judged networks that have children, as the paper's 75 of its first 500 ...
MOST_PARENTS = 75  # ... and 75 later
RATE = 0.3  # chance of each choice to mutate


class FittestOptions(Section):
    """How long fittest draws at random."""

    initial: PositiveInt = Field(
        default=100, description="random candidates before there are children; the paper draws 500 of its 3,350"
    )


class Fittest(Search):
    """Random networks at first, then by turns a mutant of one of the fittest and a crossover of two of them."""

    name = "fittest"
    tag = 3
    Options = FittestOptions
    options: FittestOptions

    @property
    def identity(self) -> dict[str, object]:
        """As every search's, without the options: journals had none when they began, and replay tells another
        `initial`."""
        return {name: value for name, value in super().identity.items() if name != "options"}

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Uniform draws for the first candidates; then children, within the constraints or not: the caller looks."""
        pool = [] if k < self.options.initial else [archs[i] for i in fittest(points[:, 0], violations)]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            first, second = (pool[i] for i in rng.choice(len(pool), 2, replace=False))
            yield self.space.mutate(first, rng, RATE) if k % 2 else self.space.cross(first, second, rng)


def fittest(metric: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Indices of the parents, best first.

    Args:
        metric: shape ``(records,)``, to be minimised; failed records (NaN) have no children.
        violations: shape ``(records,)``, 0 within the budget.
    """
    able = np.flatnonzero(np.isfinite(metric) & (violations == 0))
    count = min(MOST_PARENTS, max(2, round(PARENTS * len(able))))
    if len(able) > 4 * count:  # sorting all of a long history for each candidate would take long
        able = able[metric[able] <= np.partition(metric[able], count - 1)[count - 1]]
    return able[np.argsort(metric[able], kind="stable")][:count]
