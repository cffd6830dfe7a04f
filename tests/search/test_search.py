"""Search: fronts against brute force, and histories that do not depend on order, on numbers in flight, or on
crashes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.config import plugins
from nas.search.constraints import Constraints, CostFunction, check_attainable
from nas.search.core import Exhausted, Objective, Search, resume
from nas.search.evolution import Best, child, select
from nas.search.fittest import fittest
from nas.search.journal import Candidate, Journal, Record
from nas.search.pareto import crowding, dominates, front, hypervolume, ranks
from nas.search.sampling import as_a_whole, kind
from nas.space import Arch, Choice, Space
from tests.synthetic import OBJECTIVE, REFERENCE, SCALE, SPACE, accuracy, cost, evaluate, exact_cost, objectives

HEADER = {"supernet": "0" * 64, "space": "synthetic", "seed": 3}
NAMES = ("alphanet", "coarse_to_fine", "evolution", "fittest", "guided", "nsga2", "random", "regularized")

numbers = st.one_of(st.integers(0, 4).map(float), st.sampled_from((math.nan, math.inf, -math.inf)))


def clouds(objectives: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    """Points on a coarse grid, so that ties and copies are common, some of them failed."""
    return st.lists(st.tuples(*[numbers] * objectives), max_size=12)


any_cloud = st.integers(1, 4).flatmap(clouds)


SOON = {"alphanet": {"initial": 20}, "coarse_to_fine": {"coarse": 20}, "evolution": {}, "nsga2": {"population": 20}}


def searcher(
    name: str,
    space: Space,
    cost: CostFunction,
    objective: Objective,
    constraints: Constraints = Constraints(),
    seed: int = 0,
    window: int = 32,
    **options: object,
) -> Search:
    kind: type[Search] = plugins.find("search", name)
    return kind(space, cost, objective, constraints, kind.Options(**options), seed=seed, window=window)


def tiny(count: int = 3) -> tuple[Space, Objective]:
    return Space([Choice("width", tuple(range(1, count + 1)))]), Objective("accuracy", "macs")


def width_cost(arch: Arch) -> Mapping[str, int]:
    return {"macs": 100 * int(arch["width"])}


# Pareto
# ----------------------------------------------------------------------------------------------------------------


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


# Histories
# -------------------------------------------------------------------------------------------------------------


def flaky(candidate: Candidate) -> Record:
    """As `evaluate`, but some architectures fail and some give NaN."""
    record = evaluate(candidate)
    match int(candidate.arch.id, 16) % 7:
        case 0:
            return replace(record, metrics=None, cost={}, error="out of memory")
        case 1:
            return replace(record, metrics={"accuracy": math.nan})
    return record


def fresh(name: str, window: int = 8, **options: Any) -> Search:
    return searcher(name, SPACE, cost, OBJECTIVE, seed=3, window=window, **options)


def drive(
    search: Search, journal: Journal, total: int, order: np.random.Generator, flight: int, stop: int = 10**9
) -> None:
    """Evaluate with up to `flight` at once that finish in any order; gives up, as a kill would, after `stop`
    records."""
    waiting = resume(search, journal)
    while True:
        while len(waiting) < flight and search.next_k < total and (candidate := search.ask()) is not None:
            journal.append_proposals([candidate])
            waiting.append(candidate)
        if not waiting or stop == 0:
            return
        record = flaky(waiting.pop(int(order.integers(len(waiting)))))
        search.tell(record)
        journal.append(record)
        stop -= 1


def history(path: Path) -> list[str]:
    """The lines of the journal, in order of k, a proposal before its record."""
    header, *lines = path.read_text().splitlines()

    def place(line: str) -> tuple[int, bool]:
        form = json.loads(line)
        return form.get("proposed", form.get("k", -1)), "k" in form

    return [header, *sorted(lines, key=place)]


@pytest.fixture(params=NAMES)
def undisturbed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    """The name of a search, and the history of 60 candidates evaluated one by one."""
    path = tmp_path / "undisturbed.jsonl"
    with Journal(path, HEADER) as journal:
        drive(fresh(request.param), journal, 60, np.random.default_rng(0), flight=1)
    lines = history(path)
    assert len(lines) == 121 and len({json.loads(line)["id"] for line in lines[1:]}) == 60
    return request.param, lines


@pytest.mark.parametrize(("order", "flight"), [(0, 2), (1, 5), (2, 8), (3, 100)])
def test_order_and_number_in_flight_do_not_matter(
    undisturbed: tuple[str, list[str]], tmp_path: Path, order: int, flight: int
) -> None:
    name, lines = undisturbed
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        drive(fresh(name), journal, 60, np.random.default_rng(order), flight)
    assert history(tmp_path / "journal.jsonl") == lines


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_elsewhere_is_proposed_first(name: str) -> None:
    """Then the algorithm begins as it would have; a found one beyond the budget gives way, and the journal is
    another's."""
    rng = np.random.default_rng(9)
    found = [SPACE.sample(rng) for _ in range(3)]
    plain, search = fresh(name), fresh(name)
    search.begin_with([*found, found[0]])
    asked = [search.ask() for _ in range(5)]
    assert [candidate.arch for candidate in asked[:3] if candidate] == found
    if name == "evolution":
        assert [candidate.arch for candidate in asked[3:] if candidate] == [SPACE.smallest(), SPACE.largest()]
    assert search.identity != plain.identity and search.identity["first"] == [arch.id for arch in found]
    dearest = max(found, key=lambda arch: cost(arch)["work"])
    limited = searcher(
        name, SPACE, cost, OBJECTIVE, Constraints({"work": (None, cost(dearest)["work"] - 1)}), seed=3, window=8
    )
    limited.begin_with(found)
    assert dearest not in {candidate.arch for candidate in (limited.ask() for _ in range(6)) if candidate}


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_and_replayed(undisturbed: tuple[str, list[str]], tmp_path: Path, seed: int) -> None:
    name, lines = undisturbed
    path, rng = tmp_path / "journal.jsonl", np.random.default_rng(seed)
    for _ in range(6):
        with Journal(path, HEADER) as journal:
            drive(fresh(name), journal, 60, rng, flight=int(rng.integers(1, 9)), stop=int(rng.integers(1, 15)))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - int(rng.integers(0, 300))])  # what a crash of the machine may take back
    with Journal(path, HEADER) as journal:
        drive(fresh(name), journal, 60, rng, flight=8)
    assert history(path) == lines


