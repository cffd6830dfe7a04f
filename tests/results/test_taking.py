"""A run that begins with the supernet of another: what is taken, and what is not mixed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.config.experiment import Experiment, dump, load_experiment
from nas.results import taking
from nas.results.taking import check_supernet, read_known, take_supernet
from nas.rundir.checkpoint import Checkpoint, State
from nas.rundir.directory import RunDir
from nas.search.journal import Journal, Record
from nas.space import Arch

OTHER = ["search.cost=params"]  # another search


def experiment(*settings: str) -> Experiment:
    return load_experiment("bignas-digits", list(settings))


def checkpoint(run: RunDir, step: int) -> Checkpoint:
    """One with weights of its own."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    weights = {"weight": torch.full((2,), float(step))}
    Checkpoint.write(run.checkpoints, State(step, 100), weights, {}, {}, lambda: None)
    found = Checkpoint.newest(run.checkpoints)
    assert found is not None
    return found


def trained(home: Path, step: int = 60, *settings: str) -> tuple[RunDir, Checkpoint]:
    """A run that has a supernet and has judged three children, of which one failed."""
    run = RunDir(home)
    for folder in (run.path, run.search, run.training_log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    run.experiment.write_text(dump(experiment(*settings)))
    run.training_log.write_text('{"kind": "step", "step": 1, "total": 100}\n')
    newest = checkpoint(run, step)
    with Journal(run.begin_search(newest.sha), {"supernet": newest.sha, "window": 4}) as journal:
        for k in range(3):
            metrics = {"accuracy": 90.0 + k} if k < 2 else None
            journal.append(Record(k, Arch({"a": k}), metrics, {"macs": 5.0}, 1.0, None if metrics else "failed"))
    return run, newest


def fresh(home: Path) -> RunDir:
    """What `open_run` has made of a directory."""
    run = RunDir(home)
    run.path.mkdir()
    return run


def test_supernet_log_and_scores_are_taken_and_the_source_is_left(tmp_path: Path) -> None:
    source, newest = trained(tmp_path / "source")
    run, told = fresh(tmp_path / "run"), list[str]()
    take_supernet(experiment(*OTHER), run, source, told.append)
    found = Checkpoint.newest(run.checkpoints)
    assert found is not None and found.sha == newest.sha and found.state.step == 60
    assert run.training_log.read_text() == source.training_log.read_text()
    assert [record.metrics for record in read_known(run, newest.sha).values()] == [
        {"accuracy": 90.0},
        {"accuracy": 91.0},
    ]
    assert "step 60; 2 children that were judged there are not judged again" in told[0]
    shutil.rmtree(source.path)
    assert Checkpoint.newest(run.checkpoints) is not None, "what was taken is its own"


def test_scores_are_of_one_supernet(tmp_path: Path) -> None:
    """The run trains on, or a third run takes what the second has: other weights, so nothing is known of them."""
    source, newest = trained(tmp_path / "source")
    run = fresh(tmp_path / "run")
    take_supernet(experiment(*OTHER), run, source, lambda _: None)
    run.experiment.write_text(dump(experiment(*OTHER)))
    later = checkpoint(run, 90)
    assert read_known(run, newest.sha) and not read_known(run, later.sha)
    third = fresh(tmp_path / "third")
    take_supernet(experiment(*OTHER), third, run, lambda _: None)
    assert not read_known(third, later.sha)


def test_who_is_judged_otherwise_is_judged_again(tmp_path: Path) -> None:
    source, newest = trained(tmp_path / "source")
    run, told = fresh(tmp_path / "run"), list[str]()
    take_supernet(experiment("search.calibration=256"), run, source, told.append)
    assert not read_known(run, newest.sha) and told[0].endswith("step 60")


def test_a_source_whose_search_was_killed_gives_what_is_whole(tmp_path: Path) -> None:
    source, newest = trained(tmp_path / "source")
    with source.journal(newest.sha).open("a") as file:
        file.write('{"k": 3, "id": "')
    run = fresh(tmp_path / "run")
    take_supernet(experiment(*OTHER), run, source, lambda _: None)
    assert len(read_known(run, newest.sha)) == 2


def test_an_interrupted_take_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, newest = trained(tmp_path / "source")
    run = fresh(tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(taking, "_copy", full)
        with pytest.raises(OSError, match="No space"):
            take_supernet(experiment(*OTHER), run, source, lambda _: None)
    take_supernet(experiment(*OTHER), run, source, lambda _: None)
    found = Checkpoint.newest(run.checkpoints)
    assert found is not None and found.sha == newest.sha and len(read_known(run, newest.sha)) == 2


def test_what_was_trained_otherwise_is_not_taken(tmp_path: Path) -> None:
    source, _ = trained(tmp_path / "source")
    run, told = fresh(tmp_path / "run"), list[str]()
    take_supernet(experiment("recipe.lr=0.7"), run, source, told.append)
    assert "trained otherwise (recipe.lr)" in told[0] and Checkpoint.newest(run.checkpoints) is None
    with pytest.raises(ValueError, match=r"trained otherwise \(recipe.lr\).*nas run trains it"):
        check_supernet(experiment("recipe.lr=0.7"), source)
    check_supernet(experiment(*OTHER), source)
