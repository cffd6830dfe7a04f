"""The training loop in one process: feeds, micro-batches, guard, panel, bounds, checkpoints and what goes on from
them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import nas.training.loop
from nas.build import load_recipe, load_task, make_supernet
from nas.children.evaluate import Evaluator, panel
from nas.config.experiment import Experiment, load_experiment
from nas.draws import bits, permutation
from nas.elastic import ElasticLinear
from nas.recipes.recipe import Batch, Recipe, Run, Step
from nas.rundir.atomic import verify
from nas.rundir.checkpoint import Checkpoint, State, directories
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence, Fenced
from nas.rundir.log import Log, StepLine
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Supernet, fp32
from nas.training.feeds import Feed, make_feeds
from nas.training.guard import Diverged, check_loss, check_panel
from nas.training.loop import Loop, read_rollbacks, total_steps

BATCH, AN_EPOCH = 200, 6  # 1,200 digits to train on
EVERY = 4

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


class TinyChild(nn.Module):
    """A perceptron of one hidden layer."""

    def __init__(self, pixels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.config = {"pixels": pixels, "hidden": hidden, "classes": classes}
        self.first, self.last = nn.Linear(pixels, hidden), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.flatten(1))))


class Tiny(Supernet):
    """A user's own space: a perceptron without norms, whose examples do not influence each other."""

    child = TinyChild
    sources = (Path(__file__),)
    mixes_examples = False

    def __init__(self, hidden: tuple[int, ...] = (4, 8, 16), classes: int = 10, image: int = 8, **_: Any) -> None:
        super().__init__()
        self.space = Space([Choice("hidden", hidden)])
        self.input_shape = (1, image, image)
        self.first, self.last = ElasticLinear(image**2, max(hidden)), ElasticLinear(max(hidden), classes)

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor:
        x = F.relu(self.first(x.flatten(1), int(arch["hidden"])))
        if how.dropout:
            x = x * torch.empty_like(x).bernoulli_(1 - how.dropout, generator=how.generator) / (1 - how.dropout)
        return self.last(x)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        return {"pixels": self.first.in_features, "hidden": int(arch["hidden"]), "classes": self.last.out_features}

    def parts(self, arch: Arch) -> Iterator[int]:
        yield int(arch["hidden"])

    def part_cost(self, part: int) -> PartCost:
        macs = part * (self.first.in_features + self.last.out_features)
        return fp32(macs, macs + part + self.last.out_features)


def tiny(size: str, **options: Any) -> Tiny:
    return Tiny(**options)


def experiment(*overrides: str) -> Experiment:
    """Twelve steps of the tiny space unless told otherwise, on the digits."""
    usual = [
        "space={name: 'tests.training.test_loop:tiny', size: '', options: {}}",
        f"recipe.batch={BATCH}",
        "recipe.epochs=2",
        "recipe.warmup_epochs=0",
        "recipe.lr=0.2",
        "recipe.schedule=cosine",
        "train.workers=1",
        f"train.checkpoint_every={EVERY}",
        "train.zero_stage=0",
    ]
    return load_experiment("bignas-digits", [*usual, *overrides])


def loop_in(run: Path, *overrides: str) -> Loop:
    return Loop(experiment(*overrides), RunDir(run), Fence.take(run), 0, 1, torch.device("cpu"))


def train(run: Path, *overrides: str) -> Path:
    """Train in a run directory; the newest checkpoint."""
    run.mkdir(exist_ok=True)
    loop_in(run, *overrides).train()
    return newest(run)


def newest(run: Path) -> Path:
    found = Checkpoint.newest(RunDir(run).checkpoints)
    assert found is not None
    return found.directory


