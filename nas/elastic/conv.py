"""Elastic convolution: prefix of the channels, centre crop of the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ElasticConv2d(nn.Conv2d):
    """A bias-free-or-not 2-d convolution whose width and kernel are arguments of each call; padding is ``kernel // 2``.

    With ``group_width`` the channels form groups of so many input channels (1 is a depthwise convolution): the first
    groups are used, and each group keeps all its output channels.

    With ``transformed``, the smaller kernels, a kernel is not the plain centre of the next larger one but that times a
    learnt matrix, ``transform<size>``, which all channels share and which starts as the identity (Once-for-All, section
    3.3). Matrices lie flat, ``(size ** 4,)``: so they are not decayed, which would pull them to 0.

    Raises:
        ValueError: `group_width` does not divide the widths, the largest kernel is even, or `transformed` has a kernel
            that is not odd and smaller; in a call, sizes that the layer has not.
    """

    def __init__(
        self,
        max_in: int,
        max_out: int,
        max_kernel: int,
        stride: int = 1,
        bias: bool = False,
        group_width: int | None = None,
        transformed: Iterable[int] = (),
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
        self.transformed = tuple(sorted(transformed, reverse=True))
        if wrong := [size for size in self.transformed if size >= max_kernel or size % 2 == 0]:
            raise ValueError(f"transformed has {wrong}; allowed: odd kernels below max_kernel (={max_kernel})")
        for size in self.transformed:
            self.register_parameter(f"transform{size}", nn.Parameter(torch.eye(size**2).flatten()))

    def filters(self, out: int, width: int, kernel: int) -> Tensor:
        """The weight of a smaller layer, ``(out, width, kernel, kernel)``."""
        weight = self.weight[:out, :width]
        for size in self.transformed:
            if size >= kernel:
                matrix = self.get_parameter(f"transform{size}").view(size**2, size**2)
                weight = F.linear(_centre(weight, size).flatten(2), matrix).view(out, width, size, size)
        return _centre(weight, kernel)

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
        if channels > self.in_channels or channels % (self.group_width or 1):
            wanted = "" if self.group_width is None else f", in whole groups of {self.group_width}"
            raise ValueError(f"x has {channels} channels; this layer takes up to {self.in_channels}{wanted}")
        groups, out = 1, out or self.out_channels
        if self.group_width is not None:
            groups = channels // self.group_width
            out = groups * (self.out_channels // self.groups)
        bias = None if self.bias is None else self.bias[:out]
        stride, quick = self.stride[0], x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if quick and kernel == stride == groups == 1 and x.is_contiguous(memory_format=torch.channels_last):
            y = _Pointwise.apply(x, self.weight, out)
        elif quick and groups == out == channels and (kernel > 3 or 3 == kernel > min(x.shape[2:])):
            weight = self.filters(out, 1, kernel) if self.transformed and kernel < largest else self.weight
            y = _Depthwise.apply(x, weight, kernel, stride)
        else:
            weight = self.filters(out, channels // groups, kernel)
            return F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
        return y if bias is None else y + bias.view(-1, 1, 1)


def _centre(weight: Tensor, kernel: int) -> Tensor:
    """The taps in the middle of ``(out, width, K, K)``."""
    edge = (weight.shape[-1] - kernel) // 2
    return weight[:, :, edge : edge + kernel, edge : edge + kernel] if edge else weight


# What oneDNN and BLAS are quick at on a CPU, for the same result. GPUs keep torch's own convolution: cuDNN has none of
# these weaknesses, and several small calls in place of one cost more there. Each gradient is written into one buffer of
# the whole weight's size, where autograd would make one for each slice.


def _window(weight: Tensor, out: int, width: int, kernel: int) -> Tensor:
    """What a smaller layer uses of a weight, as a view made in one go; for use outside of autograd."""
    edge, strides = (weight.shape[-1] - kernel) // 2, weight.stride()
    start = weight.storage_offset() + edge * (strides[2] + strides[3])
    return weight.as_strided((out, width, kernel, kernel), strides, start)


def _rows(x: Tensor) -> Tensor:
    """``(N, c, H, W)`` -> ``(N * H * W, c)``, a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Back from `_rows`, with the batch and the sides of another image."""
    return rows.view(like.shape[0], *like.shape[2:], rows.shape[1]).permute(0, 3, 1, 2)


class _Pointwise(torch.autograd.Function):
    """1x1 of stride 1 on channels_last, which is a matrix product: 0.4 of the time of oneDNN's convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.out = out
        return _image(_rows(x).mm(_window(weight, out, x.shape[1], 1)[:, :, 0, 0].t()), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows, of_weight, sizes = _rows(gradient), torch.zeros_like(weight), (ctx.out, x.shape[1], 1)
        torch.mm(rows.t(), _rows(x), out=_window(of_weight, *sizes)[:, :, 0, 0])
        of_x = _image(rows.mm(_window(weight, *sizes)[:, :, 0, 0]), x) if ctx.needs_input_grad[0] else None
        return of_x, of_weight, None


class _Depthwise(torch.autograd.Function):
    """Depthwise kernels of 5x5 and more, and 3x3 on fewer than three pixels.

    - Taps that see nothing but padding are left out: on a single pixel a 5x5 takes oneDNN 5 ms. What is left there is a
      factor for each channel.
    - oneDNN has a quick weight gradient of kernels up to 3 taps wide, and however high, on images not smaller than
      that: a larger kernel's is put together from strips, and small images are padded. (5x5, 96 channels of 8x8, 32 of
      them: 2.4 ms as it comes, 0.4 a strip.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: int, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window, ctx.stride = (x.shape[1], 1, min(kernel, 2 * max(x.shape[2:]) - 1)), stride
        used = _window(weight, *ctx.window)
        if x.shape[2:] == (1, 1):
            return x * used[:, 0]
        return F.conv2d(x, used, None, stride, ctx.window[2] // 2, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x, weight), (channels, _, kernel), of_x = ctx.saved_tensors, ctx.window, None
        used, of_weight = _window(weight, *ctx.window), torch.zeros_like(weight)
        into = _window(of_weight, *ctx.window)
        if x.shape[2:] == (1, 1):
            into[:, 0, 0, 0] = (gradient * x).sum((0, 2, 3))
            return gradient * used[:, 0], of_weight, None, None
        if ctx.needs_input_grad[0]:
            of_x = _gradients(gradient, x, used, ctx.stride, kernel // 2, channels, (True, False))[0]
        _strips(gradient, x, ctx.stride, into)
        return of_x, of_weight, None, None


def _strips(gradient: Tensor, x: Tensor, stride: int, into: Tensor) -> None:
    """The weight gradient of a depthwise convolution, three columns of taps at a time; `into` is ``(c, 1, kernel,
    kernel)``."""
    kernel, pad = into.shape[-1], into.shape[-1] // 2
    below, right = ((out - 1) * stride - side - pad for out, side in zip(gradient.shape[2:], x.shape[2:], strict=True))
    for left in range(0, kernel - 2, 2):
        seen = F.pad(x, (pad - left, right + 3 + left, pad, below + kernel))
        strip = into[:, :, :, left : left + 3]
        strip.copy_(_gradients(gradient, seen, strip, stride, 0, len(into), (False, True))[1])


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, which: tuple[bool, bool]
) -> Any:
    """Of the input and of the weight; None for what is not asked for."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), groups, (*which, False)
    )[:2]
