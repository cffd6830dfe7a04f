"""A supernet of three linear layers: a step of any recipe takes milliseconds on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic import ElasticLinear
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Soft, Supernet, fp32

WIDTHS = (4, 8, 16)
CLASSES = 5


class Toy(Supernet):
    """Two hidden layers of elastic width. In a mixture of architectures features count by how likely they are there."""

    input_shape = (3, 4, 4)
    mixes_examples = False
    slots: Mapping[str, tuple[str, ...]] = {"first": ("first.width",), "second": ("second.width",)}

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.space = Space([Choice("first.width", WIDTHS), Choice("second.width", WIDTHS)])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            sizes = (48, WIDTHS[-1], WIDTHS[-1], CLASSES)
            self.layers = nn.ModuleList(ElasticLinear(*pair) for pair in zip(sizes, sizes[1:], strict=False))

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        first, second, last = self.layers
        x = F.relu(first(x.flatten(1), int(arch["first.width"])))
        return last(_regularised(F.relu(second(x, int(arch["second.width"]))), how))

    def forward_soft(self, x: Tensor, soft: Soft, how: Pass) -> Tensor:
        first, second, last = self.layers
        x = F.relu(first(x.flatten(1))) * _shares(soft.probabilities["first"])
        return last(_regularised(F.relu(second(x)) * _shares(soft.probabilities["second"]), how))

    def expected_bitops(self, soft: Soft) -> Tensor:
        first, second = (table @ torch.tensor(WIDTHS, dtype=table.dtype) for table in soft.probabilities.values())
        return 1024 * (48 * first + first * second + CLASSES * second)

    def parts(self, arch: Arch) -> Iterable[tuple[int, int]]:
        return [(int(arch["first.width"]), int(arch["second.width"]))]

    def part_cost(self, part: tuple[int, int]) -> PartCost:
        first, second = part
        macs = 48 * first + first * second + CLASSES * second
        return fp32(macs, macs + first + second + CLASSES)


def _shares(table: Tensor) -> Tensor:
    """How likely each feature is there, ``(largest width,)``, of the probabilities of the widths."""
    return torch.stack([(torch.arange(WIDTHS[-1]) < width).to(table) for width in WIDTHS], 1) @ table


def _regularised(x: Tensor, how: Pass) -> Tensor:
    """Dropout, and noise where quantizers would be, from the pass's generator."""
    if how.dropout:
        x = x * torch.empty_like(x).bernoulli_(1 - how.dropout, generator=how.generator) / (1 - how.dropout)
    if how.quant == "noise":
        x = x + 0.01 * torch.empty_like(x).uniform_(-1, 1, generator=how.generator)
    return x