def state_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "state.json").read_text())["state"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def events(run: Path, kind: str = "rollback") -> list[str]:
    return [line["reason"] for line in lines(run) if line.get("event") == kind]


@pytest.fixture
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the metrics for each step, not one a second."""
    monkeypatch.setattr(Log, "due", lambda self: True)


class Changed(Recipe):
    """The experiment's recipe, whose losses go through a function of (loss, its name, the step)."""

    def __init__(self, inner: Recipe, change: Callable[[Tensor, str, Step], Tensor]) -> None:
        self.inner, self.change, self.names, self.feeds = inner, change, inner.names, inner.feeds
        self.optimizer, self.lr = inner.optimizer, inner.lr  # type: ignore[method-assign]
        self.kept: dict[str, Any] = {"count": 0, "tensor": torch.zeros(2)}

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        self.kept = {"count": self.kept["count"] + 1, "tensor": self.kept["tensor"] + step.index}
        for name, loss in zip(self.names, self.inner.losses(run, net, batches, step), strict=True):
            yield self.change(loss, name, step)

    def state(self) -> dict[str, Any]:
        return self.kept

    def load(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)


def noted(note: Callable[[Step], None]) -> Callable[[Tensor, str, Step], Tensor]:
    """Losses as they are; `note` is told the step of each."""

    def unchanged(loss: Tensor, name: str, step: Step) -> Tensor:
        note(step)
        return loss

    return unchanged


def plain(loss: Tensor, name: str, step: Step) -> Tensor:
    """Losses as they are."""
    return loss


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor, str, Step], Tensor]], None]:
    """Let the losses of every recipe that the loop makes go through a function."""

    def put(change: Callable[[Tensor, str, Step], Tensor]) -> None:
        monkeypatch.setattr(
            nas.training.loop, "load_recipe", lambda task, options: Changed(load_recipe(task, options), change)
        )

    return put


# --- feeds


class Numbers:
    """A split whose examples are their numbers."""

    at_once = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rows), torch.full((len(rows),), -1 if epoch is None else epoch)


def feeds_of(
    shares: dict[str, float], count: int = 103, batch: int = 12, rank: int = 0, world: int = 1, seed: int = 0
) -> dict[str, Feed]:
    return make_feeds(SimpleNamespace(feeds=shares), Numbers(count), batch, rank, world, seed)  # type: ignore[arg-type]


def rows_of(feed: Feed, number: int) -> list[int]:
    return feed(number)[0].tolist()


def test_an_epoch_goes_once_through_the_data() -> None:
    """And drops the rest of a batch; the next epoch has another order and another rest."""
    feed = feeds_of({"train": 1.0})["train"]
    epochs = [[row for number in range(8 * epoch, 8 * epoch + 8) for row in rows_of(feed, number)] for epoch in (0, 1)]
    assert feed.an_epoch == 8
    assert [len(set(rows)) for rows in epochs] == [96, 96]
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])
    assert [feed(number)[1].unique().tolist() for number in (0, 7, 8, 16)] == [[0], [0], [1], [2]], (
        "the augmentation's epoch"
    )


