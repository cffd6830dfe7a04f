"""Grids, packing, folding and the integer program, against torch and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.adaquant import best_grid
from nas.quantization.allocate import allocate
from nas.quantization.graph import fold, total_macs
from nas.quantization.integer import IntegerConv2d, IntegerLinear, fake_quantize_affine, pack, unpack
from nas.quantization.levels import top_level


def test_grid_agrees_with_torch() -> None:
    """torch's own kernels are the other source."""
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3
    for top in (3, 15, 255):
        scale, zero = torch.rand(6) / top * 6 + 0.01, torch.randint(0, top + 1, (6,))
        theirs = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, 0, top)
        assert torch.equal(fake_quantize_affine(x, scale[:, None], zero[:, None].float(), top), theirs)
    assert fake_quantize_affine(torch.zeros(3), torch.tensor(0.3), torch.tensor(7.0), 15).tolist() == [0, 0, 0]


def test_gradients_by_finite_differences() -> None:
    """Outside the range the function is smooth and gradients are exact; inside they are the slope over many steps."""
    gen = torch.Generator().manual_seed(1)
    scale, zero = (
        torch.tensor(0.13, dtype=torch.double, requires_grad=True),
        torch.tensor(5.0, dtype=torch.double, requires_grad=True),
    )
    x = torch.cat(
        (torch.rand(50, generator=gen, dtype=torch.double) + 3, -torch.rand(50, generator=gen, dtype=torch.double) - 3)
    )
    weights = torch.rand(100, generator=gen, dtype=torch.double)  # so that no two gradients cancel

    def clipped(scale: Tensor, zero: Tensor) -> Tensor:
        return (torch.where(x > 0, 15 - zero, -zero) * scale * weights).sum()

    out = (fake_quantize_affine(x, scale, zero, 15) * weights).sum()
    assert out.item() == pytest.approx(clipped(scale, zero).item(), abs=1e-12)
    d_scale, d_zero = torch.autograd.grad(out, (scale, zero))
    e = 1e-4
    assert float(d_scale) == pytest.approx(
        (clipped(scale + e, zero) - clipped(scale - e, zero)).item() / (2 * e), rel=1e-6
    )
    assert float(d_zero) == pytest.approx(
        (clipped(scale, zero + e) - clipped(scale, zero - e)).item() / (2 * e), rel=1e-6
    )
    inside = (torch.rand(2000, generator=gen, dtype=torch.double) - 0.3).requires_grad_()
    d_x, d_scale = torch.autograd.grad(fake_quantize_affine(inside, scale, zero, 15).sum(), (inside, scale))
    assert torch.equal(d_x, torch.ones_like(d_x))
    steps = torch.linspace(-0.4 * 0.13, 0.4 * 0.13, 2001, dtype=torch.double)
    with torch.no_grad():
        sums = [float(fake_quantize_affine(inside + s, scale, zero, 15).sum()) for s in steps]
    slope = sum(found * float(s) for found, s in zip(sums, steps, strict=True)) / float(steps.square().sum())
    assert slope / 2000 == pytest.approx(1.0, abs=0.05)
    x, s = torch.tensor(0.45, dtype=torch.double), torch.tensor(0.2, dtype=torch.double, requires_grad=True)
    (estimate,) = torch.autograd.grad(fake_quantize_affine(x, s, zero, 15), s)
    with (
        torch.no_grad()
    ):  # within one cell the true derivative to scale is q - zero; LSQ takes off x / scale, the part that x follows
        true = float(fake_quantize_affine(x, s + e, zero, 15) - fake_quantize_affine(x, s - e, zero, 15)) / (2 * e)
    assert true == pytest.approx(2.0) and float(estimate) == pytest.approx(true - 0.45 / 0.2)


