"""Which random networks are worth a step: the best or the worst of several (Wang et al., "AttentiveNAS",
arXiv:2011.09011).

A network is judged by its loss on the labels of the batch at hand, which the authors found better than a predictor of
accuracy that was fitted beforehand (facebookresearch/AttentiveNAS, issue 8), and which needs none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nas.space import Arch, Space
from nas.supernet import Supernet

POOL = 100  # networks drawn for those of one cost; AttentiveNAS takes whatever comes after as many misses


def alike(net: Supernet, space: Space, count: int, rng: np.random.Generator) -> list[Arch]:
    """`count` random networks that cost about the same: one drawn uniformly, then the nearest of `POOL` others.

    Costs are as frequent as among random networks. (The paper draws until a network falls into the same 25 MMACs, from
    frequencies that were counted beforehand; BitOPs are MACs in families that do not quantize.)
    """
    first = space.sample(rng)
    cost = net.cost(first)["bitops"]
    pool = [space.sample(rng) for _ in range(max(POOL, count))]
    return [first, *sorted(pool, key=lambda arch: abs(net.cost(arch)["bitops"] - cost))[: count - 1]]


def taken(archs: Sequence[Arch], losses: Tensor, sampling: str) -> Arch:
    """``"best_up"``: the one of the smallest loss, ``"worst_up"``: of the largest; the first of equal ones."""
    place = losses.argmin() if sampling == "best_up" else losses.argmax()
    return archs[int(place)]
