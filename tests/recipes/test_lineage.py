"""What the successors of BigNAS added to the sandwich rule: each option does what its paper says, and nothing where it
is not asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nas.build import load_recipe, load_supernet, load_task
from nas.cli.check import find, run
from nas.config.experiment import ExperimentError, load_experiment
from nas.recipes.attentive import alike, taken
from nas.recipes.average import MovingAverage
from nas.recipes.opening import opened_space
from nas.recipes.recipe import AVERAGE, Recipe, Step
from nas.rundir.checkpoint import Checkpoint, directories
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.space import Arch, Choice, Space
from nas.supernet import Output, Pass, Supernet
from nas.tasks import divergence, mixing
from nas.tasks.classification import Classification
from nas.testing.space import ready
from nas.training.loop import Loop


def recipe_of(task: Any, *overrides: str) -> Recipe:
    return load_recipe(task, load_experiment("bignas-digits", [f"recipe.{text}" for text in overrides]).recipe)


def step_of(index: int, progress: float = 0.5, mean: Any = lambda value: value) -> Step:
    generator, rng = torch.Generator().manual_seed(index), np.random.default_rng(index)
    return Step(index, 100, progress, 0, rng, generator, mean, 0)


@pytest.fixture(scope="module")
def task() -> Classification:
    return load_task(load_experiment("bignas-digits"))


@pytest.fixture(scope="module")
def batch(task: Classification) -> tuple[Tensor, Tensor]:
    return task.train.batch(np.arange(16))


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    return ready(load_supernet("bignas", "d8"))


class Spy:
    """A network that notes what it runs, through the engine and past it."""

    def __init__(self, net: Supernet) -> None:
        self.net, self.space, self.aux_grid = net, net.space, net.aux_grid
        self.calls: list[Arch] = []
        self.learning: list[bool] = []
        self.cost = net.cost

    def __call__(self, x: Tensor, arch: Arch, how: Pass = Pass()) -> Any:
        self.calls.append(arch)
        self.learning.append(torch.is_grad_enabled())
        return self.net(x, arch, how)


OPTIONS = [
    ("sampling=best_up",),
    ("sampling=worst_up", "drawn=4"),
    ("distillation=alpha", "clip_value=1.0"),
    ("opening=0.9",),
    ("opening=0.9", "opens_from=smallest"),
    ("average=0.3",),
    ("clip_value=0.01", "optimizer=adamw"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_the_rule_keeps_the_contract_of_recipes_with_each_option(options: tuple[str, ...]) -> None:
    given = ["recipe.lr=0.1", "recipe.weight_decay=0", *(f"recipe.{option}" for option in options)]
    assert [f"{each.name}: {each.why}" for each in run(find("sandwich", "", given)) if not each.ok] == []


# --- all of it in a training


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(one_rank: None, tmp_path: Path) -> None:
    """With every option, steps in two parts and blocks that are computed again: weights, optimizer and average, bit for
    bit; and it is the average that children are cut from."""
    options = ("sampling=best_up", "distillation=alpha", "opening=0.4", "average=0.2", "clip_value=0.1")
    few = [
        *(f"recipe.{option}" for option in (*options, "epochs=0.5", "warmup_epochs=0")),
        *("train.workers=1", "train.micro_batch=32", "train.checkpoint_every=3", "train.keep=9"),
        *("space.options={recompute: true}", "search.calibration=64", "search.calibration_batch=32"),
    ]
    experiment = load_experiment("bignas-digits", few)

    def trained(run: Path) -> list[Path]:
        run.mkdir(exist_ok=True)
        Loop(experiment, RunDir(run), Fence.take(run), 0, 1, torch.device("cpu")).train()
        return directories(RunDir(run).checkpoints)

    whole = trained(tmp_path / "whole")
    assert len(whole) >= 3
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for later in directories(RunDir(tmp_path / "killed").checkpoints)[1:]:
        shutil.rmtree(later)
    again = trained(tmp_path / "killed")
    assert again[-1].name == whole[-1].name
    for name in ("weights", "optimizer", "recipe"):
        one, other = (load_file(found[-1] / f"{name}.safetensors") for found in (whole, again))
        assert one and one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    last = Checkpoint.open(whole[-1])
    cut, weights = last.child_weights(), last.weights()
    assert torch.equal(cut["stem.conv.weight"], last.recipe()[AVERAGE + "stem.conv.weight"])
    assert not torch.equal(cut["stem.conv.weight"], weights["stem.conv.weight"])


# --- the presets


def test_the_rate_of_bignas_decays_and_stays_as_in_the_paper() -> None:
    """0.97 every 2.4 epochs after the warm-up, and never below 5 %, which is reached 236 epochs after it."""
    experiment = load_experiment("bignas-imagenet")
    options = experiment.recipe
    recipe = load_recipe(SimpleNamespace(compares_distributions=True), options)  # type: ignore[arg-type]
    base, warmup = options.lr, options.warmup_epochs  # type: ignore[attr-defined]

    def rate(epoch: float) -> float:
        """So many epochs after the warm-up."""
        share = (warmup + epoch) / options.epochs
        return recipe.lr(step_of(0, share)) / base

    for epoch in (0, 24, 60, 118, 180, 230):
        assert rate(epoch) == pytest.approx(0.97 ** (epoch / 2.4), rel=0.04), epoch
    assert [rate(epoch) for epoch in (237, 300, 359)] == pytest.approx([0.05] * 3)
    assert recipe.lr(step_of(0, 2.5 / options.epochs)) == pytest.approx(base / 2)


def test_the_presets_have_what_was_published() -> None:
    """AttentiveNAS: 0.1 for 256 images, 2048 in parts of 32. BigNAS: 4096 images, averaged over 10,000 steps."""
    attentive, big = (load_experiment(f"{name}-imagenet") for name in ("attentivenas", "bignas"))
    recipe = attentive.recipe.model_dump()
    assert recipe["lr"] / recipe["batch"] == pytest.approx(0.1 / 256)
    assert (recipe["epochs"], recipe["warmup_epochs"], recipe["schedule"]) == (360, 5, "cosine")
    assert (recipe["weight_decay"], recipe["clip_value"], recipe["label_smoothing"]) == (1e-5, 1.0, 0.1)
    assert (recipe["sampling"], recipe["drawn"], recipe["random_children"]) == ("best_up", 3, 2)
    assert attentive.train.micro_batch == 32
    recipe = big.recipe.model_dump()
    steps = recipe["epochs"] * ((1_281_167 - big.data.validation) // recipe["batch"])
    assert recipe["average"] * steps == pytest.approx(10_000, rel=0.05)
    assert recipe["batch"] == 4096 and recipe["lr"] == pytest.approx(0.128 / 640 * 4096, rel=0.01)
    assert big.space.options == {"sync_batch_norm": True, "recompute": True}


# --- the adaptive alpha-divergence


def pair(sharp: float) -> tuple[Tensor, Tensor]:
    """Logits of five students of four classes, as sharp as told, and a teacher's probabilities."""
    random = torch.Generator().manual_seed(0)
    logits = sharp * torch.randn(5, 4, generator=random, dtype=torch.float64)
    return logits, torch.randn(5, 4, generator=random, dtype=torch.float64).softmax(-1)


