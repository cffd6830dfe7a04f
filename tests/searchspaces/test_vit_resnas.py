"""ViT-ResNAS: published sizes, the authors' notation, and children equal to the supernet."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.build import load_supernet
from nas.supernet import inherit
from searchspaces import vit_resnas_child
from searchspaces.vit_resnas import SIZES, ViTResNAS
from searchspaces.vit_resnas_child import Reduction, pool
from tests.searchspaces.vit import child_of, draw, images, supernet

SMALL = [size for size, table in SIZES.items() if table.side <= 32]


# (d, [(h, f), ...]) of every stage, as published
FOUND_TINY = (
    (176, [(3, 704), (3, 576), (3, 640), (4, 576), (4, 704)]),
    (352, [(10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024)]),
    (704, [(10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560)]),
)


FOUND_SMALL = (
    (220, [(5, 880), (5, 880), (7, 800), (5, 720), (5, 720), (5, 720)]),
    (440, [(10, 1760), (10, 1440), (10, 1920), (10, 1600), (12, 1600), (12, 1440)]),
    (880, [(16, 3200), (12, 3200), (16, 2880), (12, 2240), (14, 2560)]),
)


FOUND_MEDIUM = (
    (240, [(7, 960), (6, 960), (7, 800), (8, 960), (7, 880), (8, 880), (6, 800)]),
    (640, [(10, 1120), (14, 1760), (14, 1920), (16, 1760), (14, 1440), (16, 1760), (16, 1920)]),
    (880, [(16, 3200), (10, 3840), (16, 3840), (12, 3200), (16, 3520), (14, 3520)]),
)


def big(size: str, **changes: Any) -> ViTResNAS:
    """A supernet without its weights; what is made of it in the same test has none either."""
    with torch.device("meta"):
        return ViTResNAS(replace(SIZES[size], **changes))


def tuples(found: Any, head_dims: tuple[int, ...] = (32, 48, 64)) -> list[tuple[Any, ...]]:
    """A network in the authors' notation."""
    layers: list[tuple[Any, ...]] = []
    for (d, blocks), e in zip(found, head_dims, strict=True):
        layers.append((3, layers[-1][2][0], d) if layers else (4, d))
        layers += [(1, (d, h, e), (d, f), 1) for h, f in blocks]
    return [*layers, (2, found[-1][0], 1000)]


