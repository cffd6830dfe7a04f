"""Blocks of extracted children that families share. This file imports torch alone: it is copied beside an exported
child.

A block has fixed sizes, and its parameters carry the names and the layout of the elastic block that it is cut from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pixels(nn.Module):
    """The input of a child: pixels in [0, 1], normalised per channel and resized (bicubic) to the child's
    resolution."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], resolution: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` -> ``(N, C, resolution, resolution)``."""
        return resize((x - self.mean) / self.std, self.resolution)


def resize(x: Tensor, side: int) -> Tensor:
    """x: ``(N, C, H, W)`` -> ``(N, C, side, side)``, bicubic; untouched where it has that size."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bicubic", align_corners=False)


ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "hardswish": F.hardswish}


class ConvNorm(nn.Module):
    """Bias-free convolution with padding ``kernel // 2``, then batch norm, then one of `ACTIVATIONS`, or none."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: str | None = "silu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else ACTIVATIONS[self.act](x)


class SqueezeExcite(nn.Module):
    """Channel gate: mean over space, reduce, ReLU, expand, hard sigmoid."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, squeezed)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(x.mean((2, 3))))
        return x * F.hardsigmoid(self.expand(gate))[:, :, None, None]


class MBConv(nn.Module):
    """Inverted residual: 1x1 expand (where ``mid != c_in``), depthwise, squeeze-excite, 1x1 project, and its shortcut.

    Args:
        c_in, mid, c_out: channels before, inside and after.
        expanded: whether there is an expand convolution.
        squeezed: width inside squeeze-excite; 0 for none.
        shortcut: ``"none"``, ``"identity"`` or ``"conv"`` (average pooling for the stride, a bias-free 1x1 convolution
            for the width).
        act: one of `ACTIVATIONS`.
    """

    def __init__(
        self,
        c_in: int,
        mid: int,
        c_out: int,
        kernel: int,
        stride: int,
        expanded: bool,
        squeezed: int,
        shortcut: str,
        act: str = "silu",
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(c_in, mid, 1, act=act) if expanded else None
        self.depthwise = ConvNorm(mid, mid, kernel, stride, groups=mid, act=act)
        self.se = SqueezeExcite(mid, squeezed) if squeezed else None
        self.project = ConvNorm(mid, c_out, 1, act=None)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, bias=False) if shortcut == "conv" and c_in != c_out else None
        self.residual = shortcut != "none"
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else self.expand(x)
        out = self.depthwise(out)
        if self.se is not None:
            out = self.se(out)
        out = self.project(out)
        if not self.residual:
            return out
        x = shrink(x, self.stride)
        return out + (x if self.shortcut is None else self.shortcut(x))


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels innermost: what convolutions are quickest on. A one-channel image has no such order
    of its own."""
    return x.contiguous(memory_format=torch.channels_last)


def shrink(x: Tensor, stride: int) -> Tensor:
    """Average pooling over windows of `stride`, so that the side becomes ``ceil(side / stride)``; odd sides are
    padded by one."""
    if stride == 1:
        return x
    return F.avg_pool2d(x, stride, padding=x.shape[-1] % 2)
