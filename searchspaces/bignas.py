"""BigNAS: convolutional classifiers of elastic resolution, width, depth, kernel and expansion.

Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models" (ECCV 2020). Of the sizes three
are published spaces for ImageNet: `bignas`; `attentivenas` (Wang et al., "AttentiveNAS", CVPR 2021, Table 7), whose
choices are all per stage; `ofa` (Cai et al., "Once-for-All", ICLR 2020, MobileNetV3 of width 1.0), whose kernels and
expansions are per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nas.static
from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, ElasticSqueezeExcite, recomputed
from nas.space import Arch
from nas.static import ACTIVATIONS, Pixels, channels_last, resize, shrink
from nas.supernet import PartCost, Pass, Supernet, fp32, inherit
from searchspaces import bignas_child
from searchspaces.bignas_space import BigNASSpace, Block, Stage, Table, Values, round_channels


def lite(*resolution: int) -> Table:
    """For photographs as small as CIFAR's: what is left at the end is 2 to 4 pixels a side."""
    stages = (
        Stage((16,), (1,), (3,), (1,), 1),
        Stage((16, 24), (1, 2), (3, 5), (3, 6), 2),
        Stage((24, 32, 40), (1, 2, 3), (3, 5), (3, 6), 2),
        Stage((48, 56, 64), (1, 2, 3), (3, 5), (3, 6), 1),
        Stage((80, 88, 96), (1, 2), (3,), (3, 6), 2),
    )
    return Table(resolution, (16,), stages, (256, 320))


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


def inner(width: int, stride: int, se: bool, act: str) -> Stage:
    """A stage of Once-for-All: two to four blocks of one width, each with a kernel and an expansion of its own."""
    return Stage((width,), (2, 3, 4), ((3, 5, 7),) * 4, ((3, 4, 6),) * 4, stride, se, act)


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
    "c16-lite": lite(12, 16),
    "c32-lite": lite(24, 32),
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
    "bignas": Table(
        resolution=(192, 224, 288, 320),
        stem=(32, 40),
        stages=(
            Stage((16, 24), (1, 2), (3,), (1,), 1, se=True),
            Stage((24, 32), (2, 3), (3,), (6,), 2, se=True),
            Stage((40, 48), (2, 3), ((3, 5),) * 3, (6,), 2, se=True),
            Stage((80, 88), (2, 3, 4), ((3, 5),) * 4, (6,), 2, se=True),
            Stage((112, 120, 128), (2, 3, 4, 5, 6), ((3, 5),) * 6, (6,), 1, se=True),
            Stage((192, 200, 208, 216), (2, 3, 4, 5, 6), ((3, 5),) * 6, (6,), 2, se=True),
            Stage((320, 328, 336, 344, 352), (1, 2), ((3, 5),) * 2, (6,), 1, se=True),
        ),
        head=(1280, 1408),
        stem_stride=2,
        squeeze_input=True,
        classes=1000,
    ),
    "ofa": Table(
        resolution=tuple(range(128, 225, 4)),
        stem=(16,),
        stages=(
            Stage((16,), (1,), (3,), (1,), 1, act="relu", residual=True),
            inner(24, 2, False, "relu"),
            inner(40, 2, True, "relu"),
            inner(80, 2, False, "hardswish"),
            inner(112, 1, True, "hardswish"),
            inner(160, 2, True, "hardswish"),
        ),
        head=(1280,),
        stem_stride=2,
        wide_head=True,
        kernel_transform=True,
        act="hardswish",
        classes=1000,
    ),
}


def supernet(size: str, **options: Any) -> BigNAS:
    """A supernet of one of `SIZES`; options as in `BigNAS`."""
    return BigNAS(SIZES[size], **options)


