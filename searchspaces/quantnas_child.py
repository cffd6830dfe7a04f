"""The networks of QuantNAS: slots, the two layouts, and the child. Imports torch and the quantizers alone: export
copies this file.

A layout is built the same way for a child, whose slots hold one operation of one bit-width, and for a supernet, whose
slots hold all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.learned import QuantConv2d, fresh_edge, noisy_weight, strength

Norm = Callable[[int], nn.Module]
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
    enlarged: bool = False
    copies: int = 1
    relu: bool = True
    first: bool = False
    last: bool = False
    start: float = 1.0


def shapes(layout: str, channels: int, cells: int, scale: int) -> list[SlotShape]:
    """The slots of a network, in the order in which they are passed.

    What is added to the enlarged image is signed: no ReLU stands before it is made, or the network can learn not to add
    anything.

    What is added starts small. In the first layout, where no norm stands between convolutions, all else does too: from
    weights as torch has them it learns little but a linear filter for a thousand steps (hand-made, 8 bits, 1,500 steps
    of 8 crops: 35.8 dB on Set5, so 36.5). It has a price: few steps with real quantizers from scratch get less far (12
    channels, 560 steps: 32.3 dB for 32.6).
    """
    c, up = channels, 3 * scale**2
    if layout == "basic":
        slots = [
            SlotShape("head1", "head", 3, c, relu=False, first=True),
            SlotShape("head2", "head", c, c, last=True),
            SlotShape("body1", "body", c, c, copies=cells),
            SlotShape("body2", "body", c, c, copies=cells, last=True),
            SlotShape("skip", "skip", c, c, copies=cells, last=True),
            SlotShape("upsample", "upsample", c, up, relu=False, last=True),
            SlotShape("tail1", "tail", 3, 3, enlarged=True, relu=False),
            SlotShape("tail2", "tail", 3, 3, enlarged=True, last=True),
        ]
        return [slot._replace(start=0.5) for slot in slots]
    found = []
    for n in range(1, cells + 1):
        image = {"relu": n > 1, "first": n == 1}
        for m in (1, 2, 3):
            found.append(SlotShape(f"cell{n}.skip{m}", "skip", c, c // 2, **(image if m == 1 else {})))
            found.append(SlotShape(f"cell{n}.body{m}", "body", c, c, **(image if m == 1 else {})))
        found.append(SlotShape(f"cell{n}.body4", "body", c, c // 2))
    upsample = SlotShape("upsample", "upsample", c, up, relu=False, last=True)
    return [*found, upsample, SlotShape("tail", "tail", 3, 3, enlarged=True, relu=False)]


class Slot(nn.Module):
    """The operations that one place may hold, all of the same sizes outside.

    Args:
        shape: where it stands.
        operations, bits: what it may be.
        hidden: channels within a pair of convolutions.
        input_bits: as in `QuantConv2d`, of the first convolution of each.
        shared: single convolutions are windows of one whole kernel: smaller ones its centre, groups the blocks on its
            diagonal.
    """

    def __init__(
        self,
        shape: SlotShape,
        operations: Sequence[str],
        bits: Sequence[int],
        hidden: int,
        input_bits: int | None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.operations, self.bits = shape.name, tuple(operations), tuple(bits)
        sides = [OPERATIONS[name].kernel for name in operations if OPERATIONS[name].kind == "one"]
        shared = shared and len(sides) > 1

        def edge(c_in: int, kernel: tuple[int, int], last: bool) -> float:
            return fresh_edge(c_in, kernel) * shape.start * (LAST if shape.last and last else 1)

        if shared:
            kernel = (max(sides), max(sides))
            common = edge(shape.c_in, kernel, True)
            self.whole = nn.Parameter(torch.empty(shape.c_out, shape.c_in, *kernel).uniform_(-common, common))
        else:
            self.register_parameter("whole", None)
        for name in operations:
            chain, layers = nn.ModuleList(), OPERATIONS[name].layers(shape.c_in, shape.c_out, hidden)
            for number, (c_in, c_out, kernel, groups) in enumerate(layers, 1):
                front = {"relu": shape.relu, "input_bits": input_bits} if number == 1 else {}
                own = not shared or len(layers) > 1
                spread = edge(c_in // groups, kernel, number == len(layers)) if own else common
                chain.append(QuantConv2d(c_in, c_out, kernel, bits, groups, edge=spread, own=own, **front))  # type: ignore[arg-type]
            self.add_module(name, chain)

    def windows(self) -> dict[str, Tensor]:
        """The weights of operations that have a window of the whole kernel, by their names in a child."""
        found = {name: self._window(OPERATIONS[name]) for name in self.operations}
        return {f"{name}.0.weight": window for name, window in found.items() if window is not None}

    def _window(self, operation: Operation) -> Tensor | None:
        """None for an operation with weights of its own."""
        if self.whole is None or operation.kind != "one":
            return None
        edge = (self.whole.shape[-1] - operation.kernel) // 2
        centre = self.whole[:, :, edge : edge + operation.kernel, edge : edge + operation.kernel]
        if operation.groups == 1:
            return centre
        return torch.cat([rows.chunk(operation.groups, 1)[n] for n, rows in enumerate(centre.chunk(operation.groups))])

    def forward(self, x: Tensor, pick: tuple[str, int] | Tensor | None = None, **how: Any) -> Tensor:
        """x: ``(N, c_in, H, W)`` -> ``(N, c_out, H, W)``.

        Args:
            pick: one operation and bit-width, or the probabilities ``(operations, bits)`` of a mixture; None for the
                only ones.
            how: as `QuantConv2d` takes it.
        """
        if not isinstance(pick, Tensor):
            name, bits = pick or (self.operations[0], self.bits[0])
            return self._chain(name, x, [(bits, 1.0)], how)
        shares = {}
        for name, row, values in zip(self.operations, pick, pick.detach().tolist(), strict=True):
            if any(values):
                shares[name] = [
                    (bits, share) for bits, share, value in zip(self.bits, row, values, strict=True) if value
                ]
        if how["quant"] == "real" or how["published"]:
            parts = [_mass(some) * self._chain(name, x, some, how) for name, some in shares.items()]
        else:
            parts = self._merged(x, shares, how)
        return sum(parts[1:], parts[0])

    def _merged(self, x: Tensor, shares: Mapping[str, list[tuple[int, Any]]], how: Mapping[str, Any]) -> list[Tensor]:
        """The parts of a mixture, of which all single convolutions are one, and all operations see one draw of noise.

        Their outputs are linear in the input and in its noise, which each takes in its own strength: so one convolution
        of both, with the sums of their kernels, gives the sum of all.
        """
        chains = {name: list(self.get_submodule(name).children()) for name in shares}
        first: QuantConv2d = next(iter(chains.values()))[0]  # type: ignore[assignment]
        generator, noise, x = how["generator"], None, first.rectified(x)
        if how["quant"] == "noise":
            each = [one for some in shares.values() for one in some]
            noise = first.input_noise(x, first.input_shares(each), generator)
        parts, kernels, side = [], [], max(OPERATIONS[name].kernel for name in shares)
        for name, (conv, *rest) in chains.items():
            assert isinstance(conv, QuantConv2d)
            lent = self._window(OPERATIONS[name])
            weight = conv.weight if lent is None else lent
            weight = noisy_weight(weight, shares[name], generator) if how["quant"] == "noise" else weight
            amount = 0.0 if noise is None else strength(conv.input_shares(shares[name]))
            if rest:
                seen = x if noise is None else x + noise * amount
                parts.append(
                    _mass(shares[name]) * rest[0](F.conv2d(seen, weight, None, 1, conv.padding), shares[name], **how)
                )
            else:
                kernel = _mass(shares[name]) * _whole(weight, conv.groups, side)
                kernels.append(kernel if noise is None else torch.cat((kernel, kernel * amount), 1))
        if kernels:
            seen = x if noise is None else torch.cat((x, noise), 1)
            parts.append(F.conv2d(seen, sum(kernels[1:], kernels[0]), padding=side // 2))
        return parts

    def _chain(self, name: str, x: Tensor, shares: list[tuple[int, Any]], how: Mapping[str, Any]) -> Tensor:
        lent = self._window(OPERATIONS[name])
        for conv in self.get_submodule(name).children():
            x = conv(x, shares, weight=lent, **how)
        return x


def _mass(shares: Sequence[tuple[int, Any]]) -> Any:
    return sum(share for _, share in shares)


def _whole(weight: Tensor, groups: int, side: int) -> Tensor:
    """The kernels of a grouped or smaller convolution as those of a whole one of `side`: zeros elsewhere."""
    if groups > 1:
        blocks = [
            F.pad(part, (0, 0, 0, 0, n * part.shape[1], (groups - 1 - n) * part.shape[1]))
            for n, part in enumerate(weight.chunk(groups))
        ]
        weight = torch.cat(blocks)
    edge = (side - weight.shape[-1]) // 2
    return F.pad(weight, (edge,) * 4) if edge else weight


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

    def __init__(self, channels: int, slot: Callable[[str], Slot], norm: Norm | None) -> None:
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

    def __init__(self, channels: int, cells: int, scale: int, slot: Callable[[str], Slot], norm: Norm | None) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        self.head1, self.head2 = slot("head1"), slot("head2")
        self.body = Residual(channels, norm)
        self.cells = nn.ModuleList(BasicCell(channels, slot, norm) for _ in range(cells))
        self.upsample, self.tail1, self.tail2 = slot("upsample"), slot("tail1"), slot("tail2")
        self.tail = Residual(3, norm)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """x: ``(N, 3, H, W)`` around zero -> ``(N, 3, scale * H, scale * W)``, what is added to the enlarged image."""

        def cells(z: Tensor) -> Tensor:
            for cell in self.cells:
                z = cell(z, run)
            return z

        x = x.repeat(1, self.channels // 3, 1, 1) + run(self.head1, x)
        x = x + run(self.head2, x)
        x = F.pixel_shuffle(run(self.upsample, self.body(x, cells)), self.scale)
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

    def __init__(self, number: int, channels: int, slot: Callable[[str], Slot], norm: Norm | None) -> None:
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

    def __init__(self, channels: int, cells: int, scale: int, slot: Callable[[str], Slot], norm: Norm | None) -> None:
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
    choices: Mapping[str, tuple[Sequence[str], Sequence[int]]],
    image_bits: int | None,
    norm: Norm | None,
    shared: bool = False,
) -> nn.Module:
    """The network of a layout.

    Args:
        choices: for each slot its operations and bit-widths.
        image_bits: of the image, where a convolution sees it; None for the bits of the convolution.
        norm: the norm of ADQ; None for no ADQ.
        shared: as in `Slot`.
    """
    places = {shape.name: shape for shape in shapes(layout, channels, cells, scale)}
    exact = layout == "basic" or norm is None  # else a norm stands between the image and the first convolution
    image = None if image_bits is None else 0 if exact else image_bits

    def slot(name: str) -> Slot:
        return Slot(
            places[name],
            *choices[name],
            hidden=channels,
            input_bits=image if places[name].first else None,
            shared=shared,
        )

    net: nn.Module = LAYOUTS[layout](channels, cells, scale, slot, norm)
    return net


def enlarge(body: nn.Module, x: Tensor, mean: Tensor, scale: int, run: Run, real: bool) -> Tensor:
    """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``: bicubic, and what is added to it.

    With real quantizers the pixels are put on the 8-bit grid that images have.
    """
    if real:
        x = (x * 255).round() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    added = body(x - mean, run)
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False) + added


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
        choices = {name: ([operation], [bits]) for name, (operation, bits) in slots.items()}
        self.body = build(layout, channels, cells, scale, choices, image_bits, nn.BatchNorm2d if adq else None)

    def quantize(self, on: bool) -> QuantNASChild:
        """Switch all quantizers on or off."""
        self.quant = "real" if on else "off"
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``."""
        return enlarge(
            self.body, x, self.mean, self.scale, lambda part, z: part(z, quant=self.quant), self.quant == "real"
        )
