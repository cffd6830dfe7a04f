"""What ViT-ResNAS claims, on Fashion-MNIST (28 pixels, space m28): one part of it at a time, every training of so many examples.

    RAYNAS_DATA=... python -m tests.benchmarks.vit_resnas skip --dir build/vit --seeds 3

Parts:
    skip    a hand-made network from scratch, with the skip of its spatial reductions and without it
    archs   multi-architectural sampling with 1 and with 8 sub-networks a step; examples and, by the grouped pass, MACs are equal
    rules   multi-architectural sampling (8) against the sandwich rule at as many MACs, so on fewer examples
    search  from scratch, all alike: the child found by `fittest` on the supernet of `archs`, the best of as many random ones, the hand-made one

A training continues where it was killed, and one that is done is not done twice: all are runs in --dir. ``--minutes`` bounds the whole.
Supernets are judged by the mean over the same 20 random children, extracted, on 2,000 test images; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nas import checkpoint
from nas.evaluate import Batches, Evaluator, score
from nas.experiment import Experiment, load_experiment
from nas.loop import Loop, build, checkpoints, judged_weights
from nas.search import Record
from nas.search.tune import open_search
from nas.space import Arch
from nas.tasks import load_task

CPU = torch.device("cpu")
TRAINING = 55_000  # examples of an epoch
WINDOW = (6_800_000, 7_600_000)
CANDIDATES = 200
Rows = dict[str, list[dict[str, float]]]


def experiment(recipe: str, seed: int, examples: int, child: Arch | None = None) -> Experiment:
    """A training of so many examples by this recipe."""
    epochs = examples / TRAINING
    changes = [f"recipe={recipe}", f"recipe.epochs={epochs}", f"recipe.warmup_epochs={0.05 * epochs}", f"seed={seed}", "data.mix=false"]
    base = load_experiment("vit-resnas-fashion-mnist", changes)
    train = base.train.model_copy(update={"workers": 1, "zero_stage": 0, "checkpoint_every": 100})
    space = base.space.model_copy(update={"child": dict(child) if child else None})
    return base.model_copy(update={"train": train, "space": space})


MULTI = "{{name: multi_arch, epochs: 1, batch: 128, archs: {archs}, lr: 1e-3, weight_decay: 0.05}}"
SANDWICH = "{name: sandwich, epochs: 1, batch: 128, optimizer: adamw, lr: 1e-3, weight_decay: 0.05, dropout: 0.0}"
SINGLE = "{name: single, epochs: 1, batch: 128, lr: 1e-3, weight_decay: 0.05}"


def trained(told: Experiment, run: Path, deadline: float) -> Evaluator | None:
    """The network after its whole training; None where the time is over before."""
    run.mkdir(parents=True, exist_ok=True)
    fence = checkpoint.Fence.take(run)
    with mock.patch.object(checkpoint.Fence, "stopping", lambda self: time.monotonic() > deadline):
        Loop(told, run, fence, 0, 1, CPU).train()
    found = checkpoint.newest_valid(checkpoints(run))
    assert found is not None
    if checkpoint.verify(found)["step"] < checkpoint.verify(found)["total"]:
        return None
    task = load_task(told)
    net = build(told, task)
    net.load_state_dict(judged_weights(found))
    return Evaluator(net, task, told.search, CPU)


def tested(evaluator: Evaluator, archs: list[Arch]) -> dict[str, float]:
    """Mean test figures over these children."""
    test = Batches(evaluator.task.test, 2000, 500, CPU)
    figures = [score(evaluator.child(arch), test, evaluator.task) for arch in archs]
    return {name: mean(each[name] for each in figures) for name in figures[0]}


def some(evaluator: Evaluator) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [evaluator.net.space.sample(rng) for _ in range(20)]


def hand_made() -> Arch:
    """Every block, the middle width, heads and hidden width of every stage; its MACs lie in the window."""
    told = experiment(SINGLE, 0, 128)
    net = build(told, load_task(told))
    middle = {name: 1 if set(choice.values) == {0, 1} else choice.values[(len(choice.values) - 1) // 2] for name, choice in net.space.choices.items()}
    arch = net.space.arch(middle)
    print(f"hand-made: {net.cost(arch).macs:,} MACs", flush=True)
    return arch


@contextmanager
def without_skip() -> Iterator[None]:
    """Spatial reductions, elastic and extracted, that add nothing to their learned branch."""

    def nothing(x: Tensor, width: int) -> Tensor:
        side = round((x.shape[1] - 1) ** 0.5) // 2
        return x.new_zeros(len(x), 1 + side**2, width)

    with mock.patch("searchspaces.vit_resnas.pool", nothing), mock.patch("searchspaces.vit_resnas_child.pool", nothing):
        yield


def skip(o: argparse.Namespace, seed: int, deadline: float) -> Iterator[tuple[str, dict[str, float] | None]]:
    told = experiment(SINGLE, seed, o.examples, hand_made())
    found = trained(told, o.dir / f"skip-{seed}", deadline)
    yield "with its skip", found and tested(found, [found.net.space.largest()])
    with without_skip():
        found = trained(told, o.dir / f"no-skip-{seed}", deadline)
        yield "without", found and tested(found, [found.net.space.largest()])


def archs(o: argparse.Namespace, seed: int, deadline: float) -> Iterator[tuple[str, dict[str, float] | None]]:
    for count in (1, 8):
        found = trained(experiment(MULTI.format(archs=count), seed, o.examples), o.dir / f"archs{count}-{seed}", deadline)
        yield f"A = {count}", found and tested(found, some(found))


def rules(o: argparse.Namespace, seed: int, deadline: float) -> Iterator[tuple[str, dict[str, float] | None]]:
    found = trained(experiment(MULTI.format(archs=8), seed, o.examples), o.dir / f"archs8-{seed}", deadline)
    yield "multi-architectural, 8", found and tested(found, some(found))
    if found is None:
        return
    net = found.net
    rng, costs = np.random.default_rng(1), []
    for _ in range(500):
        costs.append(net.cost(net.space.sample(rng)).macs)
    a_step = net.cost(net.space.largest()).macs + net.cost(net.space.smallest()).macs + 2 * mean(costs)
    found = trained(experiment(SANDWICH, seed, round(o.examples * mean(costs) / a_step)), o.dir / f"sandwich-{seed}", deadline)
    yield "sandwich rule", found and tested(found, some(found))


def search(o: argparse.Namespace, seed: int, deadline: float) -> Iterator[tuple[str, dict[str, float] | None]]:
    supernet = trained(experiment(MULTI.format(archs=8), 0, o.examples), o.dir / "archs8-0", deadline)
    if supernet is None:
        return
    chosen = {"hand-made": hand_made(), **{name: best(name, supernet) for name in ("fittest", "random")}}
    for name, arch in chosen.items():
        found = trained(experiment(SINGLE, seed, o.examples, arch), o.dir / f"alone-{arch.id}-{seed}", deadline)
        yield f"{name} ({supernet.net.cost(arch).macs:,} MACs)", found and tested(found, [arch])


def best(algorithm: str, evaluator: Evaluator) -> Arch:
    """The best of so many candidates by validation cross-entropy on inherited weights."""
    told = experiment(SINGLE, 0, 128)
    constraints = told.search.constraints.model_copy(update={"min_macs": WINDOW[0], "max_macs": WINDOW[1]})
    told = told.model_copy(update={"search": told.search.model_copy(update={"algorithm": algorithm, "constraints": constraints})})
    engine, records = open_search(told, evaluator.net, evaluator.task), []
    for _ in range(CANDIDATES):
        candidate = engine.ask()
        assert candidate is not None
        records.append(Record(candidate.k, candidate.arch, evaluator(candidate.arch), dict(engine.cost(candidate.arch)), 0.0, None))
        engine.tell(records[-1])
    return min(records, key=lambda record: record.metrics["cross_entropy"]).arch  # type: ignore[index]


PARTS: dict[str, Callable[[argparse.Namespace, int, float], Iterator[tuple[str, dict[str, float] | None]]]] = {
    "skip": skip,
    "archs": archs,
    "rules": rules,
    "search": search,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--minutes", type=float, default=60)
    o = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # what Ray Train would have set
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deadline, rows = time.monotonic() + 60 * o.minutes, Rows()
    for seed in range(o.seeds):
        for name, figures in PARTS[o.part](o, seed, deadline):
            if figures is None:
                print("the time is over; the same command continues")
                return
            rows.setdefault(name, []).append(figures)
            print(f"seed {seed}, {name}: accuracy {figures['accuracy']:.2f}, cross-entropy {figures['cross_entropy']:.4f}", flush=True)
    for name, found in rows.items():
        spread = {key: (mean(f[key] for f in found), stdev(f[key] for f in found) if len(found) > 1 else 0.0) for key in found[0]}
        print(f"| {name} | {spread['accuracy'][0]:.2f} ± {spread['accuracy'][1]:.2f} | {spread['cross_entropy'][0]:.4f} ± {spread['cross_entropy'][1]:.4f} |")


if __name__ == "__main__":
    main()
