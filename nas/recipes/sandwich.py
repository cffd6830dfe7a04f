"""The sandwich rule with in-place distillation (Yu & Huang 2019; BigNAS section 3.2).

Every step trains the largest child on the labels, then random children and the smallest one on the largest child's soft
labels, on the same examples. Gradients are summed, and one optimizer step is taken. Only the largest child is
regularised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nas.recipes.options import SandwichOptions
from nas.recipes.recipe import Batch, Recipe, Run, Step, Teaching, decayed, schedule
from nas.supernet import Pass, Supernet


class Sandwich(Recipe):
    """Largest, `random_children` random ones, smallest.

    Args:
        task: gives the loss on labels, the teacher's signal and the loss against it.
        options: the recipe section of an experiment.
    """

    Options = SandwichOptions
    options: SandwichOptions

    def __init__(self, task: Teaching, options: SandwichOptions) -> None:
        super().__init__(task, options)
        self.names = ("largest", *(f"random{i}" for i in range(options.random_children)), "smallest")

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        options, space = self.options, net.space
        x, y = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        how = Pass(dropout=options.dropout, drop_path=options.drop_path, generator=step.generator)
        teacher = run(x, space.largest(), how)
        yield self.task.loss(teacher, y, options.label_smoothing)
        signal = self.task.signal(teacher)
        for arch in (*(space.sample(step.rng) for _ in range(options.random_children)), space.smallest()):
            yield self.task.distill(run(x, arch), signal)

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        o = self.options
        if o.optimizer == "adamw":
            return torch.optim.AdamW(decayed(net, o.weight_decay), lr=o.lr)
        return torch.optim.SGD(decayed(net, o.weight_decay), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)

    def lr(self, step: Step) -> float:
        o = self.options
        return o.lr * schedule(o.schedule, step.progress, o.warmup_epochs / o.epochs)
