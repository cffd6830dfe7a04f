"""QuantNAS: sizes and costs, and children equal to the supernet for every operation and bit width."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.children.evaluate import fit_steps, recalibrate
from nas.quantization.learned import QuantConv2d
from nas.supernet import Pass, inherit
from nas.testing.space import assert_equal, ready
from searchspaces.quantnas_child import OPERATIONS, QuantNASChild
from searchspaces.quantnas_space import NAMES
from tests.searchspaces.enlarging import basic, pixels, supernet

G = 1e9


def test_the_basic_space_has_the_published_size_and_costs() -> None:
    """Spec: 19,660,800 architectures; 0.987 to 24.71 GBitOPs for 32 x 32 pixels, x4, by the authors' accounting."""
    net = supernet("basic", input_bits="slot")
    assert net.space.cardinality == 19_660_800
    cheapest = basic(net, 4, head="conv3g3", body="fact3", skip="conv1", upsample="conv3g3", tail="conv1")
    dearest = basic(net, 8, head="conv5", body="conv5", skip="conv5", upsample="conv5", tail="conv5")
    assert (cheapest, dearest) == (net.space.smallest(), net.space.largest())
    assert net.cost(cheapest)["bitops"] / G == pytest.approx(0.987, abs=0.0005)
    assert net.cost(dearest)["bitops"] / G == pytest.approx(24.71, abs=0.005)


@pytest.mark.parametrize(
    ("slot", "operation", "mmacs"),
    [
        ("body1", "conv3", 11.94),
        ("body2", "conv5", 33.18),
        ("body1", "fact3", 7.96),
        ("body2", "fact5", 13.27),
        ("tail1", "conv1", 0.15),
        ("tail1", "conv3", 1.33),
        ("tail2", "conv5", 3.69),
        ("tail2", "conv3g3", 0.44),
        ("tail1", "conv5g3", 1.23),
    ],
)
def test_operations_cost_what_the_table_says(slot: str, operation: str, mmacs: float) -> None:
    """Millions of multiply-accumulates of one cell; the three cells share the choice of a body."""
    net = supernet("basic")
    cost = net.part_cost((slot, NAMES.index(operation), 8))
    copies = 3 if slot.startswith("body") else 1
    assert cost.macs / copies / 1e6 == pytest.approx(mmacs, abs=0.006)
    assert cost.bitops == 64 * cost.macs


def test_the_rfdn_space_has_the_published_size_and_costs() -> None:
    """Spec: 3.0e37 (2.8e28 operations); searched part 0.40 to 196 GBitOPs; 3.6 more are fixed; an RFDN has 334 M
    multiply-accumulates."""
    net = supernet("rfdn", input_bits="slot")
    assert net.space.cardinality == 18**29 * 12 and supernet("rfdn", bits=[8]).space.cardinality == 9**29 * 6
    fixed = net.part_cost((None,)).bitops / G
    assert fixed == pytest.approx(3.6, abs=0.05)
    assert net.cost(net.space.smallest())["bitops"] / G - fixed == pytest.approx(0.40, abs=0.005)
    assert net.cost(net.space.largest())["bitops"] / G - fixed == pytest.approx(196, abs=0.5)
    for bits, gbitops in ((8, 21.4), (4, 5.3)):
        operations = {"*body*.op": "conv3", "*skip*.op": "conv1", "upsample.op": "conv3", "tail.op": "conv3"}
        rfdn = supernet("rfdn", input_bits="slot", settled={**operations, "*.bits": bits})
        cost = rfdn.cost(rfdn.space.smallest())
        assert cost["bitops"] / G - fixed == pytest.approx(gbitops, abs=0.06)
        assert (cost["macs"] - rfdn.part_cost((None,)).macs) / 1e6 == pytest.approx(334, abs=0.5)


