"""QuantNAS: super-resolution networks whose every slot has an operation and a bit-width to choose, and noise in place
of rounding.

Shvetsov et al., "QuantNAS for super resolution: searching for efficient quantization-friendly architectures against
quantization noise" (arXiv:2208.14839): the layout of its first version ("basic") and that of the later ones ("rfdn",
after RFDN). Unlike there, the network adds to the bicubically enlarged image; what that asks of the stem and of the
last convolutions is said at the layouts. Nor have a slot's single convolutions weights of their own unless asked for:
sampled paths agree on features only where they share kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import nas.quantization.learned
import nas.quantization.levels
from nas.elastic import ElasticBatchNorm2d
from nas.space import Arch, Number
from nas.supernet import PartCost, Pass, Soft, Supernet, inherit
from searchspaces import quantnas_child
from searchspaces.quantnas_child import SlotShape, build, enlarge, pixel_mean
from searchspaces.quantnas_slot import ElasticSlot
from searchspaces.quantnas_space import NAMES, QuantNASSpace, Table, slot_cost, unsearched_cost

SMALLEST_ATTENTION = 15  # pixels a side, of which spatial attention leaves one

SIZES = {
    "basic": Table("basic", channels=36, cells=3, scale=4),
    "rfdn": Table("rfdn", channels=48, cells=4, scale=4),
    "basic-c12": Table("basic", channels=12, cells=1, scale=2),
    "basic-c18": Table("basic", channels=18, cells=2, scale=2),
    "basic-wide": Table("basic", channels=(12, 18, 24), cells=(1, 2, 3), scale=2, bits=(2, 4, 8)),
    "rfdn-c12": Table("rfdn", channels=12, cells=1, scale=2),
}


def supernet(size: str, **options: Any) -> QuantNAS:
    """A supernet of one of `SIZES`; options as in `QuantNAS`."""
    return QuantNAS(SIZES[size], **options)


class QuantNAS(Supernet):
    """The supernet of a `Table`.

    Args:
        table: what it may be made of.
        scale, bits, adq, input_bits: the table's own by default; see `Table`.
        noise: how noise is mixed in: ``"clean"``, or ``"published"``, the authors' way
            (`nas.quantization.learned.noisy_as_published`); in both, convolutions that are not searched have noise too,
            where the authors round them.
        channels: of the images; 3.
        mean: of the pixels, one number a channel.
        image: side in pixels of the input that costs are for.
        shared: a slot's single convolutions are windows of one kernel, so that they agree on what its input means (not
            in the paper, whose operations have weights of their own: ``False``).
        settled: choices that are not searched, as in `QuantNASSpace`: all operations for a search of bits alone, or the
            reverse.

    Raises:
        ValueError: a value that is not allowed.
    """

    space: QuantNASSpace
    child = quantnas_child.QuantNASChild
    sources = tuple(Path(str(m.__file__)) for m in (nas.quantization.levels, nas.quantization.learned, quantnas_child))
    quantizes = True
    mean: Tensor

    def __init__(
        self,
        table: Table,
        scale: int | None = None,
        bits: Sequence[int] | None = None,
        adq: bool | None = None,
        input_bits: str | None = None,
        noise: Literal["clean", "published"] = "clean",
        channels: int = 3,
        mean: Sequence[float] | None = None,
        image: int = 32,
        shared: bool = True,
        settled: Mapping[str, Number | str] | None = None,
    ) -> None:
        super().__init__()
        if noise not in ("clean", "published"):
            raise ValueError(f'noise is {noise!r}; allowed: "clean", "published"')
        if not isinstance(shared, bool):
            raise ValueError(f"shared is {shared!r}; allowed: true, false")
        if channels != 3:
            raise ValueError(f"channels is {channels}; these networks enlarge pictures of 3 channels")
        if table.layout == "rfdn" and image < SMALLEST_ATTENTION:
            raise ValueError(f"image is {image} pixels a side; spatial attention needs {SMALLEST_ATTENTION}")
        given: dict[str, Any] = {"scale": scale, "bits": bits and tuple(bits), "adq": adq, "input_bits": input_bits}
        self.table = replace(table, **{name: value for name, value in given.items() if value is not None})
        self.space, self.noise = QuantNASSpace(self.table, settled), noise
        self.slots = self.space.slots
        self.input_shape = (3, image, image)
        self.least_side = SMALLEST_ATTENTION if table.layout == "rfdn" else 1
        self.mixes_examples = self.table.adq
        self.mean_given = [0.5] * 3 if mean is None else [float(value) for value in mean]
        self.register_buffer("mean", pixel_mean(self.mean_given))
        self._shapes = {
            channels: {shape.name: shape for shape in self.table.shapes_at(channels, self.space.depths[-1])}
            for channels in self.space.widths
        }
        self._build(shared)
        self._bitops = {name: torch.tensor(self._slot_bitops(name), dtype=torch.float64) for name in self.slots}

    def _build(self, shared: bool) -> None:
        t, norm = self.table, ElasticBatchNorm2d if self.table.adq else None

        def slot(shape: SlotShape, input_bits: int | None) -> ElasticSlot:
            op, bits = (self.space.choices[name].values for name in self.slots[shape.name])
            return ElasticSlot(shape, [NAMES[int(code)] for code in op], [int(b) for b in bits], input_bits, shared)

        self.body = build(t.layout, self.space.widths[-1], self.space.depths[-1], t.scale, slot, t.image_bits, norm)

    def windows(self, arch: Arch) -> dict[str, Tensor]:
        shapes = self._shapes[self.space.size(arch)[0]]
        slots = [(name, slot) for name, slot in self.named_modules() if isinstance(slot, ElasticSlot)]
        return {
            f"{name}.{own}": tensor for name, slot in slots for own, tensor in slot.windows(shapes[slot.name]).items()
        }

    @property
    def most(self) -> tuple[int, int]:
        """Channels and cells of the largest network."""
        return self.space.widths[-1], self.space.depths[-1]

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        """x: ``(N, 3, H, W)``, pixels in [0, 1] -> ``(N, 3, scale * H, scale * W)``."""
        picks = {name: (NAMES[int(arch[op])], int(arch[bits])) for name, (op, bits) in self.slots.items()}
        return self._run(x, picks, self.space.size(arch), how)

    def forward_soft(self, x: Tensor, soft: Soft, how: Pass) -> Tensor:
        """Every slot the mean of its operations, each with the mean of its quantized (or noisy) weights and inputs
        (section 3); as many channels and cells as there are."""
        return self._run(x, soft.probabilities, self.most, how)

    def _run(self, x: Tensor, picks: Mapping[str, Any], size: tuple[int, int], how: Pass) -> Tensor:
        channels, cells = size
        shapes, depth = self._shapes[channels], {"cells": cells} if self.table.sized else {}
        settings = {"quant": how.quant, "generator": how.generator, "published": self.noise == "published"}

        def run(part: nn.Module, z: Tensor) -> Tensor:
            if isinstance(part, ElasticSlot):
                return part(z, picks[part.name], shapes[part.name], **settings)
            return part(z, **settings)

        return enlarge(lambda z: self.body(z, run, **depth), x, self.mean, self.table.scale, how.quant == "real")

    def expected_bitops(self, soft: Soft) -> Tensor:
        """The mean BitOPs over architectures drawn from the probabilities, slot by slot: a float64 number, with
        gradient."""
        parts = [
            (soft.probabilities[name].double() * table.to(soft.probabilities[name].device)).sum()
            for name, table in self._bitops.items()
        ]
        return sum(parts[1:], parts[0]) + self.part_cost((None,)).bitops

    def _slot_bitops(self, name: str) -> list[list[int]]:
        op, bits = (self.space.choices[choice].values for choice in self.slots[name])
        return [[self.part_cost((name, code, width)).bitops for width in bits] for code in op]

    def child_config(self, arch: Arch) -> dict[str, Any]:
        t = self.table
        channels, cells = self.space.size(arch)
        sizes = {
            "layout": t.layout,
            "channels": channels,
            "cells": cells,
            "scale": t.scale,
            "adq": t.adq,
            "image_bits": t.image_bits,
        }
        slots = {name: [NAMES[int(arch[op])], int(arch[bits])] for name, (op, bits) in self.slots.items()}
        return {**sizes, "mean": self.mean_given, "slots": slots}

    def fix(self, arch: Arch, fresh: bool = False) -> QuantNAS:
        fixed = QuantNAS(self.table, noise=self.noise, mean=self.mean_given, image=self.input_shape[-1], settled=arch)
        if not fresh:
            inherit(fixed, self, arch)
        return fixed

    def parts(self, arch: Arch) -> Iterator[Any]:
        size = self.space.size(arch) if self.table.sized else ()
        yield None, *size
        for name, (op, bits) in self.slots.items():
            yield name, arch[op], arch[bits], *size

    def part_cost(self, part: Any) -> PartCost:
        """A slot with its choice, in all cells that share it; or what is not searched (None). Channels and cells stand
        at the end where they are chosen; else, and in a mixture, they are the largest network's."""
        side, (name, *rest) = self.input_shape[-1], part
        channels, cells = (rest if name is None else rest[2:]) or self.most
        if name is None:
            return unsearched_cost(self.table, channels, cells, side)
        shapes = {shape.name: shape for shape in self.table.shapes_at(channels, cells)}
        return slot_cost(self.table, shapes[name], NAMES[rest[0]], rest[1], side)
