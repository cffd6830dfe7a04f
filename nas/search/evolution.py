"""Constrained evolution with a Pareto archive: AttentiveNAS's search (Wang et al. 2021) with NSGA-II's selection (Deb et al. 2002).

Every told record stays in the archive; the parents are its best by (front number, crowding), chosen anew for each
candidate, so there are no generations to wait for. The smallest and the largest network come first: both ends of the
front, and what lies between two parents is found by crossover.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nas.search.core import ANYTHING, Budget, Cost, Objective, Search
from nas.search.pareto import crowding, ranks
from nas.space import Arch, Space

PARENTS = 20
RATE = 0.2
FLIPS = 2.0
CROSSOVER = 0.9


def select(points: np.ndarray, violations: np.ndarray, size: int) -> np.ndarray:
    """The best records, best first: those within the budget by front and then loneliness, after them the others by violation.

    Args:
        points: shape ``(records, 2)``, to be minimised; failed records (NaN) are never selected.
        violations: shape ``(records,)``, 0 within the budget.
        size: how many at most.

    Returns:
        Indices of records, shape ``(at most size,)``.
    """
    finite = np.isfinite(points).all(axis=1)
    inside = np.flatnonzero(finite & (violations == 0))
    rank = ranks(points[inside])
    lonely = np.zeros(len(inside))
    for number in range(rank.max() + 1 if len(rank) else 0):
        if (rank < number).sum() >= size:
            break
        lonely[rank == number] = crowding(points[inside[rank == number]])
    outside = np.flatnonzero(finite & (violations > 0))
    best = inside[np.lexsort((-lonely, rank))]
    return np.concatenate((best, outside[np.argsort(violations[outside], kind="stable")]))[:size]


def tournament(count: int, rng: np.random.Generator) -> int:
    """The better of two places drawn from 0 (best) ... count - 1."""
    return int(rng.integers(count, size=2).min())


def child(space: Space, parents: tuple[Arch, Arch], rng: np.random.Generator, crossover: float, rate: float) -> Arch:
    """Uniform crossover of both parents with probability `crossover`, the first one otherwise; mutated in any case."""
    crossed = space.cross(*parents, rng) if rng.random() < crossover else parents[0]
    return space.mutate(crossed, rng, rate)


class Evolution(Search):
    """The smallest and the largest network, random ones until records are known, then children of the best.

    Args:
        space, cost, objective, budget, seed, window: see `Search`.
        parents: how many of the best may have children.
        rate: the chance of each choice to mutate; AttentiveNAS's 0.2.
        flips: how many choices mutate on average at most, which lowers the rate where there are many: 45 choices at 0.2
            would change nine at once and lose what the parents had found.
        crossover: the chance that a child has two parents.

    Raises:
        ValueError: an option out of range, or what `Search` raises.
    """

    name = "evolution"
    tag = 2

    def __init__(
        self,
        space: Space,
        cost: Cost,
        objective: Objective,
        budget: Budget = ANYTHING,
        *,
        seed: int = 0,
        window: int = 32,
        parents: int = PARENTS,
        rate: float = RATE,
        flips: float = FLIPS,
        crossover: float = CROSSOVER,
    ) -> None:
        if parents < 2:
            raise ValueError(f"parents is {parents}; at least 2 are needed")
        if not (0 < rate <= 1 and flips > 0 and 0 <= crossover <= 1):
            raise ValueError(f"rate {rate} must lie in (0, 1], flips {flips} above 0, crossover {crossover} in [0, 1]")
        super().__init__(space, cost, objective, budget, seed=seed, window=window)
        self.parents, self.rate, self.flips, self.crossover = parents, rate, flips, crossover

    @property
    def identity(self) -> dict[str, Any]:
        """As every search's, and the options."""
        options = {"parents": self.parents, "rate": self.rate, "flips": self.flips, "crossover": self.crossover}
        return super().identity | {"options": options}

    def draws(self, k: int, archs: list[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator) -> Iterator[Arch]:
        """Both ends first, then random ones while fewer than two records can be parents, then children."""
        if k < 2:
            yield (self.space.smallest, self.space.largest)[k]()
        pool = [archs[i] for i in select(points, violations, self.parents)]
        while len(pool) < 2:
            yield self.space.sample(rng)
        while True:
            pair = pool[tournament(len(pool), rng)], pool[tournament(len(pool), rng)]
            rate = min(self.rate, self.flips / max(len(pair[0]), 1))
            yield child(self.space, pair, rng, self.crossover, rate)
