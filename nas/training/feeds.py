"""The training data as a recipe takes it: batch after batch, each a pure function of the seed and its number."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor

from nas.draws import permutation
from nas.recipes.recipe import Recipe
from nas.tasks.task import Examples


class Feed:
    """One share of the training data, endlessly: batch number n of this rank, a pure function of (seed, n).

    Args:
        split: where examples come from.
        rows: int64, which of them are this feed's.
        batch: examples a step over all ranks.
        rank, world: whose share of each batch this is.
        name: of the feed; two feeds have unrelated orders.
    """

    def __init__(
        self, split: Examples, rows: np.ndarray, batch: int, rank: int, world: int, seed: int, name: str
    ) -> None:
        self.split, self.rows, self.batch, self.seed, self.name = split, rows, batch, seed, name
        self.mine = slice(rank * batch // world, (rank + 1) * batch // world)
        self.an_epoch = len(rows) // batch

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, self.an_epoch)
        order = permutation(len(self.rows), self.seed, f"order {self.name}", epoch)
        rows = self.rows[order[place * self.batch : (place + 1) * self.batch][self.mine]]
        return self.split.batch(rows, epoch)


def make_feeds(recipe: Recipe, split: Examples, batch: int, rank: int, world: int, seed: int) -> dict[str, Feed]:
    """The feeds that a recipe asks for: disjoint shares of the training examples."""
    rows, feeds, start = permutation(len(split), seed, "feeds"), {}, 0.0
    for name, share in recipe.feeds.items():
        part = np.sort(rows[round(start * len(rows)) : round((start + share) * len(rows))])
        feeds[name] = Feed(split, part, batch, rank, world, seed, name)
        start += share
    return feeds


def prefetched(feeds: Mapping[str, Feed], first: int) -> Generator[dict[str, tuple[Tensor, Tensor]]]:
    """The batches of step `first` and on, one prepared ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:

        def load(number: int) -> dict[str, tuple[Tensor, Tensor]]:
            return {name: feed(number) for name, feed in feeds.items()}

        ahead = pool.submit(load, first)
        while True:
            first += 1
            batch, ahead = ahead.result(), pool.submit(load, first)
            yield batch
