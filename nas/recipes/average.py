"""An exponential moving average of the weights, which is what children are cut from where a recipe keeps one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.recipes.recipe import AVERAGE, Kept, Step
from nas.supernet import Supernet


class MovingAverage:
    """The mean of a network's weights over its last steps, each step weighing less the longer ago it is.

    Args:
        share: of the training that it reaches back.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, net: Supernet, step: Step) -> None:
        """Take in the weights after a step; the decay is ``1 - 1 / (share * total)``, which is 0.99996 at ViT-ResNAS's
        0.067 of 375,000 steps. Of a training that its time ends before, `total` is what it comes to at this rate.

        Early on it is the plain mean of what was seen, so that the first weights do not linger.
        """
        total = min(step.total, (step.index + 1) / step.progress) if step.progress else step.total
        decay = min(1 - 1 / max(self.share * total, 1.0), step.index / (step.index + 1))
        for name, parameter in net.named_parameters():
            value = parameter.detach().float()
            mean = self.weights.get(AVERAGE + name, value).to(
                value.device
            )  # what a checkpoint gave back lies on the CPU
            self.weights[AVERAGE + name] = torch.lerp(mean, value, 1 - decay)

    def state(self) -> dict[str, Kept]:
        return {name: value.cpu().contiguous() for name, value in self.weights.items()}

    def load(self, state: Mapping[str, Kept]) -> None:
        self.weights = {
            name: value for name, value in state.items() if name.startswith(AVERAGE) and isinstance(value, Tensor)
        }