def test_more_candidates_go_on_as_if_there_had_been_no_end(undisturbed: tuple[str, list[str]], tmp_path: Path) -> None:
    name, lines = undisturbed
    path = tmp_path / "journal.jsonl"
    for total in (25, 60):
        with Journal(path, HEADER) as journal:
            drive(fresh(name), journal, total, np.random.default_rng(total), flight=8)
    assert history(path) == lines


@pytest.mark.parametrize("name", NAMES)
def test_ask_waits_for_exactly_the_window(name: str) -> None:
    search = fresh(name, window=4)
    first = [search.ask() for _ in range(4)]
    assert search.ask() is None
    candidates = [c for c in first if c is not None]
    assert [c.k for c in candidates] == [0, 1, 2, 3] and all(c.bar == () for c in candidates)
    for candidate in candidates[1:]:
        search.tell(evaluate(candidate))
        assert search.ask() is None
    search.tell(evaluate(candidates[0]))
    fourth = search.ask()
    assert fourth is not None and fourth.bar == (
        OBJECTIVE.point(*_results(candidates[0])),
    )  # of 1 ... 3 it knows nothing


def _results(candidate: Candidate) -> tuple[dict[str, float], dict[str, int]]:
    return {"accuracy": accuracy(candidate.arch)}, cost(candidate.arch)


def test_the_bar_is_the_front_of_what_the_candidate_may_know() -> None:
    search = fresh("random", window=3)
    known: list[tuple[float, float]] = []
    waiting: list[Candidate] = []
    for _ in range(20):
        while (candidate := search.ask()) is None:
            record = flaky(waiting.pop(0))
            known.append(OBJECTIVE.point(record.metrics, record.cost))
            search.tell(record)
        waiting.append(candidate)
        points = known[: max(0, candidate.k - 2)]
        assert set(candidate.bar) == {points[i] for i in front(points)}
        assert list(candidate.bar) == sorted(candidate.bar, key=lambda point: point[1])


