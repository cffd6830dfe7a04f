"""One network on labels, by itself: a child that is trained on, or a network of a space of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nas.recipes.average import MovingAverage
from nas.recipes.options import SingleOptions
from nas.recipes.recipe import Batch, Kept, Recipe, Run, Step, Teaching, decayed, schedule
from nas.supernet import Pass, Supernet, main_head


class Single(Recipe):
    """The largest network of the space on labels, with a teacher's soft labels for half of the loss where there is a
    teacher.

    Where the experiment asks for it, an exponential moving average of the weights is kept; that is what is judged and
    exported.

    Args:
        task: mixes images and labels, and gives the losses.
        options: the recipe section of an experiment.
    """

    Options = SingleOptions
    options: SingleOptions
    names = ("loss",)

    def __init__(self, task: Teaching, options: SingleOptions) -> None:
        super().__init__(task, options)
        self.average = MovingAverage(options.average)
        self.follows = options.average > 0

    @property
    def taught_by(self) -> str | None:
        return self.options.teacher

    @property
    def quant(self) -> str:
        return self.options.quant

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        o = self.options
        x, target = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        how = Pass(dropout=o.dropout, drop_path=o.drop_path, quant=o.quant, generator=step.generator)
        output = run(x, net.space.largest(), how)
        loss = self.task.loss(output, target, o.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(x)
            loss = 0.5 * loss + 0.5 * self.task.distill(main_head(output), self.task.signal(taught))
        yield loss

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        o = self.options
        if o.optimizer == "sgd":
            return torch.optim.SGD(decayed(net, o.weight_decay), lr=o.lr, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(decayed(net, o.weight_decay), lr=o.lr)

    def lr(self, step: Step) -> float:
        """Linear from 0 over the warm-up, then a cosine to `final_lr`."""
        o = self.options
        warmup = o.warmup_epochs / o.epochs
        share = schedule("cosine", step.progress, warmup)
        return o.lr * share if step.progress < warmup else o.final_lr + (o.lr - o.final_lr) * share

    def stepped(self, net: Supernet, step: Step) -> None:
        self.average.follow(net, step)

    def state(self) -> dict[str, Kept]:
        return self.average.state()

    def load(self, state: Mapping[str, Kept]) -> None:
        self.average.load(state)
