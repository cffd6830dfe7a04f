"""Elastic batch norm: batch statistics always, running ones never (a supernet's children would mix in them)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AXES = (0, 2, 3)  # all but the channels


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
            return _Synchronised.apply(x, weight, bias, self.eps)
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)


class _Synchronised(torch.autograd.Function):
    """Batch norm over the batches of all ranks: one collective on the way there, and one on the way back.

    Ranks tell one another the mean and the variance of their own batch, the latter in a second pass: sums of squares
    over all would cancel in fp32. The variance of all is the mean of theirs plus the variance of their means (Chan,
    Golub and LeVeque 1979). Every rank's output depends on every rank's input, so the gradients are summed too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), AXES, correction=0)
        told = torch.cat((mean, variance))
        of_all = told.new_empty(dist.get_world_size(), len(told))
        dist.all_gather(list(of_all), told)
        means, variances = of_all.chunk(2, 1)
        mean = means.mean(0)
        scale = (variances.mean(0) + (means - mean).square().mean(0) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        return ((x.float() - _along(mean)) * _along(weight * scale) + _along(bias)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        gradient, normed = gradient.float(), (x.float() - _along(mean)) * _along(scale)
        of_bias, of_weight = gradient.sum(AXES), (gradient * normed).sum(AXES)
        sums = torch.cat((of_bias, of_weight))
        dist.all_reduce(sums)
        by_mean, by_scale = (sums / (dist.get_world_size() * x.numel() / x.shape[1])).chunk(2)
        of_x = (gradient - _along(by_mean) - normed * _along(by_scale)) * _along(weight * scale)
        return of_x.to(x.dtype), of_weight, of_bias, None


def _along(channels: Tensor) -> Tensor:
    """``(c,)`` -> ``(1, c, 1, 1)``."""
    return channels.view(1, -1, 1, 1)
