"""The networks of QuantNAS: slots, the two layouts, and the child. Imports torch and the quantizers alone: export
copies this file.

A layout is built the same way for a child, whose slots hold one operation of one bit-width, and for a supernet, whose
slots hold all (`quantnas_slot`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.learned import QuantConv2d, fresh_edge

Norm = Callable[[int], nn.Module]
Make = Callable[[str], nn.Module]  # makes the slot of that name
Run = Callable[[nn.Module, Tensor], Tensor]  # runs a slot or a fixed convolution: here a supernet says how
Layer = tuple[int, int, tuple[int, int], int]  # c_in, c_out, kernel, groups

FIXED_BITS = 8  # of convolutions that are not searched
LAST = 0.1  # what the fresh weights of a function that is added to something are multiplied by, in its last convolution


class Operation(NamedTuple):
    """What a slot may hold: one convolution, a pair of them, or a column and a row (factorised)."""

    kernel: int
    groups: int = 1
    kind: str = "one"

    def fits(self, c_in: int, c_out: int) -> bool:
        return c_in % self.groups == 0 and c_out % self.groups == 0

    def layers(self, c_in: int, c_out: int, hidden: int) -> list[Layer]:
        k = self.kernel
        if self.kind == "pair":
            return [(c_in, hidden, (k, k), 1), (hidden, c_out, (k, k), 1)]
        if self.kind == "factorised":
            return [(c_in, hidden, (k, 1), 1), (hidden, c_out, (1, k), 1)]
        return [(c_in, c_out, (k, k), self.groups)]


OPERATIONS = {  # an architecture names an operation by its place here: only ever add at the end
    "conv1": Operation(1),
    "conv3": Operation(3),
    "conv5": Operation(5),
    "conv3g3": Operation(3, 3),
    "conv5g3": Operation(5, 3),
    "fact3": Operation(3, kind="factorised"),
    "fact5": Operation(5, kind="factorised"),
    "growth1": Operation(1, kind="pair"),
    "growth3": Operation(3, kind="pair"),
    "growth5": Operation(5, kind="pair"),
    "conv1g2": Operation(1, 2),
    "conv3g2": Operation(3, 2),
    "conv5g2": Operation(5, 2),
}


class SlotShape(NamedTuple):
    """Where a slot stands.

    Attributes:
        group: which list of operations it chooses from.
        hidden: channels within a pair of convolutions.
        enlarged: it works at the size of the output.
        copies: cells that share the choice, each with its own weights.
        relu: its input goes through ReLU.
        first: its input is the image.
        last: it changes features that others have made, and starts small; not so the head's first, which makes them
            differ.
        start: what its fresh weights are multiplied by.
    """

    name: str
    group: str
    c_in: int
    c_out: int
    hidden: int
    enlarged: bool = False
    copies: int = 1
    relu: bool = True
    first: bool = False
    last: bool = False
    start: float = 1.0

    def layers(self, operation: str) -> list[Layer]:
        """The convolutions of an operation here."""
        return OPERATIONS[operation].layers(self.c_in, self.c_out, self.hidden)

    def edge(self, c_in: int, kernel: tuple[int, int], last: bool) -> float:
        """What the fresh weights of a convolution here are uniform within."""
        return fresh_edge(c_in, kernel) * self.start * (LAST if self.last and last else 1)


def shapes(layout: str, channels: int, cells: int, scale: int) -> list[SlotShape]:
    """The slots of a network, in the order in which they are passed.

    What is added to the enlarged image is signed: no ReLU stands before it is made, or the network can learn not to add
    anything.

    What is added starts small. In the first layout, where no norm stands between convolutions, all else does too: from
    weights as torch has them it learns little but a linear filter for a thousand steps (hand-made, 8 bits, 1,500 steps
    of 8 crops: 35.8 dB on Set5, so 36.5). It has a price: few steps with real quantizers from scratch get less far (12
    channels, 560 steps: 32.3 dB for 32.6).

    The second layout, of some ten convolutions one after the other, starts as torch does, but for its enlargement.
    Half as large, or with small last convolutions, it stays longer at a linear filter (hand-made, 12 channels, 8 bits,
    800 steps under noise at the rate 3e-3, Set5, one seed: 35.1 dB so, 35.2 in both other ways, 34.9 to 35.1 for 35.2
    at the rate 1e-3). Twice as large a network alone gets further (35.7, 35.7, 35.4 for 35.1, 35.7, 35.2 by three
    seeds), but a supernet less far (600 steps of four paths, eight children, one seed: 31.1 dB for 31.6).
    """
    c, up = channels, 3 * scale**2
    if layout == "basic":
        slots = [
            SlotShape("head1", "head", 3, c, c, relu=False, first=True),
            SlotShape("head2", "head", c, c, c, last=True),
            SlotShape("body1", "body", c, c, c, copies=cells),
            SlotShape("body2", "body", c, c, c, copies=cells, last=True),
            SlotShape("skip", "skip", c, c, c, copies=cells, last=True),
            SlotShape("upsample", "upsample", c, up, c, relu=False, last=True),
            SlotShape("tail1", "tail", 3, 3, c, enlarged=True, relu=False),
            SlotShape("tail2", "tail", 3, 3, c, enlarged=True, last=True),
        ]
        return [slot._replace(start=0.5) for slot in slots]
    found = []
    for n in range(1, cells + 1):
        image = {"relu": n > 1, "first": n == 1}
        for m in (1, 2, 3):
            found.append(SlotShape(f"cell{n}.skip{m}", "skip", c, c // 2, c, **(image if m == 1 else {})))
            found.append(SlotShape(f"cell{n}.body{m}", "body", c, c, c, **(image if m == 1 else {})))
        found.append(SlotShape(f"cell{n}.body4", "body", c, c // 2, c))
    upsample = SlotShape("upsample", "upsample", c, up, c, relu=False, last=True)
    return [*found, upsample, SlotShape("tail", "tail", 3, 3, c, enlarged=True, relu=False)]


def chain(
    shape: SlotShape, operation: str, bits: Sequence[int], input_bits: int | None, lent: float | None = None
) -> nn.ModuleList:
    """The convolutions of an operation in a slot.

    Args:
        bits, input_bits: as of `QuantConv2d`; the latter of the first one.
        lent: what the kernel is uniform within that they are given at every call; None: they have weights.
    """
    convs, layers = nn.ModuleList(), shape.layers(operation)
    for number, (c_in, c_out, kernel, groups) in enumerate(layers, 1):
        front = {"relu": shape.relu, "input_bits": input_bits} if number == 1 else {}
        edge = shape.edge(c_in // groups, kernel, number == len(layers)) if lent is None else lent
        convs.append(QuantConv2d(c_in, c_out, kernel, bits, groups, edge=edge, own=lent is None, **front))  # type: ignore[arg-type]
    return convs


class Slot(nn.Module):
    """One operation of one bit-width."""

    def __init__(self, shape: SlotShape, operation: str, bits: int, input_bits: int | None) -> None:
        super().__init__()
        self.add_module(operation, chain(shape, operation, (bits,), input_bits))

    def forward(self, x: Tensor, quant: str) -> Tensor:
        """x: ``(N, c_in, H, W)`` -> ``(N, c_out, H, W)``; quant as of `QuantConv2d`."""
        for convs in self.children():
            for conv in convs.children():
                x = conv(x, quant=quant)
        return x


class Residual(nn.Module):
    """``x + f(x)``, or with ADQ ``x + (gain * deviation(x) + offset) * f(norm(x))`` (QuantNAS, section on ADQ; after
    AdaDM, arXiv:2111.13905).

    The norm keeps what is quantized in range; the deviation, over all values of an image, gives its contrast back.
    """

    def __init__(self, channels: int, norm: Norm | None) -> None:
        super().__init__()
        self.norm = None if norm is None else norm(channels)
        if norm is not None:
            self.gain, self.offset = nn.Parameter(torch.full((1,), 1.5)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm is None:
            return x + f(x)
        variance = x.var((1, 2, 3), keepdim=True)
        # a constant image has no gradient here, rather than none that is a number
        deviation = variance.clamp_min(1e-12).sqrt()
        return x + (self.gain * deviation + self.offset) * f(self.norm(x))


class BasicCell(nn.Module):
    """A convolution beside two, around the identity."""

    def __init__(self, channels: int, slot: Make, norm: Norm | None) -> None:
        super().__init__()
        self.residual = Residual(channels, norm)
        self.body1, self.body2, self.skip = slot("body1"), slot("body2"), slot("skip")

    def forward(self, x: Tensor, run: Run) -> Tensor:
        return self.residual(x, lambda z: run(self.skip, z) + run(self.body2, run(self.body1, z)))


class Basic(nn.Module):
    """The layout of the first version of the paper: head, cells under a long skip, enlargement, tail.

    The head is residual over the repeated image, so that a random head does not keep changing the basis of the
    features.
    """

    def __init__(self, channels: int, cells: int, scale: int, slot: Make, norm: Norm | None) -> None:
        super().__init__()
        self.scale = scale
        self.head1, self.head2 = slot("head1"), slot("head2")
        self.body = Residual(channels, norm)
        self.cells = nn.ModuleList(BasicCell(channels, slot, norm) for _ in range(cells))
        self.upsample, self.tail1, self.tail2 = slot("upsample"), slot("tail1"), slot("tail2")
        self.tail = Residual(3, norm)

    def forward(self, x: Tensor, run: Run, cells: int | None = None) -> Tensor:
        """x: ``(N, 3, H, W)`` around zero -> ``(N, 3, scale * H, scale * W)``, what is added to the enlarged image.

        Args:
            cells: how many of them run, the first ones; None: all.
        """

        def through(z: Tensor) -> Tensor:
            for cell in list(self.cells)[:cells]:
                z = cell(z, run)
            return z

        made = run(self.head1, x)  # says how many channels there are: of a supernet's the first
        x = x.repeat(1, made.shape[1] // 3, 1, 1) + made
        x = x + run(self.head2, x)
        x = F.pixel_shuffle(run(self.upsample, self.body(x, through)), self.scale)
        return self.tail(x, lambda z: run(self.tail2, run(self.tail1, z)))


def fixed(c_in: int, c_out: int, kernel: int, relu: bool = False, **rest: Any) -> QuantConv2d:
    """A convolution that is not searched."""
    return QuantConv2d(c_in, c_out, (kernel, kernel), (FIXED_BITS,), relu=relu, **rest)


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (RFANet, Liu et al. 2020), as in RFDN: a gate for each value, from a smaller image.

    The image must have at least 15 pixels a side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        f = channels // 4
        self.reduce, self.side = fixed(channels, f, 1), fixed(f, f, 1)
        self.shrink = fixed(f, f, 3, stride=2, padding=(0, 0))
        self.conv1, self.conv2, self.conv3 = fixed(f, f, 3), fixed(f, f, 3, relu=True), fixed(f, f, 3, relu=True)
        self.expand = fixed(f, channels, 1)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        reduced = run(self.reduce, x)
        small = F.max_pool2d(run(self.shrink, reduced), 7, 3)
        small = run(self.conv3, run(self.conv2, run(self.conv1, small)))
        large = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
        return x * run(self.expand, large + run(self.side, reduced)).sigmoid()


class RfdnCell(nn.Module):
    """Residual feature distillation (RFDN, Liu et al. 2020): three refinements, half of the channels kept before
    each and at the end."""

    def __init__(self, number: int, channels: int, slot: Make, norm: Norm | None) -> None:
        super().__init__()
        self.residual = Residual(channels, norm)
        self.skips = nn.ModuleList(slot(f"cell{number}.skip{m}") for m in (1, 2, 3))
        self.bodies = nn.ModuleList(slot(f"cell{number}.body{m}") for m in (1, 2, 3, 4))
        self.fuse = fixed(2 * channels, channels, 1, relu=True)
        self.attention = SpatialAttention(channels)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        return self.residual(x, lambda z: self._distil(z, run))

    def _distil(self, x: Tensor, run: Run) -> Tensor:
        kept = []
        for skip, body in zip(self.skips, self.bodies, strict=False):
            kept.append(run(skip, x))
            x = x + run(body, x)
        kept.append(run(self.bodies[-1], x))
        return self.attention(run(self.fuse, torch.cat(kept, 1)), run)


class Rfdn(nn.Module):
    """The layout of the paper's later versions: no head, cells after RFDN, all of them fused."""

    def __init__(self, channels: int, cells: int, scale: int, slot: Make, norm: Norm | None) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        self.cells = nn.ModuleList(RfdnCell(n, channels, slot, norm) for n in range(1, cells + 1))
        self.fuse, self.refine = fixed(cells * channels, channels, 1), fixed(channels, channels, 3, relu=True)
        self.upsample, self.tail = slot("upsample"), slot("tail")

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """As `Basic.forward`."""
        first = x = x.repeat(1, self.channels // 3, 1, 1)
        found = []
        for cell in self.cells:
            x = cell(x, run)
            found.append(x)
        x = run(self.refine, run(self.fuse, torch.cat(found, 1))) + first
        x = F.pixel_shuffle(run(self.upsample, x), self.scale)
        return x + run(self.tail, x)


LAYOUTS = {"basic": Basic, "rfdn": Rfdn}


def build(
    layout: str,
    channels: int,
    cells: int,
    scale: int,
    make: Callable[[SlotShape, int | None], nn.Module],
    image_bits: int | None,
    norm: Norm | None,
) -> nn.Module:
    """The network of a layout.

    Args:
        make: a slot, from its shape and the bits of its input (`QuantConv2d.input_bits`).
        image_bits: of the image, where a convolution sees it; None for the bits of the convolution.
        norm: the norm of ADQ; None for no ADQ.
    """
    places = {shape.name: shape for shape in shapes(layout, channels, cells, scale)}
    exact = layout == "basic" or norm is None  # else a norm stands between the image and the first convolution
    image = None if image_bits is None else 0 if exact else image_bits

    def slot(name: str) -> nn.Module:
        return make(places[name], image if places[name].first else None)

    net: nn.Module = LAYOUTS[layout](channels, cells, scale, slot, norm)
    return net


def enlarge(added: Callable[[Tensor], Tensor], x: Tensor, mean: Tensor, scale: int, real: bool) -> Tensor:
    """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``: bicubic, and what is added to it.

    With real quantizers the pixels are put on the 8-bit grid that images have.
    """
    if real:
        x = (x * 255).round() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    change = added(x - mean)
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False) + change


