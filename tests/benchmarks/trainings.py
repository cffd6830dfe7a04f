"""What the benchmarks that train have in common: trainings that continue where they were killed, searches in this
process, tables."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any
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
from nas.search.core import Search, resume
from nas.search.journal import Candidate, Journal, Record
from nas.training.loop import Loop

CPU = torch.device("cpu")
RECORDS = Path(__file__).parent / "records"
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

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What was found, plain JSON, now or by an earlier call of that name."""
        file = self.root / f"{name}.json"
        if not file.exists():
            atomic.write_atomic(file, json.dumps(find()))
        return json.loads(file.read_text())

    def searched(self, told: Experiment, evaluator: Evaluator, name: str) -> list[Record]:
        """Every candidate of the experiment's search, scored one after another, on the rungs that it climbs to.

        Raises:
            Late: the time was over before; what was scored is not scored again next time.
            ValueError: a search of that name was another one.
        """
        engine = open_search(told, evaluator.net, evaluator.task)
        bounds = {cost: section.model_dump() for cost, section in told.search.constraints.items()}
        with Journal(self.root / f"{name}.jsonl", {**engine.identity, "constraints": bounds}) as journal:
            resume(engine, journal)
            for _ in progress(range(engine.next_k, told.search.candidates), "candidates"):
                if time.monotonic() > self.deadline:
                    raise Late
                candidate = engine.ask()
                assert candidate is not None
                record = scored(engine, evaluator, candidate)
                journal.append(record)
                engine.tell(record)
            return journal.records


def scored(engine: Search, evaluator: Evaluator, candidate: Candidate) -> Record:
    """A candidate on the rungs that it climbs to."""
    cost, lower = dict(engine.cost(candidate.arch)), list[dict[str, float]]()
    for rung in engine.rungs:
        metrics = evaluator.judge(candidate.arch, rung.steps).metrics
        record = Record(candidate.k, candidate.arch, metrics, cost, 0.0, None, tuple(lower))
        if not engine.climbs(record):
            break
        lower.append(metrics)
    return record


def progress(steps: Iterable[int], what: str) -> Iterator[int]:
    """Tell once a minute how far this is."""
    steps, began = list(steps), time.monotonic()
    told = began
    for done, step in enumerate(steps):
        if done and (now := time.monotonic()) > told + 60:
            left = (now - began) / done * (len(steps) - done)
            print(f"{done} of {len(steps)} {what}, {left / 60:.0f} min left", flush=True)
            told = now
        yield step


def recorded(name: str) -> list[dict[str, Any]]:
    """The lines of tests/benchmarks/records/NAME.jsonl; one that a kill has torn is none."""
    file, found = RECORDS / f"{name}.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def record(name: str, line: Mapping[str, Any]) -> None:
    """Append a line to tests/benchmarks/records/NAME.jsonl, which several processes may do at once."""
    file = RECORDS / f"{name}.jsonl"
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as log:
        log.write("\n" * torn + json.dumps(line) + "\n")


Part = tuple[str, Callable[[], Figures]]


def report(
    name: str, settings: Mapping[str, Any], parts: Callable[[int], Iterator[Part]], seeds: Iterable[int]
) -> None:
    """Print what each part of each seed shows, then means and standard deviations over seeds; or that the time is over.

    Each part is a line of tests/benchmarks/records/NAME.jsonl, and one that stands there of these settings is not done
    again.
    """
    settings = json.loads(json.dumps(settings))
    done = {(line["seed"], line["part"]): line["figures"] for line in recorded(name) if line["settings"] == settings}
    rows: dict[str, list[Figures]] = {}
    try:
        for seed in seeds:
            for part, find in parts(seed):
                if (seed, part) not in done:
                    done[seed, part] = find()
                    record(name, {"seed": seed, "part": part, "settings": settings, "figures": done[seed, part]})
                figures = done[seed, part]
                rows.setdefault(part, []).append(figures)
                told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                print(f"seed {seed}, {part}: {told}", flush=True)
    except Late:
        print("the time is over; the same command continues")
    for part, found in rows.items():
        print(f"| {part} | " + " | ".join(spread(f[key] for f in found) for key in found[0]) + " |")


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation."""
    given = list(values)
    return f"{mean(given):.5g} ± {stdev(given):.2g}" if len(given) > 1 else f"{mean(given):.5g}"