def by_definition(logits: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p||q) and the divergence of alpha -1, which is (sum q^2 / p - 1) / 2, of each example."""
    q = logits.softmax(-1)
    return (p * (p / q).log()).sum(-1), 0.5 * ((q**2 / p).sum(-1) - 1)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 2.0])
def test_value_and_gradient_are_those_of_the_larger_divergence(sharp: float) -> None:
    """Against its definition in float64 and finite differences of that, where no ratio is clipped."""
    logits, p = pair(sharp)

    def value(z: Tensor) -> Tensor:
        return torch.maximum(*by_definition(z, p)).mean()

    unclipped = ((logits.softmax(-1) / p).max(-1).values < divergence.CLIP).nonzero().flatten()
    logits, p = logits[unclipped], p[unclipped]
    assert len(logits) >= 2
    found = logits.float().requires_grad_()
    loss = divergence.adaptive(found, p.float())
    assert loss.item() == pytest.approx(value(logits).item(), rel=1e-5)
    loss.backward()
    assert found.grad is not None
    for i, j in np.ndindex(*logits.shape):
        moved = [logits.clone() for _ in range(2)]
        moved[0][i, j] += 1e-6
        moved[1][i, j] -= 1e-6
        slope = (value(moved[0]) - value(moved[1])).item() / 2e-6
        assert found.grad[i, j].item() == pytest.approx(slope, abs=1e-5)


def test_each_example_has_the_divergence_that_is_larger_for_it() -> None:
    """A student surer than its teacher is told by KL(p||q); one that gives mass where the teacher has none by the
    other, which grows faster there."""
    teacher = torch.tensor([[0.5, 0.5], [0.95, 0.05]])
    student = torch.tensor([[0.99, 0.01], [0.85, 0.15]]).log()
    kl, other = by_definition(student.double(), teacher.double())
    assert kl[0] > other[0] and kl[1] < other[1]
    alone = [divergence.adaptive(student[i : i + 1], teacher[i : i + 1]).item() for i in (0, 1)]
    assert alone == pytest.approx([kl[0].item(), other[1].item()], rel=1e-4)
    assert divergence.adaptive(student, teacher).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_ratios_are_clipped_at_five() -> None:
    """q/p = 8 counts as 5: value (sum q (min(q/p, 5) - 1)) / 2 and weights q (1/2 - min(q/p, 5)) by hand."""
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    logits = q.log().requires_grad_()
    loss = divergence.adaptive(logits, p)
    assert loss.item() == pytest.approx(0.5 * (0.2 * (0.2 / 0.9 - 1) + 0.8 * (5 - 1)), rel=1e-5)
    loss.backward()
    weights = torch.tensor([0.2 * (0.5 - 0.2 / 0.9), 0.8 * (0.5 - 5)])
    wanted = -(weights - weights.sum() * q[0])  # of -sum w log softmax(z)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], wanted)


def test_a_student_that_is_its_teacher_learns_nothing() -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = divergence.adaptive(logits, logits.detach().softmax(-1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


def test_a_surer_student_has_the_gradient_of_cross_entropy() -> None:
    """Of KL(p||q), which differs from the soft cross-entropy by the teacher's entropy alone."""
    teacher = torch.full((3, 4), 0.25)
    logits = 6 * F.one_hot(torch.arange(3), 4).float()
    found, wanted = (logits.clone().requires_grad_() for _ in range(2))
    divergence.adaptive(found, teacher).backward()
    mixing.distill(wanted, teacher).backward()
    torch.testing.assert_close(found.grad, wanted.grad)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(kind: torch.dtype, task: Classification) -> None:
    """A margin of 150: the teacher's probabilities underflow, and so do the student's."""
    teacher = torch.tensor([[150.0, 0, 0], [0, 150, 0], [0, 0, 0]])
    student = torch.tensor([[0.0, 150, 0], [0, 150, 0], [150, 0, 0]], dtype=kind).requires_grad_()
    signal = task.signal(teacher)
    assert isinstance(signal, Tensor) and (signal == 0).any()
    loss = task.diverge(student, signal)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad[0].abs().max() > 0.1


