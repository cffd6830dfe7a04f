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
    """The first is there at once, each other one after seconds. Late candidates wait until three workers have judged
    some; it finds nothing of `tests` where it runs."""

    def setup(self, config: dict[str, Any], home: str) -> None:  # type: ignore[override]
        number = len(os.listdir(home))
        self.reset_config(config)
        self.home, self.ends = home, time.monotonic() + 150
        open(f"{home}/made-{os.getpid()}", "w").close()
        time.sleep(4.0 if number else 0.0)

    def _judge(self, k: int, arch: Arch, steps: int) -> dict[str, Any]:
        open(f"{self.home}/works-{os.getpid()}", "w").close()
        time.sleep(0.01)
        while k > 1000 and time.monotonic() < self.ends and str(os.listdir(self.home)).count("works") < 3:
            time.sleep(0.1)
        metrics = {"accuracy": float(os.getpid())}
        return {"k": k, "seconds": 0.01, "metrics": metrics, "parts": [], "error": None}


def asker_at(path: Path, candidates: int, count: int, window: int = 32) -> Asker:
    search = plugins.find("search", "random")(SPACE, cost, OBJECTIVE, window=window)
    journal = Journal(path, search.identity)
    return Asker(search, journal, [], candidates, count, 4, float("inf"), lambda _: None, FENCE)


def test_workers_that_start_are_not_stopped_for_one_that_is_done(ray_session: None, tmp_path: Path) -> None:
    """Left to itself Tune gives a trial that waits for its worker to the first one that is done."""
    (tmp_path / "made").mkdir()
    asker = asker_at(tmp_path / "journal.jsonl", 1100, 3)
    slow = tune.with_resources(tune.with_parameters(Slow, home=str(tmp_path / "made")), {"cpu": 1})
    assert not tuner_of(slow, asker, "search", tmp_path).fit().errors
    made = {int(each.name[5:]) for each in (tmp_path / "made").glob("made-*")}
    assert {record.k for record in asker.journal.records} == set(range(1100))
    assert {int((record.metrics or {})["accuracy"]) for record in asker.journal.records} == made and len(made) == 3


@ray.remote(num_cpus=1)
class Other:
    """Somebody else's work."""

    def here(self) -> bool:
        return True


def test_a_worker_that_finds_no_place_holds_nobody_up(ray_session: None, tmp_path: Path) -> None:
    """Other work may have its CPU for hours: the search ends with the workers that it has."""
    others = [Other.remote() for _ in range(3)]  # type: ignore[attr-defined]
    assert all(ray.get([each.here.remote() for each in others]))
    (tmp_path / "made").mkdir()
    asker = asker_at(tmp_path / "journal.jsonl", 100, 3)
    slow = tune.with_resources(tune.with_parameters(Slow, home=str(tmp_path / "made")), {"cpu": 1})
    assert not tuner_of(slow, asker, "search", tmp_path).fit().errors
    assert {record.k for record in asker.journal.records} == set(range(100))
    for each in others:
        ray.kill(each)


class Worker:
    """What a trial does, without Ray."""

    def __init__(self, asker: Asker, trial: str) -> None:
        assert asker.suggest(trial) == {"candidates": []}
        self.asker, self.trial, self.given = asker, trial, []  # type: tuple[Asker, str, list[int]]

    def begins(self) -> Worker:
        self.asker.began(self.trial, lambda given: self.given.extend(k for k, _, _ in given["candidates"]))
        assert not self.asker.over(self.trial, {"judged": []})
        return self

    def works(self) -> bool:
        """Judges what it has; whether it is over."""
        rows = [{"k": k, "metrics": {"accuracy": 1.0}, "parts": [], "seconds": 1.0, "error": None} for k in self.given]
        self.given.clear()
        ends = self.asker.over(self.trial, {"judged": rows})
        if ends:
            self.asker.on_trial_complete(self.trial, {"judged": []})
        return ends

    def dies(self) -> None:
        self.asker.on_trial_complete(self.trial, None, error=True)


def test_one_works_while_another_starts(tmp_path: Path) -> None:
    """However long that takes: whoever has not begun has no candidates."""
    asker = asker_at(tmp_path / "journal.jsonl", 40, 2)
    first, second = Worker(asker, "first").begins(), Worker(asker, "second")
    while not first.works():
        assert first.given
    assert [record.k for record in asker.journal.records] == list(range(40))
    assert asker.suggest("third") == Searcher.FINISHED
    asker.began("second", second.given.extend)
    assert asker.over("second", {"judged": []}), "it gets the worker of the first one, and is over"


