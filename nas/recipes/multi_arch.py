"""Multi-architectural sampling: every step trains several random sub-networks, each on its share of the batch, in one
pass.

Liao, Karaman, Sze, "Searching for Efficient Multi-Stage Vision Transformers" (2021), section 3.2. Their choices are
drawn stratified, and open from the largest to the smallest over the first part of the training. Their code also sorts
channels now and then, which neither the paper nor a figure of theirs speaks of: left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nas.recipes.opening import opened
from nas.recipes.options import MultiArchOptions
from nas.recipes.recipe import Batch, Recipe, Run, Step, decayed, schedule
from nas.space import Arch, Choice, Number, Space
from nas.supernet import Pass, Supernet


class MultiArch(Recipe):
    """`archs` sub-networks a step, the same on all ranks; row i of the batch of all ranks runs number ``i % archs``.

    With one sub-network a step it is single-path sampling (Guo et al. 2020), which suits any family without quantizers
    (`single_path` has an option for these).

    Args:
        task: mixes images and labels, and gives the loss on both heads.
        options: the recipe section of an experiment.
    """

    Options = MultiArchOptions
    options: MultiArchOptions
    names = ("loss",)

    def losses(self, run: Run, net: Supernet, batches: Mapping[str, Batch], step: Step) -> Iterator[Tensor]:
        o = self.options
        archs = stratified_archs(net.space, o.archs, step.progress, step.rng, o.opening, o.existence)
        first = step.row % len(archs)
        archs = archs[first:] + archs[:first]
        x, target = self.task.mix(*batches["train"], net.aux_grid, step.generator)
        output = run(x, archs, Pass(dropout=o.dropout, drop_path=o.drop_path, generator=step.generator))
        yield self.task.loss(output, target, o.label_smoothing)

    def optimizer(self, net: Supernet) -> torch.optim.Optimizer:
        """AdamW; norms, biases and whatever else has one axis are not decayed, position embeddings are (section 4).

        Raises:
            ValueError: the family's examples of one sub-network influence each other.
        """
        if self.options.archs > 1 and net.mixes_examples:
            raise ValueError(
                f"recipe multi_arch with archs {self.options.archs}: this family has batch norm in its searched parts, "
                "whose statistics "
                "would be taken over the few examples of each sub-network; use the recipe sandwich, or archs: 1"
            )
        return torch.optim.AdamW(decayed(net, self.options.weight_decay), lr=self.options.lr)

    def lr(self, step: Step) -> float:
        """Linear from `first_lr` to `lr` over the warm-up, then a cosine to `final_lr`."""
        o = self.options
        warmup = o.warmup_epochs / o.epochs
        floor = o.first_lr if step.progress < warmup else o.final_lr
        return floor + (o.lr - floor) * schedule("cosine", step.progress, warmup)


def stratified_archs(
    space: Space, count: int, progress: float, rng: np.random.Generator, opening: float, existence: Sequence[int]
) -> list[Arch]:
    """`count` random architectures in which every open value of every choice is as frequent as any other, give or take
    one.

    Args:
        progress: how much of the training is done, in [0, 1].
        opening: over which share of it the values open, from the largest network's to the smallest's.
        existence: what a choice between 0 and 1 (does a block exist?) is drawn from, in the order in which it opens.
    """
    drawn: dict[str, list[Number]] = {}
    for choice in space.choices.values():
        values = _entries(choice, existence)
        drawn[choice.name] = stratified(values[: opened(len(values), progress, opening)], count, rng)
    return [space.arch({name: column[i] for name, column in drawn.items()}) for i in range(count)]


def stratified(values: Sequence[Number], count: int, rng: np.random.Generator) -> list[Number]:
    """Each value ``count // len(values)`` times, the rest different ones at random, in random order."""
    whole, rest = divmod(count, len(values))
    column = np.concatenate([np.tile(np.arange(len(values)), whole), rng.permutation(len(values))[:rest]])
    return [values[i] for i in rng.permutation(column)]


def _entries(choice: Choice, existence: Sequence[int]) -> Sequence[Number]:
    """What a choice is drawn from, the largest network's value first."""
    return existence if set(choice.values) == {0, 1} else choice.values[::-1]
