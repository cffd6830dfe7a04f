"""Checks of the platform: scoring, loaders, DeepSpeed, checkpoints, trials; `checks` says what each needs.

As in `networks`, each takes the device and whether to be small, and gives what it found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nas.build import load_task, make_supernet
from nas.children.evaluate import Evaluator
from nas.config.experiment import load_experiment
from nas.device import configure_process, exact, machine
from nas.supernet import main_head
from nas.tasks.task import pixels
from searchspaces.bignas import BigNAS
from tests.benchmarks import loading
from tests.benchmarks.peer_space import TABLE
from tests.gpu import networks

CLOSE = 1e-3  # of what a step changes at most: fp32 in another order
ROUNDED = 0.03  # the same in TF32
STAGES = (0, 1, 2, 3)
ROWS, STEPS, LR = 16, 2, 0.1


def scoring(device: torch.device, small: bool) -> str:
    """Children calibrated and scored on the device as the search does it, against the CPU."""
    told = load_experiment("bignas-digits")
    task = load_task(told)
    net = networks.settled(make_supernet(told, task))
    archs = [net.space.largest(), *(net.space.sample(np.random.default_rng(n)) for n in range(2 if small else 8))]
    wanted = [Evaluator(net, task, told.search, torch.device("cpu"))(arch) for arch in archs]
    here = Evaluator(net.to(device), task, told.search, device)
    as_scored = [here(arch) for arch in archs]
    with exact():
        found = [here(arch) for arch in archs]
    one = 100 / len(task.validation)  # example, in percent
    off = max(abs(a["accuracy"] - b["accuracy"]) for a, b in zip(found, wanted, strict=True)) / one
    assert off <= 1.01, f"{off:.0f} of {len(task.validation)} examples are classified otherwise"
    for a, b in zip(found, wanted, strict=True):
        assert abs(a["cross_entropy"] / b["cross_entropy"] - 1) < CLOSE, (a, b)
    in_tf32 = max(abs(a["accuracy"] - b["accuracy"]) for a, b in zip(as_scored, wanted, strict=True)) / one
    return (
        f"{len(archs)} children, {len(task.validation)} examples: {off:.0f} otherwise in fp32, {in_tf32:.0f} as scored"
    )


def loaders(device: torch.device, small: bool) -> str:
    """Images a second that loaders decode, against those that steps of AttentiveNAS take, and both together."""
    from nas.training.feeds import prefetched

    batch, times, processes = (4, 2, 1) if small else (64, 8, max(1, (os.cpu_count() or 2) - 1))
    net = networks.bignas.supernet("p64" if small else "attentivenas", image=loading.SIDE).to(device)
    rng = np.random.default_rng(0)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        x, y = pixels(x.to(device, non_blocking=True)), y.to(device, non_blocking=True)
        networks.sandwich([lambda x, a=a: main_head(net(x, a)) for a in networks.four(net, rng)], x, y, "bf16")

    with tempfile.TemporaryDirectory() as made:
        loading.make(Path(made), 20 if small else 1000)
        with closing(prefetched(loading.feeds(Path(made), batch), 0, processes, device.type == "cuda")) as batches:
            x, y = next(batches)["train"]
            alone = batch / networks.seconds(lambda: step(x, y), device, times)
            for _ in range(2 * processes):  # what is ready
                next(batches)
            decoded = batch / networks.seconds(lambda: next(batches), device, times)
            both = batch / networks.seconds(lambda: step(*next(batches)["train"]), device, times)
    return f"{processes} loaders {decoded:.0f} images/s, steps in bf16 {alone:.0f}, steps fed by them {both:.0f}"


def zero(device: torch.device, small: bool) -> str:
    """ZeRO 0 to 3, a rank a GPU over NCCL (on the CPU two over gloo), against plain torch on the joint batch."""
    world = torch.cuda.device_count() if device.type == "cuda" else 2
    if device.type == "cpu":
        from nas.training.engine import prebuild

        prebuild()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (world, device.type, folder), nprocs=world)
        offs = torch.tensor([[float(o) for o in Path(folder, f"{r}").read_text().split()] for r in range(world)])
    most = offs.max(0).values.tolist()
    found = ", ".join(f"{stage}: {off:.1e}" for stage, off in zip(STAGES, most, strict=True))
    assert max(most) < CLOSE, f"weights are apart from plain torch's, of the largest change: {found}"
    return f"{world} ranks, weights apart, of the largest change: {found}"


def _rank(rank: int, world: int, kind: str, folder: str) -> None:
    """One process of `zero`: how far each stage's weights are from plain torch's goes into a file."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in place.items()}
    device = configure_process(kind == "cuda", 1)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world)
    with exact():
        first, wanted = _plain(device)
        moved = max(float((wanted[name] - first[name]).abs().max()) for name in wanted)
        offs = []
        for stage in STAGES:
            found = _by_engine(stage, rank, world, device)
            offs.append(max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / moved)
    Path(folder, f"{rank}").write_text(" ".join(map(str, offs)))
    dist.destroy_process_group()


