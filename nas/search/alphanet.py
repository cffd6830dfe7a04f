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
        able = np.flatnonzero(np.isfinite(points).all(axis=1) & (violations == 0))
        pool = [] if k < self.options.initial else [archs[i] for i in able[archive(points[able], self._width)]]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            first, second = (pool[i] for i in rng.choice(len(pool), 2, replace=False))
            yield self.space.cross(first, second, rng) if k % 2 else self.space.mutate(first, rng, self.options.rate)


def archive(points: np.ndarray, width: float) -> np.ndarray:
    """The best of each interval of cost, the first of equal ones.

    Args:
        points: (metric, cost), both to be minimised, shape ``(records, 2)``.
        width: of an interval.

    Returns:
        Indices, by rising cost.
    """
    interval = np.round(points[:, 1] / width)
    order = np.lexsort((points[:, 0], interval))
    _, first = np.unique(interval[order], return_index=True)
    return order[first]
