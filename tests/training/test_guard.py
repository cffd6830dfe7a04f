"""The guard: bad losses and a panel at chance send training back to a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

import nas.training.loop
from nas.recipes.recipe import Step
from nas.rundir.checkpoint import State
from nas.rundir.directory import RunDir
from nas.space import Arch
from nas.training.guard import Diverged, check_loss, check_panel
from nas.training.loop import read_rollbacks
from tests.training.tiny import EVERY, events, lines, newest, state_of, train

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


def test_a_metric_that_is_better_when_lower_collapses_upwards() -> None:
    """An error that falls is progress; back at that of guessing, after it was clearly below, is a divergence."""
    task: Any = SimpleNamespace(metrics={"error": "lower"}, metric="error", chance=90.0, learnt=60.0)
    state = State(3, 12)
    for error in (89.0, 70.0, 20.0, 30.0):
        check_panel(state, error, task)
    assert state.best == 20.0
    with pytest.raises(Diverged, match="error fell from 20 to 88"):
        check_panel(state, 88.0, task)


def test_a_metric_that_is_no_number_is_a_divergence() -> None:
    """And is no best one that nothing later could be held against."""
    task: Any = SimpleNamespace(metrics={"psnr": "higher"}, metric="psnr", chance=6.0, learnt=10.0)
    state = State(3, 12)
    for _ in range(2):
        with pytest.raises(Diverged, match="psnr is no number"):
            check_panel(state, float("nan"), task)
        assert state.best in (None, 30.0)
        check_panel(state, 30.0, task)
    state.best = float("nan")  # as an older version wrote it
    check_panel(state, 30.0, task)
    with pytest.raises(Diverged, match="fell from 30 to 6"):
        check_panel(state, 6.0, task)


def test_a_loss_is_held_against_the_recent_ones() -> None:
    """What began at 2.3 and has come down to 0.1 has exploded at 2.5, not at 2; a climb by small steps is seen too."""
    state = State(0, 1000)
    for state.step, loss in enumerate([2.3, *np.linspace(2.3, 0.1, 150), *[0.1] * 150]):
        check_loss(state, float(loss))
    assert len(state.recent) == 100 and state.yardstick == 2.3
    check_loss(state, 2.2)
    again = State(**json.loads(json.dumps(asdict(state))))
    assert again == state, "a resumed run holds its losses against the same"
    for each in (state, again):
        with pytest.raises(Diverged, match="exploded to 2.5 from 0.1 in"):
            check_loss(each, 2.5)
    with pytest.raises(Diverged, match="exploded to 9"):
        for loss in np.geomspace(0.1, 20, 5000):
            check_loss(state, float(loss))
    with pytest.raises(Diverged, match="not finite"):
        check_loss(State(0, 9), float("nan"))


def once(index: int, change: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor, str, Step], Tensor]:
    """That loss is changed at that step, the first time only."""
    done: list[int] = []

    def bad(loss: Tensor, which: str, step: Step) -> Tensor:
        if step.index == index and which == name and not done:
            done.append(index)
            return change(loss)
        return loss

    return bad


@pytest.mark.parametrize(
    ("index", "change", "name", "message"),
    [
        (9, lambda loss: loss * float("nan"), "largest", "at step 9 the loss is not finite"),
        (9, lambda loss: loss * float("inf"), "smallest", "at step 9 the loss is not finite"),
        (25, lambda loss: loss * 20, "largest", r"at step 25 the loss exploded to .* from [12]\.\d* in the steps"),
    ],
)
def test_a_bad_loss_goes_back_and_halves_the_rate(
    tmp_path: Path, changed: Any, every_step_is_told: None, index: int, change: Any, name: str, message: str
) -> None:
    changed(once(index, change, name))
    last = train(tmp_path, "recipe.epochs=5")
    assert last.name == "step-00000030"
    (reason,) = events(tmp_path)
    (kept,) = read_rollbacks(RunDir(tmp_path))
    assert re.search(message, reason) and kept == reason
    rates: dict[int, list[float]] = {}
    for line in lines(tmp_path):
        if "loss" in line:
            rates.setdefault(line["step"], []).append(line["lr"])
    good = index // EVERY * EVERY  # the checkpoint before
    assert {step for step, found in rates.items() if len(found) == 2} == set(range(good + 1, index + 1))
    before, after = rates[good + 1]
    assert after == pytest.approx(before / 2)
    undisturbed = 0.2 * (1 + np.cos(np.pi * 29 / 30)) / 2
    assert rates[30] == [pytest.approx(undisturbed / 2)], "and so to the end"
    assert all(value.isfinite().all() for value in load_file(last / "weights.safetensors").values())


def test_it_gives_up_after_so_many_returns(tmp_path: Path, changed: Any, every_step_is_told: None) -> None:
    changed(lambda loss, name, step: loss * float("nan") if step.index >= 9 else loss)
    with pytest.raises(
        Diverged,
        match=r"at step 9 .* after 2 rollbacks, each at half the learning rate\. In a new run lower recipe\.lr or set",
    ):
        train(tmp_path, "train.max_rollbacks=2")
    assert len(events(tmp_path)) == len(read_rollbacks(RunDir(tmp_path))) == 2
    rates = [line["lr"] for line in lines(tmp_path) if line.get("step") == 9 and "loss" in line]
    assert [rate / rates[0] for rate in rates] == pytest.approx([1, 0.5, 0.25])
    assert newest(tmp_path).name == "step-00000008"
    with pytest.raises(Diverged, match="after 2 rollbacks"):
        train(tmp_path, "train.max_rollbacks=2")
    assert len(read_rollbacks(RunDir(tmp_path))) == 2, "the same command again does not begin to count anew"


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path, changed: Any, every_step_is_told: None) -> None:
    changed(once(2, lambda loss: loss * float("nan"), "random1"))
    train(tmp_path)
    rates = [line["lr"] for line in lines(tmp_path) if line.get("step") == 1 and "loss" in line]
    assert rates == pytest.approx([0.2, 0.1])


def test_no_step_is_taken_on_a_bad_loss(tmp_path: Path, changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard speaks between the backwards and the step."""
    taken: list[float] = []
    monkeypatch.setattr(nas.training.loop.Engine, "step", lambda self, lr: taken.append(lr))
    changed(lambda loss, name, step: loss * float("nan") if step.index >= 2 else loss)
    with pytest.raises(Diverged):
        train(tmp_path, "train.max_rollbacks=0")
    assert len(taken) == 2


