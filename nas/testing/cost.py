"""What every cost keeps, as functions over it and a network.

from nas.testing.cost import CHECKS
for check in CHECKS:
    check(MyCost(MyOptions(name="my_module:MyCost")), my_net)
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable

import numpy as np

from nas.space import Arch
from nas.supernet import Cost, Supernet

ARCHS = 64
COSTS_A_SECOND = 1_000


def architectures(net: Supernet) -> list[Arch]:
    """The smallest, the largest and random ones."""
    rng = np.random.default_rng(1)
    return [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(ARCHS))]


def check_names(cost: Cost, net: Supernet) -> None:
    """A cost has a name of small letters, digits and _, that none of the network's own costs has, and a label for
    people.

    Look at `name` and `label`.
    """
    own = net.cost(net.space.smallest())
    allowed = "small letters, digits and _, beginning with a letter"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cost.name), f"name is {cost.name!r}; allowed: {allowed}"
    assert cost.name not in own, f"name is {cost.name!r}, which the network counts itself; it has {', '.join(own)}"
    assert cost.label, f"label is {cost.label!r}; it is what tables call the cost"


def check_numbers(cost: Cost, net: Supernet) -> None:
    """Every architecture costs one plain, finite number that is not negative.

    Look for numpy's or torch's numbers, which JSON does not know, and for a logarithm or a difference.
    """
    for arch in architectures(net):
        found = cost(net, arch)
        assert type(found) in (int, float), f"{arch} costs {found!r}, a {type(found).__name__}; allowed: int, float"
        assert math.isfinite(found) and found >= 0, f"{arch} costs {found}; allowed: finite numbers from 0"


def check_pure(cost: Cost, net: Supernet) -> None:
    """An architecture costs the same whenever it is asked for, in whatever order, and whatever the weights are.

    Look for a measurement in place of a table, for a memory with too coarse a key, and for a random draw.
    """
    archs = architectures(net)
    first = [cost(net, arch) for arch in archs]
    for arch, before, after in zip(archs, first, reversed([cost(net, arch) for arch in reversed(archs)]), strict=True):
        assert before == after, f"{arch} cost {before} at first, and {after} when asked for in another order"


def check_architectures(cost: Cost, net: Supernet) -> None:
    """The smallest network costs no more than the largest, and not all cost the same.

    Look at what the cost depends on. One that falls with size cannot be made small by a search for small networks.
    """
    least, most = (cost(net, arch) for arch in (net.space.smallest(), net.space.largest()))
    assert least <= most, f"the smallest network costs {least:,.6g}, the largest {most:,.6g}"
    if net.space.cardinality > 1:
        found = {cost(net, arch) for arch in architectures(net)}
        assert len(found) > 1, f"{ARCHS} architectures cost {least:,.6g} each"


def check_identity(cost: Cost, net: Supernet) -> None:
    """`identity` is plain JSON that stays the same: a search is known by it.

    Look at `tables`: every file that the cost reads, so that a changed one is seen.
    """
    form = cost.identity
    assert json.loads(json.dumps(form)) == form, f"identity is {form}, and something else after JSON"
    again = type(cost)(cost.options).identity
    assert again == form, f"identity is {form}, and of another of the same options {again}"


def check_speed(cost: Cost, net: Supernet) -> None:
    """At least `COSTS_A_SECOND`: a search asks for thousands to find one that fits. CPU time, best of several.

    Look for a file that is read at each call; read it once, when the cost is made.
    """
    archs, best = architectures(net), 0.0
    for _ in range(3):
        start = time.process_time()
        for arch in archs:
            cost(net, arch)
        best = max(best, len(archs) / max(time.process_time() - start, 1e-9))
    assert best >= COSTS_A_SECOND, f"{best:,.0f} costs a second; at least {COSTS_A_SECOND:,} are needed"


CHECKS: tuple[Callable[[Cost, Supernet], None], ...] = (
    check_names,
    check_numbers,
    check_pure,
    check_architectures,
    check_identity,
    check_speed,
)
