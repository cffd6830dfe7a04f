"""BigNAS: published networks have their costs, spaces their sizes, and stages the papers' notation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models._utils import _make_divisible

from nas.build import load_supernet
from nas.elastic import ElasticConv2d
from nas.recipes.recipe import decayed
from searchspaces.bignas import SIZES, BigNAS, BigNASSpace, round_channels
from tests.searchspaces.mobile import images, small

# AttentiveNAS's networks (README of facebookresearch/AttentiveNAS); MMACs as recomputed by its own counter.
PUBLISHED = {
    "A0": (
        203.4,
        192,
        (16, 16, 24, 32, 64, 112, 192, 216, 1792),
        (1, 3, 3, 3, 3, 3, 1),
        (3, 3, 3, 3, 3, 3, 3),
        (1, 4, 4, 4, 4, 6, 6),
    ),
    "A1": (
        279.2,
        224,
        (16, 16, 24, 32, 64, 112, 192, 216, 1984),
        (1, 3, 3, 3, 3, 3, 1),
        (3, 3, 3, 5, 3, 5, 3),
        (1, 4, 4, 4, 4, 6, 6),
    ),
    "A2": (
        316.7,
        224,
        (16, 16, 24, 32, 64, 112, 200, 224, 1984),
        (1, 3, 3, 3, 3, 4, 1),
        (3, 3, 3, 3, 3, 5, 3),
        (1, 4, 5, 4, 4, 6, 6),
    ),
    "A4": (
        443.5,
        256,
        (16, 16, 24, 32, 64, 112, 192, 216, 1984),
        (1, 3, 3, 4, 3, 5, 1),
        (3, 3, 3, 5, 3, 5, 3),
        (1, 4, 4, 5, 4, 6, 6),
    ),
}
# Networks, MMACs and thousands of parameters of the smallest and the largest child, to their last digit.
SPACES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "d8": ("1.02e+03", "0.072", "4.4", "0.530", "29.9"),
    "m28": ("3.3e+05", "0.60", "15.8", "13.0", "187"),
    "c16-lite": ("1e+06", "0.57", "56", "6.28", "457"),
    "c32-lite": ("1e+06", "2.0", "56", "25.1", "457"),
    "attentivenas": ("4.4e+11", "203.4", "8950", "1939", "23400"),
    "bignas": ("1.9e+12", "207", "3800", "1843", "10900"),
}
# BigNAS's smallest and largest child at every side: MMACs by another calculator, which is right to 0.6.
SIDES = {192: (207, 666), 224: (281, 905), 256: (366, 1181), 288: (463, 1494), 320: (571, 1843)}
B0 = ((32, 16, 24, 40, 80, 112, 192, 320, 1280), (1, 2, 2, 3, 3, 4, 1), (3, 3, 5, 3, 5, 5, 3), (1, 6, 6, 6, 6, 6, 6))


def agrees(value: float, written: str) -> bool:
    """Whether a number is what was written, to its last digit: within half a unit of it, and a hair for how it was
    rounded."""
    mantissa, _, exponent = written.partition("e")
    digits = len(mantissa.partition(".")[2])
    whole = written.isdigit() and written.endswith("0")  # 8950 stands for 8.95 M
    unit = 10.0 ** (int(exponent or 0) - digits) * (10 ** (len(written) - len(written.rstrip("0"))) if whole else 1)
    return abs(value - float(written)) <= 0.51 * unit


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_cost(attentive: BigNAS, name: str) -> None:
    macs, resolution, width, depth, kernel, expand = PUBLISHED[name]
    space = attentive.space
    assert isinstance(space, BigNASSpace)
    arch = space.from_stages(resolution=resolution, width=width, depth=depth, kernel=kernel, expand=expand)
    assert agrees(attentive.cost(arch)["macs"] / 1e6, str(macs))
    assert (arch == space.smallest()) == (name == "A0")


@pytest.mark.parametrize("size", SPACES)
def test_spaces_have_their_sizes(size: str) -> None:
    networks, *figures = SPACES[size]
    with torch.device("meta"):
        net = load_supernet("bignas", size)
    assert agrees(net.space.cardinality, networks)
    ends = [net.cost(arch) for arch in (net.space.smallest(), net.space.largest())]
    found = [figure for cost in ends for figure in (cost["macs"] / 1e6, cost["params"] / 1e3)]
    assert [value for value, written in zip(found, figures, strict=True) if not agrees(value, written)] == []


def test_the_space_of_bignas_costs_what_was_computed_elsewhere_at_every_side() -> None:
    with torch.device("meta"):
        net = BigNAS(replace(SIZES["bignas"], resolution=tuple(SIDES)))
    for side, written in SIDES.items():
        ends = (net.space.smallest(), net.space.largest())
        macs = [net.cost(net.space.arch({**arch, "resolution": side}))["macs"] / 1e6 for arch in ends]
        assert macs == pytest.approx(written, abs=0.6), side
    assert [sum(map(len, net._plan(arch)[1])) for arch in ends] == [12, 26]


def test_efficientnet_b0_is_a_network_of_bignas() -> None:
    """385.9 MMACs and 5.32 M parameters, with squeeze-excite a quarter of a block's input, rounded to 8."""
    with torch.device("meta"):
        net = load_supernet("bignas", "bignas")
    assert isinstance(net.space, BigNASSpace)
    cost = net.cost(net.space.from_stages(224, *B0))
    assert agrees(cost["macs"] / 1e6, "385.9") and agrees(cost["params"] / 1e6, "5.32")


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ({"squeeze_input": False}, ("5.5", "19.1")),
        ({"squeeze_input": False, "conv_shortcut": True}, ("5.6", "19.3")),
    ],
)
def test_squeeze_excite_of_the_inner_width_is_a_switch_of_the_table(
    change: dict[str, bool], written: tuple[str, str]
) -> None:
    """Millions of parameters with a quarter of the inner width, as a public re-implementation has it; both were
    computed elsewhere."""
    with torch.device("meta"):
        net = BigNAS(replace(SIZES["bignas"], **change))  # type: ignore[arg-type]
    ends = [net.cost(arch) for arch in (net.space.smallest(), net.space.largest())]
    assert all(map(agrees, [cost["params"] / 1e6 for cost in ends], written))
    if change.get("conv_shortcut"):
        assert all(map(agrees, [cost["macs"] / 1e6 for cost in ends], ("219", "1900")))


