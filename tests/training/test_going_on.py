"""A training that stops, is stopped or goes on: bit-equal to one that did not; the bound in minutes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nas.recipes.recipe import Step
from nas.rundir.checkpoint import Checkpoint, State
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence, Fenced
from tests.training.tiny import EVERY, events, loop_in, newest, plain, state_of, train

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


def noted(note: Callable[[Step], None]) -> Callable[[Tensor, str, Step], Tensor]:
    """Losses as they are; `note` is told the step of each."""

    def unchanged(loss: Tensor, name: str, step: Step) -> Tensor:
        note(step)
        return loss

    return unchanged


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "overrides", [("train.zero_stage=1",), ("space={name: bignas, size: d8, options: {}}", "train.zero_stage=3")]
)
def test_a_resumed_training_is_bit_equal(tmp_path: Path, changed: Any, overrides: tuple[str, ...]) -> None:
    """Dropout, augmentation, architectures, momentum and the recipe's own state, from step 8 of 12."""
    overrides = (*overrides, "recipe.dropout=0.3")
    changed(plain)
    undisturbed = train(tmp_path / "undisturbed", *overrides)

    def kill(loss: Tensor, name: str, step: Step) -> Tensor:
        if step.index == 10:
            raise Interrupted
        return loss

    changed(kill)
    with pytest.raises(Interrupted):
        train(tmp_path / "killed", *overrides)
    assert newest(tmp_path / "killed").name == "step-00000008"
    changed(plain)
    again = train(tmp_path / "killed", *overrides)
    assert again.name == undisturbed.name == "step-00000012"
    for file in ("weights.safetensors", "optimizer.safetensors", "recipe.safetensors"):
        assert (again / file).read_bytes() == (undisturbed / file).read_bytes(), file
    kept = json.loads((again / "state.json").read_text())["recipe"]
    assert kept == {"count": 12} and load_file(again / "recipe.safetensors")["tensor"].tolist() == [66.0, 66.0]


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write waits until the training is two steps further; what it writes is of its own step all the same,
    recipe and optimizer included, and a training that goes on from it is the undisturbed one."""
    further, write, seen = threading.Event(), Checkpoint.write, list[int]()

    def slow(root: Path, state: State, *rest: Any) -> Path:
        if state.step == EVERY:
            assert further.wait(60)
        return write(root, state, *rest)

    def note(step: Step) -> None:
        seen.append(step.index)
        if step.index == EVERY + 2:
            further.set()

    whole = train(tmp_path / "whole", "train.keep=9")
    changed(noted(note))
    monkeypatch.setattr(Checkpoint, "write", slow)
    train(tmp_path / "slow", "train.keep=9")
    first = RunDir(tmp_path / "slow").checkpoints / f"step-{EVERY:08}"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        mine, wanted = load_file(first / name), load_file(whole.with_name(first.name) / name)
        assert all(torch.equal(mine[key], wanted[key]) for key in wanted)
    kept = load_file(first / "recipe.safetensors")["tensor"]
    assert kept[0] == sum(range(EVERY))


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoint, "write", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)


def test_a_finished_training_is_not_done_twice(tmp_path: Path, changed: Any) -> None:
    first = train(tmp_path)
    seen: list[int] = []
    changed(noted(lambda step: seen.append(step.index)))
    assert train(tmp_path) == first and seen == []


def test_more_epochs_go_on_from_the_last_checkpoint(tmp_path: Path, changed: Any) -> None:
    changed(plain)
    train(tmp_path)
    seen: list[tuple[int, int]] = []
    changed(noted(lambda step: seen.append((step.index, step.total))))
    extended = train(tmp_path, "recipe.epochs=3")
    assert extended.name == "step-00000018"
    assert (seen[0], seen[-1]) == ((12, 18), (17, 18))


def test_a_training_asked_to_stop_saves_and_goes_on_bit_equal(tmp_path: Path, changed: Any) -> None:
    undisturbed = train(tmp_path / "undisturbed", "recipe.dropout=0.3")
    run = tmp_path / "stopped"
    run.mkdir()
    loop = loop_in(run, "recipe.dropout=0.3")
    changed(noted(lambda step: loop.fence.ask_to_stop() if step.index == 5 else None))
    loop.train()
    assert newest(run).name == "step-00000006"
    changed(plain)
    again = train(run, "recipe.dropout=0.3")
    assert (again / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()


def test_notice_of_a_preemption_saves_and_returns(
    tmp_path: Path, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked now and then, by all ranks at the same step; what goes on from there is bit-equal."""
    undisturbed = train(tmp_path / "undisturbed", "recipe.dropout=0.3")
    monkeypatch.setattr("nas.training.loop.LEAVING_S", 0.0)
    run, at, asked = tmp_path / "preempted", [0], list[int]()
    run.mkdir()
    loop = loop_in(run, "recipe.dropout=0.3")
    changed(noted(lambda step: at.__setitem__(0, step.index)))
    loop.leaving = lambda: asked.append(at[0]) or at[0] == 5  # type: ignore[func-returns-value]
    loop.train()
    assert newest(run).name == "step-00000006" and asked == [0, 1, 2, 3, 4, 5] and len(events(run, "preemption")) == 1
    assert not loop.fence.stopping(), "the run itself goes on"
    changed(plain)
    again = train(run, "recipe.dropout=0.3")
    assert (again / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    undisturbed = {
        name: value.clone() for name, value in load_file(train(tmp_path) / "weights.safetensors").items()
    }  # else the file's own memory
    damaged = newest(tmp_path) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = train(tmp_path)
    assert [
        reason for reason in events(tmp_path, "checkpoint") if "step-00000012/weights.safetensors was changed" in reason
    ]
    assert all(
        torch.equal(value, undisturbed[name]) for name, value in load_file(again / "weights.safetensors").items()
    )


def test_an_attempt_that_is_over_writes_no_checkpoint(tmp_path: Path, changed: Any) -> None:
    def overtake(loss: Tensor, name: str, step: Step) -> Tensor:
        if (step.index, name) == (6, "largest"):
            while not list(RunDir(tmp_path).checkpoints.glob("step-*")):  # it is written while training goes on
                time.sleep(0.01)
            Fence.take(tmp_path)
        return loss

    changed(overtake)
    with pytest.raises(Fenced):
        train(tmp_path)
    assert newest(tmp_path).name == "step-00000004"


def test_how_much_is_done() -> None:
    assert State(3, 12, 0.0).share_done(None) == 0.25
    assert State(3, 12, 30.0).share_done(1.0) == 0.5
    assert State(9, 12, 30.0).share_done(1.0) == 0.75
    assert State(3, 12, 90.0).share_done(1.0) == 1.0
    assert State(12, 12, 0.0).share_done(1.0) == 1.0


def test_time_bounds_a_training_and_its_schedule(tmp_path: Path, changed: Any) -> None:
    """A million epochs in one second: it ends with a checkpoint, the rate having gone down on the way; and it stays
    ended."""
    progress: list[float] = []
    changed(noted(lambda step: progress.append(step.progress)))
    bound = ("recipe.epochs=1000000", f"train.max_minutes={1.5 / 60}", "train.checkpoint_every=1000000")
    last = train(tmp_path, *bound)
    state = state_of(last)
    assert 1.5 <= state["seconds"] < 30
    assert 0 < state["step"] < state["total"] == 6_000_000
    assert progress == sorted(progress) and progress[0] == 0 and 0.5 < progress[-1] < 1
    assert train(tmp_path, *bound) == last, "the time is used up"
    progress.clear()
    more = train(tmp_path, *bound[::2], "train.max_minutes=0.05")
    assert state_of(more)["step"] > state["step"] and state_of(more)["seconds"] >= 3
    assert progress[0] == pytest.approx(state["seconds"] / 3, abs=1e-6) and progress == sorted(progress), (
        "time goes on where it stood"
    )
