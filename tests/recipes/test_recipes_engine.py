"""Recipes under DeepSpeed: two workers at every ZeRO stage learn what one process of plain torch learns on the whole
batch."""

from __future__ import annotations

import os
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.build import load_supernet
from nas.recipes.differentiable import Differentiable
from nas.recipes.differentiable import DifferentiableOptions as DifferentiableSettings
from nas.recipes.multi_arch import MultiArch
from nas.recipes.multi_arch import MultiArchOptions as MultiArchSettings
from nas.recipes.recipe import AVERAGE, Recipe, Step
from nas.recipes.sandwich import Sandwich
from nas.recipes.sandwich import SandwichOptions as SandwichSettings
from nas.recipes.single_path import SinglePath
from nas.recipes.single_path import SinglePathOptions as SinglePathSettings
from nas.supernet import Pass, Soft, Supernet
from nas.tasks import divergence, mixing
from nas.testing.space import ready
from nas.training.engine import Engine, RanksDiffer
from searchspaces.bignas import BigNAS, Stage, Table
from tests.recipes.toys import Enlarging

STAGES = (0, 1, 2, 3)
STEPS = 3


def differentiable() -> tuple[Supernet, Differentiable]:
    """Without ADQ, whose batch statistics are those of a rank, and without noise, which is a rank's own."""
    torch.manual_seed(0)
    options = {"alpha_warmup": 0.0, "alpha_lr": 0.05, "bitops": 0.01, "quant": "off"}
    settings = DifferentiableSettings(name="differentiable", epochs=1.0, batch=4, **options)  # type: ignore[arg-type]
    return ready(load_supernet("quantnas", "basic-c12", adq=False)), Differentiable(Enlarging(), settings)


def multi_arch() -> tuple[Supernet, MultiArch]:
    """Three sub-networks for a batch of eight: which rows are a rank's decides which sub-networks it runs, and how
    often."""
    torch.manual_seed(0)
    task = SimpleNamespace(
        mix=lambda x, y, *_: (x, y),
        loss=lambda output, y, _: F.cross_entropy(output.main if hasattr(output, "main") else output, y),
    )
    settings = MultiArchSettings(name="multi_arch", epochs=1.0, batch=8, archs=3, opening=0.0)
    return ready(load_supernet("vit_resnas", "d8", sync_batch_norm=True)), MultiArch(task, settings)


def single_path() -> tuple[Supernet, SinglePath]:
    """Two paths a step, whose convolutions are windows of kernels that belong to their slots."""
    torch.manual_seed(0)
    settings = SinglePathSettings(name="single_path", epochs=1.0, batch=4, paths=2, quant="real")
    return ready(load_supernet("quantnas", "basic-c12", adq=False)), SinglePath(Enlarging(), settings)


SMALL = Table(
    resolution=(8,),
    stem=(8, 16),
    stages=(
        Stage((8, 16), (1, 2), ((3, 5),) * 2, (2,), 2, act="relu", se=True),
        Stage((16,), (1, 2), ((3, 5, 7),) * 2, ((2, 3),) * 2, 1, act="hardswish"),
    ),
    head=(32,),
    channels=1,
    squeeze_input=True,
    kernel_transform=True,
)


def sandwich() -> tuple[Supernet, Sandwich]:
    """All that can be added to the rule, on blocks that are computed again and have kernels that the largest network
    never uses."""
    torch.manual_seed(0)
    task = SimpleNamespace(
        compares_distributions=True,
        mix=lambda x, y, *_: (x, y),
        loss=mixing.loss,
        signal=mixing.signal,
        diverge=divergence.adaptive,
    )
    options = {"sampling": "best_up", "distillation": "alpha", "opening": 0.5, "average": 0.9, "clip_value": 0.02}
    settings = SandwichSettings(name="sandwich", epochs=1.0, batch=8, lr=0.1, weight_decay=0.01, dropout=0.0, **options)  # type: ignore[arg-type]
    return ready(BigNAS(SMALL, sync_batch_norm=True, recompute=True)), Sandwich(task, settings)  # type: ignore[arg-type]


CASES: dict[str, Any] = {
    "differentiable": differentiable,
    "multi_arch": multi_arch,
    "single_path": single_path,
    "sandwich": sandwich,
}
MINE = {"differentiable": 2, "multi_arch": 4, "single_path": 2, "sandwich": 4}  # rows of a rank


