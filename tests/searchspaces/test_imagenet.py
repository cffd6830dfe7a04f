"""The presets for ImageNet, from end to end on a folder of a few pictures: everything but the number of examples and
of steps is as it is shipped."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import nas
from nas.config.experiment import load_experiment
from nas.rundir.checkpoint import Checkpoint
from tests.driving import PATIENCE, command, metrics, records, sets

PRESETS = ["bignas-imagenet", "attentivenas-imagenet", "vit-resnas-imagenet"]
FEW = [
    *(
        "data.validation=8",
        "recipe.batch=8",
        "recipe.warmup_epochs=0",
        "finetune.children=0",
        "finetune.recipe.batch=8",
    ),
    *("train.workers=2", "train.micro_batch=2", "train.precision=fp32", "train.use_gpu=false"),
    *("search.candidates=4", "search.calibration=8", "search.calibration_batch=4", "search.score_batch=8"),
    "export.children=1",
]
OWN = {  # as few of everything, by each preset's own keys
    "bignas-imagenet": ["search.options.coarse=3"],
    "attentivenas-imagenet": ["search.options.initial=2"],
    "vit-resnas-imagenet": ["recipe.archs=2", "search.options.initial=2"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures of two classes, 224 pixels square; 48 to train on."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for (part, count), name in product((("train", 24), ("val", 8)), ("cat", "dog")):
        (root / part / name).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.soak
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_resumes_searches_and_exports(preset: str, images: Path, tmp_path: Path) -> None:
    """Three steps on two workers, each in two parts; one more after a new start; four children; one as a file."""
    shipped = load_experiment(preset)
    lr = shipped.recipe.lr * 8 / shipped.recipe.batch  # type: ignore[attr-defined]
    few = [f"data.path={images}", f"recipe.lr={lr}", *FEW, *OWN[preset]]
    ended = command("train", preset, *sets([*few, "recipe.epochs=0.6"]), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / preset
    first = Checkpoint.newest(run / "supernet")
    assert first is not None and first.state.step == 3
    ended = command("run", preset, *sets([*few, "recipe.epochs=0.8"]), cwd=tmp_path, patience=2 * PATIENCE)
    assert ended.code == 0, ended.text
    steps = [line for line in metrics(run) if "loss" in line]
    assert all(np.isfinite(list(line["loss"].values())).all() for line in steps)
    seen = [line["step"] for line in steps]
    assert seen[-1] == 4 and seen == sorted(set(seen)), "it went on from step 3"
    found = records(run)
    assert len(found) == 4
    bounds = shipped.search.constraints["macs"]
    if "vit" in preset:  # else a network may be tried beyond its bounds
        assert all(bounds.min <= record["cost"]["macs"] <= bounds.max for record in found.values())  # type: ignore[operator]
    (child,) = (path for path in (run / "children").iterdir() if path.is_dir())
    told = json.loads((child / "metrics.json").read_text())
    assert told["parity"]["onnx"] < 1e-3 and told["parity"]["reloaded"] == 0
    net = nas.load_child(child).eval()
    assert net(torch.rand(1, 3, 224, 224)).shape == (1, 2)
    newest = Checkpoint.newest(run / "supernet")
    assert newest is not None
    with safe_open(newest.directory / "recipe.safetensors", "pt") as file:
        assert any(name.startswith("average/") for name in file.keys()) == (preset == "bignas-imagenet")  # noqa: SIM118
