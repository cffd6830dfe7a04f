"""Ask and tell: what every search algorithm shares.

Candidate k is proposed from the records of candidates 0 ... k - W alone and from a generator of (seed, algorithm, k).
So what is proposed depends neither on who finishes first, nor on how many are evaluated at once, nor on crashes,
as long as at most W candidates are in flight; `Search.ask` returns None while it would take more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np

from nas.search.journal import Candidate, Constraints, Journal, Record
from nas.search.pareto import front
from nas.search.sampling import SMALL, TRIES, find, samples
from nas.space import Arch, Space

Cost = Callable[[Arch], Mapping[str, int]]


class Exhausted(Exception):
    """No further architecture within the budget was found; the same candidate ends every repetition of the search."""


@dataclass(frozen=True)
class Objective:
    """What is good: one metric of the evaluation against one cost, which is minimised.

    Raises:
        ValueError: `better` is neither ``"higher"`` nor ``"lower"``.
    """

    metric: str = "accuracy"
    cost: str = "macs"
    better: Literal["higher", "lower"] = "higher"

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f'better is {self.better!r}; allowed: "higher", "lower"')

    def point(self, metrics: Mapping[str, float] | None, cost: Mapping[str, int]) -> tuple[float, float]:
        """The pair (metric, cost), both to be minimised; NaN for both where the candidate failed or one is not finite.

        Raises:
            ValueError: the metrics or the costs lack the one that the objective names.
        """
        if metrics is None:
            return (math.nan, math.nan)
        for name, given in ((self.metric, metrics), (self.cost, cost)):
            if name not in given:
                raise ValueError(f"the objective needs {name!r}, the record has {', '.join(given) or 'nothing'}")
        value, price = float(metrics[self.metric]), float(cost[self.cost])
        if not (math.isfinite(value) and math.isfinite(price)):
            return (math.nan, math.nan)
        return (-value if self.better == "higher" else value, price)


@dataclass(frozen=True)
class Budget:
    """What a child may cost: cost name to (least or None, most or None), both included. Empty: anything."""

    constraints: Constraints = field(default_factory=dict)

    def violation(self, cost: Mapping[str, int]) -> float:
        """By how much `cost` misses the budget: relative to each bound, summed; 0 within it."""
        total = 0.0
        for name, (low, high) in self.constraints.items():
            if low is not None:
                total += max(0.0, low - cost[name]) / max(abs(low), 1.0)
            if high is not None:
                total += max(0.0, cost[name] - high) / max(abs(high), 1.0)
        return total

    def __str__(self) -> str:
        bounds: list[str] = []
        for name, (low, high) in self.constraints.items():
            bounds += [] if low is None else [f"min_{name} {low:,.15g}"]
            bounds += [] if high is None else [f"max_{name} {high:,.15g}"]
        return ", ".join(bounds) or "no budget"


ANYTHING = Budget()


def check_budget(space: Space, cost: Cost, budget: Budget) -> None:
    """Refuse a budget that the space cannot meet, before anything is evaluated.

    Takes the smallest network to cost least and the largest most. A window between two architectures, which only sampling
    can find empty, is refused after a bounded number of tries; a small space is listed, so the answer is exact.

    Raises:
        ValueError: an unknown cost, a bound out of reach (the message says by how much), or an empty window.
    """
    small, large = cost(space.smallest()), cost(space.largest())
    for name, (low, high) in budget.constraints.items():
        if name not in small:
            raise ValueError(f"the budget names the cost {name!r}; this network has {', '.join(small)}")
        _check_bounds(name, low, high, small[name], large[name])
    if budget.violation(small) == 0 or budget.violation(large) == 0:
        return
    rng = np.random.default_rng(0)
    if find(space, lambda arch: budget.violation(cost(arch)), set(), samples(space, rng), rng) is None:
        how = f"none of all {space.cardinality:,} architectures" if space.cardinality <= SMALL else f"in {TRIES:,} draws no architecture"
        raise ValueError(f"{how} lies within {budget}; widen the window")


def _check_bounds(name: str, low: float | None, high: float | None, least: int, most: int) -> None:
    """Refuse bounds of one cost that cross, or that lie outside the smallest network's `least` and the largest's `most`."""
    if any(bound is not None and math.isnan(bound) for bound in (low, high)):
        raise ValueError(f"the budget of {name!r} is not a number")
    if low is not None and high is not None and low > high:
        raise ValueError(f"min_{name} {low:,.15g} is above max_{name} {high:,.15g} (by {low - high:,.15g})")
    if high is not None and high < least:
        raise ValueError(f"max_{name} {high:,.15g} is below the smallest network's {least:,.15g} {name} (by {least - high:,.15g})")
    if low is not None and low > most:
        raise ValueError(f"min_{name} {low:,.15g} is above the largest network's {most:,.15g} {name} (by {low - most:,.15g})")


class Search(ABC):
    """A search algorithm: `ask` for candidates, `tell` records, in any order and number.

    An algorithm adds `draws`, and may read nothing but what that is given.

    Args:
        space: what to search.
        cost: the exact cost of an architecture, name to number; called thousands of times.
        objective: what is good.
        budget: what a child may cost; extended with `extend`.
        seed: of all draws, 0 or more.
        window: W; candidate k waits for the records of 0 ... k - W.

    Raises:
        ValueError: the space cannot meet the budget, the cost lacks the objective's, or the window is below 1.
    """

    name: ClassVar[str]
    tag: ClassVar[int]  # of the algorithm's random streams; never changed, so that old journals replay

    def __init__(
        self,
        space: Space,
        cost: Cost,
        objective: Objective,
        budget: Budget = ANYTHING,
        *,
        seed: int = 0,
        window: int = 32,
    ) -> None:
        if window < 1:
            raise ValueError(f"the window is {window}; it must be at least 1")
        if objective.cost not in (names := cost(space.smallest())):
            raise ValueError(f"the objective names the cost {objective.cost!r}; this network has {', '.join(names)}")
        check_budget(space, cost, budget)
        self.space, self.cost, self.objective, self.seed, self.window = space, cost, objective, seed, window
        self._budgets: list[tuple[int, Budget]] = [(0, budget)]
        self._archs: list[Arch] = []
        self._costs: list[Mapping[str, int]] = []  # kept, because the budget that they are held against may change
        self._seen: set[Arch] = set()
        self._points: dict[int, tuple[float, float]] = {}
        self._told = 0  # records 0 ... _told - 1 are all here
        self.first: list[Arch] = []

    @abstractmethod
    def draws(self, k: int, archs: list[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator) -> Iterator[Arch]:
        """Endless draws for candidate k; the first that is new and within the budget is proposed.

        Args:
            k: the candidate's number, from the algorithm's own first one on.
            archs: candidates 0 ... k - W.
            points: their (metric, cost), both to be minimised, NaN where the candidate failed: shape ``(len(archs), 2)``.
            violations: by how much each misses candidate k's budget, 0 within it: shape ``(len(archs),)``.
            rng: of candidate k alone.
        """

    @property
    def next_k(self) -> int:
        """The number of the next candidate to be proposed."""
        return len(self._archs)

    @property
    def identity(self) -> dict[str, Any]:
        """What a journal must be keyed by on the search's part, as plain JSON."""
        goal = {"metric": self.objective.metric, "cost": self.objective.cost, "better": self.objective.better}
        first = {"first": [arch.id for arch in self.first]} if self.first else {}
        return {"algorithm": self.name, "seed": self.seed, "window": self.window, "objective": goal, **first}

    def begin_with(self, archs: Sequence[Arch]) -> None:
        """Propose these before the algorithm begins; those beyond the budget are left out by it, as any draw would be."""
        assert not self.next_k
        self.first = list(dict.fromkeys(archs))

    def budget(self, k: int) -> Budget:
        """What candidate k may cost."""
        return next(budget for from_k, budget in reversed(self._budgets) if from_k <= k)

    def extend(self, budget: Budget, from_k: int | None = None) -> int:
        """Another budget for candidates from `from_k` on (from the next one, by default), which is returned.

        Raises:
            ValueError: candidate `from_k` is proposed already, or the space cannot meet the budget.
        """
        from_k = self.next_k if from_k is None else from_k
        if from_k < self.next_k:
            raise ValueError(f"candidates up to {self.next_k - 1} are proposed already; a new budget cannot begin at {from_k}")
        check_budget(self.space, self.cost, budget)
        self._budgets.append((from_k, budget))
        return from_k

    def ask(self) -> Candidate | None:
        """The next candidate, or None while the records that it waits for are not told.

        Raises:
            Exhausted: nothing new within the budget is left, or none was found in a bounded number of tries.
        """
        k = self.next_k
        known = max(0, k - self.window + 1)
        if known > self._told:
            return None
        points = np.array([self._points[i] for i in range(known)]).reshape(-1, 2)
        budget = self.budget(k)
        violations = np.array([budget.violation(cost) for cost in self._costs[:known]])
        rng = np.random.default_rng([self.seed, self.tag, k])
        given, own = self.first[k : k + 1], max(0, k - len(self.first))
        draws = chain(given, self.draws(own, self._archs[:known], points, violations, rng))
        arch = find(self.space, lambda arch: budget.violation(self.cost(arch)), self._seen, draws, rng)
        if arch is None:
            raise Exhausted(f"after {k:,} candidates no new architecture was found ({budget}; the space has {self.space.cardinality:,})")
        self._archs.append(arch)
        self._costs.append(self.cost(arch))
        self._seen.add(arch)
        bar = {(float(metric), float(price)) for metric, price in points[front(points)]}
        return Candidate(k, arch, tuple(sorted(bar, key=lambda point: point[1])))

    def tell(self, record: Record) -> None:
        """Take in what came of a candidate. Telling a candidate again does nothing: the first record counts.

        Raises:
            ValueError: the candidate was not asked for, is of another architecture, or lacks the objective's metric.
        """
        if not 0 <= record.k < self.next_k:
            raise ValueError(f"candidate {record.k} was never asked for; {self.next_k} were")
        if record.arch != self._archs[record.k]:
            raise ValueError(f"candidate {record.k} is {self._archs[record.k].id}, the record is of {record.id}")
        self._points.setdefault(record.k, self.objective.point(record.metrics, record.cost))
        while self._told in self._points:
            self._told += 1


