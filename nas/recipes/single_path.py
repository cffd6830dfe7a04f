"""Single-path sampling (Guo et al. 2020): every step trains one random sub-network, or several on the same examples.

The paths of a step have every value of a choice as often as any other (FairNAS, Chu et al. 2019): what one of them
alone would teach cancels out. At first there may be the largest one alone: weights that have learnt to be one network
can learn to be others, but need not learn to be any from nothing (progressive shrinking, Cai et al. 2020). What both
change is measured in `tests/benchmarks/quantnas.py`.

For a family that quantizes it runs under quantization noise by default, so that the weights learn what rounding will do
to them (QuantNAS, arXiv:2208.14839, trains a mixture so; that sampled paths share weights which score candidates is not
in the paper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from nas.recipes.multi_arch import stratified
from nas.recipes.options import SinglePathOptions
from nas.recipes.recipe import Batch, Recipe, Run, Step, Teaching, decayed, schedule
from nas.space import Arch, Space
from nas.supernet import Pass, Supernet


class SinglePath(Recipe):
    """`paths` random sub-networks a step, the same ones on all ranks; the loss is their mean.

    Args:
        task: mixes examples and gives the loss.
        options: the recipe section of an experiment.
    """

    Options = SinglePathOptions
    options: SinglePathOptions

    def __init__(self, task: Teaching, options: SinglePathOptions) -> None:
        super().__init__(task, options)
        self.names = ("loss",) * options.paths

    @property
    def quant(self) -> str:
        return self.options.quant

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        o = self.options
        x, target = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        for arch in opening_archs(net.space, o.paths, step.progress, step.rng, o.opening_epochs / o.epochs):
            yield self.task.loss(run(x, arch, Pass(quant=o.quant, generator=step.generator)), target) / o.paths

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        return torch.optim.Adam(decayed(net, self.options.weight_decay), lr=self.options.lr)

    def lr(self, step: Step) -> float:
        """Linear over the warm-up, then a cosine to 0."""
        o = self.options
        return o.lr * schedule("cosine", step.progress, o.warmup_epochs / o.epochs)


def opening_archs(space: Space, count: int, progress: float, rng: np.random.Generator, opening: float) -> list[Arch]:
    """The largest network until half of `opening`, then every choice random more often, from `opening` on always.

    From there on every value of a choice is drawn as often as any other, give or take one.

    Args:
        progress: how much of the training is done, in [0, 1].
        opening: a share of it.
    """
    largest, share = space.largest(), 1.0 if progress >= opening else max(0.0, 2 * progress / opening - 1)
    drawn = {name: stratified(choice.values, count, rng) for name, choice in space.choices.items()}
    free = {name: rng.random(count) < share for name in drawn}
    return [
        space.arch(
            {name: column[i] if free[name][i] else largest.get(name, column[i]) for name, column in drawn.items()}
        )
        for i in range(count)
    ]
