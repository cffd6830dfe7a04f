"""Latency as a cost: milliseconds of one inference, predicted from a table that ``nas latency`` has measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.costs.latencies import Table
from nas.costs.options import LatencyOptions
from nas.rundir.forms import read
from nas.space import Arch
from nas.supernet import Cost, Supernet


class Latency(Cost):
    """Of one inference on the machine, runtime, threads and batch that a table was measured with. Nothing is measured
    here: a search is known by the table's contents, and is replayed from them.

    Raises:
        FileNotFoundError: the table is not there.
        Damaged: it is no such table.
    """

    name, label, unit = "latency", "latency", "ms"
    Options = LatencyOptions
    options: LatencyOptions

    def __init__(self, options: LatencyOptions) -> None:
        super().__init__(options)
        self.path = options.locate()
        self.table = read(self.path, Table)
        self._net: Supernet | None = None
        self._ms: dict[Any, float] = {}

    @property
    def tables(self) -> Sequence[Path]:
        return (self.path,)

    @property
    def identity(self) -> dict[str, Any]:
        """With the contents of the table, wherever it lies."""
        contents = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"name": self.options.name, "label": self.label, "unit": self.unit, "sha256": contents}

    def __call__(self, net: Supernet, arch: Arch) -> float:
        """In milliseconds.

        Raises:
            ValueError: the table is of another network, or has no such part.
        """
        if net is not self._net:
            self._take(net)
        return self.table.child(self._part(net, part) for part in net.parts(arch))

    def _take(self, net: Supernet) -> None:
        try:
            self.table.check(net)
        except ValueError as error:
            raise ValueError(f"the table {self.path} does not fit: {error}. Make one: nas latency EXPERIMENT") from None
        self._net, self._ms = net, {}

    def _part(self, net: Supernet, part: Any) -> float:
        if (known := self._ms.get(part)) is not None:
            return known
        try:
            ms = self._ms[part] = self.table.part(net, part)
        except ValueError as error:
            raise ValueError(
                f"the table {self.path} lacks what this network has: {error}. It was made from {self.table.children} "
                "children: make it from more of them, nas latency EXPERIMENT --children N"
            ) from None
        return ms
