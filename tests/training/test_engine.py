"""Many backwards and one step under DeepSpeed: what plain torch gives in one process, for ZeRO 0 to 3 on two workers.

For each number of workers one group of processes goes through all stages (starting them costs more than the work) and
leaves what it saw in files; the tests below look at those. The references are plain torch: no engine, one process, the
joint batch.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.recipes.recipe import decayed
from nas.space import Arch
from nas.supernet import Supernet
from nas.testing.space import ready
from searchspaces.bignas import BigNAS, Stage, Table

STAGES = (0, 1, 2, 3)
ROWS = 12
CLIP = 0.05  # well below the norm of these gradients
SAME = 2e-6  # of fp32 weights and averages after a few steps: another order of summation, and nothing else
TABLE = Table(
    resolution=(8,),
    stem=(8, 16),
    stages=(Stage((8, 16), (1, 2), (3,), (1,), 1), Stage((16, 24), (1, 2), (3, 5), (2, 4), 2, se=True)),
    head=(16, 32),
    conv_shortcut=True,
    channels=1,
)
# which neither the largest nor the smallest network has, being as wide before as after
LATE = "stages.0.0.shortcut.weight"

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def network(sync: bool = True, weights: dict[str, Tensor] | None = None) -> Supernet:
    torch.manual_seed(0)
    net = ready(BigNAS(TABLE, sync_batch_norm=sync, mean=(0.3,), std=(0.4,)))
    if weights:
        net.load_state_dict(weights)
    return net


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(decayed(net, 1e-2), lr=9.0, momentum=0.9, nesterov=True)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    """With a large epsilon: without it a gradient that is zero but for rounding moves its weight by the whole rate."""
    return torch.optim.AdamW(decayed(net, 1e-1), lr=9.0, eps=1e-3)


OPTIMIZERS: dict[str, tuple[Optimizer, float]] = {"sgd": (sgd, 0.1), "adamw": (adamw, 0.003)}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(ROWS, 1, 8, 8, generator=generator), torch.randint(0, 10, (ROWS,), generator=generator)


def sandwich(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Largest on labels, two random ones and the smallest on soft labels."""
    rng = np.random.default_rng(100 + step)
    teacher = net(x, space.largest())
    yield F.cross_entropy(teacher, y)
    for arch in (space.sample(rng), space.sample(rng), space.smallest()):
        yield F.cross_entropy(net(x, arch), teacher.detach().softmax(-1))


