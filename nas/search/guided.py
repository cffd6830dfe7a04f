"""Evolution whose children are screened by a predictor, so that few of them are judged: as in LINAS (Cummings et al.
2022) and NSGANetV2 (Lu et al. 2020), in a stream rather than in generations.

Once in a while a regressor is fitted to what was judged. A short evolution over its guesses and the exact costs gives
some thousand children, of which those are proposed that promise the largest gain of hypervolume, one after the other.
A metric that is normally distributed against a cost that is known has its expected gain in closed form (Emmerich et
al. 2011, with one uncertain objective). What is in flight counts as if it had come as guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt
from scipy.special import ndtr

from nas.config.section import Section
from nas.search.constraints import Constraints
from nas.search.core import Search
from nas.search.evolution import child, select, tournament
from nas.search.pareto import front, hypervolume
from nas.search.sampling import as_a_whole, leaning
from nas.space import Arch

if TYPE_CHECKING:
    from nas.search.predictor import Predictor

POOL = 100  # parents within the evolution over guesses,
ROUNDS = 12  # which has so many generations
CHILDREN = 100  # of so many children
SPARE = 4  # picks more than a turn takes, for those that other constraints leave out
SHORT = 32  # guesses whose gain is counted where there are more than two objectives
CROSSOVER = 0.9  # chance that a child has two parents
BEYOND = 0.1  # how far beyond the front's ends the hypervolume counts, in ranges of the front
LEAST = 1e-9
WHOLE = 20  # draws of a network that varies as a whole, of which a narrow window of cost may hold none
FEW = 16  # judged candidates, from which on a predictor is fitted


class GuidedOptions(Section):
    """How often the predictor is asked, and what it learns from."""

    initial: PositiveInt = Field(default=32, description="candidates from small to large before the predictor's")
    every: PositiveInt = Field(default=8, description="candidates from one fit of the predictor")
    records: Annotated[int, Field(ge=FEW)] = Field(default=500, description="most candidates that it is fitted to")
    flips: Annotated[float, Field(gt=0)] = Field(default=2.0, description="choices that mutate, on average")


class Guesses(NamedTuple):
    """What architectures may be: `points` of shape ``(archs, objectives)``, to be minimised, whose metrics are guessed
    and whose costs are exact; the `deviation` of the first metric's guess; by how much they miss the constraints."""

    archs: list[Arch]
    points: np.ndarray
    deviation: np.ndarray
    violation: np.ndarray