def optimizer_of(net: Supernet, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's own where that clips."""
    return recipe.optimizer(net) if isinstance(recipe, Sandwich) else sgd(net)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def batches(case: str, step: int, rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
    """For every recipe: what it feeds on."""
    random = torch.Generator().manual_seed(step)
    images = {
        name: (torch.rand(4, 3, 12, 12, generator=random)[rows], torch.rand(4, 3, 24, 24, generator=random)[rows])
        for name in ("weights", "alpha")
    }
    if case == "single_path":
        return {"train": images["weights"]}
    return {**images, "train": (torch.rand(8, 1, 8, 8, generator=random)[rows], torch.arange(8)[rows])}


def step_of(index: int, row: int, mean: Any) -> Step:
    return Step(
        index, STEPS, index / STEPS, row, np.random.default_rng(index), torch.Generator().manual_seed(index), mean, 0
    )


def state(net_state: dict[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    own = {name: value.detach() for name, value in recipe.state().items() if isinstance(value, Tensor)}
    return {**net_state, **{name: value for name, value in own.items() if name == "alpha" or name.startswith(AVERAGE)}}


def work(rank: int, folder: str) -> None:
    from nas.device import configure_process

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    configure_process(False, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for case, stage in product(CASES, STAGES):
        net, recipe = CASES[case]()
        mine = MINE[case]
        engine = Engine(net, optimizer_of(net, recipe), stage, "fp32", None, mine, torch.device("cpu"))
        for index in range(STEPS):
            step = step_of(index, mine * rank, engine.mean)
            for loss in recipe.losses(
                engine, engine.module, batches(case, index, slice(mine * rank, mine * (rank + 1))), step
            ):
                engine.backward(loss)
            engine.step(0.1)
            if recipe.follows:
                with engine.whole() as whole:
                    recipe.stepped(whole, step)
        save_file(state(engine.weights(), recipe), Path(folder) / f"{case}{stage}-rank{rank}.safetensors")
        if case == "differentiable":
            _differ(engine, net, rank, Path(folder) / f"refused{stage}-rank{rank}")
        engine.close()
    dist.destroy_process_group()


def _differ(engine: Engine, net: Supernet, rank: int, told: Path) -> None:
    """Every rank with another mixture; whether it was refused."""
    tables = {
        name: torch.zeros([len(net.space.choices[c].values) for c in choices]) for name, choices in net.slots.items()
    }
    for table in tables.values():
        table[0, rank] = 1.0
    try:
        engine(torch.rand(2, 3, 12, 12), Soft(tables), Pass())
        engine.highest()
    except RanksDiffer:
        told.touch()


@pytest.fixture(scope="module")
def folder(extension: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@cache
def reference(case: str) -> dict[str, Tensor]:
    net, recipe = CASES[case]()
    optimizer = optimizer_of(net, recipe)
    for index in range(STEPS):
        optimizer.zero_grad()
        for loss in recipe.losses(
            net, net, batches(case, index, slice(None, 2 * MINE[case])), step_of(index, 0, lambda value: value)
        ):
            loss.backward()
        optimizer.step()
        if recipe.follows:
            recipe.stepped(net, step_of(index, 0, lambda value: value))
    return state(net.state_dict(), recipe)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_two_workers_learn_what_one_process_learns(case: str, stage: int, folder: Path) -> None:
    first, wanted, start = (
        load_file(folder / f"{case}{stage}-rank0.safetensors"),
        reference(case),
        CASES[case]()[0].state_dict(),
    )
    moved = [
        name
        for name, value in wanted.items()
        if name in start and value.is_floating_point() and not torch.equal(start[name], value)
    ]
    assert len(moved) > 10
    for name in [*moved, *(name for name in wanted if name.startswith(AVERAGE))]:
        assert torch.allclose(first[name], wanted[name], atol=1e-5), name


def test_clipping_and_learnt_kernels_take_part_in_that() -> None:
    """What the sandwich is compared on is not idle: some of the gradient is clipped, and kernels' matrices move."""
    net, recipe = sandwich()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    wanted = reference("sandwich")
    matrices = [name for name in start if "transform" in name]
    assert len(matrices) == 2 + 2 * 2
    assert sum(not torch.equal(start[name], wanted[name]) for name in matrices) >= 3, "those of all first blocks"
    for loss in recipe.losses(net, net, batches("sandwich", 0, slice(None)), step_of(0, 0, lambda value: value)):
        loss.backward()
    most = max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None)
    assert most > 0.04


@pytest.mark.parametrize("stage", STAGES)
def test_kernels_that_the_largest_network_never_uses_are_resumed(stage: int, one_rank: None) -> None:
    """Their optimizer state is made by the pass of no network that all steps have: bit for bit, whatever the stage."""
    (net, recipe), ends = sandwich(), list[dict[str, Tensor]]()
    engine = Engine(net, recipe.optimizer(net), stage, "fp32", None, 8, torch.device("cpu"))
    learn(engine, recipe, range(2))
    weights, moments = engine.weights(), engine.optimizer_state()
    assert any("transform" in name and value.any() for name, value in moments.items())
    learn(engine, recipe, range(2, 4))
    ends.append(engine.weights())
    engine.close()
    net, recipe = sandwich()
    net.load_state_dict(weights)
    engine = Engine(net, recipe.optimizer(net), stage, "fp32", None, 8, torch.device("cpu"))
    engine.load_optimizer_state(moments, 2)
    learn(engine, recipe, range(2, 4))
    ends.append(engine.weights())
    engine.close()
    assert [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])] == []
    assert not all(torch.equal(value, weights[name]) for name, value in ends[0].items() if "transform" in name)


def learn(engine: Engine, recipe: Recipe, steps: range) -> None:
    """The sandwich's steps of one worker."""
    for index in steps:
        for loss in recipe.losses(
            engine, engine.module, batches("sandwich", index, slice(None)), step_of(index, 0, engine.mean)
        ):
            engine.backward(loss)
        engine.step(0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_the_logits_are_the_same_on_both_ranks_to_the_last_bit(stage: int, folder: Path) -> None:
    """Though the engine knows nothing of them."""
    first, second = (load_file(folder / f"differentiable{stage}-rank{rank}.safetensors")["alpha"] for rank in (0, 1))
    assert (
        torch.equal(first, second)
        and (first - reference("differentiable")["alpha"]).abs().max() < 1e-3 < first.abs().max()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_workers_that_come_with_different_mixtures_are_stopped(stage: int, folder: Path) -> None:
    assert all((folder / f"refused{stage}-rank{rank}").exists() for rank in (0, 1))
