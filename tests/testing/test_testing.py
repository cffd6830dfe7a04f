"""The shipped suites: what comes with raynas passes, and what breaks its contract is told so by the check that is
meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.cli.check import find, run
from nas.recipes.recipe import Batch, Kept, Recipe, RecipeOptions, Run, Step, Teaching
from nas.search.core import Search
from nas.space import Arch
from nas.supernet import Cost, CostOptions, Supernet
from nas.tasks.classification import Classification, ClassificationOptions
from nas.testing import cost, recipe, search, task
from nas.testing.suite import Outcome, outcomes
from nas.testing.toy import Toy

ROOT = Path(__file__).parent.parent.parent
BUILT_IN = [
    "sandwich",
    "multi_arch",
    "single_path",
    "differentiable",
    "single",
    "alphanet",
    "coarse_to_fine",
    "evolution",
    "fittest",
    "guided",
    "nsga2",
    "random",
    "regularized",
    "digits",
]


def failed(found: Iterable[Outcome]) -> list[str]:
    return [f"{outcome.name}: {outcome.why}" for outcome in found if not outcome.ok]


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_comes_with_raynas_keeps_its_contract(name: str) -> None:
    assert failed(run(find(name))) == []


def test_every_check_says_what_must_hold_and_where_to_look() -> None:
    for suite in (cost, recipe, search, task):
        for check in suite.CHECKS:
            first, _, rest = (check.__doc__ or "").partition("\n")
            assert first, f"{check.__name__} does not say what must hold"
            assert "Look" in rest, f"{check.__name__} does not say where to look"


# --- recipes


class Plain(Recipe):
    """What keeps the contract, and each of the classes below breaks in one place."""

    names = ("one", "two")

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = batches["train"]
        for arch in (net.space.largest(), net.space.sample(step.rng)):
            yield self.task.loss(run(x, arch), target)

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=0.1)

    def lr(self, step: Step) -> float:
        return 0.1


class Named(Plain):
    names = ("one",)


class Detached(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        for loss in super().losses(run, net, batches, step):
            yield loss.detach().requires_grad_()


class Bare(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        yield from super().losses(net, net, batches, step)


class Global(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        for loss in super().losses(run, net, batches, step):
            yield loss * (1 + torch.rand(()))


class OfTheRank(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = batches["train"]
        rng = np.random.default_rng(int(torch.randint(1 << 30, (), generator=step.generator)))
        for arch in (net.space.largest(), *(net.space.sample(rng) for _ in range(1))):
            yield self.task.loss(run(x, arch), target)


class Counting(Plain):
    calls = 0

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = batches["train"]
        self.calls += 1
        for arch in (net.space.largest(), (net.space.largest, net.space.smallest)[self.calls % 2]()):
            yield self.task.loss(run(x, arch), target)


class Leaking(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        for loss in super().losses(run, net, batches, step):
            with torch.autocast("cpu", enabled=False):
                yield loss


class Backward(Plain):
    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        for loss in super().losses(run, net, batches, step):
            loss.backward(retain_graph=True)
            yield loss


class Half(Plain):
    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(net.parameters())[1:], lr=0.1)


class Forgetful(Plain):
    """Keeps a running mean and does not say so."""

    mean = 1.0

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        for loss in super().losses(run, net, batches, step):
            self.mean = 0.5 * self.mean + 0.5 * float(step.mean(loss.detach()))
            yield loss / self.mean


class Apart(Forgetful):
    """Learns of its own rank's batch which network to run."""

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        x, target = batches["train"]
        for arch in (net.space.largest(), (net.space.smallest, net.space.largest)[int(x.sum()) % 2]()):
            yield self.task.loss(run(x, arch), target)

    def state(self) -> dict[str, Kept]:
        return {"mean": self.mean}


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Named, "names"),
        (Detached, "gradients"),
        (Bare, "engine"),
        (Global, "repeats"),
        (OfTheRank, "ranks"),
        (Counting, "micro_batches"),
        (Leaking, "contexts"),
        (Backward, "weights"),
        (Half, "optimizer"),
        (Forgetful, "resume"),
        (Apart, "ranks"),
    ],
)
def test_a_broken_recipe_is_told(broken: type[Recipe], check: str) -> None:
    def make(kind: type[Recipe]) -> Callable[[Teaching], Recipe]:
        return lambda posed: kind(posed, RecipeOptions(name="x", epochs=1.0, batch=8))

    assert failed(outcomes(recipe.CHECKS, make(Plain))) == []
    assert check in {told.partition(":")[0] for told in failed(outcomes(recipe.CHECKS, make(broken)))}
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled(), "what it left behind reaches later checks"


# --- searches


class Uniform(Search):
    name, tag = "uniform", 90

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        while True:
            yield self.space.sample(rng)


class GlobalDraws(Uniform):
    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        return super().draws(k, archs, points, violations, np.random.default_rng(np.random.randint(1 << 30)))


class Peeking(Uniform):
    """Looks at all that was told, not at what it is given."""

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        seen = sum(value for value, _ in self._points.values() if np.isfinite(value))
        return super().draws(k, archs, points, violations, np.random.default_rng([k, int(-1000 * seen)]))


