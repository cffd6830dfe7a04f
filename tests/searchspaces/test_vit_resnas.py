"""ViT-ResNAS: published sizes, children, several sub-networks in one pass, how they are drawn, mixed labels."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.build import load_supernet
from nas.elastic.grouped import GroupedConv2d, GroupedLinear, _Reorder
from nas.elastic.layer_norm import ElasticLayerNorm, masked_layer_norm
from nas.recipes.multi_arch import MultiArch, stratified, stratified_archs
from nas.recipes.opening import opened
from nas.recipes.recipe import Step
from nas.space import Arch
from nas.supernet import Output, Pass, inherit, main_head
from nas.tasks import mixing
from searchspaces import vit_resnas_child
from searchspaces.vit_resnas import SIZES, ViTResNAS
from searchspaces.vit_resnas_child import Reduction, pool

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


def random_weights(net: nn.Module, seed: int = 0) -> None:
    """Every parameter random, also those that begin as zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)


def supernet(size: str = "d8", multi: str = "grouped") -> ViTResNAS:
    """In float64, with random weights."""
    torch.manual_seed(0)
    net = load_supernet("vit_resnas", size, multi=multi).double()
    random_weights(net)
    assert isinstance(net, ViTResNAS)
    return net


def draw(net: ViTResNAS, count: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [net.space.sample(rng) for _ in range(count)]


def images(net: ViTResNAS, count: int) -> Tensor:
    return torch.rand(count, *net.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def child_of(net: ViTResNAS, arch: Arch) -> nn.Module:
    """Extracted, in the supernet's precision, its stem normalising over the batch as the supernet's does."""
    child = net.extract(arch).double()
    inherit(child, net)
    return child.train()


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in net.named_parameters()}


def total(output: Output) -> Tensor:
    """A loss in which every output counts, and not linearly."""
    return output.main.pow(2).sum() + output.aux.pow(3).sum()


@pytest.fixture
def meta() -> Iterator[None]:
    """Tensors have shapes and no data."""
    with torch.device("meta"):
        yield


# --- sizes


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


# --- the authors' notation


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


# --- children


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


# --- several sub-networks in one pass


@pytest.mark.parametrize("size", ["d8", "m28"])
@pytest.mark.parametrize("rows", [8, 10])
def test_both_passes_give_what_the_children_give(size: str, rows: int) -> None:
    """Outputs row by row, and gradients summed over the children; also where the rows do not divide evenly."""
    nets = [supernet(size, multi) for multi in ("grouped", "masked")]
    archs, x = draw(nets[0], 4), images(nets[0], rows)
    outputs = [net(x, archs) for net in nets]
    for output in outputs:
        total(output).backward()
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    expected = {name: torch.zeros_like(p) for name, p in nets[0].named_parameters()}
    for j, arch in enumerate(archs):
        fixed = nets[0].fix(arch)
        inherit(fixed.double(), nets[0])
        child = child_of(nets[0], arch)
        torch.testing.assert_close(child(x)[j::4], outputs[0].main[j::4], rtol=0, atol=1e-12)
        alone = fixed(x, arch)
        total(Output(alone.main[j::4], alone.aux[j::4])).backward()
        for name, gradient in gradients(fixed).items():
            expected[name][tuple(slice(n) for n in gradient.shape)] += gradient
    scale = max(float(g.abs().max()) for g in expected.values())
    for net in nets:
        for name, gradient in gradients(net).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12 * scale, msg=name)


def test_both_passes_drop_the_same() -> None:
    nets = [supernet("d8", multi) for multi in ("grouped", "masked")]
    archs, x = draw(nets[0], 3), images(nets[0], 7)
    outputs = [net(x, archs, Pass(0.3, 0.5, generator=torch.Generator().manual_seed(5))) for net in nets]
    torch.testing.assert_close(outputs[0].main, outputs[1].main, rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs[0].aux, outputs[1].aux, rtol=0, atol=1e-12)
    assert not torch.allclose(outputs[0].main, nets[0](x, archs).main)


def test_drop_path_grows_with_depth() -> None:
    net = supernet("d8")
    x = torch.zeros((), dtype=torch.float64)
    scales = [torch.cat(tuple(pair)) for pair in net._drop_path(20_000, Pass(drop_path=0.5), x)]  # type: ignore[arg-type]
    kept = [float((scale > 0).double().mean()) for scale in scales]
    assert kept == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5], abs=0.01)
    assert [float(scale.mean()) for scale in scales] == pytest.approx([1] * 6, abs=0.03)


