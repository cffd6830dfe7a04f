"""Single-path sampling (Guo et al. 2020): every step trains one random sub-network, every choice uniform and independent.

At first it is the largest one: weights that have learnt to be one network can learn to be others, but need not learn to be any from
nothing (progressive shrinking, Cai et al. 2020; what it changes is measured in `tests/benchmarks/quantnas.py`).

For a family that quantizes it runs under quantization noise by default, so that the weights learn what rounding will do to them
(QuantNAS, arXiv:2208.14839, trains a mixture so; that sampled paths share weights which score candidates is not in the paper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nas.recipes.recipe import Recipe, Step, decayed, schedule
from nas.space import Arch, Space
from nas.supernet import Pass, Supernet


class SinglePath(Recipe):
    """One random sub-network a step, the same on all ranks.

    Args:
        task: mixes examples and gives the loss.
        options: the recipe section of an experiment.
    """

    names = ("loss",)

    def losses(self, net: Supernet, batches: Mapping[str, tuple[Tensor, Tensor]], step: Step) -> Iterator[Tensor]:
        arch = opening_arch(step.module.space, step.progress, step.rng, self.options.opening)
        x, target = self.task.mix(*batches["train"], step.module.aux_grid, step.generator)
        yield self.task.loss(net(x, arch, Pass(quant=self.options.quant, generator=step.generator)), target)

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(decayed(net, self.options.weight_decay), lr=self.options.lr)

    def lr(self, step: Step) -> float:
        """Linear over the warm-up, then a cosine to 0."""
        o = self.options
        return o.lr * schedule("cosine", step.progress, o.warmup_epochs / o.epochs)


def opening_arch(space: Space, progress: float, rng: np.random.Generator, opening: float) -> Arch:
    """The largest network until half of `opening`, then every choice random more often, from `opening` on always.

    Args:
        progress: how much of the training is done, in [0, 1].
        opening: a share of it.
    """
    arch, largest = space.sample(rng), space.largest()
    open_share = 1.0 if progress >= opening else max(0.0, 2 * progress / opening - 1)
    return space.arch({name: arch[name] if rng.random() < open_share else largest[name] for name in arch})
