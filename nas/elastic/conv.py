"""Elastic convolution: prefix of the channels, centre crop of the kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ElasticConv2d(nn.Conv2d):
    """A bias-free-or-not 2-d convolution whose width and kernel are arguments of each call; padding is ``kernel // 2``.

    With ``group_width`` the channels form groups of so many input channels (1 is a depthwise convolution): the first
    groups are used, and each group keeps all its output channels.

    Raises:
        ValueError: `group_width` does not divide the widths, or the largest kernel is even; in a call, sizes that the
            layer has not.
    """

    def __init__(
        self,
        max_in: int,
        max_out: int,
        max_kernel: int,
        stride: int = 1,
        bias: bool = False,
        group_width: int | None = None,
    ) -> None:
        if max_kernel % 2 == 0:
            raise ValueError(f"max_kernel (={max_kernel}) must be odd, so that a smaller kernel can be its centre")
        groups = 1 if group_width is None else max_in // group_width
        if group_width is not None and (max_in % group_width or max_out % groups):
            raise ValueError(
                f"max_in (={max_in}) and max_out (={max_out}) must be made of whole groups of group_width "
                f"(={group_width})"
            )
        super().__init__(max_in, max_out, max_kernel, stride, bias=bias, groups=groups)
        self.group_width = group_width

    def forward(self, x: Tensor, out: int | None = None, kernel: int | None = None) -> Tensor:
        """x: ``(N, c, H, W)`` -> ``(N, out, ceil(H / stride), ceil(W / stride))``; `out` of a grouped layer follows
        from c."""
        channels = x.shape[1]
        kernel, largest = kernel or self.kernel_size[0], self.kernel_size[0]
        if kernel > largest or kernel % 2 == 0 or (out or 0) > self.out_channels:
            raise ValueError(
                f"asked for {out} channels and kernel {kernel}; this layer has {self.out_channels} and odd kernels up "
                f"to {largest}"
            )
        edge = (largest - kernel) // 2
        if self.group_width is None:
            groups, out = 1, out or self.out_channels
            weight = self.weight[:out, :channels]
        else:
            groups = channels // self.group_width
            out = groups * (self.out_channels // self.groups)
            weight = self.weight[:out]
        if edge:
            weight = weight[:, :, edge : edge + kernel, edge : edge + kernel]
        bias = None if self.bias is None else self.bias[:out]
        return F.conv2d(x, weight, bias, self.stride, kernel // 2, 1, groups)