def test_batches_are_a_function_of_seed_and_number() -> None:
    """Whatever was asked before: a resumed run sees what an undisturbed one sees."""
    one, other = feeds_of({"train": 1.0})["train"], feeds_of({"train": 1.0})["train"]
    wanted = [rows_of(one, number) for number in range(20)]
    assert [rows_of(other, number) for number in reversed(range(20))] == wanted[::-1]
    assert rows_of(feeds_of({"train": 1.0}, seed=1)["train"], 0) != wanted[0]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_share_the_same_batch(world: int) -> None:
    """Rank by rank, the batch of one worker: what is learnt does not depend on how many there are."""
    alone = feeds_of({"train": 1.0})["train"]
    together = [feeds_of({"train": 1.0}, rank=rank, world=world)["train"] for rank in range(world)]
    for number in (0, 5, 9):
        parts = [rows_of(feed, number) for feed in together]
        assert {len(part) for part in parts} == {12 // world}
        assert sum(parts, []) == rows_of(alone, number)


def test_feeds_are_disjoint_and_leave_nothing_out() -> None:
    for shares in ({"weights": 0.5, "alpha": 0.5}, {"a": 0.1, "b": 0.2, "c": 0.7}):
        feeds = feeds_of(shares, batch=4)
        parts = [set(feed.rows.tolist()) for feed in feeds.values()]
        assert sum(map(len, parts)) == 103 and set.union(*parts) == set(range(103))
        assert [abs(len(part) - 103 * share) <= 1 for part, share in zip(parts, shares.values(), strict=True)] == [
            True
        ] * len(parts)
        assert all(set(rows_of(feed, 3)) <= part for feed, part in zip(feeds.values(), parts, strict=True))
    drawn = feeds_of({"weights": 0.5, "alpha": 0.5})["weights"].rows
    assert drawn.max() > 60 > drawn.min(), "a share is drawn, not cut off the front"


def test_steps_of_a_training() -> None:
    settings = experiment("recipe.epochs=2.5")
    recipe = SimpleNamespace(feeds={"train": 1.0})
    assert total_steps(settings, 1200, recipe) == 15  # type: ignore[arg-type]
    assert total_steps(settings, 1399, recipe) == 15  # type: ignore[arg-type]
    assert total_steps(settings, 1200, SimpleNamespace(feeds={"a": 0.5, "b": 0.5})) == 8  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch 200 is more than the 199 training examples"):
        total_steps(settings, 199, recipe)  # type: ignore[arg-type]


# --- a whole training


def test_what_a_training_leaves(tmp_path: Path, every_step_is_told: None) -> None:
    """Checkpoints with weights, momentum and state; a line a step; and it learns."""
    last = train(tmp_path, "recipe.epochs=10", "recipe.lr=0.5")
    assert [path.name for path in directories(RunDir(tmp_path).checkpoints)] == ["step-00000056", "step-00000060"]
    assert verify(last)["step"] == 60
    state = state_of(last)
    assert (state["step"], state["total"]) == (60, 60)
    weights, momentum = load_file(last / "weights.safetensors"), load_file(last / "optimizer.safetensors")
    assert set(weights) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    assert set(momentum) == {f"momentum_buffer/{name}" for name in weights}
    told = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in told] == list(range(1, 61))
    assert list(told[0]["loss"]) == ["largest", "random0", "random1", "smallest"]
    assert told[0]["lr"] == 0.5 and 0 < told[-1]["lr"] < 0.01
    assert [line["epoch"] for line in told[5::6]] == [float(epoch) for epoch in range(1, 11)]
    assert told[-1]["loss"]["largest"] < told[0]["loss"]["largest"] - 0.5
    looks = [line for line in lines(tmp_path) if "panel" in line]
    assert [line["step"] for line in looks] == list(range(4, 61, 4))
    assert looks[-1]["panel"]["largest"]["accuracy"] > looks[0]["panel"]["largest"]["accuracy"] + 20


def test_first_weights_depend_on_the_seed_alone() -> None:
    task = load_task(experiment())
    torch.manual_seed(1)
    first, drawn = make_supernet(experiment(), task).state_dict(), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), drawn), "torch's global generator was moved"
    torch.rand(7)
    again, other = (
        make_supernet(experiment(), task).state_dict(),
        make_supernet(experiment("seed=1"), task).state_dict(),
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["first.weight"], other["first.weight"])


def test_what_the_data_say_of_themselves_is_not_set_otherwise() -> None:
    told = experiment("space={name: bignas, size: d8, options: {classes: 3}}")
    with pytest.raises(ValueError, match="space.options.classes is 3, and digits has 10: leave it out"):
        make_supernet(told, load_task(told))


