"""BigNAS: convolutional classifiers of elastic resolution, width, depth, kernel and expansion.

Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models" (ECCV 2020); the published space
that is built here (`attentivenas`) is that of Wang et al., "AttentiveNAS" (CVPR 2021), Table 7. All choices are per
stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nas.static
from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, ElasticSqueezeExcite
from nas.space import Arch, Choice, Number, Space
from nas.static import Pixels, channels_last, resize, shrink
from nas.supernet import PartCost, Pass, Supernet, fp32, inherit
from searchspaces import bignas_child


@dataclass(frozen=True)
class Stage:
    """The choices of one stage; every block of it shares width, kernel and expansion, and only the first one has the
    stride."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    expand: tuple[int, ...]
    stride: int
    se: bool = False


@dataclass(frozen=True)
class Table:
    """A whole space: what a network may be made of.

    Attributes:
        resolution: sides in pixels that a child may resize its input to.
        conv_shortcut: every block has a shortcut (AttentiveNAS); otherwise only those after a stage's first, where it
            is the identity.
        wide_head: the head of MobileNetV3: 1x1 convolution to 6 times the last width, pooling, linear to `head`,
            classifier.
    """

    resolution: tuple[int, ...]
    stem: tuple[int, ...]
    stages: tuple[Stage, ...]
    head: tuple[int, ...]
    stem_stride: int = 1
    conv_shortcut: bool = False
    wide_head: bool = False
    channels: int = 3
    classes: int = 10


def photographs(*resolution: int, fourth_stride: int) -> Table:
    """For ordinary photographs, scaled down: what is left at the end is 3 to 4 pixels a side."""
    stages = (
        Stage((16, 24), (1,), (3,), (1,), 1),
        Stage((24, 32), (1, 2), (3, 5), (3, 6), 2),
        Stage((32, 40, 48), (1, 2, 3), (3, 5), (3, 6), 2),
        Stage((64, 72, 80), (1, 2, 3), (3, 5), (3, 6), fourth_stride),
        Stage((96, 112, 128), (1, 2), (3, 5), (3, 6), 2, se=True),
    )
    return Table(resolution, (16, 24), stages, (512, 640), stem_stride=2)


SIZES = {
    "d8": Table(
        resolution=(8,),
        stem=(8, 16),
        stages=(
            Stage((8, 16), (1, 2), (3,), (1,), 1),
            Stage((16, 24), (1, 2), (3,), (2, 4), 2),
            Stage((24, 32), (1, 2), (3,), (2, 4), 1),
        ),
        head=(48, 64),
        channels=1,
    ),
    "m28": Table(
        resolution=(20, 24, 28),
        stem=(8, 16),
        stages=(
            Stage((8, 16), (1,), (3,), (1,), 1),
            Stage((16, 24), (1, 2), (3, 5), (3, 6), 2),
            Stage((24, 32, 40), (1, 2, 3), (3, 5), (3, 6), 2),
            Stage((48, 56, 64), (1, 2), (3, 5), (3, 6), 1),
        ),
        head=(96, 128),
        channels=1,
    ),
    "c32-lite": Table(
        resolution=(24, 32),
        stem=(16,),
        stages=(
            Stage((16,), (1,), (3,), (1,), 1),
            Stage((16, 24), (1, 2), (3, 5), (3, 6), 2),
            Stage((24, 32, 40), (1, 2, 3), (3, 5), (3, 6), 2),
            Stage((48, 56, 64), (1, 2, 3), (3, 5), (3, 6), 1),
            Stage((80, 88, 96), (1, 2), (3,), (3, 6), 2),
        ),
        head=(256, 320),
    ),
    "p64": photographs(48, 56, 64, fourth_stride=1),
    "p96": photographs(64, 80, 96, fourth_stride=2),
    "p128": photographs(96, 112, 128, fourth_stride=2),
    "attentivenas": Table(
        resolution=(192, 224, 256, 288),
        stem=(16, 24),
        stages=(
            Stage((16, 24), (1, 2), (3, 5), (1,), 1),
            Stage((24, 32), (3, 4, 5), (3, 5), (4, 5, 6), 2),
            Stage((32, 40), (3, 4, 5, 6), (3, 5), (4, 5, 6), 2, se=True),
            Stage((64, 72), (3, 4, 5, 6), (3, 5), (4, 5, 6), 2),
            Stage((112, 120, 128), (3, 4, 5, 6, 7, 8), (3, 5), (4, 5, 6), 1, se=True),
            Stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (3, 5), (6,), 2, se=True),
            Stage((216, 224), (1, 2), (3, 5), (6,), 1, se=True),
        ),
        head=(1792, 1984),
        stem_stride=2,
        conv_shortcut=True,
        wide_head=True,
        classes=1000,
    ),
}


