"""What every task keeps, as functions over a way to make it: on its own data, with outputs that a network could give.

from nas.testing.task import CHECKS, Subject
for check in CHECKS:
    check(Subject(lambda seed: MyTask(MyOptions(name="mine", validation=32), seed), my_net))
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from nas.supernet import Output, Supernet, main_head
from nas.tasks.task import Examples, Task, compact, pixels

EXAMPLES = 8  # of a part that are looked at
SEED = 0
TOLERANCE = 1e-5  # of sums of fp32 numbers in another order


@dataclass
class Subject:
    """A task, and a network for its data.

    Attributes:
        make: the task of a seed.
        network: a supernet for what the task says of its data; its weights do not matter.
    """

    make: Callable[[int], Task]
    network: Callable[[Task], Supernet]

    @cached_property
    def task(self) -> Task:
        return self.make(SEED)

    @cached_property
    def net(self) -> Supernet:
        return self.network(self.task).eval()

    @cached_property
    def child(self) -> nn.Module:
        """The largest child, on batch statistics, as it is before it is calibrated."""
        return self.net.extract(self.net.space.largest()).train()

    def batch(self, part: str = "train", epoch: int | None = 0) -> tuple[Tensor, Tensor]:
        """Some examples of a part."""
        examples = parts(self.task)[part]
        return examples.batch(np.arange(min(len(examples), examples.at_once or EXAMPLES, EXAMPLES)), epoch)

    def output(self, x: Tensor) -> Tensor | Output:
        """What the largest network gives, fresh, with a gradient."""
        return self.net(x, self.net.space.largest())


def parts(task: Task) -> dict[str, Examples]:
    """The three parts by name."""
    return {"train": task.train, "validation": task.validation, "test": task.test}


def check_data(subject: Subject) -> None:
    """Inputs are float32 pixels in [0, 1] of shape ``(n, C, H, W)``, and every part has examples.

    Look at the conversion of bytes to floats, and at `input_shape`. Normalisation belongs into the network: children
    take plain pixels.
    """
    for name, examples in parts(subject.task).items():
        assert len(examples) > 0, f"{name} has {len(examples)} examples"
        x, target = subject.batch(name, 0 if name == "train" else None)
        assert x.dtype == torch.float32, f"inputs of {name} are {x.dtype}; they must be torch.float32"
        assert x.min() >= 0 and x.max() <= 1, (
            f"inputs of {name} lie in [{x.min():.4g}, {x.max():.4g}]; pixels lie in [0, 1]"
        )
        assert len(x) == len(target), f"{name} gives {len(x)} inputs and {len(target)} targets"
        shape = subject.task.input_shape
        wanted, found = (shape[:1], x.shape[1:2]) if subject.task.any_size else (shape, x.shape[1:])
        assert tuple(found) == tuple(wanted), f"inputs of {name} are {tuple(x.shape[1:])}, input_shape is {shape}"


def check_batch(subject: Subject) -> None:
    """An example is a function of (seed, epoch, index): the same in any batch, at any time, in another process.

    Look for augmentation that draws from a generator shared by the batch; `nas.draws` has draws that are functions of
    numbers.
    """
    for name, examples in parts(subject.task).items():
        count = min(len(examples), EXAMPLES if examples.at_once is None else 1)
        for epoch in (0, 1, None) if name == "train" else (None,):
            torch.manual_seed(1)
            np.random.seed(1)
            x, target = examples.batch(np.arange(count), epoch)
            torch.manual_seed(2)
            np.random.seed(2)
            parts_of = parts(subject.make(SEED))[name] if epoch == 1 else examples
            for index in reversed(range(count)):
                one, its = parts_of.batch(np.array([index]), epoch)
                sent, _ = compact(parts_of, np.array([index]), epoch)
                assert torch.equal(pixels(sent), one), (
                    f"example {index} of {name} in epoch {epoch} has other pixels in `levels` than in `batch`: there "
                    "these are whole numbers / 255"
                )
                assert torch.equal(one[0], x[index]) and torch.equal(its[0], target[index]), (
                    f"example {index} of {name} in epoch {epoch} is another one by itself than in a batch of {count}: "
                    f"inputs {float((one[0] - x[index]).abs().max()):.4g} apart"
                )


def check_held_out(subject: Subject) -> None:
    """Validation is held out: no validation or test input is one that is trained on.

    Look at how the training part is divided. Inputs are compared byte by byte, without augmentation; of photographs,
    crops that overlap are not seen here.
    """
    task = subject.task
    trained = set(_digests(task.train, 4096))
    for name in ("validation", "test"):
        found = [digest in trained for digest in _digests(parts(task)[name], 512)]
        assert sum(found) <= len(found) // 50, (
            f"{sum(found)} of {len(found)} inputs of {name} are in train too"
        )  # sets have copies


def _digests(examples: Examples, most: int) -> list[bytes]:
    """The inputs' bytes, of the first `most`."""
    size = examples.at_once or 64
    rows = np.arange(min(len(examples), most))
    batches = (examples.batch(rows[start : start + size])[0] for start in range(0, len(rows), size))
    return [one.numpy().tobytes() for x in batches for one in x]


