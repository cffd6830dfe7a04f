"""Workers of a search that take longer to start than a trial lasts: all of them come to work, and none is stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.search import Searcher

from nas.config import plugins
from nas.search.journal import Journal
from nas.space import Arch
from nas.workers import trials
from nas.workers.session import RAY_ENVIRONMENT
from nas.workers.trials import Asker, Scored, tuner_of
from tests.synthetic import OBJECTIVE, SPACE, cost

FENCE: Any = SimpleNamespace(stopping=lambda: False, check=lambda: None)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as around:
        for name, value in RAY_ENVIRONMENT.items():
            around.setenv(name, value)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


class Slow(Scored):
    """The first is there at once, each other one after seconds; it finds nothing of `tests` where it runs."""

    def setup(self, config: dict[str, Any], home: str) -> None:  # type: ignore[override]
        self.candidates, number = config["candidates"], len(os.listdir(home))
        open(f"{home}/{os.getpid()}", "w").close()
        time.sleep(4.0 if number else 0.0)

    def _judge(self, k: int, arch: Arch, steps: int) -> dict[str, Any]:
        time.sleep(0.02)
        metrics = {"accuracy": float(os.getpid())}
        return {"k": k, "seconds": 0.02, "metrics": metrics, "parts": [], "error": None}


def asker_at(path: Path, candidates: int, count: int, window: int = 32) -> Asker:
    search = plugins.find("search", "random")(SPACE, cost, OBJECTIVE, window=window)
    journal = Journal(path, search.identity)
    return Asker(search, journal, [], candidates, count, 4, float("inf"), lambda _: None, FENCE)


def test_workers_that_start_are_not_stopped_for_one_that_is_done(ray_session: None, tmp_path: Path) -> None:
    """Left to itself Tune gives a trial that waits for its worker to the first one that is done."""
    (tmp_path / "made").mkdir()
    asker = asker_at(tmp_path / "journal.jsonl", 200, 3)
    slow = tune.with_resources(tune.with_parameters(Slow, home=str(tmp_path / "made")), {"cpu": 1})
    assert not tuner_of(slow, asker, "search", tmp_path).fit().errors
    made = {int(each.name) for each in (tmp_path / "made").iterdir()}
    assert {record.k for record in asker.journal.records} == set(range(200))
    assert {int((record.metrics or {})["accuracy"]) for record in asker.journal.records} == made and len(made) == 3


def judged(given: Any) -> dict[str, Any]:
    rows = [
        {"k": k, "metrics": {"accuracy": 1.0}, "parts": [], "seconds": 1.0, "error": None}
        for k, _, _ in given["candidates"]
    ]
    return {"judged": rows}


def test_a_trial_is_held_while_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it found is written down at once."""
    asker = asker_at(tmp_path / "journal.jsonl", 100, 2)
    given = [asker.suggest("a"), asker.suggest("b")]
    asker.began("a")
    assert not asker.over("a", judged(given[0])) and len(asker.journal.records) == 4
    assert not asker.over("a", {"judged": []}), "nor twice"
    asker.began("b")
    assert asker.over("a", {"judged": []})
    asker.on_trial_complete("a", {"judged": []})
    assert isinstance(asker.suggest("c"), dict)
    assert asker.over("b", judged(given[1])), "whoever is done gives its worker to c"
    asker.on_trial_complete("b", {"judged": []}, error=True)  # it died afterwards: nobody is to blame
    assert not asker.alone and isinstance(asker.suggest("d"), dict)
    assert not asker.over("c", {"judged": []}), "d needs a worker of its own"
    monkeypatch.setattr(trials, "STARTING_SECONDS", 0.0)
    assert asker.over("c", {"judged": []}), "not for ever: other work may have its CPU"


def test_a_worker_that_dies_in_its_start_blames_nobody(tmp_path: Path) -> None:
    """One on a broken machine, say; others go on with its candidates, and wait for it a few times only."""
    asker = asker_at(tmp_path / "journal.jsonl", 100, 2)
    given: Any = asker.suggest("works")
    asker.began("works")
    for number in range(3):
        assert isinstance(asker.suggest(f"dies{number}"), dict)
        assert not asker.over("works", judged(given) if number == 0 else {"judged": []})
        asker.on_trial_complete(f"dies{number}", None, error=True)
    given = asker.suggest("dies3")
    assert asker.over("works", {"judged": []}), "the fourth is not waited for"
    asker.on_trial_complete("works", {"judged": []})
    for number in range(20):  # the first of them with the worker of "works"
        asker.over("dies3" if number == 0 else f"works{number}", judged(given))
        asker.on_trial_complete("dies3" if number == 0 else f"works{number}", {"judged": []})
        given = asker.suggest(f"works{number + 1}")
    assert len(asker.journal.records) > 20 and all(record.error is None for record in asker.journal.records)
    asker.idle = 0
    for number in range(2 * trials.LIVES):
        assert not asker.broken and isinstance(asker.suggest(f"none{number}"), dict)
        asker.on_trial_complete(f"none{number}", None, error=True)
    assert asker.broken and asker.suggest("one more") == Searcher.FINISHED


def test_what_comes_next_is_proposed_while_workers_work(tmp_path: Path) -> None:
    """A guided search takes seconds for a window's proposals, for which workers that are done would wait."""
    asker = asker_at(tmp_path / "journal.jsonl", 10, 1)
    first: Any = asker.suggest("a")
    asker.prepare()
    asker.prepare()
    assert list(asker.journal.proposals) == list(range(8)), "one batch, and on disk as any proposal"
    asker.began("a")
    assert asker.over("a", judged(first))
    asker.on_trial_complete("a", {"judged": []})
    second: Any = asker.suggest("b")
    assert [k for k, _, _ in second["candidates"]] == [4, 5, 6, 7]
    asker.deadline = 0.0
    asker.prepare()
    assert len(asker.journal.proposals) == 8, "nothing new is begun"


def test_a_trial_is_held_while_there_is_nothing_to_do(tmp_path: Path) -> None:
    """Tune would stop its worker."""
    asker = asker_at(tmp_path / "journal.jsonl", 12, 2, window=4)
    given: dict[str, Any] = {}
    while isinstance(told := asker.suggest(str(len(given))), dict):
        given[str(len(given))] = told
        asker.began(str(len(given) - 1))
    assert asker.suggest("x") is None and asker.search.next_k == 4, "k waits for k - 4"
    assert not asker.over("3", judged(given["3"])), "candidate 4 waits for candidate 0"
    assert asker.over("0", judged(given["0"])) and asker.over("3", {"judged": []})
    for trial in given:
        asker.over(trial, judged(given[trial]) if trial in "12" else {"judged": []})
        asker.on_trial_complete(trial, {"judged": []})
    for number in range(100, 110):
        told = asker.suggest(str(number))
        if told == Searcher.FINISHED:
            break
        asker.began(str(number))
        asker.over(str(number), judged(told))
        asker.on_trial_complete(str(number), {"judged": []})
    assert sorted(record.k for record in asker.journal.records) == list(range(12))
    assert asker.suggest("y") == Searcher.FINISHED
