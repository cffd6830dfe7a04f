"""A network that somebody else has trained as the largest of a space: torchvision's ResNet-18, of which children have
fewer blocks and fewer channels within them.

In this folder:

    nas check pretrained_space:resnet18 --size quarter
    nas run pretrained_space.yaml --set space.size=resnet18 --set train.init_from=resnet18.safetensors

The weights, on a machine that can reach them:

    python -c "import torchvision, safetensors.torch as s; s.save_model(torchvision.models.resnet18(weights='DEFAULT'),
    'resnet18.safetensors')"

Two methods make it so: `translated` says which weight is which, and `sort_channels` puts the channels that matter most
first, since smaller children keep the first ones. Without either, names must agree and the order is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pretrained_space_child
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Supernet, fp32, inherit

SIZES = {"resnet18": (64, 128, 256, 512), "quarter": (16, 32, 64, 128)}  # channels of the stages
NAMES = (  # torchvision's, and what they are called here
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "norm."),
    (r"^layer(\d)\.(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.{found[2]}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut_norm."),
    (r"^fc\.", "classifier."),
)


@dataclass(frozen=True)
class Table:
    """What the stages may have, smallest first."""

    widths: tuple[int, ...]
    middles: tuple[tuple[int, ...], ...]
    depths: tuple[tuple[int, ...], ...]


class Stage(NamedTuple):
    """One stage of a child."""

    number: int
    c_in: int
    width: int
    middle: int
    depth: int


def blocks(number: int, c_in: int, width: int, middle: int, depth: int) -> list[dict[str, int]]:
    """The blocks of a `Stage`, as keyword arguments of `Basic`. All stages but the first halve the side."""
    first = {"c_in": c_in, "middle": middle, "c_out": width, "stride": 2 if number else 1}
    return [first, *({**first, "c_in": width, "stride": 1} for _ in range(depth - 1))]


def resnet18(size: str = "resnet18", **data: Any) -> ElasticResNet18:
    """The factory; `data` as in `ElasticResNet18`.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"pretrained_space has no size {size!r}; it has: {', '.join(SIZES)}")
    widths = SIZES[size]
    middles = tuple((width // 2, 3 * width // 4, width) for width in widths)
    return ElasticResNet18(Table(widths, middles, ((1, 2),) * len(widths)), **data)


class ElasticBasic(nn.Module):
    """The elastic form of `pretrained_space_child.Basic`: the same parameters, at the most channels between."""

    def __init__(self, c_in: int, middle: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = ElasticConv2d(c_in, middle, 3, stride), ElasticBatchNorm2d(middle)
        self.conv2, self.norm2 = ElasticConv2d(middle, c_out, 3), ElasticBatchNorm2d(c_out)
        self.shortcut, self.shortcut_norm = None, None
        if c_in != c_out:
            self.shortcut, self.shortcut_norm = ElasticConv2d(c_in, c_out, 1, stride), ElasticBatchNorm2d(c_out)

    def forward(self, x: Tensor, middle: int) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x, middle)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(out + x)

    @torch.no_grad()
    def sort(self) -> None:
        """The channels between, by how much of each the second convolution takes."""
        order = self.conv2.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        for weight in (*self.conv1.parameters(), *self.norm1.parameters()):
            weight.copy_(weight[order])
        self.conv2.weight.copy_(self.conv2.weight[:, order])


class ElasticStage(nn.ModuleList):
    """The blocks of a stage, of which a child has the first ones."""

    def forward(self, x: Tensor, middle: int, depth: int) -> Tensor:
        for block in islice(self, depth):
            x = block(x, middle)
        return x

    def sort(self) -> None:
        for block in self:
            block.sort()


class ElasticResNet18(Supernet):
    """The supernet of a `Table`. Batch norm has no running statistics here: those of a child are calibrated when it
    is cut out.

    Args:
        table: what it may be made of.
        classes, channels, mean, std, image: of the data; `image` is the side in pixels that costs are stated for.
    """

    mean: Tensor
    std: Tensor
    child = pretrained_space_child.ResNet18Child
    sources = (Path(pretrained_space_child.__file__),)
    outputs = "classifier"  # that of other classes begins fresh

    def __init__(
        self,
        table: Table,
        classes: int = 10,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image: int = 64,
    ) -> None:
        super().__init__()
        self.table, self.classes, self.input_shape = table, classes, (channels, image, image)
        self.pixels = {"mean": list(mean or [0.0] * channels), "std": list(std or [1.0] * channels)}
        for name, values in self.pixels.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        choices: list[Choice] = []
        for stage, (middles, depths) in enumerate(zip(table.middles, table.depths, strict=True)):
            choices += [Choice(f"stage{stage}.middle", middles), Choice(f"stage{stage}.depth", depths)]
        self.space = Space(choices)
        stem = table.widths[0]
        self.stem, self.norm = ElasticConv2d(channels, stem, 7, 2), ElasticBatchNorm2d(stem)
        largest = [blocks(*stage) for stage in self._stages(self.space.largest())]
        self.stages = nn.ModuleList(ElasticStage(ElasticBasic(**block) for block in stage) for stage in largest)
        self.classifier = ElasticLinear(table.widths[-1], classes)

    def _stages(self, arch: Arch) -> Iterator[Stage]:
        c_in = self.table.widths[0]
        for number, width in enumerate(self.table.widths):
            yield Stage(number, c_in, width, int(arch[f"stage{number}.middle"]), int(arch[f"stage{number}.depth"]))
            c_in = width

    def translated(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """torchvision's names, where the weights come from there."""
        found = {}
        for name, tensor in tensors.items():
            for theirs, ours in NAMES:
                name = re.sub(theirs, ours, name)  # type: ignore[arg-type, call-overload]
            found[name] = tensor
        return found

    def sort_channels(self) -> None:
        for stage in self.stages:
            stage.sort()  # type: ignore[operator]

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1] -> logits ``(N, classes)``."""
        x = F.relu(self.norm(self.stem((x - self.mean) / self.std)))
        x = F.max_pool2d(x, 3, 2, 1)
        for module, stage in zip(self.stages, self._stages(arch), strict=True):
            x = module(x, stage.middle, stage.depth)
        x = x.mean((2, 3))
        if how.dropout:  # drawn from the pass's generator, never from torch's own
            x = x * torch.empty_like(x).bernoulli_(1 - how.dropout, generator=how.generator) / (1 - how.dropout)
        return self.classifier(x)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        stages = [blocks(*stage) for stage in self._stages(arch)]
        return {**self.pixels, "stages": stages, "classes": self.classes}

    def fix(self, arch: Arch, fresh: bool = False) -> ElasticResNet18:
        stages = list(self._stages(arch))
        middles, depths = tuple((stage.middle,) for stage in stages), tuple((stage.depth,) for stage in stages)
        channels, image, _ = self.input_shape
        table = Table(self.table.widths, middles, depths)
        fixed = ElasticResNet18(table, self.classes, channels, **self.pixels, image=image)
        if not fresh:
            inherit(fixed, self)
        return fixed

    def parts(self, arch: Arch) -> Iterator[Stage]:
        """The child as values whose costs add up: stem and classifier are counted with the first and the last stage."""
        return self._stages(arch)

    def part_cost(self, part: Stage) -> PartCost:
        """Convolutions and the classifier count as MACs; the parameters of norms and biases count as parameters."""
        channels, side, macs, params = self.input_shape[0], -(-self.input_shape[1] // 2), 0, 0
        if part.number == 0:
            taps = 49 * channels * part.c_in
            macs, params = taps * side**2, taps + 2 * part.c_in
        side = -(-side // 2 ** max(1, part.number))
        for block in blocks(*part):
            side = -(-side // block["stride"])
            project = block["c_in"] * part.width * (block["c_in"] != part.width)
            taps = 9 * block["c_in"] * part.middle + 9 * part.middle * part.width + project
            macs, params = macs + taps * side**2, params + taps + 2 * part.middle + 2 * part.width
            params += 2 * part.width if project else 0
        if part.number == len(self.table.widths) - 1:
            macs, params = macs + part.width * self.classes, params + (part.width + 1) * self.classes
        return fp32(macs, params)