def check_seed(subject: Subject) -> None:
    """The same seed divides the data in the same way.

    Look for a shuffle without the seed. Test may not depend on the seed at all: figures of two runs must be comparable.
    """
    again, other = subject.make(SEED), subject.make(SEED + 1)
    for name, one in parts(subject.task).items():
        assert len(one) == len(parts(again)[name]), (
            f"{name} has {len(one)} examples, and then {len(parts(again)[name])}"
        )
    count = min(len(subject.task.test), subject.task.test.at_once or EXAMPLES)
    pair = [task.test.batch(np.arange(count))[0] for task in (subject.task, other)]
    assert torch.equal(*pair), f"test has other examples under seed {SEED + 1} than under {SEED}"


def check_loss(subject: Subject) -> None:
    """`loss` is the mean over the batch: one finite fp32 number with a gradient, and that of two halves is the mean
    of theirs.

    Look for a sum in place of a mean, and for a mean over something else than the examples.
    """
    task, (x, target) = subject.task, subject.batch()
    output = subject.output(x)
    loss = task.loss(output, target)
    assert loss.shape == () and loss.dtype == torch.float32, f"loss is {loss.dtype} of shape {tuple(loss.shape)}"
    assert loss.isfinite() and loss.requires_grad, f"loss is {loss.item()}, gradient {loss.requires_grad}"
    half = len(x) // 2
    halves = [task.loss(_rows(output, rows), target[rows]) for rows in (slice(half), slice(half, 2 * half))]
    whole = task.loss(_rows(output, slice(2 * half)), target[: 2 * half])
    mean = float(sum(part.item() for part in halves)) / 2
    assert math.isclose(whole.item(), mean, rel_tol=1e-4), (
        f"loss of {2 * half} examples is {whole.item():.6g}, the mean of halves {mean:.6g}"
    )
    doubled = task.loss(main_head(output).bfloat16(), target)
    assert doubled.dtype == torch.float32, (
        f"the loss of bf16 outputs is {doubled.dtype}; it must be taken in torch.float32"
    )


def _rows(output: Tensor | Output, rows: slice | list[int]) -> Tensor | Output:
    return Output(output.main[rows], output.aux[rows]) if isinstance(output, Output) else output[rows]


def check_mix(subject: Subject) -> None:
    """`mix` draws from the generator it is given, keeps the inputs' shape, and gives what `loss` takes.

    Look for a draw from torch's own generator.
    """
    task, (x, target) = subject.task, subject.batch()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        mixed, label = task.mix(x.clone(), target.clone(), subject.net.aux_grid, torch.Generator().manual_seed(7))
        found.append(mixed)
        assert mixed.shape == x.shape, f"inputs of {tuple(x.shape)} became {tuple(mixed.shape)}"
        assert task.loss(subject.output(mixed), label).isfinite()
    assert torch.equal(*found), "the same generator mixed the same batch in two ways"


def check_teacher(subject: Subject) -> None:
    """A teacher's signal has no gradient, and a network told by it has: least where it already says the same.

    Look for a missing `detach` in `signal`, and at whether `distill` compares like with like: a temperature, a softmax.
    """
    task, (x, _) = subject.task, subject.batch()
    output = subject.output(x)
    signal = task.signal(output)
    held = main_head(signal)
    assert not held.requires_grad, "signal has a gradient, so a teacher would learn from its pupil"
    same = task.distill(output, signal)
    assert same.shape == () and same.dtype == torch.float32 and same.isfinite(), f"distill gives {same}"
    assert same.requires_grad, "distill has no gradient"
    other = task.distill(_rows(output, list(range(len(x)))[::-1]), signal)
    assert same <= other + 1e-6, (
        f"distill is {same.item():.6g} against one's own signal, and {other.item():.6g} against another's"
    )