def test_a_dropped_block_is_the_identity_for_its_examples_only() -> None:
    nets = [supernet("d8", multi) for multi in ("grouped", "masked")]
    largest = nets[0].space.largest()
    without = nets[0].space.arch({**largest, "stage2.block2.exists": 0})
    for net in nets:
        x = images(net, 6)
        mixed, whole = net(x, [largest, without]).main, net(x, largest).main
        with torch.no_grad():
            for layer in ("proj", "fc2"):
                for parameter in getattr(net.stages[1].blocks["2"], layer).parameters():
                    parameter.zero_()
        torch.testing.assert_close(mixed[::2], whole[::2], rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed[1::2], net(x, largest).main[1::2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("multi", ["grouped", "masked"])
def test_small_sub_networks_leave_the_rest_alone(multi: str) -> None:
    net = supernet("d8", multi)
    smallest = net.space.smallest()
    archs = [smallest, net.space.arch({**smallest, "stage1.width": 22})]
    total(net(images(net, 4), archs)).backward()
    windows = dict(net.fix(archs[1]).named_parameters())
    seen = 0
    for name, gradient in gradients(net).items():
        inside = gradient.clone()
        if name in windows:
            inside[tuple(slice(n) for n in windows[name].shape)] = 0
        assert not inside.any(), name
        seen += bool(gradient.any())
    assert seen > 60


def test_equal_sub_networks_are_one_group() -> None:
    net = supernet("d8")
    arch, x = draw(net, 1)[0], images(net, 4)
    calls: list[int] = []
    net.head.register_forward_pre_hook(lambda _, given: calls.append(len(given[1])))
    torch.testing.assert_close(net(x, [arch] * 4).main, net(x, arch).main, rtol=0, atol=1e-12)
    assert calls == [1, 1]


@pytest.mark.parametrize("multi", ["grouped", "masked"])
def test_bf16_autocast_is_close(multi: str) -> None:
    net = load_supernet("vit_resnas", "d8", multi=multi)
    random_weights(net)
    archs, x = draw(net, 3), torch.rand(6, 1, 8, 8)  # type: ignore[arg-type]
    exact = main_head(net(x, archs))
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x, archs)
    total(Output(*(head.float() for head in output))).backward()
    assert output.main.dtype == torch.bfloat16
    assert float((output.main.detach() - exact.detach()).norm() / exact.detach().norm()) < 0.05
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_more_architectures_than_rows_are_refused() -> None:
    net = supernet("d8")
    with pytest.raises(ValueError, match="3 architectures for a batch of 2"):
        net(images(net, 2), draw(net, 3))
    with pytest.raises(ValueError, match='allowed: "grouped", "masked"'):
        load_supernet("vit_resnas", "d8", multi="both")


# --- the layers


def test_masked_layer_norm_is_layer_norm_of_the_prefix() -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 8), (8,), (8,))
    )
    mask = (torch.arange(8) < torch.tensor([8, 5])[:, None, None]).double()
    given = torch.randn(2, 3, 8, dtype=torch.float64)
    out = masked_layer_norm(x * mask, weight, bias, mask, 1e-6)
    found = torch.autograd.grad((out * given).sum(), (x, weight, bias))
    parts = [F.layer_norm(x[i : i + 1, :, :n], (n,), weight[:n], bias[:n], 1e-6) for i, n in enumerate((8, 5))]
    wanted = torch.autograd.grad(
        sum((part * given[i, :, : part.shape[-1]]).sum() for i, part in enumerate(parts)), (x, weight, bias)
    )
    for i, part in enumerate(parts):
        torch.testing.assert_close(out[i, :, : part.shape[-1]], part[0], rtol=0, atol=1e-12)
        assert not out[i, :, part.shape[-1] :].any()
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *given: masked_layer_norm(*given, mask, 1e-6), (x.detach().requires_grad_(), weight, bias)
    )


def test_the_variance_does_not_cancel() -> None:
    x = 30 + 1e-3 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 16)
    out = masked_layer_norm(x, torch.ones(16), torch.zeros(16), mask, 1e-6)
    exact = masked_layer_norm(x.double(), torch.ones(16).double(), torch.zeros(16).double(), mask.double(), 1e-6)
    torch.testing.assert_close(out, exact.float(), rtol=0.02, atol=0.02)


