"""The training loop of one worker: batches, losses, steps, panel, guard, checkpoints. It knows no Ray."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.children.evaluate import Batches, Evaluator, fit_steps, panel
from nas.children.export import child_packages, load_child
from nas.config.experiment import Experiment
from nas.draws import bits, permutation
from nas.recipes import AVERAGE, Recipe, Step, load_recipe
from nas.rundir import atomic
from nas.supernet import Supernet, load_supernet
from nas.tasks import load_task
from nas.training.engine import Engine

FIRST_LOSSES = 20  # steps whose largest loss is the yardstick for an exploding one
EXPLODED = 4.0  # times that yardstick
LOST = 0.1  # share of what the largest child had gained over chance, below which it has collapsed
PANEL_EXAMPLES = 1000
LEAVING_S = 2.0  # between two questions whether a machine will be taken away


class Diverged(RuntimeError):
    """The loss is not finite or exploded, or the panel fell to chance."""


@dataclass
class State:
    """What a checkpoint keeps besides tensors.

    Attributes:
        step, total: optimizer steps done and planned.
        seconds: time spent in the loop so far, over all attempts.
        yardstick: the largest loss of the first steps.
        best: the largest child's best metric on the panel so far, if there was a panel.
    """

    step: int
    total: int
    seconds: float = 0.0
    yardstick: float = 0.0
    best: float | None = None


def checkpoints(run: Path) -> Path:
    """Where a run keeps the supernet's checkpoints."""
    return run / "supernet"


def build(experiment: Experiment, task: Any) -> Supernet:
    """The experiment's network with its first weights, which depend on the seed alone, or on the checkpoint that a child inherits.

    Raises:
        ValueError: the space has no such child.
        Damaged: the checkpoint that it shall inherit from is not whole.
    """
    space = experiment.space
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.seed)
        net = load_supernet(space.name, space.size, **{**task.network, **space.options})
        if space.child is None:
            return net
        if space.inherit:
            atomic.verify(Path(space.inherit))
            net.load_state_dict(judged_weights(Path(space.inherit)))
        return net.fix(net.space.arch(space.child), fresh=not space.inherit)


