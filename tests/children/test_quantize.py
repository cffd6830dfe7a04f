"""Quantized children: bits under a budget, AdaQuant, files and figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import nas
from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator
from nas.children.export import export_child
from nas.children.formats import OnnxFile
from nas.children.quantize import done_before, quantize_child
from nas.config.experiment import load_experiment
from nas.draws import permutation
from nas.quantization.adaquant import AdaQuantLayer, adaquant, calibrate, seen, widths
from nas.quantization.allocate import BitBudget, Costs, check_budget, difference, outputs, sensitivities
from nas.quantization.correction import correct, statistics
from nas.quantization.graph import float_layer, fold, integer_layer_of, total_macs
from nas.quantization.integer import IntegerConv2d
from nas.quantization.target import read_target
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
    assert done_before(trained.home, target, True)["id"] == mixed["id"]  # type: ignore[index]
    assert done_before(trained.home, read_target("4", None, None), True) is None
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
    assert done_before(trained.home, target, True) is None, "a damaged one is made again"
    page.write_text(kept)
