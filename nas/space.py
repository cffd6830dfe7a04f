"""Search spaces as values: a `Choice`, a `Space` of them, and an `Arch` picked from it. Imports numpy alone.

An architecture is a frozen mapping from choice to number. A choice may depend on an earlier one (a kernel of the third
block counts only where the stage has three blocks); an `Arch` holds the choices that count and no others, so two
mappings that mean the same network are one `Arch` with one `id`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Number = int | float


@dataclass(frozen=True)
class Measure:
    """What a figure of a network counts, for people.

    Attributes:
        label: what is counted: ``"MACs"``, ``"latency"``.
        unit: what it is counted in, such as ``"ms"``; empty where the label says it.
        better: which way is good.
        shown: stands in every table, not in those alone of a search for it.
        about: what exactly is counted; empty where the label says it.
    """

    label: str
    unit: str = ""
    better: Literal["higher", "lower"] = "lower"
    shown: bool = True
    about: str = ""

    @property
    def title(self) -> str:
        """What stands over a column or along an axis: ``"latency, ms"``."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def told(self, number: str) -> str:
        """The figure in a sentence: ``"3.7 ms latency"``."""
        return " ".join(part for part in (number, self.unit, self.label) if part)


COSTS: Mapping[str, Measure] = {  # what every supernet counts, by the names that they have in journals and files
    "macs": Measure("MACs", about="multiply-adds of convolutions, linear layers and attention"),
    "params": Measure("parameters", about="weights and biases"),
    "bitops": Measure("BitOPs", shown=False, about="MACs x weight bits x activation bits"),
    "bytes": Measure("bytes", shown=False, about="of the weights, those of few bits packed"),
}


@dataclass(frozen=True)
class Choice:
    """One decision of a space.

    Attributes:
        name: what it is called in an `Arch`, for example ``"stage2.depth"``.
        values: the allowed numbers, from the smallest network's to the largest's.
        active_if: ``(name of an earlier choice, values)``: this choice counts only where that one counts and has one of
            these values.
    """

    name: str
    values: tuple[Number, ...]
    active_if: tuple[str, tuple[Number, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"choice {self.name!r} has no values; give at least one")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"choice {self.name!r} lists a value twice: {self.values}")