def supernet(size: str, **options: Any) -> BigNAS:
    """A supernet of one of `SIZES`; options as in `BigNAS`."""
    return BigNAS(SIZES[size], **options)


def round_channels(channels: float) -> int:
    """To a multiple of 8, half up, at least 8, and never below nine tenths of what was asked (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class Block:
    """One inverted residual of a child; its fields are the arguments of `nas.static.MBConv`."""

    c_in: int
    mid: int
    c_out: int
    kernel: int
    stride: int
    expanded: bool
    squeezed: int
    shortcut: str

    def cost(self, side: int) -> PartCost:
        """For a square input of `side` pixels (convolutions and squeeze-excite count; norms, activations and pooling
        do not)."""
        pixels, out = side**2, (-(-side // self.stride)) ** 2
        widen = self.c_in * self.mid if self.expanded else 0
        gate = 2 * self.mid * self.squeezed
        project = self.mid * self.c_out
        across = self.c_in * self.c_out if self.shortcut == "conv" and self.c_in != self.c_out else 0
        taps = self.mid * self.kernel**2
        norms = 2 * (self.mid * (1 + self.expanded) + self.c_out)
        gate_bias = self.mid + self.squeezed if self.squeezed else 0
        macs = widen * pixels + (taps + project + across) * out + gate
        return fp32(macs, widen + taps + gate + gate_bias + project + across + norms)


class BigNASSpace(Space):
    """The space of a `Table`: ``resolution``, ``stem``, ``stageN.width/depth/kernel/expand`` for N from 1, and
    ``head``."""

    def __init__(self, table: Table) -> None:
        choices = [Choice("resolution", table.resolution), Choice("stem", table.stem)]
        for number, stage in enumerate(table.stages, start=1):
            choices += [
                Choice(f"stage{number}.{what}", getattr(stage, what)) for what in ("width", "depth", "kernel", "expand")
            ]
        super().__init__([*choices, Choice("head", table.head)])
        self.num_stages = len(table.stages)

    def from_stages(
        self,
        resolution: int,
        width: tuple[int, ...],
        depth: tuple[int, ...],
        kernel: tuple[int, ...],
        expand: tuple[int, ...],
    ) -> Arch:
        """An architecture in the papers' notation: `width` is (stem, every stage, head), the others hold a number a
        stage.

        Raises:
            ValueError: a tuple of another length, or a value that is not allowed.
        """
        for name, given, length in (
            ("width", width, self.num_stages + 2),
            ("depth", depth, self.num_stages),
            ("kernel", kernel, self.num_stages),
            ("expand", expand, self.num_stages),
        ):
            if len(given) != length:
                raise ValueError(
                    f"{name} has {len(given)} numbers; this space has {self.num_stages} stages and takes {length}"
                )
        choices: dict[str, Number] = {"resolution": resolution, "stem": width[0], "head": width[-1]}
        for stage in range(self.num_stages):
            for what, given in (("width", width[1:]), ("depth", depth), ("kernel", kernel), ("expand", expand)):
                choices[f"stage{stage + 1}.{what}"] = given[stage]
        return self.arch(choices)


class ElasticConvNorm(nn.Module):
    """Elastic convolution, then elastic batch norm, then SiLU unless `act` is false."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        act: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__()
        self.conv = ElasticConv2d(c_in, c_out, kernel, stride, group_width=1 if depthwise else None)
        self.norm = ElasticBatchNorm2d(c_out, sync=sync)
        self.act = act

    def forward(self, x: Tensor, out: int | None = None, kernel: int | None = None) -> Tensor:
        x = self.norm(self.conv(x, out, kernel))
        return F.silu(x) if self.act else x


