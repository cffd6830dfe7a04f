"""The tables and the space of BigNAS: what a network may be made of. Widths and depths are chosen once a stage, kernels
and expansions once a stage or once a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from nas.space import Arch, Choice, Number, Space
from nas.supernet import PartCost, fp32

Values = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """The choices of one stage. Every block of it has its width, and only the first one has the stride.

    Attributes:
        kernel, expand: values that all blocks share one of; or such values for each block, which then has its own.
        act: one of `nas.static.ACTIVATIONS`.
        residual: the first block has an identity too, where stride and widths are such that it can.
    """

    width: Values
    depth: Values
    kernel: Values | tuple[Values, ...]
    expand: Values | tuple[Values, ...]
    stride: int
    se: bool = False
    act: str = "silu"
    residual: bool = False


@dataclass(frozen=True)
class Table:
    """A whole space: what a network may be made of.

    Attributes:
        resolution: sides in pixels that a child may resize its input to.
        conv_shortcut: every block has a shortcut (AttentiveNAS); otherwise only those after a stage's first, where it
            is the identity.
        wide_head: the head of MobileNetV3: 1x1 convolution to 6 times the last width, pooling, linear to `head`,
            classifier.
        squeeze_input: squeeze-excite has a quarter of a block's input within (EfficientNet, whose parameters BigNAS's
            published networks have), not of its inner width (MobileNetV3); the gate is MobileNetV3's in both.
        kernel_transform: small kernels are learnt from large ones, see `ElasticConv2d` (Once-for-All).
        act: of stem and head, one of `nas.static.ACTIVATIONS`.
    """

    resolution: Values
    stem: Values
    stages: tuple[Stage, ...]
    head: Values
    stem_stride: int = 1
    conv_shortcut: bool = False
    wide_head: bool = False
    channels: int = 3
    classes: int = 10
    squeeze_input: bool = False
    kernel_transform: bool = False
    act: str = "silu"


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
    act: str

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


class StageNames(NamedTuple):
    """The names of a stage's choices; `kernel` and `expand` have one, or one for each block."""

    width: str
    depth: str
    kernel: tuple[str, ...]
    expand: tuple[str, ...]


class BigNASSpace(Space):
    """The space of a `Table`: ``resolution``, ``stem``, ``stageN.width/depth/kernel/expand`` for N from 1, and
    ``head``; what a block has for itself is ``stageN.blockM.kernel/expand``, which counts where the stage is so
    deep."""

    def __init__(self, table: Table) -> None:
        choices = [Choice("resolution", table.resolution), Choice("stem", table.stem)]
        self.names: list[StageNames] = []
        for n, stage in enumerate(table.stages, start=1):
            place = f"stage{n}."
            kernels, expands = (self._within(stage, place, what) for what in ("kernel", "expand"))
            names = StageNames(
                place + "width", place + "depth", tuple(c.name for c in kernels), tuple(c.name for c in expands)
            )
            choices += [Choice(names.width, stage.width), Choice(names.depth, stage.depth), *kernels, *expands]
            self.names.append(names)
        super().__init__([*choices, Choice("head", table.head)])
        self.num_stages = len(table.stages)

    @staticmethod
    def _within(stage: Stage, place: str, what: str) -> list[Choice]:
        """The choices of kernels or expansions, of the stage or of each of its blocks."""
        values: Any = getattr(stage, what)
        if isinstance(values[0], int):
            return [Choice(place + what, values)]
        found = []
        for m, each in enumerate(values, start=1):
            deep = tuple(depth for depth in stage.depth if depth >= m)
            needs = None if deep == stage.depth else (place + "depth", deep)
            found.append(Choice(f"{place}block{m}.{what}", each, needs))
        return found

    def from_stages(
        self,
        resolution: int,
        width: tuple[int, ...],
        depth: tuple[int, ...],
        kernel: tuple[int, ...],
        expand: tuple[int, ...],
    ) -> Arch:
        """An architecture in the papers' notation: `width` is (stem, every stage, head), the others hold a number a
        stage, of all its blocks.

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
        for n, names in enumerate(self.names):
            choices |= {names.width: width[n + 1], names.depth: depth[n]}
            choices |= dict.fromkeys(names.kernel, kernel[n]) | dict.fromkeys(names.expand, expand[n])
        return self.arch(choices)