@pytest.fixture
def meta() -> Iterator[None]:
    """Tensors have shapes and no data."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("size", "macs", "with_patch_head", "without"),
    [
        ("vit-res-tiny", 1_794_378_240, 42_781_736, 42_012_736),
        ("tiny", 3_497_553_920, 85_839_464, 84_814_464),
        ("medium", 6_260_342_784, 156_599_528, 155_318_528),
    ],
)
def test_the_published_supernets_have_their_sizes(size: str, macs: int, with_patch_head: int, without: int) -> None:
    net = big(size)
    cost = net.cost(net.space.largest())
    assert (cost["macs"], net.params, cost["params"]) == (macs, with_patch_head, without)


@pytest.mark.parametrize(
    ("size", "found", "macs", "with_patch_head", "without"),
    [
        ("tiny", None, 752_489_984, 16_133_576, 15_492_576),
        ("tiny", FOUND_TINY, 1_782_630_272, 41_498_552, 40_793_552),
        ("medium", FOUND_SMALL, 2_845_501_856, 64_605_108, 63_724_108),
    ],
)
@pytest.mark.usefixtures("meta")
def test_the_published_children_have_their_sizes(
    size: str, found: Any, macs: int, with_patch_head: int, without: int
) -> None:
    net = big(size)
    arch = net.space.from_tuples(tuples(found)) if found else net.space.smallest()
    cost = net.cost(arch)
    assert (cost["macs"], net.fix(arch).params, cost["params"]) == (macs, with_patch_head, without)


@pytest.mark.parametrize(("side", "billions"), [(224, 4.5), (280, 7.22), (336, 10.74), (392, 15.20)])
def test_the_found_medium_at_higher_resolutions(side: int, billions: float) -> None:
    net = big("medium", side=side)
    assert net.cost(net.space.from_tuples(tuples(FOUND_MEDIUM)))["macs"] / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(
    ("size", "networks"), [("tiny", 1.9e28), ("medium", 4.2e32), ("d8", 6.7e10), ("vit-res-tiny", 1)]
)
def test_cardinality(size: str, networks: float) -> None:
    assert big(size).space.cardinality == pytest.approx(networks, rel=0.02)


def test_tokens_of_the_stages() -> None:
    """257, 65 and 17 with the class token; the patch head sees 4 x 4 cells."""
    net = big("tiny")
    assert len(net.position) == 257
    assert [len(part.reduce.position) for part in net.stages if part.reduce is not None] == [64, 16]
    assert net.aux_grid == 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("meta")
def test_cost_is_what_torch_counts(size: str) -> None:
    net = big(size)
    for arch in (net.space.smallest(), *draw(net, 2), net.space.largest()):
        child = net.extract(arch)
        with FlopCounterMode(display=False) as counter:
            out = child(torch.empty(2, *net.input_shape, device="meta"))
        assert out.shape == (2, net.table.classes)
        cost = net.cost(arch)
        assert counter.get_total_flops() == 2 * 2 * cost["macs"]
        assert sum(p.numel() for p in child.parameters()) == cost["params"]


@pytest.mark.parametrize("size", ["tiny", "d8"])
def test_costs_lie_between_smallest_and_largest_and_are_quick(size: str) -> None:
    net = big(size)
    archs = draw(net, 4000)
    least, most = net.cost(net.space.smallest())["macs"], net.cost(net.space.largest())["macs"]
    assert all(least <= net.cost(arch)["macs"] <= most for arch in archs)
    best = 0.0
    for attempt in range(3):
        archs, start = draw(net, 4000, attempt), time.process_time()
        for arch in archs:
            net.cost(arch)
        best = max(best, len(archs) / (time.process_time() - start))
    assert best >= 20_000


def test_tuples_say_which_blocks_exist() -> None:
    space = load_supernet("vit_resnas", "d8").space
    layers = [(5, 32, 8)]
    for d, e, (h, f), there in ((32, 4, (6, 96), 0), (64, 6, (12, 192), 1), (128, 8, (12, 384), 0)):
        layers += [(1, (d, h, e), (d, f), 1), (1, (d, h, e), (d, f), there)]
        layers.append((3, d, 2 * d) if d < 128 else (2, d, 10))
    arch = space.from_tuples(layers)  # type: ignore[attr-defined]
    assert [arch[f"stage{n}.block2.exists"] for n in (1, 2, 3)] == [0, 1, 0]
    assert "stage1.block2.heads" not in arch
    shorter = [layer for layer in layers if layer[0] != 1 or layer[3]]
    assert space.from_tuples(shorter) == arch  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[1:], "allowed: a stem"),
        (lambda t: [(5, 176, 23), *t[1:]], "the stem has 23 channels within"),
        (lambda t: [(0, 176), *t[1:]], "allowed: a stem"),
        (lambda t: t[:6] + [(3, 176, 320)] + t[7:], "allowed: a stem"),
        (lambda t: [*t[:2], (1, (176, 3, 48), (176, 704), 1), *t[3:]], r"\(d, e, d\)"),
        (lambda t: [*t[:2], (1, (176, 7, 32), (176, 704), 1), *t[3:]], "heads.*is 7; allowed"),
        (lambda t: [t[0], (1, (176, 3, 32), (176, 704), 0), *t[1:]], "block 1 may not be dropped"),
        (lambda t: t[:2] + t[6:], "stage 1 lists"),
        (lambda t: t[:6] + t[-1:], "allowed: a stem|stages"),
    ],
)
def test_wrong_tuples_are_told(change: Any, message: str) -> None:
    space = big("tiny").space
    given = tuples(FOUND_TINY)
    with pytest.raises(ValueError, match=message):
        space.from_tuples(change(given))


def test_a_table_that_cannot_be_built_is_told() -> None:
    with pytest.raises(ValueError, match="multiple of 56"):
        replace(SIZES["tiny"], side=232)
    with pytest.raises(ValueError, match="can only add channels"):
        replace(SIZES["tiny"], stages=SIZES["tiny"].stages[::-1])


@pytest.mark.parametrize("size", SMALL)
def test_a_child_gives_what_the_supernet_gives(size: str) -> None:
    net = supernet(size)
    x = images(net, 4)
    for arch in (net.space.smallest(), *draw(net, 2), net.space.largest()):
        output = net(x, arch)
        torch.testing.assert_close(child_of(net, arch)(x), output.main, rtol=0, atol=1e-12)
        assert output.aux.shape == (4, net.aux_grid**2, 10)


@pytest.mark.parametrize("multi", ["grouped", "masked"])
def test_a_fixed_supernet_gives_what_the_supernet_gives(multi: str) -> None:
    net = supernet("d8", multi)
    x = images(net, 4)
    for arch in (net.space.smallest(), *draw(net, 2), net.space.largest()):
        fixed = net.fix(arch)
        inherit(fixed.double(), net)
        assert fixed.space.cardinality == 1
        assert fixed.space.largest() == arch
        assert fixed.cost(arch) == net.cost(arch)
        for mine, other in zip(fixed(x, [arch, arch]), net(x, [arch, arch]), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_a_child_is_built_from_json_by_torch_alone() -> None:
    net = supernet()
    arch = draw(net, 1)[0]
    child = child_of(net, arch)
    again = net.child(**json.loads(json.dumps(child.config))).double()
    again.load_state_dict(child.state_dict())
    x = images(net, 3)
    assert torch.equal(again.eval()(x), child.eval()(x))
    tree = ast.parse(net.sources[-1].read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in imported if name} <= {"__future__", "collections", "typing", "torch", "nas"}
    assert {name for name in imported if name and name.startswith("nas")} == {"nas.static"}
    assert net.sources[-1].samefile(vit_resnas_child.__file__)


def test_a_child_is_exported_for_any_batch() -> None:
    net = supernet("d8-smoke")
    child = child_of(net, draw(net, 1)[0]).eval()
    exported = torch.export.export(
        child, (images(net, 3),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    ).module()
    x = images(net, 5)
    torch.testing.assert_close(exported(x), child(x), rtol=0, atol=1e-12)


def test_a_reduction_without_its_learned_branch_is_average_pooling() -> None:
    reduction = Reduction(4, 4, 2)
    for parameter in (
        reduction.conv.weight,
        reduction.conv.bias,
        reduction.token.weight,
        reduction.token.bias,
        reduction.position,
    ):
        nn.init.zeros_(parameter)  # type: ignore[arg-type]
    x = torch.randn(2, 17, 4)
    image = x[:, 1:].transpose(1, 2).reshape(2, 4, 4, 4)
    expected = torch.cat((x[:, :1], F.avg_pool2d(image, 2).flatten(2).transpose(1, 2)), 1)
    torch.testing.assert_close(reduction(x), expected)
    assert torch.equal(pool(x, 6)[..., 4:], torch.zeros(2, 5, 2))
