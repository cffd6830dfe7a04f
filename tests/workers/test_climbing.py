"""Rungs of a search: who is scored again after some steps does not depend on order, on numbers in flight, or on
crashes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.config import plugins
from nas.config.experiment import ExperimentError, load_experiment
from nas.results.choose import pick
from nas.results.history import History
from nas.search.constraints import Constraints
from nas.search.core import Search, resume
from nas.search.journal import Journal
from nas.search.pareto import dominates
from nas.search.rungs import Ladder, Rung
from nas.space import Arch
from nas.workers.trials import Asker
from tests.synthetic import OBJECTIVE, SPACE, accuracy, cost

RUNGS = (Rung(), Rung(0.25, 100), Rung(0.5, 300))
CANDIDATES = 60
FENCE: Any = SimpleNamespace(stopping=lambda: False, check=lambda: None)


def scored(arch: Arch, steps: int) -> dict[str, float]:
    """Noise on inherited weights that training takes away; some architectures fail at that."""
    noise = (zlib.crc32(arch.id.encode()) % 1000 - 500) / 250
    if steps and zlib.crc32(arch.id.encode()) % 7 == 0:
        return {"accuracy": float("nan")}
    return {"accuracy": accuracy(arch) + (noise if not steps else 5 + steps / 100 + noise / steps)}


def opened(path: Path, algorithm: str) -> tuple[Search, Journal, Asker]:
    kind: type[Search] = plugins.find("search", algorithm)
    search = kind(SPACE, cost, OBJECTIVE, seed=1, window=8, rungs=RUNGS)
    journal = Journal(path, {"supernet": "0" * 64, "space": "synthetic", **search.identity})
    asker = Asker(search, journal, resume(search, journal), CANDIDATES, 4, None, float("inf"), lambda _: None, FENCE)
    return search, journal, asker


def searched(path: Path, algorithm: str, trials: int, seed: int, killed: float = 0.0) -> Journal:
    """A whole search with so many trials at a time, which end in random order; after each, the driver is killed with
    the probability `killed`, with whatever is in flight."""
    rng = np.random.default_rng(seed)
    _, journal, asker = opened(path, algorithm)
    flying: dict[str, list[Any]] = {}
    for number in range(10_000):
        while len(flying) < trials and isinstance(asker.suggest(str(number)), dict):
            given: list[Any] = []
            asker.began(str(number), lambda told, given=given: given.extend(told["candidates"]))
            flying[str(number)] = given
            number += 1000
        if not flying:
            return journal
        name = list(flying)[int(rng.integers(len(flying)))]
        rows = [
            {"k": k, "metrics": scored(Arch(arch), steps), "parts": [], "seconds": 1.0, "error": None}
            for k, arch, steps in flying[name]
        ]
        flying[name].clear()
        if asker.over(name, {"judged": rows}):
            flying.pop(name)
            asker.on_trial_complete(name, {"judged": []})
        if rng.random() < killed:
            journal.close()
            _, journal, asker = opened(path, algorithm)
            flying.clear()
    raise AssertionError("the search does not end")


def told(journal: Journal) -> list[dict[str, Any]]:
    return [{**each.to_json(), "seconds": 0} for each in sorted(journal.records, key=lambda record: record.k)]


@pytest.mark.parametrize("algorithm", ["evolution", "guided", "nsga2"])
def test_who_climbs_depends_on_nothing_but_the_seed(algorithm: str, tmp_path: Path) -> None:
    wanted = told(searched(tmp_path / "1", algorithm, 1, 0))
    assert len(wanted) == CANDIDATES
    for trials, killed in ((2, 0.0), (4, 0.1), (3, 0.1)):
        assert told(searched(tmp_path / f"{trials}-{killed}", algorithm, trials, trials, killed)) == wanted
    reached = np.array([len(each.get("lower", ())) for each in wanted])
    late = reached[16:]
    assert 0 < (late >= 1).sum() < 0.8 * len(late) and 0 < (late == 2).sum() < (late >= 1).sum()
    failed = [each for each in wanted if each["metrics"] is None]
    assert failed and all(each["error"] and each["lower"] for each in failed), "what it had before stands there"


def test_fronts_bars_and_picks_are_of_the_last_rung_alone(tmp_path: Path) -> None:
    journal = searched(tmp_path / "journal", "evolution", 2, 0)
    history = History(tmp_path / "journal")
    history.update()
    top = [record for record in journal.records if len(record.lower) == 2 and record.metrics is not None]
    points = [history.point(record) for record in top]
    best = {r.id for r, p in zip(top, points, strict=True) if not any(dominates(other, p) for other in points)}
    assert {record.id for record in history.front()} == best
    assert history.progress[-1].front_size == len(best)
    assert all(history.steps(record) == 300 for record in history.front())
    assert pick(history, Constraints()).k in {record.k for record in top}
    search, again, _ = opened(tmp_path / "journal", "evolution")
    asked = search.ask()
    known = {r.k: r for r in again.records if asked and r.k <= asked.k - search.window and len(r.lower) == 2}
    bar = {history.point(r) for r in known.values() if r.metrics is not None}
    assert asked and asked.bar and set(asked.bar) <= bar


def test_how_many_climb() -> None:
    """Of a row in which each is better than the next: those before whom less than the next rung's share stands."""
    ladder = Ladder((Rung(), Rung(0.25, 10), Rung(0.5, 20)), 2)
    for number in range(7):
        ladder.append([(float(number), float(number))] * 2)

    def climbing(rung: int) -> list[int]:
        places = [place for place in range(8) if ladder.climbs((place - 0.5, place - 0.5), rung, 7)]
        assert not ladder.climbs((float("nan"), 0.0), rung, 7)
        return places

    assert climbing(0) == [0, 1] and climbing(1) == [0, 1, 2, 3] and climbing(2) == []


