"""A run directory of before the modules moved into rooms goes on: it is read, searched on, exported, finetuned, and
its children load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nas
from nas.cli.progress import Screen, plain
from nas.config.experiment import difference, dump, load_experiment, parse
from nas.pipeline import Pipeline
from nas.results.history import front_table, read_history
from nas.results.report import write_report
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import Occupied, RunDir
from nas.rundir.log import read_training

OLD = Path(__file__).parent.parent / "golden" / "old-run"
CHILD = "a7fb0a02abc3"
MORE = ["search.candidates=28", "export.onnx=false", "search.trials=1"]
FINETUNE = "finetune={recipe: {name: single, epochs: 0.2, batch: 64}}"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    shutil.copytree(OLD, tmp_path / "run", ignore=shutil.ignore_patterns("README.md"))
    for child in (CHILD, f"{CHILD}-w4a4"):
        shutil.copy(OLD / "children" / child / "README.md", tmp_path / "run" / "children" / child / "README.md")
    return RunDir(tmp_path / "run")


def test_it_is_the_same_run(run: RunDir) -> None:
    """Old keys and what they became are one experiment: no value differs, and what is written now is read as equal."""
    old = load_experiment(run.experiment)
    preset = load_experiment(
        "bignas-digits",
        [
            "recipe.epochs=6",
            "search.candidates=24",
            "export.children=2",
            "train.keep=1",
            "export.onnx=false",
            "fidelity.recipe=null",
        ],
    )
    assert difference(old, preset) == []
    (run.path / "again.yaml").write_text(dump(old))
    assert load_experiment(run.path / "again.yaml") == old
    assert parse(old.model_dump(mode="json")) == old


def test_it_is_read(run: RunDir) -> None:
    training = read_training(run.training_log)
    assert training.steps[-1].step == training.steps[-1].total == 108
    assert set(training.steps[-1].loss) == {"largest", "random0", "random1", "smallest"}
    assert training.panels[-1].panel["largest"]["accuracy"] > 30
    history = read_history(run)
    assert (
        history is not None and len(history.records) == 24 and history.supernet == Checkpoint.open(checkpoint(run)).sha
    )
    (row,) = [row for row in front_table(run) if row["id"] == CHILD]
    assert row["exported"] and row["test"] == json.loads(run.child(CHILD).metrics.read_text())["test"]["accuracy"]
    assert CHILD in write_report(run).read_text()


def test_its_children_load(run: RunDir) -> None:
    """The plain one and the quantized one, by the classes that are installed here."""
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, quantized = (nas.load_child(run.child(name).path)(x) for name in (CHILD, f"{CHILD}-w4a4"))
    weights = load_file(run.child(CHILD).weights)
    assert plain.shape == (3, 10) and torch.isfinite(plain).all() and "classifier.weight" in weights
    assert torch.corrcoef(torch.stack((plain.flatten(), quantized.flatten())))[0, 1] > 0.8


def checkpoint(run: RunDir) -> Path:
    newest = Checkpoint.newest(run.checkpoints)
    assert newest is not None
    return newest.directory


@pytest.fixture
def screen() -> Iterator[Screen]:
    shown = Screen(plain())
    yield shown
    shown.stop()


def test_it_goes_on(run: RunDir, screen: Screen, extension: None) -> None:
    """Nothing is trained again; four candidates more, one of them exported, the old child trained on."""
    before = run.journals()[0].read_bytes()
    hashed: list[Path] = []
    experiment = load_experiment(run.experiment, [*MORE, FINETUNE])
    with pytest.MonkeyPatch.context() as patch:
        opened = Checkpoint.open.__func__  # type: ignore[attr-defined]
        patch.setattr(Checkpoint, "open", classmethod(lambda cls, path: hashed.append(path) or opened(cls, path)))
        with Pipeline.open(experiment, run.path, screen) as pipeline:
            pipeline.train()
            assert not pipeline.worked
            pipeline.search()
            assert len(hashed) == 1, "a checkpoint is verified once a command"
            pipeline.export("27")
            tuned = pipeline.finetune(CHILD)
        otherwise = load_experiment(run.experiment, [*MORE, FINETUNE, "finetune.fresh=true"])
        with (
            Pipeline.open(otherwise, run.path, screen) as pipeline,
            pytest.raises(Occupied, match=r"finetune\.fresh: False then, True now"),
        ):
            pipeline.finetune(CHILD)
    (journal,) = run.journals()
    lines = journal.read_bytes().count(b"\n") - before.count(b"\n")
    assert journal.read_bytes().startswith(before) and lines == 8, "four proposals and their records"
    history = read_history(run)
    assert history is not None
    for name in (history.records[27].id, tuned):
        assert nas.load_child(run.child(name).path)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
