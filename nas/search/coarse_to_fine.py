"""BigNAS's search (Yu et al. 2020, section 3.4): networks that vary as a whole first, then small changes to the best.

Coarse: choices of one kind (all depths, all kernels) stand at the same place between their least and their most, and
all combinations of a few places are judged, in random order. Fine: each network of the front, the best for its own
budget, has mutants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from nas.config.section import Section, Share
from nas.search.core import Search
from nas.search.pareto import front
from nas.search.rows import Looked
from nas.search.sampling import kind
from nas.space import Arch


class CoarseToFineOptions(Section):
    """How coarse, and how fine."""

    places: Annotated[int, Field(ge=2)] = Field(default=3, description="for each kind of choice, from least to most")
    coarse: PositiveInt = Field(default=100, description="most candidates that vary as a whole")
    rate: Share = Field(default=0.1, description="chance of each choice to mutate")


class CoarseToFine(Search):
    """What a choice's kind is, `nas.search.sampling.kind` says."""

    name = "coarse_to_fine"
    tag = 8
    Options = CoarseToFineOptions
    options: CoarseToFineOptions

    @cached_property
    def _looked(self) -> Looked:
        return Looked()

    @cached_property
    def _coarse(self) -> list[Arch]:
        """The networks that vary as a whole, in random order, both ends first."""
        kinds = list(dict.fromkeys(map(kind, self.space.choices)))
        rng, most = np.random.default_rng([self.seed, self.tag]), 4 * self.options.coarse
        shares = np.linspace(0, 1, self.options.places)
        whole = self.options.places ** len(kinds)
        drawn = (
            rng.permutation(list(product(shares, repeat=len(kinds))))
            if whole <= most
            else rng.choice(shares, (most, len(kinds)))
        )
        ends = [self.space.smallest(), self.space.largest()]
        varied = (self._at(dict(zip(kinds, row, strict=True))) for row in drawn)
        return list(dict.fromkeys([*ends, *varied]))[: self.options.coarse]

    def _at(self, shares: Mapping[str, float]) -> Arch:
        """The network whose choices stand at the share of the way that their kind has."""
        values = {
            name: choice.values[round(shares[kind(name)] * (len(choice.values) - 1))]
            for name, choice in self.space.choices.items()
        }
        return self.space.arch(values)

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """What is left of the coarse networks; then mutants of the front."""
        yield from self._coarse[k:]
        pool = self._front_of(points, violations)
        while len(pool) < 1:
            yield self.space.sample(rng)
        while True:
            yield self.space.mutate(archs[pool[rng.integers(len(pool))]], rng, self.options.rate)

    def _front_of(self, points: np.ndarray, violations: np.ndarray) -> np.ndarray:
        """The front of those within the constraints, by number; what is new is held against the front so far, unless
        the constraints are others."""
        if not (start := self._looked(violations)):
            self._best = np.zeros(0, dtype=np.int64)
        both = np.concatenate((self._best, start + np.flatnonzero(violations[start:] == 0)))
        self._best = both[front(points[both])]
        return self._best