class Panel:
    """In the place of an evaluator: accuracies by look, for all children alike."""

    def __init__(self, *accuracies: float) -> None:
        self.accuracies, self.calls = accuracies, 0

    def __call__(self, arch: Arch) -> dict[str, float]:
        look, self.calls = self.calls // 6, self.calls + 1
        return {"accuracy": self.accuracies[min(look, len(self.accuracies) - 1)]}


@pytest.mark.parametrize(
    ("accuracies", "falls"),
    [
        ((80.0, 10.5, 80.0, 80.0), True),  # chance is 10
        ((80.0, 16.9, 80.0, 80.0), True),
        ((80.0, 17.1, 80.0), False),
        ((12.0, 9.0, 11.0), False),  # it never was above chance
        ((9.0, 80.0, 10.0, 80.0), True),
    ],
)
def test_a_panel_at_chance_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracies: tuple[float, ...], falls: bool
) -> None:
    judge = Panel(*accuracies)
    monkeypatch.setattr(nas.training.loop, "Evaluator", lambda *_: judge)
    train(tmp_path)
    reasons = events(tmp_path)
    assert len(reasons) == falls
    looks = [line for line in lines(tmp_path) if "panel" in line]
    assert len(looks) == 3 + falls
    if falls:
        fallen = accuracies.index(min(accuracies[1:]))
        assert (
            f"at step {EVERY * (fallen + 1)} the largest child's accuracy fell from 80 to {accuracies[fallen]:.4g}: "
            "chance" == reasons[0]
        )
        assert [line["step"] for line in looks][fallen : fallen + 2] == [EVERY * (fallen + 1)] * 2, (
            "that step was done again"
        )
    assert state_of(newest(tmp_path))["best"] == max(accuracies)


def test_an_explosion_in_the_first_steps_is_seen(tmp_path: Path, changed: Any) -> None:
    changed(lambda loss, name, step: loss * 1e6 if step.index >= 5 else loss)
    with pytest.raises(Diverged, match="exploded"):
        train(tmp_path, "recipe.lr=1e-12")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, changed: Any) -> None:
    """A finite loss may have a gradient that is not; it shows first in the weights that would be saved."""
    changed(
        once(3, lambda loss: loss + (loss - loss).square().sqrt(), "smallest")
    )  # worth 0, with the slope of sqrt at 0
    last = train(tmp_path)
    assert last.name == "step-00000012"
    assert all(value.isfinite().all() for value in load_file(last / "weights.safetensors").values())