class ElasticConvNorm(nn.Module):
    """Elastic convolution, then elastic batch norm, then one of `nas.static.ACTIVATIONS`, or none."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        act: str | None = "silu",
        sync: bool = False,
        transformed: Values = (),
    ) -> None:
        super().__init__()
        groups = 1 if depthwise else None
        self.conv = ElasticConv2d(c_in, c_out, kernel, stride, group_width=groups, transformed=transformed)
        self.norm = ElasticBatchNorm2d(c_out, sync=sync)
        self.act = act

    def forward(self, x: Tensor, out: int | None = None, kernel: int | None = None) -> Tensor:
        x = self.norm(self.conv(x, out, kernel))
        return x if self.act is None else ACTIVATIONS[self.act](x)


class ElasticMBConv(nn.Module):
    """The elastic form of `nas.static.MBConv`: built from the largest `Block`, run as any smaller one; `transformed`
    are its smaller kernels that are learnt from larger ones."""

    def __init__(self, largest: Block, sync: bool, transformed: Values = ()) -> None:
        super().__init__()
        b = largest
        self.expand = ElasticConvNorm(b.c_in, b.mid, 1, act=b.act, sync=sync) if b.expanded else None
        self.depthwise = ElasticConvNorm(b.mid, b.mid, b.kernel, b.stride, True, b.act, sync, transformed)
        self.se = ElasticSqueezeExcite(b.mid, b.squeezed) if b.squeezed else None
        self.project = ElasticConvNorm(b.mid, b.c_out, 1, act=None, sync=sync)
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
        own = self.depthwise.conv.weight, *self.depthwise.norm.parameters()  # all channels share kernels' matrices
        rows: list[Tensor] = [*self.expand.parameters(), *own]
        columns: list[Tensor] = [self.project.conv.weight]
        if self.se is not None:
            rows, columns = [*rows, *self.se.expand.parameters()], [*columns, self.se.reduce.weight]
            self.se.sort()
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
        recompute: keep no activations within blocks and compute them again in the backward pass: of every network,
            since a random one may be nearly as large as the largest.
    """

    space: BigNASSpace
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
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.table = replace(table, classes=classes or table.classes, channels=channels or table.channels)
        self.space = BigNASSpace(self.table)
        self.sync_batch_norm, self.recompute = sync_batch_norm, recompute
        side = image or max(table.resolution)
        self.input_shape = (self.table.channels, side, side)
        channels = self.table.channels
        self.pixels = Pixels(list(mean or (0.0,) * channels), list(std or (1.0,) * channels), side)
        self._build()

    def _build(self) -> None:
        sync, act = self.sync_batch_norm, self.table.act
        stem, stages, head, feature = self._plan(self.space.largest())
        self.stem = ElasticConvNorm(self.table.channels, stem, 3, self.table.stem_stride, act=act, sync=sync)
        self.stages = nn.ModuleList()
        for spec, blocks in zip(self.table.stages, stages, strict=True):
            made = (ElasticMBConv(b, sync, self._transformed(spec, number)) for number, b in enumerate(blocks))
            self.stages.append(nn.ModuleList(made))
        self.head = ElasticConvNorm(stages[-1][-1].c_out, head, 1, act=act, sync=sync)
        self.feature = ElasticLinear(head, feature, bias=False) if feature else None
        self.classifier = ElasticLinear(feature or head, self.table.classes)

    def _transformed(self, spec: Stage, number: int) -> Values:
        """The kernels of a block that are learnt from its larger ones."""
        own = spec.kernel[number] if isinstance(spec.kernel[0], tuple) else spec.kernel
        return own[:-1] if self.table.kernel_transform else ()

    def _stage(
        self, index: int, c_in: int, width: int, depth: int, kernels: Values, expands: Values, first: int = 0
    ) -> list[Block]:
        """The blocks of one stage from its `first` on: the one place where its geometry is decided."""
        spec, blocks = self.table.stages[index], []
        for number, kernel, expand in zip(range(first, first + depth), cycle(kernels), cycle(expands), strict=False):
            mid = round_channels(round(c_in * expand)) if expand > 1 else c_in
            identity = "identity" if number or spec.residual else "none"
            shortcut = "conv" if self.table.conv_shortcut and number == 0 else identity
            squeezed = round_channels((c_in if self.table.squeeze_input else mid) // 4) if spec.se else 0
            stride = spec.stride if number == 0 else 1
            blocks.append(Block(c_in, mid, width, kernel, stride, expand > 1, squeezed, shortcut, spec.act))
            c_in = width
        return blocks

    def _picks(self, arch: Arch) -> Iterator[tuple[int, int, int, int, Values, Values]]:
        """The arguments of `_stage`, stage by stage."""
        c_in = arch["stem"]
        for index, names in enumerate(self.space.names):
            width, depth = arch[names.width], int(arch[names.depth])
            kernels = tuple([arch[name] for name in names.kernel[:depth]])
            expands = tuple([arch[name] for name in names.expand[:depth]])
            yield index, c_in, width, depth, kernels, expands  # type: ignore[misc]
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
                drop = how.drop_path * number / total if late else 0.0
                if self.recompute and torch.is_grad_enabled():
                    x = recomputed(module, x, block, drop, generator=how.generator)
                else:
                    x = module(x, block, drop, how.generator)
                number += 1
        x = self.head(x, head).mean((2, 3))
        if self.feature is not None:
            x = ACTIVATIONS[self.table.act](self.feature(x, feature))
        return self.classifier(dropout(x, how.dropout, how.generator) if how.dropout else x)

    def cut(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        layer = self.get_submodule(name.rpartition(".")[0]) if self.table.kernel_transform else None
        if isinstance(layer, ElasticConv2d) and layer.transformed:
            return layer.filters(*shape[:3])
        return super().cut(name, tensor, shape)

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
            "act": self.table.act,
        }

    def fix(self, arch: Arch, fresh: bool = False) -> BigNAS:
        def only(name: str) -> Values:
            return (int(arch[name]),)

        def within(values: Values | tuple[Values, ...], names: tuple[str, ...]) -> Values | tuple[Values, ...]:
            return only(names[0]) if isinstance(values[0], int) else tuple(only(name) for name in names if name in arch)

        stages = []
        for spec, n in zip(self.table.stages, self.space.names, strict=True):
            kernel, expand = within(spec.kernel, n.kernel), within(spec.expand, n.expand)
            stages.append(replace(spec, width=only(n.width), depth=only(n.depth), kernel=kernel, expand=expand))
        ends = {name: only(name) for name in ("resolution", "stem", "head")}
        table = replace(self.table, **ends, stages=tuple(stages))  # type: ignore[arg-type]
        mean, std = (tuple(each.flatten().tolist()) for each in (self.pixels.mean, self.pixels.std))
        again = {"sync_batch_norm": self.sync_batch_norm, "recompute": self.recompute}
        fixed = BigNAS(table, image=self.input_shape[-1], mean=mean, std=std, **again)
        if not fresh:
            inherit(fixed, self)
        return fixed

    def sort_channels(self) -> None:
        """Inside each block, by how much of a channel the projection takes, and of a squeezed one the gate."""
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

    def parts(self, arch: Arch) -> Iterator[tuple[Any, ...]]:
        side: Any = arch["resolution"]
        sides = [-(-side // stride) for stride in self._strides]
        yield "stem", sides[0], arch["stem"]
        for index, c_in, width, depth, kernels, expands in self._picks(arch):
            if len(kernels) == len(expands) == 1:
                yield index, sides[index], c_in, width, depth, kernels, expands
                continue
            side = sides[index]
            for number in range(depth):  # where blocks differ, a stage has too many forms to remember
                kernel = kernels[number : number + 1] if len(kernels) > 1 else kernels
                expand = expands[number : number + 1] if len(expands) > 1 else expands
                yield index, side, c_in, width, 1, kernel, expand, number
                side, c_in = sides[index + 1], width
        yield "head", sides[-1], width, arch["head"]

    def part_cost(self, part: tuple[Any, ...]) -> PartCost:
        kind, side, *rest = part
        if kind == "stem":
            return self._stem_cost(side, *rest)
        if kind == "head":
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
