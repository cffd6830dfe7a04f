"""The other two families by the command, short: from a preset to finetuned children. What BigNAS's run shows in detail is in test_run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import nas
from tests.test_run import PARITY, PATIENCE, command, records, sets

TRANSFORMERS = ["recipe.epochs=3", "recipe.warmup_epochs=1", "search.candidates=40", "search.initial=16", "search.window=8", "export.children=2"]
TAUGHT = ["finetune.fresh=false", "finetune.teacher=largest", "finetune.recipe.epochs=2", "finetune.recipe.warmup_epochs=1"]
ENLARGING = ["recipe.epochs=6", "recipe.warmup_epochs=1", "search.candidates=16", "search.window=8", "export.children=1"]


def told(run: Path, child: str) -> dict[str, Any]:
    return dict(json.loads((run / "children" / child / "metrics.json").read_text()))


def test_transformers_from_a_preset_to_a_taught_child(tmp_path: Path) -> None:
    ended = command("run", "vit-resnas-digits", *sets([*TRANSFORMERS, *TAUGHT]), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / "vit-resnas-digits"
    found = records(run)
    assert len(found) == 40 and all(2_300_000 <= record["cost"]["macs"] <= 2_600_000 for record in found.values())
    losses = [found[k]["metrics"]["cross_entropy"] for k in sorted(found)]
    assert min(losses[16:]) < min(losses[:16]), "children of the fittest are no better than the random ones that they come from"

    children = {path.name for path in (run / "children").iterdir()}
    (tuned,) = (name for name in children if name.endswith("-finetuned"))
    best = min(found.values(), key=lambda record: record["metrics"]["cross_entropy"])["id"]
    assert tuned == f"{best}-finetuned"
    (inner,) = (run / "finetune").iterdir()
    teacher = Path(yaml.safe_load((inner / "experiment.yaml").read_text())["recipe"]["teacher"])
    assert teacher.parent == run / "children" and teacher.name == nas.load_supernet("vit_resnas", "d8").space.largest().id in children
    for name in children:
        assert told(run, name)["parity"]["onnx"] < PARITY and told(run, name)["parity"]["reloaded"] == 0, name
    assert told(run, tuned)["validation"]["cross_entropy"] < told(run, best)["validation"]["cross_entropy"], "it was trained on from what it had"


def test_super_resolution_from_a_preset_to_a_child_that_beats_bicubic(tmp_path: Path) -> None:
    """Trained on with real quantizers, which begin where they fit what the child was."""
    ended = command("run", "quantnas-photos", *sets([*ENLARGING, "finetune.recipe.epochs=14"]), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / "quantnas-photos"
    (tuned,) = (path.name for path in (run / "children").glob("*-finetuned"))
    figures, before = told(run, tuned), told(run, tuned.removesuffix("-finetuned"))
    assert figures["test"]["psnr"] > figures["baselines"]["bicubic"]["psnr"] == before["baselines"]["bicubic"]["psnr"]
    assert figures["validation"]["psnr"] > before["validation"]["psnr"]
    assert figures["bitops"] == before["bitops"] and (run / "children" / tuned / "packed.safetensors").is_file()