class Guided(Search):
    """Both ends and random candidates from small to large, every second of which varies as a whole (BigNAS, section
    3.4); then, by turns of `every`, what a predictor promises most of."""

    name = "guided"
    tag = 4
    Options = GuidedOptions
    options: GuidedOptions
    _turn: tuple[int, Constraints] | None = None
    _picked: Sequence[Arch] = ()
    _expected: Mapping[Arch, float] = MappingProxyType({})

    def expected(self, arch: Arch) -> float | None:
        guess = self._expected.get(arch)
        return -guess if guess is not None and self.objective.better == "higher" else guess

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        """The ends, the random ones, what was picked for this turn, and after that children as evolution's."""
        if k < 2:
            yield (self.space.smallest, self.space.largest)[k]()
        elif k < self.options.initial and k % 2:
            yield from (as_a_whole(self.space, rng) for _ in range(WHOLE))
        turn = (k - self.options.initial) % self.options.every
        known = len(archs) - turn  # what is told to the first of this turn
        enough = known > 0 and np.isfinite(points[:known]).all(axis=1).sum() >= FEW
        if k >= self.options.initial and enough:
            yield from self._picks(self.next_k - turn, points[:known], violations[:known])[turn:]
        pool = [archs[i] for i in select(points, violations, POOL)] if enough else []
        while len(pool) < 2:
            yield leaning(self.space, rng)
        while True:
            yield self._child(pool, rng)

    def _child(self, pool: Sequence[Arch], rng: np.random.Generator) -> Arch:
        """A mutant or a mutated crossover of two of a pool, whose first is the best."""
        pair = pool[tournament(len(pool), rng)], pool[tournament(len(pool), rng)]
        return child(self.space, pair, rng, CROSSOVER, min(1.0, self.options.flips / max(len(pair[0]), 1)))

    def _picks(self, start: int, points: np.ndarray, violations: np.ndarray) -> Sequence[Arch]:
        """What the predictor promises most of in the turn that candidate `start` begins, the best first."""
        turn = start, self.constraints(self.next_k)
        if turn != self._turn:
            rng = np.random.default_rng([self.seed, self.tag, start, 1])
            able = np.flatnonzero(np.isfinite(points).all(axis=1))[-self.options.records :]
            predictor = self._predictor().fit([self.proposed[i] for i in able], points[able][:, self._guessed])
            pool = [self.proposed[i] for i in select(points, violations, POOL)]
            found = self._evolved(predictor, pool, rng)
            flying = self._guess(predictor, list(self.proposed[len(points) : start]))
            known = np.concatenate((points[violations == 0], flying.points[flying.violation == 0]))
            known = known if len(front(known)) else points  # where a bound on a metric is out of reach so far
            found = found._replace(points=self._in_decades(found.points))
            self._turn, self._picked = turn, self._best(found, self._in_decades(known), set(self.proposed[:start]))
        return self._picked

    @cached_property
    def _guessed(self) -> list[int]:
        """The places of the objectives that are metrics."""
        costs = self.cost(self.space.smallest())
        return [at for at, name in enumerate(self.objective.names) if name not in costs]

    def _in_decades(self, points: np.ndarray) -> np.ndarray:
        """With the logarithms of the costs: half as much counts alike, whatever it is the half of."""
        costs = [at for at in range(points.shape[1]) if at not in self._guessed]
        scaled = points.copy()
        scaled[:, costs] = np.log10(np.maximum(points[:, costs], LEAST))
        return scaled

    def _predictor(self) -> Predictor:
        from nas.search.predictor import Predictor  # scikit-learn takes a second, and an experiment is read before

        return Predictor(self.space)

    def _guess(self, predictor: Predictor, archs: list[Arch]) -> Guesses:
        names, constraints = self.objective.names, self.constraints(self.next_k)
        signs = np.array([-1.0 if way == "higher" else 1.0 for way in self.objective.ways])
        mean, deviation = predictor(archs)
        points, violation = np.empty((len(archs), len(names))), np.empty(len(archs))
        points[:, self._guessed] = mean
        for row, arch in enumerate(archs):
            cost = self.cost(arch)
            for at, name in enumerate(names):
                if name in cost:
                    points[row, at] = signs[at] * cost[name]
            if constraints.bounds:
                figures = dict(zip(names, (signs * points[row]).tolist(), strict=True))
                violation[row] = constraints.violation({**figures, **cost})
            else:
                violation[row] = 0.0
        return Guesses(archs, points, deviation[:, 0], violation)

    def _evolved(self, predictor: Predictor, pool: list[Arch], rng: np.random.Generator) -> Guesses:
        """All that a short evolution over the guesses has come by."""
        fresh = (leaning(self.space, rng) for _ in range(CHILDREN))
        found = self._guess(predictor, list(dict.fromkeys([*pool, *fresh])))
        for _ in range(ROUNDS):
            pool = [found.archs[i] for i in select(found.points, found.violation, POOL)]
            seen = set(found.archs)
            born = dict.fromkeys(self._child(pool, rng) for _ in range(CHILDREN))
            more = self._guess(predictor, [arch for arch in born if arch not in seen])
            rest = (np.concatenate(pair) for pair in zip(found[1:], more[1:], strict=True))
            found = Guesses(found.archs + more.archs, *rest)
        return found

    def _best(self, found: Guesses, known: np.ndarray, seen: set[Arch]) -> list[Arch]:
        """Those of largest gain, each as if those before had come as guessed."""
        expected: dict[Arch, float] = {}
        left = np.array([arch not in seen for arch in found.archs]) & (found.violation == 0)
        picked: list[Arch] = []
        while left.any() and len(picked) < self.options.every + SPARE:
            if known.shape[1] == 2:
                at = np.flatnonzero(left)[np.argmax(gains(found.points[left], found.deviation[left], known))]
            else:
                short = np.flatnonzero(left)[select(found.points[left], found.violation[left], SHORT)]
                at = short[np.argmax(volumes(found.points[short], known))]
            left[at] = False
            picked.append(found.archs[at])
            expected[found.archs[at]] = float(found.points[at, 0])
            known = np.vstack((known, found.points[at]))
        self._expected = expected
        return picked


def corner(known: np.ndarray) -> np.ndarray:
    """From where the hypervolume of what is known counts: a little beyond the worst of its front."""
    return known.max(axis=0) + BEYOND * np.maximum(np.ptp(known, axis=0), LEAST)


def gains(points: np.ndarray, deviation: np.ndarray, known: np.ndarray) -> np.ndarray:
    """By how much each guess is expected to raise the hypervolume of what is known.

    At a price there is a best known metric, which makes a staircase; the gain is the expected improvement over each of
    its steps from the guess's own price on, times the step's length.

    Args:
        points: (metric, price) of the guesses, to be minimised, shape ``(guesses, 2)``.
        deviation: of the metric, shape ``(guesses,)``.
        known: shape ``(known, 2)``; failed ones are NaN.

    Returns:
        Shape ``(guesses,)``.
    """
    mean, price = points.T[:, :, None]
    stairs = known[front(known)]
    stairs = stairs[np.argsort(stairs[:, 1])]
    worst = corner(stairs)
    levels = np.concatenate((worst[:1], stairs[:, 0]))
    edges = np.concatenate(([-np.inf], stairs[:, 1], worst[1:]))
    lengths = np.maximum(0.0, edges[1:] - np.maximum(edges[:-1], price))
    ahead = levels - mean
    z = ahead / deviation[:, None]
    improvement = ahead * ndtr(z) + deviation[:, None] * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return (lengths * improvement).sum(axis=1)


def volumes(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """By how much each guess of more than two objectives would raise the hypervolume if it came as guessed.

    Args:
        points: shape ``(guesses, objectives)``, to be minimised.
        known: shape ``(known, objectives)``; failed ones are NaN.

    Returns:
        Shape ``(guesses,)``, but for what all have in common.
    """
    best = known[front(known)]
    worst = corner(best).tolist()
    return np.array([hypervolume(np.vstack((best, point)), worst) for point in points])
