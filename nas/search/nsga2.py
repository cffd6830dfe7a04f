"""NSGA-II (Deb, Pratap, Agarwal, Meyarivan 2002): generations, each bred from the best of all before by front and
crowding.

A generation is bred from those that are known in whole when its first candidate is proposed, so one that is still in
flight is skipped: with a window larger than the population the parents are two or more generations old.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field

from nas.config.section import Section
from nas.search.core import Search
from nas.search.evolution import child, select, tournament
from nas.search.rows import Looked
from nas.space import Arch


class Nsga2Options(Section):
    """Size of a generation, and how its children differ."""

    population: Annotated[int, Field(ge=4)] = Field(default=20, description="candidates of a generation")
    crossover: Annotated[float, Field(ge=0, le=1)] = Field(default=0.9, description="chance of two parents")
    flips: Annotated[float, Field(gt=0)] = Field(default=1.0, description="choices that mutate, on average")


class Nsga2(Search):
    """Both ends and random networks as the first generation, then children of each generation's survivors."""

    name = "nsga2"
    tag = 5
    Options = Nsga2Options
    options: Nsga2Options

    @cached_property
    def _looked(self) -> Looked:
        return Looked()

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Children of the survivors of the generations that were known whole when this one began."""
        if k < 2:
            yield (self.space.smallest, self.space.largest)[k]()
        size = self.options.population
        known = len(archs) - k % size  # what is told to the first of this generation
        pool = [archs[i] for i in self._survivors(max(0, known) // size * size, points, violations)]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            pair = pool[tournament(len(pool), rng)], pool[tournament(len(pool), rng)]
            yield child(
                self.space, pair, rng, self.options.crossover, min(1.0, self.options.flips / max(len(pair[0]), 1))
            )

    def _survivors(self, known: int, points: np.ndarray, violations: np.ndarray) -> np.ndarray:
        """Generation by generation, the best of the survivors so far and of those that were born."""
        if not (begin := self._looked(violations[:known])):
            self._alive = np.zeros(0, dtype=np.int64)
        size = self.options.population
        for start in range(begin, known, size):
            both = np.concatenate((self._alive, np.arange(start, start + size)))
            self._alive = both[select(points[both], violations[both], size)]
        return self._alive