def pixel_mean(mean: Sequence[float]) -> Tensor:
    """``(3, 1, 1)``, on the 8-bit grid: a zero point, so that an image stays exact without its mean."""
    return (torch.tensor(mean) * 255).round().view(-1, 1, 1) / 255


class QuantNASChild(nn.Module):
    """A super-resolution network cut out of a QuantNAS supernet: pixels in [0, 1] to the enlarged image.

    Args:
        layout: ``"basic"`` or ``"rfdn"``.
        channels, cells, scale: its sizes.
        adq: whether its residual functions have ADQ.
        image_bits: of the image; None for those of the convolution that sees it.
        mean: of the pixels, one number a channel.
        slots: for each slot its operation and its bits.
    """

    mean: Tensor

    def __init__(
        self,
        layout: str,
        channels: int,
        cells: int,
        scale: int,
        adq: bool,
        image_bits: int | None,
        mean: list[float],
        slots: dict[str, list[Any]],
    ) -> None:
        super().__init__()
        sizes = {"layout": layout, "channels": channels, "cells": cells, "scale": scale}
        sizes |= {"adq": adq, "image_bits": image_bits}
        self.config = {**sizes, "mean": mean, "slots": slots}
        self.scale, self.quant = scale, "real"
        self.register_buffer("mean", pixel_mean(mean))

        def slot(shape: SlotShape, input_bits: int | None) -> Slot:
            operation, bits = slots[shape.name]
            return Slot(shape, operation, bits, input_bits)

        self.body = build(layout, channels, cells, scale, slot, image_bits, nn.BatchNorm2d if adq else None)

    def quantize(self, on: bool) -> QuantNASChild:
        """Switch all quantizers on or off."""
        self.quant = "real" if on else "off"
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``."""
        return enlarge(
            lambda z: self.body(z, lambda part, at: part(at, quant=self.quant)),
            x,
            self.mean,
            self.scale,
            self.quant == "real",
        )
