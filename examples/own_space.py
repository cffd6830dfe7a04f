"""A search space of your own: residual networks of elastic depth and width, whose classifier reads a prefix of the
features.

In this folder:

    nas check own_space:resnet --size tiny
    nas run own_space.yaml

A space is a `Supernet`, a factory that takes one of your sizes and what the data say of themselves (``classes``,
``channels``, ``mean``, ``std``, ``image``), and the child's class in a file ``own_space_child.py`` beside it that
imports torch alone. Layers are told their sizes at each call and remember none; a smaller layer is a window of the
largest one, its first channels, and has the same name in the child: by that alone `extract` and `fix` find the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import own_space_child
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Supernet, fp32, inherit


@dataclass(frozen=True)
class Table:
    """Widths and depths of each stage, smallest first. All stages but the first halve the side."""

    widths: tuple[tuple[int, ...], ...]
    depths: tuple[tuple[int, ...], ...]
    stem: int  # channels before the first stage


SIZES = {
    "tiny": Table(widths=((8, 16), (16, 24, 32)), depths=((1, 2), (1, 2)), stem=8),
    "small": Table(widths=((16, 24, 32), (32, 48, 64), (64, 96, 128)), depths=((1, 2), (1, 2, 3), (1, 2)), stem=16),
}


class Stage(NamedTuple):
    """One stage of a child."""

    number: int
    c_in: int
    width: int
    depth: int


def blocks(number: int, c_in: int, width: int, depth: int) -> list[dict[str, int]]:
    """The blocks of a `Stage`, as keyword arguments of `Residual`: the one place where its geometry is decided."""
    first = {"c_in": c_in, "c_out": width, "stride": 2 if number else 1, "project": 1}
    return [first, *({"c_in": width, "c_out": width, "stride": 1, "project": 0} for _ in range(depth - 1))]


def resnet(size: str = "tiny", **data: Any) -> ElasticResNet:
    """The factory that ``space: {name: own_space:resnet, size: tiny}`` names; `data` as in `ElasticResNet`.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"own_space has no size {size!r}; it has: {', '.join(SIZES)}")
    return ElasticResNet(SIZES[size], **data)


class ElasticResidual(nn.Module):
    """The elastic form of `own_space_child.Residual`: the same parameters, at the largest width."""

    def __init__(self, c_in: int, c_out: int, stride: int, project: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = ElasticConv2d(c_in, c_out, 3, stride), ElasticBatchNorm2d(c_out)
        self.conv2, self.norm2 = ElasticConv2d(c_out, c_out, 3), ElasticBatchNorm2d(c_out)
        self.shortcut = ElasticConv2d(c_in, c_out, 1, stride) if project else None

    def forward(self, x: Tensor, width: int) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x, width))), width))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x, width)))


class ElasticStage(nn.ModuleList):
    """The blocks of a stage, of which a child has the first ones."""

    def forward(self, x: Tensor, width: int, depth: int) -> Tensor:
        for block in islice(self, depth):
            x = block(x, width)
        return x


class ElasticResNet(Supernet):
    """The supernet of a `Table`. Batch norm has no running statistics here: those of a child are calibrated when it
    is cut out.

    Args:
        table: what it may be made of.
        classes, channels, mean, std, image: of the data; `image` is the side in pixels that costs are stated for.
    """

    mean: Tensor
    std: Tensor
    child = own_space_child.ResNetChild
    sources = (Path(own_space_child.__file__),)  # what export copies beside the weights

    def __init__(
        self,
        table: Table,
        classes: int = 10,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image: int = 32,
    ) -> None:
        super().__init__()
        self.table, self.classes, self.input_shape = table, classes, (channels, image, image)
        self.pixels = {"mean": list(mean or [0.0] * channels), "std": list(std or [1.0] * channels)}
        for name, values in self.pixels.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        choices: list[Choice] = []
        for stage, (widths, depths) in enumerate(zip(table.widths, table.depths, strict=True)):
            choices += [Choice(f"stage{stage}.width", widths), Choice(f"stage{stage}.depth", depths)]
        self.space = Space(choices)
        self.stem, self.norm = ElasticConv2d(channels, table.stem, 3), ElasticBatchNorm2d(table.stem)
        largest = [blocks(*stage) for stage in self._stages(self.space.largest())]
        self.stages = nn.ModuleList(ElasticStage(ElasticResidual(**block) for block in stage) for stage in largest)
        self.classifier = ElasticLinear(table.widths[-1][-1], classes)

    def _stages(self, arch: Arch) -> Iterator[Stage]:
        c_in = self.table.stem
        for number in range(len(self.table.widths)):
            width = int(arch[f"stage{number}.width"])
            yield Stage(number, c_in, width, int(arch[f"stage{number}.depth"]))
            c_in = width

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1] -> logits ``(N, classes)``."""
        x = F.relu(self.norm(self.stem((x - self.mean) / self.std)))
        for module, stage in zip(self.stages, self._stages(arch), strict=True):
            x = module(x, stage.width, stage.depth)
        x = x.mean((2, 3))
        if how.dropout:  # drawn from the pass's generator, never from torch's own
            x = x * torch.empty_like(x).bernoulli_(1 - how.dropout, generator=how.generator) / (1 - how.dropout)
        return self.classifier(x)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        stages = [blocks(*stage) for stage in self._stages(arch)]
        return {**self.pixels, "stem": self.table.stem, "stages": stages, "classes": self.classes}

    def fix(self, arch: Arch, fresh: bool = False) -> ElasticResNet:
        stages = list(self._stages(arch))
        widths, depths = tuple((stage.width,) for stage in stages), tuple((stage.depth,) for stage in stages)
        channels, image, _ = self.input_shape
        fixed = ElasticResNet(
            replace(self.table, widths=widths, depths=depths), self.classes, channels, **self.pixels, image=image
        )
        if not fresh:
            inherit(fixed, self)
        return fixed

    def parts(self, arch: Arch) -> Iterator[Stage]:
        """The child as values whose costs add up: stem and classifier are counted with the first and the last stage."""
        return self._stages(arch)

    def part_cost(self, part: Stage) -> PartCost:
        """Convolutions and the classifier count as MACs; the parameters of norms and biases count as parameters."""
        last, channels = len(self.table.widths) - 1, self.input_shape[0]
        side, macs, params = self.input_shape[1], 0, 0
        if part.number == 0:
            taps = 9 * channels * self.table.stem
            macs, params = taps * side**2, taps + 2 * self.table.stem
        side = -(-side // 2 ** max(0, part.number - 1))
        for block in blocks(*part):
            side = -(-side // block["stride"])
            taps = 9 * block["c_in"] * part.width + 9 * part.width**2 + block["project"] * block["c_in"] * part.width
            macs, params = macs + taps * side**2, params + taps + 4 * part.width
        if part.number == last:
            macs, params = macs + part.width * self.classes, params + (part.width + 1) * self.classes
        return fp32(macs, params)
