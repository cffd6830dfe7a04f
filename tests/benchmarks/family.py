"""A family of children cut out of one supernet against the same networks trained alone: for as many steps each, and for
as much computing as the supernet cost, shared among a family of 5 and of 20.

    python -m tests.benchmarks.family --preset bignas-textures --seeds 0 1 2

The networks are fixed before anything is trained: five, evenly spread over the logarithm of MACs. Supernet and networks
learn in one process from the same examples in the same order; a network alone as the preset's `fidelity.recipe` says,
whose rate was chosen on validation of seed 0 (``--rates 0.05 0.1 0.2``). Every one is calibrated and scored by the same
code, on the whole test part. The unit is the supernet: a seed gives one mean difference over the five. Each training is
a line of tests/benchmarks/records/family-<preset>.jsonl, and one that stands there is not done again; two commands of
different seeds may run side by side. Networks with as many steps come before those with a share, of all seeds.

`bignas-textures`, seeds 0 to 2, 792 steps of 64 images, 2,720 test images: cut minus alone, the mean over supernets and
its standard error; of three supernets, what is further from 0 than 4.3 of these is told from it (95 %, Student's t),
and an effect of 5.8 of them is, four times out of five.

| networks alone have | accuracy, points: all five | smallest | largest | cross-entropy, nats: all five |
| --- | --- | --- | --- | --- |
| as many steps as the supernet | -2.3 +- 0.7 | -0.3 +- 1.2 | -2.9 +- 0.2 | +0.065 +- 0.018 |
| a fifth of what the supernet cost (676 steps) | -1.4 +- 0.5 | +0.6 +- 0.9 | -2.4 +- 0.4 | +0.044 +- 0.020 |
| a twentieth (169 steps) | +7.2 +- 0.6 | +9.0 +- 0.8 | +7.0 +- 0.5 | -0.213 +- 0.019 |

So the largest network is better trained alone, by three points; of the others nothing is told. Five networks cost
alone what the supernet costs, and are as good or better; twenty are far behind. A supernet is for a front, not for a
point.

`bignas-cifar10-16px`, seeds 0 to 2, 7,030 steps of 64 images, 10,000 test images, as many steps alone (shares are not
measured yet):

| MMACs | cut, % | alone, % | points | nats |
| --- | --- | --- | --- | --- |
| 0.57 | 66.8 | 63.5 | +3.25 +- 0.36 | -0.078 +- 0.009 |
| 1.03 | 66.3 | 66.4 | | |
| 1.89 | 67.9 | 67.5 | | |
| 3.45 | 74.9 | 76.9 | | |
| 6.28 | 77.7 | 79.0 | -1.33 +- 0.27 | +0.037 +- 0.009 |
| all five | | | +0.06 +- 0.21 | -0.001 +- 0.007 |

So the family is as good cut, to within a point: what the largest lose the smallest gain.

`bignas-cifar10-16px --rates 0.05 0.1 0.2 0.4`, the middle network on 5,000 validation images: 65.4, 67.1, 67.5 and
67.8 %, cross-entropy 1.001, 0.960, 0.955 and 0.967 nats. So networks alone learn at 0.2 there. The smallest
(`--rates 0.2 0.4 0.8 --place 0`): 63.1, 62.6 and 60.4 %, 1.066, 1.073 and 1.117 nats; at 0.2 on plain labels
(`--set fidelity.recipe.label_smoothing=0`) 62.4 %, 1.035 nats. So its three points are not for want of tuning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from nas.build import load_task, make_supernet
from nas.children.alone import Alone
from nas.children.evaluate import Batches, Evaluator, judge
from nas.config.experiment import load_experiment
from nas.search.constraints import Constraints, evenly
from nas.space import Arch
from nas.statistics import half_width, standard_error
from nas.supernet import Supernet
from nas.tasks.task import Task
from tests.benchmarks.trainings import CPU, record, recorded

FAMILIES = (5, 20)  # whose members share what the supernet cost
AS_LONG, SHARES = ("cut", "alone"), tuple(f"alone, one of {family}" for family in FAMILIES)
NETWORKS = 5


def supernet_macs(net: Supernet) -> float:
    """MACs of one example in a sandwich step, in the mean over 1,000 draws."""
    rng = np.random.default_rng(0)
    drawn = np.mean([net.cost(net.space.sample(rng))["macs"] for _ in range(1000)])
    ends = net.cost(net.space.largest())["macs"] + net.cost(net.space.smallest())["macs"]
    return float(ends + 2 * drawn)


def trainings(
    preset: str, seed: int, done: set[tuple[int, str, str]], kinds: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The records of a seed, of these kinds, that are not there yet."""
    experiment = load_experiment(preset, [f"seed={seed}"])
    task, alone_options = load_task(experiment), experiment.alone
    assert alone_options is not None
    net = make_supernet(experiment, task)
    archs = evenly(net.space, net.cost, "macs", Constraints(), NETWORKS)
    test = Batches(task.test, len(task.test), experiment.search.score_batch, CPU)
    evaluator = Evaluator(net, task, experiment.search, CPU)

    def told(kind: str, arch: Arch, of: Supernet, steps: int) -> dict[str, Any]:
        evaluator.net = of
        child = evaluator.child(arch if of is net else of.space.largest())
        judged = judge(child, test, task)
        macs = net.cost(arch)["macs"]
        return {"seed": seed, "kind": kind, "id": arch.id, "macs": macs, "steps": steps, **judged.metrics}

    if "cut" in kinds and any((seed, "cut", arch.id) not in done for arch in archs):
        learner = Alone(experiment, task, net, experiment.recipe, CPU, seed)
        steps = round(experiment.recipe.epochs * learner.epoch)
        learner.train(net, steps, [])
        yield from (told("cut", arch, net, steps) for arch in archs)
    learner = Alone(experiment, task, net, alone_options, CPU, seed)
    steps = round(alone_options.epochs * learner.epoch)
    whole = supernet_macs(net) / (len(archs) * float(np.mean([net.cost(arch)["macs"] for arch in archs])))
    shares = {kind: round(steps * whole * len(archs) / family) for kind, family in zip(SHARES, FAMILIES, strict=True)}
    for kind, length in {"alone": steps, **shares}.items():
        for arch in archs if kind in kinds else []:
            if (seed, kind, arch.id) not in done:
                fresh = learner.fresh(net, arch)
                learner.train(fresh, length, evaluator.calibration)
                yield told(kind, arch, fresh, length)


