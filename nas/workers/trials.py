"""The search as Ray Tune trials: each is a worker that shares the supernet's weights and judges some candidates a step.

Tune starts, watches and replaces the workers and hands back what came of each step. It keeps no state of ours: the
journal does. A trial is not a candidate, nor some of them: workers take seconds to start, and where a trial waits for
its worker, Tune gives it the first one that is done and stops the new one. Beside trials of two seconds no second
worker would ever come to work.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ray import tune
from ray.tune.error import TuneError
from ray.tune.search import Searcher

from nas.build import load_task, make_supernet, open_journal, open_search
from nas.children.alone import make_alone
from nas.children.evaluate import Evaluator
from nas.children.hopeless import Hopeless
from nas.config.experiment import Experiment, parse
from nas.device import MemoryShort, configure_process, enough_memory
from nas.results.taking import read_known
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.search.constraints import Constraints
from nas.search.core import Exhausted, Objective, Search
from nas.search.journal import Candidate, Journal, Record
from nas.space import Arch
from nas.supernet import Supernet
from nas.tasks.index import Index
from nas.tasks.task import Task
from nas.workers.session import check_room, gpu_share, has_gpus, on_ray, session
from nas.workers.stopping import StopAsked, Stopped

LIVES = 3  # deaths of a worker on one candidate alone, after which the candidate counts as failed
STEP_SECONDS = 2.0  # how long a step should last at least, so that Tune's own work stays small beside it
IDLE_SECONDS = 0.02, 0.2  # between two questions of a worker that has nothing to do, the first time and in the end
AGAIN_SECONDS = 600.0  # most between two tries to start a worker where others died in their start


class SearchFailed(RuntimeError):
    """No worker could judge any child."""


class Scored(tune.Trainable):
    """An actor that holds one supernet and judges some candidates a step."""

    short = ""  # what is said where a GPU has too little memory

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        weights: Mapping[str, np.ndarray],
        experiment: dict[str, Any],
        run: str,
        objective: Objective,
        gpu: bool,
        fence: Fence,
    ) -> None:
        settings = parse(experiment)
        self.objective, self.early_stop = objective, settings.search.early_stop
        self.reset_config(config)
        device = configure_process(gpu, 1)
        try:
            self._load(settings, RunDir(run), weights, device)
            self.evaluator.told = StopAsked(fence)
        except MemoryShort as short:  # told by `step`: what fails in here would be its candidates' failure
            self.short = str(short)

    def _load(self, settings: Experiment, at: RunDir, weights: Mapping[str, np.ndarray], device: torch.device) -> None:
        """The supernet and the examples, where they are worked on."""
        task = load_task(settings, Index(at.index, at.batches))
        net = make_supernet(settings, task)
        with warnings.catch_warnings():  # nobody writes to Ray's shared memory
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
        with enough_memory(f"lower search.trials (now {settings.search.trials}), which share the GPUs"):
            alone, net = make_alone(settings, task, net, device), net.to(device)
        self.evaluator = Evaluator(net, task, settings.search, device, None, at.batches, alone)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.candidates, self.bars = new_config["candidates"], new_config.get("bars", {})
        self.idle = IDLE_SECONDS[0]
        return True

    def step(self) -> dict[str, Any]:
        if self.short:
            return {"short": self.short, "done": True}
        if not self.candidates:
            time.sleep(self.idle)
            self.idle = min(2 * self.idle, IDLE_SECONDS[1])
        judged: list[dict[str, Any]] = []
        try:
            for k, choices, steps in self.candidates:
                judged.append(self._judge(k, Arch(choices), steps))
        except MemoryShort as short:
            return {"short": str(short), "done": True}
        except Stopped:  # the rest stays open, as after a kill
            pass
        self.candidates = []
        return {"judged": judged}

    def _judge(self, k: int, arch: Arch, steps: int) -> dict[str, Any]:
        began = time.monotonic()
        metrics: dict[str, float] | None = None
        parts: list[dict[str, float]] = []
        error = seen = None
        try:
            metrics, parts, seen = self.evaluator.judge(arch, steps, self._hopeless(k))
        except (MemoryShort, Stopped):  # nobody's fault among the candidates
            raise
        except Exception as problem:  # one candidate's failure is recorded, and the others go on
            error = f"{type(problem).__name__}: {problem}"
        figures = [part[self.objective.metric] for part in parts]
        told = {"metrics": metrics, "parts": figures, "error": error, "seen": seen}
        return {"k": k, "seconds": time.monotonic() - began, **told}

    def _hopeless(self, k: int) -> Hopeless | None:
        """When scoring candidate k may end early."""
        if self.early_stop == "never":
            return None
        (bar, cost), at = self.bars[k], self.evaluator
        return Hopeless(at.task, self.objective, bar, cost, at.validation.examples, self.early_stop == "likely")


class Asker(Searcher):
    """Between Tune and a search: gives workers their candidates, and writes down what came of them.

    Args:
        search, journal: already at the same place.
        missing: candidates that a killed driver left without a record.
        target: how many candidates there shall be in all.
        trials: how many workers there shall be.
        batch: candidates a step; None chooses by the time that they take.
        deadline: `time.monotonic` after which nothing new is begun.
        notify: called with each new record.
        known: what was found of children before, by id; these are not judged again.
        bars: whether workers are told what candidates are held against, so that they may end early.
        fence: refuses writes of a driver that is over; once it asks to stop, nothing new is begun.
    """

    def __init__(
        self,
        search: Search,
        journal: Journal,
        missing: list[Candidate],
        target: int,
        trials: int,
        batch: int | None,
        deadline: float,
        notify: Callable[[Record], None],
        fence: Fence,
        known: Mapping[str, Record] = MappingProxyType({}),
        bars: bool = False,
    ) -> None:
        super().__init__()
        self.search, self.journal, self.target, self.trials, self.batch = search, journal, target, trials, batch
        self.deadline, self.notify, self.fence, self.known, self.bars = deadline, notify, fence, known, bars
        self.climbing = deque(candidate for candidate in missing if candidate.k in journal.climbing)
        self.waiting = deque(candidate for candidate in missing if candidate.k not in journal.climbing)
        self.alone = deque[Candidate]()
        self.ready: list[Candidate] = []  # for the next worker that has nothing to do
        self.flying: dict[str, list[Candidate]] = {}  # by trial
        self.workers: dict[str, Callable[[dict[str, Any]], object]] = {}  # by trial: gives it something to do
        self.proved: set[str] = set()  # trials that have judged something
        self.deaths: Counter[int] = Counter()
        self.seconds = deque((r.seconds for r in journal.records if r.seconds and not r.lower), maxlen=20)
        self.exhausted: str | None = None
        self.lost = 0  # workers that died in their start, or before any has ever judged anything, one after another
        self.again = 0.0  # `time.monotonic` from which on another one is tried while others work
        self.worked = False  # whether any has judged anything
        self.broken = 0
        self.failure: Exception | None = None  # in `over`, which Tune wraps in its own
        self.short = ""  # what a worker said whose GPU has too little memory

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher now and then; nothing is ever read back from that."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Another worker, which has nothing to do yet."""
        if self._done():
            return Searcher.FINISHED
        left = max(1, self.target - len(self.journal.records))
        if len(self.flying) >= left or (self.workers and time.monotonic() < self.again):
            return None
        self.flying[trial_id] = []
        return {"candidates": []}

    def _done(self) -> bool:
        """Whether nothing more will come."""
        return self._stopping() or not (self._prepared() or any(self.flying.values()))

    def _stopping(self) -> bool:
        """Whether nothing new is begun."""
        return bool(time.monotonic() > self.deadline or self.broken or self.short or self.fence.stopping())

    def _prepared(self) -> bool:
        """Whether there is something for a worker to do."""
        if not self.ready:
            one_by_one = self.alone or self.climbing  # what climbs is trained, which takes long enough
            self.ready = [one_by_one.popleft()] if one_by_one else self._next()
        return bool(self.ready)

    def prepare(self) -> None:
        """Propose what comes next while workers work, so that none waits for it."""
        if not self.ready and not self._stopping():
            self._prepared()

    def began(self, trial_id: str, give: Callable[[dict[str, Any]], object]) -> None:
        """Note that a trial has its worker.

        Args:
            give: gives it what it is to do in its next step.
        """
        self.workers[trial_id] = give

    def over(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Write down what a trial has found, give it more to do, and say whether it ends; Tune's `stop`."""
        try:
            return self._over(trial_id, result)
        except Exception as failure:
            self.failure = failure
            raise

    def _over(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        if "short" in result:
            self.short = result["short"]
            return True
        self._judged(trial_id, result["judged"])
        if self._done():
            return True
        if self.ready:
            candidates, self.ready = self.ready, []
            self.flying[trial_id] = candidates
            given: dict[str, Any] = {"candidates": [(c.k, dict(c.arch), self._steps(c)) for c in candidates]}
            if self.bars:
                given["bars"] = {c.k: (c.bar, dict(self.search.cost(c.arch))) for c in candidates}
            self.workers[trial_id](given)
        return False

    def _steps(self, candidate: Candidate) -> int:
        """For how many steps a candidate is trained by itself on the rung that it is on."""
        before = self.journal.climbing.get(candidate.k)
        return self.search.rungs[len(before.lower) + 1 if before else 0].steps

    def _next(self) -> list[Candidate]:
        """Candidates for a step. Those that are known are written down and never get there; what they were may let
        others be proposed."""
        open_: list[Candidate] = []
        while not open_ and (candidates := self._proposed()):
            self.fence.check()
            self.journal.append_proposals(candidates)
            for candidate in candidates:
                if (known := self.known.get(candidate.arch.id)) is None:
                    open_.append(candidate)
                else:
                    self._take(candidate, candidate.k, 0.0, dict(known.metrics or {}), list(known.parts), None)
        return open_

    def _proposed(self) -> list[Candidate]:
        """As many as a step shall have, or as there are now."""
        candidates: list[Candidate] = []
        while len(candidates) < self._size():
            candidate = self.waiting.popleft() if self.waiting else self._ask()
            if candidate is None:
                break
            candidates.append(candidate)
        return candidates

    def _ask(self) -> Candidate | None:
        if self.search.next_k >= self.target or self.exhausted:
            return None
        try:
            return self.search.ask()
        except Exhausted as end:
            self.exhausted = str(end)
            return None

    def _size(self) -> int:
        """Candidates for the next step: enough to fill some seconds, and no more than half the window in flight."""
        most = max(1, self.search.window // 2 // self.trials)
        if self.batch:
            return min(self.batch, most)
        if not self.seconds:
            return 1
        return min(most, max(1, round(STEP_SECONDS / max(median(self.seconds), 1e-3))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        candidates, proved = self.flying.pop(trial_id, []), trial_id in self.proved
        self.workers.pop(trial_id, None)
        self.proved.discard(trial_id)
        if error or result is None:
            self._died(candidates, proved)

    def _judged(self, trial_id: str, rows: list[dict[str, Any]]) -> None:
        """Write down what came of a trial's candidates."""
        if not rows:
            return
        if trial_id not in self.proved:
            self.proved.add(trial_id)
            self.worked, self.lost = True, 0
        candidates, self.flying[trial_id] = self.flying[trial_id], []
        judged = {row["k"]: row for row in rows}
        for candidate in (candidate for candidate in candidates if candidate.k in judged):
            if candidate.k not in self.journal.climbing:
                self.seconds.append(judged[candidate.k]["seconds"])
            self._take(candidate, **judged[candidate.k])

    def _died(self, candidates: list[Candidate], proved: bool) -> None:
        """A worker died on these: each is tried alone, and blamed after `LIVES` deaths on it alone, if any worker has
        ever judged anything. Without any it died in its start, or idle."""
        if not (proved or (self.worked and candidates)):
            self.lost += 1
            self.again = time.monotonic() + min(2.0**self.lost, AGAIN_SECONDS)
        if self.lost >= 2 * LIVES and not self.workers:
            self.broken = self.lost
        for candidate in candidates:
            self.deaths[candidate.k] += self.worked and len(candidates) == 1
            if self.deaths[candidate.k] < LIVES:
                self.alone.append(candidate)
            else:
                error = f"its worker died {LIVES} times on this candidate alone"
                self._take(candidate, candidate.k, 0.0, None, [], error)

    def _take(
        self,
        candidate: Candidate,
        k: int,
        seconds: float,
        metrics: dict[str, float] | None,
        parts: list[float],
        error: str | None,
        seen: int | None = None,
    ) -> None:
        """Write down what came of a candidate on its rung, and send it to the next one where it climbs."""
        assert k == candidate.k
        if metrics is not None and not all(np.isfinite(value) for value in metrics.values()):
            metrics, error = None, f"not finite: {metrics}"
        lower: tuple[Mapping[str, float], ...] = ()
        if (before := self.journal.climbing.get(k)) and before.metrics is not None:
            lower, seconds = (*before.lower, before.metrics), before.seconds + seconds
        told = tuple(float(f"{part:.6g}") for part in parts) if metrics is not None else ()
        cost = dict(self.search.cost(candidate.arch))
        record = Record(k, candidate.arch, metrics, cost, round(seconds, 4), error, lower, told, seen)
        self.fence.check()
        if self.search.climbs(record):
            self.journal.append_climb(record)
            self.climbing.append(candidate)
            return
        self.search.tell(record)  # it checks what it is told: what is written must not be refused at the next start
        self.journal.append(record)
        self.notify(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def search_children(
    experiment: Experiment,
    task: Task,
    net: Supernet,
    run: RunDir,
    fence: Fence,
    trained: Checkpoint,
    notify: Callable[[Record], None] = lambda _: None,
) -> str | None:
    """Judge children of the trained supernet until there are as many records as the experiment asks for.

    Args:
        task, net: the experiment's; of the network only the space and the costs are asked here.

    Returns:
        Why there will be no more, where the space is exhausted before.

    Raises:
        TooLittle: the cluster has less than the experiment asks for.
        ValueError: the constraints cannot be met, or the journal belongs to another search.
        SearchFailed: no worker could judge anything.
        MemoryShort: a GPU has too little memory for a child; those in flight are judged by the next search.
    """
    settings = experiment.search
    search = open_search(experiment, net, task, trained)
    journal, missing = open_journal(experiment, run, trained.sha, search, net)
    with journal:
        if len(journal.records) >= settings.candidates:
            return None
        if not journal.records:
            _check_first(search, settings.candidates)
        deadline = time.monotonic() + 60 * settings.max_minutes if settings.max_minutes else float("inf")
        bounds = settings.candidates, settings.trials, settings.batch, deadline
        known, bars = read_known(run, trained.sha), settings.early_stop != "never"
        asker = Asker(search, journal, missing, *bounds, notify, fence, known, bars)
        with session():
            _run(experiment, run, fence, asker, trained)
        return asker.exhausted


def _check_first(search: Search, candidates: int) -> None:
    """Refuse constraints that leave nothing of what other searches found, where little else would be looked at."""
    constraints, first = search.constraints(search.next_k).without(search.metrics), search.first
    if first and candidates <= len(first) and all(constraints.violation(search.cost(arch)) for arch in first):
        costs = "; ".join(f"{arch.id}: {_bound(search.cost(arch), constraints)}" for arch in first)
        raise ValueError(
            f"search.constraints ({constraints}) exclude what was found ({costs}), and search.candidates is "
            f"{candidates}: raise one of them"
        )


def _bound(cost: Mapping[str, float], constraints: Constraints) -> str:
    """Those costs that are constrained, for people."""
    return ", ".join(f"{name} {cost[name]:,.15g}" for name in constraints.bounds)


def _run(experiment: Experiment, run: RunDir, fence: Fence, asker: Asker, trained: Checkpoint) -> None:
    trials, gpu = experiment.search.trials, has_gpus(experiment.train.use_gpu)
    share = gpu_share(trials) if gpu else 0.0
    check_room(experiment)
    arrays = {name: tensor.numpy() for name, tensor in trained.child_weights().items()}
    told = {"experiment": experiment.model_dump(mode="json"), "run": str(run.path), "gpu": gpu, "fence": fence}
    scored = tune.with_parameters(Scored, weights=arrays, objective=asker.search.objective, **told)
    tuner = tuner_of(tune.with_resources(scored, {"cpu": 1, "gpu": share}), asker, f"search-{fence.attempt}", run.ray)
    run_trials(tuner, asker, fence)
    if asker.short:
        raise MemoryShort(asker.short)
    if asker.broken:
        raise SearchFailed(
            f"{asker.broken} workers died one after another and none of them has judged a child; what they said: "
            f"{_said(tuner)}"
        )


def tuner_of(scored: Any, asker: Asker, name: str, home: Path) -> tune.Tuner:
    """Trials of a `Scored` with its resources, as many as the asker shall have workers.

    Args:
        home: where Tune writes, in a folder of this `name`.
    """
    # Tune prints the traceback of a dead worker, whose candidates the asker gives out again
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    return tune.Tuner(
        scored,
        tune_config=tune.TuneConfig(
            search_alg=asker, num_samples=-1, max_concurrent_trials=asker.trials, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(home),
            verbose=0,
            callbacks=[Loop(asker)],
            stop=asker.over,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def run_trials(tuner: tune.Tuner, asker: Asker, fence: Fence) -> None:
    """All of them, to the end; what fails in the asker is raised as it was."""
    try:
        on_ray(tuner.fit, fence)
    except TuneError:
        if asker.failure is not None:
            raise asker.failure from None
        raise


class Loop(tune.Callback):
    """Tells the asker which trials have their worker, and when it has time."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # An actor does what it is told in the order in which it is told: before its next step.
        self.asker.began(trial.trial_id, trial.temporary_state.ray_actor.reset_config.remote)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.asker.prepare()


def _said(tuner: tune.Tuner) -> str:
    """The last error of a trial, its last line."""
    errors = [str(error).strip() for error in tuner.get_results().errors]
    return errors[-1].splitlines()[-1] if errors else "nothing"
