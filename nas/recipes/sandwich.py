"""The sandwich rule with in-place distillation (Yu & Huang 2019; BigNAS section 3.2).

Every step trains the largest child on the labels, then random children and the smallest one on the largest child's soft
labels, on the same examples. Gradients are summed, and one optimizer step is taken. Only the largest child is
regularised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor

from nas.config.section import Share
from nas.recipes.recipe import Batch, Recipe, RecipeOptions, Run, Step, Teaching, check_warmup, decayed, schedule
from nas.supernet import Pass, Supernet


class SandwichOptions(RecipeOptions):
    """BigNAS's sandwich rule with in-place distillation (arXiv:2003.11142)."""

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="adamw suits transformers; momentum is for sgd alone"
    )
    lr: PositiveFloat = Field(description="peak learning rate at this batch")
    warmup_epochs: NonNegativeFloat = Field(default=0.0, description="epochs of linear warm-up")
    schedule: Literal["cosine", "exponential"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    momentum: Share = Field(default=0.9, description="of SGD")
    nesterov: bool = Field(default=True, description="Nesterov's momentum")
    weight_decay: NonNegativeFloat = Field(description="on weights of convolutions and linear layers")
    label_smoothing: Share = Field(
        default=0.1, description="share of the target spread over all classes, largest network only"
    )
    dropout: Share = Field(default=0.2, description="probability before the classifier, largest network only")
    drop_path: Share = Field(
        default=0.0, description="largest probability of dropping a residual branch, largest network only"
    )
    random_children: NonNegativeInt = Field(
        default=2, description="random networks a step, besides the largest and the smallest"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SandwichOptions:
        check_warmup(self.warmup_epochs, self.epochs)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self


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
