"""A run whose candidates are scored again after some steps, and how far its scores are to be trusted: by the
commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nas.rundir import atomic
from tests.driving import PATIENCE, command, records, sets, start

SETTINGS = [
    *("recipe.epochs=3", "recipe.warmup_epochs=1", "search.window=8", "search.candidates=20", "export.onnx=false"),
    *("train.workers=1", "search.trials=1"),
    *("search.rungs=[[1, 0], [0.3, 6]]", "export.children=2"),
    "search.recipe={name: single, epochs: 20, batch: 64, optimizer: sgd, lr: 0.02, weight_decay: 1e-4}",
    "fidelity={children: 4, seeds: 2, recipe: {name: single, epochs: 2, batch: 64, optimizer: sgd, lr: 0.1}}",
]

pytestmark = pytest.mark.timeout(3 * PATIENCE)


def trainings(run: Path) -> list[tuple[str, int]]:
    (file,) = run.glob("fidelity/*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line["id"], line["seed"]) for line in lines if "seed" in line]


def test_candidates_are_scored_after_steps_and_children_trained_alone_judge_that(tmp_path: Path) -> None:
    ended = command("run", "bignas-digits", *sets(SETTINGS), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    run = tmp_path / "runs" / "bignas-digits"
    found = records(run)
    climbed = {record["id"]: record for record in found.values() if record.get("lower")}
    assert len(found) == 20 and 0 < len(climbed) < 20 and all(len(record["parts"]) == 16 for record in found.values())
    for child in (run / "children").iterdir():
        figures = json.loads((child / "metrics.json").read_text())
        assert atomic.verify(child) and figures["validation"] == climbed[child.name]["metrics"], "to the bit"
        assert figures["parity"]["supernet"] < 1e-4 and set(figures["interval"]) == {"validation", "test"}
        assert "trained on by itself for 6 steps" in (child / "README.md").read_text()
    assert "±" in ended.text and "has not been measured" in (run / "report.html").read_text()

    killed = start("fidelity", run, cwd=tmp_path, log=tmp_path / "said.txt")
    until = time.monotonic() + PATIENCE
    while not (list(run.glob("fidelity/*.jsonl")) and trainings(run)):
        assert killed.poll() is None and time.monotonic() < until, (tmp_path / "said.txt").read_text()
        time.sleep(0.2)
    killed.terminate()
    assert killed.wait(60) == 130
    said = (tmp_path / "said.txt").read_text()
    assert "SIGTERM: saving and ending" in said and "***" not in said, "Ray's own handler would end it after 3 s"
    ended = command("fidelity", run, cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    assert len(trainings(run)) == len(set(trainings(run))) == 8
    for word in ("supernet ", "supernet, 6 steps alone", "another training ", "macs (floor)", "The test part"):
        assert word in ended.text
    assert "networks, each trained alone 2 times" in (run / "report.html").read_text()
    before = (run / "experiment.yaml").read_text()
    ended = command("fidelity", run, "--children", "2000", cwd=tmp_path)
    assert ended.code == 1 and "the space has 1,024" in ended.text, ended.text
    assert (run / "experiment.yaml").read_text() == before, "what was refused does not stick to the run"
    ended = command("fidelity", run, "--set", "fidelity.recipe=null", "--set", "finetune=null", cwd=tmp_path)
    assert ended.code == 1 and "nothing says how networks learn alone" in ended.text, ended.text