class OneStream(Uniform):
    """Goes on drawing where the last candidate left off."""

    own: np.random.Generator | None = None

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        self.own = self.own or np.random.default_rng(int(np.nansum(points[:, 0]) * 1000) % 1000)
        return super().draws(k, archs, points, violations, self.own)


class Trusting(Uniform):
    """Takes the best of all, though some have failed."""

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        if len(archs):
            int(points[:, 0].max())
        return super().draws(k, archs, points, violations, rng)


class Counting(Uniform):
    """Begins with the smallest network, if nothing was given to begin with."""

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        if self.next_k == 0:
            yield self.space.smallest()
        yield from super().draws(k, archs, points, violations, rng)


class Ending(Uniform):
    """Gives up after one draw, which was there already."""

    def draws(
        self, k: int, archs: Sequence[Arch], points: np.ndarray, violations: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Arch]:
        yield self.space.smallest()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (GlobalDraws, "globals"),
        (Peeking, "window"),
        (OneStream, "repeats"),
        (Trusting, "failures"),
        (Ending, "new"),
        (Counting, "first"),
    ],
)
def test_a_broken_search_is_told(broken: type[Search], check: str) -> None:
    assert failed(outcomes(search.CHECKS, Uniform)) == []
    assert check in {told.partition(":")[0] for told in failed(outcomes(search.CHECKS, broken))}


# --- tasks


class Summed(Classification):
    def loss(self, output, target, label_smoothing=0.0):  # type: ignore[no-untyped-def]
        return super().loss(output, target, label_smoothing) * len(target)


class Averaged(Classification):
    def scores(self, output: Tensor, target: Tensor) -> dict[str, float]:
        sums = super().scores(output, target)
        return {**sums, "correct": sums["correct"] / sums["examples"], "examples": 1.0}


class Teaches(Classification):
    def signal(self, output):  # type: ignore[no-untyped-def]
        return output.softmax(-1)


class Undeclared(Classification):
    metrics = {"accuracy": "higher"}


class Overlapping(Classification):
    def __init__(self, options: ClassificationOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.validation = self.train


class Unseeded(Classification):
    def __init__(self, options: ClassificationOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.train = OfTheBatch(self.train)


@dataclass(frozen=True)
class OfTheBatch:
    """Augmented from a generator that the batch shares."""

    inner: object
    at_once: int | None = None

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        x, target = self.inner.batch(indices)  # type: ignore[attr-defined]
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(epoch or 0))
        return (x * noise if epoch is not None else x), target


class Unrounded(Classification):
    def __init__(self, options: ClassificationOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.validation = Blurred(self.validation)


@dataclass(frozen=True)
class Blurred(OfTheBatch):
    """Inputs that no picture gives."""

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        x, target = self.inner.batch(indices, epoch)  # type: ignore[attr-defined]
        return 0.9 * x + 0.1 * x.mean((2, 3), keepdim=True), target


class Hopeless(Classification):
    def __init__(self, options: ClassificationOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.learnt = self.chance / 2


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Summed, "loss"),
        (Averaged, "sums"),
        (Teaches, "teacher"),
        (Undeclared, "figures"),
        (Overlapping, "held_out"),
        (Unseeded, "batch"),
        (Hopeless, "chance"),
        (Unrounded, "preprocess"),
    ],
)
def test_a_broken_task_is_told(broken: type[Classification], check: str) -> None:
    from nas.build import load_supernet

    options = ClassificationOptions(name="digits", validation=64)
    subject = task.Subject(
        lambda seed: broken(options, seed), lambda posed: load_supernet("bignas", "d8", **posed.network)
    )
    assert check in {told.partition(":")[0] for told in failed(outcomes(task.CHECKS, subject))}


# --- costs


class Layers(Cost):
    name, label = "layers", "layers"

    def __call__(self, net: Supernet, arch: Arch) -> float:
        return float(sum(arch.values()))


class Taken(Layers):
    name = "macs"


class Falling(Layers):
    def __call__(self, net: Supernet, arch: Arch) -> float:
        return 1000 - super().__call__(net, arch)


class Drifting(Layers):
    calls = 0

    def __call__(self, net: Supernet, arch: Arch) -> float:
        self.calls += 1
        return super().__call__(net, arch) + self.calls


class OfTorch(Layers):
    def __call__(self, net: Supernet, arch: Arch) -> float:
        return torch.tensor(super().__call__(net, arch))  # type: ignore[return-value]


class Slow(Layers):
    def __call__(self, net: Supernet, arch: Arch) -> float:
        torch.randn(200, 200, generator=torch.Generator().manual_seed(0)).svd()
        return super().__call__(net, arch)


@pytest.mark.parametrize(
    ("broken", "check"),
    [(Taken, "names"), (Falling, "architectures"), (Drifting, "pure"), (OfTorch, "numbers"), (Slow, "speed")],
)
def test_a_broken_cost_is_told(broken: type[Cost], check: str) -> None:
    options = CostOptions(name="x:Y")
    assert failed(outcomes(cost.CHECKS, Layers(options), Toy())) == []
    assert check in {told.partition(":")[0] for told in failed(outcomes(cost.CHECKS, broken(options), Toy()))}
