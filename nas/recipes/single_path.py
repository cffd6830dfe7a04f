"""Single-path sampling (Guo et al. 2020): every step trains one random sub-network, every choice uniform and independent.

For a family that quantizes it runs under quantization noise by default, so that the weights learn what rounding will do to them
(QuantNAS, arXiv:2208.14839, trains a mixture so; that sampled paths share weights which score candidates is not in the paper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nas.recipes.recipe import Recipe, Step, decayed, schedule
from nas.supernet import Pass, Supernet


class SinglePath(Recipe):
    """One random sub-network a step, the same on all ranks.

    Args:
        task: mixes examples and gives the loss.
        options: the recipe section of an experiment.
    """

    names = ("loss",)

    def losses(self, net: Supernet, batches: Mapping[str, tuple[Tensor, Tensor]], step: Step) -> Iterator[Tensor]:
        arch = step.module.space.sample(step.rng)
        x, target = self.task.mix(*batches["train"], step.module.aux_grid, step.generator)
        yield self.task.loss(net(x, arch, Pass(quant=self.options.quant, generator=step.generator)), target)

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(decayed(net, self.options.weight_decay), lr=self.options.lr)

    def lr(self, step: Step) -> float:
        """Linear over the warm-up, then a cosine to 0."""
        o = self.options
        return o.lr * schedule("cosine", step.progress, o.warmup_epochs / o.epochs)
