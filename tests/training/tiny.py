"""What tests of the training loop share: a perceptron as a user's own space, and its training in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.experiment import Experiment, load_experiment
from nas.elastic import ElasticLinear
from nas.recipes.recipe import Batch, Recipe, Run, Step
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.space import Arch, Choice, Space
from nas.supernet import PartCost, Pass, Supernet, fp32
from nas.training.loop import Loop

BATCH, AN_EPOCH = 200, 6  # 1,200 digits to train on
EVERY = 4


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
        "space={name: 'tests.training.tiny:tiny', size: '', options: {}}",
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


def plain(loss: Tensor, name: str, step: Step) -> Tensor:
    """Losses as they are."""
    return loss
