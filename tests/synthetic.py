"""A search problem with known answers that costs nothing to evaluate: shaped like the OFA-MobileNetV3 space, 3^45
mappings.

20 blocks in 5 stages of 4, a kernel and an expansion for each block, a depth for each stage.
"""

from __future__ import annotations

import numpy as np

from nas.search.core import Objective
from nas.search.journal import Candidate, Record
from nas.space import Arch, Choice, Space

_draws = np.random.RandomState(7)
KERNEL_GAIN = _draws.uniform(0.2, 1, 20)
EXPAND_GAIN = _draws.uniform(0.2, 1, 20)
WIDTH = _draws.uniform(0.5, 2, 20)

OBJECTIVE = Objective("accuracy", "work", "higher")
REFERENCE = (1.0, 1.05)
SCALE = 10**9  # costs are whole numbers: one unit of the formula is this many


def _choices() -> list[Choice]:
    choices = []
    for stage in range(5):
        choices.append(Choice(f"stage{stage}.depth", (2, 3, 4)))
        for block in range(4 * stage, 4 * stage + 4):
            deep = tuple(depth for depth in (2, 3, 4) if block % 4 < depth)
            needs = (f"stage{stage}.depth", deep)
            choices.append(Choice(f"block{block}.kernel", (3, 5, 7), needs))
            choices.append(Choice(f"block{block}.expand", (3, 4, 6), needs))
    return choices


SPACE = Space(_choices())


def _present(arch: Arch) -> list[tuple[int, int | float, int | float]]:
    """Number, kernel and expansion of every block that the network has."""
    return [(b, arch[f"block{b}.kernel"], arch[f"block{b}.expand"]) for b in range(20) if f"block{b}.kernel" in arch]


def exact_cost(arch: Arch) -> float:
    """The cost of the formula, not rounded."""
    return float(sum(expand * WIDTH[b] * (1 + kernel**2 / 60) for b, kernel, expand in _present(arch)))


def cost(arch: Arch) -> dict[str, int]:
    """The cost as a whole number of 1 / `SCALE`."""
    return {"work": round(SCALE * exact_cost(arch))}


def accuracy(arch: Arch) -> float:
    """Accuracy in percent."""
    gain = 0.0
    for b, kernel, expand in _present(arch):
        gain += KERNEL_GAIN[b] * (1 - np.exp(-kernel / 3)) + EXPAND_GAIN[b] * (1 - np.exp(-expand / 2.5))
    return float(100 * (1 - np.exp(-gain / 12)))


def evaluate(candidate: Candidate) -> Record:
    """The record of a candidate; always the same."""
    return Record(candidate.k, candidate.arch, {"accuracy": accuracy(candidate.arch)}, cost(candidate.arch), 0.0, None)


_MOST = exact_cost(SPACE.largest())


def objectives(arch: Arch) -> tuple[float, float]:
    """Error and cost, each as a share of the most there is: what the hypervolume below `REFERENCE` is measured on."""
    return ((100 - accuracy(arch)) / 100, exact_cost(arch) / _MOST)