def test_both_heads_are_compared() -> None:
    random = torch.Generator().manual_seed(2)
    main, aux = torch.randn(3, 5, generator=random), torch.randn(3, 4, 5, generator=random)
    taught = Output(main.flip(0).softmax(-1), aux.flip(0).softmax(-1))
    cells = divergence.adaptive(aux.reshape(12, 5), taught.aux.reshape(12, 5))
    assert divergence.adaptive(Output(main, aux), taught).item() == pytest.approx(
        divergence.adaptive(main, taught.main).item() + cells.item()
    )


def test_children_learn_by_it_where_the_file_says_so(task: Classification, batch: Any, net: Supernet) -> None:
    losses = list(
        recipe_of(task, "distillation=alpha", "clip_norm=5", "dropout=0").losses(net, net, {"train": batch}, step_of(1))
    )
    with torch.no_grad():
        teacher = net(batch[0], net.space.largest()).softmax(-1)
        wanted = divergence.adaptive(net(batch[0], net.space.smallest()), teacher)
    assert losses[-1].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_what_it_needs_is_told() -> None:
    with pytest.raises(ExperimentError, match="set clip_value"):
        load_experiment("bignas-digits", ["recipe.distillation=alpha"])
    photos = load_experiment("quantnas-photos")
    settings = load_experiment("bignas-digits", ["recipe.distillation=alpha", "recipe.clip_value=1"]).recipe
    with pytest.raises(ValueError, match="networks of this task give none: take cross_entropy"):
        load_recipe(load_task(photos), settings)


# --- best-up and worst-up


