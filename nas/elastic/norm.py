"""Elastic batch norm: batch statistics always, running ones never (a supernet's children would mix in them)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class ElasticBatchNorm2d(nn.Module):
    """Batch norm over the first channels of one shared scale and shift.

    Children have no statistics here: those are calibrated on the extracted child (BigNAS section 3.3).

    Args:
        max_features: width of the largest network.
        eps: added to the variance.
        sync: take the statistics over the batches of all ranks, as if they were one; every rank must hold as many
            examples.
    """

    def __init__(self, max_features: int, eps: float = 1e-5, sync: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(max_features))
        self.bias = nn.Parameter(torch.zeros(max_features))
        self.eps = eps
        self.sync = sync

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, c, H, W)`` -> the same shape."""
        weight, bias = self.weight[: x.shape[1]], self.bias[: x.shape[1]]
        if self.sync and dist.is_initialized() and dist.get_world_size() > 1:
            return _synchronised(x, weight, bias, self.eps)
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)


def _synchronised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm over the batches of all ranks, in two passes: the one-pass variance cancels in fp32."""
    world = dist.get_world_size()
    axes, shape = (0, 2, 3), (1, -1, 1, 1)
    values = x.float()
    mean = _SumOverRanks.apply(values.mean(axes)) / world
    centred = values - mean.view(shape)
    variance = _SumOverRanks.apply(centred.square().mean(axes)) / world
    scale = weight * (variance + eps).rsqrt()
    return (centred * scale.view(shape) + bias.view(shape)).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce with a gradient: every rank's output depends on every rank's input, so the gradients are summed
    too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