def test_telling_again_changes_nothing_and_strangers_are_refused() -> None:
    once, twice = fresh("evolution", window=2), fresh("evolution", window=2)
    for _ in range(10):
        for search in (once, twice):
            candidate = _asked(search)
            search.tell(evaluate(candidate))
        twice.tell(replace(evaluate(candidate), metrics={"accuracy": 0.0}, seconds=9.0))
    assert once.ask() == twice.ask()
    with pytest.raises(ValueError, match="never asked for"):
        once.tell(replace(evaluate(candidate), k=50))
    with pytest.raises(ValueError, match="candidate 0 is"):
        once.tell(replace(evaluate(candidate), k=0))


def test_failed_records_are_never_parents() -> None:
    search = fresh("evolution", window=1)
    good = {3, 4, 9}
    for _ in range(40):
        candidate = _asked(search)
        assert len(candidate.bar) <= sum(k < candidate.k for k in good)
        metrics = {"accuracy": (math.nan, math.inf, -math.inf)[candidate.k % 3]}
        failed = replace(evaluate(candidate), metrics=metrics if candidate.k % 2 else None)
        search.tell(evaluate(candidate) if candidate.k in good else failed)
    points = np.array([[math.nan, math.nan], [1, 1], [math.inf, 0], [2, 0], [3, 3]])
    assert set(select(points, np.zeros(5), 9)) == {1, 3, 4} and select(points, np.zeros(5), 9)[-1] == 4
    assert select(points, np.array([0, 0.5, 0, 0.1, 0]), 2).tolist() == [4, 3]  # what keeps the budget comes first


def test_a_missing_metric_is_refused_and_better_may_mean_lower() -> None:
    goal = Objective("loss", "macs", "lower")
    assert goal.point({"loss": 0.5}, {"macs": 7}) == (0.5, 7.0)
    assert Objective("loss", "macs").point({"loss": 0.5}, {"macs": 7}) == (-0.5, 7.0)
    with pytest.raises(ValueError, match="needs 'loss', the record has accuracy"):
        goal.point({"accuracy": 1.0}, {"macs": 7})
    with pytest.raises(ValueError, match='"higher", "lower"'):
        Objective("loss", "macs", "up")  # type: ignore[arg-type]


# Budgets and ends
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((None, 90), r"max_macs 90 is below the smallest network's 100 macs \(by 10\)"),
        ((1234, None), r"min_macs 1,234 is above the largest network's 300 macs \(by 934\)"),
        ((250, 240.5), r"min_macs 250 is above max_macs 240.5 \(by 9.5\)"),
        ((210, 290), r"none of all 3 architectures lies within min_macs 210, max_macs 290"),
        ((math.nan, None), "is not a number"),
    ],
)
def test_constraints_out_of_reach_are_refused(window: tuple[float | None, float | None], message: str) -> None:
    space, objective = tiny()
    with pytest.raises(ValueError, match=message):
        searcher("random", space, width_cost, objective, Constraints({"macs": window}))
    with pytest.raises(ValueError, match="this network has macs"):
        check_attainable(space, width_cost, Constraints({"watts": (None, 1)}))


def test_an_empty_window_of_a_large_space_is_refused_after_bounded_tries() -> None:
    steps = Constraints({"work": (1, 9)})
    ends = {SPACE.smallest(): 0, SPACE.largest(): 10}
    with pytest.raises(ValueError, match="in 300 draws no architecture lies within min_work 1, max_work 9"):
        check_attainable(SPACE, lambda arch: {"work": ends.get(arch, 10)}, steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [(None, 0.18), (0.395, 0.405), (0.97, None)])
def test_every_candidate_keeps_the_constraints(name: str, share: tuple[float | None, float | None]) -> None:
    most = cost(SPACE.largest())["work"]
    low, high = (None if s is None else s * most for s in share)
    search = searcher(name, SPACE, cost, OBJECTIVE, Constraints({"work": (low, high)}), window=4)
    archs = _archs(search, 30)
    assert all((low or 0) <= cost(arch)["work"] <= (high or math.inf) for arch in archs)
    assert len(set(archs)) == 30