def test_once_for_all_has_its_sizes() -> None:
    """(9^2 + 9^3 + 9^4)^5 networks at 25 sides, 41 to 566 MMACs, 226.2 in the network D4-W3-K3, 7.7 M parameters."""
    with torch.device("meta"):
        net = load_supernet("bignas", "ofa")
    space = net.space
    assert isinstance(space, BigNASSpace)
    assert space.cardinality == (9**2 + 9**3 + 9**4) ** 5 * 25
    macs = [net.cost(arch)["macs"] / 1e6 for arch in (space.smallest(), space.largest())]
    assert all(map(agrees, macs, ("41", "566")))
    d4w3k3 = space.from_stages(224, (16, 16, 24, 40, 80, 112, 160, 1280), (1, 4, 4, 4, 4, 4), (3,) * 6, (1, *[3] * 5))
    assert agrees(net.cost(d4w3k3)["macs"] / 1e6, "226.2")
    assert agrees(net.params / 1e6, "7.7")


def test_blocks_have_kernels_of_their_own() -> None:
    """Each block that there is runs its own kernel and expansion; those of dropped ones do not tell networks apart."""
    net = load_supernet("bignas", "ofa")
    assert isinstance(net, BigNAS)
    base = dict(net.space.largest())
    changed = net.space.arch({**base, "stage3.block2.kernel": 3, "stage3.block3.expand": 4})
    blocks = net._plan(changed)[1][2]
    assert [block.kernel for block in blocks] == [7, 3, 7, 7]
    assert [block.mid for block in blocks] == [144, 240, 160, 240]
    shallow = net.space.arch({**base, "stage3.depth": 2})
    assert net.space.arch({**base, "stage3.depth": 2, "stage3.block4.kernel": 3, "stage3.block3.expand": 4}) == shallow
    fixed = net.fix(changed, fresh=True)
    assert isinstance(fixed, BigNAS) and fixed._plan(changed)[1] == net._plan(changed)[1]


