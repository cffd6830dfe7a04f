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
from nas.search.rows import First, Rows
from nas.search.rungs import INHERITED, Ladder, Rung
from nas.search.sampling import find
from nas.space import Arch, Space


class Exhausted(Exception):
    """No further architecture within the constraints was found; the same candidate ends every repeated search."""


Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Objective:
    """What is good: a metric of the evaluation against a cost, which is minimised, and whatever else there is.

    Attributes:
        metric, cost, better: the first two, and which way the metric is good.
        further: more metrics and costs, each with the way that it is good.

    Raises:
        ValueError: `better` is neither ``"higher"`` nor ``"lower"``, or a name stands there twice.
    """

    metric: str = "accuracy"
    cost: str = "macs"
    better: Better = "higher"
    further: tuple[tuple[str, Better], ...] = ()

    def __post_init__(self) -> None:
        for better in self.ways:
            if better not in ("higher", "lower"):
                raise ValueError(f'better is {better!r}; allowed: "higher", "lower"')
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"one of {', '.join(self.names)} stands there twice")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all objectives, in the order of a point's figures."""
        return (self.metric, self.cost, *(name for name, _ in self.further))

    @property
    def ways(self) -> tuple[Better, ...]:
        """Which way each of `names` is good."""
        return (self.better, "lower", *(better for _, better in self.further))

    def point(self, metrics: Mapping[str, float] | None, cost: Mapping[str, float]) -> tuple[float, ...]:
        """The figures of all objectives, to be minimised, the metric and the cost first; NaN for all where the
        candidate failed or one is not finite.

        Raises:
            ValueError: the metrics or the costs lack one that the objective names.
        """
        if metrics is None:
            return (math.nan,) * len(self.names)
        both: Mapping[str, float] = {**metrics, **cost}
        wanted = ((self.metric, self.better, metrics), (self.cost, "lower", cost))
        figures = []
        for name, better, given in (*wanted, *((name, better, both) for name, better in self.further)):
            if name not in given:
                raise ValueError(f"the objective needs {name!r}, the record has {', '.join(given) or 'nothing'}")
            figures.append(-float(given[name]) if better == "higher" else float(given[name]))
        return tuple(figures) if all(map(math.isfinite, figures)) else (math.nan,) * len(figures)


