"""What QuantNAS claims, on BSDS200 x2 (or ``--scale 4``), tested on Set5, Set14 and BSD100: PSNR on luma, and BitOPs
for 32 x 32 low-resolution pixels.

    python -m tests.benchmarks.quantnas front --data FOLDER --dir build/quantnas

FOLDER holds the folders BSDS200_train, Set5, Set14 and BSD100 with high-resolution images.

Parts:
    front   space basic-c18: one hand-made network with 8 and with 4 bits everywhere; bits alone chosen for it (all 256
    ways scored on the
            supernet); evolution and random search within budgets of BitOPs; the differentiable search. Whatever is
            found is trained on from the supernet's weights with real quantizers, all alike
    wide    space basic-wide, where channels, cells and 2 bits are choices too: 3 x 3 convolutions of three sizes with 8
            and with 4 bits; the best within three budgets of a guided and of a random search, which score the better
            part of their candidates again after 100 steps with real quantizers. Counted is PSNR on BSD100, the largest
            test set, against the best network within the same budget: of `fixed` (what the paper beat), of the 3 x 3
            ones here (which have the supernet's start too, and are harder), and of random search
    rfdn    space rfdn-c12, likewise: an RFDN with 8 and with 4 bits, evolution and random search
    fixed   published networks and 3 x 3 convolutions of one width (`tests.benchmarks.fixed`), with 8 and with 4 bits,
            each from scratch for as many steps as a supernet of the above and the training after it have together
    rates   three of these with 8 bits at three rates: PSNR on validation
    noise   space basic-c12: supernets trained under noise, with real quantizers and without any, with ADQ and without;
            PSNR with real quantizers of the same 20 random children
    paths   space basic-c12: supernets whose operations share kernels and whose do not, all choices open at once or from
    the largest network on,
            one path a step or four in a quarter of the steps; the same children
    alpha   space basic-c12, a third of the steps: the differentiable search with its entropy term and without; what it
    finds from scratch long    one network of FSRCNN's cost, unquantized, for 20 times as many steps

A training continues where it was killed, and one that is done is not done twice: all are runs in --dir, which is for
one number of --steps and one --scale. ``--minutes`` bounds the trainings; the scoring between them comes on top. What
real quantizers cost a step is in `quant_step`.

`front`, seeds 0 to 2, mean ± standard deviation: a supernet of 1,500 steps of 8 crops and four paths under noise,
opened from the largest network on; each network trained on for 1,500; bicubic has 33.67, 30.23, 29.56 dB.

| network | GBitOPs | Set5 | Set14 | BSD100 |
| --- | --- | --- | --- | --- |
| hand-made, 8 bits | 1.539 | 36.52 ± 0.03 | 32.25 ± 0.03 | 31.17 ± 0.04 |
| hand-made, bits chosen, at most the geometric mean of 4 and 8 bits | 0.743 ± 0.055 | 36.46 ± 0.05 | 32.20 ± 0.05 |
31.12 ± 0.04 |
| hand-made, 4 bits | 0.393 | 36.36 ± 0.04 | 32.12 ± 0.03 | 31.08 ± 0.04 |
| evolution, at most as 8 bits | 0.974 ± 0.121 | 36.44 ± 0.02 | 32.19 ± 0.03 | 31.11 ± 0.03 |
| evolution, between | 0.641 ± 0.024 | 36.33 ± 0.06 | 32.11 ± 0.06 | 31.06 ± 0.04 |
| evolution, at most as 4 bits | 0.372 ± 0.017 | 36.25 ± 0.14 | 32.05 ± 0.10 | 31.01 ± 0.09 |
| random search, between | 0.749 ± 0.022 | 36.40 ± 0.04 | 32.14 ± 0.03 | 31.10 ± 0.02 |
| differentiable search | 0.290 ± 0.059 | 36.22 ± 0.10 | 32.00 ± 0.07 | 30.96 ± 0.04 |

Bits chosen by the supernet's scores lie where they should, between 4 and 8 bits everywhere. Operations chosen by them
are no better than 3 x 3 convolutions everywhere: evolution's lie 0.04 to 0.1 dB below the hand-made network at the
BitOPs between which they stand, random search as near as evolution. The differentiable search finds the cheapest
network, which none of the others dominates; seeds differ more than elsewhere.

Evolution lost 0.3 to 0.8 dB at the lower budgets while the supernet stayed at what a linear filter can do (31.8 dB on
validation, about 35.0 on Set5), whatever its rate and its steps. Three things changed that: fresh weights half as
large, and a tenth of that where a function is added to something (the hand-made network after 1,500 steps from scratch:
36.4 to 36.5 dB on Set5, before 35.8); one kernel for all single convolutions of a slot; and, for long trainings, four
paths a step, whose gradients agree on what one path's do not. At C = 18, seed 0, opened from the largest network, 1,500
steps of four paths gave random children 31.90 dB on validation, 6,000 steps of one path 31.67. What remains is the
price of operations sampled at random: bits sampled at random alone cost nothing (1,500 steps with one operation
everywhere reach 32.36 dB, the network alone 32.40), and 31.8 to 31.9 are reached with either the head's or the tail's
operations fixed.

RFDN's layout has three times the rate: an RFDN of 12 channels with 8 bits, alone for 800 steps without quantizers, has
35.39 dB on Set5 x2 for 35.16 (seed 0). What other starts give it is in `searchspaces.quantnas_child.shapes`.

`paths`, seed 0, 1,500 passes (so 375 steps of four paths), mean validation PSNR of 20 children, dB; at this length only
shared kernels help:

| own kernels | shared kernels | shared, opening | shared, 4 paths | shared, opening, 4 paths |
| --- | --- | --- | --- | --- |
| 31.52 | 31.65 | 31.55 | 31.57 | 31.48 |

What follows is from before these changes, with fresh weights as torch has them and operations with weights of their
own. A --dir of then is not one of now.

`noise`, seeds 0 to 2, mean validation PSNR of 20 children, dB (seeds differ in their validation images, so compare by
column):

| | seed 0 | seed 1 | seed 2 |
| --- | --- | --- | --- |
| noise, ADQ | 31.19 | 30.50 | 30.10 |
| no noise, ADQ | 31.19 | 30.51 | 30.11 |
| noise, no ADQ | 31.26 | 30.57 | 30.18 |

So noise makes no difference at 4 and 8 bits after 500 steps, and ADQ costs 0.07 dB on each seed: against the paper,
whose trainings are long.

`alpha`, seeds 0 to 2, mean ± standard deviation, dB:

| weight of the entropy term | entropy left, nats | GBitOPs | Set5 |
| --- | --- | --- | --- |
| 0 | 14.04 ± 0.09 | 0.098 ± 0.012 | 34.56 ± 0.11 |
| 0.001 | 3.21 ± 0.11 | 0.127 ± 0.004 | 34.66 ± 0.04 |
| 0.01 | 0.78 ± 0.10 | 0.122 ± 0.005 | 34.67 ± 0.18 |

The entropy term does what it is for: without it the logits are undecided at the end. That what is cut from them is
better, by 0.1 dB, is within noise and comes with more BitOPs.

`long`, 15,000 steps (--steps 750), seed 0: a network of 12,468 MACs a pixel, FSRCNN's cost, has 36.65 dB on Set5, 32.38
on Set14, 31.31 on BSD100. FSRCNN has 36.94 on Set5, VDSR (54 times the weights) 37.53, after much longer trainings:
these 15,000 steps of 8 crops took nine minutes on a busy core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from nas.build import load_task, make_supernet
from nas.children.alone import Alone
from nas.children.evaluate import Batches, Evaluator, score
from nas.config import plugins
from nas.config.experiment import Experiment, load_experiment
from nas.config.sections import Bounds
from nas.recipes.differentiable import architecture, entropy
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.space import Arch
from nas.supernet import Supernet
from tests.benchmarks.fixed import NETWORKS
from tests.benchmarks.trainings import CPU, Figures, Part, Trainer, report

BATCH, CANDIDATES, SIZE = 8, 150, "basic-c18"
BUDGETS = (0.15, 0.4, 1.2)  # GBitOPs of `wide`, whose search has MANY candidates between LEAST_SHARE of the first and
MANY, LEAST_SHARE = 300, 0.5  # the last; those that climb are trained for some steps
RUNGS = ((1.0, 0), (0.15, 100))
RATES = {"rfdn": 3e-3, "fsrcnn": 3e-3, "espcn": 1e-2, "plain": 3e-3}  # of sizes that begin so; else 1e-3
SETTINGS = {  # that records of a part name
    "wide": {"budgets": BUDGETS, "candidates": MANY, "rungs": RUNGS},
    "fixed": {"rates": RATES},
}
SIDE = 320  # pixels that every photograph of BSDS200 has a side; images of validation are four crops wide
# paths a step for the supernet of `front`: most slots choose among four operations, so each is trained about as often
# as alone
SHARED = 4
FSRCNN = (
    12_464 * 32**2
)  # MACs x2 for 32 x 32 low-resolution pixels: 5x5x56, 1x1x12, four of 3x3, 1x1x56, 9x9 transposed
TESTS = ("Set5", "Set14", "BSD100")
SUPERNET = (
    "{{name: single_path, epochs: {epochs}, batch: 8, lr: {lr}, warmup_epochs: {warmup}, quant: '{quant}', "
    "opening_epochs: {opening}, paths: {paths}}}"
)
MIXTURE = (
    "{{name: differentiable, epochs: {epochs}, batch: 8, lr: {lr}, warmup_epochs: {warmup}, alpha_lr: 1e-2, bitops: "
    "1e-3, entropy: {entropy}}}"
)
ALONE = (
    "{{name: single, epochs: {epochs}, batch: 8, lr: {lr}, warmup_epochs: {warmup}, weight_decay: 0.0, "
    "label_smoothing: 0.0, quant: '{quant}'}}"
)


class Bench:
    """The experiments of this benchmark: a recipe for so many steps, on a size, with a seed."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o, self.train = o, Trainer(o.dir, o.minutes)
        self.data = (
            f"{{name: sr-folder, path: {o.data}, train: BSDS200_train, test: Set5, scale: {o.scale}, "
            f"patch: {min(24, SIDE // (4 * o.scale))}, validation: 16, rotate: true}}"
        )
        told = load_experiment("quantnas-photos", [f"data={self.data}"])
        self.examples, self.tests = len(load_task(told).train), {}
        for name in TESTS:
            task = load_task(told.model_copy(update={"data": told.data.model_copy(update={"test": name})}))
            self.tests[name] = task, Batches(task.test, len(task.test), 1, CPU)

    def experiment(
        self,
        recipe: str,
        steps: int,
        seed: int,
        size: str,
        child: Arch | None = None,
        inherit: Path | None = None,
        half: bool = False,
        space: str = "quantnas",
        **how: Any,
    ) -> Experiment:
        """`half`: an epoch goes through one half of the examples, as that of the differentiable search does."""
        epochs = steps * BATCH / (self.examples / 2 if half else self.examples)
        options = how.pop("options", {})
        how["opening"] = how.get("opening", 0.5) * epochs
        usual = next((rate for begins, rate in RATES.items() if size.startswith(begins)), 1e-3)
        told = recipe.format(epochs=epochs, warmup=0.05 * epochs, **{"paths": 1, "lr": usual, **how})
        base = load_experiment(
            "quantnas-photos",
            [f"space={{name: '{space}', size: {size}}}", f"data={self.data}", f"seed={seed}", f"recipe={told}"],
        )
        return base.model_copy(
            update={
                "train": base.train.model_copy(update={"workers": 1, "zero_stage": 0, "checkpoint_every": 250}),
                "space": base.space.model_copy(
                    update={
                        "child": dict(child) if child else None,
                        "inherit": str(inherit) if inherit else None,
                        "options": options,
                    }
                ),
            }
        )

    def net(self, size: str) -> Supernet:
        """A supernet of a size, for its space and costs."""
        told = self.experiment(SUPERNET, self.o.steps, 0, size, quant="noise")
        return make_supernet(told, load_task(told))

    def alone(self, arch: Arch, net: Supernet, seed: int, size: str, share: int = 1) -> Figures:
        """The network trained from scratch with real quantizers, for the given share of the steps, and tested."""
        told = self.experiment(ALONE, self.o.steps // share, seed, size, arch, quant="real")
        return {
            "GBitOPs": net.cost(arch)["bitops"] / 1e9,
            **self.tested(self.train(told, f"alone-{size}-{arch.id}-{seed}")),
        }

    def finetuned(self, seed: int, size: str, find: Callable[[Evaluator], Arch]) -> Figures:
        """The network that is found, trained on from the weights that it inherits, with real quantizers, and tested."""
        shared = self.supernet(seed, size)
        arch = find(shared)
        found = Checkpoint.newest(RunDir(self.o.dir / f"supernet-{size}-{seed}").checkpoints)
        told = self.experiment(ALONE, self.o.steps, seed, size, arch, found and found.directory, quant="real")
        return {
            "GBitOPs": shared.net.cost(arch)["bitops"] / 1e9,
            **self.tested(self.train(told, f"finetuned-{size}-{arch.id}-{seed}")),
        }

    def tested(self, found: Evaluator) -> Figures:
        """PSNR of a space of one on every test set."""
        child = found.child(found.net.space.largest())
        return {name: score(child, batches, task)["psnr"] for name, (task, batches) in self.tests.items()}

    def differentiable(self, steps: int, seed: int, size: str, term: float) -> tuple[Supernet, Arch, float]:
        """What the search has found, and its entropy at the end, nats over all slots."""
        told = self.experiment(MIXTURE, steps, seed, size, half=True, entropy=term, options={"shared": False})
        name = f"mixture-{size}-{term}-{seed}"
        net = self.train(told, name).net
        found = Checkpoint.newest(RunDir(self.o.dir / name).checkpoints)
        assert found is not None
        alpha = found.recipe()["alpha"]
        return net, architecture(net, alpha), float(entropy(net, alpha))

    @cache  # noqa: B019, there is one benchmark a process
    def supernet(self, seed: int, size: str) -> Evaluator:
        """That of `front`, `wide` and `rfdn`."""
        told = self.experiment(SUPERNET, self.o.steps, seed, size, quant="noise", paths=SHARED)
        return self.train(told, f"supernet-{size}-{seed}")

    def front(self, seed: int) -> Iterator[Part]:
        net = self.net(SIZE)
        yield from self.by_hand(seed, SIZE, "hand-made", {})
        middle = between(net, hand_made(net, 4), hand_made(net, 8))
        yield "hand-made, bits chosen", lambda: self.finetuned(seed, SIZE, partial(self.bits, seed, middle))
        yield from self.budgets(seed, SIZE)

        def differentiable() -> Arch:
            return self.differentiable(self.o.steps, seed, SIZE, 1e-3)[1]

        yield "differentiable search", lambda: self.finetuned(seed, SIZE, lambda shared: differentiable())

    def wide(self, seed: int) -> Iterator[Part]:
        size = "basic-wide"
        for channels, cells in ((12, 1), (18, 2), (24, 3)):
            yield from self.by_hand(seed, size, f"{channels} channels", {"channels": channels, "cells": cells})
        for algorithm in ("guided", "random"):
            for budget in BUDGETS:
                find = partial(self.searched, algorithm, seed, size, budget)
                yield f"{algorithm}, at most {budget:g} GBitOPs", partial(self.finetuned, seed, size, find)

    def rfdn(self, seed: int) -> Iterator[Part]:
        yield from self.by_hand(seed, "rfdn-c12", "hand-made", {})
        yield from self.budgets(seed, "rfdn-c12")

    def fixed(self, seed: int) -> Iterator[Part]:
        for name in NETWORKS:
            for bits in (8, 4):
                yield f"{name}, {bits} bits", partial(self.published, name, bits, seed)

    def published(self, name: str, bits: int, seed: int) -> Figures:
        size, space = f"{name}-{bits}", "tests.benchmarks.fixed:network"
        told = self.experiment(ALONE, 2 * self.o.steps, seed, size, space=space, quant="real")
        found = self.train(told, f"fixed-{name}-{bits}-{seed}")
        cost = found.net.cost(found.net.space.largest())["bitops"]
        return {"GBitOPs": cost / 1e9, **self.tested(found)}

    def rates(self, seed: int) -> Iterator[Part]:
        """`published` has the best of these."""

        def found(name: str, rate: float) -> Figures:
            space = "tests.benchmarks.fixed:network"
            told = self.experiment(ALONE, 2 * self.o.steps, seed, f"{name}-8", space=space, quant="real", lr=rate)
            found = self.train(told, f"rate-{name}-{rate:g}-{seed}")
            return {"validation PSNR": found(found.net.space.largest())["psnr"]}

        for name in ("fsrcnn", "espcn", "plain12"):
            for rate in (1e-3, 3e-3, 1e-2):
                yield f"{name} at {rate:g}", partial(found, name, rate)

    def by_hand(self, seed: int, size: str, name: str, chosen: Mapping[str, int]) -> Iterator[Part]:
        """3 x 3 convolutions with 8 and with 4 bits."""
        for bits in (8, 4):
            find = partial(lambda bits, shared: hand_made(shared.net, bits, **chosen), bits)
            yield f"{name}, {bits} bits", partial(self.finetuned, seed, size, find)

    def bits(self, seed: int, budget: int, shared: Evaluator) -> Arch:
        """The best bits for the hand-made network of `front`."""
        find = partial(best_bits, shared, hand_made(shared.net, 8), budget)
        return Arch(self.train.once(f"bits-{seed}", lambda: dict(find())))

    def budgets(self, seed: int, size: str) -> Iterator[Part]:
        """What searches find within the BitOPs of two networks, and between them."""
        net = self.net(size)
        four, eight = (hand_made(net, bits) for bits in (4, 8))
        low, middle, high = net.cost(four)["bitops"], between(net, four, eight), net.cost(eight)["bitops"]
        for algorithm, budget, name in (
            ("evolution", low, "as 4 bits"),
            ("evolution", middle, "between"),
            ("evolution", high, "as 8 bits"),
            ("random", middle, "between"),
        ):
            find = partial(self.best, algorithm, seed, size, budget)
            yield f"{algorithm}, {name}", partial(self.finetuned, seed, size, find)

    def best(self, algorithm: str, seed: int, size: str, budget: int, shared: Evaluator) -> Arch:
        """The best of so many candidates within a budget of BitOPs, on inherited weights."""
        told = self.searching(algorithm, seed, size, constraints={"bitops": Bounds(max=budget)}, candidates=CANDIDATES)
        records = self.train.searched(told, shared, f"{algorithm}-{size}-{budget}-{seed}")
        return max(records, key=lambda record: record.metrics["psnr"]).arch  # type: ignore[index]

    def searched(self, algorithm: str, seed: int, size: str, budget: float, shared: Evaluator) -> Arch:
        """The best within a budget of one search over all of `BUDGETS`, whose better candidates are trained for some
        steps with real quantizers before they are scored again."""
        bounds = Bounds(min=round(LEAST_SHARE * min(BUDGETS) * 1e9), max=round(max(BUDGETS) * 1e9))
        recipe = self.experiment(ALONE, self.o.steps, seed, size, quant="real").recipe
        how = {"constraints": {"bitops": bounds}, "candidates": MANY, "rungs": RUNGS, "recipe": recipe}
        told = self.searching(algorithm, seed, size, **how)
        shared.alone = Alone(told, shared.task, shared.net, recipe, CPU, seed, again=True)
        records = self.train.searched(told, shared, f"{algorithm}-{size}-{seed}")
        top = [record for record in records if len(record.lower) == len(RUNGS) - 1]
        within = [record for record in top if record.cost["bitops"] <= budget * 1e9]
        return max(within, key=lambda record: record.metrics["psnr"]).arch  # type: ignore[index]

    def searching(self, algorithm: str, seed: int, size: str, **how: Any) -> Experiment:
        """The experiment of a search."""
        told = self.experiment(SUPERNET, self.o.steps, seed, size, quant="noise")
        update = {"algorithm": algorithm, "options": plugins.find("search", algorithm).Options(), **how}
        return told.model_copy(update={"search": told.search.model_copy(update=update)})

    def noise(self, seed: int) -> Iterator[Part]:
        for name, quant, adq in (
            ("noise, ADQ", "noise", True),
            ("real quantizers, ADQ", "real", True),
            ("no quantizers, ADQ", "off", True),
            ("noise, no ADQ", "noise", False),
        ):
            told = self.experiment(SUPERNET, self.o.steps, seed, "basic-c12", quant=quant, options={"adq": adq})
            yield name, partial(self.random_children, told, f"{name.replace(', ', '-').replace(' ', '-')}-{seed}")

    def paths(self, seed: int) -> Iterator[Part]:
        for name, shared, opening, paths in (
            ("own kernels", False, 0.0, 1),
            ("shared kernels", True, 0.0, 1),
            ("shared, opening", True, 0.5, 1),
            ("shared, 4 paths", True, 0.0, 4),
            ("shared, opening, 4 paths", True, 0.5, 4),
        ):
            how = {"quant": "noise", "opening": opening, "paths": paths, "options": {"shared": shared}}
            told = self.experiment(SUPERNET, self.o.steps // paths, seed, "basic-c12", **how)
            directory = f"paths-{name.replace(',', '').replace(' ', '-')}-{seed}"
            yield name, partial(self.random_children, told, directory)

    def random_children(self, told: Experiment, name: str) -> Figures:
        """What a supernet's children have with inherited weights and real quantizers, dB on validation."""
        found, rng = self.train(told, name), np.random.default_rng(0)
        figures = [found(found.net.space.sample(rng))["psnr"] for _ in range(20)]
        return {"mean validation PSNR": float(np.mean(figures)), "smallest": min(figures), "largest": max(figures)}

    def alpha(self, seed: int) -> Iterator[Part]:
        def found(term: float) -> Figures:
            net, arch, left = self.differentiable(self.o.steps // 3, seed, "basic-c12", term)
            return {"entropy left, nats": left, **self.alone(arch, net, seed, "basic-c12", 3)}

        for term in (0.0, 1e-3, 1e-2):
            yield f"entropy term {term:g}", partial(found, term)

    def long(self, seed: int) -> Iterator[Part]:
        told = self.experiment(ALONE, 1, seed, "basic-c12", quant="off", options={"bits": [32]})
        net = make_supernet(told, load_task(told))
        rng = np.random.default_rng(0)
        arch = min((net.space.sample(rng) for _ in range(500)), key=lambda arch: abs(net.cost(arch)["macs"] - FSRCNN))
        told = self.experiment(ALONE, 20 * self.o.steps, seed, "basic-c12", arch, quant="off", options={"bits": [32]})
        macs = net.cost(arch)["macs"] / 32**2
        yield (
            f"{macs:.0f} MACs a low-resolution pixel",
            lambda: self.tested(self.train(told, f"long-{seed}")),
        )


def hand_made(net: Supernet, bits: int, **size: int) -> Arch:
    """3 x 3 convolutions wherever a slot may hold one, but 1 x 1 where RFDN distils; the same bits everywhere.

    Args:
        size: channels and cells, where these are choices.
    """

    def choice(name: str) -> int | str:
        operation = "conv1" if ".skip" in name else "conv3"
        return size[name] if name in size else operation if name.endswith(".op") else bits

    return net.space.named({name: choice(name) for name in net.space.choices})  # type: ignore[attr-defined]


def between(net: Supernet, one: Arch, other: Arch) -> int:
    """The geometric mean of two networks' BitOPs."""
    return round((net.cost(one)["bitops"] * net.cost(other)["bitops"]) ** 0.5)


def best_bits(shared: Evaluator, arch: Arch, budget: int) -> Arch:
    """The best of all ways to give this network's slots 4 or 8 bits within a budget of BitOPs, on inherited weights."""
    net, slots = shared.net, [name for name in arch if name.endswith(".bits")]
    found = []
    for code in range(2 ** len(slots)):
        given = net.space.arch({**arch, **{slot: 8 if code >> i & 1 else 4 for i, slot in enumerate(slots)}})
        if net.cost(given)["bitops"] <= budget:
            found.append((shared(given)["psnr"], given))
    return max(found, key=lambda pair: pair[0])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("front", "wide", "rfdn", "fixed", "rates", "noise", "paths", "alpha", "long"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which")
    parser.add_argument(
        "--steps", type=int, default=1500, help="of a training; a supernet of `front` takes four paths in each"
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--minutes", type=float, default=60)
    o = parser.parse_args()
    report(
        f"quantnas-{o.part}",
        {"steps": o.steps, "scale": o.scale, **SETTINGS.get(o.part, {})},
        getattr(Bench(o), o.part),
        o.seeds,
    )


if __name__ == "__main__":
    main()
