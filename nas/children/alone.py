"""A child trained by itself in this process: for a few steps before it is scored, or from fresh weights to hold it
against.

What is long, shared among workers or must survive a crash is a run of its own (`nas.pipeline.Pipeline.finetune`); this
takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from nas.build import check_quantizers, load_recipe
from nas.children.evaluate import CACHE_BYTES, fit_steps
from nas.children.export import child_packages, load_child
from nas.config.experiment import Experiment
from nas.config.section import RecipeOptions
from nas.device import enough_memory
from nas.draws import bits
from nas.recipes.recipe import AVERAGE, Recipe, Step
from nas.space import Arch
from nas.supernet import Supernet
from nas.tasks.task import Task, pixels
from nas.training.feeds import Feed, make_feeds

Batch = tuple[Tensor, Tensor]


class Alone:
    """Trains children, each on the same batches in the same order, so that what tells them apart is themselves.

    Args:
        experiment: whose data and space.
        net: the supernet whose children they are.
        options: of a recipe that trains one network; `seed` in place of the experiment's.
        again: several are trained, so that batches are kept for the next one, as far as they are few.

    Attributes:
        epoch: steps that see each training example once.

    Raises:
        ValueError: a batch is more than all training examples; or the network quantizes, and the recipe has no word on
            that.
    """

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        net: Supernet,
        options: RecipeOptions,
        device: torch.device,
        seed: int,
        again: bool = False,
    ) -> None:
        self.task, self.options, self.device, self.seed, self.again = task, options, device, seed, again
        self.lower = f"lower batch (now {options.batch}) of search.recipe, or of fidelity.recipe"
        recipe = self._recipe()
        check_quantizers(recipe, net)
        self.teacher = None
        if recipe.taught_by:
            self.teacher = load_child(recipe.taught_by, child_packages(experiment.space.name)).to(device)
        self.feeds = make_feeds(recipe, task.train, options.batch, 0, 1, seed)
        self.epoch = next(iter(self.feeds.values())).an_epoch
        if not self.epoch:
            raise ValueError(
                f"a network alone learns from batches of {options.batch}; there are {len(task.train)} examples"
            )
        self._kept: list[dict[str, Batch]] = []

    def _recipe(self) -> Recipe:
        return load_recipe(self.task, self.options)

    def fresh(self, net: Supernet, arch: Arch) -> Supernet:
        """A space of that child alone, with the first weights that the seed gives."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return net.fix(arch, fresh=True).to(self.device)

    def train(
        self,
        net: Supernet,
        steps: int,
        calibration: Iterable[Batch],
        told: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Train the one network of a space, in place, for so many steps, over which the whole schedule is laid.

        Args:
            calibration: what real quantizers are fitted on before.
            told: called after each step with its number.

        Raises:
            MemoryShort: the GPU is too small for a step.
        """
        recipe = self._recipe()
        recipe.teacher = self.teacher
        if net.quantizes and recipe.quant == "real":
            fit_steps(net, calibration)
        optimizer, clip = recipe.optimizer(net.train()), self.options.clip_norm
        with enough_memory(self.lower):
            for index in range(steps):
                step = self._step(index, steps)
                optimizer.zero_grad()
                for loss in recipe.losses(net, net, self._batches(index), step):
                    loss.backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr(step)
                optimizer.step()
                if recipe.follows:
                    recipe.stepped(net, step)
                told(index)
        kept = {name.removeprefix(AVERAGE): value for name, value in recipe.state().items() if name.startswith(AVERAGE)}
        net.load_state_dict({**net.state_dict(), **kept})

    def _step(self, index: int, total: int) -> Step:
        noise = torch.Generator(self.device).manual_seed(int(bits(self.seed, "alone", index)[0] >> np.uint64(1)))
        archs = np.random.default_rng(bits(self.seed, "alone architectures", index))
        return Step(index, total, index / total, 0, archs, noise, lambda value: value, self.seed)

    def _batches(self, index: int) -> dict[str, Batch]:
        """Those of a step: the same ones for every child."""
        if index < len(self._kept):
            return self._kept[index]
        given = {name: self._load(feed, index) for name, feed in self.feeds.items()}
        size = sum(part.nbytes for batch in given.values() for part in batch)
        if self.again and index == len(self._kept) and size * (index + 1) < CACHE_BYTES:
            self._kept.append(given)
        return given

    def _load(self, feed: Feed, index: int) -> Batch:
        x, y = feed(index)
        return pixels(x.to(self.device)), y.to(self.device)


def make_alone(experiment: Experiment, task: Task, net: Supernet, device: torch.device) -> Alone | None:
    """What trains the children of a search that scores them after some steps; None for one that trains nobody."""
    recipe = experiment.search.recipe
    return Alone(experiment, task, net, recipe, device, experiment.seed, again=True) if recipe else None
