"""What every recipe keeps, as functions over a way to make one and a way to make a network: in plain torch, without
an engine.

    from nas.testing.recipe import CHECKS
    for check in CHECKS:
        check(lambda task: MyRecipe(task, MyOptions(name="mine", epochs=1, batch=8)), my_net)

The task is a made-up one, whose targets are of whatever shape the network gives.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.draws import bits
from nas.recipes.recipe import Batch, Kept, Recipe, Step, Teaching
from nas.space import Arch
from nas.supernet import Output, Pass, Soft, Supernet, Target, main_head
from nas.testing.toy import CLASSES, Toy

BATCH = 32  # examples of a rank
TOTAL = 8  # steps of a training
SEED = 5

Make = Callable[[Teaching], Recipe]
Asked = Arch | list[Arch] | Soft  # of a pass


class Squares:
    """A task of no meaning: mean squared differences, whatever a network gives."""

    compares_distributions = True

    def mix(
        self, x: Tensor, target: Tensor, grid: int, generator: torch.Generator, /
    ) -> tuple[Tensor, Tensor | Target]:
        return x, target

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0, /) -> Tensor:
        assert isinstance(target, Tensor)
        aside = output.aux.float().square().mean() if isinstance(output, Output) else 0.0
        return F.mse_loss(main_head(output).float(), target) + aside

    def signal(self, output: Tensor | Output, /) -> Tensor | Output:
        return main_head(output).detach().float()

    def distill(self, output: Tensor | Output, signal: Tensor | Output, /) -> Tensor:
        return F.mse_loss(main_head(output).float(), main_head(signal))

    diverge = distill


@dataclass
class Passes:
    """A pass through an engine that notes what it was asked for, and leaves a mark in whatever comes out.

    Attributes:
        asked: the architectures of each pass.
        mark: a zero that every output depends on.
    """

    net: Supernet
    asked: list[Asked] = field(default_factory=list)
    mark: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))

    def __call__(self, x: Tensor, archs: Asked, how: Pass = Pass(), /) -> Tensor | Output:
        self.asked.append(archs)
        output = self.net(x, archs, how)
        if isinstance(output, Output):
            return Output(output.main + self.mark, output.aux)
        marked: Tensor = output + self.mark
        return marked


def step_of(index: int, rank: int = 0, mean: Callable[[Tensor], Tensor] = lambda value: value) -> Step:
    """What a recipe is told of a step."""
    noise = torch.Generator().manual_seed(int(bits(SEED, "noise", index, rank)[0] >> np.uint64(1)))
    rng = np.random.default_rng(bits(SEED, "architectures", index))
    return Step(index, TOTAL, index / TOTAL, rank * BATCH, rng, noise, mean, SEED)


def batches_of(recipe: Recipe, index: int, rank: int = 0) -> dict[str, Batch]:
    """A batch for each feed, of images in [0, 1] and targets; other ones in each step and on each rank."""
    found = {}
    for number, name in enumerate(recipe.feeds):
        generator = torch.Generator().manual_seed(1000 * index + 100 * rank + number)
        x = torch.rand(BATCH, *Toy.input_shape, generator=generator)
        found[name] = (x, torch.rand(BATCH, CLASSES, generator=generator))
    return found


def train(recipe: Recipe, net: Supernet, optimizer: torch.optim.Optimizer, steps: Sequence[int]) -> list[list[float]]:
    """The losses of these steps, trained as the loop does it."""
    found = []
    for index in steps:
        step, losses = step_of(index), []
        optimizer.zero_grad()
        for loss in recipe.losses(net, net, batches_of(recipe, index), step):
            loss.backward()
            losses.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step)
        optimizer.step()
        if recipe.follows:
            recipe.stepped(net, step)
        found.append(losses)
    return found


def one_step(make: Make, index: int = TOTAL // 2, rank: int = 0) -> tuple[Recipe, Supernet, Passes, Iterator[Tensor]]:
    """A fresh recipe, its network, the passes, and the losses of one step, not yet drawn."""
    recipe, net = make(Squares()), Toy()
    run = Passes(net)
    return recipe, net, run, recipe.losses(run, net, batches_of(recipe, index, rank), step_of(index, rank))


def check_names(make: Make) -> None:
    """A step yields as many losses as `names` has, and then ends; losses of one name are added up in what is logged.

    Look at `names`, and at a loop in `losses` whose length the options decide.
    """
    recipe, _, _, losses = one_step(make)
    count = sum(1 for _ in losses)
    assert count == len(recipe.names), (
        f"{count} losses in a step, and {len(recipe.names)} names: {', '.join(recipe.names)}"
    )


def check_feeds(make: Make) -> None:
    """`feeds` are shares of the training data: each above 0, at most 1 together.

    Look at `feeds`.
    """
    feeds = make(Squares()).feeds
    assert feeds and min(feeds.values()) > 0 and sum(feeds.values()) <= 1 + 1e-9, f"feeds is {dict(feeds)}"


def check_gradients(make: Make) -> None:
    """Every loss is one finite fp32 number with a gradient for the network's weights.

    Look for a `detach`, a loss computed under `no_grad`, and a mean that is missing.
    """
    recipe, net, _, losses = one_step(make)
    for name, loss in zip(recipe.names, losses, strict=False):
        assert loss.shape == () and loss.dtype == torch.float32, (
            f"loss {name} is {loss.dtype} of shape {tuple(loss.shape)}"
        )
        assert loss.isfinite(), f"loss {name} is {loss.item()}"
        assert loss.requires_grad, f"loss {name} has no gradient"
        net.zero_grad()
        loss.backward()
        most = max((float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None), default=0.0)
        assert most > 0, f"loss {name} is {loss.item():.4g}, and its largest gradient {most}"


def check_engine(make: Make) -> None:
    """What is yielded comes from passes through `run`, the engine, so that all ranks make them together.

    Look for a call of `net` in place of `run`; the bare network is for what the engine's optimizer shall not see.
    """
    recipe, _, run, losses = one_step(make)
    for name, loss in zip(recipe.names, losses, strict=False):
        (found,) = torch.autograd.grad(loss, run.mark, retain_graph=True, allow_unused=True)
        assert found is not None, (
            f"loss {name} does not depend on a pass through run; {len(run.asked)} were made before it"
        )
        loss.backward()


def check_repeats(make: Make) -> None:
    """The same seed and step give the same losses, whatever torch's and numpy's global generators hold, and draw from
    neither.

    Look for dropout or noise without ``generator=step.generator``, and for draws that are not from ``step.rng``.
    """
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        recipe, _, _, losses = one_step(make)
        before = torch.get_rng_state(), str(np.random.get_state())
        found.append([float(loss.detach()) for loss in losses])
        assert torch.equal(torch.get_rng_state(), before[0]), "torch's global generator was drawn from"
        assert str(np.random.get_state()) == before[1], "numpy's global generator was drawn from"
    assert found[0] == found[1], f"losses {found[0]} and then {found[1]}"


def check_ranks(make: Make) -> None:
    """All ranks run the same architectures: they come from ``step.rng`` alone, and what ranks learn is averaged.

    Look for a draw from ``step.generator``, which is the rank's own, and for one that depends on the batch. In a list
    the first architecture is that of row ``step.row % len(list)`` of the batch of all ranks. What is learnt of a
    rank's batch goes through ``step.mean``, as often on every rank.
    """
    meeting = Meeting()

    def rank(number: int) -> Passes:
        recipe, net = make(Squares()), Toy()
        run = Passes(net)
        step = step_of(TOTAL // 2, number, lambda value: meeting.mean(number, value))
        try:
            drain(recipe.losses(run, net, batches_of(recipe, step.index, number), step))
        except BaseException:
            meeting.barrier.abort()
            raise
        return run

    with ThreadPoolExecutor(2) as threads:
        ranks = [threads.submit(rank, number) for number in (0, 1)]
    errors = [future.exception() for future in ranks]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not any(errors), (
        f"step.mean was called {meeting.calls[0]} times on rank 0 and {meeting.calls[1]} times on rank 1"
    )
    first, second = (future.result() for future in ranks)
    assert_archs(first, second, (0, BATCH), "rank 1", asked)


def check_micro_batches(make: Make) -> None:
    """With gradient accumulation every micro-batch of a step runs the same architectures.

    Look for a count of calls: `losses` is called once for each micro-batch, with the same index and a `step.rng` that
    begins anew.
    """
    recipe, net = make(Squares()), Toy()
    first, second = Passes(net), Passes(net)
    for part, run in enumerate((first, second)):
        drain(recipe.losses(run, net, batches_of(recipe, TOTAL // 2, part), step_of(TOTAL // 2)))
    assert_archs(
        first,
        second,
        (0, 0),
        "the next micro-batch",
        lambda archs, row: type(archs) if isinstance(archs, Soft) else asked(archs, row),
    )


class Meeting:
    """Two ranks in two threads, which wait for each other at every mean."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=5)
        self.parts: dict[int, Tensor] = {}
        self.calls = [0, 0]

    def mean(self, rank: int, value: Tensor) -> Tensor:
        self.parts[rank] = value
        self.calls[rank] += 1
        self.barrier.wait()
        found = (self.parts[0] + self.parts[1]) / 2
        self.barrier.wait()
        return found


