"""QuantNAS: ADQ, mixtures of operations and bits, and a training that beats bicubic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.children.evaluate import recalibrate
from nas.quantization import learned
from nas.supernet import Pass, Soft
from nas.testing.space import assert_equal, one_hot, ready
from searchspaces.quantnas_child import Residual
from searchspaces.quantnas_slot import ElasticSlot
from tests.searchspaces.enlarging import basic, pixels, supernet


def test_adq_scales_what_is_added_by_the_deviation_of_each_image() -> None:
    """Against the formula written with other means (numpy, unbiased deviation, one number an image)."""
    block = Residual(4, nn.BatchNorm2d).train()
    with torch.no_grad():
        block.gain.fill_(1.7)
        block.offset.fill_(0.3)
    x = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]).view(
        -1, 1, 1, 1
    )
    a = x.numpy().astype(np.float64)
    normed = (a - a.mean((0, 2, 3), keepdims=True)) / np.sqrt(a.var((0, 2, 3), keepdims=True) + 1e-5)
    deviation = a.reshape(3, -1).std(1, ddof=1).reshape(3, 1, 1, 1)
    wanted = a + (1.7 * deviation + 0.3) * np.sin(normed)
    assert_equal(block(x, torch.sin), torch.from_numpy(wanted).float(), "ADQ")


def test_adq_without_gain_or_deviation_is_the_identity_and_has_gradients() -> None:
    block = Residual(4, nn.BatchNorm2d).train()
    assert (block.gain.item(), block.offset.item()) == (1.5, 0.0)
    flat = torch.full((2, 4, 5, 5), 0.7, requires_grad=True)
    out = block(flat, lambda z: z + 1)
    assert_equal(out, flat, "a constant image", 1e-5)
    out.sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()
    with torch.no_grad():
        block.gain.zero_()
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x, lambda z: z + 1), x)


@pytest.mark.parametrize("quant", ["off", "noise", "real"])
@pytest.mark.parametrize("noise", ["clean", "published"])
def test_probabilities_and_weights_have_gradients(quant: str, noise: Any) -> None:
    net = supernet("basic-c12", noise=noise)
    tables = {
        name: torch.full([len(net.space.choices[c].values) for c in choices], 1.0)
        for name, choices in net.slots.items()
    }
    tables = {name: (table / table.numel()).requires_grad_() for name, table in tables.items()}
    net(
        pixels(), Soft(tables), Pass(quant=quant, generator=torch.Generator().manual_seed(0))
    ).square().mean().backward()
    for name, table in tables.items():
        assert table.grad is not None and table.grad.isfinite().all()
        assert (table.grad.amax(1) > table.grad.amin(1)).any() is not (quant == "off"), (
            f"{name}: bits tell nothing apart"
        )
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in weights.values())


def test_a_mixture_is_the_mean_of_operations_and_expected_bitops_the_mean_of_costs() -> None:
    """In one slot: without quantizers its output is linear in the probabilities."""
    net = ready(supernet("basic-c12", adq=False))
    arch = net.space.smallest()
    choices = [net.space.choices[c].values for c in net.slots["tail2"]]
    some = [
        net.space.arch({**arch, "tail2.op": op, "tail2.bits": b}) for op, b in ((choices[0][1], 4), (choices[0][3], 8))
    ]
    tables = dict(one_hot(net, arch).probabilities)
    tables["tail2"] = torch.zeros_like(tables["tail2"])
    tables["tail2"][1, 0], tables["tail2"][3, 1] = 0.25, 0.75
    out = net(pixels(), Soft(tables))
    assert_equal(out, 0.25 * net(pixels(), some[0]) + 0.75 * net(pixels(), some[1]), "mixture")
    expected = net.expected_bitops(Soft(tables)).item()
    assert expected == 0.25 * net.cost(some[0])["bitops"] + 0.75 * net.cost(some[1])["bitops"]
    uniform = Soft({name: torch.full_like(table, 1 / table.numel()) for name, table in tables.items()})
    rng = np.random.default_rng(0)
    drawn = [net.cost(net.space.sample(rng))["bitops"] for _ in range(4000)]
    assert net.expected_bitops(uniform).item() == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(4000))


@pytest.mark.parametrize("size", ["basic-c12", "rfdn-c12"])
@pytest.mark.parametrize("quant", ["off", "noise"])
def test_merged_convolutions_are_the_sum_of_each(size: str, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of all operations against one after the other, each with its own shares; the noise a fixed function of
    what it falls on."""

    def drawn(x: Tensor, spread: Tensor, generator: None, only: Tensor | None = None) -> Tensor:
        return 0.5 * x.mul(50).cos() * spread * (1 if only is None else only)

    monkeypatch.setattr(learned, "noise_like", drawn)
    net, random = ready(supernet(size, bits=[4, 8, 32])), torch.Generator().manual_seed(0)
    shapes = {shape.name: shape for shape in net.table.shapes}
    how = {"quant": quant, "published": False, "generator": None}
    for slot in [module for module in net.body.modules() if isinstance(module, ElasticSlot)]:
        shape = shapes[slot.name]
        x = torch.randn(2, shape.c_in, 9, 9, generator=random)
        pick = torch.rand(len(slot.operations), 3, generator=random)
        with torch.no_grad():
            each = [
                row.sum() * slot._alone(name, x, list(zip(slot.bits, row, strict=True)), shape, how)
                for name, row in zip(slot.operations, pick, strict=True)
            ]
            assert_equal(slot(x, pick, shape, **how), sum(each[1:], each[0]), slot.name)


def test_one_of_32_bits_in_a_mixture_draws_no_noise() -> None:
    """As alone: a mixture that leaves a slot unquantized comes to the same draws for the others."""
    net = ready(supernet("basic-c12", bits=[4, 32]))
    arch = net.space.arch({**net.space.smallest(), "body1.bits": 32, "upsample.bits": 32})
    outputs = [
        net(pixels(), which, Pass(quant="noise", generator=torch.Generator().manual_seed(0)))
        for which in (arch, one_hot(net, arch))
    ]
    assert_equal(outputs[1], outputs[0], "32 bits")


def photographs() -> tuple[Tensor, Tensor]:
    """Patches of two photographs, half size (bicubic, antialiased) and whole: 64 of each side 24 and 48."""
    from sklearn.datasets import load_sample_images

    patches = []
    for image in load_sample_images().images:
        whole = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
        patches += [whole[:, y : y + 48, x : x + 48] for y in range(0, 384, 96) for x in range(0, 620, 78)]
    high = torch.stack(patches)
    low = F.interpolate(high, scale_factor=0.5, mode="bicubic", antialias=True)
    return (low.clamp(0, 1) * 255).round() / 255, high


@pytest.mark.parametrize("quant", ["real", "noise"])
def test_two_hundred_steps_beat_bicubic(quant: str) -> None:
    """At 4 bits, with log-steps trained or under noise, as they are scored: not caught in adding nothing to the
    bicubic image."""
    low, high = photographs()
    net = supernet("basic-c12")
    rng, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    arch = basic(net, 4, head="conv3", body="conv3", skip="conv1", upsample="conv3", tail="conv3")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 50)
        rows = torch.from_numpy(rng.permutation(len(low))[:8])
        loss = F.l1_loss(net(low[rows], arch, Pass(quant=quant, generator=noise)), high[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    child = net.extract(arch)
    recalibrate(child, [(low, None)])
    bicubic = F.interpolate(low, scale_factor=2, mode="bicubic", align_corners=False)
    with torch.no_grad():
        assert F.mse_loss(child(low), high) < 0.99 * F.mse_loss(bicubic, high)
