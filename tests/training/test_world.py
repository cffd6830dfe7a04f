"""Another number of workers and another ZeRO stage on the way: the next step's losses and gradients are those of the
run that went on as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nas.config.experiment import load_experiment
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.training.loop import Attempt, Loop

SAME = 1e-5  # of the largest
STEPS = 6  # one epoch of the digits
EXPERIMENT = [
    "space.options={sync_batch_norm: true}",
    "recipe.batch=200",
    "recipe.epochs=1",
    "recipe.warmup_epochs=0",
    "recipe.dropout=0",
    "recipe.drop_path=0",
    "train.checkpoint_every=1",
    f"train.keep={STEPS}",
]


def work(rank: int, world: int, stage: int, run: str, gpu: bool) -> None:
    """One process of a group that trains in a run directory to the end."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in place.items()}
    from nas.device import configure_process

    device = configure_process(gpu, 1)
    means: list[dict[str, float]] = []  # over ranks; a line of the log has those of the first one's share
    guard = Attempt._guard

    def noted(self: Attempt, losses: Sequence[float]) -> None:
        of_all = torch.tensor(losses, dtype=torch.float64, device=device)
        dist.all_reduce(of_all)
        means.append(dict(zip(self.recipe.names, (of_all / world).tolist(), strict=True)))
        guard(self, losses)

    Attempt._guard = noted  # type: ignore[method-assign]
    store = Path(run, "store")
    dist.init_process_group("nccl" if gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    told = load_experiment("bignas-digits", [*EXPERIMENT, f"train.workers={world}", f"train.zero_stage={stage}"])
    if rank == 0:
        Fence.take(Path(run))
    dist.barrier()
    fence = Fence(Path(run), 1)
    Loop(told, RunDir(run), fence, rank, world, device).train()
    Path(run, "losses.json").write_text(json.dumps(means))
    dist.destroy_process_group()


def train(run: Path, workers: int, stage: int, begun: Path | None = None, step: int = 0, gpu: bool = False) -> Path:
    """Train in a new directory to the end, from a checkpoint of another run where there is one."""
    run.mkdir()
    if begun is not None:
        name = f"step-{step:08d}"
        shutil.copytree(begun / "supernet" / name, run / "supernet" / name)
    torch.multiprocessing.spawn(work, (workers, stage, str(run), gpu), nprocs=workers)
    return run


def losses(run: Path, step: int) -> dict[str, float]:
    return json.loads((run / "losses.json").read_text())[step - 1 - STEPS]


def gradients(run: Path, step: int) -> dict[str, torch.Tensor]:
    """What a step added to the momentum of each parameter; the same checkpoint lies before it in both runs."""
    return load_file(run / "supernet" / f"step-{step:08d}" / "optimizer.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, extension: None) -> tuple[Path, Path, Path]:
    """A run of one worker at stage 0; from its step 4 on, two workers at stage 2; from their step 5 on, one worker at
    stage 1."""
    home = tmp_path_factory.mktemp("world")
    one = train(home / "one", 1, 0)
    two = train(home / "two", 2, 2, one, STEPS - 2)
    return one, two, train(home / "again", 1, 1, two, STEPS - 1)


@pytest.mark.parametrize(("changed", "step"), [(1, STEPS - 1), (2, STEPS)], ids=["1 to 2, 0 to 2", "2 to 1, 2 to 1"])
def test_the_next_step_is_the_undisturbed_ones(runs: tuple[Path, Path, Path], changed: int, step: int) -> None:
    undisturbed, here = runs[changed - 1], runs[changed]
    for name, loss in losses(undisturbed, step).items():
        assert losses(here, step)[name] == pytest.approx(loss, rel=SAME), name
    wanted, found = gradients(undisturbed, step), gradients(here, step)
    assert wanted.keys() == found.keys() and wanted
    largest = max(float(value.abs().max()) for value in wanted.values())
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < SAME * largest


def test_a_step_does_depend_on_what_came_before(runs: tuple[Path, Path, Path]) -> None:
    """The comparison above would tell a step from another."""
    one, two, _ = runs
    before, after = gradients(one, STEPS - 2), gradients(two, STEPS - 1)
    largest = max(float(value.abs().max()) for value in before.values())
    assert max(float((before[name] - after[name]).abs().max()) for name in before) > 0.01 * largest
