"""A recipe of your own: the sandwich rule without a teacher, its losses brought to one size.

In this folder:

    nas check own_recipe:Balanced
    nas run bignas-digits --set 'recipe={name: "own_recipe:Balanced", epochs: 20, batch: 64, lr: 0.1}'

Small networks have the larger losses, and so the larger say in the weights that all share. Here each loss is divided
by its running mean. The recipe says what one step learns, and the loop does the rest: engine, precision, gradient
accumulation, checkpoints. What loss, labels and metric are is the task's business, so a recipe serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from nas.config.section import Share
from nas.recipes.recipe import Batch, Kept, Recipe, RecipeOptions, Run, Step, Teaching, decayed, schedule
from nas.supernet import Supernet


class BalancedOptions(RecipeOptions):
    """Keys of the section ``recipe``; ``name``, ``epochs``, ``batch`` and ``clip_norm`` are every recipe's."""

    lr: PositiveFloat = Field(default=0.1, description="peak learning rate of SGD; it falls along a cosine")
    weight_decay: NonNegativeFloat = Field(default=1e-4, description="on weights of convolutions and linear layers")
    memory: Share = Field(default=0.98, description="how much of a running mean a step keeps")


class Balanced(Recipe):
    """The largest, a random and the smallest network on labels, each loss by its share of the mean."""

    Options = BalancedOptions
    options: BalancedOptions
    names = ("largest", "random", "smallest")

    def __init__(self, task: Teaching, options: BalancedOptions) -> None:
        super().__init__(task, options)
        self.means: dict[str, float] = {}

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        archs = (
            net.space.largest(),
            net.space.sample(step.rng),
            net.space.smallest(),
        )  # step.rng: the same on all ranks
        for name, arch in zip(self.names, archs, strict=True):
            loss = self.task.loss(run(x, arch), target)
            seen = float(step.mean(loss.detach()))  # over the ranks, so that all divide by the same number
            memory = self.options.memory
            self.means[name] = memory * self.means.get(name, seen) + (1 - memory) * seen
            yield loss / max(self.means[name], 1e-9)

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        return torch.optim.SGD(decayed(net, self.options.weight_decay), lr=self.options.lr, momentum=0.9, nesterov=True)

    def lr(self, step: Step) -> float:
        return self.options.lr * schedule("cosine", step.progress, warmup=0.05)

    def state(self) -> dict[str, Kept]:
        """What a checkpoint keeps besides weights and optimizer: without it a resumed run would be another one."""
        return dict(self.means)

    def load(self, state: Mapping[str, Kept]) -> None:
        self.means = {name: float(value) for name, value in state.items() if isinstance(value, float)}