def test_the_best_grid_is_best() -> None:
    """Against the full range (min and max), and with 0 on a level."""
    x = torch.randn(4, 10000, generator=torch.Generator().manual_seed(2))
    x[0], x[1, 0], x[2] = x[0].abs() + 3, 25.0, -x[2].abs()
    for top in (7, 15, 255):
        scale, zero = best_grid(x, top)
        assert torch.equal(zero, zero.round()) and zero.min() >= 0 and zero.max() <= top
        error = (fake_quantize_affine(x, scale[:, None], zero[:, None], top) - x).square().mean(1)
        low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
        step = (high - low) / top
        full = (fake_quantize_affine(x, step[:, None], (-low / step).round()[:, None], top) - x).square().mean(1)
        assert (error <= full + 1e-9).all()
        if top == 15:
            assert error[1] < 0.5 * full[1], "an outlier does not spoil the grid"
    scale, zero = best_grid(x, top_level(8), centred=True)
    assert zero.tolist() == [128] * 4 and 126.9 < float(x[0].abs().amax() / scale[0]) < 128.1, (
        "8 bits of plain values: all of the range"
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_weights_come_back(bits: int) -> None:
    gen = torch.Generator().manual_seed(3)
    conv, linear = IntegerConv2d(nn.Conv2d(3, 5, 3), bits, 8), IntegerLinear(nn.Linear(7, 3), bits, bits)
    for layer in (conv, linear):
        top = top_level(bits)
        layer.zero.copy_(
            torch.randint(0, top + 1, layer.zero.shape, generator=gen) if bits < 8 else torch.full_like(layer.zero, 128)
        )
        levels = torch.randint(0, top + 1, layer.weight.shape, generator=gen)
        levels.view(-1)[:2] = torch.tensor([0, top])
        layer.weight.copy_(levels - layer.zero.view(-1, *[1] * (levels.dim() - 1)).int())
    net = nn.Sequential(conv, linear)
    packed = pack(net)
    assert packed["0.weight"].nbytes == (68 if bits <= 4 else 135) and packed["1.weight"].nbytes == (
        11 if bits <= 4 else 21
    )
    back = unpack(net, packed)
    assert all(torch.equal(back[name], value) for name, value in net.state_dict().items())


def test_two_weights_a_byte_the_first_one_low() -> None:
    layer = IntegerLinear(nn.Linear(3, 1), 4, 4)
    layer.zero.fill_(2)
    layer.weight.copy_(torch.tensor([[-2, 13, 1]]))
    assert pack(nn.Sequential(layer))["0.weight"].tolist() == [0xF0, 0x03]


class Twisted(nn.Module):
    """A batch norm that can be folded, through a change of layout; one that cannot, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b, self.b_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.twice, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_norm(self.a(x).contiguous(memory_format=torch.channels_last)))
        y = self.b(x)
        return self.last(self.twice(self.twice((self.b_norm(y) + y).mean((2, 3)))))


def test_folding_is_exact_and_spares_what_is_read_elsewhere() -> None:
    torch.manual_seed(4)
    net = Twisted().double().eval()
    for norm in (net.a_norm, net.b_norm):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
    x = torch.rand(4, 3, 9, 9, dtype=torch.double)
    folded, norms, layers = fold(net, x)
    assert norms == ("a_norm",) and isinstance(folded.a_norm, nn.Identity) and isinstance(folded.b_norm, nn.BatchNorm2d)
    assert [layer.name for layer in layers] == ["a", "b", "last"] and [layer.first for layer in layers] == [
        True,
        False,
        False,
    ]
    assert torch.allclose(folded(x), net(x), rtol=1e-12, atol=1e-12)
    assert [layer.macs for layer in layers] == [8 * 27 * 49, 64 * 49, 16] and total_macs(
        net, (3, 9, 9)
    ) == 8 * 27 * 49 + 64 * 49 + 64 * 2 + 16
    assert isinstance(net.a_norm, nn.BatchNorm2d), "the child itself is left as it is"
    with pytest.raises(ValueError, match="nothing to quantize"):
        fold(nn.Sequential(nn.ReLU()), x)


@pytest.mark.parametrize("seed", range(8))
def test_integer_program_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, choices = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    losses = rng.random((layers, choices)) * 10.0 ** rng.integers(-7, 0)
    prices = rng.integers(1, 10**9, (layers, choices))
    every = list(itertools.product(range(choices), repeat=layers))
    price = {c: sum(int(prices[i, j]) for i, j in enumerate(c)) for c in every}
    for most in (
        min(price.values()),
        sorted(price.values())[len(every) // 3],
        price[every[len(every) // 2]],
        max(price.values()),
    ):
        best = min(sum(losses[i, j] for i, j in enumerate(c)) for c in every if price[c] <= most)
        chosen = allocate(losses, prices, most)
        assert price[tuple(chosen)] <= most
        assert sum(losses[i, j] for i, j in enumerate(chosen)) == pytest.approx(best, rel=1e-9)
    with pytest.raises(ValueError, match="the least is"):
        allocate(losses, prices, min(price.values()) - 1)