@pytest.mark.parametrize("size", ["basic", "rfdn"])
def test_the_image_counts_with_its_8_bits_unless_told_otherwise(size: str) -> None:
    """Only the convolutions that see the image are counted otherwise: at 4 bits 4 x 8 in place of 4 x 4, at 8 bits
    no difference."""
    net, authors = supernet(size), supernet(size, input_bits="slot")
    seen = {"basic": ["head1"], "rfdn": ["cell1.body1", "cell1.skip1"]}[size]
    for slot, (op, _) in net.slots.items():
        code = net.space.choices[op].values[0]
        ours, theirs = (n.part_cost((slot, code, 4)).bitops for n in (net, authors))
        assert ours == theirs * (2 if slot in seen else 1), slot
        assert net.part_cost((slot, code, 8)).bitops == authors.part_cost((slot, code, 8)).bitops
    growth = NAMES.index("growth3")
    if size == "rfdn":  # of a pair only the first convolution sees it
        assert net.part_cost((seen[0], growth, 4)).bitops == 1.5 * authors.part_cost((seen[0], growth, 4)).bitops


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_bytes_are_those_of_weights_at_their_bits(bits: int) -> None:
    """Each convolution's in whole bytes; steps and ADQ's parameters as they are in memory."""
    net = supernet("basic-c12", bits=[4, 8, 32])
    arch = basic(net, bits, head="conv3", body="conv3", skip="conv3", upsample="conv3", tail="conv3")
    convs = [module.weight.numel() for module in net.extract(arch).modules() if isinstance(module, QuantConv2d)]
    cost = net.cost(arch)
    assert cost["bytes"] == sum(math.ceil(n * bits / 8) for n in convs) + 4 * (cost["params"] - sum(convs))


