"""What tests of searches share: a search by name, driven over the synthetic problem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nas.config import plugins
from nas.search.constraints import Constraints, CostFunction
from nas.search.core import Objective, Search, resume
from nas.search.journal import Candidate, Journal, Record
from nas.space import Arch, Choice, Space
from tests.synthetic import OBJECTIVE, SPACE, cost, evaluate

HEADER = {"supernet": "0" * 64, "space": "synthetic", "seed": 3}
NAMES = ("alphanet", "coarse_to_fine", "evolution", "fittest", "guided", "nsga2", "random", "regularized")


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


def _asked(search: Search) -> Candidate:
    candidate = search.ask()
    assert candidate is not None
    return candidate
