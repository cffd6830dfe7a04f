"""Candidate in, figures out: extract the child, recalibrate its batch norms, score it. The one way that a child is
ever judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.children.hopeless import Hopeless
from nas.device import enough_memory
from nas.draws import permutation
from nas.quantization.learned import fit
from nas.rundir.atomic import write_directory
from nas.rundir.checkpoint import tensors_in
from nas.space import Arch, Space
from nas.supernet import Supernet, inherit
from nas.tasks.task import Examples, Task, compact, pixels

if TYPE_CHECKING:
    from nas.children.alone import Alone

FEW_BYTES = 1 << 26  # of batches, up to which every process keeps its own in memory
CACHE_BYTES = 1 << 30  # the same where there is no place to share them
PARTS = 16  # of the examples that a child is judged on, which its interval is computed from


class Batches:
    """`count` examples of a split in batches of `size`, always the same ones, decoded once where that can be.

    Few are kept in memory. More are written to `place` by the first process that comes there, as grey levels, a file a
    batch; all processes of a node map the same pages. Without a place they are decoded at each use.

    They are drawn at random, since folders come class after class and crops image after image: so every batch is of all
    kinds.

    Args:
        epoch: augmented as in that epoch of training; None for plain images.
        whole: drop the last batch where it is smaller than the others, so that every batch weighs the same.
        place: a directory for these batches alone, there or not, whose parent's parent is there.
    """

    def __init__(
        self,
        split: Examples,
        count: int,
        size: int,
        device: torch.device,
        epoch: int | None = None,
        whole: bool = False,
        place: Path | None = None,
    ) -> None:
        count, size = min(count, len(split)), min(size, split.at_once or size)
        self.split, self.device, self.epoch = split, device, epoch
        drawn = permutation(len(split), 0, "batches")[:count]
        starts = range(0, count - size + 1 if whole and count >= size else count, size)
        self.rows = [drawn[start : min(start + size, count)] for start in starts]
        self.examples = sum(map(len, self.rows))
        self.kept = self._keep(CACHE_BYTES if place is None else FEW_BYTES)
        self.files = [] if self.kept or place is None else self._written(place)

    def _keep(self, most: int) -> list[tuple[Tensor, Tensor]]:
        """All batches, or none where they take more than `most` bytes together, by the mean of those that were
        loaded."""
        kept, size = [], 0
        for rows in self.rows:
            kept.append(self._load(rows))
            size += sum(part.nbytes for part in kept[-1])
            if size / len(kept) * len(self.rows) > most:
                return []
        return kept

    def _written(self, place: Path) -> list[Path]:
        """The batches' files; whoever comes while another process writes them waits for it."""
        names = [f"{number:06}.safetensors" for number in range(len(self.rows))]

        def fill(directory: Path) -> None:
            for name, rows in zip(names, self.rows, strict=True):
                x, y = compact(self.split, rows, self.epoch)
                save_file({"x": x.contiguous(), "y": y.contiguous()}, directory / name)

        place.parent.mkdir(exist_ok=True)
        with FileLock(place.with_name(f"{place.name}.lock")):
            if not place.is_dir():
                write_directory(place, fill, {})
        return [place / name for name in names]

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._sent(*compact(self.split, rows, self.epoch))

    def _read(self, file: Path) -> tuple[Tensor, Tensor]:
        return self._sent(**tensors_in(file))

    def _sent(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return pixels(x.to(self.device)), y.to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.kept:
            return iter(self.kept)
        return map(self._read, self.files) if self.files else map(self._load, self.rows)


@torch.inference_mode()
def recalibrate(
    child: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], known: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Give the child's batch norms the plain mean of their statistics over the batches (BigNAS section 3.3), and set it
    to evaluate.

    Quantizers are fitted before, on the first batch, but for those of a network trained alone with real ones: what a
    supernet has learnt of its steps it has learnt for all children at once. Without either nothing is run.

    Args:
        known: the statistics, where another child has found them already; see `Supernet.norms_alike`.

    Returns:
        The statistics, by the names of the child's buffers.
    """
    child.eval()
    norms = {name: module for name, module in child.named_modules() if isinstance(module, _BatchNorm)}
    for norm in norms.values():
        norm.train()  # the norms of a fresh child know nothing but the batch
    fit(child, batches)
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average, not a moving one
    found = {f"{name}.{key}": value for name, norm in norms.items() for key, value in norm.named_buffers()}
    if known and known.keys() == found.keys():
        for name, value in known.items():
            found[name].copy_(value)
    elif norms:
        for x, _ in batches:
            child(x)
    child.eval()
    return found


@torch.no_grad()
def fit_steps(net: Supernet, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """The quantizers of a space of one, fitted as `recalibrate` fits a child's: what training with real quantizers
    starts from."""
    child = net.extract(net.space.largest()).train()
    fit(child, batches)
    inherit(net, child)


class Judged(NamedTuple):
    """What a child has come to on some examples.

    Attributes:
        metrics: the task's figures.
        parts: the figures on disjoint parts of the examples, `PARTS` of them or as many as there are examples; the same
            parts for every child, so that two children are compared on what both have seen.
        seen: how many examples that were; None: all that there are.
    """

    metrics: dict[str, float]
    parts: list[dict[str, float]]
    seen: int | None = None


@torch.inference_mode()
def judge(
    child: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    task: Task,
    hopeless: Hopeless | None = None,
) -> Judged:
    """The task's figures of a child in evaluation mode; example n is in part n modulo `PARTS`.

    Args:
        hopeless: asked now and then whether the child need not be scored any further.
    """
    sums: dict[str, float] = {}
    parts: list[dict[str, float]] = [{} for _ in range(PARTS)]
    seen = 0
    for x, y in batches:
        output = task.predict(child, x)
        for rows in _until_looks(seen, len(y), hopeless):
            some, labels = output[rows], y[rows]
            _add(sums, task.scores(some, labels))
            for number in range(min(PARTS, len(labels))):
                _add(parts[(seen + number) % PARTS], task.scores(some[number::PARTS], labels[number::PARTS]))
            seen += len(labels)
            if hopeless and seen % hopeless.every == 0 and seen < hopeless.examples:
                found = _of_parts(parts, task)
                if hopeless(sums, found, seen):
                    return Judged(task.summarise(sums), found, seen)
    return Judged(task.summarise(sums), _of_parts(parts, task))


def _until_looks(seen: int, count: int, hopeless: Hopeless | None) -> list[slice]:
    """The next `count` examples, cut where is looked at what the child has come to."""
    if hopeless is None:
        return [slice(0, count)]
    every = hopeless.every
    cuts = [0, *range(every - seen % every, count, every), count]
    return [slice(*ends) for ends in pairwise(cuts)]


def _of_parts(parts: list[dict[str, float]], task: Task) -> list[dict[str, float]]:
    """The figures of the parts; none where one has none of its own, such as a class that is not in it."""
    try:
        found = [task.summarise(part) for part in parts if part]
    except (ArithmeticError, ValueError, LookupError):
        return []
    return found if all(math.isfinite(value) for part in found for value in part.values()) else []


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def score(child: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], task: Task) -> dict[str, float]:
    """The task's figures of a child in evaluation mode."""
    return judge(child, batches, task).metrics


class Evaluator:
    """Scores children of one supernet on fixed calibration and validation batches.

    Args:
        net: the supernet, its weights in place; whoever changes these sets it anew.
        task: gives data, scores and metric.
        settings: the search section of an experiment: calibration, calibration_batch, validation, score_batch.
        limit: at most so many examples of either kind, for a quick look in training.
        shared: a directory for batches that all processes of the run share, see `Batches`.
        alone: trains children that are to be scored after some steps by themselves.
    """

    def __init__(
        self,
        net: Supernet,
        task: Task,
        settings: Any,
        device: torch.device,
        limit: int | None = None,
        shared: Path | None = None,
        alone: Alone | None = None,
    ) -> None:
        self._statistics: dict[str, Tensor] | None = None
        self.told: Callable[[int], object] = lambda _: None  # after each step of what `alone` trains; may raise
        self.net, self.task, self.alone = net, task, alone
        self.lower = (
            f"lower search.score_batch (now {settings.score_batch}) or search.trials, which share the GPUs; images at "
            f"once in calibration are search.calibration_batch (now {settings.calibration_batch}), of a new run"
        )
        few = limit or 1 << 62
        calibration, validation = min(settings.calibration, few), min(settings.validation or len(task.validation), few)
        size, score_size = settings.calibration_batch, settings.score_batch
        places = [
            shared and shared / f"{part}-{count}"
            for part, count in (("calibration", calibration), ("validation", validation))
        ]
        with enough_memory(self.lower):
            self.calibration = Batches(task.train, calibration, size, device, 0, True, places[0])
            self.validation = Batches(task.validation, validation, score_size, device, place=places[1])

    @property
    def net(self) -> Supernet:
        """The supernet."""
        return self._net

    @net.setter
    def net(self, net: Supernet) -> None:
        self._net, self._statistics = net, None

    def cut(self, arch: Arch, steps: int = 0) -> tuple[Supernet, nn.Module]:
        """A child and what it was cut from: the supernet, or after `steps` by itself a space of its own.

        The child is calibrated and ready to run, its convolutions' weights in the order that they are quickest in.
        """
        net = self.net
        if steps:
            assert self.alone is not None
            net = net.fix(arch).to(next(net.parameters()).device)
            self.alone.train(net, steps, self.calibration, self.told)
        child = net.extract(arch).to(memory_format=torch.channels_last)
        alike = net.norms_alike and not steps
        found = recalibrate(child, self.calibration, self._statistics if alike else None)
        if alike and self._statistics is None:
            self._statistics = {name: value.clone() for name, value in found.items()}
        return net, child

    def child(self, arch: Arch, steps: int = 0) -> nn.Module:
        """The child of `cut`."""
        return self.cut(arch, steps)[1]

    def judge(self, arch: Arch, steps: int = 0, hopeless: Hopeless | None = None) -> Judged:
        """The child on validation, after `steps` by itself.

        Raises:
            MemoryShort: the GPU is too small for it.
        """
        with enough_memory(self.lower):
            return judge(self.child(arch, steps), self.validation, self.task, hopeless)

    def __call__(self, arch: Arch) -> dict[str, float]:
        """The child's figures on validation."""
        return self.judge(arch).metrics


def panel(space: Space, rng: np.random.Generator, random_children: int = 4) -> dict[str, Arch]:
    """The children whose figures are followed in training: smallest, largest, and some fixed random ones; in a space
    of one, that one."""
    if space.cardinality == 1:
        return {"largest": space.largest()}
    return {
        "smallest": space.smallest(),
        **{f"random{i}": space.sample(rng) for i in range(random_children)},
        "largest": space.largest(),
    }
