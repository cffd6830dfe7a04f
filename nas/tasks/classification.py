"""Classification of images: what the search spaces of the BigNAS line are trained and judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from nas.draws import bits, stratified, uniform
from nas.supernet import Output, Target, main_head
from nas.tasks import augment, divergence, mixing
from nas.tasks.datasets import load_images
from nas.tasks.files import Files
from nas.tasks.options import ClassificationOptions
from nas.tasks.task import Task, pixels


@dataclass(frozen=True)
class Split:
    """Some examples of a data set.

    Attributes:
        plain: uint8 ``(C, side, side)`` each, of the whole set, as networks are judged on them; perhaps still on disk.
        varied: what augmentation starts from, uint8 ``(C, H, W)`` each; crops of any area come from the files' own
            pictures.
        y: int64 ``(N,)``.
        rows: int64, which of them are this split.
        side: what `batch` gives, pixels square.
        settings: how examples are augmented.
        seed: of the augmentation.
    """

    plain: Tensor | Files
    varied: Tensor | Files
    y: Tensor
    rows: np.ndarray
    side: int
    settings: ClassificationOptions
    seed: int
    at_once: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def decodes(self) -> bool:
        """Whether examples are decoded from files."""
        return not isinstance(self.varied, Tensor)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Examples of this split: x float32 ``(n, C, side, side)`` in [0, 1], y int64 ``(n,)``.

        With an epoch each image is augmented; how depends on (seed, epoch, its index) alone, not on the batch. Without
        one it is what `nas.preprocess.Preprocess` makes of the picture.
        """
        x, y = self.levels(indices, epoch)
        return pixels(x), y

    def levels(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """The same with x as uint8, 0 to 255."""
        rows = torch.from_numpy(self.rows[indices])
        x = torch.stack(list(self.plain[rows])) if epoch is None else self._augment(rows, np.asarray(indices), epoch)
        return x, self.y[rows]

    def _augment(self, rows: Tensor, indices: np.ndarray, epoch: int) -> Tensor:
        """uint8 ``(n, C, side, side)``: cropped, mirrored, by RandAugment, a part erased, as the settings say."""

        def draw(purpose: str) -> Tensor:
            return torch.from_numpy(uniform(self.seed, purpose, epoch, indices))

        images: Iterable[Image.Image]
        if self.settings.resized_crop:
            places = uniform(self.seed, "crop", epoch, indices[:, None], np.arange(augment.CROP_DRAWS))
            mirrored = (draw("flip") < 0.5).tolist() if self.settings.flip else [False] * len(rows)
            images = map(self._cropped, rows.tolist(), places, mirrored)
        else:
            x = self._shifted(torch.stack(list(self.varied[rows])), draw)
            images = map(augment.image_of, x)
        if self.settings.rand_augment:
            images = map(augment.rand_augment, images, bits(self.seed, "rand_augment", epoch, indices))
        if self.settings.resized_crop or self.settings.rand_augment:
            x = augment.tensor_of(images)
        if self.settings.erase:
            chosen = (draw("erase") < self.settings.erase).nonzero().flatten()
            x[chosen] = augment.erased(x[chosen], bits(self.seed, "erased", epoch, indices[chosen.numpy()]))
        return x

    def _cropped(self, row: int, draws: np.ndarray, mirrored: bool) -> Image.Image:
        """A crop of any area, out of the whole picture."""
        if isinstance(self.varied, Tensor):
            crop = augment.resized_crop(self.varied[row], self.side, draws)
        else:
            with self.varied.opened(row) as image:
                crop = augment.crop_of(image, self.side, draws)
        return ImageOps.mirror(crop) if mirrored else crop

    def _shifted(self, x: Tensor, draw: Callable[[str], Tensor]) -> Tensor:
        """Padded with black, cropped at a random place, mirrored."""
        pad, along = self.settings.shift, torch.arange(self.side)
        tops, lefts = (
            (draw(purpose) * (size + 2 * pad - self.side + 1)).long()
            for purpose, size in zip(("top", "left"), x.shape[-2:], strict=True)
        )
        rows, columns = tops[:, None] + along, lefts[:, None] + along
        if self.settings.flip:
            columns = torch.where(draw("flip")[:, None] < 0.5, columns.flip(1), columns)
        which, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
        return F.pad(x, (pad, pad, pad, pad))[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Classification(Task):
    """Images of a few classes: data, losses, teacher's signal, metric.

    The validation part, which the search sees, is held out of the training part; the test part is the data set's own.

    Attributes:
        classes: a name for each label.
        input_shape: ``(C, H, W)`` of one example.
        network: the options that a supernet needs to know of the data.
        train, validation, test: the examples.
        chance: accuracy of guessing, percent; learnt: half as much again.

    Raises:
        FileNotFoundError, ValueError: as `load_images`; or `data.validation` leaves nothing to train on.
    """

    Options = ClassificationOptions
    options: ClassificationOptions
    metric = "accuracy"
    metrics = {"accuracy": "higher", "cross_entropy": "lower"}
    compares_distributions = True

    def __init__(self, options: ClassificationOptions, seed: int) -> None:
        super().__init__(options, seed)
        images = load_images(options)
        held, every = (
            stratified(images.train_y.numpy(), options.validation, seed, "validation"),
            np.arange(len(images.train_y)),
        )
        self.classes, self.preprocess = images.classes, images.preprocess
        side = images.preprocess.side
        assert side is not None  # pictures of a data set come in one size
        self.input_shape = (images.preprocess.channels, side, side)
        self.network = {
            "classes": len(images.classes),
            "channels": self.input_shape[0],
            "mean": images.mean,
            "std": images.std,
            "image": side,
        }

        def split(rows: np.ndarray) -> Split:
            return Split(images.train_x, images.varied_x, images.train_y, rows, side, options, seed)

        self.train, self.validation = split(np.setdiff1d(every, held)), split(held)
        test = np.arange(len(images.test_y))
        self.test = Split(images.test_x, images.test_x, images.test_y, test, side, options, seed)
        self.least_side = side
        self.chance = 100 / len(images.classes)
        self.learnt = 1.5 * self.chance
        self.about = {"classes": list(images.classes), **options.place}

    def mix(self, x: Tensor, y: Tensor, grid: int, generator: torch.Generator) -> tuple[Tensor, Tensor | Target]:
        """A training batch as a recipe takes it: mixed (see `nas.tasks.mixing`) where the experiment says so, else as
        it is.

        Args:
            grid: side of the grid that the network's auxiliary head predicts for; 0 where it has none.
        """
        return mixing.mix(x, y, len(self.classes), grid, generator) if self.options.mix else (x, y)

    def loss(self, output: Tensor | Output, target: Tensor | Target, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats, mean over the batch, plus that of an auxiliary head. output: logits ``(n,
        classes)``; target: as `mix` gives it."""
        with _full_precision(output):
            return mixing.loss(output, target, label_smoothing)

    def signal(self, output: Tensor | Output) -> Tensor | Output:
        """What a teacher tells: its probabilities, float32 ``(n, classes)``, and those of its auxiliary head;
        without gradient."""
        with _full_precision(output):
            return mixing.signal(output)

    def distill(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """In-place distillation (BigNAS): cross-entropy against the teacher's probabilities at temperature 1, nats,
        mean over the batch."""
        with _full_precision(output):
            return mixing.distill(output, signal)

    def diverge(self, output: Tensor | Output, signal: Tensor | Output) -> Tensor:
        """The adaptive alpha-divergence (AlphaNet) of the teacher's probabilities and the network's, nats, mean over
        the batch; see `nas.tasks.divergence`."""
        with _full_precision(output):
            return divergence.adaptive(output, signal)

    def scores(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Sums over a batch of a child's logits, which add up over batches: ``examples``, ``correct``, ``nats``."""
        with torch.no_grad(), _full_precision(output):
            nats = F.cross_entropy(output.float(), target, reduction="sum")
            return {
                "examples": float(len(target)),
                "correct": float((output.argmax(-1) == target).sum()),
                "nats": float(nats),
            }

    @property
    def usage(self) -> str:
        """The most probable class."""
        return 'print(model.classes[output.argmax()], f"{output.softmax(1).max():.0%}")'

    @property
    def judged(self) -> str:
        """What the figures are."""
        return (
            "`output` is a row of logits, one a class, in the order of `model.classes`. `accuracy` is the percentage\n"
            "of test pictures whose largest logit is that of their class, `cross_entropy` the mean of -log softmax of\n"
            "the right one, in nats."
        )

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Percent right and mean cross-entropy in nats, of added `scores`."""
        return {"accuracy": 100 * sums["correct"] / sums["examples"], "cross_entropy": sums["nats"] / sums["examples"]}

    def best(self, sums: Mapping[str, float], left: int) -> dict[str, float]:
        """All that is left right, each with probability 1."""
        examples = sums["examples"] + left
        return {"accuracy": 100 * (sums["correct"] + left) / examples, "cross_entropy": sums["nats"] / examples}


def _full_precision(output: Tensor | Output) -> torch.autocast:
    """Autocast switched off: exponentials and sums of bf16 logits lose what the children differ by."""
    return torch.autocast(main_head(output).device.type, enabled=False)
