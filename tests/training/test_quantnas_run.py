"""QuantNAS through the training loop on photographs: killed and resumed, cut, calibrated and exported."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from nas.build import check_trainable, load_recipe, load_supernet, load_task, make_supernet, open_search, proposed
from nas.children.evaluate import Batches, Evaluator, recalibrate
from nas.children.export import export_child
from nas.children.formats import OnnxFile, write_onnx
from nas.cli.commands import app
from nas.config.experiment import Experiment, dump, load_experiment
from nas.quantization.learned import QuantConv2d, for_onnx, pack, unpack
from nas.recipes.differentiable import architecture, entropy
from nas.recipes.recipe import Recipe, RecipeOptions
from nas.recipes.single_path import SinglePath
from nas.rundir.checkpoint import Checkpoint, directories
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.rundir.log import read_training
from nas.supernet import CostModel, Supernet
from nas.training.loop import Diverged, Loop
from nas.workers.trials import search_children

SPACE = """
name: tiny
space: {name: quantnas, size: basic-c12}
data: {name: photos, scale: 2, patch: 16, validation: 8}
train: {workers: 1, zero_stage: 1, checkpoint_every: 4, keep: 9}
search: {candidates: 2, calibration: 16, calibration_batch: 8}
"""
RECIPES = {
    "differentiable": "recipe: {name: differentiable, batch: 16, epochs: 1, alpha_warmup: 0.25, alpha_lr: 0.01, "
    "bitops: 0.001}",
    "single_path": "recipe: {name: single_path, batch: 16, epochs: 1, lr: 0.002, warmup_epochs: 0.5, paths: 2}",
}


def experiment(recipe: str, *overrides: str) -> Experiment:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny.yaml").write_text(SPACE + RECIPES[recipe])
        return load_experiment(Path(folder) / "tiny.yaml", overrides)


def train(told: Experiment, run: Path) -> list[Path]:
    run.mkdir(exist_ok=True)
    Loop(told, RunDir(run), Fence.take(run), 0, 1, torch.device("cpu")).train()
    return directories(RunDir(run).checkpoints)


@pytest.mark.parametrize("broken", [None, 0, 1])
def test_the_loss_of_a_step_is_the_mean_of_its_paths(
    broken: int | None, one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged; and a path that is not finite ends the training, whichever it is."""
    seen: list[float] = []
    plain = SinglePath.losses

    def losses(*args: Any) -> Iterator[Tensor]:
        for place, loss in enumerate(plain(*args)):
            seen.append(float(loss.detach()))
            yield loss * math.nan if place == broken else loss

    monkeypatch.setattr(SinglePath, "losses", losses)
    told = experiment("single_path", "train.max_rollbacks=0")
    if broken is not None:
        with pytest.raises(Diverged, match="not finite"):
            train(told, tmp_path)
        return
    train(told, tmp_path)
    for line in read_training(RunDir(tmp_path).training_log).steps:
        assert line.loss["loss"] == pytest.approx(sum(seen[2 * line.step - 2 : 2 * line.step]), rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(recipe: str, one_rank: None, tmp_path: Path) -> None:
    """Weights, their optimizer, logits and theirs: all files of the last checkpoint, bit for bit."""
    told = experiment(recipe)
    whole = train(told, tmp_path / "whole")
    assert len(whole) >= 3
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for later in directories(RunDir(tmp_path / "killed").checkpoints)[-2:]:
        shutil.rmtree(later)
    again = train(told, tmp_path / "killed")
    assert again[-1].name == whole[-1].name
    for name in ("weights", "optimizer", "recipe"):
        one, other = (load_file(found[-1] / f"{name}.safetensors") for found in (whole, again))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    if recipe == "single_path":
        (tmp_path / "whole" / "experiment.yaml").write_text(dump(told))
        with pytest.raises(ValueError, match="only differentiable finds"):
            proposed(tmp_path / "whole", make_supernet(told, load_task(told)))
    if recipe == "differentiable":
        alpha = load_file(whole[-1] / "recipe.safetensors")["alpha"]
        assert alpha.any(), "the logits have not moved"
        (tmp_path / "whole" / "experiment.yaml").write_text(dump(told))
        task, other = load_task(told), experiment("single_path", "space.size=basic-c12")
        net = make_supernet(other, task)
        found = architecture(net, alpha)
        assert found != net.space.smallest()
        assert proposed(tmp_path / "whole", net) == found
        search = open_search(experiment("single_path", f"search.propose_from=[{tmp_path / 'whole'}]"), net, task)
        asked = search.ask()
        assert asked is not None and asked.arch == found and search.identity["first"] == [found.id]
        own = open_search(told, make_supernet(told, task), task, Checkpoint.open(whole[-1])).ask()
        assert own is not None and own.arch == found, "a run's own search begins with what it found"
        tight = experiment(
            recipe, "search.candidates=1", f"search.constraints.max_bitops={net.cost(net.space.smallest())['bitops']}"
        )
        with pytest.raises(ValueError, match=rf"exclude what was found \({found.id}: bitops .*search\.candidates is 1"):
            search_children(
                tight, task, net, RunDir(tmp_path / "whole"), Fence.take(tmp_path / "whole"), Checkpoint.open(whole[-1])
            )
        with pytest.raises(ValueError, match="before the logits learn"):
            open_search(told, net, task, Checkpoint.open(whole[0]))
        line = read_training(RunDir(tmp_path / "whole").training_log).panels[-1]
        figures, net = dict(line.figures()), make_supernet(told, task)
        assert figures["recipe/entropy"] == pytest.approx(float(entropy(net, alpha))) and 0 < figures[
            "recipe/entropy"
        ] < entropy(net, 0 * alpha)
        assert (
            net.cost(net.space.smallest())["bitops"]
            < figures["recipe/expected_bitops"]
            < net.cost(net.space.largest())["bitops"]
        )
        net.load_state_dict(Checkpoint.open(whole[-1]).child_weights())
        judged = Evaluator(net, task, told.search, torch.device("cpu"))(found)
        assert figures["panel/chosen/psnr"] == pytest.approx(judged["psnr"], abs=1e-4), (
            "the panel follows what would be found now"
        )
        larger = experiment("single_path", "data.scale=4")
        operations = dict(proposed(tmp_path / "whole", make_supernet(larger, load_task(larger))))
        assert operations == dict(found), "operations by name, though x4 orders them otherwise"
        with pytest.raises(ValueError, match="not in this space"):
            proposed(tmp_path / "whole", net.fix(net.space.smallest()))
        assert not load_file(whole[0] / "recipe.safetensors")["alpha"].any(), (
            "they have before the end of their warm-up"
        )


def test_what_cannot_be_proposed_is_refused_before_the_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = CliRunner().invoke(
        app, ["run", "quantnas-photos", "--run-dir", str(run), "--set", f"search.propose_from=[{tmp_path}/nowhere]"]
    )
    assert isinstance(told.exception, ValueError) and "nowhere, which is no run directory" in str(told.exception)
    assert not (run / "train").exists() and not (run / "supernet").exists()


def test_images_too_small_for_spatial_attention_are_refused_before_the_training(tmp_path: Path) -> None:
    words = [
        "run",
        "quantnas-photos",
        "--run-dir",
        str(tmp_path / "run"),
        "--set",
        "space.size=rfdn-c12",
        "--set",
        "data.patch=10",
    ]
    told = CliRunner().invoke(app, words)
    assert isinstance(told.exception, ValueError) and "need 15 pixels a side; the data have inputs of 10" in str(
        told.exception
    )
    assert not (tmp_path / "run" / "train").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        "{name: sandwich, epochs: 1, batch: 16, lr: 0.1, weight_decay: 0.0}",
        "{name: multi_arch, epochs: 1, batch: 16, archs: 1}",
        "{name: multi_arch, epochs: 1, batch: 16, archs: 2}",
    ],
)
def test_a_recipe_that_knows_no_quantizers_is_refused_before_the_training(recipe: str, tmp_path: Path) -> None:
    words = ["run", "quantnas-photos", "--run-dir", str(tmp_path / "run"), "--set", f"recipe={recipe}"]
    told = CliRunner().invoke(app, words)
    assert isinstance(told.exception, ValueError)
    assert "trains without quantizers" in str(told.exception) and "use single_path" in str(told.exception)
    assert not (tmp_path / "run" / "train").exists()