def test_activations_are_those_of_the_table() -> None:
    """Once-for-All: ReLU in block 0 and the first two stages, hard swish from then on and at both ends."""
    net = load_supernet("bignas", "ofa")
    child = net.extract(net.space.smallest())
    assert isinstance(net, BigNAS)
    for one in (net, child):
        assert [stage[0].depthwise.act for stage in one.stages] == [*["relu"] * 3, *["hardswish"] * 3]  # type: ignore[union-attr,index]
        assert one.stem.act == one.head.act == "hardswish"  # type: ignore[union-attr]
        assert {block.project.act for stage in one.stages for block in stage} == {None}  # type: ignore[union-attr]


def test_small_kernels_are_transformed_one_after_the_other() -> None:
    """Once-for-All: at first the centre of the largest; then 7 -> 5 by a matrix over 25 taps, 5 -> 3 over 9 of what
    that gave. Extraction computes it, what the largest kernel runs does not change, and no decay touches it."""
    torch.manual_seed(0)
    net = load_supernet("bignas", "ofa")
    conv = net.get_submodule("stages.1.1.depthwise.conv")
    assert isinstance(conv, ElasticConv2d) and conv.weight.shape[2:] == (7, 7)
    for kernel in (3, 5, 7):
        edge = (7 - kernel) // 2
        centre = conv.weight[:8, :, edge : 7 - edge, edge : 7 - edge]
        assert torch.equal(conv.filters(8, 1, kernel), centre), "the identity, to the bit"
    with torch.no_grad():
        for size in (5, 3):
            conv.get_parameter(f"transform{size}").add_(torch.randn(size**4))
    five = conv.weight[:, 0, 1:-1, 1:-1].reshape(-1, 25) @ conv.transform5.view(25, 25).t()
    three = five.view(-1, 5, 5)[:, 1:-1, 1:-1].reshape(-1, 9) @ conv.transform3.view(9, 9).t()
    child = net.extract(net.space.smallest())
    own = child.get_parameter("stages.1.1.depthwise.conv.weight")
    torch.testing.assert_close(own, three.view(-1, 1, 3, 3)[: len(own)])
    assert torch.equal(conv.filters(*conv.weight.shape[:3]), conv.weight)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(conv(x, kernel=5), F.conv2d(x, five[:8].view(-1, 1, 5, 5), padding=2, groups=8))
    decayed_names = {id(p) for p in decayed(net, 0.1)[0]["params"]}
    matrices = {name: p for name, p in net.named_parameters() if ".transform" in name}
    assert len(matrices) == 2 * 20 and not {id(p) for p in matrices.values()} & decayed_names
    with pytest.raises(ValueError, match=r"transformed has \[4, 7\]|transformed has \[7, 4\]"):
        ElasticConv2d(8, 8, 7, transformed=(7, 4, 3))


def test_cardinality_counts_every_network() -> None:
    """The product of the table of AttentiveNAS, by hand, and the 1,024 children of d8 one by one."""
    by_hand = 4 * 2 * 8 * 36 * 48 * 48 * 108 * 48 * 8 * 2
    assert BigNASSpace(SIZES["attentivenas"]).cardinality == by_hand == 440_301_256_704
    space, rng = BigNASSpace(SIZES["d8"]), np.random.default_rng(0)
    assert space.cardinality == 1024 == len({space.sample(rng) for _ in range(20_000)})