def _network() -> BigNAS:
    torch.manual_seed(0)
    net = BigNAS(TABLE, sync_batch_norm=True)
    networks.settled(net)
    return net


def _losses(net: BigNAS, run: object, step: int, rows: slice, device: torch.device) -> Iterator[torch.Tensor]:
    """A sandwich on these rows of the step's batch."""
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(ROWS, *net.input_shape, generator=generator)[rows].to(device)
    y = torch.randint(0, 10, (ROWS,), generator=generator)[rows].to(device)
    for arch in networks.four(net, np.random.default_rng(step)):
        yield torch.nn.functional.cross_entropy(run(x, arch), y)  # type: ignore[operator]


def _weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.named_parameters()}


def _plain(device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after, of one process without an engine."""
    net = _network()
    for module in net.modules():
        if hasattr(module, "sync"):
            module.sync = False
    first, net = _weights(net), net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        for loss in _losses(net, net, step, slice(None), device):
            loss.backward()
        optimizer.step()
    return first, _weights(net)


def _by_engine(stage: int, rank: int, world: int, device: torch.device) -> dict[str, torch.Tensor]:
    from nas.training.engine import Engine

    net, share = _network(), ROWS // world
    rows = slice(rank * share, (rank + 1) * share)
    engine = Engine(net, torch.optim.SGD(net.parameters(), LR, momentum=0.9), stage, "fp32", None, share, device)
    for step in range(STEPS):
        for loss in _losses(net, engine, step, rows, device):
            engine.backward(loss)
        engine.step(LR)
    found = engine.weights()
    engine.close()
    return found


def resume(device: torch.device, small: bool) -> str:
    """A checkpoint of a CPU goes on on the device: the next step's losses and gradients are those of the CPU."""
    from nas.training.engine import prebuild
    from tests.training import test_world as world

    prebuild()
    with tempfile.TemporaryDirectory() as home:
        one = world.train(Path(home, "one"), 1, 0)
        two = world.train(Path(home, "two"), 1, 1, one, world.STEPS - 2, device.type == "cuda")
        step = world.STEPS - 1
        pairs = [(loss, world.losses(two, step)[name]) for name, loss in world.losses(one, step).items()]
        off = networks.apart(world.gradients(two, step), world.gradients(one, step))
    losses = max(abs(there / here - 1) for here, there in pairs)
    assert losses < ROUNDED and off < ROUNDED, f"losses {losses:.2g}, momentum {off:.2g} apart"
    return f"losses {losses:.1e} apart, momentum {off:.1e} of its largest"


def trials(device: torch.device, small: bool) -> str:
    """`nas run` with four trials at a time, a quarter of the GPU each: every candidate is scored."""
    gpu = "true" if device.type == "cuda" else "false"
    count = 6 if small else 24
    given = [
        f"train.use_gpu={gpu}",
        "train.workers=1",
        "recipe.epochs=3",
        f"search.trials={2 if small else 4}",
        f"search.candidates={count}",
    ]
    with tempfile.TemporaryDirectory() as home:
        words = [word for each in given for word in ("--set", each)]
        command = [sys.executable, "-m", "nas.cli", "run", "bignas-digits", "--run-dir", f"{home}/run", *words]
        ended = subprocess.run(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ended.returncode == 0, " ".join(ended.stdout.split())[-400:]
        from tests.driving import records

        found = records(Path(home, "run"))
        failed = [record["error"] for record in found.values() if record.get("error")]
        assert len(found) == count and not failed, (len(found), failed[:1])
        children = list(Path(home, "run", "children").glob("*/model.safetensors"))
        assert children
    took = sum(record["seconds"] for record in found.values()) / count
    return f"{count} candidates on {machine(device)}, {took:.2f} s each, {len(children)} children exported"
