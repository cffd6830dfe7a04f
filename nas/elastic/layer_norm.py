"""Layer norm over prefixes of its channels: for sub-networks side by side in one flat tensor, or under a mask.
Imports torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn


class ElasticLayerNorm(nn.LayerNorm):
    """Layer norm for several sub-networks at once; statistics in fp32 at least, also under autocast."""

    def forward(self, x: Tensor, sizes: Tensor | Sequence[tuple[int, int]]) -> Tensor:  # type: ignore[override]
        """One of two forms, the result shaped like x.

        Args:
            x: flat, ``rows * width`` for each ``(rows, width)`` of `sizes`; or ``(N, tokens, C)`` with a mask.
            sizes: those pairs; or the mask, ``(N, 1, C)`` of zeros and ones.
        """
        x = x if x.dtype == torch.float64 else x.float()
        if isinstance(sizes, Tensor):
            return masked_layer_norm(x, self.weight, self.bias, sizes.to(x.dtype), self.eps)
        return _GroupedLayerNorm.apply(x, self.weight, self.bias, self.eps, sizes)


def masked_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Layer norm over the channels that a mask leaves; the others become zero (Liao et al. 2021, section 3.2).

    The variance is taken in a second pass: E[x^2] - mean^2 can fall below zero in fp32.

    Args:
        x: ``(N, tokens, C)``.
        mask: ``(N, 1, C)`` of zeros and ones.
    """
    live = mask.sum(-1, keepdim=True)
    centred = (x - (x * mask).sum(-1, keepdim=True) / live) * mask
    variance = centred.square().sum(-1, keepdim=True) / live
    return (centred * (variance + eps).rsqrt() * weight + bias) * mask


def views(flat: Tensor, shapes: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """The parts of a contiguous flat tensor that lie one after another, each in its shape; for use outside of
    autograd."""
    start = flat.storage_offset()
    for rows, width in shapes:
        yield flat.as_strided((rows, width), (width, 1), start)
        start += rows * width


def merged(groups: Iterable[tuple[int, ...]]) -> list[Any]:
    """Neighbours whose widths are the same as one group: ``(rows, width, ...)``."""
    return [
        (sum(group[0] for group in alike), *widths) for widths, alike in groupby(groups, key=lambda group: group[1:])
    ]


class _GroupedLayerNorm(torch.autograd.Function):
    """Torch's layer norm part by part; the gradients of weight and bias are added into one buffer each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, groups: Sequence[tuple[int, int]]
    ) -> Tensor:
        groups = merged(groups)
        found = [
            torch.native_layer_norm(part, (w,), weight[:w], bias[:w], eps)
            for (_, w), part in zip(groups, views(x, groups), strict=True)
        ]
        outs, ctx.means, ctx.scales = zip(*found, strict=True)
        ctx.save_for_backward(x, weight, bias)
        ctx.groups = groups
        return torch.cat([out.view(-1) for out in outs])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        groups = ctx.groups
        of_x, of_weight, of_bias = [], torch.zeros_like(weight), torch.zeros_like(bias)
        parts = zip(groups, views(gradient.contiguous(), groups), views(x, groups), ctx.means, ctx.scales, strict=True)
        for (_, w), grad, part, mean, scale in parts:
            found = torch.ops.aten.native_layer_norm_backward(
                grad, part, (w,), mean, scale, weight[:w], bias[:w], [True, True, True]
            )
            of_x.append(found[0].view(-1))
            of_weight[:w].add_(found[1])
            of_bias[:w].add_(found[2])
        return torch.cat(of_x), of_weight, of_bias, None, None
