"""What the benchmarks that train have in common: trainings that continue where they were killed, searches in this
process, tables."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

import torch
import torch.distributed as dist

from nas.build import load_task, make_supernet, open_search
from nas.children.evaluate import Evaluator
from nas.config.experiment import Experiment
from nas.rundir import atomic
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.search.journal import Record
from nas.space import Arch
from nas.training.loop import Loop

CPU = torch.device("cpu")
Figures = dict[str, float]


class Late(Exception):
    """The time is over."""


class Trainer:
    """Trains experiments in this process, on one thread, until a point in time.

    Args:
        root: each training is a run in it; one that is done is not done twice.
        minutes: for all of them together; None: as long as it takes.
    """

    def __init__(self, root: Path, minutes: float | None = None) -> None:
        torch.set_num_threads(1)
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # what Ray Train would have set
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.root, self.deadline = root, math.inf if minutes is None else time.monotonic() + 60 * minutes

    def __call__(self, told: Experiment, name: str) -> Evaluator:
        """The network after its whole training.

        Raises:
            Late: the time was over before; the same training continues next time.
        """
        run = self.root / name
        run.mkdir(parents=True, exist_ok=True)
        fence = Fence.take(run)
        with mock.patch.object(Fence, "stopping", lambda fence: time.monotonic() > self.deadline):
            Loop(told, RunDir(run), fence, 0, 1, CPU).train()
        found = Checkpoint.newest(RunDir(run).checkpoints)
        if found is None or found.state.step < found.state.total:
            raise Late
        task = load_task(told)
        net = make_supernet(told, task)
        net.load_state_dict(found.child_weights())
        return Evaluator(net, task, told.search, CPU)

    def once(self, name: str, find: Callable[[], Arch]) -> Arch:
        """What was found, now or by an earlier call of that name."""
        file = self.root / f"{name}.json"
        if not file.exists():
            atomic.write_atomic(file, json.dumps(dict(find())))
        return Arch(json.loads(file.read_text()))


def searched(told: Experiment, evaluator: Evaluator) -> list[Record]:
    """Every candidate of the experiment's search, scored one after another."""
    engine, records = open_search(told, evaluator.net, evaluator.task), []
    for _ in range(told.search.candidates):
        candidate = engine.ask()
        assert candidate is not None
        records.append(
            Record(candidate.k, candidate.arch, evaluator(candidate.arch), dict(engine.cost(candidate.arch)), 0.0, None)
        )
        engine.tell(records[-1])
    return records


def report(parts: Callable[[int], Iterator[tuple[str, Figures]]], seeds: Iterable[int]) -> None:
    """Print what each part of each seed shows, then means and standard deviations over seeds; or that the time is
    over."""
    rows: dict[str, list[Figures]] = {}
    try:
        for seed in seeds:
            for name, figures in parts(seed):
                rows.setdefault(name, []).append(figures)
                print(
                    f"seed {seed}, {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()),
                    flush=True,
                )
    except Late:
        print("the time is over; the same command continues")
    for name, found in rows.items():
        print(f"| {name} | " + " | ".join(spread(f[key] for f in found) for key in found[0]) + " |")


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation."""
    given = list(values)
    return f"{mean(given):.5g} ± {stdev(given):.2g}" if len(given) > 1 else f"{mean(given):.5g}"
