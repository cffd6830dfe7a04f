"""What every recipe is: how a supernet learns in one step. The loop does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nas.config.section import RecipeOptions as RecipeOptions
from nas.space import Arch
from nas.supernet import Output, Pass, Soft, Supernet, Target

AVERAGE = "average/"  # names of kept tensors that begin so are the weights that children are cut from
Batch = tuple[Tensor, Tensor]  # inputs ``(n, C, H, W)`` and targets
Kept = Tensor | bool | int | float | str  # what a checkpoint can hold of a recipe


class Run(Protocol):
    """A pass through the engine, which all ranks make together; a bare `Supernet` is one as well."""

    def __call__(self, x: Tensor, archs: Arch | list[Arch] | Soft, how: Pass = Pass(), /) -> Tensor | Output: ...


class Teaching(Protocol):
    """What a recipe asks of a task; `nas.tasks.task.Task` tells more of each."""

    def mix(
        self, x: Tensor, target: Tensor, grid: int, generator: torch.Generator, /
    ) -> tuple[Tensor, Tensor | Target]: ...

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0, /) -> Tensor: ...

    def signal(self, output: Tensor | Output, /) -> Tensor | Output: ...

    def distill(self, output: Tensor | Output, signal: Tensor | Output, /) -> Tensor: ...

    @property
    def compares_distributions(self) -> bool: ...

    def diverge(self, output: Tensor | Output, signal: Tensor | Output, /) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """What a recipe knows of the step that it is in.

    Attributes:
        index, total: this optimizer step, from 0, and how many are planned.
        progress: how much of the training is done, in [0, 1]: by steps, or by time where a run is bounded in minutes.
        row: place of this pass's first example in the batch of all ranks.
        rng: for drawing architectures; the same on all ranks, from (seed, step).
        generator: for dropout and the like; this rank's own, from (seed, step, micro-step, rank).
        mean: averages a tensor over the ranks.
        seed: of the experiment, for draws of a recipe's own (see `nas.draws`).
    """

    index: int
    total: int
    progress: float
    row: int
    rng: np.random.Generator
    generator: torch.Generator
    mean: Callable[[Tensor], Tensor]
    seed: int


class Recipe:
    """How a supernet learns in one step. A recipe subclasses it once and gives what raises `NotImplementedError` here.

    Args:
        task: gives the losses and the teacher's signal.
        options: the recipe section of an experiment.

    Attributes:
        Options: the class of that section.
        teacher: a network in evaluation mode that takes the same images; the loop sets it where `taught_by` names one.
        feeds: the shares of the training data that it wants, by name.
        names: what each loss of a step is called, in the order they are yielded; of one name the sum is told.
        follows: whether `stepped` wants to see the weights after each step.
    """

    Options: ClassVar[type[RecipeOptions]] = RecipeOptions
    options: RecipeOptions
    feeds: Mapping[str, float] = {"train": 1.0}
    names: tuple[str, ...]
    follows: bool = False
    teacher: nn.Module | None = None

    def __init__(self, task: Teaching, options: RecipeOptions) -> None:
        self.task, self.options = task, options

    @property
    def taught_by(self) -> str | None:
        """Directory of an exported child that is the teacher; None: there is none."""
        return None

    @property
    def quant(self) -> str:
        """How its passes run a family that quantizes: ``"off"``, ``"noise"`` or ``"real"``. A recipe that does not
        override it has not thought of quantizers, and such a family is refused."""
        return "off"

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        """The losses of one step. The loop calls backward after each, so gradients are *summed*, and steps once at the
        end.

        Never yield inside a ``with``: the context would leak into the loop.

        Args:
            run: the pass through the engine, whose losses are yielded.
            net: the bare network, for its attributes and for what must not go through the engine.
            batches: this rank's examples, by the names of `feeds`.
        """
        raise NotImplementedError

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        """A torch optimizer over the network's parameters."""
        raise NotImplementedError

    def lr(self, step: Step) -> float:
        """The learning rate of this step, for every parameter group."""
        raise NotImplementedError

    def stepped(self, net: Supernet, step: Step) -> None:
        """Called after each step with the bare network, all of its weights in place; only where `follows` is true."""

    def figures(self, net: Supernet) -> dict[str, float]:
        """What else is worth following in a training, by name; looked at as often as the panel."""
        return {}

    def chosen(self, net: Supernet) -> dict[str, Arch]:
        """Children that the training itself prefers at this moment, by name, the same on all ranks; the panel judges
        them too."""
        return {}

    def state(self) -> dict[str, Kept]:
        """What must be kept besides the weights and the optimizer: tensors and plain values."""
        return {}

    def load(self, state: Mapping[str, Kept]) -> None:
        """Take back what `state` gave."""


def decayed(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and kernels with weight decay; norms and biases, which have one axis, without."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def clip_values(optimizer: torch.optim.Optimizer, most: float) -> None:
    """Clip every element of the gradient to [-`most`, `most`] before each step, once it is averaged over the ranks.

    Here and not by the engine, since an optimizer sees all of its gradient under every ZeRO stage, whole or in flat
    parts.
    """

    @torch.no_grad()
    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.clamp_(-most, most)

    optimizer.register_step_pre_hook(clip)


def schedule(kind: str, progress: float, warmup: float) -> float:
    """The share of the base learning rate at `progress` in [0, 1], after a linear warm-up over the first `warmup` of
    training.

    ``"cosine"`` falls to 0. ``"exponential"`` is BigNAS's decay with constant ending: it reaches 5 % after 65 % of what
    follows the warm-up and stays there (0.97 every 2.4 epochs does so in the 360 epochs of a public re-implementation),
    so that small children go on learning.
    """
    if progress < warmup:
        return progress / warmup
    after = (progress - warmup) / max(1 - warmup, 1e-9)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))
    return max(0.05 ** (after / 0.65), 0.05)
