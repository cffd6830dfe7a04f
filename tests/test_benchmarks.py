"""The short benchmarks still run, as small as they can be. What they measure is asserted nowhere."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

from nas.build import load_supernet, load_task, make_supernet
from nas.children.alone import Alone
from nas.config.experiment import load_experiment
from nas.recipes.sandwich import Sandwich
from nas.testing.space import check_cost, check_extracted, check_json, images, ready
from tests.benchmarks import ablations, claims, trainings
from tests.benchmarks.fixed import Transposed, network
from tests.benchmarks.quantnas import hand_made

SMALL = {
    "score": ["--candidates", "5"],
    "train_step": ["--repeats", "4"],
    "multi_arch": ["--size", "d8", "--batch", "8", "--steps", "1", "--archs", "2"],
    "recompute": ["--size", "d8", "--repeats", "1"],
    "quant_step": ["--repeats", "1"],
    "loading": ["--images", "60", "--batch", "4", "--turns", "1", "--batches", "1"],
    "search_synthetic": ["--seeds", "1", "--marks", "40"],
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [name, *SMALL[name]])
    importlib.import_module(f"tests.benchmarks.{name}").main()
    out = capsys.readouterr().out
    assert re.search(r"\d", out) and "nan" not in out, out


def test_hand_made_networks_are_those_of_the_paper_and_of_their_size() -> None:
    """An RFDN has 334 M multiply-accumulates in what is searched (specification); a network of 3 x 3 convolutions costs
    what the space of its size says."""
    rfdn, wide, c18 = (load_supernet("quantnas", size) for size in ("rfdn", "basic-wide", "basic-c18"))
    found = rfdn.cost(hand_made(rfdn, 8))["macs"] - rfdn.part_cost((None,)).macs
    assert found / 1e6 == pytest.approx(334, abs=0.5)
    assert wide.cost(hand_made(wide, 4, channels=18, cells=2)) == c18.cost(hand_made(c18, 4))


def test_what_the_claims_say_is_what_was_recorded() -> None:
    """Means over supernets and their standard errors, as the page has them, from the records of trainings."""
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text()
    rows = [*claims.no_retraining(), *claims.family("bignas-textures")]
    assert len(rows) == 10
    told = [f"{mean(values):+.2f} ± {stdev(values) / len(values) ** 0.5:.2f}" for _, values in rows]
    assert told[0] in page
    for place in (1, 2, 3, 4, 7):
        _, values = rows[place]
        assert f"{mean(values):+.1f} ± {stdev(values) / len(values) ** 0.5:.1f}" in page
    changed = list(claims.ablations("bignas-textures"))
    assert len(changed) == len(ablations.PARTS) - 1
    for part, values in changed:
        assert f"| {part} | {mean(values):+.1f} ± {stdev(values) / len(values) ** 0.5:.1f} |" in page
    for (_, values), digits in zip(claims.family("bignas-cifar10-16px"), (2, 1, 1), strict=True):
        assert f"{mean(values):+.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f}" in page


def test_every_picture_of_the_claims_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the page shows, and of whatever else there will be records of: here all that a benchmark writes."""
    records, pictures = tmp_path / "records", tmp_path / "docs" / "claims"
    shutil.copytree(trainings.RECORDS, records)
    pictures.parent.mkdir()
    monkeypatch.setattr(claims, "PICTURES", pictures)
    monkeypatch.setattr(trainings, "RECORDS", records)
    for name in ("quantnas-wide", "quantnas-fixed"):
        figures = {"GBitOPs": 0.4, "Set5": 36.0, "Set14": 32.0, "BSD100": 31.0}
        parts = [("guided, at most 0.4 GBitOPs", lambda figures=figures: figures)]
        trainings.report(name, {"steps": 1}, lambda seed, parts=parts: iter(parts), [0, 1])
        trainings.report(name, {"steps": 1}, lambda seed: iter([("guided, at most 0.4 GBitOPs", pytest.fail)]), [1])
    claims.main()
    page = (Path(__file__).parents[1] / "docs" / "claims.md").read_text()
    drawn = {file.name for file in pictures.iterdir()}
    assert set(re.findall(r"\(claims/(.*?)\)", page)) | {"quantnas-wide.svg"} <= drawn
    assert all("<svg" in (text := file.read_text()) and "currentColor" not in text for file in pictures.iterdir())