def ends_small(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """A sandwich, and from then on steps that most parameters have no part in: momentum goes on moving them."""
    yield from sandwich(net, space, step, x, y) if step == 0 else [F.cross_entropy(net(x, space.smallest()), y)]


def late(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """A parameter whose gradient comes with the second backward of the first step, never in the second, again in the
    third."""
    yield F.cross_entropy(net(x, space.largest()), y)
    if step != 1:
        yield F.cross_entropy(net(x, space.arch({**space.largest(), "stem": 8})), y)


def many(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Eight backwards."""
    for part in range(2):
        for loss in sandwich(net, space, 10 * step + part, x, y):
            yield loss / 2


def joined(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """A sandwich in one backward: a parameter is used by several parts of one graph (DeepSpeed's issue 8224)."""
    yield sum(sandwich(net, space, step, x, y))  # type: ignore[misc]


def steep(net: Callable[..., Tensor], space: Any, step: int, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """A gradient of a norm far above 1, to which DeepSpeed cuts unless told otherwise."""
    yield 1000 * F.cross_entropy(net(x, space.largest()), y)


Losses = Callable[[Callable[..., Tensor], Any, int, Tensor, Tensor], Iterator[Tensor]]


@dataclass
class Course:
    """Where plain torch got to: weights, optimizer state by ``"<key>/<parameter>"``, norms of the unclipped
    gradients, losses."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    norms: list[float]
    losses: list[float]


@cache
def plain(
    name: str, steps: int, losses: Losses, clip: float | None = None, rows: int = ROWS, lr: float | None = None
) -> Course:
    """The reference. A parameter without gradient has a zero one, so that momentum and decay move it."""
    net = network(sync=False)
    make, rate = OPTIMIZERS[name]
    optimizer, course = make(net), Course({}, {}, [], [])
    for group in optimizer.param_groups:
        group["lr"] = lr or rate
    for step in range(steps):
        optimizer.zero_grad()
        x, y = batch(step)
        for loss in losses(net, net.space, step, x[:rows], y[:rows]):
            loss.backward()
            course.losses.append(loss.item())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        course.norms.append(nn.utils.clip_grad_norm_(net.parameters(), clip or float("inf")).item())
        optimizer.step()
    course.weights = {key: value.clone() for key, value in net.state_dict().items()}
    for key, parameter in net.named_parameters():
        kept = {what: value for what, value in optimizer.state[parameter].items() if value.ndim}
        course.state |= {f"{what}/{key}": value for what, value in kept.items()}
    return course


# --- in the workers


class Worker:
    """What one process does at one stage; everything that it returns is the same on all ranks."""

    def __init__(self, rank: int, world: int, stage: int, folder: Path) -> None:
        self.rank, self.world, self.stage, self.folder = rank, world, stage, folder

    def engine(self, net: Supernet, make: Optimizer = sgd, clip: float | None = None, precision: str = "fp32") -> Any:
        from nas.training.engine import Engine

        return Engine(net, make(net), self.stage, precision, clip, ROWS // self.world, torch.device("cpu"))

    def steps(
        self,
        engine: Any,
        steps: range,
        name: str = "sgd",
        losses: Losses = sandwich,
        local: bool = False,
        lr: float | None = None,
    ) -> list[float]:
        """Steps on this rank's part of the batch; with `local` every rank has the first part. Gives the losses."""
        part, seen = 0 if local else self.rank, []
        rows = slice(part * ROWS // self.world, (part + 1) * ROWS // self.world)
        for step in steps:
            x, y = batch(step)
            pending = losses(engine, engine.module.space, step, x[rows], y[rows])
            while True:
                with engine.autocast():
                    loss = next(pending, None)
                if loss is None:
                    break
                engine.backward(loss)
                seen.append(loss.item())
            engine.step(lr or OPTIMIZERS[name][1])
        return seen

    def after(self, engine: Any, steps: int, **options: Any) -> dict[str, Tensor]:
        """The full weights after some steps; the engine is closed."""
        self.steps(engine, range(steps), **options)
        weights = engine.weights()
        engine.close()
        return weights

    def file(self, name: str, stage: int | None = None, world: int | None = None) -> Path:
        return (
            self.folder / f"world{world or self.world}-stage{self.stage if stage is None else stage}-{name}.safetensors"
        )

    def check_updates(self) -> dict[str, Any]:
        """Weights after some steps against plain torch's, by what is done."""
        found = {}
        local = plain("sgd", 2, sandwich, rows=ROWS // self.world)
        found["local batch norm"] = apart(self.after(self.engine(network(False)), 2, local=True), local.weights)
        clipped = plain("sgd", 2, sandwich, clip=CLIP)
        assert min(clipped.norms) > 4 * CLIP, clipped.norms
        found["clipped"] = apart(self.after(self.engine(network(), clip=CLIP), 2), clipped.weights)
        found["many backwards"] = apart(
            self.after(self.engine(network()), 1, losses=many), plain("sgd", 1, many).weights
        )
        found["one backward"] = apart(
            self.after(self.engine(network()), 2, losses=joined), plain("sgd", 2, joined).weights
        )
        found["unused parameters"] = apart(
            self.after(self.engine(network()), 3, losses=ends_small), plain("sgd", 3, ends_small).weights
        )
        net = network()
        assert not any(
            LATE in dict(net.extract(arch).named_parameters()) for arch in (net.space.largest(), net.space.smallest())
        )
        found["late parameters"] = apart(
            self.after(self.engine(network()), 3, losses=late), plain("sgd", 3, late).weights
        )
        steep_ = plain("sgd", 1, steep, lr=1e-5)
        assert steep_.norms[0] > 100, steep_.norms
        found["not clipped"] = apart(self.after(self.engine(network()), 1, losses=steep, lr=1e-5), steep_.weights)
        return found

    def check_course(self) -> dict[str, Any]:
        """Two steps, a checkpoint, two more; and again from the checkpoint."""
        found: dict[str, Any] = {}
        for name, (make, _) in OPTIMIZERS.items():
            engine, wanted = self.engine(network(), make), plain(name, 2, sandwich)
            self.steps(engine, range(2), name)
            weights, state = engine.weights(), engine.optimizer_state()
            found[f"{name}, weights"] = apart(weights, wanted.weights)
            found[f"{name}, names"] = sorted(set(wanted.state) ^ set(state))
            found[f"{name}, state"] = apart(state, wanted.state)
            found[f"{name}, least"] = min(float(value.abs().max()) for value in state.values())
            self.steps(engine, range(2, 4), name)
            end = engine.weights()
            engine.close()
            if self.rank == 0:
                save_file(weights, self.file(f"{name}-weights"))
                save_file(state, self.file(f"{name}-state"))
                save_file(end, self.file(f"{name}-end"))
            dist.barrier()
            found[f"{name}, moved"] = apart(end, weights)
            found[f"{name}, resumed"] = apart(self.resumed(name, weights, state), end)
        return found

    def resumed(self, name: str, weights: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        engine = self.engine(network(weights=weights), OPTIMIZERS[name][0])
        engine.load_optimizer_state(state, 2)
        assert apart(engine.weights(), weights) == 0, "loading changed the weights"
        assert apart(engine.optimizer_state(), state) == 0, "loading changed the optimizer's state"
        self.steps(engine, range(2, 4), name)
        end = engine.weights()
        engine.close()
        return end

    def take_over(self, stage: int) -> dict[str, Any]:
        """From two workers' checkpoint at another stage to the same end."""
        found = {}
        for name in OPTIMIZERS:
            weights, state, end = (
                load_file(self.file(f"{name}-{what}", stage, 2)) for what in ("weights", "state", "end")
            )
            found[name] = apart(self.resumed(name, weights, state), end)
        return found

    def check_bf16(self) -> dict[str, Any]:
        """bf16 autocast beside plain torch in fp32."""
        engine, wanted = self.engine(network(), precision="bf16"), plain("sgd", 1, sandwich)
        losses = torch.tensor(self.steps(engine, range(1)))
        dist.all_reduce(losses)
        with engine.whole() as net:
            kinds = sorted({str(p.dtype) for p in net.parameters()})
        weights = engine.weights()
        engine.close()
        differ = (losses / self.world - torch.tensor(wanted.losses)).abs().max().item()
        return {"losses": differ, "weights": apart(weights, wanted.weights), "kinds": kinds}

    def check_ranks(self) -> dict[str, Any]:
        """Different architectures are told on every rank, under ZeRO 3 before they run and else with the step's one
        message; nothing is broken by it, and rotations of one list are no difference."""
        from nas.training.engine import RanksDiffer

        # In rotated lists ranks run different sub-networks at a time: their batch norms cannot be synchronised, and
        # under ZeRO 3, which gathers weights module by module, they must have the same modules.
        engine, found = self.engine(network(False)), dict[str, Any]()
        space = engine.module.space
        x = batch(0)[0][: ROWS // self.world]
        archs: list[Arch] = [
            space.arch({**space.largest(), **change}) for change in ({}, {"stage2.expand": 2}, {"head": 16})
        ]
        cases: dict[str, Any] = {
            "archs": [space.largest(), space.smallest()][self.rank % 2],
            "lists": [archs, [archs[0], archs[1], archs[1]]][self.rank % 2],
            "list and arch": [archs[:1], archs[1]][self.rank % 2],
            "rotated": archs[self.rank :] + archs[: self.rank],
            "same": archs[0],
        }
        for name, case in cases.items():
            found[name] = ""
            try:
                engine(x, case)
                if engine.zero_stage < 3:
                    engine.highest(1.0)
            except RanksDiffer as error:
                found[name] = str(error)
        found["afterwards"] = np.isfinite(self.steps(engine, range(1))).all().item()
        engine.close()
        return found

    def check_between_ranks(self) -> dict[str, Any]:
        """Small facts: averages, maxima, gathered values; and whole weights to read."""
        engine = self.engine(network())
        weights = engine.weights()
        with engine.whole() as net:
            child = net.extract(net.space.largest())
        found = {
            "mean": engine.mean(torch.tensor([1.0, 2.0]) * (self.rank + 1)).tolist(),
            "highest": engine.highest(float(self.rank), -float(self.rank), float("inf") if self.rank else 0.0),
            "gathered": engine.gather({"rank": self.rank}),
            "weights": apart(weights, dict(network().state_dict())),
            "child": apart(dict(child.named_parameters()), {k: weights[k] for k, _ in child.named_parameters()}),
        }
        engine.close()
        return found


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference; infinite where a name or a value is missing."""
    if set(found) != set(wanted):
        return float("inf")
    with torch.no_grad():
        differences = [(found[name] - wanted[name]).abs().max().nan_to_num(float("inf")).item() for name in wanted]
    return max(differences)


CHECKS = {2: ("updates", "course", "bf16", "ranks", "between_ranks"), 1: ("updates", "bf16")}
TAKE_OVERS = {
    2: ((0, 1), (1, 3), (3, 0), (3, 2)),
    1: ((0, 1), (1, 3), (3, 0), (2, 2)),
}  # stages of the checkpoint and of who goes on


def work(rank: int, world: int, folder: str) -> None:
    """One process of a group: all checks at all stages, then resumes across them."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    from nas.device import configure_process

    configure_process(False, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    found: dict[str, Any] = {}

    def note(name: str, check: Callable[[], Any]) -> None:
        try:
            found[name] = check()
        except Exception:
            found[name] = {"error": traceback.format_exc()}
        dist.barrier()

    for stage in STAGES:
        worker = Worker(rank, world, stage, Path(folder))
        for name in CHECKS[world]:
            note(f"{name} {stage}", getattr(worker, f"check_{name}"))
    for old, new in TAKE_OVERS[world]:
        note(f"take over {old} {new}", lambda old=old, new=new: Worker(rank, world, new, Path(folder)).take_over(old))
    Path(folder, f"found-{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


# --- in the test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, extension: None) -> Path:
    return tmp_path_factory.mktemp("engine")


def run(world: int, folder: Path) -> list[dict[str, Any]]:
    torch.multiprocessing.spawn(work, (world, str(folder)), nprocs=world)
    return [json.loads((folder / f"found-{world}-{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two workers saw."""
    return run(2, folder)


@pytest.fixture(scope="module")
def one(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a single worker saw, after the two left their checkpoints."""
    return run(1, folder)


def seen(ranks: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What each rank saw of a check."""
    for rank, found in enumerate(ranks):
        if "error" in found[name]:
            pytest.fail(f"rank {rank}: {found[name]['error']}")
    return [found[name] for found in ranks]


@pytest.mark.parametrize("stage", STAGES)
def test_sandwich_steps_are_those_of_one_process(two: list[dict[str, Any]], stage: int) -> None:
    """With synchronised batch norm, by SGD and AdamW, on the joint batch."""
    for found in seen(two, f"course {stage}"):
        assert max(found[f"{name}, weights"] for name in OPTIMIZERS) < SAME


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", ["one", "two"])
def test_updates_are_those_of_one_process(request: pytest.FixtureRequest, workers: str, stage: int) -> None:
    """With the same micro-batch everywhere; clipped by norm, or not at all; after many backwards; where parameters
    are not used."""
    for found in seen(request.getfixturevalue(workers), f"updates {stage}"):
        assert len(found) == 7
        assert {name: value for name, value in found.items() if value > SAME} == {}


@pytest.mark.parametrize("stage", STAGES)
def test_optimizer_state_is_whole(two: list[dict[str, Any]], stage: int) -> None:
    """Momentum of SGD and both averages of AdamW, for every parameter of both groups, as torch has them."""
    for found in seen(two, f"course {stage}"):
        for name in OPTIMIZERS:
            assert found[f"{name}, names"] == []
            assert found[f"{name}, least"] > 0
            assert found[f"{name}, state"] < SAME


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_equal(two: list[dict[str, Any]], stage: int) -> None:
    for found in seen(two, f"course {stage}"):
        for name in OPTIMIZERS:
            assert found[f"{name}, resumed"] == 0
            assert found[f"{name}, moved"] > 1e-3


@pytest.mark.parametrize(("old", "new"), TAKE_OVERS[2])
def test_a_checkpoint_knows_no_stage(two: list[dict[str, Any]], old: int, new: int) -> None:
    for found in seen(two, f"take over {old} {new}"):
        assert max(found.values()) < 1e-6


@pytest.mark.parametrize(("old", "new"), TAKE_OVERS[1])
def test_a_checkpoint_knows_no_number_of_workers(one: list[dict[str, Any]], old: int, new: int) -> None:
    """Two workers' run goes on with one."""
    (found,) = seen(one, f"take over {old} {new}")
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", ["one", "two"])
def test_bf16_runs_over_fp32_weights(request: pytest.FixtureRequest, workers: str, stage: int) -> None:
    for found in seen(request.getfixturevalue(workers), f"bf16 {stage}"):
        assert found["kinds"] == ["torch.float32"]
        assert 1e-6 < found["losses"] < 0.05, "no autocast, or a wrong one"
        assert 0 < found["weights"] < 0.02


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_that_differ_are_told(two: list[dict[str, Any]], stage: int) -> None:
    for rank, found in enumerate(seen(two, f"ranks {stage}")):
        for name in ("archs", "lists", "list and arch"):
            assert f"rank {rank} drew" in found[name], name
        assert found["rotated"] == found["same"] == ""
        assert found["afterwards"]


@pytest.mark.parametrize("stage", STAGES)
def test_facts_between_ranks(two: list[dict[str, Any]], stage: int) -> None:
    for found in seen(two, f"between_ranks {stage}"):
        assert found["mean"] == [1.5, 3.0]
        assert found["highest"] == [1.0, 0.0, float("inf")]
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["weights"] == found["child"] == 0
