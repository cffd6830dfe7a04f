"""What ViT-ResNAS claims, on Fashion-MNIST (28 pixels, space m28): one part of it at a time, every training of so many
examples.

    RAYNAS_DATA=... python -m tests.benchmarks.vit_resnas skip --dir build/vit

Parts:
    skip    a hand-made network from scratch, with the skip of its spatial reductions and without it
    archs   multi-architectural sampling with 1 and with 8 sub-networks a step; examples and, by the grouped pass, MACs
    are equal rules   multi-architectural sampling (8) against the sandwich rule: as many steps and as many MACs a step,
    so fewer examples in each search  from scratch, all alike: the child found by `fittest` on the supernet of `archs`,
    the best of as many random ones, the hand-made one

A training continues where it was killed, and one that is done is not done twice: all are runs in --dir. ``--minutes``
bounds the whole. Supernets are judged by the mean over the same 20 random children, extracted, on 2,000 test images;
nothing is chosen by them.

Measured with 60,000 examples a training, about one epoch, seeds 0, 1, 2; test accuracy in percent, cross-entropy in
nats:

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
from pathlib import Path
from statistics import mean
from unittest import mock

import numpy as np
from torch import Tensor

from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator, score
from nas.config.experiment import Experiment, load_experiment
from nas.config.sections import Bounds
from nas.space import Arch
from tests.benchmarks.trainings import CPU, Figures, Trainer, report, searched

TRAINING = 55_000  # examples of an epoch
WINDOW = (0.95, 1.05)  # of the hand-made network's MACs
BATCH = 128  # of all but the sandwich rule
CANDIDATES = 150  # each judged on 1,000 validation images


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
    test = Batches(evaluator.task.test, 2000, 500, CPU)
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

    def skip(self, seed: int) -> Iterator[tuple[str, Figures]]:
        told = experiment(SINGLE, seed, self.examples, hand_made())
        found = self.train(told, f"alone-{hand_made().id}-{seed}")
        yield "with its skip", tested(found, [found.net.space.largest()])
        with without_skip():
            found = self.train(told, f"no-skip-{seed}")
            yield "without", tested(found, [found.net.space.largest()])

    def supernet(self, count: int, seed: int) -> Evaluator:
        return self.train(experiment(MULTI.format(archs=count), seed, self.examples), f"archs{count}-{seed}")

    def archs(self, seed: int) -> Iterator[tuple[str, Figures]]:
        for count in (1, 8):
            found = self.supernet(count, seed)
            yield f"A = {count}", tested(found, some(found))

    def rules(self, seed: int) -> Iterator[tuple[str, Figures]]:
        found = self.supernet(8, seed)
        yield "multi-architectural, 8", tested(found, some(found))
        net, rng = found.net, np.random.default_rng(1)
        usual = mean(net.cost(net.space.sample(rng))["macs"] for _ in range(500))
        a_step = net.cost(net.space.largest())["macs"] + net.cost(net.space.smallest())["macs"] + 2 * usual
        batch = round(BATCH * usual / a_step)
        found = self.train(
            experiment(SANDWICH.format(batch=batch), seed, self.examples * batch // BATCH), f"sandwich-{batch}-{seed}"
        )
        yield "sandwich rule", tested(found, some(found))

    def search(self, seed: int) -> Iterator[tuple[str, Figures]]:
        supernet = self.supernet(8, seed)
        given = hand_made()
        macs = supernet.net.cost(given)["macs"]
        chosen = {"hand-made": given, **{name: self.best(name, supernet, macs, seed) for name in ("fittest", "random")}}
        for name, arch in chosen.items():
            found = self.train(experiment(SINGLE, seed, self.examples, arch), f"alone-{arch.id}-{seed}")
            yield name, {"MMACs": supernet.net.cost(arch)["macs"] / 1e6, **tested(found, [found.net.space.largest()])}

    def best(self, algorithm: str, evaluator: Evaluator, macs: int, seed: int) -> Arch:
        """The best of so many candidates of about these MACs by validation cross-entropy on inherited weights."""
        told = experiment(SINGLE, seed, BATCH)
        constraints = {"macs": Bounds(min=round(WINDOW[0] * macs), max=round(WINDOW[1] * macs))}
        update = {"algorithm": algorithm, "constraints": constraints, "candidates": CANDIDATES}
        told = told.model_copy(update={"search": told.search.model_copy(update=update)})

        def find() -> Arch:
            return min(searched(told, evaluator), key=lambda record: record.metrics["cross_entropy"]).arch  # type: ignore[index]

        return self.train.once(f"{algorithm}-{seed}", find)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("skip", "archs", "rules", "search"))
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which")
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--minutes", type=float, default=60)
    o = parser.parse_args()
    report(getattr(Bench(o), o.part), o.seeds)


if __name__ == "__main__":
    main()