def drain(losses: Iterator[Tensor]) -> None:
    """A step's losses, each with its backward pass."""
    for loss in losses:
        loss.backward()


def assert_archs(
    one: Passes, other: Passes, rows: tuple[int, int], who: str, form: Callable[[Asked, int], object]
) -> None:
    """The same architectures for the same rows of the batch of all ranks; `form` is what is compared of each pass."""
    count = len(one.asked), len(other.asked)
    assert count[0] == count[1], f"{count[0]} passes in a step, and {count[1]} on {who}"
    for number, pair in enumerate(zip(one.asked, other.asked, strict=True)):
        mine, theirs = (form(archs, row) for archs, row in zip(pair, rows, strict=True))
        assert mine == theirs, f"pass {number} runs {mine}; on {who} it runs {theirs}"


def asked(archs: Asked, row: int) -> object:
    """What a pass is asked for, in a form that can be compared: a list as it is for row 0 of the batch of all ranks."""
    if isinstance(archs, Soft):
        return {name: table.detach().tolist() for name, table in archs.probabilities.items()}
    return archs if isinstance(archs, Arch) else [archs[(n - row) % len(archs)] for n in range(len(archs))]


def check_contexts(make: Make) -> None:
    """Nothing is yielded inside a ``with``: gradient mode and autocast are after each loss what they were before.

    Look for a `yield` beneath ``torch.no_grad()``, ``torch.autocast`` or the like; the context would leak into the
    loop.
    """

    def modes() -> dict[str, object]:
        return {
            "gradients": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "the default type": torch.get_default_dtype(),
        }

    recipe, _, _, losses = one_step(make)
    before = modes()
    for name in recipe.names:
        with torch.autocast("cpu", torch.bfloat16):
            inside = modes()
            loss = next(losses)
            after = modes()
        for what, value in inside.items():
            assert after[what] == value, f"{what}: {value} before loss {name}, {after[what]} after it"
        loss.backward()
    next(losses, None)
    assert modes() == before, f"{before} before the step, {modes()} after it"