def test_who_did_not_climb_stands_where_it_would_be_expected() -> None:
    ladder = Ladder((Rung(), Rung(0.5, 10)), 2)
    ladder.append([(5.0, 1.0)])  # nobody has climbed yet
    ladder.append([(6.0, 2.0), (4.0, 2.0)])
    ladder.append([(7.0, 3.0)])
    ladder.append([(9.0, 4.0), (5.0, 4.0)])
    ladder.append([(9.0, 5.0), (np.nan, np.nan)])  # failed when it was trained
    ladder.append([(7.0, 6.0)])
    rows = ladder.expected.first(6)
    assert rows[:, 0].tolist()[:4] == [5.0, 4.0, 5.0, 5.0] and np.isnan(rows[4]).all()
    assert rows[5].tolist() == [4.0, 6.0], "the median of gains of 2 and 4"
    assert np.isnan(ladder.scored[1].first(6)[[0, 2, 4, 5]]).all()


def test_the_better_share_climbs() -> None:
    """By nondominated rank: (5, 5) is dominated by two of the three before it."""
    ladder = Ladder((Rung(), Rung(0.5, 10)), 2)
    for point in ((1.0, 9.0), (4.0, 4.0), (5.0, 3.0)):
        ladder.append([point])
    assert ladder.climbs((2.0, 5.0), 0, 3) and not ladder.climbs((5.0, 5.0), 0, 3)
    assert ladder.climbs((5.0, 5.0), 0, 0), "where nobody is known, everybody is the best"
    assert not ladder.climbs((np.nan, np.nan), 0, 0) and not ladder.climbs((1.0, 1.0), 1, 3)


@pytest.mark.parametrize(
    ("rungs", "told"),
    [
        ("[[0.5, 0]]", "1 for the first rung"),
        ("[[1, 0], [1.5, 100]]", "between 0 and 1"),
        ("[[1, 100], [0.5, 100]]", "more from rung to rung"),
        ("[]", "at least 1"),
    ],
)
def test_rungs_that_are_none_are_refused(rungs: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        load_experiment("bignas-digits", [f"search.rungs={rungs}"])


def test_rungs_that_train_need_to_know_how() -> None:
    with pytest.raises(ExperimentError, match="no search.recipe says how"):
        load_experiment("bignas-digits", ["search.rungs=[[1, 10]]"])


@pytest.mark.parametrize(
    "forge",
    [
        lambda record: {**record, "lower": [{"accuracy": 1.0}] * 2},
        lambda record: {**record, "metrics": None},
        lambda record: {**record, "arch": dict(SPACE.smallest()), "id": SPACE.smallest().id},
    ],
)
def test_a_forged_climb_is_refused(forge: Callable[[Any], Any], tmp_path: Path) -> None:
    searched(tmp_path / "journal", "evolution", 1, 0).close()
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    at = next(number for number, line in enumerate(lines) if "climbs" in line and line["climbs"]["k"] > 20)
    kept = lines[: at + 1]
    kept[-1] = {"climbs": forge(kept[-1]["climbs"])}
    (tmp_path / "forged").write_text("".join(json.dumps(line) + "\n" for line in kept))
    with pytest.raises(ValueError, match="does not climb as the file has it"):
        opened(tmp_path / "forged", "evolution")
