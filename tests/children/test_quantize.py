"""Quantized children: grids, packing, folding, AdaQuant, bits by integer programming, and files that agree."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import nas
from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator
from nas.children.export import export_child
from nas.children.formats import OnnxFile, write_onnx
from nas.children.quantize import done_before, integer_layers, quantize_child
from nas.config.experiment import load_experiment
from nas.draws import permutation
from nas.quantization import learned
from nas.quantization.adaquant import AdaQuantLayer, adaquant, best_grid, calibrate, seen, widths
from nas.quantization.allocate import BitBudget, Costs, allocate, check_budget, difference, outputs, sensitivities
from nas.quantization.correction import correct, statistics
from nas.quantization.graph import float_layer, fold, integer_layer_of, plain, total_macs
from nas.quantization.integer import IntegerConv2d, IntegerLinear, fake_quantize_affine, load_quantized, pack, unpack
from nas.quantization.levels import top_level
from nas.quantization.target import ITERATIONS, read_target
from nas.rundir.fence import Fence
from nas.supernet import CostModel
from tests.driving import STRANGER, outputs_of

CPU = torch.device("cpu")


@dataclass
class Trained:
    """A child that was trained on digits for some seconds, and its calibration images."""

    run: Path
    id: str
    task: Any
    net: nn.Module
    batches: list[Tensor]

    @property
    def home(self) -> Path:
        return self.run / "children" / self.id


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("run")
    experiment = load_experiment("bignas-digits", ["seed=5"])
    task = load_task(experiment)
    supernet = make_supernet(experiment, task)
    arch = supernet.space.sample(np.random.default_rng(2))
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 240)
    for step in range(240):
        epoch, at = divmod(step * 64, len(task.train) - 64)
        x, y = task.train.batch(permutation(len(task.train), task.seed, "order", epoch)[at : at + 64], epoch)
        optimizer.zero_grad()
        task.loss(supernet(x, arch), y).backward()
        optimizer.step()
        schedule.step()
    evaluator = Evaluator(supernet, task, experiment.search, CPU)
    about = {"space": "bignas", "size": "d8", "supernet": "0" * 64, "data": "digits", "classes": list(task.classes)}
    test = Batches(task.test, len(task.test), 500, CPU)
    figures = export_child(
        run / "children" / arch.id, arch, CostModel(supernet), evaluator, test, about, False, Fence.take(run)
    )
    assert figures["test"]["accuracy"] > 88
    batches = [x for x, _ in Batches(task.train, 256, 32, CPU, epoch=0)]
    return Trained(run, arch.id, task, nas.load_child(run / "children" / arch.id), batches)


def test_statistics_are_put_back_and_levels_stay(trained: Trained) -> None:
    """Mean and deviation of every channel, by scale and bias alone, as a batch norm is folded into a grid."""
    child, _, layers = fold(trained.net, trained.batches[0])
    bits, names = dict.fromkeys((layer.name for layer in layers), 3), [layer.name for layer in layers]
    coarse = calibrate(child, layers, bits, trained.batches, 2, 0)
    mended = statistics(coarse, child, names, trained.batches, outputs(child, trained.batches))

    def moments(net: nn.Module, name: str) -> Tensor:
        seen: list[Tensor] = []
        handle = net.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2]))
        for x in trained.batches:
            net(x)
        handle.remove()
        rows = torch.cat(seen).transpose(0, 1).flatten(1)
        return torch.stack((rows.mean(1), rows.std(1)))

    for name in names:
        assert torch.equal(integer_layer_of(mended, name).weight, integer_layer_of(coarse, name).weight), name
    with torch.no_grad():
        first, wanted, before = (moments(net, names[0]) for net in (mended, child, coarse))
        assert (first - wanted).abs().max() < 0.05 * wanted.abs().max() and (before - wanted).abs().max() > (
            first - wanted
        ).abs().max()
        off = [
            sum(float((moments(net, name) - moments(child, name)).abs().mean()) for name in names)
            for net in (coarse, mended)
        ]
    assert off[1] < 0.7 * off[0]


# Grids ------------------------------------------------------------


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


# Packing ------------------------------------------------------------


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


# Folding ------------------------------------------------------------


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


# Bits ------------------------------------------------------------


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


def test_an_impossible_budget_says_how_much_is_missing(trained: Trained) -> None:
    child, _, layers = fold(trained.net, trained.batches[0])
    costs = Costs.of(child, layers, total_macs(child, (1, 8, 8)))
    least = {kind: costs.total({layer.name: 4 for layer in layers}, kind) for kind in ("bitops", "bytes")}
    for kind in ("bitops", "bytes"):
        check_budget(costs, (4, 8), BitBudget(kind, least[kind]))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"take {least[kind]:,}.*: 7 are missing"):
            check_budget(costs, (4, 8), BitBudget(kind, least[kind] - 7))  # type: ignore[arg-type]
    by_hand = sum(layer.macs * 4 * (8 if layer.name == "stem.conv" else 4) for layer in layers)
    assert least["bitops"] == by_hand and costs.rest("bitops") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("4,8", None, None), "budget"),
        (("9", None, None), "2 to 8"),
        (("four", None, None), "'four'"),
        ((None, "1M", "1k"), "one of them"),
        ((None, "1.5X", None), "1.5M"),
    ],
)
def test_targets_that_cannot_be(words: tuple[str | None, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_target(*words)


# AdaQuant ------------------------------------------------------------


def test_adaquant_lowers_the_error_of_every_layer(trained: Trained) -> None:
    child, _, layers = fold(trained.net, trained.batches[0])
    ratios = []
    for layer in layers:
        xs, ys = seen(child, layer.name, trained.batches), seen(child, layer.name, trained.batches, output=True)
        tuned = AdaQuantLayer(float_layer(child, layer.name), **widths(layer, 3), xs=xs)

        def error(tuned: AdaQuantLayer = tuned, xs: list[Tensor] = xs, ys: list[Tensor] = ys) -> float:
            with torch.no_grad():
                return sum(float((tuned(x) - y).square().mean()) for x, y in zip(xs[-2:], ys[-2:], strict=True))

        before = error()
        adaquant(tuned, xs, ys, 2, 100)
        assert error() <= before, layer.name
        ratios.append(error() / before)
        frozen = tuned.freeze(xs).eval()
        plain = frozen.accumulated(xs[-1]) if isinstance(frozen, IntegerConv2d) else frozen(xs[-1])
        step = frozen.input.scale * frozen.scale.max()  # the bias is a whole number of these
        assert torch.allclose(plain, tuned(xs[-1]), atol=0.5 * float(step) + 1e-4), "whole numbers give what was tuned"
    assert np.median(ratios) < 0.95 and min(ratios) < 0.6


def test_adaquant_and_correction_beat_rounding(trained: Trained) -> None:
    child, _, layers = fold(trained.net, trained.batches[0])
    bits = dict.fromkeys((layer.name for layer in layers), 3)
    targets = outputs(child, trained.batches[-2:])
    nearest = calibrate(child, layers, bits, trained.batches, 2, 0)
    better = calibrate(child, layers, bits, trained.batches, 2, 60)
    tuned, losses = correct(better, child, list(bits), trained.batches, 2)
    apart = [difference(net, trained.batches[-2:], targets) for net in (nearest, better, tuned)]
    assert apart[1] < 0.6 * apart[0] and apart[2] <= apart[1]
    assert apart[1] == pytest.approx(losses["before"]) and apart[2] == pytest.approx(min(losses.values()))
    assert (
        difference(
            calibrate(child, layers, dict.fromkeys(bits, 8), trained.batches, 2, 0), trained.batches[-2:], targets
        )
        < 0.02 * apart[0]
    )


def test_sensitivity_is_what_swapping_one_layer_costs(trained: Trained) -> None:
    child, _, layers = fold(trained.net, trained.batches[0])
    found = sensitivities(child, layers, (2, 8), trained.batches[:2])
    assert found.shape == (len(layers), 2) and (found[:, 1] == 0).all() and (found[:, 0] > 0).all()
    base = calibrate(child, layers, dict.fromkeys((layer.name for layer in layers), 8), trained.batches[:2], 1, 0)
    targets = outputs(child, trained.batches[:2])
    assert difference(base, trained.batches[:2], targets) < found[:, 0].max() / 20


# Files ------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(trained: Trained) -> dict[str, Any]:
    """The child quantized to 4 and 8 bits, halfway between all of 4 and all of 8."""
    child, _, layers = fold(trained.net, trained.batches[0])
    costs = Costs.of(child, layers, total_macs(child, (1, 8, 8)))
    most = sum(costs.total({layer.name: bits for layer in layers}, "bitops") for bits in (4, 8)) // 2
    heard: list[tuple[float, float]] = []
    target, fence = replace(read_target("4,8", str(most), None), iterations=30), Fence.take(trained.run)

    def tell(done: float, total: float, note: str) -> None:
        heard.append((done, total))

    figures = quantize_child(trained.home, target, trained.task, CPU, fence, ("searchspaces",), 500, True, tell)
    assert heard[-1][0] == pytest.approx(heard[-1][1]) and [done for done, _ in heard] == sorted(
        done for done, _ in heard
    )
    return figures | {"most": most}


def test_the_figures_of_a_quantized_child(trained: Trained, mixed: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in mixed["rows"]}
    assert list(rows) == [
        "fp32",
        *(f"{how}, {which} bits" for which in ("4", "allocated") for how in ("round to nearest", "AdaQuant")),
    ]
    fp32, four, chosen = (rows[name] for name in ("fp32", "AdaQuant, 4 bits", "AdaQuant, allocated bits"))
    assert four["bitops"] < chosen["bitops"] <= mixed["most"] and mixed["bitops"] == chosen["bitops"]
    assert chosen["bytes"] < 0.4 * fp32["bytes"]
    exported = json.loads((trained.home / "metrics.json").read_text())
    assert fp32["test"]["accuracy"] == exported["test"]["accuracy"] and fp32["bitops"] == exported["macs"] * 1024
    assert chosen["test"]["accuracy"] > fp32["test"]["accuracy"] - 5
    assert (
        mixed["validation"] == chosen["validation"]
        or mixed["validation"] == rows["round to nearest, allocated bits"]["validation"]
    )
    home = trained.run / "children" / mixed["id"]
    tensors = load_file(home / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == mixed["bytes"], "the budget's arithmetic is the file's"
    about = json.loads((home / "arch.json").read_text())
    bits = {each["weight_bits"] for each in about["quantization"]["layers"].values()}
    assert bits == {4, 8}


def test_onnx_runtime_computes_the_same_with_integers(trained: Trained, mixed: dict[str, Any]) -> None:
    """Both widths side by side, so that grids of 8 bits meet in a row: ONNX Runtime merges two that differ."""
    parity = mixed["parity"]
    assert parity["reloaded"] == 0 and parity["onnx"] < 0.05
    about = json.loads((trained.run / "children" / mixed["id"] / "arch.json").read_text())
    assert parity["integer_layers"] == len(about["quantization"]["layers"]), "every layer"
    assert mixed["onnx"]["accuracy"] == pytest.approx(mixed["validation"]["accuracy"], abs=0.5)


def test_a_quantized_child_loads(trained: Trained, mixed: dict[str, Any]) -> None:
    """By raynas; and by the lines of its card where there is no raynas."""
    home = trained.run / "children" / mixed["id"]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = nas.load_child(home)(x)
    lines = (home / "README.md").read_text().split("```python\n")[1].split("```")[0]
    rest = f"\nimport json\nprint(json.dumps(model.network(torch.tensor({x.tolist()})).tolist()))"
    ended = subprocess.run(
        [sys.executable, "-c", STRANGER + lines + rest], cwd=home, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert torch.allclose(torch.tensor(json.loads(ended.stdout)), ours, atol=1e-5)


def test_a_quantized_child_is_what_its_card_says(trained: Trained, mixed: dict[str, Any], tmp_path: Path) -> None:
    """From pictures on: in PyTorch by the card's lines, and by picture.onnx."""
    home, task = trained.run / "children" / mixed["id"], trained.task
    x, y = task.test.batch(np.arange(len(task.test)))
    pictures = [tmp_path / f"{row}.png" for row in range(len(x))]
    for picture, path in zip((x * 255).round().to(torch.uint8), pictures, strict=True):
        Image.fromarray(picture[0].numpy()).save(path)
    found = torch.cat(outputs_of(home, pictures, tmp_path))
    assert 100 * float((found.argmax(1) == y).double().mean()) == pytest.approx(mixed["test"]["accuracy"])
    whole = OnnxFile(home / "picture.onnx")
    colours = (x[:20] * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    assert torch.allclose(torch.cat([whole(picture) for picture in colours]), found[:20], atol=0.05)
    assert mixed["parity"]["picture_onnx"] < 0.05


def test_it_is_not_done_twice_nor_to_a_quantized_child(trained: Trained, mixed: dict[str, Any]) -> None:
    target = read_target("4,8", str(mixed["most"]), None)
    assert done_before(trained.home, target)["id"] == mixed["id"]  # type: ignore[index]
    assert done_before(trained.home, read_target("4", None, None)) is None
    fence = Fence.take(trained.run)
    with pytest.raises(ValueError, match=f"quantized already.*{trained.id}"):
        quantize_child(
            trained.run / "children" / mixed["id"],
            target,
            trained.task,
            CPU,
            fence,
            ("searchspaces",),
            500,
            True,
            lambda *_: None,
        )
    page = trained.run / "children" / mixed["id"] / "metrics.json"
    kept = page.read_text()
    page.write_text("{}")
    assert done_before(trained.home, target) is None, "a damaged one is made again"
    page.write_text(kept)


# Other families ------------------------------------------------------------


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
