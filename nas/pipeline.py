"""The stages of a run, each from files to files: train, search, export, report. A finished stage is not done twice."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from nas.build import (
    check_constraints,
    check_trainable,
    costs_of,
    load_recipe,
    load_task,
    make_supernet,
    objective_of,
    open_search,
    space_of,
)
from nas.children.alone import Alone, make_alone
from nas.children.evaluate import Batches, Evaluator, Judged
from nas.children.export import child_packages, export_child, exported, made_smaller
from nas.config.experiment import Experiment
from nas.device import driver_device
from nas.finetune import check_alike, finetune_experiment
from nas.quantization.target import QuantizationTarget
from nas.recipes.recipe import Recipe
from nas.results.choose import FINETUNED, choose, constraints_of, history_of, lifting, trained
from nas.results.fidelity import Fidelity, Trials, check_recipe
from nas.results.history import History, outcome, standing, ties
from nas.results.taking import take_supernet
from nas.results.tracking import Tracker, address
from nas.rundir.atomic import write_atomic
from nas.rundir.checkpoint import Checkpoint, newest_sha
from nas.rundir.directory import RunDir, open_run
from nas.rundir.fence import Fence, Gone
from nas.rundir.log import Line
from nas.search.constraints import evenly
from nas.search.journal import Record
from nas.space import Arch
from nas.supernet import Supernet
from nas.tasks.index import Index
from nas.tasks.task import Task
from nas.training.loop import total_steps
from nas.training.start import start_from
from nas.watch import TrainingNotes, Watcher
from nas.workers.stopping import Stopper, watching

if TYPE_CHECKING:
    from nas.children.quantize import QuantizedFigures

FLUSH_SECONDS = 30.0  # at the end, for what MLflow does not have yet


class Pipeline:
    """One attempt at a run. Make it by `Pipeline.open`.

    Attributes:
        experiment: what is run.
        run: its directory.
        worked: whether any stage had something to do.
    """

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        net: Supernet,
        recipe: Recipe,
        run: RunDir,
        fence: Fence,
        tracker: Tracker,
        watch: Watcher,
        device: torch.device,
    ) -> None:
        self.experiment, self.task, self.net, self.recipe = experiment, task, net, recipe
        self.run, self.fence, self.tracker, self.watch, self.device = run, fence, tracker, watch, device
        self._trained: Checkpoint | None = None  # verified once a command
        self.ray, self.stopper = ExitStack(), Stopper(fence, watch.say)
        self.inner: Pipeline | None = None  # of a finetune while it goes on
        self.worked = False

    @classmethod
    @contextmanager
    def open(
        cls,
        experiment: Experiment,
        directory: Path,
        watch: Watcher,
        mirror: str | None = None,
        source: RunDir | None = None,
    ) -> Iterator[Pipeline]:
        """Take the run directory, check what can be checked before anything is started, and follow with the tracker.

        Args:
            mirror: where an object store keeps this run as well, ``s3://bucket/prefix/name``; a run that is not here
                yet is restored from there.
            source: a run whose supernet this one searches, where it has none of its own yet.

        Raises:
            ValueError: the space cannot meet the constraints; the directory is occupied; the data or the mirror cannot
                be used.
        """
        device = driver_device(experiment.train.use_gpu)
        run = RunDir(directory.absolute())
        space_of(experiment.space.name, experiment.space.size)  # before the data are read, which takes longer
        index = Index(run.index)
        task = load_task(experiment, index)
        net = make_supernet(experiment, task)
        if task.least_side < net.least_side:
            raise ValueError(
                f"networks of this space need {net.least_side} pixels a side; the data have inputs of "
                f"{task.least_side}: "
                "raise data.patch (or data.tile), and test on larger images"
            )
        check_constraints(experiment, net, objective_of(experiment, task, net))
        recipe = load_recipe(task, experiment.recipe)
        make_alone(experiment, task, net, device)  # refuses what the search could not train
        if newest_sha(run.checkpoints) is None:  # else it has trained it; torch's optimizers take a second to import
            check_trainable(recipe, net)
            if (start := experiment.train.init_from) and not (source or mirror or run.start.exists()):
                start_from(net, Path(start))  # refuses what it cannot begin with
            if told := made_smaller(net, task):
                watch.say(told)
        tracking = experiment.tracking
        kept = None
        if mirror:
            from nas.rundir.mirror import Mirror  # what takes time to import stands where it is used, here and below

            kept = Mirror(mirror, run.path, watch.say)
            kept.bring()
        with open_run(experiment, run) as fence, kept or nullcontext():
            if source:
                take_supernet(experiment, run, source, watch.say)
            index.shared = run.batches
            if news := index.news:
                write_atomic(run.index, news)
            tracker = Tracker(run, address(run, tracking.uri), tracking.experiment or experiment.name)
            try:
                tracker.start()
                pipeline = cls(experiment, task, net, recipe, run, fence, tracker, watch, device)
                if kept:
                    kept.lost = lambda: pipeline.ask("another attempt has taken over the run: saving and ending")
                with pipeline.stopper.listening(), pipeline.ray:
                    yield pipeline
            except BaseException as error:
                tracker.close(5, "KILLED")
                if isinstance(error, Gone):
                    run.clear_away()
                if isinstance(error, OSError):
                    fence.check()  # a file was not found, say, since nothing of the run is there any more
                raise
            missed = tracker.close(FLUSH_SECONDS)
            if missed:
                watch.say(f"{missed} items could not be sent to MLflow; they are kept, and the same command sends them")
        shutil.rmtree(run.ray, ignore_errors=True)

    def all(self) -> list[str]:
        """Every stage but the report, as far as it is not done yet. Returns the ids of the exported children."""
        self.train()
        self.search()
        ids = self.export()
        return ids + [self.finetune(child) for child in self.to_finetune(ids)]

    def train(self) -> None:
        """The supernet, to the end of its schedule or of its time."""
        total = total_steps(self.experiment, len(self.task.train), self.recipe)
        newest = self._newest()
        if newest and newest.finished(total, self.experiment.train.max_minutes):
            self.watch.say(f"train: done before ({newest.state.step:,} steps)")
            self.tracker.finish("train")
            return
        # what the search shall begin with is refused now, not after the training
        open_search(self.experiment, self.net, self.task)
        if newest and not self.experiment.train.max_minutes:
            self.watch.say(f"train: goes on from step {newest.state.step:,} of {total:,} (--minutes N ends it by time)")
        self._begin("train", "starting Ray and the workers")

        def prepared() -> None:
            from nas.workers.train import prepare

            prepare(self.device)

        self._ray(prepared)
        from nas.workers.train import train

        seen = TrainingNotes(self.task.metric, self.experiment.train.max_minutes, self.watch)

        def notify(line: Line) -> None:
            seen.take(line)
            self.tracker.poke()

        self._trained = newest = train(self.experiment, self.run, self.fence, notify)
        if newest is None:
            self.stopper.check()
        assert newest is not None
        self.watch.end(f"{newest.state.step:,} steps in {newest.state.seconds / 60:.1f} min{seen.panel}")
        if newest.finished(total, self.experiment.train.max_minutes):
            self.tracker.finish("train")
        self.stopper.check()

    def search(self) -> None:
        """Candidates, until there are as many as asked for."""
        newest, history = self._supernet(), self._history()
        target, began, before = self.experiment.search.candidates, time.monotonic(), len(history.records)
        if before >= target:
            self.watch.say(f"search: done before: {outcome(history)}")
            return
        self._begin("search", "starting the evaluators")
        self._ray(lambda: import_module("nas.workers.trials"))
        from nas.workers.trials import search_children  # brings in Ray Tune, which training does without

        def notify(record: Record) -> None:
            history.update()
            self.watch.advance(len(history.records), target, standing(history), "candidates", None)
            self.tracker.poke()

        why = search_children(self.experiment, self.task, self.net, self.run, self.fence, newest, notify)
        history.update()
        if why:
            self.watch.say(why)
        done = len(history.records)
        rate = (done - before) / max(time.monotonic() - began, 1e-9)
        left = "" if done >= target or why else f"; the same command goes on to {target:,}"
        self.watch.end(f"{outcome(history)}, {rate:.1f} a second with the start of Ray{left}")
        self.stopper.check()

    def export(self, only: str | None = None) -> list[str]:
        """The children of the front, spread over it; or the one candidate that is named. Returns their ids.

        Raises:
            ValueError: there is nothing to choose from, or no such candidate.
        """
        history, wanted = self._history(), self.experiment.export.children
        chosen = choose(history, self.experiment, only)
        if only is None and (bound := history.constraints).bounds:
            self.watch.say(f"export: children within {bound}, as the run says; to lift that: {lifting(bound)}")
        if only is None and len(chosen) < wanted:
            self.watch.say(f"export: {len(chosen)} of {wanted} children: the front has no more")
        self._export({record.arch: history.steps(record) for record in chosen})
        return [record.id for record in chosen]

    def _export(
        self, archs: Mapping[Arch, int], target: Path | None = None, more: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Those children that are not there yet, each in its own directory of RUN/children, or the only one in
        `target`; trained for so many steps by themselves, as the search has scored them."""
        supernet = self._supernet().sha
        places = {arch: target or self.run.child(arch.id).path for arch in archs}
        onnx = self.experiment.export.onnx
        open_ = [arch for arch, steps in archs.items() if not exported(places[arch], supernet, onnx, steps)]
        if not open_:
            self.watch.say(f"export: done before ({len(archs)} children)")
            return
        self._begin("export", "calibrating and scoring on test")
        evaluator, test = self._evaluator()
        space = self.experiment.space
        about = {
            "space": space.name,
            "size": space.size,
            "supernet": supernet,
            "data": self.experiment.data.name,
            **self.task.about,
        }
        costs, tied = costs_of(self.experiment, self.net), ties(self._history().front())
        for number, arch in enumerate(open_, 1):
            steps = archs[arch]
            facts = {**about, **({"finetuned": {"steps": steps}} if steps else {}), **more}
            facts |= {"tied": tied[arch.id]} if arch.id in tied else {}
            export_child(places[arch], arch, costs, evaluator, test, facts, onnx, self.fence, steps)
            self.watch.advance(number, len(open_), places[arch].name, "children", None)
            self.tracker.poke()
            self.stopper.check()
        self.watch.end(f"{len(open_)} children in {target.parent if target else self.run.children}")

    def add_formats(self, ids: list[str], formats: Sequence[str]) -> None:
        """Exported children in further formats, beside the files that they have.

        Raises:
            ValueError: a network has an operation that a runtime does not take.
        """
        if not formats:
            return
        from nas.children.runtimes import add  # brings in the runtimes

        self._begin("formats", ", ".join(formats))
        modules, costs = child_packages(self.experiment.space.name), costs_of(self.experiment, self.net).measures
        for number, name in enumerate(ids, 1):
            add(self.run.child(name).path, formats, self.task, modules, costs, self.fence)
            self.watch.advance(number, len(ids), name, "children", None)
            self.stopper.check()
        self.watch.end(f"{len(ids)} children also as {', '.join(formats)}")

    def to_finetune(self, ids: list[str]) -> list[str]:
        """Those of these children that the experiment wants trained on: the best first."""
        settings, history = self.experiment.finetune, self._history()
        records = [record for record in history.records.values() if record.id in ids]
        best = sorted(records, key=lambda record: history.objective.point(record.metrics, record.cost)[0])
        return [record.id for record in best[: settings.children if settings else 0]]

    def finetune(self, child: str) -> str:
        """Train one child on by itself, as the experiment's section ``finetune`` says, and export it beside the others.
        Returns its id.

        It is a run of its own in RUN/finetune/<child>-<supernet>, so it continues like any other. Needs that this run
        was searched.

        Raises:
            ValueError: no such candidate, or no such teacher.
            Occupied: that child was trained on in another way.
        """
        supernet = self._supernet()
        (record,) = choose(self._history(), self.experiment, child)
        run, name = self.run.finetuned(record.id, supernet.sha), f"{record.id}{FINETUNED}"
        derived = finetune_experiment(self.experiment, self.run, record, supernet, self._teacher())
        check_alike(derived, RunDir(run), self.run.child(name).path)
        with Pipeline.open(derived, run, self.watch) as self.inner:
            self.stopper.check()
            self.inner.train()
            state = self.inner._supernet().state  # its time may have ended it before
            epochs = round(derived.recipe.epochs * state.step / state.total, 3)
            about = {"finetuned": {"epochs": epochs, "from": derived.space.inherit and record.id}}
            self.inner.export_only(self.run.child(name).path, about)
            self.inner.report()
            self.worked |= self.inner.worked
        self.inner = None
        self.tracker.poke()
        return name

    def _teacher(self) -> Path | None:
        """The exported child that the experiment names as the teacher; the largest one is exported here if need be."""
        assert self.experiment.finetune is not None
        name = self.experiment.finetune.teacher
        if name is None:
            return None
        if name == "largest":
            arch = self.net.space.largest()
            self._export({arch: self.experiment.search.rungs[-1][1]})
            name = arch.id
        child = self.run.child(name)
        if not child.arch.is_file():
            raise ValueError(
                f"finetune.teacher {name!r} is no exported child of {self.run.path}: nas export {self.run.path} "
                f"--child {name}"
            )
        return child.path

    def export_only(self, target: Path, about: dict[str, Any]) -> None:
        """The one child of a space of one, as a directory `target`, with further facts of where it comes from."""
        self._export({self.net.space.largest(): 0}, target, about)

    def fidelity(self, children: int | None = None, seeds: int | None = None) -> Fidelity | None:
        """Children trained alone, against which the supernet's scores are held; None where there are too few yet.

        Args:
            children, seeds: how many, and trainings of each; None: as the experiment says.

        Raises:
            ValueError: too few children lie within the constraints, or a batch is more than the data.
            RuntimeError: a training failed.
        """
        experiment, space = self.experiment, self.net.space
        objective, costs = objective_of(experiment, self.task, self.net), costs_of(experiment, self.net)
        constraints = constraints_of(experiment).without(set(objective.names) - costs.measures.keys())
        archs = evenly(space, costs, objective.cost, constraints, children or experiment.fidelity.children)
        # refuses what could not be trained
        Alone(experiment, self.task, self.net, check_recipe(experiment), self.device, 0)
        judged = len(self.task.validation)
        about = {"validation": min(experiment.search.validation or judged, judged), "test": len(self.task.test)}
        prices = {arch: costs(arch)[objective.cost] for arch in archs}
        trials = Trials.open(self.run, experiment, self._supernet().sha, objective, about, prices)
        self._score_for(trials)
        self._train_for(trials, seeds or experiment.fidelity.seeds)
        return trials.fidelity(experiment.search.candidates)

    def _score_for(self, trials: Trials) -> None:
        """What the supernet says of the children, as the search would score them on each of its rungs."""
        if not (open_ := trials.open_scores()):
            return
        self._begin("score", "calibrating and scoring the children")
        evaluator, _ = self._evaluator()
        for number, (arch, steps) in enumerate(open_, 1):
            trials.add_score(arch.id, steps, evaluator.judge(arch, steps).metrics)
            self.watch.advance(number, len(open_), arch.id, "children", None)
            self.stopper.check()
        self.watch.end(f"{len(open_)} scores")

    def _train_for(self, trials: Trials, seeds: int) -> None:
        if not (open_ := trials.open_jobs(seeds)):
            return
        from nas.workers.alone import train_alone  # brings in Ray Tune

        self._begin("fidelity", "starting the workers")
        self._ray(lambda: import_module("nas.workers.alone"))

        def trained(arch: Arch, seed: int, judged: Judged) -> None:
            trials.add_alone(arch.id, seed, judged)
            left, done = len(trials.open_jobs(seeds)), len(trials.alone)
            self.watch.advance(done, done + left, f"{arch.id}, seed {seed}", "trainings", None)

        if failed := train_alone(self.experiment, self.run, self.fence, open_, trained):
            raise RuntimeError(f"{failed}; the same command goes on")
        self.watch.end(f"{len(trials.alone)} trainings")
        self.stopper.check()

    def quantize(self, name: str, target: QuantizationTarget) -> QuantizedFigures:
        """One exported child, by the name of its directory, with weights and activations of few bits. Returns its
        figures.

        Raises:
            ValueError: there is no such child, or it cannot be what is asked for.
        """
        from nas.children.quantize import done_before, quantize_child

        source = self.run.exported_child(name).path
        settings, modules = self.experiment, child_packages(self.experiment.space.name)
        if figures := done_before(source, target, settings.export.onnx):
            self.watch.say(f"quantize: done before ({figures['id']})")
            return figures
        self._begin("quantize", "reading the child and the calibration images")

        def tell(done: float, total: float, note: str) -> None:
            self.watch.advance(done, total, note, "layers", None)
            self.stopper.check()

        device, size = self.device, settings.search.score_batch
        figures = quantize_child(
            source, target, self.task, device, self.fence, modules, size, settings.export.onnx, tell
        )
        self.watch.end(str(self.run.child(figures["id"]).path))
        return figures

    def ask(self, why: str) -> None:
        """Ask the run to save and end, with whatever of it is at work; from any thread."""
        for each in (self.inner, self):
            if each is not None:
                each.stopper.ask(why)

    def report(self) -> Path:
        """RUN/report.html."""
        from nas.results.report import write_report

        return write_report(self.run)

    def _ray(self, meanwhile: Callable[[], object]) -> None:
        """A connection to Ray for the rest of the command; `meanwhile` is done while it starts."""
        from nas.workers.session import leaving, session

        self.ray.enter_context(session(self.run.ray_logs, self.stopper.check, meanwhile))
        notice = "this machine is being taken away: saving and ending"
        self.ray.enter_context(watching(leaving, lambda: self.ask(notice)))

    def _begin(self, stage: str, note: str) -> None:
        self.stopper.check()
        self.worked = True
        self.watch.begin(stage, note)

    def _newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, if there is one; verified once a command."""
        if self._trained is None:
            self._trained = Checkpoint.newest(self.run.checkpoints, self.watch.say)
        return self._trained

    def _supernet(self) -> Checkpoint:
        """The trained supernet.

        Raises:
            ValueError: there is none yet.
        """
        return trained(self._newest(), self.experiment, self.run)

    def _history(self) -> History:
        """What the search over the trained supernet has found so far."""
        return history_of(self.experiment, self.run, self._supernet())

    def _evaluator(self) -> tuple[Evaluator, Batches]:
        device, settings, shared = self.device, self.experiment.search, self.run.batches
        self.net.load_state_dict(self._supernet().child_weights())
        net: Supernet = self.net.to(device)
        alone, test = make_alone(self.experiment, self.task, net, device), self.task.test
        evaluator = Evaluator(net, self.task, settings, device, None, shared, alone)
        evaluator.told = lambda _: self.stopper.check()
        return evaluator, Batches(test, len(test), settings.score_batch, device, place=shared / "test")
