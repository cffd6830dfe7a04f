"""The differentiable search under DeepSpeed: two workers at every ZeRO stage find what one process of plain torch finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.engine import Engine, RanksDiffer
from nas.recipes.differentiable import Differentiable
from nas.recipes.recipe import Step
from nas.settings import Differentiable as Settings
from nas.supernet import Pass, Soft, Supernet, load_supernet
from tests.conformance import ready
from tests.test_differentiable import Enlarging

STAGES = (0, 1, 2, 3)
STEPS = 3


def network() -> Supernet:
    """Without ADQ: its batch statistics are those of a rank."""
    torch.manual_seed(0)
    return ready(load_supernet("quantnas", "basic-c12", adq=False))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def recipe_of() -> Differentiable:
    """Without noise, which is a rank's own."""
    options = {"alpha_warmup": 0.0, "alpha_lr": 0.05, "bitops": 0.01, "quant": "off"}
    return Differentiable(Enlarging(), Settings(name="differentiable", epochs=1.0, batch=4, **options))


def batches(step: int, rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(step)
    return {name: (torch.rand(4, 3, 12, 12, generator=random)[rows], torch.rand(4, 3, 24, 24, generator=random)[rows]) for name in ("weights", "alpha")}


def step_of(net: Supernet, index: int, mean: Any) -> Step:
    return Step(index, STEPS, index / STEPS, 0, np.random.default_rng(index), torch.Generator().manual_seed(index), mean, net)


def work(rank: int, folder: str) -> None:
    from nas.device import settle

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    settle(False, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for stage in STAGES:
        net, recipe = network(), recipe_of()
        engine = Engine(net, sgd(net), stage, "fp32", None, 2, torch.device("cpu"))
        for index in range(STEPS):
            step = step_of(engine.module, index, engine.mean)
            for loss in recipe.losses(engine, batches(index, slice(2 * rank, 2 * rank + 2)), step):  # type: ignore[arg-type]
                engine.backward(loss)
            engine.step(0.1)
        weights = engine.weights()
        assert recipe.alpha is not None
        save_file({**weights, "alpha": recipe.alpha.detach()}, Path(folder) / f"stage{stage}-rank{rank}.safetensors")
        tables = {name: torch.zeros([len(net.space.choices[c].values) for c in choices]) for name, choices in net.slots.items()}
        for table in tables.values():
            table[0, rank] = 1.0
        try:
            engine(torch.rand(2, 3, 12, 12), Soft(tables), Pass())
        except RanksDiffer:
            (Path(folder) / f"refused{stage}-rank{rank}").touch()
        engine.close()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(extension: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    net, recipe = network(), recipe_of()
    optimizer = sgd(net)
    for index in range(STEPS):
        optimizer.zero_grad()
        for loss in recipe.losses(net, batches(index, slice(4)), step_of(net, index, lambda value: value)):
            loss.backward()
        optimizer.step()
    assert recipe.alpha is not None
    return {**net.state_dict(), "alpha": recipe.alpha.detach()}


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_find_what_one_process_finds(stage: int, folder: Path, reference: dict[str, Tensor]) -> None:
    """Logits too, which the engine knows nothing of; they are the same on both ranks to the last bit."""
    first, second = (load_file(folder / f"stage{stage}-rank{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(first["alpha"], second["alpha"])
    assert (first["alpha"] - reference["alpha"]).abs().max() < 1e-3 < reference["alpha"].abs().max()
    start = network().state_dict()
    moved = [name for name, value in reference.items() if name in start and not torch.equal(start[name], value)]
    assert moved
    for name in moved:
        assert torch.allclose(first[name], reference[name], atol=1e-5), name


@pytest.mark.parametrize("stage", STAGES)
def test_workers_that_come_with_different_mixtures_are_stopped(stage: int, folder: Path) -> None:
    assert all((folder / f"refused{stage}-rank{rank}").exists() for rank in (0, 1))
