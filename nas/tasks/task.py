"""The contract that every task keeps: what the platform asks of data, losses and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nas.config.section import DataOptions as DataOptions
from nas.preprocess import Preprocess
from nas.supernet import Output, Target
from nas.tasks.pictures import Picture


class Examples(Protocol):
    """One of the three parts of the data.

    It may have a method ``levels`` as well, which gives what `batch` gives with inputs as uint8 grey levels, a quarter
    of the bytes to send and to keep; and a flag ``decodes``, that examples are decoded from files, which several
    processes shall do side by side: then it can be pickled.
    """

    @property
    def at_once(self) -> int | None:
        """The most examples in a batch, where they cannot all be stacked."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets; with an epoch augmented, as a function of (seed, epoch, index) alone."""


def compact(examples: Examples, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
    """A batch as it is sent and kept: inputs as grey levels where the examples have them. `pixels` undoes that."""
    found: tuple[Tensor, Tensor] = getattr(examples, "levels", examples.batch)(indices, epoch)
    return found


def pixels(x: Tensor) -> Tensor:
    """Inputs as networks take them: grey levels uint8 as float32 in [0, 1], all else as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


class Task:
    """What "good" means. A task subclasses it once and gives what raises `NotImplementedError` here.

    Args:
        options: the data section of an experiment.
        seed: of the experiment.

    Attributes:
        Options: the class of that section.
        metrics: what `summarise` gives, and whether higher or lower is better.
        metric: the one of them that counts where the experiment names none.
        input_shape: ``(C, H, W)`` that costs are stated for.
        any_size: networks take inputs of any height and width, not `input_shape` alone.
        least_side: of any input that it has, pixels.
        network: the options that a supernet needs to know of the data.
        about: plain values that an exported child keeps of its data.
        preprocess: what makes inputs of pictures, in training, in scoring and beside an exported child; None where
            inputs are no pictures.
        helpers: files that import torch alone and whose functions `usage` takes from an exported child's model.py.
        train, validation, test: the data. The search sees validation, exported children alone see test.
        chance: the metric, on validation, of what has learnt nothing.
        compares_distributions: networks give logits of classes, and `diverge` is there.
        learnt: the metric from which a network has clearly learnt something; one that was there and is back at chance
            has collapsed.
    """

    Options: ClassVar[type[DataOptions]] = DataOptions
    options: DataOptions
    metrics: Mapping[str, Literal["higher", "lower"]]
    metric: str
    input_shape: tuple[int, int, int]
    any_size: bool = False
    compares_distributions: bool = False
    least_side: int
    network: Mapping[str, object]
    about: Mapping[str, object]
    preprocess: Preprocess | None = None
    helpers: tuple[Path, ...] = ()
    train: Examples
    validation: Examples
    test: Examples
    chance: float
    learnt: float

    def __init__(self, options: DataOptions, seed: int) -> None:
        self.options, self.seed = options, seed

    def mix(self, x: Tensor, target: Tensor, grid: int, generator: torch.Generator) -> tuple[Tensor, Tensor | Target]:
        """A training batch as a recipe takes it: as it is, or examples mixed with one another.

        Args:
            grid: side of the grid that the network's auxiliary head predicts for; 0 where it has none.
        """
        return x, target

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0) -> Tensor:
        """The loss on targets, mean over the batch; fp32 whatever the precision."""
        raise NotImplementedError

    def signal(self, output: Tensor | Output) -> Tensor | Output:
        """What a teacher tells, without gradient."""
        raise NotImplementedError

    def distill(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """The loss against a teacher's signal, mean over the batch."""
        raise NotImplementedError

    def diverge(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """The loss against a teacher's signal as a divergence that is as hard on a student who is too sure as on one
        who is not sure enough, mean over the batch; where `compares_distributions`."""
        raise NotImplementedError

    def predict(self, child: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """How a child is applied to inputs that it is judged on."""
        return child(x)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Sums over a batch, which add up over batches."""
        raise NotImplementedError

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """The figures, of added `scores`."""
        raise NotImplementedError

    def best(self, sums: Mapping[str, float], left: int) -> dict[str, float]:
        """The best figures that added `scores` can still come to with so many more examples; without those that
        nothing bounds."""
        return {}

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What a child must beat without having learnt anything, by name; scored on test beside exported children."""
        return {}

    def pictures(self, child: nn.Module, device: torch.device) -> list[Picture]:
        """What an exported child does on some test examples, for people to look at."""
        return []

    @property
    def usage(self) -> str:
        """Lines of Python of an exported child's card, which make something of ``output``, what ``model`` gives for
        ``picture``."""
        return "print(output.shape)"

    @property
    def judged(self) -> str:
        """Markdown of that card: how the test figures came about, beside `usage`."""
        return ""
