"""Data sets that are not there, or not right."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import nas.tasks.places as places
from nas.draws import permutation
from nas.tasks.classification import Classification
from nas.tasks.datasets import load_images
from nas.tasks.options import ClassificationOptions
from tests.tasks.given import given


def test_a_missing_data_set_is_told_with_the_ways_to_get_it(nowhere: Path) -> None:
    for name, parts in {
        "fashion-mnist": (
            "FashionMNIST/raw/train-images-idx3-ubyte",
            "apt-get install dataset-fashion-mnist",
            "torchvision.datasets.FashionMNIST",
        ),
        "cifar10": ("cifar-10-batches-py", "torchvision.datasets.CIFAR10"),
    }.items():
        with pytest.raises(FileNotFoundError) as error:
            load_images(ClassificationOptions(name=name, validation=10))  # type: ignore[arg-type]
        for part in (*parts, "RAYNAS_DATA", str(nowhere), str(Path("data").absolute()), ".cache/raynas"):
            assert part in str(error.value)


def idx(folder: Path, sizes: dict[str, int]) -> None:
    """Four files of Fashion-MNIST's form with random images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, size in sizes.items():
        images, labels = rng.integers(0, 256, (size, 28, 28), np.uint8), np.arange(size, dtype=np.uint8) % 10
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">iiii", 2051, size, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">ii", 2049, size) + labels.tobytes())


@pytest.mark.parametrize("place", ["data", "data/fashion-mnist", "data/FashionMNIST/raw", "here/data", "debian"])
def test_fashion_mnist_is_unpacked_once_into_the_cache(nowhere: Path, place: str) -> None:
    folder = nowhere.parent / place
    if folder == nowhere:
        nowhere.rmdir()
    idx(folder, {"train": 60, "t10k": 20})
    task = Classification(ClassificationOptions(name="fashion-mnist", validation=20), 0)
    assert (
        task.train.plain.shape == (60, 1, 28, 28)
        and len(task.train) == 40
        and len(task.test) == 20
        and task.classes[9] == "Ankle boot"
    )
    raw = nowhere.parent / "home/.cache/raynas/FashionMNIST/raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(places.FASHION_FILES)
    for file in folder.iterdir():
        file.unlink()
    assert torch.equal(load_images(task.train.settings).train_x, task.train.plain)


def test_a_damaged_fashion_mnist_is_told_and_leaves_nothing(nowhere: Path) -> None:
    idx(nowhere / "fashion-mnist", {"train": 60, "t10k": 20})
    file = nowhere / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte.gz is damaged"):
        load_images(ClassificationOptions(name="fashion-mnist", validation=10))
    assert not list((nowhere.parent / "home").rglob("*train-labels*"))


def test_cifar10_that_is_not_the_original_is_never_unpickled(nowhere: Path) -> None:
    folder = nowhere / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"cposix\nsystem\n(S'touch " + str(nowhere / "owned").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="not the original CIFAR-10"):
        load_images(ClassificationOptions(name="cifar10", validation=10))
    assert not (nowhere / "owned").exists()


def test_cifar10() -> None:
    given("cifar-10-batches-py")
    task = Classification(ClassificationOptions(name="cifar10", validation=5000, shift=4, flip=True), 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (45000, 5000, 10000)
    assert np.bincount(task.validation.batch(np.arange(5000))[1]).tolist() == [500] * 10
    assert task.network["mean"] == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
    assert task.network["std"] == pytest.approx([0.24703, 0.24349, 0.26159], abs=1e-5)
    assert task.classes[0] == "airplane" and task.train.batch(permutation(len(task.train), 0, "order")[:256], 0)[
        0
    ].shape == (256, 3, 32, 32)