def test_a_line_that_a_kill_has_torn_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the one after it lost, nor are those before."""
    monkeypatch.setattr(trainings, "RECORDS", tmp_path)
    trainings.record("some", {"seed": 0})
    with (tmp_path / "some.jsonl").open("a") as log:
        log.write('{"seed": 1, "fig')
    trainings.record("some", {"seed": 2})
    assert trainings.recorded("some") == [{"seed": 0}, {"seed": 2}]


def test_what_is_taken_out_of_the_sandwich_rule_is_out() -> None:
    """Three ways of one step with the same draws: as it is; labels for every child; dropout for every child."""
    experiment = load_experiment("bignas-digits", ["recipe.dropout=0.5"])
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    learner = Alone(experiment, task, net, experiment.recipe, trainings.CPU, 0)
    batches = learner._batches(0)
    x, y = batches["train"]

    def losses(kind: type[Sandwich], dropout: float) -> list[float]:
        options = experiment.recipe.model_copy(update={"dropout": dropout})
        made = kind(task, options).losses(net, net, batches, learner._step(0, 1))  # type: ignore[arg-type]
        return [loss.item() for loss in made]

    usual, labels = losses(Sandwich, 0.5), losses(ablations.OnLabels, 0.5)
    everywhere = losses(ablations.AllRegularised, 0.5)
    assert labels[0] == usual[0] == everywhere[0] != losses(Sandwich, 0.0)[0]
    assert labels[-1] == task.loss(net(x, net.space.smallest()), y).item()
    assert labels[1:] != usual[1:] != everywhere[1:]
    assert losses(ablations.AllRegularised, 0.0) == losses(Sandwich, 0.0)
    norms = [module for name, module in net.named_modules() if name.endswith("project.norm")]
    assert any(not norm.weight.any() for norm in norms)
    ablations.norms_at_one(net)
    assert all((norm.weight == 1).all() for norm in norms)


# --- networks of one size that QuantNAS is compared with


@pytest.mark.parametrize(
    ("size", "scale", "macs"),
    [("fsrcnn-8", 2, 12_464), ("fsrcnn-4", 4, 12_464), ("espcn-8", 2, 21_184), ("espcn-8", 3, 22_624)],
)
def test_published_networks_cost_what_was_published(size: str, scale: int, macs: int) -> None:
    """Multiply-accumulates a pixel of the input: FSRCNN has 5x5x56, 1x1x56x12, four of 3x3x12x12, 1x1x12x56 and 9x9x56
    transposed, ESPCN 5x5x64, 3x3x64x32 and 3x3x32 for each sub-pixel. The luma has its 8 bits."""
    net = network(size, scale=scale)
    cost, bits, first = net.cost(net.space.largest()), int(size[-1]), 25 * (56 if "fsrcnn" in size else 64)
    assert cost["macs"] == macs * 32**2
    assert cost["bitops"] == ((macs - first) * bits + first * 8) * bits * 32**2


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_transposed_convolution_is_one_to_sub_pixels(scale: int) -> None:
    """Against torch's own of the same weights, its borders included."""
    layer, x = Transposed(2, 9, 8, scale, 0.1), torch.randn(1, 2, 7, 6, generator=torch.Generator().manual_seed(0))
    assert layer.taps.sum() == 81
    reach, kernel = layer.taps.shape[-1] // 2, torch.zeros(2, 1, 9, 9)
    for y in range(9):
        for x_ in range(9):
            (dy, row), (dx, column) = (divmod(place - 4, scale) for place in (y, x_))
            kernel[:, 0, y, x_] = layer.conv.weight[row * scale + column, :, reach - dy, reach - dx].detach()
    wanted = F.conv_transpose2d(x, kernel, stride=scale, padding=4, output_padding=scale - 1)
    torch.testing.assert_close(layer(x, quant="off"), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", ["fsrcnn-8", "espcn-4", "plain6-4"])
def test_a_network_of_one_size_is_a_space_of_one(size: str) -> None:
    net = ready(network(size, scale=2, mean=[0.2, 0.4, 0.6], image=12))
    check_json(net, images(net))
    check_extracted(net, images(net))
    if size != "fsrcnn-8":  # whose transposed convolution torch counts with the taps that are nothing
        check_cost(net, images(net))


@pytest.mark.soak
def test_networks_of_one_size_are_trained_and_tested(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps on noise, through the benchmark's own command, at x4."""
    from tests.benchmarks import quantnas

    random = np.random.default_rng(0)
    for name, count in (("BSDS200_train", 20), ("Set5", 1), ("Set14", 1), ("BSD100", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (130, 134, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    monkeypatch.setattr(dist, "init_process_group", lambda *how, **more: None)  # there is one already
    monkeypatch.setattr(quantnas, "SIDE", 128)
    monkeypatch.setattr(quantnas, "NETWORKS", {"fsrcnn": None})
    words = ["fixed", "--data", tmp_path / "data", "--dir", tmp_path / "runs", "--seeds", 0, "--steps", 1, "--scale", 4]
    monkeypatch.setattr("sys.argv", ["quantnas", *map(str, words)])
    quantnas.main()
    out = capsys.readouterr().out
    assert all(f"seed 0, fsrcnn, {bits} bits: GBitOPs" in out for bits in (8, 4))
    assert "nan" not in out and len(re.findall(r"Set14 \d", out)) == 2
