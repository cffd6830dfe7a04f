"""A cost of your own: the energy of one inference, from a table of what each operation takes.

In this folder:

    nas check own_cost:Energy
    nas run bignas-digits --set 'search.costs=[{name: "own_cost:Energy"}]' --set search.cost=energy

A cost is a pure function of the architecture and of files whose contents are known, so that a search can ask it for
thousands of networks before it judges one. A latency is measured once, written into such a table, and read from
there. With ``--set 'search.constraints={energy: {max: 20}}'`` it is what a child may take.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveInt

from nas.space import Arch
from nas.supernet import Cost, CostOptions, Supernet

TABLE = Path(__file__).with_name("own_cost.json")


class EnergyOptions(CostOptions):
    """Keys of this cost's entry in ``search.costs``, beside its name."""

    weight_reads: PositiveInt = Field(default=1, description="how often a weight is read from DRAM for one input")


class Energy(Cost):
    """Multiply-adds and the weights' way from DRAM, by the figures of a table."""

    name, label, unit = "energy", "energy", "uJ"
    Options = EnergyOptions
    options: EnergyOptions

    def __init__(self, options: EnergyOptions) -> None:
        super().__init__(options)
        self.table = json.loads(TABLE.read_text())

    @property
    def tables(self) -> Sequence[Path]:
        """Another table makes another search."""
        return (TABLE,)

    def __call__(self, net: Supernet, arch: Arch) -> float:
        """In microjoules; `net.cost` has what the network counts: ``macs``, ``params``, ``bitops``, ``bytes``."""
        counted = net.cost(arch)
        reads = counted["bytes"] * self.options.weight_reads
        return float(self.table["mac"] * counted["macs"] + self.table["dram_byte"] * reads) / 1e6