def test_a_worker_that_dies_in_its_start_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a broken machine, say: it is tried again, ever more seldom, as long as another one works."""
    now = time.monotonic()
    monkeypatch.setattr(trials, "time", SimpleNamespace(monotonic=lambda: now))
    asker = asker_at(tmp_path / "journal.jsonl", 1000, 2)
    works = Worker(asker, "works").begins()
    works.works()
    waits = []
    for number in range(2 * trials.LIVES):
        Worker(asker, f"dies{number}").dies()
        began = now
        while asker.suggest("asks") is None:
            now += 1
            assert not works.works()
        asker.flying.pop("asks")
        waits.append(now - began)
    assert waits == sorted(waits) and waits[0] < 5 < 30 < waits[-1]
    assert not asker.broken and all(record.error is None for record in asker.journal.records)
    works.dies()
    assert asker.broken and asker.suggest("one more") == Searcher.FINISHED, "nobody works"


def test_workers_that_all_die_in_their_start_end_the_search(tmp_path: Path) -> None:
    asker = asker_at(tmp_path / "journal.jsonl", 1000, 2)
    for number in range(2 * trials.LIVES):
        assert not asker.broken
        Worker(asker, f"dies{number}").dies()
    assert asker.broken == 2 * trials.LIVES and asker.suggest("one more") == Searcher.FINISHED


def test_a_candidate_that_kills_its_workers_is_blamed_and_the_others_are_not(tmp_path: Path) -> None:
    """Three of them in one step: nine deaths of workers that had judged nothing, one after another."""
    asker = asker_at(tmp_path / "journal.jsonl", 40, 1)
    killers, number = {5, 6, 7}, 0
    worker = Worker(asker, "0").begins()
    while asker.suggest("?") != Searcher.FINISHED:
        asker.flying.pop("?", None)
        if killers & set(worker.given):
            worker.dies()
            number += 1
            worker = Worker(asker, str(number)).begins()
        else:
            worker.works()
    failed = {record.k for record in asker.journal.records if record.error}
    assert failed == killers and len(asker.journal.records) == 40 and number == 1 + 3 * len(killers)
    assert not asker.broken


def test_a_first_worker_that_dies_on_several_candidates_is_one_death(tmp_path: Path) -> None:
    asker = asker_at(tmp_path / "journal.jsonl", 40, 1)
    asker.batch = 8
    Worker(asker, "a").begins().dies()
    assert not asker.broken and asker.lost == 1


def test_what_comes_next_is_proposed_while_workers_work(tmp_path: Path) -> None:
    """A guided search takes seconds for a window's proposals, for which workers that are done would wait."""
    asker = asker_at(tmp_path / "journal.jsonl", 30, 1)
    worker = Worker(asker, "a").begins()
    asker.prepare()
    asker.prepare()
    assert list(asker.journal.proposals) == list(range(8)), "one step, and on disk as any proposal"
    worker.works()
    assert worker.given == [4, 5, 6, 7]
    asker.prepare()
    asker.deadline = 0.0
    assert worker.works()
    asker.prepare()
    assert len(asker.journal.proposals) == 12 and len(asker.journal.records) == 8, "nothing new is begun"


def test_a_worker_that_has_nothing_to_do_stays(tmp_path: Path) -> None:
    """Tune would stop it, and start another one ten seconds later."""
    asker = asker_at(tmp_path / "journal.jsonl", 12, 2, window=4)
    first, second = Worker(asker, "first").begins(), Worker(asker, "second").begins()
    for _ in range(10):
        assert not second.works()
    assert first.given == [0] and not second.given and asker.search.next_k == 4, "k waits for k - 4"
    ended = [False, False]
    for _ in range(30):
        ended = [end or each.works() for end, each in zip(ended, (first, second), strict=True)]
    assert ended == [True, True] and sorted(record.k for record in asker.journal.records) == list(range(12))


def test_no_more_workers_start_than_there_are_candidates(tmp_path: Path) -> None:
    asker = asker_at(tmp_path / "journal.jsonl", 3, 8)
    assert [asker.suggest(str(number)) is not None for number in range(5)] == [True] * 3 + [False] * 2


def test_what_fails_in_the_driver_is_not_hidden_in_an_error_of_tune(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say, which is told in one line."""
    asker = asker_at(tmp_path / "journal.jsonl", 20, 1)
    (tmp_path / "made").mkdir()

    def full(record: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asker.journal, "append", full)
    slow = tune.with_resources(tune.with_parameters(Slow, home=str(tmp_path / "made")), {"cpu": 1})
    with pytest.raises(OSError, match="No space left"):
        trials.run_trials(tuner_of(slow, asker, "search", tmp_path), asker, FENCE)