def _archs(search: Search, count: int) -> list[Arch]:
    waiting: list[Candidate] = []
    archs: list[Arch] = []
    while len(archs) < count:
        candidate = search.ask()
        if candidate is None:
            search.tell(evaluate(waiting.pop(0)))
        else:
            waiting.append(candidate)
            archs.append(candidate.arch)
    return archs


def test_evolution_begins_with_both_ends() -> None:
    assert _archs(fresh("evolution"), 2) == [SPACE.smallest(), SPACE.largest()]
    most = cost(SPACE.largest())["work"]
    limited = searcher("evolution", SPACE, cost, OBJECTIVE, Constraints({"work": (None, most / 2)}))
    first, second = _archs(limited, 2)
    assert first == SPACE.smallest() and second != SPACE.largest()


def test_the_fittest_have_children() -> None:
    """Of those within the budget; 15 % of them, at least two, at most 75."""
    metric = np.array([3.0, math.nan, 1.0, 0.0, 2.0])
    assert fittest(metric, np.array([0, 0, 0, 0.1, 0])).tolist() == [2, 4], (
        "failed ones and those outside the budget have none"
    )
    assert len(fittest(np.arange(100.0), np.zeros(100))) == 15 and len(fittest(np.arange(2000.0), np.zeros(2000))) == 75

    archs = _archs(fresh("fittest", window=1, initial=60), 100)
    scores = [accuracy(arch) for arch in archs]
    for k in range(60, 100):
        parents = [archs[i] for i in np.argsort(scores[:k])[::-1][: round(0.15 * k)]]
        near = max(
            sum(archs[k].get(name) == value for name, value in parent.items()) / len(parent) for parent in parents
        )
        assert near > 0.35, "a third of a mutant's choices are drawn anew, half of a crossover's come from one parent"


def test_the_fittest_find_the_best_within_a_window() -> None:
    """One objective under a window of cost: better than as many random networks, whatever the seed."""
    most = cost(SPACE.largest())["work"]
    window, best = Constraints({"work": (0.45 * most, 0.5 * most)}), {}
    for name in ("fittest", "random"):
        runs = [_archs(searcher(name, SPACE, cost, OBJECTIVE, window, seed=seed), 300) for seed in range(5)]
        assert all(window.violation(cost(arch)) == 0 for archs in runs for arch in archs)
        best[name] = [max(map(accuracy, archs)) for archs in runs]
    assert min(best["fittest"]) > max(best["random"])


@pytest.mark.parametrize("name", NAMES)
def test_a_small_space_is_exhausted_exactly(name: str) -> None:
    space, objective = tiny(50)
    for _ in range(2):  # the same end each time
        search = searcher(name, space, width_cost, objective, Constraints({"macs": (None, 4000)}), window=4)
        seen = []
        with pytest.raises(Exhausted, match="after 40 candidates .*max_macs 4,000; the space has 50"):
            while (candidate := search.ask()) is not None:
                seen.append(candidate.arch["width"])
                search.tell(
                    Record(candidate.k, candidate.arch, {"accuracy": 1.0}, width_cost(candidate.arch), 0.0, None)
                )
        assert sorted(seen) == list(range(1, 41))
    search.extend(Constraints())
    assert search.ask() is not None


@pytest.mark.parametrize("name", NAMES)
def test_other_constraints_hold_from_its_candidate_on_and_replays(name: str, tmp_path: Path) -> None:
    most = cost(SPACE.largest())["work"]
    wide, narrow = Constraints({"work": (None, 0.6 * most)}), Constraints({"work": (0.2 * most, 0.3 * most)})
    path = tmp_path / "journal.jsonl"
    search = searcher(name, SPACE, cost, OBJECTIVE, wide, seed=3, window=8)
    with Journal(path, HEADER) as journal:
        journal.append_constraints(0, wide)
        drive(search, journal, 30, np.random.default_rng(0), flight=8)
        from_k = search.extend(narrow)
        journal.append_constraints(from_k, narrow)
        assert from_k == 30
        while search.next_k < 50:
            record = flaky(_asked(search))
            search.tell(record)
            journal.append(record)
        with pytest.raises(ValueError, match="up to 49 are proposed already; new constraints cannot begin at 30"):
            search.extend(wide, 30)
    with Journal(path, HEADER) as journal:
        assert journal.constraints == [(0, wide), (30, narrow)]
        assert all(narrow.violation(cost(record.arch)) == 0 for record in journal.records[30:])
        again = searcher(
            name, SPACE, cost, OBJECTIVE, narrow, seed=3, window=8
        )  # the experiment file names the last constraints
        assert resume(again, journal) == []
    assert again.ask() == search.ask()


