"""Budgets and ends: what a search proposes keeps the constraints, and a small space is exhausted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nas.search.constraints import Constraints, check_attainable
from nas.search.core import Exhausted, resume
from nas.search.fittest import fittest
from nas.search.journal import Journal, Record
from tests.search.searching import HEADER, NAMES, _archs, _asked, drive, flaky, fresh, searcher, tiny, width_cost
from tests.synthetic import OBJECTIVE, SPACE, accuracy, cost


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
