"""Constrained evolution with a Pareto archive: AttentiveNAS's search (Wang et al. 2021) with NSGA-II's selection (Deb
et al. 2002).

Every told record stays in the archive; the parents are its best by (front number, crowding), chosen anew for each
candidate, so there are no generations to wait for. The smallest and the largest network come first: both ends of the
front, and what lies between two parents is found by crossover.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field

from nas.config.section import Section
from nas.search.core import Search
from nas.search.pareto import crowding, front
from nas.search.rows import Looked
from nas.space import Arch, Space


def select(points: np.ndarray, violations: np.ndarray, size: int) -> np.ndarray:
    """The best records, best first: those within the budget by front and then loneliness, after them the others by
    violation.

    Args:
        points: shape ``(records, 2)``, to be minimised; failed records (NaN) are never selected.
        violations: shape ``(records,)``, 0 within the budget.
        size: how many at most.

    Returns:
        Indices of records, shape ``(at most size,)``.
    """
    finite = np.isfinite(points).all(axis=1)
    left = np.flatnonzero(finite & (violations == 0))
    outside = np.flatnonzero(finite & (violations > 0))
    best = left[:0]
    while len(left) and len(best) < size:
        top = front(points[left])
        best = np.append(best, left[top][np.argsort(-crowding(points[left[top]]), kind="stable")])
        left = np.delete(left, top)
    return np.concatenate((best, outside[np.argsort(violations[outside], kind="stable")]))[:size]


class Best:
    """`select` over a history that grows, without looking at all of it each time.

    A record that `size` others dominate is never among the best again: these stand on fronts before its own. And what
    dominates a record that is kept is kept itself, so that fronts are the same without the others.
    """

    def __init__(self, size: int) -> None:
        self.size, self._looked = size, Looked()

    def _start(self) -> None:
        self._inside = np.zeros(0, dtype=np.int64)  # those within the constraints that fewer than `size` dominate,
        self._above = np.zeros(0, dtype=np.int64)  # and by how many each is dominated
        self._outside: list[int] = []  # the `size` of the least violation

    def __call__(self, points: np.ndarray, violations: np.ndarray) -> np.ndarray:
        """What `select` gives; `points` and `violations` are those of the call before, and more."""
        if not (start := self._looked(violations)):
            self._start()
        for index in range(start, len(points)):
            if np.isfinite(points[index]).all():
                if violations[index] == 0:
                    self._add(index, points)
                else:
                    insort(self._outside, index, key=lambda i: violations[i])
                    del self._outside[self.size :]
        kept = np.sort(np.concatenate((self._inside, np.array(self._outside, dtype=np.int64))))
        return kept[select(points[kept], violations[kept], self.size)]

    def _add(self, index: int, points: np.ndarray) -> None:
        """Take in a record that is within the constraints."""
        new, known = points[index], points[self._inside]
        above = ((known <= new).all(axis=1) & (known < new).any(axis=1)).sum()
        if above >= self.size:
            return
        self._above = self._above + ((new <= known).all(axis=1) & (new < known).any(axis=1))
        still = self._above < self.size
        self._inside = np.append(self._inside[still], index)
        self._above = np.append(self._above[still], above)


def tournament(count: int, rng: np.random.Generator) -> int:
    """The better of two places drawn from 0 (best) ... count - 1."""
    return int(rng.integers(count, size=2).min())


def child(space: Space, parents: tuple[Arch, Arch], rng: np.random.Generator, crossover: float, rate: float) -> Arch:
    """Uniform crossover of both parents with probability `crossover`, the first one otherwise; mutated in any case."""
    crossed = space.cross(*parents, rng) if rng.random() < crossover else parents[0]
    return space.mutate(crossed, rng, rate)


class EvolutionOptions(Section):
    """How evolution chooses parents and changes their children."""

    parents: Annotated[int, Field(ge=2)] = Field(default=20, description="how many of the best may have children")
    rate: Annotated[float, Field(gt=0, le=1)] = Field(default=0.2, description="chance of each choice to mutate")
    flips: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="most choices that mutate on average, which lowers the rate where there are many"
    )
    crossover: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="chance that a child has two parents"
    )


class Evolution(Search):
    """The smallest and the largest network, random ones until records are known, then children of the best.

    The rate is AttentiveNAS's; 45 choices at 0.2 would change nine at once and lose what the parents had found, hence
    ``flips``.
    """

    name = "evolution"
    tag = 2
    Options = EvolutionOptions
    options: EvolutionOptions

    @cached_property
    def _best(self) -> Best:
        return Best(self.options.parents)

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Both ends first, then random ones while fewer than two records can be parents, then children."""
        if k < 2:
            yield (self.space.smallest, self.space.largest)[k]()
        options = self.options
        pool = [archs[i] for i in self._best(points, violations)]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            pair = pool[tournament(len(pool), rng)], pool[tournament(len(pool), rng)]
            rate = min(options.rate, options.flips / max(len(pair[0]), 1))
            yield child(self.space, pair, rng, options.crossover, rate)