def test_networks_to_choose_from_cost_about_the_same() -> None:
    """Nine of ten sets within the paper's interval of 25 million MACs, in the middle of the space; costs of what is
    drawn are those of uniform draws: mean 734 MMACs, 5 % .. 95 % = 401 .. 1168."""
    with torch.device("meta"):
        net = load_supernet("bignas", "attentivenas")
    rng = np.random.default_rng(0)
    sets = [[net.cost(arch)["macs"] / 1e6 for arch in alike(net, net.space, 3, rng)] for _ in range(150)]
    apart = [max(costs) - min(costs) for costs in sets if 600 < costs[0] < 870]
    assert len(apart) > 40 and np.quantile(apart, 0.9) < 25
    every = np.array(sets).ravel()
    assert every.mean() == pytest.approx(734, rel=0.06)
    assert np.quantile(every, [0.05, 0.95]) == pytest.approx([401, 1168], rel=0.12)


def test_best_and_worst_by_their_loss() -> None:
    space = load_supernet("bignas", "d8").space
    archs = [space.smallest(), space.largest(), space.sample(np.random.default_rng(0))]
    losses = torch.tensor([0.7, 0.9, 0.2])
    assert taken(archs, losses, "best_up") == archs[2] and taken(archs, losses, "worst_up") == archs[1]


@pytest.mark.parametrize(("sampling", "place"), [("best_up", 0), ("worst_up", -1)])
def test_the_random_children_are_the_best_or_worst_on_the_batch(
    sampling: str, place: int, task: Classification, batch: Any, net: Supernet
) -> None:
    """By the smoothed cross-entropy on labels, three candidates for each of two; the ends of the space stay."""
    recipe = recipe_of(task, f"sampling={sampling}", "drawn=3", "random_children=2", "dropout=0")
    engine, bare = Spy(net), Spy(net)
    for loss in recipe.losses(engine, bare, {"train": batch}, step_of(3)):  # type: ignore[arg-type]
        loss.backward()
    net.zero_grad()
    rng = np.random.default_rng(3)
    wanted = []
    for _ in range(2):
        archs = alike(net, net.space, 3, rng)
        with torch.no_grad():
            losses = {
                arch: F.cross_entropy(net(batch[0], arch), batch[1], label_smoothing=0.1).item() for arch in archs
            }
        wanted.append(sorted(losses, key=losses.__getitem__)[place])
    assert engine.calls == [net.space.largest(), *wanted, net.space.smallest()]
    assert len(bare.calls) == 6 and not any(bare.learning) and all(engine.learning)


def test_all_ranks_choose_by_the_mean_of_their_losses(task: Classification, batch: Any, net: Supernet) -> None:
    """What is best here may not be best over all ranks."""
    chosen = []
    for mean in (lambda value: value, lambda value: -value):
        recipe, engine = recipe_of(task, "sampling=best_up"), Spy(net)
        list(recipe.losses(engine, net, {"train": batch}, step_of(3, mean=mean)))  # type: ignore[arg-type]
        chosen.append(engine.calls[1:-1])
    assert chosen[0] != chosen[1]


def test_a_steps_micro_batches_have_one_choice(task: Classification, batch: Any, net: Supernet) -> None:
    """That of the first; the next step chooses anew."""
    recipe, seen = recipe_of(task, "sampling=best_up"), []
    for index, rows in ((3, slice(8)), (3, slice(8, 16)), (4, slice(8))):
        engine, bare = Spy(net), Spy(net)
        part = {"train": (batch[0][rows], batch[1][rows])}
        list(recipe.losses(engine, bare, part, step_of(index)))  # type: ignore[arg-type]
        seen.append((engine.calls, len(bare.calls)))
    assert seen[0][0] == seen[1][0] != seen[2][0]
    assert [count for _, count in seen] == [6, 0, 6]


# --- choices that open

DEEP = Space(
    [
        Choice("depth", (1, 2, 3)),
        Choice("block2.kernel", (3, 5, 7), ("depth", (2, 3))),
        Choice("block3.kernel", (3, 5, 7), ("depth", (3,))),
        Choice("width", (8, 16, 24, 32)),
    ]
)


def values(space: Space) -> dict[str, tuple[Any, ...]]:
    return {name: choice.values for name, choice in space.choices.items()}


