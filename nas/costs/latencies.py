"""A table of latencies: what was measured on which machine, what parts of children take there, and how well that
predicts children that were not seen. Nothing is measured here.

A child takes ``base`` and the sum over its `Supernet.parts`. What a part takes is linear in its MACs, its parameters
and the numbers that it is a tuple of, or has a figure for each value of such a number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt

from nas.rundir.forms import Form, Text
from nas.space import Number, Space
from nas.supernet import Supernet

Millis = FiniteFloat


class PartTime(Form):
    """What the parts of one kind take: milliseconds, and milliseconds for each unit of what they have.

    Attributes:
        ms: of any such part.
        per_mac, per_param: for each multiply-add and each parameter.
        per_size: for each unit of a size, in the order of the part's sizes; empty: they do not count by themselves.
        of_value: for a size that has this value, likewise; empty mappings for sizes of too many values.
    """

    ms: Millis = 0.0
    per_mac: Millis = 0.0
    per_param: Millis = 0.0
    per_size: list[Millis] = []
    of_value: list[dict[Text, Millis]] = []


class Seen(Form):
    """A child that was measured and had no say in the table."""

    arch: dict[Text, int | float]
    measured: PositiveFloat
    predicted: Millis


class Unseen(Form):
    """How well the table predicts children that it was not made from.

    Attributes:
        median_error, worst_error: of predicted over measured, as shares: 0.03 is three percent.
        rank_correlation: Spearman's, of predicted and measured.
        repeat_error: the median difference between two measurements of the same child, each in every other round: no
            prediction can be told to be better than that.
        children: these themselves.
    """

    median_error: Annotated[float, Field(ge=0)]
    worst_error: Annotated[float, Field(ge=0)]
    rank_correlation: Annotated[float, Field(ge=-1, le=1)]
    repeat_error: Annotated[float, Field(ge=0)]
    children: list[Seen]


class Table(Form):
    """latency.json.

    Attributes:
        space: name and size, for people.
        choices: values of each choice of the space, by which a table of another one is known.
        input: ``(C, H, W)`` of one example.
        machine: the processor, or the GPU, and the system.
        runtime: with its version: ``"onnxruntime 1.23.0"``.
        threads, batch: of the runtime, and examples at once.
        children: how many it was made from.
        base: milliseconds that any child takes.
        parts: by kind of part, see `kind_of`.
        unseen: how far to trust it.
    """

    format: Literal[1] = 1
    space: Text
    choices: dict[Text, list[int | float]]
    input: tuple[PositiveInt, PositiveInt, PositiveInt]
    machine: Text
    runtime: Text
    threads: PositiveInt
    batch: PositiveInt
    children: PositiveInt
    base: Millis
    parts: dict[Text, PartTime]
    unseen: Unseen

    def check(self, net: Supernet) -> None:
        """Refuse a network that this is not a table of; that of one child of the space, or of a part of it, is fine.

        Raises:
            ValueError: it has another input or other choices; the message says which.
        """
        if self.input != net.input_shape:
            ours, theirs = ("x".join(map(str, shape)) for shape in (net.input_shape, self.input))
            raise ValueError(f"it is of {self.space} with inputs of {theirs}, and this network takes {ours}")
        if strange := [name for name, values in values_of(net.space).items() if not self._has(name, values)]:
            told = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
            raise ValueError(f"it is of {self.space}, and this network has other choices: {told}")

    def _has(self, name: str, values: list[Number]) -> bool:
        return set(values) <= set(self.choices.get(name, ()))

    def part(self, net: Supernet, part: Any) -> float:
        """What a part of a child of `net` takes, milliseconds.

        Raises:
            ValueError: no child that was measured has such a part.
        """
        kind, sizes = kind_of(part)
        if (time := self.parts.get(kind)) is None:
            raise ValueError(f"it has no part {kind}")
        cost = net.part_cost(part)
        ms = time.ms + time.per_mac * cost.macs + time.per_param * cost.params
        ms += sum(per * size for per, size in zip(time.per_size, sizes, strict=False))
        for place, known in enumerate(time.of_value):
            if known:
                if (value := repr(sizes[place])) not in known:
                    raise ValueError(f"it has no part {kind} whose size {place} is {value}, only {', '.join(known)}")
                ms += known[value]
        return ms

    def child(self, parts: Iterable[float]) -> float:
        """What a child takes whose parts take this, milliseconds; no less than nothing."""
        ms = self.base
        for part in parts:  # one after the other: `sum` of floats rounds otherwise from Python 3.12 on
            ms += part
        return max(0.0, ms)


def values_of(space: Space) -> dict[str, list[Number]]:
    return {name: list(choice.values) for name, choice in space.choices.items()}


def kind_of(part: Any) -> tuple[str, tuple[Number, ...]]:
    """Which part it is, as a key that JSON can have, and its sizes.

    The first of its plain values says which it is, with whatever else is no number: ``(2, 28, 16, 24)`` is ``[2]`` with
    the sizes 28, 16 and 24, ``("cell.0", 3, 8)`` is ``["cell.0"]`` with the sizes 3 and 8.
    """
    first, *rest = _plain(part)
    names = [value for value in rest if not isinstance(value, int | float)]
    sizes = tuple(value for value in rest if isinstance(value, int | float))
    return json.dumps([first, *names]), sizes


def _plain(part: Any) -> Iterator[Any]:
    """The plain values that a part is made of, in order; of anything else its text."""
    if dataclasses.is_dataclass(part):
        part = tuple(getattr(part, field.name) for field in dataclasses.fields(part))
    elif isinstance(part, Mapping):
        part = tuple(part.items())
    if isinstance(part, tuple | list):
        for each in part:
            yield from _plain(each)
    else:
        yield part if part is None or isinstance(part, bool | int | float | str) else repr(part)