def rates(preset: str, overrides: list[str], place: int, given: list[float]) -> Iterator[str]:
    """Figures on validation of one of the networks alone, seed 0, with each of these rates."""
    experiment = load_experiment(preset, [*overrides, "seed=0"])
    task, options = load_task(experiment), experiment.alone
    assert options is not None
    net = make_supernet(experiment, task)
    arch = evenly(net.space, net.cost, "macs", Constraints(), NETWORKS)[place]
    for rate in given:
        learner = Alone(experiment, task, net, options.model_copy(update={"lr": rate}), CPU, 0)
        fresh = learner.fresh(net, arch)
        evaluator = Evaluator(fresh, task, experiment.search, CPU)
        learner.train(fresh, round(options.epochs * learner.epoch), evaluator.calibration)
        yield f"lr {rate:g}: {evaluator(fresh.space.largest())}"


def table(records: list[dict[str, Any]], task: Task) -> Iterator[str]:
    """Differences cut minus alone: the mean over seeds of a seed's mean, its standard error, from where on it is told
    from 0."""
    seeds = sorted({record["seed"] for record in records})
    by = {(r["seed"], r["kind"], r["id"]): r for r in records}
    ids = list(dict.fromkeys(r["id"] for r in sorted(records, key=lambda r: r["macs"])))
    for metric in task.metrics:
        yield f"\n{metric}"
        for id in ids:
            kinds = dict.fromkeys(r["kind"] for r in records)
            means = [f"{kind} {np.mean([by[s, kind, id][metric] for s in seeds]):.4g}" for kind in kinds]
            yield f"  {id} {by[seeds[0], 'cut', id]['macs']:>10,}: {' | '.join(means)}"
        for kind in list(dict.fromkeys(r["kind"] for r in records))[1:]:
            for name, some in (("all", ids), ("smallest", ids[:1]), ("largest", ids[-1:])):
                gaps = [np.mean([by[s, "cut", i][metric] - by[s, kind, i][metric] for i in some]) for s in seeds]
                told = ", ".join(f"{gap:+.4f}" for gap in gaps)
                gap = f"{np.mean(gaps):+.4f} +- {standard_error(gaps):.4f} ({told})"
                yield f"  cut - {kind}, {name}: {gap}; told from 0 beyond {half_width(gaps):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bignas-textures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which")
    parser.add_argument("--rates", type=float, nargs="+", default=[], help="of networks alone: judge these, and end")
    parser.add_argument(
        "--place", type=int, choices=range(NETWORKS), default=NETWORKS // 2, help="by --rates; 0: smallest"
    )
    parser.add_argument("--set", action="append", default=[], help="by --rates")
    options = parser.parse_args()
    if options.set and not options.rates:
        parser.error("--set is for --rates: records are of the preset as it is")
    torch.set_num_threads(1)
    for line in rates(options.preset, options.set, options.place, options.rates):
        print(line, flush=True)
    if options.rates:
        return
    name = f"family-{options.preset}"
    for kinds, seed in product((AS_LONG, SHARES), options.seeds):
        done = {(r["seed"], r["kind"], r["id"]) for r in recorded(name)}
        for line in trainings(options.preset, seed, done, kinds):
            record(name, line)
            print(json.dumps(line), flush=True)
    records = [line for line in recorded(name) if line["seed"] in options.seeds]
    print("\n".join(table(records, load_task(load_experiment(options.preset)))))


if __name__ == "__main__":
    main()
