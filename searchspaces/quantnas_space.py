"""The tables, the space and the costs of QuantNAS. Every slot of a network has two choices: an operation and a
bit-width. Channels and cells may be choices of the whole network (not in the paper, which compares networks of one
size)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from nas.quantization.learned import FULL
from nas.space import Arch, Choice, Number, Space
from nas.supernet import PartCost
from searchspaces.quantnas_child import FIXED_BITS, OPERATIONS, SlotShape, shapes

NAMES = tuple(OPERATIONS)
BITS = (2, 4, 8, 16, FULL)

BASIC = {
    "head": ("conv3", "conv5", "conv3g3", "conv5g3"),
    "body": ("fact5", "fact3", "conv3", "conv5"),
    "skip": ("conv1", "conv3", "conv5"),
    "upsample": ("conv5g3", "conv3g3", "conv3", "conv5"),
    "tail": ("conv1", "conv3", "conv5", "conv5g3", "conv3g3"),
}
_GROWN = ("conv1", "conv3", "conv5", "growth1", "growth3", "growth5")
_ALL = (*_GROWN, "conv1g2", "conv3g2", "conv5g2")
RFDN = {"body": _ALL, "skip": _ALL, "upsample": _ALL, "tail": _GROWN}


@dataclass(frozen=True)
class Table:
    """A whole space.

    Attributes:
        layout: ``"basic"`` (the paper's first version) or ``"rfdn"`` (its later ones).
        channels: of the features; a multiple of 3, and of 4 where there is spatial attention. Several, in ``"basic"``,
            are a choice of the space: a narrower network has the first channels.
        cells: how many; those of ``"basic"`` share their choices. Several, there, are a choice: a shallower network
            has the first cells.
        scale: sides of the output over sides of the input.
        bits: the bit-widths of every slot, weights and activations alike; 32 is unquantized.
        adq: adaptive deviation around the residual functions.
        input_bits: of the image: None for 8, in which images come; ``"slot"`` for the bits of the convolution that sees
            it (the authors' accounting).

    Raises:
        ValueError: a value that is not allowed.
    """

    layout: str
    channels: int | tuple[int, ...]
    cells: int | tuple[int, ...]
    scale: int
    bits: tuple[int, ...] = (4, 8)
    adq: bool = True
    input_bits: str | None = None

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale is {self.scale}; allowed: 2, 3, 4")
        if not self.bits or not set(self.bits) <= set(BITS):
            raise ValueError(f"bits are {list(self.bits)}; allowed: some of {list(BITS)}")
        if self.input_bits not in (None, "slot"):
            raise ValueError(f'input_bits is {self.input_bits!r}; allowed: null (the image has its 8 bits), "slot"')
        step = 3 if self.layout == "basic" else 12
        if any(channels < 1 or channels % step for channels in self.widths):
            raise ValueError(f"channels are {self.channels}; the layout {self.layout} needs a multiple of {step}")
        if self.depths[0] < 1:
            raise ValueError(f"cells are {self.cells}; allowed: 1 or more")
        if self.layout != "basic" and self.sized:
            raise ValueError(
                f"channels are {self.channels} and cells {self.cells}; the layout {self.layout} fuses all of its "
                "cells: give one number of each, or take the layout basic"
            )

    @property
    def image_bits(self) -> int | None:
        return None if self.input_bits == "slot" else FIXED_BITS

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels to choose from, ascending."""
        return (self.channels,) if isinstance(self.channels, int) else tuple(sorted(set(self.channels)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Cells to choose from, ascending."""
        return (self.cells,) if isinstance(self.cells, int) else tuple(sorted(set(self.cells)))

    @property
    def sized(self) -> bool:
        """Whether channels or cells are chosen."""
        return len(self.widths) * len(self.depths) > 1

    @property
    def shapes(self) -> list[SlotShape]:
        """The slots of the largest network."""
        return self.shapes_at(self.widths[-1], self.depths[-1])

    def shapes_at(self, channels: int, cells: int) -> list[SlotShape]:
        """The slots of a network of that size."""
        return shapes(self.layout, channels, cells, self.scale)

    def operations(self, shape: SlotShape) -> list[str]:
        """What a slot may hold, by its multiply-accumulates: in the same order at all widths, whose ratios are those of
        the largest."""
        group = (BASIC if self.layout == "basic" else RFDN)[shape.group]
        return sorted(
            (name for name in group if OPERATIONS[name].fits(shape.c_in, shape.c_out)),
            key=lambda name: taps(shape, name),
        )


def taps(shape: SlotShape, operation: str) -> int:
    """The weights of one operation in one slot, which are its multiply-accumulates a pixel."""
    layers = shape.layers(operation)
    return sum(c_in // groups * c_out * kernel[0] * kernel[1] for c_in, c_out, kernel, groups in layers)


class QuantNASSpace(Space):
    """The space of a `Table`: ``channels`` and ``cells`` where it has several, and for each slot ``<slot>.op``, the
    operation's place in `OPERATIONS`, and ``<slot>.bits``.

    Args:
        settled: choices that are not searched: a name or pattern such as ``"body*.op"`` to a value; operations also by
            name.

    Raises:
        ValueError: a pattern that fits no choice, or a value that one of them does not have.
    """

    def __init__(self, table: Table, settled: Mapping[str, Number | str] | None = None) -> None:
        sizes = {"channels": table.widths, "cells": table.depths}
        choices = {name: Choice(name, values) for name, values in sizes.items() if len(values) > 1}
        for shape in table.shapes:
            codes = tuple(NAMES.index(name) for name in table.operations(shape))
            choices[f"{shape.name}.op"] = Choice(f"{shape.name}.op", codes)
            choices[f"{shape.name}.bits"] = Choice(f"{shape.name}.bits", tuple(sorted(set(table.bits))))
        for pattern, value in (settled or {}).items():
            names = [name for name in choices if fnmatchcase(name, pattern)]
            if not names:
                raise ValueError(f"settled names {pattern!r}; the space's choices are {', '.join(choices)}")
            for name in names:
                choices[name] = replace(choices[name], values=(_value(choices[name], value),))
        super().__init__(list(choices.values()))
        self.widths, self.depths = (
            tuple(int(value) for value in choices[name].values) if name in choices else values
            for name, values in sizes.items()
        )
        self.slots = {shape.name: (f"{shape.name}.op", f"{shape.name}.bits") for shape in table.shapes}

    def size(self, arch: Arch) -> tuple[int, int]:
        """Channels and cells of an architecture."""
        return int(arch.get("channels", self.widths[-1])), int(arch.get("cells", self.depths[-1]))

    def named(self, choices: Mapping[str, Number | str]) -> Arch:
        """An architecture whose operations are given by name: ``{"head1.op": "conv3", "head1.bits": 8, ...}``."""
        return self.arch(
            {name: NAMES.index(value) if isinstance(value, str) else value for name, value in choices.items()}
        )


def _value(choice: Choice, value: Number | str) -> Number:
    """One of the choice's values, given as a number or as an operation's name."""
    is_operation = choice.name.endswith(".op")
    code = NAMES.index(value) if is_operation and value in NAMES else value
    if code not in choice.values:
        allowed = [NAMES[int(code)] for code in choice.values] if is_operation else list(choice.values)
        raise ValueError(f"settled {choice.name!r} is {value!r}; allowed: {', '.join(map(str, allowed))}")
    return code


def conv_cost(c_in: int, c_out: int, taps: int, pixels: int, bits: int, input_bits: int | None) -> PartCost:
    """A quantized convolution of `taps` taps a channel pair; ``input_bits`` as of `QuantConv2d` (0: an image of
    `FIXED_BITS`)."""
    inputs = bits if input_bits is None else input_bits or FIXED_BITS
    weights, macs = c_in * c_out * taps, c_in * c_out * taps * pixels
    steps = (c_out if bits < FULL else 0) + (1 if input_bits or (input_bits is None and bits < FULL) else 0)
    return PartCost(macs, weights + steps, macs * bits * inputs, -(-weights * bits // 8) + steps * 4)


def slot_cost(table: Table, shape: SlotShape, operation: str, bits: int, side: int) -> PartCost:
    """One choice of one slot, in all of the cells that share it, for a square input of `side` pixels."""
    pixels = (side * table.scale if shape.enlarged else side) ** 2
    cost = PartCost()
    for number, (c_in, c_out, kernel, groups) in enumerate(shape.layers(operation)):
        image = first_bits(table) if shape.first and number == 0 else None
        for _ in range(shape.copies):
            cost += conv_cost(c_in // groups, c_out, kernel[0] * kernel[1], pixels, bits, image)
    return cost


def first_bits(table: Table) -> int | None:
    """`QuantConv2d.input_bits` of a convolution that sees the image: it lies on its grid unless a norm stands
    before."""
    if table.image_bits is None:
        return None
    return 0 if table.layout == "basic" or not table.adq else table.image_bits


def unsearched_cost(table: Table, c: int, cells: int, side: int) -> PartCost:
    """What every network of c channels and so many cells has: its fixed 8-bit convolutions, and ADQ, whose few
    operations do not count."""
    cost = PartCost()
    if table.layout == "rfdn":
        for _ in range(cells):
            for c_in, c_out, kernel, pixels in ((2 * c, c, 1, side**2), *_attention(c, side)):
                cost += conv_cost(c_in, c_out, kernel**2, pixels, FIXED_BITS, None)
        cost += conv_cost(cells * c, c, 1, side**2, FIXED_BITS, None) + conv_cost(c, c, 9, side**2, FIXED_BITS, None)
    if table.adq:
        widths = [c] * cells + ([c, 3] if table.layout == "basic" else [])
        params = sum(2 * width + 2 for width in widths)
        cost += PartCost(0, params, 0, 4 * params)
    return cost


def _attention(c: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """The convolutions of `SpatialAttention`: channels, kernel, pixels."""
    f, shrunk = c // 4, (side - 3) // 2 + 1
    small = (shrunk - 7) // 3 + 1
    yield from ((c, f, 1, side**2), (f, f, 1, side**2), (f, f, 3, shrunk**2))
    yield from ((f, f, 3, small**2),) * 3
    yield f, c, 1, side**2
