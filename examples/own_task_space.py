"""A small space for `own_task`: networks of elastic width and depth that give a class for every pixel. See
`own_space` for what each part is.

    nas check own_task_space:segmenter
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import own_task_space_child
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic import ElasticBatchNorm2d, ElasticConv2d
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Supernet, fp32, inherit


def segmenter(size: str = "", **data: Any) -> Segmenter:
    """The factory that ``space: {name: own_task_space:segmenter}`` names; it has one size. `data` as in `Segmenter`."""
    return Segmenter(**data)


class Segmenter(Supernet):
    """Convolutions at full and at half resolution, added up, and a head of one logit for each class and pixel."""

    mean: Tensor
    std: Tensor
    child = own_task_space_child.SegmenterChild
    sources = (Path(own_task_space_child.__file__),)

    def __init__(
        self,
        classes: int = 11,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image: int = 32,
        widths: tuple[int, ...] = (8, 16, 24),
        depths: tuple[int, ...] = (1, 2, 3),
    ) -> None:
        super().__init__()
        self.classes, self.input_shape = classes, (channels, image, image)
        self.pixels = {"mean": list(mean or [0.0] * channels), "std": list(std or [1.0] * channels)}
        for name, values in self.pixels.items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.space = Space([Choice("width", widths), Choice("depth", depths)])
        width, sizes = widths[-1], [(channels, 1), (widths[-1], 2), *[(widths[-1], 1)] * depths[-1]]
        self.convs = nn.ModuleList(ElasticConv2d(c_in, width, 3, stride) for c_in, stride in sizes)
        self.norms = nn.ModuleList(ElasticBatchNorm2d(width) for _ in sizes)
        self.head = ElasticConv2d(width, classes, 1, bias=True)

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1], even sides -> logits ``(N, classes, H, W)``."""
        fine = x = (x - self.mean) / self.std
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if number < 2 + arch["depth"]:
                x = F.relu(norm(conv(x, int(arch["width"]))))
                fine = x if number == 0 else fine
        out = fine + F.interpolate(x, scale_factor=2.0, mode="nearest")
        if how.dropout:  # whole channels
            keep = out.new_empty(*out.shape[:2], 1, 1).bernoulli_(1 - how.dropout, generator=how.generator)
            out = out * keep / (1 - how.dropout)
        return self.head(out)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        return {**self.pixels, "width": int(arch["width"]), "depth": int(arch["depth"]), "classes": self.classes}

    def fix(self, arch: Arch, fresh: bool = False) -> Segmenter:
        channels, image, _ = self.input_shape
        width, depth, mean, std = (int(arch["width"]),), (int(arch["depth"]),), self.pixels["mean"], self.pixels["std"]
        fixed = Segmenter(self.classes, channels, mean, std, image, width, depth)
        if not fresh:
            inherit(fixed, self)
        return fixed

    def parts(self, arch: Arch) -> Iterator[tuple[int, int]]:
        yield int(arch["width"]), int(arch["depth"])

    def part_cost(self, part: tuple[int, int]) -> PartCost:
        (width, depth), (channels, side, _) = part, self.input_shape
        first, other, head = 9 * channels * width, 9 * width**2, width * self.classes
        macs = (first + head) * side**2 + (1 + depth) * other * (side // 2) ** 2
        return fp32(macs, first + (1 + depth) * other + head + self.classes + 2 * (2 + depth) * width)
