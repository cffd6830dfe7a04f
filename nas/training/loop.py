"""The training loop of one worker: batches, losses, steps, panel, guard, checkpoints. It knows no Ray."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from nas.build import load_recipe, load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator, fit_steps, panel
from nas.children.export import child_packages, load_child
from nas.config.experiment import Experiment
from nas.device import enough_memory
from nas.draws import bits
from nas.recipes.recipe import AVERAGE, Recipe, Step
from nas.rundir.atomic import Damaged, write_atomic
from nas.rundir.checkpoint import Checkpoint, State, retain, tensors_in
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.rundir.log import EventLine, Line, Log, PanelLine, StepLine
from nas.supernet import Supernet
from nas.tasks.index import Index
from nas.tasks.task import pixels
from nas.training.engine import Engine
from nas.training.feeds import loaders_of, make_feeds, prefetched
from nas.training.guard import Diverged, check_loss, check_panel, worst_of
from nas.training.saving import Saving
from nas.training.start import start_from

PANEL_EXAMPLES = 1000
LEAVING_S = 2.0  # between two questions whether a machine will be taken away


def total_steps(experiment: Experiment, train_examples: int, recipe: Recipe) -> int:
    """Optimizer steps of a whole training; an epoch goes once through the recipe's first feed and drops the rest of
    a batch."""
    examples = int(train_examples * next(iter(recipe.feeds.values())))
    if examples < experiment.recipe.batch:
        raise ValueError(
            f"recipe.batch {experiment.recipe.batch} is more than the {examples} training examples; lower it"
        )
    return max(1, round(experiment.recipe.epochs * (examples // experiment.recipe.batch)))


class Loop:
    """One worker's part of the training of one supernet.

    Args:
        experiment: what to train.
        run: the same one for all workers.
        fence: refuses writes of an attempt that is over.
        rank, world: which worker of how many.
        device: where to work.
        leaving: whether the machine of some rank will be taken away, so that all shall save and return. All ranks ask
            at the same steps, and must be given the same answer.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: RunDir,
        fence: Fence,
        rank: int,
        world: int,
        device: torch.device,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.leaving = leaving
        self.experiment, self.run, self.fence, self.rank, self.world, self.device = (
            experiment,
            run,
            fence,
            rank,
            world,
            device,
        )
        self.task = load_task(experiment, Index(run.index, run.batches))
        fence.check()
        self.log = Log(run.training_log) if rank == 0 else None

    def train(self) -> None:
        """Train to the end, from the newest whole checkpoint; after a divergence from there again, at half the rate.

        Raises:
            Diverged: more often than ``train.max_rollbacks``.
            MemoryShort: the GPU is too small for a step.
        """
        while True:
            told = [len(read_rollbacks(self.run))]
            torch.distributed.broadcast_object_list(told)  # a network's file system may show other nodes a file late
            rollbacks = told[0]
            try:
                with enough_memory(self._lower()), closing(Attempt(self, 0.5**rollbacks)) as attempt:
                    attempt.to_the_end()
                return
            except Diverged as reason:
                if rollbacks >= self.experiment.train.max_rollbacks:
                    raise Diverged(
                        f"{reason}; that was after {rollbacks} rollbacks, each at half the learning rate. In a new run "
                        "lower recipe.lr or set recipe.clip_norm; this one goes on with a higher train.max_rollbacks"
                    ) from None
                self.note(EventLine("rollback", str(reason)))
                if self.rank == 0:
                    self.fence.check()
                    write_atomic(self.run.rollbacks, json.dumps([*read_rollbacks(self.run), str(reason)]))
                torch.distributed.barrier()

    def _lower(self) -> str:
        """What to change where a step needs more memory than there is."""
        train = self.experiment.train
        micro = train.micro_batch or self.experiment.recipe.batch // self.world
        return (
            f"lower train.micro_batch (now {micro}) or raise train.zero_stage (now {train.zero_stage}, at most 3; it "
            f"divides what the optimizer keeps among {self.world} workers); the same command continues"
        )

    def note(self, line: Line) -> None:
        """A line in the training log, from rank 0."""
        if self.log is not None:
            self.log.write(line)