def test_a_recipe_of_ones_own_says_how_it_runs_quantizers() -> None:
    """Even that they are off, as the options of those that come with raynas may."""

    class Silent(Recipe):
        def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
            return torch.optim.SGD(net.parameters(), lr=0.1)

    class Told(Silent):
        @property
        def quant(self) -> str:
            return "off"

    task, plain = load_task(experiment("single_path")), load_supernet("bignas", "d8")
    net, options = load_supernet("quantnas", "basic-c12"), RecipeOptions(name="mine:Silent", epochs=1, batch=8)
    with pytest.raises(ValueError, match=r"recipe mine:Silent: .* its property `quant`"):
        check_trainable(Silent(task, options), net)
    check_trainable(Silent(task, options), plain)
    check_trainable(Told(task, options), net)
    check_trainable(load_recipe(task, experiment("single_path", "recipe.quant=off").recipe), net)


@pytest.mark.parametrize("layout", ["basic-c12", "basic-wide", "rfdn-c12"])
def test_files_carry_the_grids_that_a_child_was_trained_on(layout: str, tmp_path: Path) -> None:
    """Mixed bits: packed weights give the same output, ONNX Runtime too but for values amid two levels, which float
    errors may part."""
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    net = load_supernet("quantnas", layout, bits=[2, 4, 8, 16])
    child = net.extract(net.space.sample(rng)).eval().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 24, 20)
    recalibrate(child, [(x, x)])
    with torch.no_grad():
        for layer in child.modules():
            if isinstance(layer, QuantConv2d):  # as training leaves them: not where they were fitted
                for step in (*layer.weight_step.values(), *layer.input_step.values()):
                    step += 0.3 * torch.randn_like(step)
    save_file(pack(child), tmp_path / "packed.safetensors")
    tensors = load_file(tmp_path / "packed.safetensors")
    again = (
        type(child)(**child.config).eval().to(memory_format=torch.channels_last)
    )  # as child: another layout rounds otherwise
    again.load_state_dict(unpack(again, tensors))
    expected = child(x)
    assert torch.equal(again(x), expected) and not torch.equal(child.quantize(False)(x), expected)
    child.quantize(True)
    narrow = [layer for layer in child.modules() if isinstance(layer, QuantConv2d) and layer.bits[0] <= 8]
    assert {layer.bits[0] for layer in narrow} == {2, 4, 8}
    sizes = {name: tensors[f"{name}.weight"] for name, layer in child.named_modules() if isinstance(layer, QuantConv2d)}
    for name, layer in ((n, m) for n, m in child.named_modules() if isinstance(m, QuantConv2d)):
        bits = layer.bits[0]
        assert sizes[name].nbytes == (
            -(-layer.weight.numel() // 2) if bits <= 4 else layer.weight.numel() * (1 if bits == 8 else 4)
        )
    write_onnx(for_onnx(child), x, tmp_path / "model.onnx", True)
    other = torch.rand(1, 3, 30, 21)
    for images in (x, other):
        apart = (OnnxFile(tmp_path / "model.onnx")(images) - child(images)).abs()
        assert float(apart.detach().quantile(0.9)) < 1e-6
    graph = onnx.load(tmp_path / "model.onnx").graph
    bytes_ = {
        initializer.name
        for initializer in graph.initializer
        if initializer.data_type == onnx.TensorProto.INT8 and initializer.dims
    }
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in bytes_]
    assert len(weights) == len(narrow)


