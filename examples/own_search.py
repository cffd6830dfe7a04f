"""A search algorithm of your own: regularised evolution, in which parents grow old (Real et al. 2019,
arXiv:1802.01548).

In this folder:

    nas check own_search:Ageing
    nas run bignas-digits --set search.algorithm=own_search:Ageing --set search.options.population=30

A search is a class with `draws`: endless architectures for candidate k, of which the first that is new and within the
budget is proposed. It may look at what it is given and at nothing else, and draws from its `rng` alone. So the
outcome depends neither on who finishes first, nor on how many are judged at once, nor on a crash; the platform keeps
the journal and the window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nas.search.core import Search
from nas.space import Arch


class Ageing(Search):
    """The best of a few drawn from the last `population` candidates has the child; the best of all dies of age too."""

    name = "ageing"
    tag = 100  # of its random streams; the built-in ones have 1, 2, 3

    population, tournament, rate = 30, 5, 0.15

    def draws(
        self, k: int, archs: list[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Uniform at first, then mutants. `points` has (metric, cost), both to be minimised, NaN where one failed."""
        able = np.flatnonzero(np.isfinite(points[:, 0]) & (violations == 0))[-self.population :]
        while len(able) < self.tournament:
            yield self.space.sample(rng)
        while True:
            drawn = rng.choice(able, self.tournament, replace=False)
            parent = archs[drawn[np.argmin(points[drawn, 0])]]
            yield self.space.mutate(parent, rng, self.rate)
