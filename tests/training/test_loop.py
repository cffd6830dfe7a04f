"""A whole training in one process: what it leaves, its panel, its micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import nas.training.loop
from nas.build import load_recipe, load_task, make_supernet
from nas.children.evaluate import Evaluator, panel
from nas.draws import bits, permutation
from nas.recipes.recipe import Step
from nas.rundir.atomic import verify
from nas.rundir.checkpoint import directories
from nas.rundir.directory import RunDir
from tests.training.tiny import Changed, experiment, lines, plain, state_of, train

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


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