class Search(ABC):
    """A search algorithm: `ask` for candidates, `tell` records, in any order and number.

    An algorithm is a class with a `name`, a `tag`, `draws`, and `Options` where it has some; in an experiment it is
    ``search.algorithm: my_module:MySearch``. It may read what `draws` is given, its options, and what was `proposed`;
    of records none but those that `draws` is given.

    Args:
        space: what to search.
        cost: the exact cost of an architecture, name to number; called thousands of times.
        objective: what is good.
        constraints: what a child may cost, and what its objectives may be; changed with `extend`.
        options: of the class `Options`; None: all at their defaults.
        seed: of all draws, 0 or more.
        window: W; candidate k waits for the records of 0 ... k - W.
        rungs: how often candidates are scored, and after what; see `nas.search.rungs`.

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
        rungs: Sequence[Rung] = INHERITED,
    ) -> None:
        if window < 1:
            raise ValueError(f"the window is {window}; it must be at least 1")
        if objective.cost not in (names := cost(space.smallest())):
            raise ValueError(f"the objective names the cost {objective.cost!r}; this network has {', '.join(names)}")
        self.metrics = tuple(name for name in objective.names if name not in names)
        check_attainable(space, cost, constraints, self.metrics)
        self.space, self.cost, self.objective, self.seed, self.window = space, cost, objective, seed, window
        self.options = self.Options() if options is None else options
        assert isinstance(self.options, self.Options)
        self._constraints: list[tuple[int, Constraints]] = [(0, constraints)]
        self._archs: list[Arch] = []
        self._seen: set[Arch] = set()
        self.rungs = tuple(rungs)
        self._early: dict[int, tuple[list[tuple[float, ...]], Mapping[str, float]]] = {}  # told before a lower number
        self._ladder = Ladder(self.rungs, len(objective.names))
        self._figures: list[Mapping[str, float]] = []  # kept, because what they are held against may change
        self._violations, self._violated = Rows(1), constraints  # of the figures in turn, and of which constraints
        self._bar, self._barred = np.empty((0, len(objective.names))), 0  # the front of records 0 ... _barred - 1
        self.first: list[Arch] = []

    @abstractmethod
    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """Endless draws for candidate k; the first that is new and within the constraints is proposed.

        Args:
            k: the candidate's number, from the algorithm's own first one on.
            archs: candidates 0 ... k - W.
            points: their (metric, cost) and what further objectives there are, to be minimised, NaN where the
                candidate failed: shape ``(len(archs), objectives)``. Those that did not climb to the last rung stand
                where they would be expected there (`nas.search.rungs`).
            violations: by how much each misses candidate k's constraints, 0 within them: shape ``(len(archs),)``.
            rng: of candidate k alone.
        """

    def expected(self, arch: Arch) -> float | None:
        """The metric that an algorithm with a predictor guesses of what it has just proposed; None without one."""
        return None

    @property
    def next_k(self) -> int:
        """The number of the next candidate to be proposed."""
        return len(self._archs)

    @property
    def identity(self) -> dict[str, object]:
        """What a journal must be keyed by on the search's part, as plain JSON."""
        goal = {"metric": self.objective.metric, "cost": self.objective.cost, "better": self.objective.better}
        more = {"further": dict(self.objective.further)} if self.objective.further else {}
        first = {"first": [arch.id for arch in self.first]} if self.first else {}
        options = {"options": given} if (given := self.options.model_dump(mode="json")) else {}
        rungs = {"rungs": [list(rung) for rung in self.rungs]} if self.rungs != INHERITED else {}
        base = {"algorithm": self.name, "seed": self.seed, "window": self.window, "objective": {**goal, **more}}
        return {**base, **first, **options, **rungs}

    def begin_with(self, archs: Sequence[Arch]) -> None:
        """Propose these before the algorithm begins; it leaves out those beyond the constraints, as any draw."""
        assert not self.next_k
        self.first = list(dict.fromkeys(archs))

    @property
    def proposed(self) -> Sequence[Arch]:
        """The architectures of candidates 0 ... `next_k` - 1: an algorithm may know what is in flight."""
        return self._archs

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
        check_attainable(self.space, self.cost, constraints, self.metrics)
        self._constraints.append((from_k, constraints))
        return from_k

    def ask(self, proposed: Arch | None = None) -> Candidate | None:
        """The next candidate, or None while the records that it waits for are not told.

        Args:
            proposed: what a journal has for it, which is taken as it is.

        Raises:
            ValueError: `proposed` is not of this space.
            Exhausted: nothing new within the constraints is left, or none was found in a bounded number of tries.
        """
        k = self.next_k
        known = self._known(k)
        if known > len(self._ladder):
            return None
        violations = self._missed(self.constraints(k), known)
        if proposed is None:
            arch = self._find(k, self._ladder.expected.first(known), violations)
        else:
            arch = self.space.arch(proposed)
        self._archs.append(arch)
        self._seen.add(arch)
        expected = None if proposed else self.expected(arch)
        return Candidate(k, arch, self._front(self._ladder.scored[-1].first(known), violations), expected)

    def _known(self, k: int) -> int:
        """Of how many candidates candidate k may know the records."""
        return max(0, k - self.window + 1)

    def climbs(self, record: Record) -> bool:
        """Whether a candidate that is in flight goes on to the next rung: of what candidates 0 ... k - W had on the
        rung that it has been scored on, and of its own, its figures are in the best share that the next rung takes."""
        point = self.objective.point(record.metrics, record.cost)
        return self._ladder.climbs(point, len(record.lower), self._known(record.k))

    def _find(self, k: int, points: np.ndarray, violations: np.ndarray) -> Arch:
        """The first architecture for candidate k that is new and within its constraints."""
        rng, constraints = np.random.default_rng([self.seed, self.tag, k]), self.constraints(k)
        given, own = self.first[k : k + 1], max(0, k - len(self.first))
        draws = chain(given, self.draws(own, First(self._archs, len(points)), points, violations, rng))
        known_before = constraints.without(self.metrics)
        arch = find(self.space, lambda arch: known_before.violation(self.cost(arch)), self._seen, draws, rng)
        if arch is None:
            where = f"{constraints}; the space has {self.space.cardinality:,}"
            raise Exhausted(f"after {k:,} candidates no new architecture was found ({where})")
        return arch

    def _missed(self, constraints: Constraints, known: int) -> np.ndarray:
        """By how much the first candidates miss constraints; only what is new is counted, unless these are."""
        if constraints != self._violated:
            self._violations, self._violated = Rows(1), constraints
            self._bar, self._barred = self._bar[:0], 0
        for figures in self._figures[len(self._violations) : known]:
            self._violations.append(constraints.violation(figures))
        return self._violations.first(known)[:, 0]

    def _front(self, points: np.ndarray, violations: np.ndarray) -> tuple[tuple[float, ...], ...]:
        """The front of the first records that are within the constraints, by rising cost; what is new is held against
        the front so far."""
        longer = np.concatenate((self._bar, points[self._barred :][violations[self._barred :] == 0]))
        self._bar, self._barred = longer[front(longer)], len(points)
        return tuple(sorted(set(map(tuple, self._bar.tolist())), key=lambda point: point[1]))

    def tell(self, record: Record) -> None:
        """Take in what came of a candidate. Telling a candidate again does nothing: the first record counts.

        Raises:
            ValueError: the candidate was not asked for, is of another architecture, or lacks the objective's metric.
        """
        if not 0 <= record.k < self.next_k:
            raise ValueError(f"candidate {record.k} was never asked for; {self.next_k} were")
        if record.arch != self._archs[record.k]:
            raise ValueError(f"candidate {record.k} is {self._archs[record.k].id}, the record is of {record.id}")
        if len(record.lower) >= len(self.rungs):
            raise ValueError(f"candidate {record.k} has been on rung {len(record.lower)}; there are {len(self.rungs)}")
        points = [self.objective.point(metrics, record.cost) for metrics in (*record.lower, record.metrics)]
        if record.k >= len(self._ladder):
            figures = {**(record.metrics or {}), **self.cost(record.arch)}
            self._early.setdefault(record.k, (points, figures))
        while (told := self._early.pop(len(self._ladder), None)) is not None:
            self._ladder.append(told[0])
            self._figures.append(told[1])


