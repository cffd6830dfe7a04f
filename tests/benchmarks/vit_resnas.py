"""What ViT-ResNAS claims, on Fashion-MNIST (28 pixels, space m28): one part of it at a time, every training of so many
examples.

    RAYNAS_DATA=... python -m tests.benchmarks.vit_resnas skip --dir build/vit

Parts:
    skip      a hand-made network from scratch, with the skip of its spatial reductions and without it
    archs     multi-architectural sampling with 1 and with 8 sub-networks a step; examples and, by the grouped pass,
              MACs are equal
    rules     multi-architectural sampling (8) against the sandwich rule: as many steps and as many MACs a step, so
              fewer examples in each
    variance  12 random networks of a window of MACs from scratch: what there is to find there. A search is worth its
              while where they differ by more than half of what two seeds of one differ by
    search    from scratch, all alike, in that window: the network that is shrunk uniformly to about half of the mean
              MACs, one of the paper's proportions, which has 12 % more, and what guided search, `fittest` and random
              search find on the supernet of `archs`. No uniform draw is as small as the window, so a random one is
              walked into it

A training continues where it was killed, and one that is done is not done twice: all are runs in --dir, and figures are
lines of tests/benchmarks/records. ``--minutes`` bounds the whole. Supernets are judged by the mean over the same 20
random children, extracted, on the 10,000 test images; nothing is chosen by them.

Measured with 60,000 examples a training, about one epoch, seeds 0, 1, 2, on 2,000 test images; test accuracy in
percent, cross-entropy in nats. What was searched and made by hand was in the middle of the space then, with 150
candidates:

| | accuracy | cross-entropy |
| --- | --- | --- |
| hand-made network with its skip | 80.10 ± 0.78 | 0.603 ± 0.014 |
| without | 80.12 ± 0.98 | 0.603 ± 0.010 |
| A = 1 | 77.45 ± 1.31 | 0.662 ± 0.034 |
| A = 8 | 78.20 ± 1.60 | 0.636 ± 0.032 |
| multi-architectural, 8, batches of 128 | 78.20 ± 1.60 | 0.636 ± 0.032 |
| sandwich rule, as many steps and MACs, batches of 28 | 52.6 ± 4.0 | 1.259 ± 0.055 |
| hand-made, 8.4 M MACs | 80.10 ± 0.78 | 0.603 ± 0.014 |
| found by `fittest` among 150, 8.1 M MACs | 80.82 ± 1.28 | 0.579 ± 0.022 |
| best of 150 random ones, 8.4 M MACs | 80.88 ± 0.64 | 0.583 ± 0.022 |

The skip shows no effect here, though the paper has it among what matters: one epoch and two reductions are little.
Eight sub-networks a step are better than one on every seed, by 0.4 to 1.0 points, and the sandwich rule is far behind:
it passes each example through four networks, so for its MACs it sees a quarter of the examples. What was found is
better than the hand-made network on every seed, by 0.2 to 1.4 points in accuracy and in cross-entropy but once;
evolution and random search cannot be told apart on inherited weights with 150 candidates.

(Measured while the examples to judge on were the first ones of each part, not drawn from it; Fashion-MNIST comes in
random order.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from statistics import mean
from unittest import mock

import numpy as np
from torch import Tensor

from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator, score
from nas.config import plugins
from nas.config.experiment import Experiment, load_experiment
from nas.config.sections import Bounds
from nas.search.constraints import Constraints
from nas.search.sampling import leaning, walk
from nas.space import Arch
from nas.supernet import Supernet
from tests.benchmarks.trainings import CPU, Figures, Part, Trainer, report

TRAINING = 55_000  # examples of an epoch
WINDOW = (0.95, 1.05)  # of the MACs of the network that was shrunk uniformly
NETWORKS = 12  # of the window, trained alone
BATCH = 128  # of all but the sandwich rule
CANDIDATES = 600  # each judged on 1,000 validation images


def experiment(recipe: str, seed: int, examples: int, child: Arch | None = None) -> Experiment:
    """A training of so many examples by this recipe."""
    epochs = examples / TRAINING
    changes = [
        f"recipe={recipe}",
        f"recipe.epochs={epochs}",
        f"recipe.warmup_epochs={0.05 * epochs}",
        f"seed={seed}",
        "data.mix=false",
    ]
    base = load_experiment("vit-resnas-fashion-mnist", changes)
    train = base.train.model_copy(update={"workers": 1, "zero_stage": 0, "checkpoint_every": 100})
    space = base.space.model_copy(update={"child": dict(child) if child else None})
    return base.model_copy(
        update={"train": train, "space": space, "search": base.search.model_copy(update={"validation": 1000})}
    )


MULTI = "{{name: multi_arch, epochs: 1, batch: 128, archs: {archs}, lr: 1e-3, weight_decay: 0.05}}"
SANDWICH = "{{name: sandwich, epochs: 1, batch: {batch}, optimizer: adamw, lr: 1e-3, weight_decay: 0.05, dropout: 0.0}}"
SINGLE = "{name: single, epochs: 1, batch: 128, lr: 1e-3, weight_decay: 0.05}"


def tested(evaluator: Evaluator, archs: list[Arch]) -> Figures:
    """Mean test figures over these children."""
    test = Batches(evaluator.task.test, len(evaluator.task.test), 500, CPU)
    figures = [score(evaluator.child(arch), test, evaluator.task) for arch in archs]
    return {name: mean(each[name] for each in figures) for name in figures[0]}


def some(evaluator: Evaluator) -> list[Arch]:
    rng = np.random.default_rng(0)
    return [evaluator.net.space.sample(rng) for _ in range(20)]


def hand_made() -> Arch:
    """Every block, the middle width, heads and hidden width of every stage."""
    told = experiment(SINGLE, 0, 128)
    space = make_supernet(told, load_task(told)).space
    return space.arch(
        {
            name: 1 if set(c.values) == {0, 1} else c.values[(len(c.values) - 1) // 2]
            for name, c in space.choices.items()
        }
    )


@contextmanager
def without_skip() -> Iterator[None]:
    """Spatial reductions, elastic and extracted, that add nothing to their learned branch."""

    def nothing(x: Tensor, width: int) -> Tensor:
        side = round((x.shape[1] - 1) ** 0.5) // 2
        return x.new_zeros(len(x), 1 + side**2, width)

    with mock.patch("searchspaces.vit_resnas.pool", nothing), mock.patch("searchspaces.vit_resnas_child.pool", nothing):
        yield


class Bench:
    """The parts; each gives what one seed shows."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.train, self.examples = Trainer(o.dir, o.minutes), o.examples

    def skip(self, seed: int) -> Iterator[Part]:
        told = experiment(SINGLE, seed, self.examples, hand_made())
        yield "with its skip", lambda: self.alone(hand_made(), seed)

        def without() -> Figures:
            with without_skip():
                found = self.train(told, f"no-skip-{self.examples}-{seed}")
                return tested(found, [found.net.space.largest()])

        yield "without", without

    def alone(self, arch: Arch, seed: int) -> Figures:
        """A network from scratch."""
        found = self.train(experiment(SINGLE, seed, self.examples, arch), f"alone-{arch.id}-{self.examples}-{seed}")
        macs = found.net.cost(found.net.space.largest())["macs"] / 1e6
        return {"MMACs": macs, **tested(found, [found.net.space.largest()])}

    @cache  # noqa: B019, there is one benchmark a process
    def supernet(self, count: int, seed: int) -> Evaluator:
        return self.train(
            experiment(MULTI.format(archs=count), seed, self.examples), f"archs{count}-{self.examples}-{seed}"
        )

    def archs(self, seed: int) -> Iterator[Part]:
        def found(count: int) -> Figures:
            evaluator = self.supernet(count, seed)
            return tested(evaluator, some(evaluator))

        for count in (1, 8):
            yield f"A = {count}", partial(found, count)

    def rules(self, seed: int) -> Iterator[Part]:
        net, rng = supernet_of(seed), np.random.default_rng(1)
        usual = mean(net.cost(net.space.sample(rng))["macs"] for _ in range(500))
        a_step = net.cost(net.space.largest())["macs"] + net.cost(net.space.smallest())["macs"] + 2 * usual
        batch = round(BATCH * usual / a_step)

        def multi() -> Figures:
            found = self.supernet(8, seed)
            return tested(found, some(found))

        def sandwich() -> Figures:
            told = experiment(SANDWICH.format(batch=batch), seed, self.examples * batch // BATCH)
            found = self.train(told, f"sandwich-{batch}-{self.examples}-{seed}")
            return tested(found, some(found))

        yield "multi-architectural, 8", multi
        yield "sandwich rule", sandwich

    def variance(self, seed: int) -> Iterator[Part]:
        net = supernet_of(seed)
        for arch in within(net, NETWORKS):
            yield arch.id, partial(self.alone, arch, seed)

    def search(self, seed: int) -> Iterator[Part]:
        net = supernet_of(seed)
        yield "shrunk uniformly", partial(self.alone, shrunk(net), seed)
        yield "the paper's proportions", partial(self.alone, proportioned(net), seed)
        for name in ("guided", "fittest", "random"):
            yield name, lambda name=name: self.alone(self.best(name, seed), seed)

    def best(self, algorithm: str, seed: int) -> Arch:
        """The best of so many candidates of the window by validation cross-entropy on inherited weights."""
        evaluator = self.supernet(8, seed)
        told = experiment(SINGLE, seed, BATCH)
        options = plugins.find("search", algorithm).Options(**({"initial": 50} if algorithm == "fittest" else {}))
        update = {"algorithm": algorithm, "options": options, "constraints": {"macs": window(evaluator.net)}}
        told = told.model_copy(update={"search": told.search.model_copy(update={**update, "candidates": CANDIDATES})})
        records = self.train.searched(told, evaluator, f"{algorithm}-{self.examples}-{seed}")
        return min(records, key=lambda record: record.metrics["cross_entropy"]).arch  # type: ignore[index]


def supernet_of(seed: int) -> Supernet:
    """The supernet of a seed, untrained: for its space and costs."""
    told = experiment(SINGLE, seed, BATCH)
    return make_supernet(told, load_task(told))


def shrunk(net: Supernet) -> Arch:
    """The network all of whose choices stand at a quarter of their way, which takes about half of the mean MACs."""
    return net.space.arch({name: c.values[len(c.values) // 4] for name, c in net.space.choices.items()})


def proportioned(net: Supernet) -> Arch:
    """What the paper made by hand (Table 1): a hidden width of four times the width, heads that are as wide as it
    together, as many blocks in every stage; the one nearest to `shrunk`, which takes 12 % more MACs."""
    made = []
    for place in range(5):
        values: dict[str, int | float] = {}
        for name, choice in net.space.choices.items():
            stage, what = name.split(".")[0], name.split(".")[-1]
            width = net.space.choices[f"{stage}.width"].values[place]
            head = {"stage1": 4, "stage2": 6, "stage3": 8}[stage]
            aim = {"width": width, "hidden": 4 * width, "heads": width / head, "exists": 0}[what]
            values[name] = min(choice.values, key=lambda value: abs(value - aim))
        made.append(net.space.arch(values))
    return min(made, key=lambda arch: abs(net.cost(arch)["macs"] - net.cost(shrunk(net))["macs"]))


def window(net: Supernet) -> Bounds:
    macs = net.cost(shrunk(net))["macs"]
    return Bounds(min=round(WINDOW[0] * macs), max=round(WINDOW[1] * macs))


def within(net: Supernet, count: int) -> list[Arch]:
    """Random networks of the window, the same ones for every seed."""
    rng, bounds = np.random.default_rng(0), window(net)
    limits = Constraints({"macs": (bounds.min, bounds.max)})
    found: set[Arch] = set()
    while len(found) < count:
        start = leaning(net.space, rng)
        arch = walk(net.space, start, lambda arch: limits.violation(net.cost(arch)), found, rng)
        found |= {arch} if arch else set()
    return sorted(found, key=lambda arch: arch.id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("skip", "archs", "rules", "variance", "search"))
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which")
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--minutes", type=float, default=60)
    o = parser.parse_args()
    settings = {"examples": o.examples, **({"candidates": CANDIDATES, "window": WINDOW} if o.part == "search" else {})}
    report(f"vit-resnas-{o.part}", settings, getattr(Bench(o), o.part), o.seeds)


if __name__ == "__main__":
    main()