def test_choices_open_from_the_largest_on() -> None:
    """At even distances over that part of the training, the last value at its end."""
    at = {
        progress: values(opened_space(DEEP, progress, 0.6, "largest")) for progress in (0.0, 0.2, 0.3, 0.4, 0.59, 0.6)
    }
    assert at[0.0] == {"depth": (3,), "block2.kernel": (7,), "block3.kernel": (7,), "width": (32,)}
    assert at[0.2]["width"] == (24, 32) and at[0.2]["depth"] == (3,)
    assert at[0.3]["depth"] == (2, 3) and at[0.3]["block3.kernel"] == (5, 7)
    assert at[0.4]["width"] == at[0.59]["width"] == (16, 24, 32)
    assert at[0.6] == values(DEEP)


def test_choices_open_from_the_smallest_on() -> None:
    """What depends on a depth that is not open is not there, so that networks have the ids that they have later on."""
    first = opened_space(DEEP, 0.0, 0.6, "smallest")
    assert values(first) == {"depth": (1,), "width": (8,)}
    assert first.smallest() == first.largest() == DEEP.smallest()
    later = opened_space(DEEP, 0.3, 0.6, "smallest")
    assert values(later) == {"depth": (1, 2), "block2.kernel": (3, 5), "width": (8, 16)}
    for space in (first, later, opened_space(DEEP, 0.3, 0.6, "largest")):
        for arch in (space.smallest(), space.largest(), *(space.sample(np.random.default_rng(i)) for i in range(20))):
            assert DEEP.arch(dict(arch)) == arch and DEEP.arch(dict(arch)).id == arch.id


@pytest.mark.parametrize("first", ["largest", "smallest"])
def test_a_step_trains_what_is_open(first: str, task: Classification, batch: Any, net: Supernet) -> None:
    """The ends are those of the open part, and from `opening` on those of the space."""
    recipe, seen = recipe_of(task, "opening=0.5", f"opens_from={first}"), []
    for progress in (0.0, 0.6):
        engine = Spy(net)
        list(recipe.losses(engine, net, {"train": batch}, step_of(1, progress)))  # type: ignore[arg-type]
        seen.append(engine.calls)
    assert seen[0] == 4 * [getattr(net.space, first)()]
    rng = np.random.default_rng(1)
    assert seen[1] == [net.space.largest(), net.space.sample(rng), net.space.sample(rng), net.space.smallest()]


# --- averaged weights, clipped gradients


@pytest.mark.parametrize(("total", "rel"), [(100, 1e-5), (10_000, 0.02)])
def test_the_average_is_the_plain_mean_at_first_and_then_forgets(total: int, rel: float) -> None:
    """Weights 0, 1, 2, ... of a training of 100 steps that reaches back over a tenth: a decay of 0.9. So many were
    planned, or time ends it there."""
    average, net = MovingAverage(0.1), torch.nn.Linear(1, 1, bias=False)
    means = []
    for index in range(30):
        torch.nn.init.constant_(net.weight, float(index))
        average.follow(net, SimpleNamespace(index=index, total=total, progress=index / 100))  # type: ignore[arg-type]
        means.append(average.state()[AVERAGE + "weight"].item())  # type: ignore[union-attr]
    assert means[:10] == pytest.approx([index / 2 for index in range(10)])
    wanted = means[9]
    for index in range(10, 30):
        wanted = 0.9 * wanted + 0.1 * index
    assert means[-1] == pytest.approx(wanted, rel=rel)


def test_nothing_is_kept_where_no_average_is_asked_for(task: Classification) -> None:
    plain = recipe_of(task)
    assert not plain.follows and plain.state() == {}
    assert recipe_of(task, "average=0.1").follows


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_element_of_the_gradient_is_clipped(kind: str, task: Classification) -> None:
    """Before the optimizer sees it: a step of SGD without momentum moves by the rate times what is left."""
    net = torch.nn.Linear(3, 1, bias=False)
    options = ("momentum=0", "nesterov=false", "weight_decay=0", "lr=1.0", f"optimizer={kind}", "clip_value=0.5")
    optimizer = recipe_of(task, *options).optimizer(net)  # type: ignore[arg-type]
    before = net.weight.detach().clone()
    net.weight.grad = torch.tensor([[2.0, -0.25, -7.0]])
    optimizer.step()
    assert net.weight.grad.tolist() == [[0.5, -0.25, -0.5]]
    if kind == "sgd":
        torch.testing.assert_close(before - net.weight.detach(), torch.tensor([[0.5, -0.25, -0.5]]))
