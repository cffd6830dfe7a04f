"""Training images decoded a second, against the same transforms in a plain DataLoader over torchvision's ImageFolder.

    python -m tests.benchmarks.loading

2,000 JPEGs of 400 to 600 pixels, which it makes: crops of any area resized to 224, mirrored, RandAugment. Both sides in
turn, a few batches at a time, what they had ready at the beginning of a turn left out.

On two cores that other processes kept busy (load 5 to 10), median of 15 turns: with 0, 1 and 2 loaders 1.09, 1.06 and
0.91 times as many as the DataLoader, the last one within what such a machine makes of it: seven turns of the version
before had given 1.04, 0.81 and 1.17. Processor time an image, which others disturb less: 4.6 ms, 1.10 times as quick.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nas.tasks.classification import Classification
from nas.tasks.options import ClassificationOptions
from nas.training.feeds import Feed, make_feeds, prefetched

SIDE, CLASSES = 224, 10


def make(folder: Path, count: int) -> None:
    """Photographs of a kind: coarse colours with fine noise, 100 to 200 KB each; few to test on."""
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("test", CLASSES)):
        for i in range(number):
            width, height = (int(side) for side in rng.integers(400, 601, 2))
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height), 3)
            noise = rng.normal(0, 12, (height, width, 1))
            place = folder / part / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            picture = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(place / f"{i}.jpg", quality=90)


def feeds(folder: Path, batch: int) -> dict[str, Feed]:
    given = {"resized_crop": True, "flip": True, "rand_augment": True}
    options = ClassificationOptions(name="folder", path=str(folder), size=SIDE, validation=CLASSES, **given)
    recipe: Any = SimpleNamespace(feeds={"train": 1.0})
    return make_feeds(recipe, Classification(options, 0).train, batch, 0, 1, 0)


def ours(folder: Path, batch: int, loaders: int) -> Iterator[Any]:
    return prefetched(feeds(folder, batch), 0, loaders)


def theirs(folder: Path, batch: int, loaders: int) -> Iterator[Any]:
    transforms = [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.RandAugment(magnitude=27), v2.PILToTensor()]
    images = ImageFolder(str(folder / "train"), v2.Compose(transforms))
    loader = DataLoader(images, batch, shuffle=True, num_workers=loaders, drop_last=True)
    while True:
        yield from loader


def seconds(batches: Iterator[Any], turn: int, ready: int) -> tuple[float, float]:
    """Of a turn: by the clock, and of this process's processors."""
    for _ in range(ready):
        next(batches)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(turn):
        next(batches)
    return time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--batches", type=int, default=4)
    o = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        make(Path(made), o.images)
        for loaders in (0, 1, 2):
            ready = 2 * loaders + 1
            mine, plain = ours(Path(made), o.batch, loaders), theirs(Path(made), o.batch, loaders)
            with closing(mine), closing(plain):  # type: ignore[type-var]
                turns = [[seconds(each, o.batches, ready) for each in (mine, plain)] for _ in range(o.turns)]
            here, there = (o.batches * o.batch / median(turn[side][0] for turn in turns) for side in (0, 1))
            clock, processors = (median(plain[how] / own[how] for own, plain in turns) for how in (0, 1))
            own = f"; {processors:.2f} for the same time of processors" if loaders == 0 else ""
            print(f"{loaders} loaders: {here:.0f} images/s, DataLoader {there:.0f}; {clock:.2f} times as many{own}")


if __name__ == "__main__":
    main()
