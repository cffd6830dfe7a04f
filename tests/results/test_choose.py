"""The best child under a budget, from a journal alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nas.config.experiment import load_experiment
from nas.results.choose import budget, choose, lifting, pick, pick_of
from nas.results.history import History
from nas.rundir.directory import RunDir
from nas.search.constraints import Constraints
from nas.search.journal import Journal, Record
from nas.space import Choice, Space

SPACE = Space([Choice("width", tuple(range(1, 100)))])
# (accuracy, MACs, latency) by k; the front of accuracy and MACs, cheapest first: 0, 4, 2, 1
GIVEN = [(60.0, 1000, 9.0), (95.0, 100_000, 1.5), (93.0, 10_000, 2.5), (93.0, 20_000, 0.5), (70.0, 3000, 3.5)]
GIVEN += [(99.0, 50_000, math.nan), (math.nan, 10, 0.1)]


@pytest.fixture
def history(tmp_path: Path) -> History:
    (tmp_path / "search").mkdir()
    path = tmp_path / "search" / "journal-5a5a5a5a.jsonl"
    with Journal(path, {"supernet": "5a" * 32}) as journal:
        for k, (accuracy, macs, latency) in enumerate(GIVEN):
            metrics = {"accuracy": accuracy, "latency": latency}
            journal.append(Record(k, SPACE.arch({"width": k + 1}), metrics, {"macs": macs}, 1.0, None))
        journal.append(Record(len(GIVEN), SPACE.arch({"width": 90}), None, {}, 1.0, "no memory"))
    history = History(path)
    history.update()
    return history


@pytest.mark.parametrize(
    ("most", "least", "knee", "k"),
    [
        ({}, {}, False, 5),
        ({"macs": "10k"}, {}, False, 2),
        ({"macs": 9999}, {}, False, 4),
        ({"macs": 20_000}, {}, False, 2),  # of equally good ones the cheapest
        ({"latency": 2}, {}, False, 1),  # what has no such figure does not fit
        ({"macs": "1M"}, {"accuracy": 93, "macs": "15k"}, False, 5),
        ({"latency": "0.9"}, {"accuracy": 90}, False, 3),
        ({"latency": 20}, {}, True, 2),
        ({"macs": 1000}, {}, True, 0),
    ],
)
def test_the_best_under_a_budget(
    history: History, most: dict[str, float | str], least: dict[str, float | str], knee: bool, k: int
) -> None:
    assert pick(history, budget(most, least), knee).k == k


def test_where_all_have_failed_the_error_is_told(tmp_path: Path) -> None:
    experiment = load_experiment("bignas-digits")
    (tmp_path / "search").mkdir()
    path = tmp_path / "search" / "journal-5a5a5a5a.jsonl"
    with Journal(path, {"supernet": "5a" * 32}) as journal:
        for k, error in enumerate(["boom", "no memory", "boom"]):
            journal.append(Record(k, SPACE.arch({"width": k + 1}), None, {"macs": 1}, 1.0, error))
    history = History(path)
    history.update()
    with pytest.raises(ValueError, match="all 3 candidates judged have failed, 2 of them with: boom"):
        choose(history, experiment)


def test_where_nothing_fits_the_nearest_is_told(history: History) -> None:
    with pytest.raises(ValueError, match="none of 6 candidates lies within max_macs 900, min_accuracy 50") as told:
        pick(history, budget({"macs": 900}, {"accuracy": 50}))
    assert f"the nearest is {history.records[0].id} (candidate 0) with macs 1,000, accuracy 60" in str(told.value)


def test_what_is_no_budget_is_told(history: History, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="energy is no figure of this search; it has accuracy, latency, macs"):
        pick(history, budget({"energy": 1}, {}))
    with pytest.raises(ValueError, match="macs: given 'much'; allowed: a number"):
        budget({"macs": "much"}, {})
    with pytest.raises(ValueError, match="has not been searched yet: nas search"):
        pick_of(RunDir(tmp_path / "none"), budget({}, {}))


def test_the_words_that_lift_a_budget() -> None:
    bounds = Constraints({"macs": (10, 20), "params": (None, 5)})
    words = [f"--set search.constraints.{key}=null" for key in ("macs.min", "macs.max", "params.max")]
    assert lifting(bounds) == " ".join(words)
