"""One child by itself: where its weights come from, what it learns from, the average of its weights, and that it
goes on bit-equal."""

from __future__ import annotations

import json
import re
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
from nas.build import load_recipe, load_supernet, load_task, make_supernet
from nas.children.evaluate import panel
from nas.config.experiment import Experiment, ExperimentError, difference, dump, load_experiment
from nas.config.section import Kind
from nas.finetune import check_alike, finetune_experiment
from nas.recipes.recipe import AVERAGE, Step
from nas.recipes.single import Single
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import Occupied, RunDir, open_run
from nas.rundir.fence import Fence
from nas.search.journal import Record
from nas.supernet import Pass, main_head
from nas.training.loop import Loop

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]

ALONE = ["train.workers=1", "train.zero_stage=0", "train.checkpoint_every=4"]
FEW = [*ALONE, "recipe={name: single, epochs: 0.5, batch: 64, average: 0.3}"]


def trained(run: Path, experiment: Experiment) -> Path:
    run.mkdir(exist_ok=True)
    Loop(experiment, RunDir(run), Fence.take(run), 0, 1, torch.device("cpu")).train()
    found = Checkpoint.newest(RunDir(run).checkpoints)
    assert found is not None
    return found.directory


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some steps of the largest network, with an average of its weights beside them."""
    return trained(tmp_path_factory.mktemp("supernet"), load_experiment("vit-resnas-digits", FEW))


def child_of(checkpoint: Path | None, *overrides: str) -> Experiment:
    """The experiment of one random child."""
    plain = load_experiment("vit-resnas-digits", [*FEW, *overrides])
    arch = load_supernet("vit_resnas", "d8").space.sample(np.random.default_rng(3))
    space = plain.space.model_copy(update={"child": dict(arch), "inherit": checkpoint and str(checkpoint)})
    return plain.model_copy(update={"space": space})


def test_a_child_inherits_the_averaged_weights(supernet: Path) -> None:
    experiment = child_of(supernet)
    task = load_task(experiment)
    kept, raw = load_file(supernet / "recipe.safetensors"), load_file(supernet / "weights.safetensors")
    judged = Checkpoint.open(supernet).child_weights()
    assert set(judged) == set(raw)
    assert all(torch.equal(judged[name.removeprefix(AVERAGE)], value) for name, value in kept.items())
    assert any(not torch.equal(judged[name], raw[name]) for name in raw), "or the average is no average"

    whole = load_supernet("vit_resnas", "d8", **task.network)
    whole.load_state_dict(judged)
    wanted = whole.fix(whole.space.arch(dict(experiment.space.child or {})))
    found = make_supernet(experiment, task)
    assert found.space.cardinality == 1 and set(found.state_dict()) == set(wanted.state_dict())
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in found.state_dict().items())


def test_fresh_weights_are_a_new_networks_and_depend_on_the_seed_alone() -> None:
    experiment = child_of(None)
    task = load_task(experiment)
    one, again = make_supernet(experiment, task).state_dict(), make_supernet(experiment, task).state_dict()
    other = make_supernet(experiment.model_copy(update={"seed": 1}), task).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    weights = [name for name in one if name.endswith("fc1.weight")]
    assert weights and all(not torch.equal(one[name], other[name]) for name in weights)
    whole = make_supernet(load_experiment("vit-resnas-digits", FEW), task)
    windows = whole.fix(whole.space.arch(dict(experiment.space.child or {}))).state_dict()
    assert any(not torch.equal(one[name], windows[name]) for name in weights), "not the first rows of a large network's"


def test_a_child_that_the_space_does_not_have_is_refused() -> None:
    plain = load_experiment("vit-resnas-digits", FEW)
    space = plain.space.model_copy(update={"child": {"stage1.width": 31}})
    with pytest.raises(ValueError, match="stage1.width"):
        make_supernet(plain.model_copy(update={"space": space}), load_task(plain))
    with pytest.raises(ExperimentError, match="inherit is for a child alone"):
        load_experiment("vit-resnas-digits", ["space.inherit=somewhere"])


def step_of(index: int = 0, total: int = 10) -> Step:
    return Step(
        index,
        total,
        index / total,
        0,
        np.random.default_rng(0),
        torch.Generator().manual_seed(0),
        lambda value: value,
        0,
    )


def test_a_teacher_counts_half() -> None:
    """Labels for both heads and the teacher's soft labels for the main one, half each."""
    experiment = child_of(None, "recipe.label_smoothing=0")
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    x, y = task.train.batch(np.arange(16))
    recipe = load_recipe(task, experiment.recipe)
    assert isinstance(recipe, Single)
    output = net(x, net.space.largest(), Pass())
    cells = y[:, None].expand(-1, output.aux.shape[1])
    labels = F.cross_entropy(output.main, y) + F.cross_entropy(output.aux.flatten(0, 1), cells.flatten())
    (loss,) = recipe.losses(net, net, {"train": (x, y)}, step_of())
    torch.testing.assert_close(loss, labels)

    seen: list[Tensor] = []
    told = torch.randn(16, 10, generator=torch.Generator().manual_seed(5))

    class Teacher(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(pixels)
            return told

    recipe.teacher = Teacher()
    (loss,) = recipe.losses(net, net, {"train": (x, y)}, step_of())
    soft = -(told.softmax(1) * main_head(output).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, 0.5 * labels + 0.5 * soft)
    assert torch.equal(seen[0], x)


def test_the_average_of_the_weights() -> None:
    """Over 30 % of 20 steps: decay 5/6, and the plain mean until that many were seen."""
    recipe = Single(None, SimpleNamespace(average=0.3))
    net = nn.Linear(1, 1, bias=False)
    values = [float(v) for v in np.random.default_rng(0).normal(size=20)]
    wanted = 0.0
    for index, value in enumerate(values):
        nn.init.constant_(net.weight, value)
        recipe.stepped(net, step_of(index, 20))  # type: ignore[arg-type]
        keep = min(index / (index + 1), 1 - 1 / 6)
        wanted = keep * wanted + (1 - keep) * value
        if index < 6:
            assert wanted == pytest.approx(np.mean(values[: index + 1]))
        assert recipe.state()[AVERAGE + "weight"].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_killed_finetune_goes_on_bit_equal(
    zero_stage: int, supernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's moments, the average and drop-path, from step 4 of 9."""
    experiment = child_of(supernet, "recipe.drop_path=0.2", "recipe.dropout=0.1", f"train.zero_stage={zero_stage}")
    undisturbed = trained(tmp_path / "undisturbed", experiment)

    class Killed(Exception):
        pass

    def kill(self: Single, net: Any, step: Step) -> None:
        if step.index == 6:
            raise Killed
        whole(self, net, step)

    whole = Single.stepped
    monkeypatch.setattr(Single, "stepped", kill)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", experiment)
    monkeypatch.setattr(Single, "stepped", whole)
    again = trained(tmp_path / "killed", experiment)
    assert again.name == undisturbed.name == "step-00000009"
    for file in ("weights.safetensors", "optimizer.safetensors", "recipe.safetensors"):
        assert (again / file).read_bytes() == (undisturbed / file).read_bytes(), file
    told = [json.loads(line) for line in (tmp_path / "killed" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert {tuple(line["panel"]) for line in told if "panel" in line} == {("largest",)}, (
        "a space of one has one child to look at"
    )


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_the_panel_judges_the_average(
    zero_stage: int, supernet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(nas.training.loop.Evaluator):
        def __call__(self, arch: Any) -> dict[str, float]:
            seen.append({name: value.clone() for name, value in self.net.state_dict().items()})
            return super().__call__(arch)

    monkeypatch.setattr(nas.training.loop, "Evaluator", Watched)
    found = trained(tmp_path / "run", child_of(supernet, f"train.zero_stage={zero_stage}"))
    judged = Checkpoint.open(found).child_weights()
    parameters = [name for name in judged if AVERAGE + name in load_file(found / "recipe.safetensors")]
    assert parameters and all(torch.equal(seen[-1][name], judged[name]) for name in parameters)


def derived_from(
    experiment: Experiment, folder: Path, record: Record, teacher: Path | None, runs: Path | None = None
) -> Experiment:
    """The finetune of a child whose supernet's checkpoint is `folder` / step, in a run of the folder `runs`."""
    trained = SimpleNamespace(directory=folder / "step")
    return finetune_experiment(experiment, RunDir((runs or folder) / "run"), record, trained, teacher)  # type: ignore[arg-type]


def test_the_experiment_of_a_finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own, with the space fixed, the recipe of its finetune section, no budget, and the same MLflow store."""
    experiment = load_experiment("vit-resnas-digits")
    arch = load_supernet("vit_resnas", "d8").space.smallest()
    record = Record(3, arch, {"accuracy": 1.0}, {"macs": 1}, 0.0, None)
    derived = derived_from(experiment, tmp_path, record, tmp_path / "teacher")
    assert experiment.finetune is not None and experiment.finetune.fresh
    assert derived.space.child == dict(arch) and derived.space.inherit is None
    assert derived.recipe.name == "single" and derived.recipe.epochs == experiment.finetune.recipe.epochs
    assert derived.recipe.teacher == str(tmp_path / "teacher")
    assert derived.data == experiment.data and derived.finetune is None and not derived.search.constraints
    assert (
        derived.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
        and derived.tracking.experiment == "vit-resnas-digits"
    )
    inheriting = experiment.model_copy(update={"finetune": experiment.finetune.model_copy(update={"fresh": False})})
    moved = [
        derived_from(inheriting, folder, record, folder / "child", tmp_path)
        for folder in (tmp_path, tmp_path / "moved")
    ]
    assert moved[0].space.inherit == str(tmp_path / "step")
    assert {row.kind for row in difference(*moved)} == {Kind.FREE} and len(difference(*moved)) == 2, (
        "a run that was moved goes on"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@db/mlflow")
    assert "hunter2" not in dump(derived_from(experiment, tmp_path, record, None)), "it is written to files"


def test_a_child_is_not_trained_on_in_two_ways_under_one_id(tmp_path: Path) -> None:
    """Where it begins and its teacher are paths, and so no identity; a run that was moved goes on."""
    experiment = load_experiment("vit-resnas-digits", ["finetune.fresh=false"])
    record = Record(3, load_supernet("vit_resnas", "d8").space.smallest(), {"accuracy": 1.0}, {"macs": 1}, 0.0, None)
    run, child = RunDir(tmp_path / "inner"), tmp_path / "child"
    begun = derived_from(experiment, tmp_path, record, tmp_path / "teacher")
    check_alike(begun, run, child)
    with open_run(begun, run):
        pass
    longer = load_experiment("vit-resnas-digits", ["finetune.fresh=false", "finetune.recipe.epochs=80"])
    check_alike(derived_from(longer, tmp_path / "moved", record, tmp_path / "moved" / "teacher", tmp_path), run, child)
    for changes, teacher, told in (
        (["finetune.fresh=true"], "teacher", "finetune.fresh: False then, True now"),
        (["finetune.fresh=false"], None, "finetune.teacher: 'teacher' then, None now"),
        (["finetune.fresh=false", "finetune.recipe.lr=1"], "teacher", "recipe.lr: 0.001 then, 1.0 now"),
    ):
        other = load_experiment("vit-resnas-digits", changes)
        with pytest.raises(Occupied, match=rf"child was trained on.*\n  {re.escape(told)}\n.*move .*inner and .*away"):
            check_alike(derived_from(other, tmp_path, record, teacher and tmp_path / teacher), run, child)


def test_a_batch_that_the_workers_cannot_share_is_refused_before_anything_begins(tmp_path: Path) -> None:
    """At once where nas run would come to it, else when the finetune is asked for."""
    with pytest.raises(ExperimentError, match=r"finetune\.recipe\.batch 63 does not divide among train\.workers 2"):
        load_experiment("vit-resnas-digits", ["finetune.recipe.batch=63"])
    experiment = load_experiment("vit-resnas-digits", ["finetune.recipe.batch=63", "finetune.children=0"])
    record = Record(3, load_supernet("vit_resnas", "d8").space.smallest(), {"accuracy": 1.0}, {"macs": 1}, 0.0, None)
    with pytest.raises(ExperimentError, match=r"the section finetune: .*\n.*batch 63 does not divide"):
        derived_from(experiment, tmp_path, record, None)


def test_a_space_of_one_has_a_panel_of_one() -> None:
    net = load_supernet("vit_resnas", "vit-res-tiny")
    assert panel(net.space, np.random.default_rng(0)) == {"largest": net.space.largest()}
