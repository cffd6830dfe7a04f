"""What a run would take: the run itself, in small, in a directory that is thrown away.

Each stage goes on for some seconds with the workers and trials that the run would have, so whatever a run would refuse
is refused here, and nothing is timed but what a run does. What one step, one candidate and one child take is laid over
how many there will be.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from nas.build import costs_of, load_recipe, objective_of
from nas.children.export import made_smaller, works_at
from nas.config import plugins
from nas.config.experiment import Experiment
from nas.config.sections import TrainSettings
from nas.pipeline import Pipeline
from nas.results.choose import constraints_of
from nas.results.tracking import default_uri
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.log import StepLine, read_training
from nas.space import COSTS
from nas.supernet import Supernet
from nas.tasks.task import Task
from nas.training.loop import total_steps
from nas.watch import Watcher

TRY_S = 15.0  # for which training, and search, are tried; each ends what it is at
TRY_CHILDREN = 3  # exported: the first brings in the libraries, the others tell what one takes
DRAWN = 1000  # random networks, of which the share within the constraints is told
NEVER = 10**9  # steps between checkpoints: one at the end


class Part(NamedTuple):
    """One kind of work of a run: how often it is done, and the seconds of each."""

    name: str
    number: int
    unit: str
    seconds: float

    @property
    def together(self) -> float:
        return self.number * self.seconds


@dataclass(frozen=True)
class Plan:
    """What a run would take on this machine.

    Attributes:
        networks: of the space.
        costs: what the smallest and the largest network have of the cost that the search makes small; title: its name.
        within: share of random networks within the constraints; None where there are none.
        inputs: ``(C, H, W)`` that networks are given; sides: pixels that the smallest and the largest work at.
        advice: what does not go together, for people; empty where all does.
        workers, asked: training workers that were tried, of those that the experiment asks for.
        parts: the work; startup: seconds of all else, imports and Ray's start among it.
        memory: bytes of a training worker's process by ZeRO stage, as far as that was seen; the tried one is measured,
            the others differ by what that stage divides.
        disk: bytes of the run directory.
    """

    networks: int
    costs: tuple[float, float]
    within: float | None
    title: str
    inputs: tuple[int, int, int]
    sides: tuple[int, int]
    advice: str
    workers: int
    asked: int
    parts: tuple[Part, ...]
    startup: float
    memory: Mapping[int, float]
    disk: float

    @property
    def seconds(self) -> float:
        return self.startup + sum(part.together for part in self.parts)


@dataclass
class Stage:
    """When a stage of a trial began and ended, and when how much of it was done, by `time.monotonic`."""

    name: str
    began: float
    ended: float = 0.0
    marks: list[tuple[float, float]] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds until the first was done."""
        return self.marks[0][0] - self.began

    @property
    def each(self) -> float:
        """Seconds of one after those that were done first; of these, where there were no others."""
        (first, some), (last, all_) = self.marks[0], self.marks[-1]
        return (last - first) / (all_ - some) if all_ > some else self.first / all_


class Stopwatch:
    """A `nas.watch.Watcher` that hands progress on, and writes down when what was done."""

    def __init__(self, watch: Watcher) -> None:
        self.watch, self.stages, self.memory = watch, list[Stage](), 0.0

    def begin(self, stage: str, note: str) -> None:
        self.stages.append(Stage(stage, time.monotonic()))
        self.watch.begin(f"trying to {stage}", note)

    def advance(self, done: float, total: float, note: str, unit: str, seconds: float | None = None) -> None:
        self.stages[-1].marks.append((time.monotonic(), done))
        if self.stages[-1].name == "train":
            self.memory = max(self.memory, largest_process())
        self.watch.advance(done, total, note, unit, seconds)

    def say(self, text: str) -> None:
        """Nothing: what a stage says is of the run in small."""

    def end(self, note: str) -> None:
        self.stages[-1].ended = time.monotonic()
        self.watch.end(note.partition(" in /")[0])


def largest_process() -> float:
    """Bytes of the largest process that this one has started: a worker. 0 where they are on other machines."""
    sizes = [0.0]
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            sizes.append(process.memory_info().rss)
    return max(sizes)


