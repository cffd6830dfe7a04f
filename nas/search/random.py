"""Random search: the searcher that every other one has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nas.search.core import Search
from nas.search.sampling import samples
from nas.space import Arch


class Random(Search):
    """Every choice uniform and independent, within the constraints by rejection."""

    name = "random"
    tag = 1

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Uniform draws; nothing that was found is looked at."""
        return samples(self.space, rng)
