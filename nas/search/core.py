"""Ask and tell: what every search algorithm shares.

Candidate k is proposed from the records of candidates 0 ... k - W alone and from a generator of (seed, algorithm, k).
So what is proposed depends neither on who finishes first, nor on how many are evaluated at once, nor on crashes,
as long as at most W candidates are in flight; `Search.ask` returns None while it would take more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

import numpy as np

from nas.config.section import Section
from nas.search.constraints import ANYTHING, Constraints, CostFunction, check_attainable
from nas.search.journal import Candidate, Journal, Record
from nas.search.pareto import front
from nas.search.sampling import find
from nas.space import Arch, Space


class Exhausted(Exception):
    """No further architecture within the constraints was found; the same candidate ends every repeated search."""


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

    def point(self, metrics: Mapping[str, float] | None, cost: Mapping[str, float]) -> tuple[float, float]:
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


class Search(ABC):
    """A search algorithm: `ask` for candidates, `tell` records, in any order and number.

    An algorithm is a class with a `name`, a `tag`, `draws`, and `Options` where it has some; in an experiment it is
    ``search.algorithm: my_module:MySearch``. It may read nothing but what `draws` is given and its options.

    Args:
        space: what to search.
        cost: the exact cost of an architecture, name to number; called thousands of times.
        objective: what is good.
        constraints: what a child may cost; changed with `extend`.
        options: of the class `Options`; None: all at their defaults.
        seed: of all draws, 0 or more.
        window: W; candidate k waits for the records of 0 ... k - W.

    Attributes:
        name: of the algorithm, in journals.
        tag: of its random streams, a number that no other has; never changed, so that old journals replay.
        Options: the section of its options, whose defaults make a whole one.

    Raises:
        ValueError: the space cannot meet the constraints, the cost lacks the objective's, or the window is below 1.
    """

    name: ClassVar[str]
    tag: ClassVar[int]
    Options: ClassVar[type[Section]] = Section

    def __init__(
        self,
        space: Space,
        cost: CostFunction,
        objective: Objective,
        constraints: Constraints = ANYTHING,
        options: Section | None = None,
        *,
        seed: int = 0,
        window: int = 32,
    ) -> None:
        if window < 1:
            raise ValueError(f"the window is {window}; it must be at least 1")
        if objective.cost not in (names := cost(space.smallest())):
            raise ValueError(f"the objective names the cost {objective.cost!r}; this network has {', '.join(names)}")
        check_attainable(space, cost, constraints)
        self.space, self.cost, self.objective, self.seed, self.window = space, cost, objective, seed, window
        self.options = self.Options() if options is None else options
        assert isinstance(self.options, self.Options)
        self._constraints: list[tuple[int, Constraints]] = [(0, constraints)]
        self._archs: list[Arch] = []
        self._costs: list[Mapping[str, float]] = []  # kept, because what they are held against may change
        self._seen: set[Arch] = set()
        self._points: dict[int, tuple[float, float]] = {}
        self._told = 0  # records 0 ... _told - 1 are all here
        self.first: list[Arch] = []

    @abstractmethod
    def draws(
        self, k: int, archs: list[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Endless draws for candidate k; the first that is new and within the constraints is proposed.

        Args:
            k: the candidate's number, from the algorithm's own first one on.
            archs: candidates 0 ... k - W.
            points: their (metric, cost), both to be minimised, NaN where the candidate failed: shape ``(len(archs),
                2)``.
            violations: by how much each misses candidate k's constraints, 0 within them: shape ``(len(archs),)``.
            rng: of candidate k alone.
        """

    @property
    def next_k(self) -> int:
        """The number of the next candidate to be proposed."""
        return len(self._archs)

    @property
    def identity(self) -> dict[str, object]:
        """What a journal must be keyed by on the search's part, as plain JSON."""
        goal = {"metric": self.objective.metric, "cost": self.objective.cost, "better": self.objective.better}
        first = {"first": [arch.id for arch in self.first]} if self.first else {}
        options = {"options": given} if (given := self.options.model_dump(mode="json")) else {}
        base = {"algorithm": self.name, "seed": self.seed, "window": self.window, "objective": goal}
        return {**base, **first, **options}

    def begin_with(self, archs: Sequence[Arch]) -> None:
        """Propose these before the algorithm begins; it leaves out those beyond the constraints, as any draw."""
        assert not self.next_k
        self.first = list(dict.fromkeys(archs))

    def constraints(self, k: int) -> Constraints:
        """What candidate k may cost."""
        return next(constraints for from_k, constraints in reversed(self._constraints) if from_k <= k)

    def extend(self, constraints: Constraints, from_k: int | None = None) -> int:
        """Other constraints for candidates from `from_k` on (from the next one, by default), which is returned.

        Raises:
            ValueError: candidate `from_k` is proposed already, or the space cannot meet the constraints.
        """
        from_k, proposed = self.next_k if from_k is None else from_k, self.next_k
        if from_k < proposed:
            raise ValueError(
                f"candidates up to {proposed - 1} are proposed already; new constraints cannot begin at {from_k}"
            )
        check_attainable(self.space, self.cost, constraints)
        self._constraints.append((from_k, constraints))
        return from_k

    def ask(self) -> Candidate | None:
        """The next candidate, or None while the records that it waits for are not told.

        Raises:
            Exhausted: nothing new within the constraints is left, or none was found in a bounded number of tries.
        """
        k = self.next_k
        known = max(0, k - self.window + 1)
        if known > self._told:
            return None
        points = np.array([self._points[i] for i in range(known)]).reshape(-1, 2)
        constraints = self.constraints(k)
        violations = np.array([constraints.violation(cost) for cost in self._costs[:known]])
        rng = np.random.default_rng([self.seed, self.tag, k])
        given, own = self.first[k : k + 1], max(0, k - len(self.first))
        draws = chain(given, self.draws(own, self._archs[:known], points, violations, rng))
        arch = find(self.space, lambda arch: constraints.violation(self.cost(arch)), self._seen, draws, rng)
        if arch is None:
            where = f"{constraints}; the space has {self.space.cardinality:,}"
            raise Exhausted(f"after {k:,} candidates no new architecture was found ({where})")
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

    Constraints of the journal come first, so they hold at the candidates at which they held; those from 0 replace the
    search's own.

    Returns:
        The candidates before the last recorded one that have no record: they were in flight, and are to be evaluated
        again. What was in flight after it comes again from `ask`.

    Raises:
        ValueError: the search is not fresh, or proposes otherwise than the journal has it.
    """
    if search.next_k:
        raise ValueError(f"only a fresh search can be resumed; this one has proposed {search.next_k} candidates")
    for from_k, constraints in journal.constraints:
        search.extend(constraints, from_k)
    records = {record.k: record for record in journal.records}
    missing = []
    while search.next_k <= max(records, default=-1):
        candidate = search.ask()
        if candidate is None:
            raise ValueError(
                f"{journal.path} has candidate {max(records)}, but not all that candidate {search.next_k} waits for"
            )
        record = records.get(candidate.k)
        if record is None:
            missing.append(candidate)
        elif record.arch != candidate.arch:
            raise ValueError(
                f"{journal.path}: candidate {record.k} is {record.id}, this search proposes {candidate.arch.id}: "
                "the space, the costs, the constraints or the algorithm has changed"
            )
        else:
            search.tell(record)
    return missing