def judged_weights(found: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint that children are cut from: a recipe's moving average where it keeps one, else those that are trained."""
    weights = load_file(found / "weights.safetensors")
    kept = load_file(found / "recipe.safetensors").items()
    return weights | {name.removeprefix(AVERAGE): value for name, value in kept if name.startswith(AVERAGE)}


def total_steps(experiment: Experiment, train_examples: int, recipe: Recipe) -> int:
    """Optimizer steps of a whole training; an epoch goes once through the recipe's first feed and drops the rest of a batch."""
    examples = int(train_examples * next(iter(recipe.feeds.values())))
    if examples < experiment.recipe.batch:
        raise ValueError(f"recipe.batch {experiment.recipe.batch} is more than the {examples} training examples; lower it")
    return max(1, round(experiment.recipe.epochs * (examples // experiment.recipe.batch)))


def share_done(state: State, max_minutes: float | None) -> float:
    """How much of the training is done, in [0, 1]: by steps, or by time where that is bounded and further on."""
    by_time = state.seconds / (60 * max_minutes) if max_minutes else 0.0
    return min(1.0, max(state.step / state.total, by_time))


class Feed:
    """One share of the training data, endlessly: batch number n of this rank, a pure function of (seed, n)."""

    def __init__(self, split: Any, rows: np.ndarray, batch: int, rank: int, world: int, seed: int, name: str) -> None:
        self.split, self.rows, self.batch, self.seed, self.name = split, rows, batch, seed, name
        self.mine = slice(rank * batch // world, (rank + 1) * batch // world)
        self.an_epoch = len(rows) // batch

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, self.an_epoch)
        order = permutation(len(self.rows), self.seed, f"order {self.name}", epoch)
        rows = self.rows[order[place * self.batch : (place + 1) * self.batch][self.mine]]
        return self.split.batch(rows, epoch)


def make_feeds(recipe: Recipe, split: Any, batch: int, rank: int, world: int, seed: int) -> dict[str, Feed]:
    """The feeds that a recipe asks for: disjoint shares of the training examples."""
    rows, feeds, start = permutation(len(split), seed, "feeds"), {}, 0.0
    for name, share in recipe.feeds.items():
        part = np.sort(rows[round(start * len(rows)) : round((start + share) * len(rows))])
        feeds[name] = Feed(split, part, batch, rank, world, seed, name)
        start += share
    return feeds


class Loop:
    """One worker's part of the training of one supernet.

    Args:
        experiment: what to train.
        run: the run directory, the same one for all workers.
        fence: refuses writes of an attempt that is over.
        rank, world: which worker of how many.
        device: where to work.
        leaving: whether the machine of some rank will be taken away, so that all shall save and return. All ranks ask at the same steps, and
            must be given the same answer.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Path,
        fence: atomic.Fence,
        rank: int,
        world: int,
        device: torch.device,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.leaving = leaving
        self.experiment, self.run, self.fence, self.rank, self.world, self.device = experiment, run, fence, rank, world, device
        self.task = load_task(experiment)
        self.root = checkpoints(run)
        self.log = Log(run / "train" / "metrics.jsonl") if rank == 0 else None

    def train(self) -> None:
        """Train to the end, from the newest whole checkpoint; after a divergence from there again, at half the rate.

        Raises:
            Diverged: more often than ``train.max_rollbacks``.
        """
        while True:
            told = [len(read_rollbacks(self.run))]
            torch.distributed.broadcast_object_list(told)  # a network's file system may show other nodes a file late
            rollbacks = told[0]
            try:
                with closing(Attempt(self, 0.5**rollbacks)) as attempt:
                    attempt.to_the_end()
                return
            except Diverged as reason:
                self.note(event="rollback", reason=str(reason))
                if rollbacks >= self.experiment.train.max_rollbacks:
                    raise Diverged(
                        f"{reason}; that was after {rollbacks} rollbacks, each at half the learning rate: lower recipe.lr or set recipe.clip_norm"
                    ) from None
                if self.rank == 0:
                    self.fence.check()
                    atomic.write_atomic(rollbacks_file(self.run), json.dumps([*read_rollbacks(self.run), str(reason)]))
                torch.distributed.barrier()

    def note(self, **line: Any) -> None:
        """A line in the run's metrics, from rank 0."""
        if self.log is not None:
            self.log.write(line)


class Attempt:
    """From the newest checkpoint to the end of training, or to a divergence."""

    def __init__(self, loop: Loop, rate: float) -> None:
        self.loop, self.experiment, self.task, self.rate = loop, loop.experiment, loop.task, rate
        settings, recipe_settings = self.experiment.train, self.experiment.recipe
        self.recipe = load_recipe(self.task, recipe_settings)
        if directory := getattr(recipe_settings, "teacher", None):
            self.recipe.teacher = load_child(directory, child_packages(self.experiment.space.name)).to(loop.device)
        self.total = total_steps(self.experiment, len(self.task.train), self.recipe)
        self.feeds = make_feeds(self.recipe, self.task.train, recipe_settings.batch, loop.rank, loop.world, self.experiment.seed)
        mine = recipe_settings.batch // loop.world
        self.micro = settings.micro_batch or mine
        net, found = build(self.experiment, self.task), self._newest()
        if found:
            net.load_state_dict(load_file(found / "weights.safetensors"))
        elif net.quantizes and net.space.cardinality == 1 and getattr(recipe_settings, "quant", "off") == "real":
            size = self.experiment.search.calibration_batch
            fit_steps(net, Batches(self.task.train, size, size, torch.device("cpu"), epoch=0))
        optimizer = self.recipe.optimizer(net)
        self.averaged = copy.deepcopy(net).to(loop.device) if self.recipe.follows else None  # before DeepSpeed puts its own into the network
        self.engine = Engine(net, optimizer, settings.zero_stage, settings.precision, recipe_settings.clip_norm, self.micro, loop.device)
        self.state, self.stopping = State(0, self.total), False
        if found:
            self._restore(found)
        self.began, self.asked = time.monotonic() - self.state.seconds, time.monotonic()
        random = np.random.default_rng(bits(self.experiment.seed, "panel"))
        self.panel = panel(net.space, random)
        self.evaluator = Evaluator(net, self.task, self.experiment.search, loop.device, PANEL_EXAMPLES)

    def close(self) -> None:
        self.engine.close()

    def _newest(self) -> Path | None:
        """The checkpoint to go on from: rank 0 looks, so that all take the same."""
        found: list[Any] = [None]
        if self.loop.rank == 0:
            path = atomic.newest_valid(self.loop.root, lambda why: self.loop.note(event="checkpoint", reason=why))
            found = [path and path.name]
        torch.distributed.broadcast_object_list(found)
        return self.loop.root / found[0] if found[0] else None

    def _restore(self, found: Path) -> None:
        kept = json.loads((found / "state.json").read_text())
        self.state = State(**{**kept["state"], "total": self.total})
        self.engine.load_optimizer_state(load_file(found / "optimizer.safetensors"), self.state.step)
        self.recipe.load({**kept["recipe"], **load_file(found / "recipe.safetensors")})

    def to_the_end(self) -> None:
        """Steps until the schedule or the time is used up, or the run is asked to end; a checkpoint every so often and at the end."""
        limit, every = self.experiment.train.max_minutes, self.experiment.train.checkpoint_every
        with closing(prefetched(self.feeds, self.state.step)) as batches:
            while share_done(self.state, limit) < 1 and not self.stopping:
                self._step(next(batches))
                if self.state.step % every == 0 or share_done(self.state, limit) >= 1:
                    self._look()
                    self._save()
                elif self.stopping:
                    self._save()

    def _step(self, batches: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """One optimizer step: every loss of the recipe, every micro-batch, then the engine's step."""
        state, sums = self.state, dict.fromkeys(self.recipe.names, 0.0)
        size = len(next(iter(batches.values()))[1])
        parts = -(-size // self.micro)
        lr = 0.0
        for part in range(parts):
            step = self._facts(part)
            rows = slice(part * self.micro, (part + 1) * self.micro)
            here = {name: (x[rows].to(self.loop.device), y[rows].to(self.loop.device)) for name, (x, y) in batches.items()}
            losses = self.recipe.losses(self.engine, here, step)  # type: ignore[arg-type]
            for name in self.recipe.names:
                with self.engine.autocast():
                    loss = next(losses)
                self.engine.backward(loss / parts)
                sums[name] += loss.item() / parts
            next(losses, None)
            lr = self.rate * self.recipe.lr(step)
        self._guard(sums)
        self.engine.step(lr)
        if self.recipe.follows:
            with self.engine.whole() as net:
                self.recipe.stepped(net, step)
        state.step += 1
        if self.loop.log is not None and (self.loop.log.due() or state.step == state.total):
            epoch = state.step / next(iter(self.feeds.values())).an_epoch
            done = share_done(state, self.experiment.train.max_minutes)
            line = {"epoch": round(epoch, 3), "seconds": round(state.seconds, 2), "share": round(done, 5), "lr": lr, "loss": sums}
            self.loop.note(step=state.step, total=state.total, **line)

    def _facts(self, micro_step: int) -> Step:
        seed, index, rank = self.experiment.seed, self.state.step, self.loop.rank
        noise = torch.Generator(self.loop.device).manual_seed(int(bits(seed, "noise", index, micro_step, rank)[0] >> np.uint64(1)))
        archs = np.random.default_rng(bits(seed, "architectures", index))
        progress = share_done(self.state, self.experiment.train.max_minutes)
        row = rank * self.experiment.recipe.batch // self.loop.world + micro_step * self.micro
        return Step(index, self.state.total, progress, row, archs, noise, self.engine.mean, self.engine.module)

    def _guard(self, losses: Mapping[str, float]) -> None:
        """Agree with the other ranks on time, on the worst loss before a bad gradient is applied, and on whether to end here.

        Raises:
            Diverged: a loss is not finite, or the first one is far above what it was in the first steps.
        """
        finite = all(np.isfinite(value) for value in losses.values())
        worst = next(iter(losses.values())) if finite else float("inf")
        first = self.loop.rank == 0
        stop, ask = first and self.loop.fence.stopping(), first and time.monotonic() - self.asked > LEAVING_S
        worst, self.state.seconds, stopping, asking = self.engine.highest(worst, time.monotonic() - self.began, stop, ask)
        self.stopping = stopping > 0
        if asking:
            self.asked = time.monotonic()
            if self.loop.leaving():
                self.loop.note(event="preemption", reason="a machine is being taken away: saving, and going on with those that stay")
                self.stopping = True
        if self.state.step == 0 and np.isfinite(worst):
            self.state.yardstick = worst
        if self.state.step < FIRST_LOSSES and worst <= EXPLODED * self.state.yardstick:
            self.state.yardstick = max(self.state.yardstick, worst)
        elif worst > EXPLODED * self.state.yardstick:
            what = f"exploded to {worst:.3g} from {self.state.yardstick:.3g} in the first steps" if np.isfinite(worst) else "is not finite"
            raise Diverged(f"at step {self.state.step} the loss {what}")

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
        self.loop.note(step=self.state.step, panel={name: figures[name] for name in children}, **({"recipe": followed} if followed else {}))
        now, best, chance = figures["largest"][self.task.metric], self.state.best, self.task.chance
        if best is not None and now - chance < LOST * (best - chance) and best > self.task.learnt:
            raise Diverged(f"at step {self.state.step} the largest child's {self.task.metric} fell from {best:.4g} to {now:.4g}: chance")
        self.state.best = now if best is None else max(best, now)

    def _judged(self, net: Supernet) -> Supernet:
        """The network with the weights that children are cut from, see `judged_weights`."""
        if self.averaged is None:
            return net
        kept = {name.removeprefix(AVERAGE): value for name, value in self.recipe.state().items() if name.startswith(AVERAGE)}
        self.averaged.load_state_dict({**net.state_dict(), **kept})
        return self.averaged

    def _save(self) -> None:
        """A checkpoint, written by rank 0; it knows neither the number of ranks nor the ZeRO stage."""
        weights, optimizer = self.engine.weights(), self.engine.optimizer_state()
        if not all(value.isfinite().all() for value in weights.values()):
            raise Diverged(f"at step {self.state.step} the weights are not finite")
        if self.loop.rank:
            return
        kept = self.recipe.state()
        tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in kept.items() if name not in tensors}

        def fill(directory: Path) -> None:
            save_file(weights, directory / "weights.safetensors")
            save_file(optimizer, directory / "optimizer.safetensors")
            save_file(tensors, directory / "recipe.safetensors")
            (directory / "state.json").write_text(json.dumps({"state": asdict(self.state), "recipe": plain}))

        target = self.loop.root / f"step-{self.state.step:08d}"
        atomic.write_directory(target, fill, {"step": self.state.step, "total": self.state.total}, self.loop.fence.check)
        atomic.retain(self.loop.root, self.experiment.train.keep)


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


def rollbacks_file(run: Path) -> Path:
    return run / "train" / "rollbacks.json"


def read_rollbacks(run: Path) -> list[str]:
    """Why training went back to a checkpoint, each time that it did; each halves the learning rate."""
    path = rollbacks_file(run)
    return json.loads(path.read_text()) if path.exists() else []


class Log:
    """Lines of JSON that are added to a file, whole ones only; what a killed writer left unfinished is cut off first."""

    def __init__(self, path: Path, every_s: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = path.read_bytes()
            if not kept.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(kept.rfind(b"\n") + 1)
        self.file, self.every_s, self.last = path.open("a"), every_s, 0.0

    def due(self) -> bool:
        """Whether it is time for another line of those that come at every step."""
        return time.monotonic() - self.last >= self.every_s

    def write(self, line: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.last = time.monotonic()