def check_weights(make: Make) -> None:
    """`losses` changes no weight and leaves no gradient of its own: backward and step are the loop's.

    Look for ``backward()`` on a loss that is not yielded; use `torch.autograd.grad` for what is not for the engine.
    """
    recipe, net, _, losses = one_step(make)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for name, loss in zip(recipe.names, losses, strict=False):
        left = [key for key, parameter in net.named_parameters() if parameter.grad is not None]
        assert not left, f"before the loop's backward of loss {name} there is a gradient on {', '.join(left[:3])}"
        loss.backward()
        net.zero_grad()
    changed = [name for name, value in net.state_dict().items() if not torch.equal(before[name], value)]
    assert not changed, f"losses changed {', '.join(changed[:5])}"


def check_optimizer(make: Make) -> None:
    """`optimizer` has each of the network's parameters once, and nothing else.

    Look at the parameter groups; what a recipe learns besides has an optimizer of its own.
    """
    net = Toy()
    held = [id(p) for group in make(Squares()).optimizer(net).param_groups for p in group["params"]]
    names = {id(parameter): name for name, parameter in net.named_parameters() if parameter.requires_grad}
    missing, strange = (
        [name for key, name in names.items() if key not in held],
        [key for key in held if key not in names],
    )
    assert not missing, f"{len(missing)} of {len(names)} parameters are not in it: {', '.join(missing[:5])}"
    assert not strange, f"{len(strange)} of its parameters are not the network's"
    assert len(held) == len(set(held)), f"it has {len(held)} parameters, the network {len(set(held))}"


