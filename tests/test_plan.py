"""What a plan says of a run: its arithmetic, and that trying leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.config.experiment import load_experiment
from nas.plan import Stage, seconds_a_step, small, states
from nas.rundir.log import StepLine
from tests.driving import PATIENCE, command, sets


def line(step: int, seconds: float) -> StepLine:
    return StepLine(step, 100, 0.0, seconds)


def test_the_first_step_is_no_measure_of_the_others() -> None:
    """It took 50 s to prepare."""
    assert seconds_a_step([line(1, 50), line(31, 80), line(41, 130)]) == pytest.approx(2.0)
    assert seconds_a_step([line(1, 50)]) == 50


def test_first_of_a_stage_is_no_measure_of_the_others() -> None:
    assert Stage("search", 100.0, 0.0, [(110.0, 2.0), (112.0, 4.0), (115.0, 7.0)]).each == pytest.approx(1.0)
    assert Stage("search", 100.0, 0.0, [(110.0, 2.0)]).each == pytest.approx(5.0)


def test_what_zero_divides() -> None:
    """Figure 1 of Rajbhandari et al. 2020 in fp32 with Adam (K = 8 bytes a weight), but for the copy of its share of
    the weights that DeepSpeed's optimizer has from stage 1 on."""
    weights, optimizer, workers = 4.0, 8.0, 4
    assert states(weights, optimizer, 0, workers) == 4 + 4 + 8
    assert states(weights, optimizer, 1, workers) == 4 + 4 + (8 + 4) / 4
    assert states(weights, optimizer, 2, workers) == 4 + (4 + 8 + 4) / 4
    assert states(weights, optimizer, 3, workers) == (4 + 4 + 8 + 4) / 4


def test_a_worker_has_in_the_trial_what_it_has_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    whole = load_experiment("vit-resnas-imagenet", ["finetune.recipe.batch=512", "train.max_minutes=600"])
    tried = small(whole, tmp_path / "run")
    assert (whole.train.workers, tried.train.workers) == (8, 2)
    assert tried.recipe.batch / 2 == whole.recipe.batch / 8
    assert tried.finetune and tried.finetune.recipe.batch == 128
    assert tried.train.max_minutes == tried.search.max_minutes == 0.25
    assert str(tmp_path) in str(tried.tracking.uri)


def test_a_plan_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    """The whole chain, by the command."""
    given = ["recipe.epochs=2", "recipe.warmup_epochs=0", "search.candidates=20", "search.constraints.macs.max=300k"]
    given += ["train.workers=1", "search.trials=1", "export.onnx=false"]
    ended = command("plan", "bignas-digits", *sets(given), cwd=tmp_path, patience=PATIENCE)
    assert ended.code == 0, ended.text
    assert "1,024 networks of 71.9 k to 530 k MACs; inputs 1 x 8 x 8, worked at 8 px" in ended.text
    assert "of random networks are within the constraints" in ended.text
    table = {" ".join(line.split()[:3]) for line in ended.lines}
    assert {"train 36 steps", "search 20 candidates", "export 5 children"} <= table
    assert "next: nas run bignas-digits --set recipe.epochs=2" in ended.text
    assert not list(tmp_path.iterdir()), "neither the run in small nor a directory of runs"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("recipe.batch=5000", "recipe.batch 5000 is more than"),
        ("search.constraints.macs.max=1", "macs"),
        ("space.size=d9", "has no size 'd9'"),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(tmp_path: Path, setting: str, part: str) -> None:
    ended = command("plan", "bignas-digits", "--set", setting, cwd=tmp_path)
    assert ended.code == 1 and part in ended.text, ended.text
    assert "raynas-plan" not in ended.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("objectives", ["[]", "[accuracy, macs]"])
def test_bounds_on_what_is_not_learnt_yet_are_left_out(
    objectives: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what children cost they stay, the user's own costs too."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    bounds, own = (
        "{accuracy: {min: 95}, macs: {max: 300k}, energy: {max: 20}}",
        "search.costs=[{name: 'own_cost:Energy'}]",
    )
    given = [f"search.objectives={objectives}", f"search.constraints={bounds}", own]
    tried = small(load_experiment("bignas-digits", given), tmp_path / "run")
    assert list(tried.search.constraints) == ["macs", "energy"]


def test_a_dry_run_is_of_the_run_that_would_be(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    ended = command("run", "bignas-digits", "--dry-run", "--run-dir", "taken", cwd=tmp_path)
    assert ended.code == 1 and "is not empty and holds no run" in ended.text