def _asked(search: Search) -> Candidate:
    candidate = search.ask()
    assert candidate is not None
    return candidate


# The journal
# -----------------------------------------------------------------------------------------------------------

RECORD = Record(0, Arch({"width": 2}), {"accuracy": 0.5, "loss": math.inf}, {"macs": 200}, 1.5, None)
FAILED = Record(1, Arch({"width": 1}), None, {}, 0.5, "out of memory")


def test_records_and_candidates_are_plain_json() -> None:
    for record in (RECORD, FAILED):
        assert Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record
        assert record.id == record.arch.id
    candidate = Candidate(4, RECORD.arch, ((-0.5, 200.0), (-0.25, 100.0)))
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
    with pytest.raises(ValueError, match="does not belong to the architecture"):
        Record.from_json(RECORD.to_json() | {"arch": {"width": 1}})
    with pytest.raises(ValueError, match="the id None does not belong"):
        Record.from_json({key: value for key, value in RECORD.to_json().items() if key != "id"})


def _written(path: Path) -> bytes:
    with Journal(path, HEADER) as journal:
        assert journal.append(RECORD)
        journal.append_constraints(1, Constraints({"macs": (None, 250)}))
        assert journal.append(FAILED)
    return path.read_bytes()


def test_the_journal_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    assert json.loads(data.splitlines()[0]) == {"raynas_journal": 1, **HEADER}
    with Journal(path, HEADER) as journal:
        assert journal.records == [RECORD, FAILED] and journal.constraints == [(1, Constraints({"macs": (None, 250)}))]
        assert not journal.append(replace(RECORD, seconds=9.0))
        with pytest.raises(ValueError, match="candidate 0 is"):
            journal.append(replace(FAILED, k=0))
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == ["journal.jsonl"]


def test_torn_anywhere_the_whole_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with Journal(path, HEADER) as journal:
            kept = len(journal.records) + len(journal.constraints)
            assert kept == max(0, data[:length].count(b"\n") - 1)
            journal.append(replace(RECORD, k=7))
        with Journal(path, HEADER) as journal:
            assert journal.records[-1].k == 7 and len(journal.records) + len(journal.constraints) == kept + 1


def test_a_last_line_of_rubbish_is_cut_and_one_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)
    path.write_bytes(data + b'{"k": 2, \x00\xff\n')
    with Journal(path, HEADER) as journal:
        assert len(journal.records) == 2
    assert path.read_bytes() == data
    lines = data.splitlines(keepends=True)
    for damaged, message in (
        (b"{\n", "line 3 is damaged"),
        (b"{}\n", "line 3 is neither"),
        (b"7\n", "line 3 is neither"),
    ):
        path.write_bytes(b"".join((*lines[:2], damaged, *lines[3:])))
        with pytest.raises(ValueError, match=message):
            Journal(path, HEADER)


