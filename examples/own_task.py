"""A task of your own: semantic segmentation of handwritten digits pasted on photographs.

In this folder:

    nas check own_task:Scenes --set space.name=own_task_space:segmenter
    nas run own_task.yaml

A task says what "good" means: the data in three parts, the loss, what a teacher tells, the figures. Here every pixel
has a class, so networks need a head that the built-in spaces have not: `own_task_space` brings one. An example is a
function of (seed, epoch, index), whoever loads it and in whatever batch, by the draws of `nas.draws`; so a resumed
run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from nas.draws import bits
from nas.preprocess import Preprocess
from nas.supernet import Output, Target, main_head
from nas.tasks.task import DataOptions, Task

SIDE = 32  # of a scene, pixels
DIGIT = 16  # of a digit in it
CLASSES = ("background", *"0123456789")
TEST_DIGITS = 297  # of scikit-learn's 1,797; neither training nor validation has one of them
TEST_SCENES = 200
PREPROCESS = Preprocess(3, SIDE)  # from pictures to inputs, here and beside an exported child


class ScenesOptions(DataOptions):
    """Keys of the experiment's section ``data``; ``name`` and ``validation`` are every task's."""

    train: PositiveInt = Field(default=1200, description="scenes of an epoch")
    digits: PositiveInt = Field(default=3, description="digits in a scene")


@dataclass(frozen=True)
class Pasted:
    """Scenes of digits on crops of photographs.

    Attributes:
        photos: uint8 ``(N, H, W, 3)``.
        digits, labels: images ``(M, 8, 8)`` with values in [0, 1], and what they show.
        count: how many scenes there are.
        pasted: digits in each.
        seed, part: of the draws.
    """

    photos: np.ndarray
    digits: np.ndarray
    labels: np.ndarray
    count: int
    pasted: int
    seed: int
    part: str
    at_once: int | None = None  # any number of examples can be stacked

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Pixels float32 ``(n, 3, SIDE, SIDE)`` in [0, 1], classes int64 ``(n, SIDE, SIDE)``; other ones each epoch."""
        scenes = [
            self._scene(int(bits(self.seed, f"scene {self.part}", (epoch or 0), int(index))[0])) for index in indices
        ]
        x, target = (torch.from_numpy(np.stack(parts)) for parts in zip(*scenes, strict=True))
        return PREPROCESS(x), target

    def _scene(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        photo = self.photos[rng.integers(len(self.photos))]
        top, left = (int(rng.integers(size - SIDE)) for size in photo.shape[:2])
        x = photo[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255
        target = np.zeros((SIDE, SIDE), np.int64)
        for _ in range(self.pasted):
            which, colour = int(rng.integers(len(self.digits))), rng.random(3, np.float32)
            ink = np.kron(self.digits[which], np.ones((DIGIT // 8, DIGIT // 8), np.float32))
            top, left = (int(place) for place in rng.integers(SIDE - DIGIT, size=2))
            window = np.s_[top : top + DIGIT, left : left + DIGIT]
            x[window] += ink[..., None] * (colour - x[window])
            target[window] = np.where(ink > 0.5, 1 + self.labels[which], target[window])
        return (x * 255).round().astype(np.uint8).transpose(2, 0, 1).copy(), target


class Scenes(Task):
    """Every pixel is background or belongs to a digit: cross-entropy, mean intersection over union, pixels right."""

    Options = ScenesOptions
    options: ScenesOptions
    metric = "mean_iou"
    metrics = {"mean_iou": "higher", "pixel_accuracy": "higher"}  # both in percent

    def __init__(self, options: ScenesOptions, seed: int) -> None:
        super().__init__(options, seed)
        digits, photos = load_digits(), np.stack(load_sample_images().images)
        images, labels = (digits.images / 16).astype(np.float32), digits.target
        held = (
            TEST_DIGITS + len(images) // 6
        )  # the digits of validation are held out of training, those of test out of both

        def scenes(rows: slice, count: int, seed: int, part: str) -> Pasted:
            return Pasted(photos, images[rows], labels[rows], count, options.digits, seed, part)

        self.train = scenes(slice(held, None), options.train, seed, "train")
        self.validation = scenes(slice(TEST_DIGITS, held), options.validation, seed, "validation")
        self.test = scenes(
            slice(TEST_DIGITS), TEST_SCENES, 0, "test"
        )  # whatever the seed: figures of two runs can be compared
        self.input_shape, self.least_side = (3, SIDE, SIDE), SIDE
        mean, std = (getattr(photos / 255, what)((0, 1, 2)).tolist() for what in ("mean", "std"))
        self.network = {"classes": len(CLASSES), "channels": 3, "mean": mean, "std": std, "image": SIDE}
        self.about, self.preprocess = {"classes": list(CLASSES)}, PREPROCESS
        _, target = self.validation.batch(np.arange(min(len(self.validation), 64)))
        self.chance = 100 * float((target == 0).float().mean()) / len(CLASSES)  # all background
        self.learnt = 1.5 * self.chance

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats, mean over the pixels. output: logits ``(n, classes, H, W)``; target: ``(n, H, W)``."""
        assert isinstance(target, Tensor)
        return F.cross_entropy(main_head(output).float(), target, label_smoothing=label_smoothing)

    def signal(self, output: Tensor | Output) -> Tensor:
        """A teacher's probabilities, float32 ``(n, classes, H, W)``, without gradient."""
        return main_head(output).detach().float().softmax(1)

    def distill(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """Cross-entropy against them, mean over the pixels."""
        return F.cross_entropy(main_head(output).float(), main_head(signal))

    def scores(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Sums, which add up over batches: for each class pixels in both and in either; pixels right and all."""
        found = output.argmax(1)
        sums = {"right": float((found == target).sum()), "pixels": float(target.numel())}
        for number, name in enumerate(CLASSES):
            said, true = found == number, target == number
            sums |= {f"{name} both": float((said & true).sum()), f"{name} either": float((said | true).sum())}
        return sums

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Percent, of added `scores`; a class that is nowhere has no part in the mean."""
        ious = [sums[f"{name} both"] / sums[f"{name} either"] for name in CLASSES if sums[f"{name} either"]]
        return {"mean_iou": 100 * sum(ious) / len(ious), "pixel_accuracy": 100 * sums["right"] / sums["pixels"]}

    def baselines(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What a child must beat: to call everything background."""
        first = torch.eye(len(CLASSES))[0].view(1, -1, 1, 1)
        return {"background": lambda x: first.to(x).expand(len(x), -1, *x.shape[-2:])}

    @property
    def usage(self) -> str:
        """What a child's card makes of its output: the class of every pixel."""
        return "print([[model.classes[pixel] for pixel in row] for row in output.argmax(1)[0]])"

    @property
    def judged(self) -> str:
        """How the figures of a child's card came about."""
        return "`output` is `(1, classes, height, width)`, logits of every pixel."
