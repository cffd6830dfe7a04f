"""QuantNAS's first layout with channels and cells to choose: what a smaller network is a window of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.build import load_recipe, load_supernet
from nas.costs.latencies import kind_of
from nas.quantization.learned import QuantConv2d
from nas.recipes.differentiable import DifferentiableOptions, architecture, shapes
from nas.space import Arch
from nas.supernet import Pass
from nas.testing.space import CHECKS, Check, assert_equal, images, ready
from searchspaces.quantnas import QuantNAS
from searchspaces.quantnas_child import QuantNASChild
from searchspaces.quantnas_space import Table
from tests.recipes.toys import Enlarging

WIDE = Table("basic", channels=(6, 12, 18), cells=(1, 2, 3), scale=2, bits=(2, 4, 8))


def wide(table: Table = WIDE, **options: Any) -> QuantNAS:
    torch.manual_seed(0)
    return ready(QuantNAS(table, image=12, **options))  # type: ignore[return-value]


def pixels(rows: int = 2, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (rows, 3, side, side), generator=torch.Generator().manual_seed(1)) / 255


def of(net: QuantNAS, channels: int, cells: int, op: dict[str, str], bits: int = 8) -> Arch:
    """An architecture of that size, conv3 wherever `op` does not say otherwise."""
    choices = {name: op.get(name[:-3], "conv3") if name.endswith(".op") else bits for name in net.space.choices}
    return net.space.named({**choices, "channels": channels, "cells": cells})


# --- the space


def test_channels_and_cells_multiply_the_space_and_one_value_of_each_leaves_it_as_it_was() -> None:
    """Of 4, 4, 4, 4, 3, 4, 5 and 5 operations with three bit-widths each."""
    net = load_supernet("quantnas", "basic-wide")
    assert net.space.cardinality == 9 * 76_800 * 3**8
    assert list(net.space.choices)[:2] == ["channels", "cells"]
    assert dict(net.space.smallest())["channels"] == 12 and dict(net.space.largest())["cells"] == 3
    one, listed = (QuantNAS(Table("basic", c, n, 2)) for c, n in ((12, 1), ((12,), (1,))))
    assert one.space.choices == listed.space.choices and {"channels", "cells"}.isdisjoint(one.space.choices)
    assert one.state_dict().keys() == listed.state_dict().keys()


@pytest.mark.parametrize(("table", "channels", "cells"), [("basic-c12", 12, 1), ("basic-c18", 18, 2)])
def test_a_settled_size_is_the_network_of_that_size(table: str, channels: int, cells: int) -> None:
    """The same parameters under the same names, outputs under noise and without, costs and child."""
    same: QuantNAS = load_supernet("quantnas", table)  # type: ignore[assignment]
    settled = QuantNAS(
        Table("basic", channels=(6, 12, 18), cells=(1, 2), scale=2), settled={"channels": channels, "cells": cells}
    )
    same.load_state_dict(ready(settled).state_dict())
    rng = np.random.default_rng(0)
    for _ in range(3):
        arch = same.space.sample(rng)
        sized = settled.space.arch({**arch, "channels": channels, "cells": cells})
        assert settled.cost(sized) == same.cost(arch)
        assert settled.child_config(sized) == same.child_config(arch)
        for quant in ("off", "noise", "real"):
            outputs = [
                net(pixels(), which, Pass(quant=quant, generator=torch.Generator().manual_seed(0)))
                for net, which in ((settled, sized), (same, arch))
            ]
            assert torch.equal(*outputs), quant


@pytest.mark.parametrize(("table", "channels", "cells"), [("basic-c12", 12, 1), ("basic-c18", 18, 2)])
def test_a_smaller_network_costs_what_the_space_of_that_size_counts(table: str, channels: int, cells: int) -> None:
    net, same = load_supernet("quantnas", "basic-wide"), load_supernet("quantnas", table)
    arch = same.space.sample(np.random.default_rng(1))
    assert net.cost(net.space.arch({**arch, "channels": channels, "cells": cells})) == same.cost(arch)


def test_parts_tell_the_size_where_it_is_chosen_and_else_are_as_tables_of_latencies_have_them() -> None:
    for size, more in (("basic-c12", ()), ("basic-wide", (18, 2))):
        net = load_supernet("quantnas", size)
        arch = net.space.arch({**net.space.smallest(), **dict(zip(("channels", "cells"), more, strict=False))})
        unsearched, head, *_ = map(kind_of, net.parts(arch))
        assert unsearched == ("[null]", more)
        assert head == ('["head1"]', (arch["head1.op"], arch["head1.bits"], *more))


def test_operations_stand_in_the_same_order_at_every_width() -> None:
    """So that the first value of each choice is the smallest network's at any size."""
    for channels in WIDE.widths:
        for shape, largest in zip(WIDE.shapes_at(channels, 1), WIDE.shapes, strict=True):
            assert WIDE.operations(shape) == WIDE.operations(largest), shape.name


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"layout": "rfdn", "channels": (12, 24), "cells": 1}, "fuses all of its cells"),
        ({"layout": "rfdn", "channels": 12, "cells": (1, 2)}, "take the layout basic"),
        ({"layout": "basic", "channels": (12, 16), "cells": 1}, "multiple of 3"),
        ({"layout": "basic", "channels": (0, 12), "cells": 1}, "multiple of 3"),
        ({"layout": "basic", "channels": 12, "cells": (0, 1)}, "1 or more"),
    ],
)
def test_tables_that_are_refused(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Table(scale=2, **table)


def test_a_size_that_the_space_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="settled 'channels' is 15; allowed: 6, 12, 18"):
        wide(settled={"channels": 15})


