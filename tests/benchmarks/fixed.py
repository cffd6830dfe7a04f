"""Networks of one size that `quantnas fixed` compares with: FSRCNN and ESPCN as published, and 3 x 3 convolutions of
one width. The same bits everywhere, by the quantizers of QuantNAS.

Each is a space of one, so that it learns by the same recipe, from the same crops, and is calibrated and tested by the
same code. What is added to the bicubic image starts small, as in QuantNAS: better terms than these networks had.

    python -m tests.benchmarks.quantnas fixed --data FOLDER --dir build/fixed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.quantization.learned import QuantConv2d, fresh_edge
from nas.space import Arch, Space
from nas.supernet import PartCost, Pass, Supernet
from searchspaces.quantnas_child import LAST, enlarge, pixel_mean

LUMA = (65.481 / 219, 128.553 / 219, 24.966 / 219)  # of R, G, B in ITU-R BT.601, which add up to 1
Layers = list[nn.Module]


class Sum(nn.Module):
    """A bias, which `QuantConv2d` has not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` -> the same shape."""
        return x + self.bias.view(-1, 1, 1)


class Transposed(nn.Module):
    """A transposed convolution of stride `scale` and padding ``kernel // 2``, its output `scale` times as large, as the
    convolution to sub-pixels that it is (Shi et al. 2016, arXiv:1609.07009): each of these has its own taps.

    Args:
        c_in, kernel, bits, scale: of it; it has one output channel.
        edge: fresh weights are uniform within it.
    """

    taps: Tensor

    def __init__(self, c_in: int, kernel: int, bits: int, scale: int, edge: float) -> None:
        super().__init__()
        reach = (kernel // 2 + scale - 1) // scale
        places = [
            [phase + kernel // 2 - scale * offset for offset in range(-reach, reach + 1)] for phase in range(scale)
        ]
        here = torch.tensor([[float(0 <= place < kernel) for place in row] for row in places])
        both = here.view(scale, 1, -1, 1) * here.view(1, scale, 1, -1)
        self.register_buffer("taps", both.view(scale**2, 1, 2 * reach + 1, 2 * reach + 1))
        side = 2 * reach + 1
        self.conv = QuantConv2d(c_in, scale**2, (side, side), (bits,), relu=False, edge=edge)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor, quant: str) -> Tensor:
        """x: ``(N, c_in, H, W)`` -> ``(N, 1, scale * H, scale * W)``."""
        out: Tensor = self.shuffle(self.conv(x, quant=quant, weight=self.conv.weight * self.taps))
        return out


def fsrcnn(bits: int, scale: int) -> Layers:
    """FSRCNN(56, 12, 4) (Dong et al. 2016, arXiv:1608.00367): 12,464 multiply-accumulates a pixel of the input."""

    def conv(c_in: int, c_out: int, kernel: int, **rest: Any) -> Layers:
        return [_conv(c_in, c_out, kernel, bits, **rest), Sum(c_out), nn.PReLU(c_out, init=0.25)]

    middle = [layer for _ in range(4) for layer in conv(12, 12, 3)]
    ends = conv(1, 56, 5, input_bits=0), conv(56, 12, 1), middle, conv(12, 56, 1)
    last = Transposed(56, 9, bits, scale, LAST * fresh_edge(56, (9, 9)))
    return [*(layer for part in ends for layer in part), last, Sum(1)]


def espcn(bits: int, scale: int) -> Layers:
    """ESPCN (Shi et al. 2016, arXiv:1609.05158): 5 x 5 to 64, 3 x 3 to 32, 3 x 3 to sub-pixels."""
    first = [_conv(1, 64, 5, bits, input_bits=0), Sum(64), nn.Tanh(), _conv(64, 32, 3, bits), Sum(32), nn.Tanh()]
    last = _conv(32, scale**2, 3, bits, edge=LAST * fresh_edge(32, (3, 3)))
    return [*first, last, Sum(scale**2), nn.PixelShuffle(scale)]


def plain(width: int) -> Callable[[int, int], Layers]:
    """Six 3 x 3 convolutions of one width, on RGB."""

    def layers(bits: int, scale: int) -> Layers:
        found: Layers = [_conv(3, width, 3, bits, input_bits=0), Sum(width)]
        for _ in range(4):
            found += [_conv(width, width, 3, bits, relu=True), Sum(width)]
        up = 3 * scale**2
        return [
            *found,
            _conv(width, up, 3, bits, edge=LAST * fresh_edge(width, (3, 3))),
            Sum(up),
            nn.PixelShuffle(scale),
        ]

    return layers


def _conv(c_in: int, c_out: int, kernel: int, bits: int, relu: bool = False, **rest: Any) -> QuantConv2d:
    return QuantConv2d(c_in, c_out, (kernel, kernel), (bits,), relu=relu, **rest)


NETWORKS: Mapping[str, Callable[[int, int], Layers]] = {
    "fsrcnn": fsrcnn,
    "espcn": espcn,
    **{f"plain{width}": plain(width) for width in (6, 9, 12, 18, 24)},
}


class Body(nn.Module):
    """A network of `NETWORKS`: the bicubic image and what is added to it.

    FSRCNN and ESPCN see the luma alone, which images of 8 bits have in 8 bits; what they add is grey.
    """

    mean: Tensor
    luma: Tensor

    def __init__(self, name: str, bits: int, scale: int, mean: Sequence[float]) -> None:
        super().__init__()
        self.scale, self.grey = scale, not name.startswith("plain")
        self.register_buffer("mean", pixel_mean(mean))
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1))
        self.layers = nn.ModuleList(NETWORKS[name](bits, scale))

    def forward(self, x: Tensor, quant: str) -> Tensor:
        """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``."""
        return enlarge(lambda z: self._added(z, quant), x, self.mean, self.scale, quant == "real")

    def _added(self, x: Tensor, quant: str) -> Tensor:
        if self.grey:
            y = (x * self.luma).sum(1, keepdim=True)
            x = (y * 255).round() / 255 if quant == "real" else y
        for layer in self.layers:
            x = layer(x, quant=quant) if isinstance(layer, QuantConv2d | Transposed) else layer(x)
        return x


class FixedChild(nn.Module):
    """A network of `NETWORKS` alone.

    Args:
        name, bits, scale, mean: as of `Fixed`.
    """

    def __init__(self, name: str, bits: int, scale: int, mean: list[float]) -> None:
        super().__init__()
        self.config = {"name": name, "bits": bits, "scale": scale, "mean": mean}
        self.body, self.quant = Body(name, bits, scale, mean), "real"

    def quantize(self, on: bool) -> FixedChild:
        """Switch all quantizers on or off."""
        self.quant = "real" if on else "off"
        return self

    def forward(self, x: Tensor) -> Tensor:
        """As `Body`."""
        out: Tensor = self.body(x, self.quant)
        return out


class Fixed(Supernet):
    """A space of one network of `NETWORKS`.

    Args:
        name, bits: which, and of all convolutions.
        scale, channels, mean, image: of the data, as of `QuantNAS`.
    """

    child = FixedChild
    sources = (Path(__file__),)
    quantizes, mixes_examples = True, False

    def __init__(
        self, name: str, bits: int, scale: int, channels: int = 3, mean: Sequence[float] = (0.5,) * 3, image: int = 32
    ) -> None:
        super().__init__()
        self.space, self.input_shape = Space([]), (channels, image, image)
        self.config = {"name": name, "bits": bits, "scale": scale, "mean": list(mean)}
        self.body = Body(name, bits, scale, mean)

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        out: Tensor = self.body(x, how.quant)
        return out

    def child_config(self, arch: Arch) -> dict[str, Any]:
        return dict(self.config)

    def parts(self, arch: Arch) -> Iterator[int]:
        yield from range(len(self.body.layers))

    def part_cost(self, part: int) -> PartCost:
        """A layer by its place. All work at the size of the input; biases and slopes count as parameters alone."""
        layer = self.body.layers[part]
        conv = layer.conv if isinstance(layer, Transposed) else layer
        if not isinstance(conv, QuantConv2d):
            own = sum(parameter.numel() for parameter in layer.parameters())
            return PartCost(0, own, 0, 4 * own)
        sides, (bits,) = conv.weight.shape, conv.bits
        taps = int(layer.taps.sum()) if isinstance(layer, Transposed) else sides[0] * sides[2] * sides[3]
        weights, steps = (
            taps * sides[1],
            sum(step.numel() for step in (*conv.weight_step.values(), *conv.input_step.values())),
        )
        macs = weights * self.input_shape[-1] ** 2
        return PartCost(
            macs,
            weights + steps,
            macs * bits * (8 if conv.input_bits == 0 else bits),
            -(-weights * bits // 8) + 4 * steps,
        )


def network(size: str, **options: Any) -> Fixed:
    """``"fsrcnn-8"``: a network's name and its bits."""
    name, _, bits = size.rpartition("-")
    return Fixed(name, int(bits), **options)
