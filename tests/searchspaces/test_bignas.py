"""BigNAS: published costs and sizes, the papers' notation, zero-gamma, regularisation and resolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible

import searchspaces.bignas
from nas.build import load_supernet
from nas.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticSqueezeExcite
from nas.recipes.recipe import decayed
from nas.space import Arch
from nas.static import shrink
from nas.supernet import Pass
from nas.testing.space import assert_equal, check_cost, check_extracted, check_order, ready
from searchspaces.bignas import SIZES, BigNAS, BigNASSpace, Stage, Table, drop_path, dropout, round_channels

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


@pytest.fixture(scope="module")
def attentive() -> BigNAS:
    torch.manual_seed(0)
    return load_supernet("bignas", "attentivenas")  # type: ignore[return-value]


def small(size: str = "d8", **options: Any) -> BigNAS:
    torch.manual_seed(0)
    return ready(load_supernet("bignas", size, **options))  # type: ignore[return-value]


def images(net: BigNAS, rows: int = 6, side: int | None = None) -> Tensor:
    channels, own, _ = net.input_shape
    return torch.rand(rows, channels, side or own, side or own, generator=torch.Generator().manual_seed(1))


def agrees(value: float, written: str) -> bool:
    """Whether a number is what was written, to its last digit: within half a unit of it, and a hair for how it was
    rounded."""
    mantissa, _, exponent = written.partition("e")
    digits = len(mantissa.partition(".")[2])
    whole = written.isdigit() and written.endswith("0")  # 8950 stands for 8.95 M
    unit = 10.0 ** (int(exponent or 0) - digits) * (10 ** (len(written) - len(written.rstrip("0"))) if whole else 1)
    return abs(value - float(written)) <= 0.51 * unit


# --- sizes and costs


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


# --- the papers' notation


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


# --- what the network is made of


@pytest.mark.parametrize("size", SIZES)
def test_a_block_with_a_shortcut_starts_as_its_shortcut(size: str) -> None:
    """Zero-gamma exactly where there is a shortcut: elsewhere it would leave constants."""
    torch.manual_seed(0)
    net = load_supernet("bignas", size)
    assert isinstance(net, BigNAS)
    stages = net._plan(net.space.largest())[1]
    every_block = SIZES[size].conv_shortcut
    for spec, stage, blocks in zip(SIZES[size].stages, net.stages, stages, strict=True):
        assert isinstance(stage, nn.ModuleList)
        for number, (module, block) in enumerate(zip(stage, blocks, strict=True)):
            x = torch.randn(2, block.c_in, 5, 5)
            out = module(x, block, 0.0, None)
            if number or spec.residual:
                assert torch.equal(out, x), "an identity"
            elif every_block:
                pooled = shrink(x, block.stride)
                wanted = pooled if block.c_in == block.c_out else F.conv2d(pooled, module.shortcut.weight)
                torch.testing.assert_close(out, wanted)
            else:
                assert out.std((0, 2, 3)).min() > 0.1, "a path that is dead from the start"
    gammas = [m.weight for m in net.modules() if isinstance(m, ElasticBatchNorm2d)]
    zeros = sum(not gamma.any() for gamma in gammas)
    bare = sum(not (every_block or spec.residual) for spec in SIZES[size].stages)
    assert zeros == sum(map(len, stages)) - bare
    assert all((gamma == 1).all() for gamma in gammas if gamma.any())


def test_shortcuts_shrink_odd_sides_as_convolutions_do() -> None:
    """ceil(side / 2), by means of 2 x 2 with zeros around an odd image."""
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert shrink(x, 2)[0, 0].tolist() == [[0.0, (1 + 2) / 4], [(3 + 6) / 4, (4 + 5 + 7 + 8) / 4]]
    assert shrink(torch.ones(1, 1, 4, 4), 2).tolist() == [[[[1, 1], [1, 1]]]]
    assert torch.equal(shrink(x, 1), x)


@pytest.mark.parametrize("conv_shortcut", [False, True])
def test_odd_sides_are_rounded_up_everywhere(conv_shortcut: bool) -> None:
    """7, 9 and 10 pixels through two strides of 2: in convolutions, shortcuts and costs alike."""
    stages = tuple(Stage((8, 16), (1, 2), (3, 5), (2, 3), 2, se=True) for _ in range(2))
    net = BigNAS(Table((7, 9, 10), (8,), stages, (16,), stem_stride=1, conv_shortcut=conv_shortcut, channels=1))
    x = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    ready(net)
    for check in (check_cost, check_extracted, check_order):
        check(net, x)


def test_squeeze_excite_stands_where_the_table_says(attentive: BigNAS) -> None:
    """Stages 3, 5, 6 and 7 of AttentiveNAS; a quarter of the inner width."""
    for number, stage in enumerate(attentive.stages, start=1):
        assert isinstance(stage, nn.ModuleList)
        for block in stage:
            assert (block.se is not None) == (number in (3, 5, 6, 7))
            if block.se is not None:
                assert isinstance(block.se, ElasticSqueezeExcite)
                inner = block.project.conv.in_channels
                assert block.se.reduce.weight.shape[:2] == (_make_divisible(inner // 4, 8), inner)


def test_each_architecture_of_a_list_has_its_own_statistics() -> None:
    """Different images: rows j::A are the child on those rows alone."""
    net = small("m28")
    rng = np.random.default_rng(0)
    archs = [net.space.sample(rng) for _ in range(3)]
    x = images(net, rows=8)
    with torch.no_grad():
        out = net(x, archs)
        for j, arch in enumerate(archs):
            assert_equal(out[j::3], net.extract(arch).train()(x[j::3]), f"rows {j}::3")


def test_synchronising_is_an_option_of_every_norm() -> None:
    for sync in (True, False):
        net = small(sync_batch_norm=sync)
        for one in (net, net.fix(net.space.smallest())):
            assert {m.sync for m in one.modules() if isinstance(m, ElasticBatchNorm2d)} == {sync}


# --- resolution


@pytest.mark.parametrize("side", [28, 33])
def test_the_input_is_resized_inside(side: int) -> None:
    """Each architecture sees the normalised batch at its own resolution, bicubic, from images of whatever size."""
    net = small("m28", mean=(0.3,), std=(0.2,))
    seen: list[Tensor] = []
    net.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = images(net, side=side)
    for resolution in (20, 24, 28):
        net(x, net.space.arch({**net.space.largest(), "resolution": resolution}))
        wanted = F.interpolate((x - 0.3) / 0.2, (resolution, resolution), mode="bicubic", align_corners=False)
        torch.testing.assert_close(seen.pop(), wanted, atol=1e-5, rtol=1e-5)


def test_resolution_alone_changes_output_and_cost() -> None:
    net = small("m28")
    x = images(net)
    archs = [net.space.arch({**net.space.largest(), "resolution": side}) for side in (20, 24, 28)]
    with torch.no_grad():
        outputs = [net(x, arch) for arch in archs]
    assert min((a - b).abs().max() for a, b in zip(outputs, outputs[1:], strict=False)) > 0.01
    costs = [net.cost(arch) for arch in archs]
    assert costs[0]["macs"] < costs[1]["macs"] < costs[2]["macs"]
    assert len({cost["params"] for cost in costs}) == 1


# --- regularisation


def seen_by_classifier(net: BigNAS, x: Tensor, arch: Arch, how: Pass) -> Tensor:
    """What comes into the classifier."""
    seen: list[Tensor] = []
    hook = net.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(x, arch, how)
    hook.remove()
    return seen[0]


def test_dropout_acts_before_the_classifier_alone() -> None:
    net = small()
    x, arch = images(net, rows=32), net.space.largest()
    plain = seen_by_classifier(net, x, arch, Pass())
    dropped = seen_by_classifier(net, x, arch, Pass(dropout=0.25, generator=torch.Generator().manual_seed(0)))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)
    assert 1 - kept.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_a_plain_pass_draws_nothing_and_a_told_one_from_its_generator() -> None:
    net = small()
    x, arch = images(net), net.space.largest()
    for how, own in ((Pass(), 0), (Pass(dropout=0.5), 1), (Pass(drop_path=0.5), 1)):
        before = torch.get_rng_state()
        with torch.no_grad():
            net(x, arch, how)
        assert torch.equal(before, torch.get_rng_state()) == (not own), "without a generator it is torch's own"
        if own:
            generator = torch.Generator().manual_seed(0)
            state, before = generator.get_state(), torch.get_rng_state()
            with torch.no_grad():
                net(x, arch, Pass(how.dropout, how.drop_path, generator=generator))
            assert torch.equal(before, torch.get_rng_state())
            assert not torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("d8", {3: 6, 5: 6}),  # 2 + 2 + 2 blocks; the first of a stage has no identity
        ("attentivenas", dict.fromkeys((*range(28, 35), 36), 37)),  # 2 + 5 + 6 + 6 + 8 + 8 + 2
    ],
)
def test_drop_path_grows_with_depth_in_the_last_two_stages(
    size: str, wanted: dict[int, int], monkeypatch: pytest.MonkeyPatch, attentive: BigNAS
) -> None:
    """0.2 * index / blocks, and only where the shortcut is a true identity."""
    rates: list[float] = []

    def spy(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
        rates.append(rate)
        return x

    monkeypatch.setattr(searchspaces.bignas, "drop_path", spy)
    net = attentive if size == "attentivenas" else small(size)
    with torch.no_grad():
        net(images(net, rows=2, side=8), net.space.largest(), Pass(drop_path=0.2))
    assert rates == pytest.approx([0.2 * index / blocks for index, blocks in wanted.items()])
    rates.clear()
    with torch.no_grad():
        net(images(net, rows=2, side=8), net.space.largest(), Pass(dropout=0.2))
    assert rates == []


def test_drops_keep_the_mean() -> None:
    x = torch.ones(20_000, 2, 1, 1)
    out = drop_path(x, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(out[:, 0], out[:, 1]), "an example's branch is dropped as a whole"
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    out = dropout(x.flatten(1), 0.3, torch.Generator().manual_seed(0))
    assert not torch.equal(out[:, 0], out[:, 1])
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_one_image_is_enough_for_an_extracted_child() -> None:
    """Pooling keeps the batch axis where the batch is one image."""
    net = small()
    child = net.extract(net.space.largest()).eval()
    assert child(images(net, rows=1)).shape == (1, 10)
