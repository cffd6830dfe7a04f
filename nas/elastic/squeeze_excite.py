"""Elastic squeeze-and-excitation (Hu et al. 2018), both of its layers sliced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic.linear import ElasticLinear


class ElasticSqueezeExcite(nn.Module):
    """Channel gate: mean over space, reduce, ReLU, expand, hard sigmoid (the MobileNetV3 form)."""

    def __init__(self, max_channels: int, max_squeezed: int) -> None:
        super().__init__()
        self.reduce = ElasticLinear(max_channels, max_squeezed)
        self.expand = ElasticLinear(max_squeezed, max_channels)

    def forward(self, x: Tensor, squeezed: int) -> Tensor:
        """x: ``(N, c, H, W)`` -> the same shape, channel by channel scaled to between 0 and 1."""
        gate = F.relu(self.reduce(x.mean((2, 3)), squeezed))
        return x * F.hardsigmoid(self.expand(gate, x.shape[1]))[:, :, None, None]

    @torch.no_grad()
    def sort(self) -> None:
        """The squeezed units by how much the gate takes of them, the first the most: fewer of them are the first ones.
        The largest network stays what it is."""
        order = self.expand.weight.abs().sum(0).argsort(descending=True, stable=True)
        for weight in self.reduce.parameters():
            weight.copy_(weight[order])
        self.expand.weight.copy_(self.expand.weight[:, order])
