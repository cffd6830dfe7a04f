"""The training data as a recipe takes it: batch after batch, each a pure function of the seed and its number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import wait

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas.draws import permutation
from nas.recipes.recipe import Recipe
from nas.tasks.task import Examples, compact

PRELOADED = (__name__, "nas.tasks.classification", "torchvision.transforms.v2")  # imported once for all loaders
Batches = dict[str, tuple[Tensor, Tensor]]


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

        self._ordered: tuple[int, np.ndarray] = -1, rows

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs, as `compact` gives them, and targets."""
        epoch, place = divmod(number, self.an_epoch)
        if epoch != self._ordered[0]:  # a million examples take a tenth of a second
            self._ordered = epoch, self.rows[permutation(len(self.rows), self.seed, f"order {self.name}", epoch)]
        rows = self._ordered[1][place * self.batch : (place + 1) * self.batch][self.mine]
        return compact(self.split, rows, epoch)


def make_feeds(recipe: Recipe, split: Examples, batch: int, rank: int, world: int, seed: int) -> dict[str, Feed]:
    """The feeds that a recipe asks for: disjoint shares of the training examples."""
    rows, feeds, start = permutation(len(split), seed, "feeds"), {}, 0.0
    for name, share in recipe.feeds.items():
        part = np.sort(rows[round(start * len(rows)) : round((start + share) * len(rows))])
        feeds[name] = Feed(split, part, batch, rank, world, seed, name)
        start += share
    return feeds


class Steps(Dataset[Batches | Exception]):
    """What all feeds give for a step, by its number; or the exception that came instead, to be raised elsewhere."""

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        self.feeds = dict(feeds)

    def __getitem__(self, number: int) -> Batches | Exception:
        try:
            return {name: feed(number) for name, feed in self.feeds.items()}
        except Exception as error:
            return error


def prefetched(feeds: Mapping[str, Feed], first: int, loaders: int = 0, pin: bool = False) -> Generator[Batches]:
    """The batches of step `first` and on, prepared ahead: the same ones whoever prepares them.

    Args:
        loaders: processes that prepare them, each a whole step, two ahead; 0: a thread, one ahead.
        pin: into memory from which a GPU can fetch them by itself.
    """
    found = _by_processes(feeds, first, loaders, pin) if loaders else _by_thread(feeds, first)
    for batches in found:
        if isinstance(batches, Exception):
            raise batches
        yield batches


def _by_thread(feeds: Mapping[str, Feed], first: int) -> Iterator[Batches | Exception]:
    steps = Steps(feeds)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(steps.__getitem__, first)
        for number in count(first + 1):
            batches, ahead = ahead.result(), pool.submit(steps.__getitem__, number)
            yield batches


def _by_processes(feeds: Mapping[str, Feed], first: int, loaders: int, pin: bool) -> Iterator[Batches | Exception]:
    """From processes of one thread each, which end with this one, however that ends.

    They are forked from a process that has no threads: this one has those of gloo, DeepSpeed and Ray, whose locks a
    fork would copy as they stand.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    loader = DataLoader(
        Steps(feeds),
        batch_size=None,
        sampler=count(first),
        num_workers=loaders,
        pin_memory=pin,
        worker_init_fn=_begin,
        multiprocessing_context=context,
        generator=torch.Generator(),  # its seed is drawn from the global one otherwise
    )
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:  # of whatever it was about to send
        raise RuntimeError(
            f"a process that loads images has died: {error}; where memory ran short, lower train.loaders (0: a thread)"
        ) from error


def _begin(loader: int) -> None:
    """What a loader does first. Ctrl-C reaches all processes of a terminal; this one ends with the one that it works
    for, which torch's own watch would not see: it looks at the parent, and that is the process that has forked it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    served = multiprocessing.parent_process()
    assert served is not None

    def follow() -> None:
        wait([served.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def loaders_of(wanted: int | None, cpus: float, split: Examples, device: torch.device) -> int:
    """How many processes decode a worker's images: as many as wanted, or one less than its CPUs where a GPU does the
    computing; none where nothing is decoded."""
    if not getattr(split, "decodes", False):
        return 0
    return max(0, int(cpus) - 1 if device.type == "cuda" else 0) if wanted is None else wanted
