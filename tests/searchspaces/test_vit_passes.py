"""ViT-ResNAS: several sub-networks in one pass, and the layers that do it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.build import load_supernet
from nas.elastic.grouped import GroupedConv2d, GroupedLinear, _Reorder
from nas.elastic.layer_norm import ElasticLayerNorm, masked_layer_norm
from nas.supernet import Output, Pass, inherit, main_head
from tests.searchspaces.vit import child_of, draw, images, random_weights, supernet


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in net.named_parameters()}


def total(output: Output) -> Tensor:
    """A loss in which every output counts, and not linearly."""
    return output.main.pow(2).sum() + output.aux.pow(3).sum()


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