def small(experiment: Experiment, directory: Path) -> Experiment:
    """The experiment that is tried: as many workers and trials as this machine has room for, each with what it would
    have in the run, for some seconds. Children are bound by what they cost alone: none is good yet."""
    train, search, minutes = experiment.train, experiment.search, TRY_S / 60
    costs = {*COSTS, *(plugins.find("cost", options.name)(options).name for options in search.costs)}
    room = max(1, int((os.cpu_count() or 1) / train.cpus_per_worker))
    if "RAY_ADDRESS" in os.environ:  # a cluster, which refuses what it has no room for
        room = train.workers
    workers, trials = min(train.workers, room), min(search.trials, room)
    changed: dict[str, Any] = {
        "train": {
            "workers": workers,
            "max_minutes": min(minutes, train.max_minutes or minutes),
            "checkpoint_every": NEVER,
            "keep": 1,
        },
        "recipe": {"batch": experiment.recipe.batch // train.workers * workers},
        "search": {
            "trials": trials,
            "max_minutes": min(minutes, search.max_minutes or minutes),
            "constraints": {n: b for n, b in search.constraints.items() if n in costs},
        },
        "export": {"children": min(TRY_CHILDREN, experiment.export.children)},
        "tracking": {"uri": default_uri(RunDir(directory))},
    }
    if tuned := experiment.finetune:
        learns = tuned.recipe.model_copy(update={"batch": tuned.recipe.batch // train.workers * workers})
        changed["finetune"] = {"recipe": learns}
    sections = {name: getattr(experiment, name).model_copy(update=new) for name, new in changed.items()}
    return experiment.model_copy(update=sections)


def plan(experiment: Experiment, run: Path, watch: Watcher) -> Plan:
    """Try the experiment's run, and tell what the whole of it would take.

    Args:
        run: where it would lie. It is tried beside that, where all machines of a cluster find it.

    Raises:
        ValueError: what the run would refuse.
    """
    began, clock = time.monotonic(), Stopwatch(watch)
    beside = next(folder for folder in run.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".raynas-plan-", dir=beside, ignore_cleanup_errors=True) as home:
        directory = Path(home) / "run"
        with Pipeline.open(small(experiment, directory), directory, clock) as tried:
            facts = described(experiment, tried.net, tried.task)
            total = total_steps(experiment, len(tried.task.train), tried.recipe)
            tried.train()
            tried.search()
            ids = tried.export()
            tuned = tried.to_finetune(ids)[:1]
            for child in tuned:
                tried.finetune(child)
            tried.report()
            work, done = measured(experiment, tried, clock.stages, total, bool(tuned))
            memory, disk = (
                memory_of(experiment, tried, clock.memory),
                disk_of(experiment, tried.run, clock.stages[1].marks[-1][1]),
            )
    startup = time.monotonic() - began - done
    workers = tried.experiment.train.workers
    return Plan(
        **facts, workers=workers, asked=experiment.train.workers, parts=work, startup=startup, memory=memory, disk=disk
    )


def described(experiment: Experiment, net: Supernet, task: Task) -> dict[str, Any]:
    """Those attributes of a `Plan` for which nothing has to be tried."""
    space, costs, constraints = net.space, costs_of(experiment, net), constraints_of(experiment)
    ends, cost = (costs(space.smallest()), costs(space.largest())), objective_of(experiment, task, net).cost
    random = np.random.default_rng(experiment.seed)
    drawn = (space.sample(random) for _ in range(DRAWN)) if constraints.bounds else ()
    bound = constraints.without(set(objective_of(experiment, task, net).names) - costs.measures.keys())
    fits = [not bound.violation(costs(arch)) for arch in drawn]
    return {
        "networks": space.cardinality,
        "costs": (ends[0][cost], ends[1][cost]),
        "within": sum(fits) / len(fits) if fits else None,
        "title": costs.measures[cost].title,
        "inputs": task.input_shape,
        "sides": tuple(works_at(net.extract(arch), task.input_shape) for arch in (space.smallest(), space.largest())),
        "advice": made_smaller(net, task),
    }


def measured(
    experiment: Experiment, tried: Pipeline, stages: list[Stage], total: int, tuned: bool
) -> tuple[tuple[Part, ...], float]:
    """The work of the run, and the seconds of the trial that are of that kind."""
    _, search, export = stages[:3]
    steps, looks, done = learning(tried.run, total, experiment.train)
    many = experiment.search.candidates
    if experiment.search.max_minutes:
        many = min(many, max(1, int(60 * experiment.search.max_minutes / search.each)))
    parts = [
        steps,
        looks,
        Part("search", many, "candidates", search.each),
        Part("export", experiment.export.children, "children", export.each),
    ]
    done += sum(stage.each * stage.marks[-1][1] for stage in (search, export))
    if tuned and (settings := experiment.finetune):
        (run,) = (RunDir(path) for path in (tried.run.path / "finetune").iterdir())
        alone = experiment.model_copy(update={"recipe": settings.recipe})
        total = total_steps(alone, len(tried.task.train), load_recipe(tried.task, settings.recipe))
        steps, looks, more = learning(run, total, experiment.train)
        parts += [
            each._replace(name=f"finetune: {each.name}", number=each.number * settings.children)
            for each in (steps, looks)
        ]
        done += more
    return tuple(parts), done


def learning(run: RunDir, total: int, settings: TrainSettings) -> tuple[Part, Part, float]:
    """Steps, and looks at validation with a checkpoint, of a training that would have `total` steps; and the seconds
    of the trial that were these."""
    log = read_training(run.training_log)
    newest = Checkpoint.newest(run.checkpoints)
    assert newest is not None and log.steps  # the trial has ended its training
    step = seconds_a_step(log.steps)
    saved = newest.directory.stat().st_mtime - run.training_log.stat().st_mtime  # the last line is the look's
    look = max(0.0, log.panels[-1].seconds - newest.state.seconds) + max(0.0, saved)
    if settings.max_minutes:
        total = min(total, max(1, int(60 * settings.max_minutes / step)))
    looks = Part("looks and checkpoints", -(-total // settings.checkpoint_every), "", look)
    return Part("train", total, "steps", step), looks, step * newest.state.step + look


def seconds_a_step(lines: Sequence[StepLine]) -> float:
    """The mean over the trial, which goes through the whole schedule; without the first step, which finds nothing
    prepared."""
    first, last = lines[0], lines[-1]
    if last.step == first.step:
        return last.seconds / last.step
    return (last.seconds - first.seconds) / (last.step - first.step)


def memory_of(experiment: Experiment, tried: Pipeline, seen: float) -> dict[int, float]:
    """Bytes of a worker by ZeRO stage; empty where workers could not be seen."""
    newest = Checkpoint.newest(tried.run.checkpoints)
    assert newest is not None
    weights = sum(4 * parameter.numel() for parameter in tried.net.parameters())
    optimizer = sum(4 * value.numel() for value in newest.optimizer().values())
    train, few = experiment.train, tried.experiment.train.workers
    base = seen - states(weights, optimizer, train.zero_stage, few)
    return {stage: base + states(weights, optimizer, stage, train.workers) for stage in range(4)} if seen else {}


def states(weights: float, optimizer: float, stage: int, workers: int) -> float:
    """Bytes of weights, gradients and optimizer state on each of so many workers (Rajbhandari et al. 2020, section 5);
    from stage 1 on DeepSpeed's optimizer has its share of the weights once more."""
    if stage == 0:
        return 2 * weights + optimizer
    shared = weights + optimizer + weights * (stage >= 2) + weights * (stage == 3)
    return weights * (stage < 3) + weights * (stage < 2) + shared / workers


def disk_of(experiment: Experiment, run: RunDir, done: float) -> float:
    """Bytes of the whole run's directory; `done` candidates were judged in the trial.

    Checkpoints that are kept, one more while it is written, batches that processes share, and children do not depend on
    how long is trained; the journal grows with the candidates.
    """
    train = experiment.train
    kept, children = size(run.checkpoints), [size(child.path) for child in run.exported()]
    parts = {"batches": size(run.batches), "search": size(run.search), "ray": size(run.ray)}
    rest = size(run.path) - kept - sum(children) - sum(parts.values())
    journal = parts["search"] / done * experiment.search.candidates
    return (train.keep + 1) * kept + parts["batches"] + journal + max(children) * experiment.export.children + rest


def size(path: Path) -> int:
    """Bytes of the files in a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
