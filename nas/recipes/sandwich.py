"""The sandwich rule with in-place distillation (Yu & Huang 2019; BigNAS section 3.2).

Every step trains the largest child on the labels, then random children and the smallest one on the largest child's soft
labels, on the same examples. Gradients are summed, and one optimizer step is taken. Only the largest child is
regularised.

Options, each off by default, are what its successors added: see `SandwichOptions`. While the choices open (`opening`),
the largest and the smallest child are those of what is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nas.recipes.attentive import alike, taken
from nas.recipes.average import MovingAverage
from nas.recipes.opening import opened_space
from nas.recipes.options import SandwichOptions
from nas.recipes.recipe import Batch, Kept, Recipe, Run, Step, Teaching, clip_values, decayed, schedule
from nas.space import Arch, Space
from nas.supernet import Pass, Supernet, Target


class Sandwich(Recipe):
    """Largest, `random_children` random ones, smallest.

    Args:
        task: gives the loss on labels, the teacher's signal and the loss against it.
        options: the recipe section of an experiment.

    Raises:
        ValueError: distillation by a divergence of distributions, and networks of the task give none.
    """

    Options = SandwichOptions
    options: SandwichOptions

    def __init__(self, task: Teaching, options: SandwichOptions) -> None:
        super().__init__(task, options)
        self.names = ("largest", *(f"random{i}" for i in range(options.random_children)), "smallest")
        self.average = MovingAverage(options.average)
        self.follows = options.average > 0
        self.chosen_at: tuple[int, list[Arch]] = -1, []
        if options.distillation == "alpha" and not task.compares_distributions:
            raise ValueError(
                "recipe.distillation alpha compares probabilities of classes, and networks of this task give none: "
                "take cross_entropy, which is the task's own loss against a teacher"
            )

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        options = self.options
        space = opened_space(net.space, step.progress, options.opening, options.opens_from)
        x, y = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        how = Pass(dropout=options.dropout, drop_path=options.drop_path, generator=step.generator)
        teacher = run(x, space.largest(), how)
        yield self.task.loss(teacher, y, options.label_smoothing)
        signal = self.task.signal(teacher)
        distill = self.task.diverge if options.distillation == "alpha" else self.task.distill
        for arch in (*self._random(net, space, x, y, step), space.smallest()):
            yield distill(run(x, arch), signal)

    def _random(self, net: Supernet, space: Space, x: Tensor, y: Tensor | Target, step: Step) -> list[Arch]:
        """The random children of a step; chosen on its first micro-batch, where they are."""
        o = self.options
        if o.sampling == "uniform":
            return [space.sample(step.rng) for _ in range(o.random_children)]
        if self.chosen_at[0] != step.index:
            several = (alike(net, space, o.drawn, step.rng) for _ in range(o.random_children))
            self.chosen_at = step.index, [self._chosen(net, archs, x, y, step) for archs in several]
        return self.chosen_at[1]

    @torch.no_grad()
    def _chosen(self, net: Supernet, archs: list[Arch], x: Tensor, y: Tensor | Target, step: Step) -> Arch:
        """By the loss on the batch of all ranks, so that all choose the same; not through the engine, which is for what
        learns."""
        losses = [self.task.loss(net(x, arch), y, self.options.label_smoothing) for arch in archs]
        return taken(archs, step.mean(torch.stack(losses)), self.options.sampling)

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        o, made = self.options, decayed(net, self.options.weight_decay)
        optimizer: torch.optim.Optimizer
        if o.optimizer == "adamw":
            optimizer = torch.optim.AdamW(made, lr=o.lr)
        else:
            optimizer = torch.optim.SGD(made, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)
        if o.clip_value is not None:
            clip_values(optimizer, o.clip_value)
        return optimizer

    def lr(self, step: Step) -> float:
        o = self.options
        return o.lr * schedule(o.schedule, step.progress, o.warmup_epochs / o.epochs)

    def stepped(self, net: Supernet, step: Step) -> None:
        self.average.follow(net, step)

    def state(self) -> dict[str, Kept]:
        return self.average.state()

    def load(self, state: Mapping[str, Kept]) -> None:
        self.average.load(state)