def test_the_panel_is_recalibrated_and_on_validation(tmp_path: Path) -> None:
    """The figures in the file are those of children of the checkpoint's weights, scored as in a search."""
    settings = [
        "space={name: bignas, size: d8, options: {}}",
        "recipe.epochs=0.7",
        "search.calibration=400",
        "search.calibration_batch=200",
    ]
    last = train(tmp_path, *settings)
    told = [line["panel"] for line in lines(tmp_path) if "panel" in line][-1]
    chosen = experiment(*settings)
    task = load_task(chosen)
    net = make_supernet(chosen, task)
    net.load_state_dict(load_file(last / "weights.safetensors"))
    children = panel(net.space, np.random.default_rng(bits(chosen.seed, "panel")))
    assert list(told) == list(children) == ["smallest", "random0", "random1", "random2", "random3", "largest"]
    assert (children["smallest"], children["largest"]) == (net.space.smallest(), net.space.largest())
    assert len(set(children.values())) == 6
    evaluator = Evaluator(net, task, chosen.search, torch.device("cpu"))
    for name in ("smallest", "random2", "largest"):
        child = net.extract(children[name])
        child.train()
        for norm in (m for m in child.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None
        with torch.no_grad():
            drawn = permutation(len(task.train), 0, "batches")
            for start in (0, 200):
                child(task.train.batch(drawn[start : start + 200], 0)[0])
            x, y = task.validation.batch(np.arange(len(task.validation)))
            accuracy = 100 * (child.eval()(x).argmax(1) == y).double().mean().item()
        assert told[name]["accuracy"] == pytest.approx(accuracy, abs=0.4), "but for one example at a tie"
        assert told[name] == pytest.approx(evaluator(children[name]))


def test_micro_batches_learn_what_the_whole_batch_does(tmp_path: Path, every_step_is_told: None) -> None:
    """Examples do not influence each other here: the same losses and weights, whatever the number of parts."""
    overrides = ("recipe.dropout=0", "train.zero_stage=1")
    whole, parts = train(tmp_path / "whole", *overrides), train(tmp_path / "parts", *overrides, "train.micro_batch=50")
    one, other = (load_file(path / "weights.safetensors") for path in (whole, parts))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-6, rtol=1e-5)
    told = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("whole", "parts")]
    for a, b in zip(*told, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_micro_batches_have_the_same_architectures_and_noise_of_their_own(
    tmp_path: Path, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[tuple[str, int]]] = {}

    class Watched(Changed):
        def losses(self, run: Any, net: Any, batches: Any, step: Step) -> Iterator[Tensor]:
            archs = "".join(net.space.sample(step.rng).id for _ in range(8))
            seen.setdefault(step.index, []).append((archs, step.generator.initial_seed()))
            return self.inner.losses(run, net, batches, step)

    monkeypatch.setattr(
        nas.training.loop, "load_recipe", lambda task, options: Watched(load_recipe(task, options), plain)
    )
    train(tmp_path, "recipe.epochs=0.5", "train.micro_batch=50")
    assert sorted(seen) == [0, 1, 2]
    for parts in seen.values():
        assert len(parts) == 4
        assert len({archs for archs, _ in parts}) == 1
        assert len({noise for _, noise in parts}) == 4
    assert len({parts[0][0] for parts in seen.values()}) == 3


# --- going on


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


# --- the bound in minutes


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


# --- the guard


def test_a_metric_that_is_better_when_lower_collapses_upwards() -> None:
    """An error that falls is progress; back at that of guessing, after it was clearly below, is a divergence."""
    task: Any = SimpleNamespace(metrics={"error": "lower"}, metric="error", chance=90.0, learnt=60.0)
    state = State(3, 12)
    for error in (89.0, 70.0, 20.0, 30.0):
        check_panel(state, error, task)
    assert state.best == 20.0
    with pytest.raises(Diverged, match="error fell from 20 to 88"):
        check_panel(state, 88.0, task)


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
        match=r"at step 9 .* after 2 rollbacks, each at half the learning rate: lower recipe.lr or set recipe.clip",
    ):
        train(tmp_path, "train.max_rollbacks=2")
    assert len(events(tmp_path)) == 3 and len(read_rollbacks(RunDir(tmp_path))) == 2
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


# --- the metrics


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "train" / "metrics.jsonl"
    first = Log(path)
    first.write(StepLine(1, 3))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    Log(path).write(StepLine(3, 3))
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_line_a_second(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", every_s=1e9)
    log.last = -2e9
    assert log.due()
    log.write(StepLine(1, 1))
    assert not log.due()
