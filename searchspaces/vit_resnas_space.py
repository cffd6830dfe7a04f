"""The tables and the space of ViT-ResNAS: what a network may be made of. Widths are chosen once a stage, the rest
once a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas.space import Arch, Choice, Number, Space


@dataclass(frozen=True)
class BlockChoices:
    """What one transformer block may be.

    Attributes:
        exists: (0, 1) for a block that may be dropped, () for one that is always there; one number where it is settled.
    """

    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    exists: tuple[int, ...] = ()


@dataclass(frozen=True)
class StageChoices:
    """What one stage may be; the size of a head is the same in all of its blocks."""

    width: tuple[int, ...]
    head_dim: int
    blocks: tuple[BlockChoices, ...]


@dataclass(frozen=True)
class Table:
    """A whole space.

    Attributes:
        side: in pixels, of what the stem sees.
        patch: pixels along a token of the first stage; every later stage doubles it.
        stem: channels within the stem, not searched.
        pad: zeros on each edge within `side`; the image is resized to the rest.

    Raises:
        ValueError: sizes that do not fit together.
    """

    side: int
    patch: int
    stem: int
    stages: tuple[StageChoices, ...]
    pad: int = 0
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        cell = self.patch * 2 ** (len(self.stages) - 1)
        if self.side % cell:
            raise ValueError(
                f"side {self.side} must be a multiple of {cell}: patch {self.patch}, doubled at each later stage"
            )
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if max(before.width) > min(after.width):
                raise ValueError(
                    f"widths {after.width} follow {before.width}: the skip of a reduction can only add channels"
                )

    def grid(self, stage: int) -> int:
        """Side of the patches' grid in a stage, from 0."""
        return self.side // (self.patch * 2**stage)


def stage(
    width: Sequence[int],
    heads: Sequence[int],
    head_dim: int,
    hidden: Sequence[int],
    blocks: int,
    skippable: Sequence[int] = (),
) -> StageChoices:
    """A stage whose blocks have the same choices; those numbered in `skippable`, from 1, may be dropped."""
    exists = [(0, 1) if number in skippable else () for number in range(1, blocks + 1)]
    return StageChoices(tuple(width), head_dim, tuple(BlockChoices(tuple(heads), tuple(hidden), e) for e in exists))


class BlockNames(NamedTuple):
    """The names of one block's choices. `key` is its number in its stage; `exists` is None for a block that is
    always there."""

    key: str
    exists: str | None
    heads: str
    hidden: str

    def there(self, arch: Arch) -> bool:
        """Whether the network has the block."""
        return self.exists is None or bool(arch[self.exists])


class ViTResNASSpace(Space):
    """The space of a `Table`: ``stageN.width``, and for each block ``stageN.blockM.exists/heads/hidden``, N and M from
    1.

    ``exists`` is a choice only of the blocks that may be dropped; where it is 0, the block's other choices do not
    count.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.widths = [f"stage{n}.width" for n in range(1, len(table.stages) + 1)]
        self.blocks: list[list[BlockNames]] = []
        choices = []
        for n, spec in enumerate(table.stages, start=1):
            choices.append(Choice(f"stage{n}.width", spec.width))
            self.blocks.append([])
            for m, block in enumerate(spec.blocks, start=1):
                place = f"stage{n}.block{m}."
                names = BlockNames(
                    str(m), place + "exists" if block.exists else None, place + "heads", place + "hidden"
                )
                self.blocks[-1].append(names)
                needs = (names.exists, (1,)) if names.exists else None
                choices += [Choice(names.exists, block.exists)] if names.exists else []
                if block.exists != (0,):
                    choices += [Choice(names.heads, block.heads, needs), Choice(names.hidden, block.hidden, needs)]
        super().__init__(choices)

    def from_tuples(self, tuples: Sequence[Sequence[Any]]) -> Arch:
        """An architecture in the authors' notation: ``(4, d)`` or ``(5, d, C)`` is the stem, ``(1, (d, h, e), (d, f),
        exists)`` a block, ``(3, c_in, c_out)`` a reduction, ``(2, d, K)`` the head, whose K is not looked at.

        A stage that lists fewer blocks than the space has (the published networks do) lacks the last of those it may
        drop.

        Raises:
            ValueError: another order or kind of layers, or sizes that this space does not have.
        """
        if tuples and tuples[0][0] == 5 and tuples[0][2] != self.table.stem:
            raise ValueError(f"the stem has {tuples[0][2]} channels within; this space has {self.table.stem}")
        stages = _by_stage(tuples)
        if len(stages) != len(self.blocks):
            raise ValueError(f"the tuples have {len(stages)} stages; this space has {len(self.blocks)}")
        choices: dict[str, Number] = {}
        for n, (width, blocks) in enumerate(stages):
            choices[self.widths[n]] = width
            allowed = {(width, self.table.stages[n].head_dim, width)}
            if wrong := {(d, e, d_also) for (d, _, e), (d_also, _), _ in blocks} - allowed:
                raise ValueError(f"stage {n + 1}: (d, e, d) of its blocks must be {allowed}; given {wrong}")
            choices |= self._block_choices(n, blocks)
        return self.arch(choices)

    def _block_choices(self, n: int, given: list[Any]) -> dict[str, Number]:
        """The choices of the blocks of stage n, from 0."""
        names = self.blocks[n]
        skippable = [m for m, name in enumerate(names) if name.exists]
        missing = len(names) - len(given)
        if not 0 <= missing <= len(skippable):
            raise ValueError(
                f"stage {n + 1} lists {len(given)} blocks; this space has {len(names)} and may drop {len(skippable)} "
                "of them"
            )
        for m in skippable[len(skippable) - missing :]:
            given = [*given[:m], None, *given[m:]]
        choices: dict[str, Number] = {}
        for name, block in zip(names, given, strict=True):
            there = block is not None and bool(block[2])
            if not there and name.exists is None:
                raise ValueError(f"stage {n + 1}, block {name.key} may not be dropped in this space")
            choices |= {name.exists: int(there)} if name.exists else {}
            choices |= {name.heads: block[0][1], name.hidden: block[1][1]} if there else {}
        return choices


def _by_stage(tuples: Sequence[Sequence[Any]]) -> list[tuple[int, list[Any]]]:
    """The authors' tuples as ``(width, blocks without their tag)``, stage by stage.

    Raises:
        ValueError: they do not begin with a stem, end with a head, or keep their widths in between.
    """
    stages: list[tuple[int, list[Any]]] = []
    for place, (kind, *rest) in enumerate(tuples):
        if kind in (4, 5) and place == 0:
            stages.append((rest[0], []))
        elif kind == 1 and stages:
            stages[-1][1].append(rest)
        elif kind == 3 and stages and rest[0] == stages[-1][0]:
            stages.append((rest[1], []))
        elif not (kind == 2 and stages and rest[0] == stages[-1][0] and place == len(tuples) - 1):
            raise ValueError(
                f"tuple {place} is {tuple(tuples[place])}; allowed: a stem (4 or 5), blocks (1) with reductions (3) of "
                "fitting width, a head (2)"
            )
    return stages