# --- the contract, beyond what every size of `SIZES` is held to


@pytest.mark.parametrize(
    "options",
    [{}, {"shared": False}, {"adq": False}, {"scale": 4}, {"settled": {"channels": 12, "cells": 2}}],
    ids=["plain", "own-kernels", "no-adq", "x4", "settled"],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Check, options: dict[str, Any]) -> None:
    """Settled sizes are where a mixture has fewer channels than its table allows.

    With images for which no value lies so near 0 that another order of sums gives it another sign: noise begins there.
    """
    net = wide(**options)
    check(net, images(net, seed=7))


@pytest.mark.parametrize("shared", [True, False])
def test_a_child_of_any_size_is_the_supernet_for_every_operation_and_bit_width(shared: bool) -> None:
    """Each size goes through all that each slot may hold; quantizers off and on."""
    net, seen = wide(shared=shared), set()
    for turn in range(15):
        picked: dict[str, Any] = {"channels": WIDE.widths[turn % 3], "cells": WIDE.depths[turn // 3 % 3]}
        for shift, (op, bits) in enumerate(net.slots.values()):
            operations, widths = net.space.choices[op].values, net.space.choices[bits].values
            picked |= {op: operations[(turn + shift) % len(operations)], bits: widths[(turn // 2 + shift) % 3]}
            seen.add((op, picked[op]))
        arch = net.space.arch(picked)
        child = net.extract(arch).train()
        assert isinstance(child, QuantNASChild)
        assert (child.config["channels"], child.config["cells"]) == (picked["channels"], picked["cells"])
        with torch.no_grad():
            assert_equal(child(pixels()), net(pixels(), arch, Pass(quant="real")), f"{arch}, real")
            assert_equal(child.quantize(False)(pixels()), net(pixels(), arch), f"{arch}, off")
    assert len(seen) == sum(len(net.space.choices[op].values) for op, _ in net.slots.values())


# --- windows


@pytest.mark.parametrize("channels", [6, 12, 18])
@pytest.mark.parametrize(
    ("slot", "rows", "columns"), [("head1", "c", 3), ("head2", "c", "c"), ("upsample", 12, "c"), ("tail1", 3, 3)]
)
def test_groups_are_blocks_of_the_diagonal_of_the_channels_there_are(
    channels: int, slot: str, rows: Any, columns: Any
) -> None:
    """Output o of a grouped convolution sees what output o of a whole one of that width sees, in its own group alone;
    the enlargement has all of its rows at every width."""
    net = wide()
    rows, columns = (channels if side == "c" else side for side in (rows, columns))
    whole = net.get_submodule(f"body.{slot}").whole
    assert isinstance(whole, Tensor)
    for name, side in (("conv3g3", 3), ("conv5g3", 5)):
        arch = of(net, channels, 1, {slot: name})
        weight = net.extract(arch).get_submodule(f"body.{slot}.{name}.0").weight
        assert isinstance(weight, Tensor) and weight.shape == (rows, columns // 3, side, side)
        edge = (5 - side) // 2
        for out in range(rows):
            first = out // (rows // 3) * (columns // 3)
            block = whole[out, first : first + columns // 3, edge : edge + side, edge : edge + side]
            assert torch.equal(weight[out], block), (name, out)


@pytest.mark.parametrize("shared", [True, False])
def test_a_narrower_network_has_the_first_channels_and_their_steps(shared: bool) -> None:
    net = wide(shared=shared)
    operations = {"body1": "fact5", "body2": "fact3"}
    largest, child = (net.extract(of(net, c, n, operations, bits=2)) for c, n in ((18, 3), (12, 2)))
    whole, narrow = largest.state_dict(), child.state_dict()
    assert narrow.keys() < whole.keys() and not any(".cells.2." in name for name in narrow)
    for name, tensor in narrow.items():
        assert torch.equal(tensor, whole[name][tuple(slice(side) for side in tensor.shape)]), name
    factorised = child.get_submodule("body.cells.1.body1.fact5")
    shapes_of = [tuple(parameter.shape) for name, parameter in factorised.named_parameters() if name.endswith("weight")]
    assert shapes_of == [(12, 12, 5, 1), (12, 12, 1, 5)]
    steps = [layer.weight_step["2"] for layer in child.modules() if isinstance(layer, QuantConv2d)]
    assert steps and {len(step) for step in steps} == {12, 3}


def test_an_image_is_repeated_for_the_channels_there_are() -> None:
    """With a head and cells that add nothing, the enlargement sees the image, colour after colour, and the skip around
    the cells once more."""
    net, seen = wide(adq=False), []
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(("body.head", "body.cells")):
                parameter.zero_()
    net.get_submodule("body.upsample").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for channels in WIDE.widths:
        net(pixels(), of(net, channels, 2, {}))
        assert_equal(seen[-1], 2 * (pixels() - net.mean).repeat(1, channels // 3, 1, 1), f"{channels} channels")


def test_fewer_cells_are_the_first_ones() -> None:
    net = wide()
    arch, x = of(net, 12, 2, {}), pixels()
    before = net(x, arch)
    with torch.no_grad():
        for parameter in net.get_submodule("body.cells.2").parameters():
            parameter.add_(1)
    assert torch.equal(net(x, arch), before)
    with torch.no_grad():
        for parameter in net.get_submodule("body.cells.1").parameters():
            parameter.add_(1)
    assert not torch.equal(net(x, arch), before) and net(x, of(net, 12, 1, {})).isfinite().all()


def test_a_fixed_network_trains_on_from_the_weights_of_its_size() -> None:
    """Grouped kernels too, which lie elsewhere than those of the largest; fixed again it is the same."""
    net = wide()
    arch = of(net, 12, 2, {"head2": "conv5g3", "upsample": "conv3g3"}, bits=4)
    fixed = net.fix(arch)
    assert fixed.params == sum(parameter.numel() for parameter in net.extract(arch).parameters()) < net.params
    again = fixed.fix(fixed.space.smallest())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in fixed.state_dict().items())


# --- the differentiable search


def test_a_mixture_has_one_size_which_must_be_settled() -> None:
    recipe = load_recipe(Enlarging(), DifferentiableOptions(name="differentiable", epochs=1.0, batch=2))
    with pytest.raises(ValueError, match="channels, cells cannot be mixed; settle each"):
        recipe.optimizer(wide())
    with pytest.raises(ValueError, match="differentiable: cells cannot"):
        recipe.optimizer(wide(settled={"channels": 12}))
    settled = wide(settled={"channels": 12, "cells": 2})
    recipe.optimizer(settled)
    found = architecture(settled, torch.zeros(sum(math.prod(shape) for shape in shapes(settled).values())))
    assert (found["channels"], found["cells"]) == (12, 2)
    assert found == settled.space.smallest(), "of equal logits the first"