def resume(search: Search, journal: Journal) -> list[Candidate]:
    """Bring a fresh search to where its journal stands, by proposing everything again.

    Budgets of the journal come first, so they hold at the candidates at which they held; one from 0 replaces the search's own.

    Returns:
        The candidates before the last recorded one that have no record: they were in flight, and are to be evaluated
        again. What was in flight after it comes again from `ask`.

    Raises:
        ValueError: the search is not fresh, or proposes otherwise than the journal has it.
    """
    if search.next_k:
        raise ValueError(f"only a fresh search can be resumed; this one has proposed {search.next_k} candidates")
    for from_k, constraints in journal.budgets:
        search.extend(Budget(constraints), from_k)
    records = {record.k: record for record in journal.records}
    missing = []
    while search.next_k <= max(records, default=-1):
        candidate = search.ask()
        if candidate is None:
            raise ValueError(f"{journal.path} has candidate {max(records)}, but not all that candidate {search.next_k} waits for")
        record = records.get(candidate.k)
        if record is None:
            missing.append(candidate)
        elif record.arch != candidate.arch:
            raise ValueError(
                f"{journal.path}: candidate {record.k} is {record.id}, this search proposes {candidate.arch.id}: "
                "the space, the costs, the budget or the algorithm has changed"
            )
        else:
            search.tell(record)
    return missing