def test_random_networks_cost_what_was_computed_elsewhere(attentive: BigNAS) -> None:
    """Uniform draws: mean 734 MMACs, 5 % .. 95 % = 401 .. 1168."""
    rng = np.random.default_rng(0)
    macs = np.array([attentive.cost(attentive.space.sample(rng))["macs"] for _ in range(5_000)]) / 1e6
    assert macs.mean() == pytest.approx(734, rel=0.02)
    assert np.quantile(macs, [0.05, 0.95]) == pytest.approx([401, 1168], rel=0.04)


def test_fp32_costs_have_32_bits(attentive: BigNAS) -> None:
    cost = attentive.cost(attentive.space.smallest())
    assert (cost["bitops"], cost["bytes"]) == (cost["macs"] * 1024, cost["params"] * 4)


def test_channels_round_as_in_mobilenet() -> None:
    """Against torchvision's own rule, wholes and fractions."""
    for channels in (*range(1, 3000), *np.arange(4, 200, 0.3)):
        assert round_channels(float(channels)) == _make_divisible(float(channels), 8)


def test_classes_and_channels_of_the_data_replace_the_table(attentive: BigNAS) -> None:
    net = small(classes=7, channels=3, image=9)
    assert net.input_shape == (3, 9, 9)
    assert net(images(net), net.space.smallest()).shape == (6, 7)
    assert attentive.classifier.out_features == 1000


def test_stages_by_their_tuples() -> None:
    space = BigNASSpace(SIZES["d8"])
    arch = space.from_stages(
        resolution=8, width=(8, 16, 24, 32, 64), depth=(1, 2, 1), kernel=(3, 3, 3), expand=(1, 2, 4)
    )
    assert {name: arch[name] for name in ("stem", "stage1.width", "stage2.width", "stage3.width", "head")} == {
        "stem": 8,
        "stage1.width": 16,
        "stage2.width": 24,
        "stage3.width": 32,
        "head": 64,
    }
    assert [arch[f"stage{n}.depth"] for n in (1, 2, 3)] == [1, 2, 1]
    assert [arch[f"stage{n}.expand"] for n in (1, 2, 3)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": (8, 16, 24, 32)}, r"width has 4 numbers; this space has 3 stages and takes 5"),
        ({"depth": (1, 2)}, r"depth has 2 numbers; .* takes 3"),
        ({"kernel": (3, 3, 3, 3)}, r"kernel has 4 numbers"),
        ({"expand": ()}, r"expand has 0 numbers"),
        ({"depth": (1, 2, 3)}, r"'stage3.depth' is 3; allowed: \(1, 2\)"),
        ({"resolution": 9}, r"'resolution' is 9; allowed: \(8,\)"),
        ({"width": (8, 16, 24, 32, 65)}, r"'head' is 65"),
        ({"expand": (1, 2, 3)}, r"'stage3.expand' is 3"),
    ],
)
def test_wrong_tuples_are_told(change: dict[str, Any], message: str) -> None:
    good = {"resolution": 8, "width": (8, 16, 24, 32, 64), "depth": (1, 2, 1), "kernel": (3, 3, 3), "expand": (1, 2, 4)}
    with pytest.raises(ValueError, match=message):
        BigNASSpace(SIZES["d8"]).from_stages(**{**good, **change})  # type: ignore[arg-type]


def test_unknown_spaces_and_sizes_are_told() -> None:
    with pytest.raises(ValueError, match=r"given 'bignos'; did you mean bignas\? allowed: bignas, "):
        load_supernet("bignos")
    with pytest.raises(
        ValueError, match=r"'bignas' does not go with these data or space.options: unexpected keyword argument 'scale'"
    ):
        load_supernet("bignas", "d8", scale=2)
    with pytest.raises(ValueError, match=r"has no size 'd9'; it has: d8, m28"):
        load_supernet("bignas", "d9")