class Attempt:
    """From the newest checkpoint to the end of training, or to a divergence."""

    def __init__(self, loop: Loop, rate: float) -> None:
        self.loop, self.experiment, self.task, self.rate = loop, loop.experiment, loop.task, rate
        settings, recipe_settings = self.experiment.train, self.experiment.recipe
        self.recipe = load_recipe(self.task, recipe_settings)
        if self.recipe.taught_by:
            self.recipe.teacher = load_child(self.recipe.taught_by, child_packages(self.experiment.space.name)).to(
                loop.device
            )
        self.total = total_steps(self.experiment, len(self.task.train), self.recipe)
        self.feeds = make_feeds(
            self.recipe, self.task.train, recipe_settings.batch, loop.rank, loop.world, self.experiment.seed
        )
        mine = recipe_settings.batch // loop.world
        self.micro = settings.micro_batch or mine
        net, found = make_supernet(self.experiment, self.task), self._newest()
        if found:
            net.load_state_dict(found.weights())
        else:
            self._begin(net)
        optimizer = self.recipe.optimizer(net)
        self.averaged = (
            copy.deepcopy(net).to(loop.device) if self.recipe.follows else None
        )  # before DeepSpeed puts its own into the network
        self.engine = Engine(
            net, optimizer, settings.zero_stage, settings.precision, recipe_settings.clip_norm, self.micro, loop.device
        )
        self.state, self.stopping, self.saving = State(0, self.total), False, Saving()
        if found:
            self._restore(found)
        self.began, self.asked = time.monotonic() - self.state.seconds, time.monotonic()
        random = np.random.default_rng(bits(self.experiment.seed, "panel"))
        self.panel = panel(net.space, random)
        search, shared = self.experiment.search, loop.run.batches
        self.evaluator = Evaluator(net, self.task, search, loop.device, PANEL_EXAMPLES, shared)

    def close(self) -> None:
        try:
            self.saving.wait()
        finally:
            self.engine.close()

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from: rank 0 looks, so that all take the same, and verifies it for all."""
        found: list[tuple[str, Mapping[str, Any]] | None] = [None]
        if self.loop.rank == 0:
            newest = Checkpoint.newest(
                self.loop.run.checkpoints, lambda why: self.loop.note(EventLine("checkpoint", why))
            )
            found = [(newest.directory.name, newest.manifest) if newest else None]
        torch.distributed.broadcast_object_list(found)
        return Checkpoint(self.loop.run.checkpoints / found[0][0], found[0][1]) if found[0] else None

    def _begin(self, net: Supernet) -> None:
        """What the first step starts from, where that is not fresh weights. Rank 0 reads it, once a run, and keeps it
        there: it may change or go while others, or a later attempt, would read it."""
        if given := self.experiment.train.init_from:
            kept = self.loop.run.start
            if self.loop.rank == 0 and not kept.exists():
                told = start_from(net, Path(given))
                self.loop.fence.check()
                write_atomic(kept, save({name: value.contiguous() for name, value in net.state_dict().items()}))
                self.loop.note(EventLine("start", told))
            torch.distributed.barrier()
            net.load_state_dict(tensors_in(kept))
        if net.quantizes and net.space.cardinality == 1 and self.recipe.quant == "real":
            size = self.experiment.search.calibration_batch
            fit_steps(net, Batches(self.task.train, size, size, torch.device("cpu"), epoch=0))

    def _restore(self, found: Checkpoint) -> None:
        self.state = replace(found.state, total=self.total)
        self.engine.load_optimizer_state(found.optimizer(), self.state.step)
        self.recipe.load(found.recipe())

    def to_the_end(self) -> None:
        """Steps until the schedule or the time is used up, or the run is asked to end; a checkpoint every so often
        and at the end, which is written while training goes on."""
        settings, device = self.experiment.train, self.loop.device
        limit, every = settings.max_minutes, settings.checkpoint_every
        loaders = loaders_of(settings.loaders, settings.cpus_per_worker, self.task.train, device)
        with closing(prefetched(self.feeds, self.state.step, loaders, device.type == "cuda")) as batches:
            while self.state.share_done(limit) < 1 and not self.stopping:
                self._step(next(batches))
                if self.state.step % every == 0 or self.state.share_done(limit) >= 1:
                    self._look()
                    self._save()
                elif self.stopping:
                    self._save()
        self.saving.wait()

    def _step(self, batches: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """One optimizer step: every loss of the recipe, every micro-batch, then the engine's step.

        Nothing waits for the device or for another rank before all passes are on their way.
        """
        state, names, seen = self.state, self.recipe.names, list[Tensor]()
        size = len(next(iter(batches.values()))[1])
        parts = -(-size // self.micro)
        lr = 0.0
        for part in range(parts):
            step = self._facts(part)
            rows = slice(part * self.micro, (part + 1) * self.micro)
            here = {name: (pixels(self._sent(x[rows])), self._sent(y[rows])) for name, (x, y) in batches.items()}
            losses = self.recipe.losses(self.engine, self.engine.module, here, step)
            for _ in names:
                with self.engine.autocast():
                    loss = next(losses)
                self.engine.backward(loss / parts)
                seen.append(loss.detach().reshape(()))
            next(losses, None)
            lr = self.rate * self.recipe.lr(step)
        values = torch.stack(seen).tolist()  # once a step: a GPU is waited for
        each = [sum(value / parts for value in values[n :: len(names)]) for n in range(len(names))]
        self._guard(each)
        self.engine.step(lr)
        if self.recipe.follows:
            with self.engine.whole() as net:
                self.recipe.stepped(net, step)
        state.step += 1
        if self.loop.log is not None and (self.loop.log.due() or state.step == state.total):
            epoch, done = (
                state.step / next(iter(self.feeds.values())).an_epoch,
                state.share_done(self.experiment.train.max_minutes),
            )
            how_far = round(epoch, 3), round(state.seconds, 2), round(done, 5)
            sums = dict.fromkeys(names, 0.0)
            for name, loss_of_one in zip(names, each, strict=True):  # paths share a name
                sums[name] += loss_of_one
            self.loop.note(StepLine(state.step, state.total, *how_far, lr, sums))

    def _sent(self, part: Tensor) -> Tensor:
        """On the device; the copy from pinned memory goes on beside what it computes."""
        return part.to(self.loop.device, non_blocking=True)

    def _facts(self, micro_step: int) -> Step:
        seed, index, rank = self.experiment.seed, self.state.step, self.loop.rank
        noise = torch.Generator(self.loop.device).manual_seed(
            int(bits(seed, "noise", index, micro_step, rank)[0] >> np.uint64(1))
        )
        archs = np.random.default_rng(bits(seed, "architectures", index))
        progress = self.state.share_done(self.experiment.train.max_minutes)
        row = rank * self.experiment.recipe.batch // self.loop.world + micro_step * self.micro
        return Step(index, self.state.total, progress, row, archs, noise, self.engine.mean, seed)

    def _guard(self, losses: Sequence[float]) -> None:
        """Agree with the other ranks on time, on the worst loss before a bad gradient is applied, and on whether to end
        here.

        Raises:
            Diverged: a loss is not finite, or the first one is far above what it was in the first steps.
        """
        self.saving.check()
        first = self.loop.rank == 0
        stop, ask = first and self.loop.fence.stopping(), first and time.monotonic() - self.asked > LEAVING_S
        worst, self.state.seconds, stopping, asking = self.engine.highest(
            worst_of(losses), time.monotonic() - self.began, stop, ask
        )
        self.stopping = stopping > 0
        if asking:
            self.asked = time.monotonic()
            if self.loop.leaving():
                self.loop.note(
                    EventLine("preemption", "a machine is being taken away: saving, and going on with those that stay")
                )
                self.stopping = True
        check_loss(self.state, worst)

    def _look(self) -> None:
        """The panel: every rank judges its share of the children on validation.

        Raises:
            Diverged: the largest child fell back to chance.
        """
        with self.engine.whole() as net:
            self.evaluator.net = self._judged(net)
            children = {**self.panel, **self.recipe.chosen(net)}
            mine = list(children.items())[self.loop.rank :: self.loop.world]
            found = {name: self.evaluator(arch) for name, arch in mine}
            followed = self.recipe.figures(net)
        figures = {name: figure for part in self.engine.gather(found) for name, figure in part.items()}
        ordered, seconds = {name: figures[name] for name in children}, round(time.monotonic() - self.began, 2)
        self.loop.note(PanelLine(self.state.step, ordered, followed, seconds))
        check_panel(self.state, figures["largest"][self.task.metric], self.task)

    def _judged(self, net: Supernet) -> Supernet:
        """The network with the weights that children are cut from, see `Checkpoint.child_weights`."""
        if self.averaged is None:
            return net
        kept = {
            name.removeprefix(AVERAGE): value for name, value in self.recipe.state().items() if name.startswith(AVERAGE)
        }
        self.averaged.load_state_dict({**net.state_dict(), **kept})
        return self.averaged

    def _save(self) -> None:
        """A checkpoint of a copy of all that it holds, written by rank 0; it knows neither the number of ranks nor the
        ZeRO stage."""
        weights, optimizer = self.engine.weights(), self.engine.optimizer_state()
        if not all(value.isfinite().all() for value in weights.values()):
            raise Diverged(f"at step {self.state.step} the weights are not finite")
        if self.loop.rank:
            return
        kept = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in self.recipe.state().items()
        }
        state, root = replace(self.state), self.loop.run.checkpoints

        def write() -> None:
            try:
                Checkpoint.write(root, state, weights, optimizer, kept, self.loop.fence.check)
                retain(root, self.experiment.train.keep)
            except OSError:
                self.loop.fence.check()  # a run that is gone is told as that, not by the file that is missed first
                raise

        self.saving.begin(write)


def read_rollbacks(run: RunDir) -> list[str]:
    """Why training went back to a checkpoint, each time that it did; each halves the learning rate."""
    if not run.rollbacks.exists():
        return []
    try:
        told = json.loads(run.rollbacks.read_bytes())
        assert isinstance(told, list)
    except (ValueError, AssertionError):
        raise Damaged(
            f"{run.rollbacks} is damaged: it is no list of reasons, each of which halves the learning rate; write the "
            "rollbacks there that metrics.jsonl beside it has, or delete it where that has none"
        ) from None
    return told
