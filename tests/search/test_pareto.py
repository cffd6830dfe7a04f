"""Fronts, ranks, crowding and hypervolume against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.evolution import Best, child, select
from nas.search.pareto import crowding, dominates, front, hypervolume, ranks
from tests.synthetic import SPACE

numbers = st.one_of(st.integers(0, 4).map(float), st.sampled_from((math.nan, math.inf, -math.inf)))


def clouds(objectives: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    """Points on a coarse grid, so that ties and copies are common, some of them failed."""
    return st.lists(st.tuples(*[numbers] * objectives), max_size=12)


any_cloud = st.integers(1, 4).flatmap(clouds)


@given(any_cloud)
def test_front_against_brute_force(points: list[tuple[float, ...]]) -> None:
    want = [i for i, p in enumerate(points) if np.isfinite(p).all() and not any(dominates(q, p) for q in points)]
    assert front(points).tolist() == want


def test_of_two_at_the_same_second_figure_the_better_first_alone_is_on_the_front() -> None:
    """And whoever equals it in both; in two objectives, where the front is one sweep, as in three."""
    points = [(1.0, 2.0), (2.0, 2.0), (1.0, 2.0), (0.5, 3.0), (3.0, 2.0), (3.0, 1.0)]
    assert front(points).tolist() == [0, 2, 3, 5]
    assert front([(*point, 0.0) for point in points]).tolist() == [0, 2, 3, 5]


def test_of_one_front_the_loneliest_are_selected() -> None:
    """Both ends first, then by the distance between the neighbours; the next front comes after all of them."""
    line = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [6.0, 4.0], [10.0, 0.0], [11.0, 11.0]])
    chosen = select(line, np.zeros(6), 6).tolist()
    assert set(chosen[:2]) == {0, 4} and chosen[2:] == [3, 2, 1, 5]
    assert select(line, np.zeros(6), 3).tolist() == chosen[:3]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 3).flatmap(clouds), st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=12))
def test_the_best_of_a_history_that_grows(size: int, points: list[tuple[float, ...]], missed: list[float]) -> None:
    """Looked at one record after the other, some at once, and after a change of the constraints: as all in one."""
    best, cloud = Best(size), np.array(points or [(0.0, 0.0)])
    violations = np.array(missed[: len(cloud)])
    for count in sorted({0, 1, 2, 3, 5, len(cloud) // 2, len(cloud)} & set(range(len(cloud) + 1))):
        assert (
            best(cloud[:count], violations[:count]).tolist() == select(cloud[:count], violations[:count], size).tolist()
        )
    assert best(cloud, violations[::-1]).tolist() == select(cloud, violations[::-1], size).tolist()


@pytest.mark.parametrize(("size", "objectives"), [(1, 2), (2, 2), (6, 2), (6, 3)])
def test_the_best_of_many_that_are_equal_or_none_better(size: int, objectives: int) -> None:
    """Few values, so that there are ties, long fronts and copies; after each record."""
    random = np.random.default_rng(size)
    for cloud in (random.integers(0, 9, (70, objectives)).astype(float), random.random((70, objectives))):
        best, none = Best(size), np.zeros(70)
        for count in range(71):
            found = best(cloud[:count], none[:count])
            assert found.tolist() == select(cloud[:count], none[:count], size).tolist()


def test_crowding_by_hand() -> None:
    """Both neighbours' distance over the range, added up; of values on both sides of 0 and of a range below 1."""
    cloud = [(-5.0, 0.4), (0.0, 0.1), (-4.0, 0.3), (5.0, 0.0)]
    assert crowding(cloud).tolist() == [np.inf, pytest.approx(0.9 + 0.75), pytest.approx(0.5 + 0.75), np.inf]


def test_ranks_of_many() -> None:
    cloud = np.random.default_rng(0).integers(0, 15, (150, 2)).astype(float)
    left, rank = dict(enumerate(map(tuple, cloud))), 0
    while left:
        top = [i for i, p in left.items() if not any(dominates(q, p) for q in left.values())]
        assert set(ranks(cloud)[top]) == {rank}
        left, rank = {i: p for i, p in left.items() if i not in top}, rank + 1


def test_a_child_is_its_first_parent_but_for_a_mutation_where_nothing_is_crossed() -> None:
    rng = np.random.default_rng(0)
    first, second = SPACE.largest(), SPACE.smallest()

    def others(crossover: float) -> float:
        """Choices that are not the first parent's, in the mean."""
        found = [child(SPACE, (first, second), rng, crossover, 0.0) for _ in range(20)]
        return float(np.mean([sum(first.get(name) != value for name, value in arch.items()) for arch in found]))

    assert 0 < others(0.0) < 3 and others(1.0) > 8


@given(any_cloud)
def test_ranks_against_peeling(points: list[tuple[float, ...]]) -> None:
    left = {i: p for i, p in enumerate(points) if np.isfinite(p).all()}
    want: dict[int, int] = {}
    rank = 0
    while left:
        top = [i for i, p in left.items() if not any(dominates(q, p) for q in left.values())]
        want |= dict.fromkeys(top, rank)
        left = {i: p for i, p in left.items() if i not in top}
        rank += 1
    assert ranks(points).tolist() == [want.get(i, rank) for i in range(len(points))]


@given(clouds(2))
def test_hypervolume_against_counted_cells(points: list[tuple[float, ...]]) -> None:
    reference = (4.0, 3.0)
    cells = [(x, y) for x in range(4) for y in range(3)]
    finite = [p for p in points if np.isfinite(p).all()]
    assert hypervolume(points, reference) == sum(any(p[0] <= x and p[1] <= y for p in finite) for x, y in cells)


@given(clouds(3))
def test_hypervolume_of_three_against_counted_cells(points: list[tuple[float, ...]]) -> None:
    reference = (4.0, 3.0, 2.0)
    cells = [(x, y, z) for x in range(4) for y in range(3) for z in range(2)]
    finite = [p for p in points if np.isfinite(p).all()]
    want = sum(any(all(a <= b for a, b in zip(p, cell, strict=True)) for p in finite) for cell in cells)
    assert hypervolume(points, reference) == want


@given(any_cloud)
def test_failed_points_are_dominated_by_all(points: list[tuple[float, ...]]) -> None:
    for p in points:
        for q in points:
            if np.isfinite(p).all() and not np.isfinite(q).all():
                assert dominates(p, q) and not dominates(q, p)


def test_crowding_is_the_distance_between_neighbours() -> None:
    assert crowding([(0, 4), (1, 2), (4, 0), (math.nan, 0)]).tolist() == [math.inf, 2.0, math.inf, 0.0]
    assert crowding([(1, 1), (1, 1), (1, 1)]).tolist()[1] == 0.0
    assert crowding([]).shape == (0,)


def test_pareto_refuses_wrong_shapes() -> None:
    for points, corner in (([(1, 2, 3)], (4, 4)), ([(1.0,)], (4.0,))):
        with pytest.raises(ValueError, match="two objectives or more"):
            hypervolume(points, corner)
    with pytest.raises(ValueError, match="shape"):
        front([1.0, 2.0])
    with pytest.raises(ValueError, match="2 and 1 objectives"):
        dominates((1, 2), (1,))
    assert hypervolume([], (1, 1)) == 0 and front([]).tolist() == [] and ranks([]).tolist() == []
