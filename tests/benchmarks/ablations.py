"""What each part of BigNAS's recipe does for the children: one supernet with it, one without it, the same seed.

    python -m tests.benchmarks.ablations --preset bignas-textures --seeds 0 1 2

As in `family`, five networks are fixed before anything is trained, evenly spread over the logarithm of MACs; what is
told is their test accuracy cut out of the supernet, and the mean cross-entropy. A supernet is one process's work, and a
line of tests/benchmarks/records/ablations-<preset>.jsonl; one that stands there is not trained again. Exploratory: the
rate and the schedule are the preset's, which were chosen with all of it. What came of it: docs/claims.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from nas.build import load_task, make_supernet
from nas.children.alone import Alone
from nas.children.evaluate import Batches, Evaluator, judge
from nas.config.experiment import load_experiment
from nas.recipes.recipe import Batch, Run, Step
from nas.recipes.sandwich import Sandwich
from nas.search.constraints import Constraints, evenly
from nas.supernet import Pass, Supernet
from tests.benchmarks.family import NETWORKS
from tests.benchmarks.trainings import CPU, Figures, Part, report

HERE, AT_ONE = "tests.benchmarks.ablations", "norms of blocks begin at one"
PARTS: Mapping[str, list[str]] = {
    "as it is": [],
    "children learn from labels": [f"recipe.name={HERE}:OnLabels"],
    AT_ONE: [],
    "dropout 0.1 for the largest": ["recipe.dropout=0.1"],
    "dropout 0.1 for all": ["recipe.dropout=0.1", f"recipe.name={HERE}:AllRegularised"],
    "exponential, constant at the end": ["recipe.schedule=exponential"],
    "opening from the largest": ["recipe.opening=0.5"],
    "opening from the smallest": ["recipe.opening=0.5", "recipe.opens_from=smallest"],
}


class OnLabels(Sandwich):
    """The sandwich rule without distillation: plain labels for all but the largest, which alone is regularised."""

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        (x, y), options = batches["train"], self.options
        how = Pass(dropout=options.dropout, generator=step.generator)
        yield self.task.loss(run(x, net.space.largest(), how), y, options.label_smoothing)
        for arch in (*self._random(net, net.space, x, y, step), net.space.smallest()):
            yield self.task.loss(run(x, arch), y)


class AllRegularised(Sandwich):
    """The sandwich rule whose dropout is every child's."""

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        how = Pass(dropout=self.options.dropout, generator=step.generator)
        yield from super().losses(lambda x, archs, _=how: run(x, archs, how), net, batches, step)


def norms_at_one(net: Supernet) -> None:
    """The last batch norm of each block of a BigNAS supernet, which begins at zero, as torch has it."""
    for name, module in net.named_modules():
        if name.endswith("project.norm") and module.weight is not None:
            nn.init.ones_(module.weight)  # type: ignore[arg-type]


def parts(preset: str, overrides: list[str], seed: int) -> Iterator[Part]:
    for name, changes in PARTS.items():
        begin = norms_at_one if name == AT_ONE else lambda net: None
        yield name, partial(supernet, preset, [*overrides, *changes, f"seed={seed}"], begin, seed)


def supernet(preset: str, overrides: list[str], begin: Callable[[Supernet], None], seed: int) -> Figures:
    """Test figures of its children."""
    experiment = load_experiment(preset, overrides)
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    begin(net)
    learner = Alone(experiment, task, net, experiment.recipe, CPU, seed)
    learner.train(net, round(experiment.recipe.epochs * learner.epoch), [])
    evaluator = Evaluator(net, task, experiment.search, CPU)
    test = Batches(task.test, len(task.test), experiment.search.score_batch, CPU)
    archs = evenly(net.space, net.cost, "macs", Constraints(), NETWORKS)
    told = [judge(evaluator.child(arch), test, task).metrics for arch in archs]
    accuracies = [metrics["accuracy"] for metrics in told]
    return {
        "accuracy": mean(accuracies),
        "smallest": accuracies[0],
        "largest": accuracies[-1],
        "cross-entropy": mean(metrics["cross_entropy"] for metrics in told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bignas-textures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which")
    parser.add_argument("--set", action="append", default=[])
    o = parser.parse_args()
    torch.set_num_threads(1)
    report(f"ablations-{o.preset}", {"set": o.set}, partial(parts, o.preset, o.set), o.seeds)


if __name__ == "__main__":
    main()