@pytest.mark.parametrize("size", ["basic-c12", "rfdn-c12"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_scale_enlarges(size: str, scale: int) -> None:
    net = supernet(size, scale=scale)
    assert net(pixels(), net.space.largest()).shape == (2, 3, 16 * scale, 16 * scale)
    groups = {OPERATIONS[NAMES[int(code)]].groups for code in net.space.choices["upsample.op"].values}
    assert (2 in groups) is (size == "rfdn-c12" and scale != 3), "27 channels have no two groups"


@pytest.mark.parametrize(
    ("size", "options", "told"),
    [
        ("basic", {"scale": 5}, "allowed: 2, 3, 4"),
        ("basic", {"bits": [4, 5]}, r"allowed: some of \[2, 4, 8, 16, 32\]"),
        ("basic", {"input_bits": "8"}, "slot"),
        ("basic", {"noise": "gaussian"}, "clean"),
        ("basic", {"shared": "maybe"}, "allowed: true, false"),
        ("basic", {"channels": 1}, "3 channels"),
        ("rfdn", {"image": 12}, "15"),
        ("basic", {"settled": {"haed1.op": 0}}, "head1.op"),
        ("basic", {"settled": {"body1.op": "conv3g3"}}, "fact3, conv3, fact5, conv5"),
        ("basic", {"settled": {"body1.bits": 2}}, "4, 8"),
    ],
)
def test_mistakes_are_told(size: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        supernet(size, **options)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("basic-c12", {}),
        ("basic-c12", {"adq": False, "input_bits": "slot"}),
        ("rfdn-c12", {}),
        ("rfdn-c12", {"adq": False}),
    ],
)
def test_a_child_is_the_supernet_for_every_operation_and_bit_width(size: str, options: dict[str, Any]) -> None:
    """Each slot goes through all that it may hold, the others beside it through theirs; quantizers off and on, ADQ
    on and off."""
    net, x = ready(supernet(size, bits=[2, 4, 8, 16, 32], **options)), pixels()
    places = {
        name: [(op, b) for op in net.space.choices[ops].values for b in net.space.choices[bits].values]
        for name, (ops, bits) in net.slots.items()
    }
    seen = set()
    for i in range(max(map(len, places.values()))):
        picked = {}
        for shift, (name, pairs) in enumerate(places.items()):
            pair = pairs[(i + 7 * shift) % len(pairs)]
            seen.add((name, pair))
            picked |= dict(zip(net.slots[name], pair, strict=True))
        arch = net.space.arch(picked)
        child = net.extract(arch).train()
        assert isinstance(child, QuantNASChild)
        with torch.no_grad():
            assert_equal(child(x), net(x, arch, Pass(quant="real")), f"{arch}, real")
            assert_equal(child.quantize(False)(x), net(x, arch), f"{arch}, off")
    assert len(seen) == sum(map(len, places.values()))


def test_a_child_whose_weights_have_4_bits_has_16_of_them_a_channel() -> None:
    net = ready(supernet("basic-c12"))
    child = net.extract(net.space.smallest()).train()
    seen = []

    def look(module: QuantConv2d, given: tuple[Tensor, ...]) -> None:
        x = F.relu(given[0]) if module.relu else given[0]
        inputs = x if module.input_bits == 0 else module._quantized_input(x, [(module.input_bits or 4, 1.0)])
        seen.append((len(module._quantized_weight(module.weight, [(4, 1.0)])[0].unique()), len(inputs.unique())))

    convs = [module for module in child.modules() if isinstance(module, QuantConv2d)]
    for conv in convs:
        conv.register_forward_pre_hook(look)  # type: ignore[arg-type]
    child(pixels(side=24))
    assert len(seen) == len(convs) and max(weights for weights, _ in seen) <= 16
    assert max(inputs for _, inputs in seen[1:]) <= 16 < seen[0][1], "the image keeps its 8 bits"


@pytest.mark.parametrize("quant", ["off", "real", "noise"])
def test_an_image_is_exact_on_its_own_grid(quant: str) -> None:
    """A convolution that sees the image gets the very pixels, less a mean that lies on the grid; and no noise."""
    net = supernet("basic-c12", mean=[0.4488, 0.4371, 0.404])
    x, seen = pixels(), []
    arch = net.space.smallest()
    hook = net.body.get_submodule("head1.conv3g3.0").register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    net(x, arch, Pass(quant=quant))
    hook.remove()
    levels = seen[0] * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    mean = torch.tensor([114.0, 111.0, 103.0]).view(-1, 1, 1)
    assert torch.equal(levels.round() + mean, (x * 255).round())
    conv = net.body.get_submodule("head1.conv3g3.0")
    assert isinstance(conv, QuantConv2d) and conv.input_bits == 0 and not len(conv.input_step)


def test_a_child_without_rounding_gives_the_pixels_to_the_last_bit() -> None:
    net = ready(supernet("basic-c12", bits=[32]))
    child = net.extract(net.space.largest()).train()
    assert_equal(child(pixels()), child.quantize(False)(pixels()), "32 bits")


def test_calibration_fits_the_steps_and_what_was_fitted_and_trained_is_inherited() -> None:
    """supernet -> calibrated child -> a network to finetune -> its child, which is not fitted again."""
    net = ready(supernet("basic-c12"))
    arch = net.space.sample(np.random.default_rng(0))
    batches = [(pixels(4, 24), None)] * 2
    child = net.extract(arch)
    with torch.no_grad():
        recalibrate(child.quantize(False), batches)
        wanted = child(batches[0][0])
        fresh = (net.extract(arch).train()(batches[0][0]) - wanted).square().mean()
        child = net.extract(arch)
        recalibrate(child, batches)
        assert (child(batches[0][0]) - wanted).square().mean() < 0.5 * fresh
    fixed = net.fix(arch)
    inherit(fixed, child)
    for parameter in fixed.parameters():
        parameter.data.add_(0.01)
    trained, again = fixed.state_dict(), fixed.extract(fixed.space.smallest())
    recalibrate(again, batches)
    kept = again.state_dict()
    for name in trained:
        assert torch.equal(kept[name], trained[name]), name
    fresh_one = net.fix(arch, fresh=True)
    fit_steps(fresh_one, batches)
    assert all(flag == 1 for name, flag in fresh_one.state_dict().items() if name.endswith("fitted"))
    assert {name for name in kept if name.endswith("fitted")} and all(
        kept[name] == 1 for name in kept if name.endswith("fitted")
    )


def test_recalibration_is_of_the_quantized_network() -> None:
    """ADQ's statistics are those of quantized features: with them a child in evaluation equals itself on that one
    batch."""
    net = ready(supernet("basic-c12"))
    child, x = net.extract(net.space.smallest()), pixels(8, 24)
    recalibrate(child, [(x, None)])
    norm = child.get_submodule("body.cells.0.residual.norm")
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    child(x)
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-3)  # type: ignore[arg-type]


