"""A search algorithm of your own: regularised evolution, in which parents grow old (arXiv:1802.01548).

In this folder:

    nas check own_search:Ageing
    nas run bignas-digits --set search.algorithm=own_search:Ageing --set search.options.population=30

A search is a class with `draws`: endless architectures for candidate k, of which the first that is new and within the
constraints is proposed. It may look at what it is given and at nothing else, and draws from its `rng` alone. So the
outcome depends neither on who finishes first, nor on how many are judged at once, nor on a crash; the platform keeps
the journal and the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from nas.config.section import Section, Share
from nas.search.core import Search
from nas.space import Arch


class AgeingOptions(Section):
    """Keys of ``search.options``; each has a default."""

    population: Annotated[int, Field(ge=2)] = Field(default=30, description="candidates until one dies of age")
    tournament: Annotated[int, Field(ge=1)] = Field(default=5, description="candidates whose best is a parent")
    rate: Share = Field(default=0.15, description="chance of each choice to mutate")


class Ageing(Search):
    """The best of a few drawn from the last `population` candidates has the child; the best of all dies of age too."""

    name = "ageing"
    tag = 100  # of its random streams; the built-in ones have 1 to 8
    Options = AgeingOptions
    options: AgeingOptions

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Uniform at first, then mutants. `points` has (metric, cost), both to be minimised, NaN where one failed."""
        o = self.options
        able = np.flatnonzero(np.isfinite(points[:, 0]) & (violations == 0))[-o.population :]
        size = min(o.tournament, o.population)
        while len(able) < size:
            yield self.space.sample(rng)
        while True:
            drawn = rng.choice(able, size, replace=False)
            parent = archs[drawn[np.argmin(points[drawn, 0])]]
            yield self.space.mutate(parent, rng, o.rate)