def check_lr(make: Make) -> None:
    """`lr` is a finite number from 0, above it midway, and a function of the step alone.

    Look at the warm-up, and at what happens where progress is 1.
    """
    recipe = make(Squares())
    rates = [recipe.lr(step_of(index)) for index in range(TOTAL + 1)]
    again = [recipe.lr(step_of(index)) for index in reversed(range(TOTAL + 1))][::-1]
    assert all(np.isfinite(rate) and rate >= 0 for rate in rates), f"rates over a training: {rates}"
    assert rates[TOTAL // 2] > 0, f"the rate midway is {rates[TOTAL // 2]}"
    assert rates == again, f"rates over a training: {rates}, and asked for backwards: {again}"


def check_resume(make: Make) -> None:
    """What `state` gives and `load` takes back makes a resumed training equal an undisturbed one, bit for bit.

    Look for anything that changes from step to step and is not in `state`: a running mean, a count, an optimizer of
    your own.
    """
    recipe, net = make(Squares()), Toy()
    optimizer = recipe.optimizer(net)
    train(recipe, net, optimizer, range(TOTAL // 2))
    kept = carried(recipe.state())
    weights, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    wanted = train(recipe, net, optimizer, range(TOTAL // 2, TOTAL))
    resumed, fresh = make(Squares()), Toy()
    fresh.load_state_dict(weights)
    second = resumed.optimizer(fresh)
    second.load_state_dict(moments)
    resumed.load(kept)
    found = train(resumed, fresh, second, range(TOTAL // 2, TOTAL))
    for index, (one, other) in enumerate(zip(found, wanted, strict=True), TOTAL // 2):
        assert one == other, f"losses of step {index}: {one} resumed from step {TOTAL // 2}, {other} undisturbed"
    for name, value in recipe.state().items():
        held = resumed.state()[name]
        same = torch.equal(value, held) if isinstance(value, Tensor) and isinstance(held, Tensor) else value == held
        assert same, f"state {name!r} is {held} at the end of the resumed training, {value} of the undisturbed one"


def carried(state: Mapping[str, Kept]) -> dict[str, Kept]:
    """A state as a checkpoint carries it: tensors by value, the rest as JSON."""
    tensors = {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    assert json.loads(json.dumps(plain)) == plain, f"state has what JSON cannot carry: {plain}"
    return {**plain, **tensors}


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_names,
    check_feeds,
    check_gradients,
    check_engine,
    check_repeats,
    check_ranks,
    check_micro_batches,
    check_contexts,
    check_weights,
    check_optimizer,
    check_lr,
    check_resume,
)
