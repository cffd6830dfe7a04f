"""ViT-ResNAS: multi-stage vision transformers of elastic width, heads, hidden width and depth, several of them in one
pass.

Liao, Karaman, Sze, "Searching for Efficient Multi-Stage Vision Transformers" (2021). A convolutional stem, three stages
of pre-norm transformer blocks with a residual spatial reduction between each two, a class token, and in training a
second head on the patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nas.static
from nas.elastic import ElasticBatchNorm2d
from nas.elastic.grouped import Grouped, GroupedConv2d, GroupedLinear, Widths
from nas.elastic.layer_norm import ElasticLayerNorm
from nas.elastic.masked import Masked
from nas.space import Arch
from nas.static import Pixels
from nas.supernet import Output, PartCost, Pass, Supernet, fp32, inherit
from searchspaces import vit_resnas_child
from searchspaces.vit_resnas_child import Stage, Stem, pool
from searchspaces.vit_resnas_space import BlockChoices, BlockNames, StageChoices, Table, ViTResNASSpace, stage


def _tiny(divisor: int = 1, pairs: int = 3) -> tuple[StageChoices, ...]:
    """The Tiny space (Table 6), all widths divided, with so many pairs of a fixed and a skippable block a stage."""
    stages = []
    for times, heads, head_dim in ((1, (3, 4, 5, 6), 32), (2, (6, 8, 10, 12), 48), (4, (6, 8, 10, 12), 64)):
        width = [w * times // divisor for w in (160, 176, 192, 224, 256)]
        hidden = [f * times // divisor for f in range(384, 769, 64)]
        stages.append(stage(width, heads, head_dim // divisor, hidden, 2 * pairs, range(2, 2 * pairs + 1, 2)))
    return tuple(stages)


def _medium() -> tuple[StageChoices, ...]:
    """The space that ViT-ResNAS-Small and -Medium were both found in (Table 6)."""
    stages = []
    for times, heads, head_dim in ((1, (5, 6, 7, 8), 32), (2, (10, 12, 14, 16), 48), (4, (10, 12, 14, 16), 64)):
        width = [w * times for w in (200, 220, 240, 280, 320)]
        stages.append(stage(width, heads, head_dim, [f * times for f in range(480, 961, 80)], 7, (2, 4, 6)))
    return tuple(stages)


def _hand_made() -> tuple[StageChoices, ...]:
    """ViT-Res-Tiny, which the paper made by hand and compares the searched networks with: a space of one."""
    return tuple(stage((192 * n,), (3 * n,), 64, (768 * n,), 4) for n in (1, 2, 4))


SIZES = {
    "tiny": Table(224, 14, 24, _tiny(), classes=1000),
    "medium": Table(224, 14, 24, _medium(), classes=1000),
    "vit-res-tiny": Table(224, 14, 24, _hand_made(), classes=1000),
    "d8": Table(8, 1, 8, _tiny(divisor=8, pairs=1), channels=1),
    "d8-smoke": Table(8, 2, 8, _tiny(divisor=8, pairs=1), channels=1),
    "m28": Table(32, 4, 8, _tiny(divisor=8), pad=2, channels=1),
    "c32": Table(32, 4, 24, _tiny(divisor=4)),
    "p64": Table(64, 8, 24, _tiny(divisor=4)),
}


def supernet(size: str, **options: Any) -> ViTResNAS:
    """A supernet of one of `SIZES`; options as in `ViTResNAS`."""
    return ViTResNAS(SIZES[size], **options)


class ElasticBlock(nn.Module):
    """The elastic form of `vit_resnas_child.Block`: built at its largest, run as any number of smaller ones."""

    def __init__(self, width: int, inner: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = ElasticLayerNorm(width, eps=1e-6)
        self.q, self.k, self.v = (GroupedLinear(width, inner) for _ in range(3))
        self.proj = GroupedLinear(inner, width)
        self.norm2 = ElasticLayerNorm(width, eps=1e-6)
        self.fc1 = GroupedLinear(width, hidden)
        self.fc2 = GroupedLinear(hidden, width)

    def forward(
        self,
        x: Tensor,
        how: Grouped | Masked,
        width: Widths,
        inner: Widths,
        hidden: Widths,
        scales: Sequence[Tensor | None],
    ) -> Tensor:
        """x: the stream, in the form that `how` has; a width for each sub-network; `scales` ``(N,)`` of the two
        branches."""
        y = how.norm(self.norm1, x, width)
        q, k, v = (how.linear(layer, y, width, inner) for layer in (self.q, self.k, self.v))
        x = how.add(x, how.linear(self.proj, how.attend(q, k, v, inner, self.head_dim), inner, width), width, scales[0])
        y = how.linear(self.fc1, how.norm(self.norm2, x, width), width, hidden)
        return how.add(x, how.linear(self.fc2, how.gelu(y, hidden), hidden, width), width, scales[1])


class ElasticReduction(nn.Module):
    """The elastic form of `vit_resnas_child.Reduction` (section 3.1.2)."""

    def __init__(self, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(c_in, eps=1e-6)
        self.conv = GroupedConv2d(c_in, c_out, 3, 2, 1)
        self.token = GroupedLinear(c_in, c_out)
        self.position = nn.Parameter(torch.zeros(side * side, c_out))

    def forward(self, x: Tensor, how: Grouped | Masked, examples: int, before: Widths, after: Widths) -> Tensor:
        """x: the stream of `examples` rows at widths `before` -> at a quarter of the patches and widths `after`."""
        y = how.norm(self.norm, x, before)
        token = how.linear(self.token, how.take(y, before, slice(1)), before, after)
        patches = how.conv(self.conv, how.take(y, before, slice(1, None)), before, after)
        patches = patches + how.lay(self.position.expand(examples, -1, -1), after)
        skip = how.each(pool, x, before, after, self.token.out_features)
        return how.add(skip, how.join(token, patches, after), after)


class ViTResNAS(Supernet):
    """The supernet of a `Table`.

    Args:
        table: what it may be made of.
        classes, channels: of the data; the table's own by default.
        mean, std: of the pixels, one number a channel.
        image: side of the images in pixels; by default what the stem sees, without its padding.
        sync_batch_norm: the stem's batch statistics over all ranks.
        multi: how several sub-networks run in one pass: ``"grouped"`` slices, so that a small one costs what it costs;
            ``"masked"`` is the paper's way, which runs the largest network for every row. Outputs and gradients are the
            same.
    """

    space: ViTResNASSpace
    child = vit_resnas_child.ViTResNASChild
    sources = (Path(nas.static.__file__), Path(vit_resnas_child.__file__))
    mixes_examples, norms_alike = False, True  # the only batch norms are the stem's, which all sub-networks share

    def __init__(
        self,
        table: Table,
        classes: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image: int | None = None,
        sync_batch_norm: bool = False,
        multi: Literal["grouped", "masked"] = "grouped",
    ) -> None:
        super().__init__()
        if multi not in ("grouped", "masked"):
            raise ValueError(f'multi is {multi!r}; allowed: "grouped", "masked"')
        self.table = replace(table, classes=classes or table.classes, channels=channels or table.channels)
        self.space = ViTResNASSpace(self.table)
        self.multi, self.sync_batch_norm = multi, sync_batch_norm
        channels, side = self.table.channels, table.side - 2 * table.pad
        self.input_shape = (channels, image or side, image or side)
        self.aux_grid = self.table.grid(len(table.stages) - 1)
        self.mean, self.std = list(mean or (0.0,) * channels), list(std or (1.0,) * channels)
        self.pixels = Pixels(self.mean, self.std, side)
        self._build()
        self._initialise()

    def _build(self) -> None:
        table = self.table
        width = max(table.stages[0].width)
        self.stem = Stem(
            table.channels, table.stem, width, table.patch, partial(ElasticBatchNorm2d, sync=self.sync_batch_norm)
        )
        self.token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(1 + table.grid(0) ** 2, width))
        self.stages = nn.ModuleList()
        for n, spec in enumerate(table.stages):
            reduce = ElasticReduction(width, max(spec.width), table.grid(n)) if n else None
            width = max(spec.width)
            self.stages.append(Stage(reduce, dict(self._blocks(n, width))))
        self.norm = ElasticLayerNorm(width, eps=1e-6)
        self.head = GroupedLinear(width, table.classes)
        self.patch_head = GroupedLinear(width, table.classes)

    def _blocks(self, n: int, width: int) -> Iterator[tuple[str, nn.Module]]:
        spec = self.table.stages[n]
        for names, block in zip(self.space.blocks[n], spec.blocks, strict=True):
            if block.exists != (0,):
                yield names.key, ElasticBlock(width, max(block.heads) * spec.head_dim, spec.head_dim, max(block.hidden))

    def _initialise(self) -> None:
        """Truncated normal of 0.02 for linear layers, class token and positions; convolutions keep torch's own
        (section 4)."""
        for name, parameter in self.named_parameters():
            if name.endswith(("token", "position")):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Output:
        """The whole batch through one architecture."""
        return self._run(x, [arch], Grouped([len(x)], torch.arange(len(x), device=x.device)), how)

    def forward_many(self, x: Tensor, archs: list[Arch], how: Pass) -> Output:
        """Row j through ``archs[j % A]``, by the way that `multi` names."""
        if self.multi == "masked":
            return self._run(x, archs, Masked(torch.arange(len(x), device=x.device) % len(archs)), how)
        rows: dict[Arch, list[int]] = {}  # equal sub-networks are one group, and those of equal width are neighbours
        for row in range(len(x)):
            rows.setdefault(archs[row % len(archs)], []).append(row)
        order = sorted(rows, key=lambda arch: [arch[name] for name in self.space.widths])
        place = torch.tensor([row for arch in order for row in rows[arch]], device=x.device)
        return self._run(x, order, Grouped([len(rows[arch]) for arch in order], place), how)

    def _run(self, x: Tensor, archs: list[Arch], layout: Grouped | Masked, how: Pass) -> Output:
        """x: ``(N, C, H, W)`` -> logits ``(N, classes)`` and, of the patches, ``(N, aux_grid ** 2, classes)``."""
        examples = len(x)
        x = self.stem(F.pad(self.pixels(x), (self.table.pad,) * 4))
        x = torch.cat((self.token.expand(examples, 1, -1), x), 1) + self.position
        before = [int(arch[self.space.widths[0]]) for arch in archs]
        x, scales = layout.lay(x, before), self._drop_path(examples, how, x)
        for n, part in enumerate(self.stages):
            assert isinstance(part, Stage)
            width = [int(arch[self.space.widths[n]]) for arch in archs]
            if part.reduce is not None:
                x = part.reduce(x, layout, examples, before, width)
            for names in self.space.blocks[n]:
                if names.key in part.blocks:
                    sizes = [self._sizes(n, names, arch) for arch in archs]
                    x = layout.run(part.blocks[names.key], x, width, sizes, next(scales))
            before = width
        return self._heads(layout.norm(self.norm, x, before), before, layout, examples, how)

    def _sizes(self, n: int, names: BlockNames, arch: Arch) -> tuple[int, int] | None:
        """The widths of that block of stage n within attention and within the two-layer network; None where it is
        dropped."""
        if not names.there(arch):
            return None
        return int(arch[names.heads]) * self.table.stages[n].head_dim, int(arch[names.hidden])

    def _heads(self, x: Tensor, width: Widths, layout: Grouped | Masked, examples: int, how: Pass) -> Output:
        classes = [self.table.classes] * len(width)
        token = layout.take(x, width, slice(1))
        if how.dropout:
            keep = (
                torch.rand(examples, 1, self.head.in_features, generator=how.generator, device=x.device) >= how.dropout
            )
            token = token * layout.lay(keep.to(x.dtype) / (1 - how.dropout), width)
        main = layout.linear(self.head, token, width, classes)
        aux = layout.linear(self.patch_head, layout.take(x, width, slice(1, None)), width, classes)
        return Output(layout.whole(main, self.table.classes).flatten(1), layout.whole(aux, self.table.classes))

    def _drop_path(self, examples: int, how: Pass, like: Tensor) -> Iterator[Sequence[Tensor | None]]:
        """For each block the factors ``(N,)`` of its two branches: 0 with a probability that grows from 0 to
        ``how.drop_path``.

        All of a pass is drawn at once, for the rows in their order: so that both ways to run it see the same.
        """
        blocks = sum(isinstance(module, ElasticBlock) for module in self.modules())
        if not how.drop_path:
            return iter([(None, None)] * blocks)
        rate = torch.linspace(0, how.drop_path, blocks, device=like.device)[:, None, None]
        keep = torch.rand(blocks, 2, examples, generator=how.generator, device=like.device) >= rate
        return iter((keep / (1 - rate)).to(like.dtype).unbind())  # type: ignore[arg-type]

    def child_config(self, arch: Arch) -> dict[str, Any]:
        stages = []
        for n, spec in enumerate(self.table.stages):
            blocks = {
                b.key: {"heads": int(arch[b.heads]), "hidden": int(arch[b.hidden])}
                for b in self.space.blocks[n]
                if b.there(arch)
            }
            stages.append({"width": int(arch[self.space.widths[n]]), "head_dim": spec.head_dim, "blocks": blocks})
        t = self.table
        sizes = {"side": t.side, "pad": t.pad, "patch": t.patch, "stem": t.stem, "stages": stages, "classes": t.classes}
        return {"mean": self.mean, "std": self.std, **sizes}

    def fix(self, arch: Arch, fresh: bool = False) -> ViTResNAS:
        stages = []
        for n, spec in enumerate(self.table.stages):
            blocks = []
            for b in self.space.blocks[n]:
                exists = () if b.exists is None else (int(arch[b.exists]),)
                blocks.append(
                    BlockChoices((int(arch[b.heads]),), (int(arch[b.hidden]),), exists)
                    if b.there(arch)
                    else BlockChoices((), (), exists)
                )
            stages.append(replace(spec, width=(int(arch[self.space.widths[n]]),), blocks=tuple(blocks)))
        table = replace(self.table, stages=tuple(stages))
        fixed = ViTResNAS(
            table,
            mean=self.mean,
            std=self.std,
            image=self.input_shape[-1],
            sync_batch_norm=self.sync_batch_norm,
            multi=self.multi,
        )
        if not fresh:
            inherit(fixed, self)
        return fixed

    def parts(self, arch: Arch) -> Iterator[tuple[int, ...]]:
        """Stage by stage: its number, widths before and in it, and how many blocks, heads and hidden channels it has
        in all."""
        before = 0
        for n, name in enumerate(self.space.widths):
            blocks = heads = hidden = 0
            for _, exists, block_heads, block_hidden in self.space.blocks[n]:
                if exists is None or arch[exists]:
                    blocks += 1
                    heads += arch[block_heads]  # type: ignore[assignment]
                    hidden += arch[block_hidden]  # type: ignore[assignment]
            width: int = arch[name]  # type: ignore[assignment]
            yield n, before, width, blocks, heads, hidden
            before = width

    def part_cost(self, part: tuple[int, ...]) -> PartCost:
        """A stage with what stands before it (stem or reduction) and, after the last one, the head.

        Convolutions, linear layers and the two products of attention count; norms, biases, pooling and the patch head
        do not.
        """
        n, before, d, blocks, heads, hidden = part
        inner, tokens = heads * self.table.stages[n].head_dim, 1 + self.table.grid(n) ** 2
        macs = 4 * d * inner * tokens + 2 * tokens**2 * inner + 2 * tokens * d * hidden
        params = (
            4 * d * inner + 3 * inner + 2 * d * hidden + hidden + 6 * d * blocks
        )  # 6 d: two layer norms, biases of proj and fc2
        cost = fp32(macs, params) + (self._reduction_cost(n, before, d) if n else self._stem_cost(d))
        if n == len(self.table.stages) - 1:
            classes = self.table.classes
            cost += fp32(d * classes, 2 * d + d * classes + classes)
        return cost

    def _stem_cost(self, d: int) -> PartCost:
        t = self.table
        stride = 1 if t.patch % 2 else 2
        taps, project = 9 * t.stem * (t.channels + 2 * t.stem), d * t.stem * (t.patch // stride) ** 2
        macs = taps * (t.side // stride) ** 2 + project * t.grid(0) ** 2
        return fp32(macs, taps + 6 * t.stem + project + d + d + (1 + t.grid(0) ** 2) * d)

    def _reduction_cost(self, n: int, c_in: int, c_out: int) -> PartCost:
        patches, kernel, linear = self.table.grid(n) ** 2, 9 * c_in * c_out, c_in * c_out
        return fp32(patches * kernel + linear, 2 * c_in + kernel + linear + 2 * c_out + patches * c_out)