class Arch(Mapping[str, Number]):
    """An architecture: a frozen, hashable mapping from choice name to number, in canonical form. Made by a `Space`."""

    __slots__ = ("_choices", "_hash", "_id")

    def __init__(self, choices: Mapping[str, Number]) -> None:
        self._choices = dict(choices)
        self._hash: int | None = None
        self._id: str | None = None

    def __getitem__(self, name: str) -> Number:
        return self._choices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    # what Mapping derives from these takes five times as long, and a search asks for little else

    def __contains__(self, name: object) -> bool:
        return name in self._choices

    def keys(self) -> KeysView[str]:
        """The choices that count."""
        return self._choices.keys()

    def items(self) -> ItemsView[str, Number]:
        """They and what they are."""
        return self._choices.items()

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._choices.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._choices == other._choices

    def __repr__(self) -> str:
        return f"Arch({self._choices})"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: the hash of the canonical JSON form, the same in every process and version."""
        if self._id is None:
            form = json.dumps(self._choices, sort_keys=True, separators=(",", ":"))
            self._id = hashlib.sha256(form.encode()).hexdigest()[:12]
        return self._id


class Space:
    """An ordered list of choices and what can be done with it. Every method that draws takes its own generator.

    Raises:
        ValueError: two choices share a name, or an ``active_if`` names no earlier choice or a value that it never has.
    """

    def __init__(self, choices: tuple[Choice, ...] | list[Choice]) -> None:
        self.choices: dict[str, Choice] = {}
        for choice in choices:
            if choice.name in self.choices:
                raise ValueError(f"the space has two choices named {choice.name!r}")
            if choice.active_if is not None:
                parent, values = choice.active_if
                if parent not in self.choices:
                    raise ValueError(f"choice {choice.name!r} depends on {parent!r}, which does not stand before it")
                if stray := set(values) - set(self.choices[parent].values):
                    raise ValueError(
                        f"choice {choice.name!r} depends on {parent!r} having {sorted(stray)}, which it never has"
                    )
            self.choices[choice.name] = choice

    def _build(self, pick: Callable[[Choice], Number]) -> Arch:
        """An `Arch` with ``pick(choice)`` for every choice that counts, asked in order."""
        picked: dict[str, Number] = {}
        for name, choice in self.choices.items():
            when = choice.active_if
            if when is None or picked.get(when[0]) in when[1]:
                picked[name] = pick(choice)
        return Arch(picked)

    def arch(self, choices: Mapping[str, Number]) -> Arch:
        """The architecture that a plain mapping means; choices of dropped blocks are ignored.

        Raises:
            ValueError: an unknown name, a missing choice, or a value that is not allowed.
        """
        for name in choices:
            if name not in self.choices:
                near = difflib.get_close_matches(name, self.choices, n=3) or list(self.choices)[:8]
                raise ValueError(f"the space has no choice {name!r}; near it: {', '.join(near)}")

        def given(choice: Choice) -> Number:
            if choice.name not in choices:
                raise ValueError(f"choice {choice.name!r} is missing; allowed: {choice.values}")
            value = choices[choice.name]
            if value not in choice.values:
                raise ValueError(f"choice {choice.name!r} is {value!r}; allowed: {choice.values}")
            return choice.values[choice.values.index(value)]

        return self._build(given)

    def smallest(self) -> Arch:
        """The first value of every choice."""
        return self._build(lambda choice: choice.values[0])

    def largest(self) -> Arch:
        """The last value of every choice."""
        return self._build(lambda choice: choice.values[-1])

    def sample(self, rng: np.random.Generator) -> Arch:
        """Every choice uniform and independent (AttentiveNAS's uniform sampling)."""
        return self._build(lambda choice: _draw(choice.values, rng))

    def mutate(self, arch: Arch, rng: np.random.Generator, rate: float) -> Arch:
        """Each choice of `arch` replaced by a *different* value with probability `rate`, at least one in any case.

        Choices that begin to count are drawn uniformly. A space of one architecture returns it.
        """
        open_ = [name for name in arch if len(self.choices[name].values) > 1]
        if not open_:
            return arch
        drawn = rng.random(len(open_)).tolist()
        hit = {name for name, one in zip(open_, drawn, strict=True) if one < rate} or {open_[rng.integers(len(open_))]}

        def pick(choice: Choice) -> Number:
            name = choice.name
            if name not in arch:
                return _draw(choice.values, rng)
            old = arch[name]
            return _draw(tuple(v for v in choice.values if v != old), rng) if name in hit else old

        return self._build(pick)

    def cross(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Uniform crossover: each choice from either parent with equal chance, from the only one that has it
        otherwise."""
        both = first.keys() & second.keys()  # each of which counts in the child too, whatever is picked
        coins = iter(rng.integers(2, size=len(both)).tolist())

        def pick(choice: Choice) -> Number:
            name = choice.name
            other = next(coins) if name in both else name not in first
            return (second if other else first)[name]

        return self._build(pick)

    def encode(self, arch: Arch) -> np.ndarray:
        """One-hot, a block for each choice in order, all zeros where it does not count: float64 of shape ``(sum of
        len(values),)``."""
        vector = np.zeros(sum(len(c.values) for c in self.choices.values()))
        start = 0
        for name, choice in self.choices.items():
            if name in arch:
                vector[start + choice.values.index(arch[name])] = 1.0
            start += len(choice.values)
        return vector

    @cached_property
    def cardinality(self) -> int:
        """How many different architectures there are, exactly."""
        children: dict[str | None, list[Choice]] = {}
        for choice in self.choices.values():
            children.setdefault(choice.active_if[0] if choice.active_if else None, []).append(choice)
        counts: dict[
            str, dict[Number, int]
        ] = {}  # for each choice and value of it, the ways to fill all that depends on it
        for choice in reversed(self.choices.values()):
            counts[choice.name] = dict.fromkeys(choice.values, 1)
            for child in children.get(choice.name, []):
                for value in child.active_if[1] if child.active_if else ():
                    counts[choice.name][value] *= sum(counts[child.name].values())
        total = 1
        for root in children.get(None, []):
            total *= sum(counts[root.name].values())
        return total


def _draw(values: tuple[Number, ...], rng: np.random.Generator) -> Number:
    return values[int(rng.integers(len(values)))]
