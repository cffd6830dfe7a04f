"""Search spaces: canonical form, draws, encoding, counting and the id that never changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.search.sampling import every
from nas.space import Arch, Choice, Number, Space


@st.composite
def spaces(draw: st.DrawFn, most: int = 6) -> Space:
    """Small spaces whose choices may depend on earlier ones, which may depend on others themselves."""
    choices: list[Choice] = []
    values: tuple[Number, ...]
    for index in range(draw(st.integers(1, most))):
        values = tuple(sorted(draw(st.sets(st.sampled_from((0, 1, 2, 3, 0.5)), min_size=1, max_size=3))))
        needs: tuple[str, tuple[Number, ...]] | None = None
        parent = draw(st.sampled_from([None, *choices]))
        if parent is not None:
            needs = (parent.name, tuple(draw(st.sets(st.sampled_from(parent.values), min_size=1))))
        choices.append(Choice(f"c{index}", values, needs))
    return Space(choices)


seeds = st.integers(0, 2**32 - 1)


@given(spaces(), seeds)
def test_canonical_form_is_idempotent(space: Space, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    assert space.arch(arch) == arch
    assert space.arch(arch).id == arch.id


@given(spaces(), seeds)
def test_dropped_choices_do_not_count(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full = {name: choice.values[rng.integers(len(choice.values))] for name, choice in space.choices.items()}
    arch = space.arch(full)
    other = {
        name: arch.get(name, choice.values[rng.integers(len(choice.values))]) for name, choice in space.choices.items()
    }
    assert space.arch(other) == arch


@given(spaces(), seeds, st.floats(0, 1))
def test_mutants_are_valid_and_different(space: Space, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    arch = space.sample(rng)
    mutant = space.mutate(arch, rng, rate)
    assert space.arch(mutant) == mutant
    fixed = all(len(space.choices[name].values) == 1 for name in arch)
    assert (mutant == arch) == fixed


@given(spaces(), seeds)
def test_crossing_is_valid_and_takes_from_the_parents(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng), space.sample(rng)
    child = space.cross(first, second, rng)
    assert space.arch(child) == child
    for name, value in child.items():
        own = [parent[name] for parent in (first, second) if name in parent]
        assert not own or value in own
    assert space.cross(first, first, rng) == first


@given(spaces(most=5))
def test_cardinality_and_encoding_against_enumeration(space: Space) -> None:
    full: list[dict[str, Number]] = [{}]
    for name, choice in space.choices.items():
        full = [picked | {name: value} for picked in full for value in choice.values]
    archs = {space.arch(picked) for picked in full}
    assert space.cardinality == len(archs)
    assert set(every(space)) == archs and len(every(space)) == len(archs)
    assert len({arch.id for arch in archs}) == len(archs)
    assert len({space.encode(arch).tobytes() for arch in archs}) == len(archs)


@given(spaces(), seeds)
def test_encoding_is_one_hot(space: Space, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    vector = space.encode(arch)
    assert vector.shape == (sum(len(choice.values) for choice in space.choices.values()),)
    assert set(vector) <= {0.0, 1.0} and vector.sum() == len(arch)


@given(spaces(), seeds)
def test_json_round_trip(space: Space, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    back = space.arch(json.loads(json.dumps(dict(arch))))
    assert back == arch and back.id == arch.id and hash(back) == hash(arch)


@given(spaces(), seeds)
def test_one_seed_one_draw(space: Space, seed: int) -> None:
    assert space.sample(np.random.default_rng(seed)) == space.sample(np.random.default_rng(seed))


@given(spaces())
def test_ends_are_the_first_and_last_values(space: Space) -> None:
    assert all(value == space.choices[name].values[0] for name, value in space.smallest().items())
    assert all(value == space.choices[name].values[-1] for name, value in space.largest().items())


def test_golden_id() -> None:
    # hashlib.sha256(b'{"depth":2,"stage1.kernel":3,"width":0.5}').hexdigest()[:12]
    gone = Choice("gone", (1, 2), ("depth", (1,)))
    space = Space([Choice("width", (0.5, 1)), Choice("depth", (1, 2)), Choice("stage1.kernel", (3, 5)), gone])
    arch = space.arch({"width": 0.5, "stage1.kernel": 3, "depth": 2, "gone": 1})
    assert arch.id == "dd1cc959e229"


def test_an_equal_number_of_another_type_is_the_same_network() -> None:
    space = Space([Choice("width", (1, 2))])
    assert space.arch({"width": 1.0}).id == space.arch({"width": 1}).id == space.smallest().id


def test_an_arch_is_frozen() -> None:
    arch = Arch({"depth": 2})
    with pytest.raises(TypeError):
        arch["depth"] = 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([Choice("a", (1,)), Choice("a", (2,))], "two choices named 'a'"),
        ([Choice("a", (1,), ("b", (1,))), Choice("b", (1,))], "does not stand before it"),
        ([Choice("a", (1,)), Choice("b", (1,), ("a", (2,)))], "which it never has"),
    ],
)
def test_wrong_spaces_are_refused(choices: list[Choice], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(choices)


@pytest.mark.parametrize("values", [(), (1, 1), (1, 1.0)])
def test_wrong_choices_are_refused(values: tuple[Number, ...]) -> None:
    with pytest.raises(ValueError, match="'a'"):
        Choice("a", values)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"deptt": 1}, "no choice 'deptt'; near it: depth"),
        ({}, "'depth' is missing; allowed: \\(1, 2\\)"),
        ({"depth": 3}, "is 3; allowed: \\(1, 2\\)"),
    ],
)
def test_wrong_architectures_are_refused(given_: dict[str, Number], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space([Choice("depth", (1, 2))]).arch(given_)