def check_figures(subject: Subject) -> None:
    """`summarise` gives exactly the declared metrics, as plain finite numbers, and `metric` is one of them.

    Look at `metrics`, `metric`, and at numbers that are still tensors.
    """
    task, (x, target) = subject.task, subject.batch("validation", None)
    sums = _scores(subject, x, target)
    assert all(type(value) is float for value in sums.values()), (
        f"scores are { ({k: type(v).__name__ for k, v in sums.items()}) }; allowed: float"
    )
    figures = task.summarise(sums)
    assert set(figures) == set(task.metrics), (
        f"metrics declares {', '.join(task.metrics)}; summarise gives {', '.join(figures)}"
    )
    assert task.metric in task.metrics, f"metric is {task.metric!r}; metrics declares {', '.join(task.metrics)}"
    assert all(type(value) is float and math.isfinite(value) for value in figures.values()), f"figures are {figures}"
    ways = set(task.metrics.values())
    assert ways <= {"higher", "lower"}, f"metrics has {', '.join(sorted(ways))}; allowed: higher, lower"


def _scores(subject: Subject, x: Tensor, target: Tensor) -> dict[str, float]:
    with torch.inference_mode():
        return subject.task.scores(subject.task.predict(subject.child, x), target)


def check_sums(subject: Subject) -> None:
    """`scores` add up: the figures of a batch are those of its parts' added scores.

    Look for a mean in `scores`; division belongs into `summarise`.
    """
    task, (x, target) = subject.task, subject.batch("validation", None)
    with torch.inference_mode():
        output = task.predict(subject.child, x)
        whole = task.scores(output, target)
        cut = max(1, len(x) // 3)
        added: dict[str, float] = {}
        for rows in (slice(cut), slice(cut, None)):
            if len(x[rows]):
                for name, value in task.scores(output[rows], target[rows]).items():
                    added[name] = added.get(name, 0.0) + value
    found, wanted = task.summarise(added), task.summarise(whole)
    for name, value in wanted.items():
        close = math.isclose(found[name], value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        assert close, f"{name} is {value:.7g} of the whole batch, {found[name]:.7g} of its parts' added scores"


def check_chance(subject: Subject) -> None:
    """`learnt` lies beyond `chance`, on the side where `metric` is better.

    Look at `chance`, the metric of what has learnt nothing, and at `learnt`, from where on a network clearly has.
    """
    task = subject.task
    better = task.learnt > task.chance if task.metrics[task.metric] == "higher" else task.learnt < task.chance
    way = task.metrics[task.metric]
    assert better, f"{task.metric} is better when {way}; chance is {task.chance:.4g} and learnt {task.learnt:.4g}"


def check_about(subject: Subject) -> None:
    """What a child keeps of its data is plain JSON, and a network can be built from `network`.

    Look at `about` and `network`: lists in place of arrays, numbers in place of numpy's.
    """
    about = dict(subject.task.about)
    assert json.loads(json.dumps(about)) == about, f"about is {about}, and something else after JSON"
    assert subject.net.input_shape[0] == subject.task.input_shape[0], (
        f"the network takes {subject.net.input_shape[0]} channels, the data have {subject.task.input_shape[0]}"
    )


def check_preprocess(subject: Subject) -> None:
    """What networks are judged on is what `preprocess` can make of pictures: grey levels divided by 255, of the sizes
    that it states.

    Look at inputs that were never rounded to uint8, and at another resizing than `preprocess` does.
    """
    task, (x, _) = subject.task, subject.batch("validation", None)
    if task.preprocess is None:
        return
    levels = (x * 255).round()
    assert torch.equal(levels / 255, x), "inputs are not whole grey levels / 255, as those of pictures are"
    side, channels = task.preprocess.side, task.preprocess.channels
    assert channels == x.shape[1], f"inputs have {x.shape[1]} channels, and preprocess gives {channels}"
    assert side is None or tuple(x.shape[2:]) == (side, side), (
        f"inputs are {tuple(x.shape[2:])}, and preprocess gives {(side, side)}"
    )


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_data,
    check_batch,
    check_held_out,
    check_seed,
    check_loss,
    check_mix,
    check_teacher,
    check_figures,
    check_sums,
    check_chance,
    check_about,
    check_preprocess,
)
