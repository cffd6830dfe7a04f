"""BigNAS: what the network is made of, its resolutions, its dropout and drop path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible

import searchspaces.bignas
from nas.build import load_supernet
from nas.elastic import ElasticBatchNorm2d, ElasticSqueezeExcite
from nas.space import Arch
from nas.static import shrink
from nas.supernet import Pass
from nas.testing.space import assert_equal, check_cost, check_extracted, check_order, ready
from searchspaces.bignas import SIZES, BigNAS, Stage, Table, drop_path, dropout
from tests.searchspaces.mobile import images, small


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
