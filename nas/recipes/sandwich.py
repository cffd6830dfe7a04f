"""The sandwich rule with in-place distillation (Yu & Huang 2019; BigNAS section 3.2).

Every step trains the largest child on the labels, then random children and the smallest one on the largest child's soft labels,
on the same examples. Gradients are summed, and one optimizer step is taken. Only the largest child is regularised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.recipes.recipe import Recipe, Step, decayed, schedule
from nas.supernet import Pass, Supernet


class Sandwich(Recipe):
    """Largest, `random_children` random ones, smallest.

    Args:
        task: gives the loss on labels, the teacher's signal and the loss against it.
        options: the recipe section of an experiment.
    """

    def __init__(self, task: Any, options: Any) -> None:
        super().__init__(task, options)
        self.names = ("largest", *(f"random{i}" for i in range(options.random_children)), "smallest")

    def losses(self, net: Supernet, batches: Mapping[str, tuple[Tensor, Tensor]], step: Step) -> Iterator[Tensor]:
        options, space = self.options, step.module.space
        x, y = self.task.mix(*batches["train"], step.module.aux_grid, step.generator)
        how = Pass(dropout=options.dropout, drop_path=options.drop_path, generator=step.generator)
        teacher = net(x, space.largest(), how)
        yield self.task.loss(teacher, y, options.label_smoothing)
        signal = self.task.signal(teacher)
        for arch in (*(space.sample(step.rng) for _ in range(options.random_children)), space.smallest()):
            yield self.task.distill(net(x, arch), signal)

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        o = self.options
        if o.optimizer == "adamw":
            return torch.optim.AdamW(decayed(net, o.weight_decay), lr=o.lr)
        return torch.optim.SGD(decayed(net, o.weight_decay), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)

    def lr(self, step: Step) -> float:
        o = self.options
        return o.lr * schedule(o.schedule, step.progress, o.warmup_epochs / o.epochs)