def test_what_is_settled_leaves_the_other_half_to_search() -> None:
    """Operations only; bits only, for a given network."""
    operations = supernet("basic-c12", settled={"*.bits": 8})
    assert operations.space.cardinality == 76_800
    cost = operations.cost(operations.space.largest())
    assert cost["bitops"] == 64 * cost["macs"]
    whole = supernet("basic-c12")
    given = whole.space.sample(np.random.default_rng(3))
    bits = supernet("basic-c12", settled={name: value for name, value in given.items() if name.endswith(".op")})
    assert bits.space.cardinality == 2**8
    assert bits.space.arch(given) == given and bits.params < whole.params
    inherit(bits, whole)
    assert_equal(bits(pixels(), given), whole(pixels(), given), "the same weights")


@pytest.mark.parametrize("quant", ["off", "noise", "real"])
def test_a_slots_convolutions_are_windows_of_one_kernel(quant: str) -> None:
    """Smaller ones are its centre, groups the blocks on its diagonal; every one of them trains it, factorised ones
    have their own."""
    net = ready(supernet("basic-c12"))
    given = basic(net, 8, head="conv5", body="conv5", skip="conv5", upsample="conv5", tail="conv5")
    whole = net.extract(given).get_submodule("body.head2.conv5.0").weight
    for name in ("conv3", "conv5g3", "conv3g3"):
        arch = net.space.named({**given, "head2.op": name})  # type: ignore[attr-defined]
        weight = net.extract(arch).get_submodule(f"body.head2.{name}.0").weight
        side = weight.shape[-1]
        centre = whole[:, :, 1:4, 1:4] if side == 3 else whole
        for out in range(12):
            first = out // 4 * 4 if "g" in name else 0  # of 12 channels in 3 groups
            assert torch.equal(weight[out], centre[out, first : first + weight.shape[1]]), (name, out)
        net.zero_grad()
        net(pixels(), arch, Pass(quant=quant)).sum().backward()
        shared = net.get_submodule("body.head2").whole.grad
        assert isinstance(shared, Tensor) and 0 < shared.count_nonzero() <= weight.numel(), name
        assert quant == "real" or shared.count_nonzero() == weight.numel(), f"{name}: real quantizers clip some"
    other = net.space.named({**given, "body1.op": "fact5"})  # type: ignore[attr-defined]
    net.zero_grad()
    net(pixels(), other, Pass(quant=quant)).sum().backward()
    slot = net.get_submodule("body.cells.0.body1")
    assert slot.whole.grad is None and slot.get_submodule("fact5.0").weight.grad is not None


def test_operations_have_weights_of_their_own_as_in_the_paper() -> None:
    net = supernet("basic-c12", shared=False)
    weights = [net.get_submodule(f"body.head1.{name}.0").weight for name in ("conv3", "conv5")]
    assert not torch.equal(weights[0], weights[1][:, :, 1:4, 1:4])
    assert net.params > supernet("basic-c12").params
    assert not any("whole" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize(
    ("size", "starts"),
    [
        ("basic-c12", {"head1": 0.5, "head2": 0.05, "upsample": 0.05, "tail1": 0.5, "cells.0.body2": 0.05}),
        ("rfdn-c12", {"cells.0.skips.1": 1, "cells.0.bodies.3": 1, "upsample": 0.1, "tail": 1, "fuse": 1}),
    ],
)
def test_fresh_weights_are_as_large_as_the_layout_starts(size: str, starts: dict[str, float]) -> None:
    """Of torch's own range, by the square root of the inputs; quantizers span them."""
    net = supernet(size)
    for name, start in starts.items():
        part = net.body.get_submodule(name)
        weight = (part.weight if isinstance(part, QuantConv2d) else part.whole).detach()
        edge = start * weight[0].numel() ** -0.5
        assert 0.95 * edge < weight.abs().max() <= edge, name
        for conv in [module for module in part.modules() if isinstance(module, QuantConv2d) and module.weight is None]:
            assert conv.weight_step["8"].exp().max().item() * 127.5 == pytest.approx(edge, rel=1e-5), name
