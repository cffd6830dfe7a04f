"""What a child may cost, and whether a space has any such child."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from nas.search.sampling import SMALL, TRIES, WALKS, find, leaning, samples, walk
from nas.space import Arch, Space

DRAWS = 200  # for each of those that are wanted evenly spread
CostFunction = Callable[[Arch], Mapping[str, float]]


@dataclass(frozen=True)
class Constraints:
    """The least and the most that a child may cost, by cost, or that a metric of it may be.

    Attributes:
        bounds: name to (least or None, most or None), both included. Empty: anything.
    """

    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def violation(self, figures: Mapping[str, float]) -> float:
        """By how much `figures` miss them: relative to each bound, summed; 0 within them, infinite where one is NaN
        or missing."""
        total = 0.0
        for name, (low, high) in self.bounds.items():
            figure = figures.get(name, math.nan)
            if math.isnan(figure):
                return math.inf
            if low is not None:
                total += max(0.0, low - figure) / (abs(low) or 1.0)
            if high is not None:
                total += max(0.0, figure - high) / (abs(high) or 1.0)
        return total

    def without(self, names: Collection[str]) -> Constraints:
        """Those on anything else."""
        return Constraints({name: bounds for name, bounds in self.bounds.items() if name not in names})

    def __str__(self) -> str:
        told: list[str] = []
        for name, (low, high) in self.bounds.items():
            told += [] if low is None else [f"min_{name} {low:,.15g}"]
            told += [] if high is None else [f"max_{name} {high:,.15g}"]
        return ", ".join(told) or "no constraints"


ANYTHING = Constraints()


def check_attainable(space: Space, cost: CostFunction, constraints: Constraints, metrics: Collection[str] = ()) -> None:
    """Refuse constraints that no child meets, before anything is evaluated.

    A small space is listed, so the answer is exact; in a large one none is taken to be there after a bounded number of
    tries.

    Args:
        metrics: what may be bounded besides costs, of which nothing is known before a child is judged.

    Raises:
        ValueError: an unknown cost, bounds that cross, or out of reach; the message says by how much.
    """
    small, large = cost(space.smallest()), cost(space.largest())
    for name, (low, high) in constraints.bounds.items():
        if name not in small and name not in metrics:
            raise ValueError(
                f"the constraints name the cost {name!r}; this network has {', '.join(small)}. A metric is bound where "
                "it is one of the objectives"
            )
        if any(bound is not None and math.isnan(bound) for bound in (low, high)):
            raise ValueError(f"the constraint on {name!r} is not a number")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_{name} {low:,.15g} is above max_{name} {high:,.15g} (by {low - high:,.15g})")
    constraints = constraints.without(metrics)
    if constraints.violation(small) == 0 or constraints.violation(large) == 0:
        return
    rng = np.random.default_rng(0)
    draws, beyond = samples(space, rng), _beyond_the_ends(constraints, small, large)
    # Of most costs the two ends are the least and the most; of a user's own a few draws tell whether they are.
    if beyond and space.cardinality > SMALL and all(constraints.violation(cost(arch)) for arch in islice(draws, TRIES)):
        raise ValueError(beyond)
    if find(space, lambda arch: constraints.violation(cost(arch)), set(), draws, rng) is None:
        count = f"{space.cardinality:,}"
        none = (
            f"none of all {count} architectures"
            if space.cardinality <= SMALL
            else f"in {TRIES:,} draws no architecture"
        )
        wide = f"{none} lies within {constraints}; widen the window"
        raise ValueError(beyond or wide)


def _beyond_the_ends(constraints: Constraints, small: Mapping[str, float], large: Mapping[str, float]) -> str:
    """By how much a bound lies outside what the smallest and the largest network cost; empty where all lie between."""
    for name, (low, high) in constraints.bounds.items():
        least, most = sorted((small[name], large[name]))
        if high is not None and high < least:
            return (
                f"max_{name} {high:,.15g} is below the smallest network's {least:,.15g} {name} (by "
                f"{least - high:,.15g})"
            )
        if low is not None and low > most:
            return f"min_{name} {low:,.15g} is above the largest network's {most:,.15g} {name} (by {low - most:,.15g})"
    return ""


def evenly(space: Space, cost: CostFunction, name: str, constraints: Constraints, count: int) -> list[Arch]:
    """Different architectures within constraints, evenly spread over the logarithm of a cost from the least that was
    come by to the most; cheapest first.

    Args:
        name: of the cost.

    Raises:
        ValueError: there are not so many, or they were not found in a bounded number of tries.
    """
    rng = np.random.default_rng(0)
    if count > space.cardinality:
        raise ValueError(f"{count} different networks are asked for; the space has {space.cardinality:,}")
    drawn = dict.fromkeys([space.smallest(), space.largest(), *(leaning(space, rng) for _ in range(DRAWS * count))])
    able = {arch: None for arch in drawn if constraints.violation(cost(arch)) == 0}
    before = len(able)
    for walked, start in enumerate(list(drawn)[: WALKS * count] if before < DRAWS // 10 * count else ()):
        if walked == WALKS and len(able) == before:  # not a narrow window but an empty one; walks in vain take longest
            break
        found = walk(space, start, lambda arch: constraints.violation(cost(arch)), set(able), rng)
        able |= {found: None} if found else {}
    return _spread(list(able), cost, name, constraints, count)


def _spread(able: list[Arch], cost: CostFunction, name: str, constraints: Constraints, count: int) -> list[Arch]:
    if len(able) < count:
        raise ValueError(f"{len(able)} different networks within {constraints} were found; {count} are asked for")
    logs = np.log(np.maximum([cost(arch)[name] for arch in able], 1e-9))
    left, chosen = set(range(len(able))), []
    for wanted in np.linspace(logs.min(), logs.max(), count):
        nearest = min(left, key=lambda i: (abs(logs[i] - wanted), i))
        left.remove(nearest)
        chosen.append(able[nearest])
    return sorted(chosen, key=lambda arch: (cost(arch)[name], arch.id))