def test_grouped_layers_have_right_gradients() -> None:
    torch.manual_seed(0)
    flat = torch.randn(3 * 4 + 2 * 3 + 1 * 3, dtype=torch.float64, requires_grad=True)
    linear, norm = GroupedLinear(5, 6).double(), ElasticLayerNorm(5).double()
    sizes = [(3, 4, 6), (2, 3, 2), (1, 3, 2)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(linear, {"weight": w, "bias": b}, (x, sizes)),
        (flat, linear.weight, linear.bias),
    )
    pairs = [(3, 4), (2, 3), (1, 3)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x, pairs)),
        (flat, norm.weight, norm.bias),
    )
    order = torch.randperm(7)
    assert torch.autograd.gradcheck(
        lambda x: _Reorder.apply(x, order, order.argsort()), (flat[:21].view(7, 3).detach().requires_grad_(),)
    )


def test_a_grouped_convolution_is_a_convolution_of_patches() -> None:
    conv = GroupedConv2d(4, 6, 3, 2, 1).double()
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    patches = F.unfold(image, 3, padding=1, stride=2).transpose(1, 2)
    out = conv(patches.reshape(-1), [(8, 3, 5)]).view(2, 4, 5)
    expected = F.conv2d(image, conv.weight[:5, :3], conv.bias[:5], 2, 1).flatten(2).transpose(1, 2)  # type: ignore[index]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


# --- how sub-networks are drawn


def test_choices_open_from_the_largest_on() -> None:
    """Warm-up of 30 of 120 epochs: five widths one after another, existence [1, 1, 0, 0] from epoch 20 on."""
    at = [opened(5, epoch / 120, 0.25) for epoch in range(40)]
    assert at == [1] * 8 + [2] * 7 + [3] * 8 + [4] * 7 + [5] * 10
    assert [opened(4, epoch / 120, 0.25) for epoch in (0, 9, 10, 19, 20, 29, 30, 119)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert opened(5, 0.0, 0.0) == 5


def test_draws_are_stratified() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 4, 7, 16):
        for _ in range(20):
            drawn = stratified((3, 4, 5, 6, 7), count, rng)
            times = [drawn.count(value) for value in (3, 4, 5, 6, 7)]
            assert sum(times) == len(drawn) == count
            assert max(times) - min(times) <= 1


def test_architectures_follow_the_training() -> None:
    space = load_supernet("vit_resnas", "d8").space

    def archs(progress: float, seed: int = 0) -> list[Arch]:
        return stratified_archs(space, 16, progress, np.random.default_rng(seed), 0.25, (1, 1, 0, 0))

    assert set(archs(0.0)) == {space.largest()}
    assert all(arch["stage1.width"] >= 28 and arch["stage1.block2.exists"] for arch in archs(0.09))
    late = archs(0.5)
    assert sorted(arch["stage2.block2.exists"] for arch in late) == [0] * 8 + [1] * 8
    assert sorted({arch["stage3.width"] for arch in late}) == [80, 88, 96, 112, 128]
    assert late == archs(0.5)
    assert late != archs(0.5, seed=1)


def options(**changes: Any) -> SimpleNamespace:
    given: dict[str, Any] = dict(  # noqa: C408
        archs=4,
        epochs=120,
        warmup_epochs=6,
        lr=1e-3,
        first_lr=1e-6,
        final_lr=1e-5,
        weight_decay=0.05,
        label_smoothing=0.1,
        dropout=0.0,
        drop_path=0.1,
    )
    return SimpleNamespace(**{**given, "opening": 0.25, "existence": (1, 1, 0, 0), **changes})


class Task:
    """The part of a task that the recipe needs."""

    def mix(self, x: Tensor, y: Tensor, grid: int, generator: torch.Generator) -> tuple[Tensor, mixing.Target]:
        return mixing.mix(x, y, 10, grid, generator)

    def loss(self, output: Any, target: Any, label_smoothing: float) -> Tensor:
        return mixing.loss(output, target, label_smoothing)


def facts(progress: float, seed: int = 0) -> Step:
    return Step(
        index=0,
        total=100,
        progress=progress,
        row=0,
        rng=np.random.default_rng(seed),
        generator=torch.Generator().manual_seed(seed),
        mean=lambda t: t,
        seed=0,
    )


def test_the_recipe_learns() -> None:
    torch.manual_seed(0)
    net = load_supernet("vit_resnas", "d8-smoke", mean=(0.3,), std=(0.3,))
    recipe = MultiArch(Task(), options(archs=4, drop_path=0.0, label_smoothing=0.0, opening=0.0))
    optimizer = recipe.optimizer(net)
    y = torch.arange(40) % 10
    x = torch.rand(10, 1, 8, 8)[y]
    seen = []
    for step in range(60):
        optimizer.zero_grad()
        (loss,) = recipe.losses(net, net, {"train": (x, y)}, facts(0.5, step))
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    with torch.no_grad():
        for arch in (net.space.smallest(), net.space.largest()):
            assert (main_head(net(x, arch)).argmax(1) == y).float().mean() > 0.9
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:5])


