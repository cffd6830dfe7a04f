"""Searches find something, and are what their names, options and identities say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.search.constraints import Constraints
from nas.search.core import Objective, resume
from nas.search.journal import Candidate, Journal
from nas.search.pareto import hypervolume
from nas.search.sampling import as_a_whole, kind
from nas.space import Arch, Choice, Space
from tests.search.searching import HEADER, NAMES, _archs, fresh, searcher, tiny, width_cost
from tests.synthetic import OBJECTIVE, REFERENCE, SCALE, SPACE, accuracy, cost, evaluate, exact_cost, objectives

SOON = {"alphanet": {"initial": 20}, "coarse_to_fine": {"coarse": 20}, "evolution": {}, "nsga2": {"population": 20}}


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