def test_another_header_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    _written(path)
    with pytest.raises(ValueError, match=r"\(seed: 3 in the file, 4 now\)"):
        Journal(path, {**HEADER, "seed": 4})
    with pytest.raises(ValueError, match="window: None in the file, 8 now"):
        Journal(path, {**HEADER, "window": 8})
    path.write_text("dear diary\n")
    with pytest.raises(ValueError, match="not a journal"):
        Journal(path, HEADER)
    assert path.read_text() == "dear diary\n"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    data = _written(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(path, HEADER) as journal:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr("os.fsync", full)
            journal.append(replace(RECORD, k=2))
        assert path.read_bytes() == data
        assert journal.append(replace(RECORD, k=2))


def test_a_changed_search_does_not_replay(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search = fresh("random")
        for _ in range(10):  # as they were written before there were proposals
            record = evaluate(_asked(search))
            search.tell(record)
            journal.append(record)
        with pytest.raises(ValueError, match="this search proposes"):
            resume(searcher("random", SPACE, cost, OBJECTIVE, seed=4, window=8), journal)
        with pytest.raises(ValueError, match="only a fresh search"):
            resume(search, journal)


def test_resume_returns_what_was_in_flight(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search = fresh("evolution")
        asked = [_asked(search) for _ in range(8)]
        for k in (6, 0, 3):
            journal.append(evaluate(asked[k]))
        again = fresh("evolution")
        assert resume(again, journal) == [asked[k] for k in (1, 2, 4, 5)]
        assert again.next_k == 7 and again.ask() == asked[7]


def test_resume_takes_the_proposals_that_the_journal_has(tmp_path: Path) -> None:
    """Another machine's arithmetic may propose otherwise: what was written counts, and what is written is in flight."""
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        search, other = fresh("evolution"), searcher("random", SPACE, cost, OBJECTIVE, seed=9, window=8)
        asked = [_asked(search) for _ in range(6)]
        journal.append_proposals(asked[:4])
        journal.append_proposals(asked)
        journal.append(evaluate(asked[2]))
        assert path_lines(journal.path, "proposed") == [0, 1, 2, 3, 4, 5]
    with Journal(journal.path, HEADER) as journal:
        assert resume(other, journal) == [asked[k] for k in (0, 1, 3, 4, 5)]
        assert other.next_k == 6
        with pytest.raises(ValueError, match="candidate 3 is proposed twice"):
            journal.append_proposals([replace(asked[3], arch=asked[4].arch)])
    broken = journal.path.read_text().replace(asked[0].arch.id, asked[1].arch.id)
    journal.path.write_text(broken)
    with pytest.raises(ValueError, match=r"line 2 is neither a record nor constraints: it is no proposal"):
        Journal(journal.path, HEADER)


def test_a_proposal_of_another_space_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        journal.append_proposals([Candidate(0, Arch({"width": 7}), ())])
        with pytest.raises(ValueError, match="the space has no choice 'width'"):
            resume(fresh("random"), journal)


def path_lines(path: Path, key: str) -> list[int]:
    """The numbers of a kind of line, as they stand in a journal."""
    return [form[key] for form in map(json.loads, path.read_text().splitlines()) if key in form]


# Quality
# ---------------------------------------------------------------------------------------------------------------


def test_the_synthetic_problem_has_its_check_values() -> None:
    middle = SPACE.arch({name: choice.values[1] for name, choice in SPACE.choices.items()})
    assert accuracy(SPACE.smallest()) == pytest.approx(48.56492564980716, rel=1e-12)
    assert accuracy(middle) == pytest.approx(69.51652839940037, rel=1e-12)
    assert accuracy(SPACE.largest()) == pytest.approx(83.76191339654542, rel=1e-12)
    works = [exact_cost(arch) for arch in (SPACE.smallest(), middle, SPACE.largest())]
    assert works == pytest.approx([42.42509004874905, 104.52236319335326, 267.5551694363614], rel=1e-12)
    assert cost(middle)["work"] == round(SCALE * works[1])


def test_evolution_is_better_than_random() -> None:
    found = {}
    for name in ("evolution", "random"):
        archs = [_archs(searcher(name, SPACE, cost, OBJECTIVE, seed=seed), 500) for seed in range(5)]
        found[name] = [hypervolume([objectives(arch) for arch in run], REFERENCE) for run in archs]
    assert min(found["evolution"]) > max(found["random"])
    assert np.mean(found["evolution"]) > 0.67  # NSGA-II of pymoo with 50 random ones to begin with: 0.6428


def test_a_guided_search_is_ahead_of_every_other_after_a_hundred() -> None:
    """Its 100 candidates hold more than 1,000 of evolution's on average, or 250 of `coarse_to_fine`."""
    archs = _archs(searcher("guided", SPACE, cost, OBJECTIVE, seed=7), 100)
    assert hypervolume([objectives(arch) for arch in archs], REFERENCE) > 0.6876


def test_a_guided_search_begins_with_networks_that_vary_as_a_whole() -> None:
    """Every second one, as long as there are any within the constraints."""

    def whole(arch: Arch) -> bool:
        return all(len({value for name, value in arch.items() if kind(name) == each}) == 1 for each in kinds)

    kinds = set(map(kind, SPACE.choices))
    archs = _archs(searcher("guided", SPACE, cost, OBJECTIVE, seed=7), 32)
    assert [whole(arch) for arch in archs] == [True, True] + 15 * [False, True]
    middle = cost(archs[0])["work"] + cost(archs[1])["work"]
    narrow = Constraints({"work": (int(0.5 * middle), int(0.5001 * middle))})
    assert not any(map(whole, _archs(searcher("guided", SPACE, cost, OBJECTIVE, narrow, seed=7), 16)))


@pytest.mark.parametrize("name", ["alphanet", "coarse_to_fine", "evolution", "nsga2"])
def test_a_search_that_looks_at_what_is_new_proposes_as_one_that_looks_at_all(name: str) -> None:
    """Whose proposals come from a journal so far, so that it has looked at nothing; some candidates failed, and the
    constraints became others on the way."""
    one, other = (searcher(name, SPACE, cost, OBJECTIVE, seed=5, window=8, **SOON[name]) for _ in range(2))
    for k in range(240):
        if k == 120:
            for search in (one, other):
                search.extend(Constraints({"work": (None, cost(SPACE.largest())["work"] // 2)}))
        found = one.ask()
        assert found is not None
        again = other.ask(None if k in (130, 239) else found.arch)
        assert again is not None and again.arch == found.arch
        record = replace(evaluate(found), metrics=None, error="ill") if k % 37 == 5 else evaluate(found)
        for search in (one, other):
            search.tell(record)


def test_choices_of_one_kind_stand_at_one_place() -> None:
    """Also where names are not of parts, but numbered."""
    space = Space([Choice(f"{kind}{number}", (1, 2, 3)) for kind in ("width_", "s.depth") for number in range(20)])
    found = [as_a_whole(space, np.random.default_rng(seed)) for seed in range(20)]
    for arch in found:
        assert all(len({v for name, v in arch.items() if kind(name) == each}) == 1 for each in ("width_", "depth"))
    assert len(set(found)) == 9


def test_unknown_algorithms_and_options_are_refused() -> None:
    space, objective = tiny()
    with pytest.raises(
        ValueError,
        match=f"'annealing'; allowed: {', '.join(NAMES)}; or your own",
    ):
        searcher("annealing", space, width_cost, objective)
    with pytest.raises(ValueError, match="temperature"):
        searcher("random", space, width_cost, objective, temperature=1)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        searcher("evolution", space, width_cost, objective, parents=1)
    with pytest.raises(ValueError, match="'work'; this network has macs"):
        searcher("random", space, width_cost, Objective("accuracy", "work"))


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_is_plain_json(name: str) -> None:
    identity = fresh(name).identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["algorithm"] == name and identity["window"] == 8


def test_what_a_predictor_expected_stands_in_the_journal(tmp_path: Path) -> None:
    """Of what it has picked, and nothing of the ends, of random draws and of what a journal gives back."""
    search = searcher("guided", SPACE, cost, OBJECTIVE, seed=2, window=8, initial=20)
    flying: list[Candidate] = []
    with Journal(tmp_path / "journal", HEADER) as journal:
        for _ in range(44):
            while (candidate := search.ask()) is None:
                record = evaluate(flying.pop(0))
                search.tell(record)
                journal.append(record)
            flying.append(candidate)
            journal.append_proposals([candidate])
            picked = candidate.k >= 28  # the first turn that begins with enough records
            assert (candidate.expected is not None) == picked
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    expected = {line["proposed"]: line["expected"] for line in lines if "expected" in line}
    assert sorted(expected) == list(range(28, 44))
    assert all(abs(expected[each.k] - accuracy(each.arch)) < 5 for each in flying)
    again = searcher("guided", SPACE, cost, OBJECTIVE, seed=2, window=8, initial=20)
    with Journal(tmp_path / "journal", HEADER) as journal:
        assert all(each.expected is None for each in resume(again, journal))