def resume(search: Search, journal: Journal) -> list[Candidate]:
    """Bring a fresh search to where its journal stands: with the proposals that it has, and by proposing anew where it
    has records without, as it did in earlier versions.

    Constraints of the journal come first, so they hold at the candidates at which they held; those from 0 replace the
    search's own.

    Returns:
        The candidates without a record before the last that has one or was proposed: they were in flight, and are to be
        evaluated again.

    Raises:
        ValueError: the search is not fresh, or proposes otherwise than the journal has it.
    """
    if search.next_k:
        raise ValueError(f"only a fresh search can be resumed; this one has proposed {search.next_k} candidates")
    for from_k, constraints in journal.constraints:
        search.extend(constraints, from_k)
    records = {record.k: record for record in journal.records}
    missing = []
    last = max((*records, *journal.proposals), default=-1)
    while search.next_k <= last:
        candidate = search.ask(journal.proposals.get(search.next_k))
        if candidate is None:
            raise ValueError(
                f"{journal.path} has candidate {last}, but not all that candidate {search.next_k} waits for"
            )
        record = records.get(candidate.k)
        climbing = journal.climbing.get(candidate.k)
        if climbing and (climbing.arch != candidate.arch or not search.climbs(climbing)):
            raise ValueError(f"{journal.path}: candidate {candidate.k} does not climb as the file has it")
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