class ElasticMBConv(nn.Module):
    """The elastic form of `nas.static.MBConv`: built from the largest `Block`, run as any smaller one."""

    def __init__(self, largest: Block, sync: bool) -> None:
        super().__init__()
        b = largest
        self.expand = ElasticConvNorm(b.c_in, b.mid, 1, sync=sync) if b.expanded else None
        self.depthwise = ElasticConvNorm(b.mid, b.mid, b.kernel, b.stride, depthwise=True, sync=sync)
        self.se = ElasticSqueezeExcite(b.mid, b.squeezed) if b.squeezed else None
        self.project = ElasticConvNorm(b.mid, b.c_out, 1, act=False, sync=sync)
        self.shortcut = ElasticConv2d(b.c_in, b.c_out, 1) if b.shortcut == "conv" else None
        if b.shortcut != "none":  # the block starts as its shortcut; without one, a zero scale would kill the path
            nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor, block: Block, drop: float, generator: torch.Generator | None) -> Tensor:
        out = x if self.expand is None else self.expand(x, block.mid)
        out = self.depthwise(out, kernel=block.kernel)
        if self.se is not None:
            out = self.se(out, block.squeezed)
        out = self.project(out, block.c_out)
        if block.shortcut == "none":
            return out
        if block.shortcut == "conv":
            x = shrink(x, block.stride)
            return out + (
                self.shortcut(x, block.c_out) if self.shortcut is not None and block.c_in != block.c_out else x
            )
        return x + (drop_path(out, drop, generator) if drop else out)

    @torch.no_grad()
    def sort(self) -> None:
        """See `BigNAS.sort_channels`."""
        if self.expand is None:
            return
        order = self.project.conv.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        rows: list[Tensor] = [*self.expand.parameters(), *self.depthwise.parameters()]
        columns: list[Tensor] = [self.project.conv.weight]
        if self.se is not None:
            rows, columns = [*rows, *self.se.expand.parameters()], [*columns, self.se.reduce.weight]
        for weight in rows:
            weight.copy_(weight[order])
        for weight in columns:
            weight.copy_(weight[:, order])


