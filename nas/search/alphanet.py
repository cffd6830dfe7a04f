"""The search of AttentiveNAS and AlphaNet (Wang et al. 2021): an archive that holds the best network of each interval
of cost, all of which have children alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from nas.config.section import Section, Share
from nas.search.core import Search
from nas.search.rows import Looked
from nas.space import Arch


class AlphanetOptions(Section):
    """The archive, and when it begins to breed. The authors' are 512 random networks, and intervals of 10 million MACs
    between 200 and 1,200 million."""

    initial: PositiveInt = Field(default=64, description="random candidates before there are children")
    intervals: Annotated[int, Field(ge=2)] = Field(
        default=100, description="of cost between the smallest and the largest network"
    )
    rate: Share = Field(default=0.2, description="chance of each choice to mutate")


class Alphanet(Search):
    """The smallest network and random ones, then by turns a mutant of one of the archive and a crossover of two."""

    name = "alphanet"
    tag = 7
    Options = AlphanetOptions
    options: AlphanetOptions

    @cached_property
    def _looked(self) -> Looked:
        return Looked()

    @cached_property
    def _width(self) -> float:
        """Of an interval."""
        ends = (self.cost(end)[self.objective.cost] for end in (self.space.smallest(), self.space.largest()))
        least, most = sorted(ends)
        return (most - least) / self.options.intervals or 1.0

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Children of the archive, which is that of the candidates within the constraints."""
        if k == 0:
            yield self.space.smallest()
        pool = [] if k < self.options.initial else [archs[i] for i in self._archive(points, violations)]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            first, second = (pool[i] for i in rng.choice(len(pool), 2, replace=False))
            yield self.space.cross(first, second, rng) if k % 2 else self.space.mutate(first, rng, self.options.rate)

    def _archive(self, points: np.ndarray, violations: np.ndarray) -> list[int]:
        """The best of each interval of cost by rising cost, the first of equal ones; only what is new is looked at,
        unless the constraints are others."""
        if not (start := self._looked(violations)):
            self._best = dict[int, int]()
        for index in range(start, len(points)):
            if violations[index] == 0 and np.isfinite(points[index]).all():
                interval = round(points[index, 1] / self._width)
                best = self._best.setdefault(interval, index)
                if points[index, 0] < points[best, 0]:
                    self._best[interval] = index
        return [self._best[interval] for interval in sorted(self._best)]