def test_a_child_is_calibrated_judged_and_exported(one_rank: None, tmp_path: Path) -> None:
    """With fitted steps, on photographs that were not trained on; its files give what it gives, ONNX within the
    steps of its grids."""
    told = experiment("single_path")
    newest = train(told, tmp_path)[-1]
    task = load_task(told)
    net = make_supernet(told, task)
    net.load_state_dict(load_file(newest / "weights.safetensors"))
    evaluator = Evaluator(net, task, told.search, torch.device("cpu"))
    arch = net.space.smallest()
    assert evaluator(arch)["psnr"] > 31.0, (
        "after 14 steps near the enlarged image, not the noise of steps that do not fit"
    )
    raw = net.extract(arch)
    child = evaluator.child(arch)
    steps = [name for name, _ in raw.named_parameters() if "_step" in name]
    assert steps and all(not torch.equal(raw.state_dict()[name], child.state_dict()[name]) for name in steps)
    test = Batches(task.test, 1, 1, torch.device("cpu"))
    about = {"space": "quantnas", "size": "basic-c12", "supernet": "5a" * 32, "data": told.data.name, **task.about}
    (tmp_path / "children").mkdir()
    figures = export_child(
        tmp_path / "children" / arch.id, arch, CostModel(net), evaluator, test, about, True, Fence.take(tmp_path)
    )
    assert figures["bitops"] == net.cost(arch)["bitops"]
    assert (
        figures["parity"]["supernet"] < 1e-5 and figures["parity"]["reloaded"] == 0 and figures["parity"]["onnx"] < 0.02
    )
    assert figures["parity"]["packed"] == 0
    kept = json.loads((tmp_path / "children" / arch.id / "arch.json").read_text())
    assert kept["network"]["slots"]["head1"] == ["conv3g3", 4]