def drop_path(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Drop whole examples of a residual branch with probability `rate` and scale the others up (stochastic depth,
    Huang et al. 2016)."""
    keep = torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - rate, generator=generator)
    return x * keep / (1 - rate)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Dropout that draws from a generator of its own."""
    keep = torch.empty_like(x).bernoulli_(1 - rate, generator=generator)
    return x * keep / (1 - rate)


class BigNAS(Supernet):
    """The supernet of a `Table`.

    Args:
        table: what it may be made of.
        classes, channels: of the data; the table's own by default.
        mean, std: of the pixels, one number a channel.
        image: side of the images in pixels; the largest resolution by default.
        sync_batch_norm: batch statistics over all ranks.
    """

    child = bignas_child.BigNASChild
    sources = (Path(nas.static.__file__), Path(bignas_child.__file__))
    outputs = "classifier"

    def __init__(
        self,
        table: Table,
        classes: int | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        image: int | None = None,
        sync_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.table = replace(table, classes=classes or table.classes, channels=channels or table.channels)
        self.space = BigNASSpace(self.table)
        self.sync_batch_norm = sync_batch_norm
        side = image or max(table.resolution)
        self.input_shape = (self.table.channels, side, side)
        channels = self.table.channels
        self.pixels = Pixels(list(mean or (0.0,) * channels), list(std or (1.0,) * channels), side)
        self._build()

    def _build(self) -> None:
        sync, largest = self.sync_batch_norm, self.space.largest()
        stem, stages, head, feature = self._plan(largest)
        self.stem = ElasticConvNorm(self.table.channels, stem, 3, self.table.stem_stride, sync=sync)
        self.stages = nn.ModuleList(nn.ModuleList(ElasticMBConv(block, sync) for block in stage) for stage in stages)
        self.head = ElasticConvNorm(stages[-1][-1].c_out, head, 1, sync=sync)
        self.feature = ElasticLinear(head, feature, bias=False) if feature else None
        self.classifier = ElasticLinear(feature or head, self.table.classes)

    def _stage(self, index: int, c_in: int, width: int, depth: int, kernel: int, expand: int) -> list[Block]:
        """The blocks of one stage: the one place where its geometry is decided."""
        spec, blocks = self.table.stages[index], []
        for number in range(depth):
            mid = round_channels(round(c_in * expand)) if expand > 1 else c_in
            shortcut = "conv" if self.table.conv_shortcut and number == 0 else "identity" if number else "none"
            squeezed = round_channels(mid // 4) if spec.se else 0
            blocks.append(
                Block(c_in, mid, width, kernel, spec.stride if number == 0 else 1, expand > 1, squeezed, shortcut)
            )
            c_in = width
        return blocks

    def _picks(self, arch: Arch) -> Iterator[tuple[int, int, int, int, int, int]]:
        """The arguments of `_stage`, stage by stage."""
        c_in = arch["stem"]
        for index in range(len(self.table.stages)):
            name = f"stage{index + 1}."
            width = arch[name + "width"]
            yield index, c_in, width, arch[name + "depth"], arch[name + "kernel"], arch[name + "expand"]  # type: ignore[misc]
            c_in = width

    def _plan(self, arch: Arch) -> tuple[int, list[list[Block]], int, int]:
        """The child's sizes: stem, blocks by stage, head, feature width (0 for none)."""
        stages = [self._stage(*picks) for picks in self._picks(arch)]
        head = int(arch["head"])
        return int(arch["stem"]), stages, *((6 * stages[-1][-1].c_out, head) if self.table.wide_head else (head, 0))

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1] -> logits ``(N, classes)``."""
        stem, stages, head, feature = self._plan(arch)
        x = resize((x - self.pixels.mean) / self.pixels.std, int(arch["resolution"]))
        x = channels_last(self.stem(channels_last(x), stem))
        total, number = sum(map(len, stages)), 0
        for index, stage in enumerate(stages):
            late = index >= len(stages) - 2  # drop-path in the last two stages only, growing with depth (AttentiveNAS)
            for module, block in zip(self.stages[index], stage, strict=False):  # type: ignore[call-overload]
                x = module(x, block, how.drop_path * number / total if late else 0.0, how.generator)
                number += 1
        x = self.head(x, head).mean((2, 3))
        if self.feature is not None:
            x = F.silu(self.feature(x, feature))
        return self.classifier(dropout(x, how.dropout, how.generator) if how.dropout else x)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        stem, stages, head, feature = self._plan(arch)
        sizes = {
            "resolution": int(arch["resolution"]),
            "stem": stem,
            "stem_stride": self.table.stem_stride,
            "head": head,
            "feature": feature,
        }
        pixels = {"mean": self.pixels.mean.flatten().tolist(), "std": self.pixels.std.flatten().tolist()}
        return {
            **pixels,
            **sizes,
            "stages": [[asdict(block) for block in stage] for stage in stages],
            "classes": self.table.classes,
        }

    def fix(self, arch: Arch, fresh: bool = False) -> BigNAS:
        def only(name: str) -> tuple[Any, ...]:
            return (arch[name],)

        stages = tuple(
            Stage(
                only(f"stage{n}.width"),
                only(f"stage{n}.depth"),
                only(f"stage{n}.kernel"),
                only(f"stage{n}.expand"),
                spec.stride,
                spec.se,
            )
            for n, spec in enumerate(self.table.stages, start=1)
        )
        table = replace(self.table, resolution=only("resolution"), stem=only("stem"), head=only("head"), stages=stages)
        mean, std = self.pixels.mean.flatten().tolist(), self.pixels.std.flatten().tolist()
        fixed = BigNAS(
            table, image=self.input_shape[-1], mean=tuple(mean), std=tuple(std), sync_batch_norm=self.sync_batch_norm
        )
        if not fresh:
            inherit(fixed, self)
        return fixed

    def sort_channels(self) -> None:
        """Inside each block, by how much of a channel the projection takes."""
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                block.sort()

    @cached_property
    def _strides(self) -> list[int]:
        """The stride before each stage, and before the head."""
        strides = [self.table.stem_stride]
        for stage in self.table.stages:
            strides.append(strides[-1] * stage.stride)
        return strides

    def parts(self, arch: Arch) -> Iterator[tuple[int, ...]]:
        side = arch["resolution"]
        yield -2, side, arch["stem"]  # type: ignore[misc]
        for picks in self._picks(arch):
            yield picks[0], side, *picks[1:]  # type: ignore[misc]
        yield -1, side, arch[f"stage{len(self.table.stages)}.width"], arch["head"]  # type: ignore[misc]

    def part_cost(self, part: tuple[int, ...]) -> PartCost:
        kind, side, *rest = part
        if kind == -2:
            return self._stem_cost(-(-side // self.table.stem_stride), *rest)
        side = -(-side // self._strides[kind])
        if kind == -1:
            return self._head_cost(side, *rest)
        cost = PartCost()
        for block in self._stage(kind, *rest):
            cost += block.cost(side)
            side = -(-side // block.stride)
        return cost

    def _stem_cost(self, side: int, stem: int) -> PartCost:
        taps = self.table.channels * stem * 9
        return fp32(taps * side**2, taps + 2 * stem)

    def _head_cost(self, side: int, c_in: int, head: int) -> PartCost:
        pooled, feature = (6 * c_in, head) if self.table.wide_head else (head, 0)
        conv, linear = c_in * pooled, pooled * feature
        classifier = (feature or pooled) * self.table.classes
        return fp32(conv * side**2 + linear + classifier, conv + 2 * pooled + linear + classifier + self.table.classes)
