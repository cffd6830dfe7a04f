"""What every search algorithm keeps, as functions over a way to make one: on a made-up problem that costs nothing to
judge.

    from nas.testing.search import CHECKS
    for check in CHECKS:
        check(MySearch)
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from nas.config.section import Section
from nas.search.constraints import ANYTHING, Constraints, CostFunction
from nas.search.core import Exhausted, Objective, Search, resume
from nas.search.journal import Candidate, Journal, Record
from nas.space import Arch, Choice, Space

BLOCKS = 6
WINDOW = 8
MANY = 140  # candidates in most checks: enough that any algorithm is past its beginning and breeds
OBJECTIVE = Objective("accuracy", "macs")
Judge = Callable[[Candidate], Record]


class Make(Protocol):
    """How a search is made: its class, with options of its own filled in."""

    def __hash__(self) -> int: ...

    def __call__(
        self,
        space: Space,
        cost: CostFunction,
        objective: Objective,
        constraints: Constraints = ANYTHING,
        options: Section | None = None,
        *,
        seed: int = 0,
        window: int = 32,
    ) -> Search: ...


def _choices() -> list[Choice]:
    """A depth, and for each block that is there a width and a kernel: 55,986 architectures."""
    choices = [Choice("depth", tuple(range(1, BLOCKS + 1)))]
    for block in range(BLOCKS):
        there = ("depth", tuple(range(block + 1, BLOCKS + 1)))
        choices += [Choice(f"block{block}.width", (8, 16, 24), there), Choice(f"block{block}.kernel", (3, 5), there)]
    return choices


SPACE = Space(_choices())


def cost(arch: Arch) -> dict[str, int]:
    """MACs and parameters of nothing in particular, larger with every choice."""
    params = sum(int(arch[f"block{n}.width"]) * int(arch[f"block{n}.kernel"]) ** 2 for n in range(int(arch["depth"])))
    return {"macs": 64 * params, "params": params}


def judge(candidate: Candidate) -> Record:
    """The record of a candidate, always the same: accuracy in percent grows with size, up to a luck of its own."""
    luck = int(hashlib.sha256(candidate.arch.id.encode()).hexdigest()[:8], 16) / 2**32
    accuracy = 100 * (1 - math.exp(-cost(candidate.arch)["params"] / 900)) - 8 * luck
    return Record(candidate.k, candidate.arch, {"accuracy": accuracy}, cost(candidate.arch), 0.0, None)


def fresh(make: Make, constraints: Constraints = ANYTHING, seed: int = 3, window: int = WINDOW) -> Search:
    return make(SPACE, cost, OBJECTIVE, constraints, seed=seed, window=window)


def proposals(
    search: Search,
    count: int = MANY,
    judged: Judge = judge,
    flight: int = 1,
    order: int = 0,
    journal: Journal | None = None,
) -> list[Arch]:
    """The first architectures of a search, in order of k.

    Args:
        judged: what comes of a candidate.
        flight: how many are judged at once; they finish in a random order.
        order: the seed of that order.
        journal: taken up first, and added to.
    """
    waiting, rng = resume(search, journal) if journal else [], np.random.default_rng(order)
    archs = {k: record.arch for k, record in enumerate(sorted(journal.records, key=lambda r: r.k))} if journal else {}
    archs |= {candidate.k: candidate.arch for candidate in waiting}
    while True:
        while len(waiting) < flight and search.next_k < count and (candidate := search.ask()) is not None:
            if journal:
                journal.append_proposals([candidate])
            waiting.append(candidate)
            archs[candidate.k] = candidate.arch
        if not waiting:
            assert search.next_k >= count, f"ask() gives None at candidate {search.next_k}, though every record is told"
            return [archs[k] for k in sorted(archs)]
        record = judged(waiting.pop(int(rng.integers(len(waiting)))))
        search.tell(record)
        if journal:
            journal.append(record)


@cache
def undisturbed(make: Make) -> list[Arch]:
    """What most checks compare with; a search that learns from its history takes seconds for it."""
    return proposals(fresh(make))


def assert_same(found: list[Arch], wanted: list[Arch], why: str) -> None:
    """The same architectures in the same order; otherwise tells where they part."""
    for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one == other, f"{why}: candidate {k} is {one} in one and {other} in the other"


def check_identity(make: Make) -> None:
    """A search has a name, a tag of its own for its draws, and an identity that JSON carries.

    Look at `name`, `tag` and `identity`: plain values only, and every option that changes what is proposed.
    """
    search = fresh(make)
    assert isinstance(search.name, str) and search.name, f"name is {search.name!r}; it must be a text"
    assert isinstance(search.tag, int) and search.tag >= 0, f"tag is {search.tag!r}; it must be a whole number from 0"
    back = json.loads(json.dumps(search.identity))
    assert back == search.identity, f"identity is {search.identity}, and {back} after JSON"


def check_repeats(make: Make) -> None:
    """Candidate k is a function of (seed, k) and of the records told: twice the same, and otherwise with another seed.

    Look for a generator that is not the one given to `draws`, for the order of a set, and for the time.
    """
    first, again, other = undisturbed(make), proposals(fresh(make)), proposals(fresh(make, seed=4))
    assert_same(again, first, "two searches of one seed")
    assert first != other, f"seeds 3 and 4 propose the same {MANY} architectures"


def check_window(make: Make) -> None:
    """Candidate k is proposed from the records of candidates 0 to k - W alone: later ones may say what they like.

    Look for anything kept from `tell` or `ask`; `draws` is given all that it may know.
    """
    known = MANY - 2 * WINDOW

    def upside_down(candidate: Candidate) -> Record:
        record = judge(candidate)
        assert record.metrics is not None
        return (
            record if candidate.k <= known else replace(record, metrics={"accuracy": 100 - record.metrics["accuracy"]})
        )

    count = known + WINDOW + 1
    wanted, found = proposals(fresh(make), count), proposals(fresh(make), count, upside_down)
    assert_same(found, wanted, f"W = {WINDOW}, and records after candidate {known} changed")


def check_waits(make: Make) -> None:
    """`ask` gives W candidates while nothing is told, then None until the oldest of them is.

    Look for an `ask` of your own; the one of `Search` keeps to this.
    """
    search = fresh(make)
    asked = [search.ask() for _ in range(WINDOW + 1)]
    given = sum(candidate is not None for candidate in asked)
    assert given == WINDOW and asked[-1] is None, f"W is {WINDOW}, and {given} candidates were given before any record"


def check_order(make: Make) -> None:
    """Who finishes first, and how many are judged at once, changes nothing.

    Look for anything kept from `tell`, whose order is chance.
    """
    wanted = undisturbed(make)
    for flight, order in ((2, 1), (WINDOW, 2), (WINDOW, 3)):
        assert_same(
            proposals(fresh(make), flight=flight, order=order), wanted, f"{flight} judged at once, order {order}"
        )


def check_replay(make: Make) -> None:
    """A search that is killed and taken up from its journal goes on as if nothing had happened.

    Look for state that a fresh search does not come to by proposing the same candidates again.
    """
    wanted = undisturbed(make)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        for count, flight in ((7, 3), (MANY // 2, WINDOW), (MANY, 2)):
            with Journal(path, fresh(make).identity) as journal:
                found = proposals(fresh(make), count, flight=flight, order=count, journal=journal)
        assert_same(found, wanted, "taken up twice from the journal")


def check_failures(make: Make) -> None:
    """Candidates that fail, give NaN or infinity do not end a search, be it the first ones or most of them.

    Look at `draws`: `points` has NaN where a candidate failed, and may hold nothing else; it may be empty too.
    """

    def flaky(candidate: Candidate) -> Record:
        record = judge(candidate)
        match int(candidate.arch.id, 16) % 4 if candidate.k >= 2 * WINDOW else 0:
            case 0:
                return replace(record, metrics=None, cost={}, error="out of memory")
            case 1:
                return replace(record, metrics={"accuracy": (math.nan, math.inf)[candidate.k % 2]})
        return record

    archs = proposals(fresh(make), judged=flaky)
    assert_same(
        proposals(fresh(make), judged=flaky, flight=WINDOW), archs, "with failures, one and many judged at once"
    )


def check_new(make: Make) -> None:
    """No architecture is proposed twice.

    Look for an `ask` of your own; the one of `Search` skips what was proposed.
    """
    archs = undisturbed(make)
    assert len(set(archs)) == len(archs), f"{len(archs)} candidates are {len(set(archs))} different architectures"


def check_constraints(make: Make) -> None:
    """Every candidate keeps the constraints, and other ones from the candidate on from which they hold.

    Look for an `ask` of your own; the one of `Search` takes the first of `draws` that keeps them.
    """
    most = cost(SPACE.largest())["macs"]
    narrow, wide = Constraints({"macs": (0.3 * most, 0.35 * most)}), Constraints({"macs": (None, 0.2 * most)})
    search = fresh(make, narrow)
    archs = proposals(search, MANY // 2)
    start = search.extend(wide)
    archs += proposals(search, MANY)
    for k, arch in enumerate(archs):
        allowed, found = wide if k >= start else narrow, cost(arch)
        assert allowed.violation(found) == 0, (
            f"candidate {k} costs {found['macs']:,} MACs; its constraints are {allowed}"
        )


def check_exhausted(make: Make) -> None:
    """In a tiny space every architecture is proposed once, and then `Exhausted` ends the search.

    Look at `draws`: it must be endless, and give up on nothing; the search itself sees when all is proposed.
    """
    space = Space([Choice("depth", (1, 2, 3)), Choice("width", (8, 16))])
    search = make(space, lambda arch: {"macs": int(arch["depth"] * arch["width"])}, OBJECTIVE, window=2)
    found: list[Arch] = []
    try:
        while len(found) <= space.cardinality:
            candidate = search.ask()
            assert candidate is not None, f"ask() gives None at candidate {search.next_k}, though every record is told"
            found.append(candidate.arch)
            search.tell(Record(candidate.k, candidate.arch, {"accuracy": 1.0}, {"macs": 1}, 0.0, None))
    except Exhausted:
        assert len(found) == space.cardinality, f"it ended after {len(found)} of {space.cardinality} architectures"
        return
    raise AssertionError(f"{len(found)} candidates in a space of {space.cardinality}, and no end")


def check_first(make: Make) -> None:
    """What `begin_with` gives is proposed first, and then the algorithm begins as it would have.

    Look at `draws`: its k counts from the algorithm's own first candidate on.
    """
    given = [SPACE.sample(np.random.default_rng(9)), SPACE.largest()]
    search = fresh(make)
    search.begin_with(given)
    asked = [search.ask() for _ in given]
    assert_same([candidate.arch for candidate in asked if candidate], given, "begun with two architectures")
    nothing = np.empty((0, len(OBJECTIVE.names))), np.empty(0)
    firsts = [next(iter(each.draws(0, (), *nothing, np.random.default_rng(3)))) for each in (search, fresh(make))]
    assert_same(firsts[:1], firsts[1:], "the algorithm's own first candidate, after two that were given")


def check_globals(make: Make) -> None:
    """Neither numpy's, torch's nor Python's global generator is drawn from or seeded.

    Look for `np.random`, `random` and `torch.rand` in the algorithm or in a library that it calls.
    """

    def states() -> dict[str, str]:
        return {
            "random": str(random.getstate()),
            "numpy.random": str(np.random.get_state()[1].tolist()),  # type: ignore[index]
            "torch": str(torch.get_rng_state().tolist()),
        }

    before = states()
    wanted = proposals(fresh(make))
    touched = [name for name, state in states().items() if state != before[name]]
    assert not touched, f"the global generator of {', '.join(touched)} was used"
    drawn = np.random.get_state()
    np.random.seed(11)
    try:
        assert_same(proposals(fresh(make)), wanted, "with another global seed of numpy")
    finally:
        np.random.set_state(drawn)


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_identity,
    check_repeats,
    check_window,
    check_waits,
    check_order,
    check_replay,
    check_failures,
    check_new,
    check_constraints,
    check_exhausted,
    check_first,
    check_globals,
)
