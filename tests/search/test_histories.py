"""Histories of searches do not depend on order, on numbers in flight, or on crashes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.search.constraints import Constraints
from nas.search.core import Objective
from nas.search.evolution import select
from nas.search.journal import Candidate, Journal
from nas.search.pareto import front
from tests.search.searching import HEADER, NAMES, _asked, drive, flaky, fresh, searcher
from tests.synthetic import OBJECTIVE, SPACE, accuracy, cost, evaluate


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


def test_the_bar_is_of_what_is_within_the_constraints_of_now() -> None:
    """Who is beaten by a network that may not be had is not hopeless."""
    search, known = fresh("random", window=1), []
    for k in range(40):
        if k == 20:
            most = sorted(record.cost["work"] for record in known)[10]
            search.extend(bound := Constraints({"work": (None, most)}))
        candidate = search.ask()
        assert candidate is not None
        able = [record for record in known if k < 20 or not bound.violation(record.cost)]
        points = [OBJECTIVE.point(record.metrics, record.cost) for record in able]
        assert set(candidate.bar) == {points[i] for i in front(points)}
        known.append(evaluate(candidate))
        search.tell(known[-1])


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
