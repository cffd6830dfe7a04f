"""Finding an architecture that is new and within constraints, in a bounded number of tries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from nas.space import Arch, Number, Space

TRIES = 300  # draws for one candidate before walking
WALKS = 20  # walks into the budget after that
SMALL = 4096  # spaces up to this many architectures are listed, so that their end is exact


def every(space: Space) -> list[Arch]:
    """All architectures of a small space, in the order of its choices."""
    partial: list[dict[str, Number]] = [{}]
    for name, choice in space.choices.items():
        longer = []
        for picked in partial:
            active = choice.active_if is None or picked.get(choice.active_if[0]) in choice.active_if[1]
            longer += [picked | {name: value} for value in choice.values] if active else [picked]
        partial = longer
    return [Arch(picked) for picked in partial]


def find(
    space: Space, violation: Callable[[Arch], float], seen: set[Arch], draws: Iterator[Arch], rng: np.random.Generator
) -> Arch | None:
    """The first of `draws` that is new and violates nothing; failing that, one found another way; None where there is
    none.

    A small space is listed and one of what is left is drawn. In a large one `WALKS` further draws are walked into the
    budget, which reaches windows that hold less than one draw in `TRIES`, though not uniformly.
    """
    for arch in islice(draws, TRIES):
        if arch not in seen and violation(arch) == 0:
            return arch
    if space.cardinality <= SMALL:
        left = [arch for arch in every(space) if arch not in seen and violation(arch) == 0]
        return left[int(rng.integers(len(left)))] if left else None
    walks = (walk(space, arch, violation, seen, rng) for arch in islice(draws, WALKS))
    return next((arch for arch in walks if arch is not None), None)


def walk(
    space: Space, arch: Arch, violation: Callable[[Arch], float], seen: set[Arch], rng: np.random.Generator
) -> Arch | None:
    """Small mutations that never violate the budget more, until one is new and within it; None after 20 steps a
    choice."""
    missed = violation(arch)
    for _ in range(20 * len(space.choices)):
        step = space.mutate(arch, rng, 1 / len(arch))
        if (now := violation(step)) <= missed:
            arch, missed = step, now
            if missed == 0 and arch not in seen:
                return arch
    return None


def samples(space: Space, rng: np.random.Generator) -> Iterator[Arch]:
    """Uniform draws without end."""
    while True:
        yield space.sample(rng)


def leaning(space: Space, rng: np.random.Generator) -> Arch:
    """A random architecture that leans to the small or to the large, so that the whole range of costs is seen: of
    uniform draws all are near its middle."""
    lean, choices = rng.random(), space.choices
    return space.arch({name: c.values[rng.binomial(len(c.values) - 1, lean)] for name, c in choices.items()})


def kind(name: str) -> str:
    """What a choice is about: the last part of its name without numbers. Of ``stage2.depth`` it is ``depth``, of
    ``kernel_7`` it is ``kernel_``."""
    return re.sub(r"\d+", "", name.rpartition(".")[2])


def as_a_whole(space: Space, rng: np.random.Generator) -> Arch:
    """A random architecture whose choices of one kind (all depths, all kernels) stand at the same place between their
    least and their most."""
    kinds = list(dict.fromkeys(map(kind, space.choices)))
    place = dict(zip(kinds, rng.random(len(kinds)), strict=True))
    return space.arch({name: c.values[int(place[kind(name)] * len(c.values))] for name, c in space.choices.items()})
