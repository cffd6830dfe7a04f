"""Searchers by name, for the experiment file."""

from __future__ import annotations

from typing import Any

from nas.search.core import ANYTHING, Budget, Cost, Objective, Search
from nas.search.evolution import Evolution
from nas.search.fittest import Fittest
from nas.search.random import Random
from nas.space import Space

SEARCHERS: dict[str, type[Search]] = {"evolution": Evolution, "fittest": Fittest, "random": Random}


def searcher(
    name: str, space: Space, cost: Cost, objective: Objective, budget: Budget = ANYTHING, *, seed: int = 0, window: int = 32, **options: Any
) -> Search:
    """The search called `name`; `options` are its own.

    Raises:
        ValueError: an unknown name, or what the search refuses.
        TypeError: an option that the search does not have.
    """
    if name not in SEARCHERS:
        raise ValueError(f"there is no search {name!r}; known: {', '.join(SEARCHERS)}")
    return SEARCHERS[name](space, cost, objective, budget, seed=seed, window=window, **options)
