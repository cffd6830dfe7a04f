"""Children of the other families, and networks of odd shapes, quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nas
from nas.children.formats import OnnxFile, write_onnx
from nas.children.quantize import integer_layers
from nas.quantization import learned
from nas.quantization.adaquant import calibrate, widths
from nas.quantization.allocate import Costs, allocate, difference, outputs
from nas.quantization.correction import correct
from nas.quantization.graph import fold, plain, total_macs
from nas.quantization.integer import load_quantized, pack
from nas.quantization.target import ITERATIONS


def test_a_vision_transformer(tmp_path: Path) -> None:
    """Linear layers on tokens and on vectors; attention stays in floats and counts with 32 bits."""
    net = nas.load_supernet("vit_resnas", "d8-smoke")
    torch.manual_seed(6)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.rand(32, *net.input_shape, generator=torch.Generator().manual_seed(0))
    child = net.extract(net.space.smallest()).train()
    child(x)
    child, norms, layers = fold(child, x)
    assert (
        len(norms) == 3
        and sum(layer.conv for layer in layers) >= 4
        and not any(isinstance(m, nn.BatchNorm2d) for m in child.modules())
    )
    costs = Costs.of(child, layers, total_macs(child, net.input_shape))
    assert costs.macs == net.cost(net.space.smallest())["macs"] and costs.rest("bitops") > 0
    small = calibrate(child, layers, dict.fromkeys((layer.name for layer in layers), 8), list(x.split(16)), 1, 0)
    apart, size = difference(small, [x], outputs(child, [x])), float(outputs(child, [x])[0].var())
    assert apart < 0.01 * size
    write_onnx(small, x[:2], tmp_path / "model.onnx")
    assert float((OnnxFile(tmp_path / "model.onnx")(x) - small(x)).abs().max()) < 0.1 * size**0.5
    assert integer_layers(tmp_path / "model.onnx") == len(layers)


class Enlarger(nn.Module):
    """A network of the kind that super-resolution has: convolutions, a skip, no norm, no bias, twice the side."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.head, self.body = (
            nn.Conv2d(3, 12, 3, padding=1, bias=False),
            nn.Conv2d(12, 12, (3, 1), padding=(1, 0), groups=3, bias=False),
        )
        self.up = nn.Conv2d(12, 12, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.head(x - 0.5))
        y = self.up(y + F.relu(self.body(y)))
        return F.interpolate(x, scale_factor=2, mode="bilinear") + F.pixel_shuffle(y, 2)


def test_super_resolution(tmp_path: Path) -> None:
    from skimage.data import astronaut

    torch.manual_seed(7)
    high = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    high = high.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).flatten(0, 1)[:128]
    low = F.interpolate(high, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    net = Enlarger()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.l1_loss(net(low), high).backward()
        optimizer.step()
    batches = list(low.split(16))
    child, norms, layers = fold(net, low)
    assert not norms and [layer.macs for layer in layers] == [3 * 12 * 9 * 256, 12 * 4 * 3 * 256, 12 * 12 * 9 * 256]
    bits = dict.fromkeys((layer.name for layer in layers), 4)
    targets = outputs(child, batches[-2:])
    nearest = calibrate(child, layers, bits, batches, 2, 0)
    better, _ = correct(calibrate(child, layers, bits, batches, 2, ITERATIONS), child, list(bits), batches, 2)
    assert difference(better, batches[-2:], targets) < 0.7 * difference(nearest, batches[-2:], targets)
    plan = {name: {"weight_bits": 4, "input_bits": 8 if name == "head" else 4} for name in bits}
    again = load_quantized(Enlarger(), {"plain": [], "folded": [], "layers": plan}, pack(better))
    assert torch.equal(again(low), better(low))
    write_onnx(better, low[:2], tmp_path / "model.onnx")
    assert float((OnnxFile(tmp_path / "model.onnx")(low) - better(low)).abs().max()) < 0.02
    assert integer_layers(tmp_path / "model.onnx") == 3


def test_the_least_budget_can_be_met() -> None:
    """Whatever the spread of prices and the solver's tolerance: a person types back what the refusal has told."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        base = (10 ** rng.uniform(2, 9, 12)).astype(np.int64)[:, None]
        prices, losses = base * np.array([[16, 64]]), rng.random((12, 2)) * [[1.0, 0.01]] + [[1.0, 0.0]]
        least = int(prices.min(1).sum())
        assert allocate(losses, prices, least) == [0] * 12
        cheapest = int(np.argmin(base))
        more = allocate(losses, prices, least + 48 * int(base.min()))
        assert more[cheapest] == 1 and sum(more) == 1
        with pytest.raises(ValueError, match=f"costs at most {least - 1:,}; the least is {least:,}"):
            allocate(losses, prices, least - 1)


class Shared(nn.Module):
    """Two convolutions before one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) + self.norm(self.b(x))


def test_a_norm_that_is_used_twice_stays() -> None:
    torch.manual_seed(5)
    net, x = Shared().eval(), torch.rand(4, 3, 5, 5)
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    folded, norms, layers = fold(net, x)
    assert norms == () and len(layers) == 2 and torch.allclose(folded(x), net(x))


@pytest.mark.parametrize("size", ["basic-c12", "rfdn-c12"])
def test_a_child_with_quantizers_of_its_own(size: str) -> None:
    """It is quantized anew, from the weights that it was trained to."""
    torch.manual_seed(8)
    net = nas.load_supernet("quantnas", size)
    arch = net.space.sample(np.random.default_rng(4))
    child, x = net.extract(arch).eval(), torch.randint(256, (8, 3, 16, 16)) / 255
    learned.fit(child, [(x, None)])
    bare, names = plain(child)
    assert len(names) == sum(isinstance(module, learned.QuantConv2d) for module in child.modules()) > 5
    real = child(x)
    child.quantize(False)
    torch.testing.assert_close(bare(x), child(x), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(real, child(x), atol=1e-3)
    folded, norms, layers = fold(bare, x)
    assert {layer.name for layer in layers} == {f"{name}.conv" for name in names}
    bits = {layer.name: 4 for layer in layers}
    small = calibrate(folded, layers, bits, list(x.split(2)), 1, 0)
    both = {layer.name: widths(layer, 4) for layer in layers}
    plan = {"plain": names, "folded": list(norms), "layers": both}
    again = load_quantized(type(child)(**child.config), plan, pack(small))
    assert torch.equal(again(x), small(x))
