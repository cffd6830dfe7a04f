"""Feeds: batches are a function of seed and number, shared by workers; how many steps a training has."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.training.feeds import Feed, make_feeds
from nas.training.loop import total_steps
from tests.training.tiny import experiment

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


class Numbers:
    """A split whose examples are their numbers."""

    at_once = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rows), torch.full((len(rows),), -1 if epoch is None else epoch)


def feeds_of(
    shares: dict[str, float], count: int = 103, batch: int = 12, rank: int = 0, world: int = 1, seed: int = 0
) -> dict[str, Feed]:
    return make_feeds(SimpleNamespace(feeds=shares), Numbers(count), batch, rank, world, seed)  # type: ignore[arg-type]


def rows_of(feed: Feed, number: int) -> list[int]:
    return feed(number)[0].tolist()


def test_an_epoch_goes_once_through_the_data() -> None:
    """And drops the rest of a batch; the next epoch has another order and another rest."""
    feed = feeds_of({"train": 1.0})["train"]
    epochs = [[row for number in range(8 * epoch, 8 * epoch + 8) for row in rows_of(feed, number)] for epoch in (0, 1)]
    assert feed.an_epoch == 8
    assert [len(set(rows)) for rows in epochs] == [96, 96]
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])
    assert [feed(number)[1].unique().tolist() for number in (0, 7, 8, 16)] == [[0], [0], [1], [2]], (
        "the augmentation's epoch"
    )


def test_batches_are_a_function_of_seed_and_number() -> None:
    """Whatever was asked before: a resumed run sees what an undisturbed one sees."""
    one, other = feeds_of({"train": 1.0})["train"], feeds_of({"train": 1.0})["train"]
    wanted = [rows_of(one, number) for number in range(20)]
    assert [rows_of(other, number) for number in reversed(range(20))] == wanted[::-1]
    assert rows_of(feeds_of({"train": 1.0}, seed=1)["train"], 0) != wanted[0]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_share_the_same_batch(world: int) -> None:
    """Rank by rank, the batch of one worker: what is learnt does not depend on how many there are."""
    alone = feeds_of({"train": 1.0})["train"]
    together = [feeds_of({"train": 1.0}, rank=rank, world=world)["train"] for rank in range(world)]
    for number in (0, 5, 9):
        parts = [rows_of(feed, number) for feed in together]
        assert {len(part) for part in parts} == {12 // world}
        assert sum(parts, []) == rows_of(alone, number)


def test_feeds_are_disjoint_and_leave_nothing_out() -> None:
    for shares in ({"weights": 0.5, "alpha": 0.5}, {"a": 0.1, "b": 0.2, "c": 0.7}):
        feeds = feeds_of(shares, batch=4)
        parts = [set(feed.rows.tolist()) for feed in feeds.values()]
        assert sum(map(len, parts)) == 103 and set.union(*parts) == set(range(103))
        assert [abs(len(part) - 103 * share) <= 1 for part, share in zip(parts, shares.values(), strict=True)] == [
            True
        ] * len(parts)
        assert all(set(rows_of(feed, 3)) <= part for feed, part in zip(feeds.values(), parts, strict=True))
    drawn = feeds_of({"weights": 0.5, "alpha": 0.5})["weights"].rows
    assert drawn.max() > 60 > drawn.min(), "a share is drawn, not cut off the front"


def test_steps_of_a_training() -> None:
    settings = experiment("recipe.epochs=2.5")
    recipe = SimpleNamespace(feeds={"train": 1.0})
    assert total_steps(settings, 1200, recipe) == 15  # type: ignore[arg-type]
    assert total_steps(settings, 1399, recipe) == 15  # type: ignore[arg-type]
    assert total_steps(settings, 1200, SimpleNamespace(feeds={"a": 0.5, "b": 0.5})) == 8  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch 200 is more than the 199 training examples"):
        total_steps(settings, 199, recipe)  # type: ignore[arg-type]