def test_the_schedule_and_what_is_decayed() -> None:
    net = load_supernet("vit_resnas", "d8")
    recipe = MultiArch(Task(), options())
    at = [recipe.lr(facts(progress)) for progress in (0, 0.025, 0.05, 1.0)]
    assert at == pytest.approx([1e-6, (1e-3 + 1e-6) / 2, 1e-3, 1e-5])
    decayed, spared = (group["params"] for group in recipe.optimizer(net).param_groups)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed} == {
        n for n in names.values() if n.endswith(("weight", "position")) and "norm" not in n
    }
    assert "token" in {names[id(p)] for p in spared}


def test_families_whose_examples_mix_are_refused() -> None:
    bignas = load_supernet("bignas", "d8")
    with pytest.raises(ValueError, match="batch norm"):
        MultiArch(Task(), options()).optimizer(bignas)
    MultiArch(Task(), options(archs=1)).optimizer(bignas)
    archs = [bignas.space.smallest(), bignas.space.largest()]
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(main_head(bignas(x, archs))[1::2], main_head(bignas(x[1::2], archs[1])))


# --- mixed labels


def test_cutmix_labels_say_where_the_pixels_come_from() -> None:
    y = torch.arange(8)
    x = (y + 1.0).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    for seed in range(20):
        mixed, target = mixing.patch_cutmix(x, F.one_hot(y, 10).float(), 4, np.random.default_rng(seed))
        owners = F.max_pool2d(mixed, 2).flatten(1).long() - 1
        assert torch.equal(F.max_pool2d(mixed, 2), -F.max_pool2d(-mixed, 2))  # whole cells only
        assert torch.equal(target.aux, F.one_hot(owners, 10).float())
        torch.testing.assert_close(target.main, target.aux.mean(1))


def test_rectangles_are_of_every_size_at_every_place() -> None:
    rng = np.random.default_rng(0)
    seen = {mixing.rectangle(2, rng) for _ in range(500)}
    assert len(seen) == 9  # all rectangles of a 2 x 2 grid
    shares = [(b - t) * (r - left) / 16 for t, b, left, r in (mixing.rectangle(4, rng) for _ in range(4000))]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("grid", [0, 1, 2])
def test_halves_of_a_batch_are_mixed_differently(grid: int) -> None:
    y = torch.arange(8)
    x = (y + 1.0).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    mixed, target = mixing.mix(x, y, 10, grid, torch.Generator().manual_seed(2))
    assert target.main.shape == (8, 10)
    assert target.aux.shape == (8, grid * grid, 10)
    torch.testing.assert_close(target.main.sum(1), torch.ones(8))
    first = mixed[:4] if grid == 2 else mixed[:0]
    assert torch.equal(first, first.round())  # pasted, not blended
    torch.testing.assert_close(mixed[4:].mean((1, 2, 3)), (target.main[4:] * torch.arange(1, 11)).sum(1))
    again = mixing.mix(x, y, 10, grid, torch.Generator().manual_seed(2))
    assert torch.equal(again[0], mixed)


def test_losses_of_both_heads() -> None:
    torch.manual_seed(0)
    main, aux, y = torch.randn(4, 10), torch.randn(4, 9, 10), torch.arange(4)
    expected = F.cross_entropy(main, y, label_smoothing=0.1)
    patches = F.cross_entropy(aux.flatten(0, 1), y.repeat_interleave(9), label_smoothing=0.1)
    mixed = mixing.Target(F.one_hot(y, 10).float(), F.one_hot(y, 10).float()[:, None].expand(-1, 9, -1))
    for target in (y, mixed):
        torch.testing.assert_close(mixing.loss(Output(main, aux), target, 0.1), expected + patches)
        torch.testing.assert_close(mixing.loss(main, target, 0.1), expected)
    taught = mixing.signal(Output(main, aux))
    assert isinstance(taught, Output)
    torch.testing.assert_close(mixing.distill(main, taught.main), F.cross_entropy(main, taught.main))
    entropy = mixing.distill(Output(main, aux), taught)
    assert entropy < mixing.distill(Output(main + torch.randn(4, 10), aux), taught)
