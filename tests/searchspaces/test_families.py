"""The other two families by the command, short: from a preset to finetuned children. What BigNAS's run shows in
detail is in tests/test_pipeline.py."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import nas
from nas.config.experiment import load_experiment
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.rundir.log import read_training
from nas.training.loop import Loop
from tests.driving import PARITY, PATIENCE, command, records, sets

TRANSFORMERS = [
    "recipe.epochs=3",
    "recipe.warmup_epochs=1",
    "search.candidates=40",
    "search.initial=16",
    "search.window=8",
    "export.children=2",
]
TAUGHT = [
    "finetune.fresh=false",
    "finetune.teacher=largest",
    "finetune.recipe.epochs=2",
    "finetune.recipe.warmup_epochs=1",
]
ENLARGING = [
    "recipe.epochs=6",
    "recipe.warmup_epochs=1",
    "search.candidates=16",
    "search.window=8",
    "export.children=1",
]


def told(run: Path, child: str) -> dict[str, Any]:
    return dict(json.loads((run / "children" / child / "metrics.json").read_text()))


@pytest.mark.soak
def test_transformers_from_a_preset_to_a_taught_child(tmp_path: Path) -> None:
    ended = command("run", "vit-resnas-digits", *sets([*TRANSFORMERS, *TAUGHT]), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / "vit-resnas-digits"
    found = records(run)
    assert len(found) == 40 and all(2_300_000 <= record["cost"]["macs"] <= 2_600_000 for record in found.values())
    losses = [found[k]["metrics"]["cross_entropy"] for k in sorted(found)]
    assert min(losses[16:]) < min(losses[:16]), (
        "children of the fittest are no better than the random ones that they come from"
    )

    children = {path.name for path in (run / "children").iterdir()}
    (tuned,) = (name for name in children if name.endswith("-finetuned"))
    best = min(found.values(), key=lambda record: record["metrics"]["cross_entropy"])["id"]
    assert tuned == f"{best}-finetuned"
    (inner,) = (run / "finetune").iterdir()
    teacher = Path(yaml.safe_load((inner / "experiment.yaml").read_text())["recipe"]["teacher"])
    assert (
        teacher.parent == run / "children"
        and teacher.name == nas.load_supernet("vit_resnas", "d8").space.largest().id in children
    )
    for name in children:
        assert told(run, name)["parity"]["onnx"] < PARITY and told(run, name)["parity"]["reloaded"] == 0, name
    assert told(run, tuned)["validation"]["cross_entropy"] < told(run, best)["validation"]["cross_entropy"], (
        "it was trained on from what it had"
    )


@pytest.mark.soak
def test_super_resolution_from_a_preset_to_a_child_that_beats_bicubic(tmp_path: Path) -> None:
    """Trained on with real quantizers, which begin where they fit what the child was."""
    few = [*ENLARGING, "recipe.opening_epochs=2", "finetune.recipe.epochs=14"]
    ended = command("run", "quantnas-photos", *sets(few), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / "quantnas-photos"
    (tuned,) = (path.name for path in (run / "children").glob("*-finetuned"))
    figures, before = told(run, tuned), told(run, tuned.removesuffix("-finetuned"))
    assert figures["test"]["psnr"] > figures["baselines"]["bicubic"]["psnr"] == before["baselines"]["bicubic"]["psnr"]
    assert figures["validation"]["psnr"] > before["validation"]["psnr"]
    assert figures["bitops"] == before["bitops"] and (run / "children" / tuned / "packed.safetensors").is_file()


def test_the_preset_for_imagenet_starts_on_a_few_images(one_rank: None, tmp_path: Path) -> None:
    """224 x 224 pixels, RandAugment, erasing, patch-wise CutMix, the paper's space and opening; one step, and the
    panel."""
    rng = np.random.default_rng(0)
    for part, name, i in product(("train", "val"), ("cat", "dog"), range(5)):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (230, 260, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    small = [
        "recipe.batch=4",
        "recipe.archs=4",
        "recipe.epochs=1",
        "recipe.warmup_epochs=0",
        "finetune.recipe.batch=4",
        "data.validation=2",
    ]
    here = [
        f"data.path={tmp_path / 'images'}",
        "train.workers=1",
        "train.precision=fp32",
        "search.calibration=4",
        "search.calibration_batch=4",
    ]
    experiment = load_experiment("vit-resnas-imagenet", [*small, *here])
    (tmp_path / "run").mkdir()
    Loop(experiment, RunDir(tmp_path / "run"), Fence.take(tmp_path / "run"), 0, 1, torch.device("cpu")).train()
    lines = read_training(RunDir(tmp_path / "run").training_log)
    assert [line.step for line in lines.steps] == [2] or [line.step for line in lines.steps] == [1, 2]
    assert np.isfinite(lines.steps[-1].loss["loss"]) and len(lines.panels[-1].panel) == 6


def test_transformers_learn_by_the_sandwich_rule_too(one_rank: None, tmp_path: Path) -> None:
    """Recipe and space are separate."""
    recipe = (
        "recipe={name: sandwich, epochs: 6, batch: 64, optimizer: adamw, lr: 1e-3, warmup_epochs: 1, weight_decay: "
        "0.05, dropout: 0.0}"
    )
    experiment = load_experiment(
        "vit-resnas-digits", [recipe, "train.workers=1", "train.zero_stage=0", "search.calibration=64"]
    )
    Loop(experiment, RunDir(tmp_path), Fence.take(tmp_path), 0, 1, torch.device("cpu")).train()
    told = read_training(RunDir(tmp_path).training_log).panels[-1].panel
    assert min(figures["accuracy"] for figures in told.values()) > 30, (
        "every child, though the largest alone saw labels"
    )
