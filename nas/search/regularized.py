"""Regularised evolution (Real, Aggarwal, Huang, Le 2019), in which the best die of age too; with the front in place of
a single fitness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from nas.config.section import Section
from nas.search.core import Search
from nas.search.evolution import select
from nas.space import Arch


class RegularizedOptions(Section):
    """How long a candidate may have children, and among how many it must be the best."""

    population: Annotated[int, Field(ge=2)] = Field(default=64, description="candidates until one dies of age")
    tournament: Annotated[int, Field(ge=1)] = Field(default=16, description="candidates whose best is the parent")


class Regularized(Search):
    """Both ends and random networks, then mutants in one choice of the best of a few drawn from the youngest."""

    name = "regularized"
    tag = 6
    Options = RegularizedOptions
    options: RegularizedOptions

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Random networks while there is less than a population; then mutants. The population is the last of those
        that are told; failed ones stand in it, and never win."""
        if k < 2:
            yield (self.space.smallest, self.space.largest)[k]()
        young = np.arange(max(0, len(archs) - self.options.population), len(archs))
        while k < self.options.population or not np.isfinite(points[young]).all(axis=1).any():
            yield self.space.sample(rng)
        while True:
            drawn = rng.choice(young, min(len(young), self.options.tournament), replace=False)
            for best in select(points[drawn], violations[drawn], 1):
                yield self.space.mutate(archs[drawn[best]], rng, 0.0)  # one choice in any case
