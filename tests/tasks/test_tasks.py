"""Tasks: data sets found or missed with a useful message, splits, augmentation as a pure function, losses."""

from __future__ import annotations

import gzip
import os
import struct
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

import nas.tasks.datasets as datasets
import nas.tasks.files as files
import nas.tasks.places as places
from nas.build import load_task
from nas.config.experiment import load_experiment
from nas.draws import _mix, bits, permutation, stratified, uniform
from nas.preprocess import Preprocess
from nas.tasks.augment import (
    CROP_DRAWS,
    OPERATIONS,
    crop_of,
    crop_place,
    erased,
    rand_augment,
    resized_crop,
    tensor_of,
)
from nas.tasks.classification import Classification, Split
from nas.tasks.datasets import TEXTURES, load_images
from nas.tasks.index import Index
from nas.tasks.options import ClassificationOptions
from nas.tasks.places import DataMissing

DIGITS = ClassificationOptions(name="digits", validation=300, shift=1)


@pytest.fixture(scope="module")
def digits() -> Classification:
    return Classification(DIGITS, seed=0)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: RAYNAS_DATA, home, the current folder and Debian's folder are empty. Gives
    RAYNAS_DATA's folder."""
    for name in ("data", "home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RAYNAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(places, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def given(name: str) -> Path:
    """The folder of that name in one of RAYNAS_DATA's; without it the test is skipped."""
    for root in os.environ.get("RAYNAS_DATA", "").split(os.pathsep):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    pytest.skip(f"no {name} under RAYNAS_DATA")


# --- draws


def test_draws_keep_their_values() -> None:
    """A change here changes every run's data order: golden, and splitmix64's published first output for seed 0."""
    assert int(_mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert int(bits(0, "order", 0, 0)[0]) == 1581373162068164290
    assert permutation(8, 0, "order", 3).tolist() == [4, 6, 1, 5, 3, 7, 0, 2]


def test_draws_are_uniform_and_unrelated() -> None:
    n = 100_000
    u = uniform(3, "top", 5, np.arange(n))
    assert u.min() >= 0 and u.max() < 1
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 120  # chi-square, 63 degrees of freedom: 99.999 % is 124
    for other in (
        uniform(4, "top", 5, np.arange(n)),
        uniform(3, "left", 5, np.arange(n)),
        uniform(3, "top", 6, np.arange(n)),
        np.roll(u, 1),
    ):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.015
    assert bits(2**70 + 1, "top", 1).dtype == np.uint64  # any whole number is a seed


def test_permutation_is_one() -> None:
    assert sorted(permutation(1000, 1, "order", 2)) == list(range(1000))
    assert not np.array_equal(permutation(1000, 1, "order", 2), permutation(1000, 1, "order", 3))


def test_stratified_keeps_the_shares_of_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified(labels, 101, 0, "validation")
    assert len(chosen) == len(set(chosen)) == 101
    assert np.abs(np.bincount(labels[chosen]) - [60.6, 30.3, 10.1]).max() < 1
    with pytest.raises(ValueError, match="hold fewer out"):
        stratified(labels, 1000, 0, "validation")


# --- splits and batches


def test_the_three_parts_of_textures() -> None:
    """As many of each photograph in every part, each patch out of its own; no block is trained on and tested on."""
    task = Classification(ClassificationOptions(name="textures", validation=1500), seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (4260, 1500, 2720)
    assert task.input_shape == (1, 8, 8) and task.classes[:2] == ("astronaut", "brick") and task.chance == 10
    assert not set(task.train.rows) & set(task.validation.rows)
    images = load_images(task.options)
    for number, name in enumerate(TEXTURES):
        with Image.open(places.wheel() / name) as image:
            grey = np.asarray(image.convert("L").reduce(2))
        rows, columns = (range(0, side // 32 * 32, 8) for side in grey.shape)
        corners = [(top, left) for top in rows for left in columns]
        found = [grey[top : top + 8, left : left + 8].tobytes() for top, left in corners]
        once = {patch for patch, count in Counter(found).items() if count == 1}  # black sky is alike everywhere
        block = {patch: (top // 32, left // 32) for patch, (top, left) in zip(found, corners, strict=True)}
        parts = [
            [patch.numpy().tobytes() for patch in x[y == number]]
            for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y))
        ]
        assert [len(part) for part in parts] == [576, 272] and all(patch in block for part in parts for patch in part)
        train, test = ({block[patch] for patch in part if patch in once} for part in parts)
        assert len(train) > 20 and len(test) > 10 and not train & test, f"{name}: trained and tested on one block"


def test_the_three_parts_of_digits(digits: Classification) -> None:
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1200, 300, 297)
    assert digits.input_shape == (1, 8, 8) and digits.chance == 10 and digits.classes == tuple("0123456789")
    assert not set(digits.train.rows) & set(digits.validation.rows)
    for split in (digits.train, digits.validation, digits.test):
        share = np.bincount(split.batch(np.arange(len(split)))[1]) / len(split)
        assert np.abs(share - 0.1).max() < 0.01
    other = Classification(DIGITS, seed=1)
    assert not np.array_equal(other.validation.rows, digits.validation.rows)
    assert torch.equal(other.test.plain, digits.test.plain)  # the test part does not depend on the seed


def test_digits_are_scikit_learns() -> None:
    """Read from its file, in its order; train and test together are all of them."""
    from sklearn.datasets import load_digits

    found, images = load_digits(), load_images(load_experiment("bignas-digits", []).data)
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    ours = Counter(
        (int(y), x.numpy().tobytes())
        for xs, ys in ((images.train_x, images.train_y), (images.test_x, images.test_y))
        for x, y in zip(xs, ys, strict=True)
    )
    assert ours == Counter((int(y), x.tobytes()) for x, y in zip(grey, found.target, strict=True))


def test_digits_that_scikit_learn_has_not_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before torch is imported, and by whoever reads them."""
    settings = load_experiment("bignas-digits", []).data
    assert settings.locate() == places.digits_file()
    monkeypatch.setattr(places, "wheel", lambda *where: tmp_path)
    for look in (settings.locate, lambda: load_images(settings)):
        with pytest.raises(DataMissing, match=f"(?s)digits.csv.gz was not found.*{tmp_path}.*pip install"):
            look()


def test_no_image_is_in_train_and_test(digits: Classification) -> None:
    parts = [torch.unique(s.plain[s.rows].flatten(1), dim=0) for s in (digits.train, digits.validation, digits.test)]
    assert len(torch.unique(torch.cat(parts), dim=0)) == sum(map(len, parts)) == 1797


def test_batches_are_plain_without_an_epoch(digits: Classification) -> None:
    x, y = digits.train.batch(np.array([3, 3, 7]))
    assert x.dtype == torch.float32 and x.shape == (3, 1, 8, 8) and y.dtype == torch.int64 and y.shape == (3,)
    assert torch.equal(x[0], x[1]) and torch.equal(x[2], digits.train.plain[digits.train.rows[7]].float() / 255)
    assert x.min() == 0 and x.max() == 1


def test_the_network_is_told_the_data(digits: Classification) -> None:
    x = digits.train.plain.double() / 255
    assert digits.network["classes"] == 10 and digits.network["channels"] == 1 and digits.network["image"] == 8
    assert digits.network["mean"] == pytest.approx([x.mean().item()]) and digits.network["std"] == pytest.approx(
        [x.std(correction=0).item()]
    )
    assert all(type(v) is float for v in digits.network["mean"] + digits.network["std"])


def split(
    images: int = 40, height: int = 8, width: int = 8, side: int = 8, channels: int = 3, **settings: object
) -> Split:
    x = torch.randint(
        1, 256, (images, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    every = ClassificationOptions.model_validate({"name": "digits", "validation": 1} | settings)
    return Split(Preprocess(channels, side).levels(x), x, torch.arange(images), np.arange(images), side, every, seed=5)


@pytest.mark.parametrize("settings", [{"shift": 2}, {"flip": True}, {"shift": 1, "flip": True, "rand_augment": True}])
def test_augmentation_depends_on_seed_epoch_and_index_alone(settings: dict[str, Any]) -> None:
    some = split(**settings)
    whole, labels = some.batch(np.arange(40), 3)
    mixed = np.array([17, 4, 4, 39, 0])
    torch.manual_seed(123)
    x, y = some.batch(mixed, 3)
    assert torch.equal(x, whole[mixed]) and torch.equal(y, labels[mixed])
    assert torch.equal(torch.cat([some.batch(np.array([i]), 3)[0] for i in range(40)]), whole)
    assert torch.equal(split(**settings).batch(np.arange(40), 3)[0], whole)
    assert not torch.equal(some.batch(np.arange(40), 4)[0], whole)
    assert not torch.equal(
        Split(some.plain, some.varied, some.y, some.rows, 8, some.settings, seed=6).batch(np.arange(40), 3)[0], whole
    )


@pytest.mark.parametrize("augmented", [False, True])
def test_augmentation_leaves_the_global_generators_alone(augmented: bool) -> None:
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    split(shift=1, flip=True, rand_augment=augmented).batch(np.arange(10), 0)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(
        np.random.get_state(legacy=False)["state"]["key"], numpy_before
    )


def test_crops_and_mirrors_are_all_and_only_the_possible_ones() -> None:
    """Against a loop: every augmented image is one of the (2 pad + 1)^2 windows, mirrored or not, and all of them
    occur."""
    some, seen = split(images=20, shift=1, flip=True), set()
    padded = F.pad(some.varied, (1, 1, 1, 1)).float() / 255
    for epoch in range(30):
        x, _ = some.batch(np.arange(20), epoch)
        for i in range(20):
            windows = {
                (t, s, f): padded[i, :, t : t + 8, s : s + 8] for t in range(3) for s in range(3) for f in (False, True)
            }
            hits = [k for k, w in windows.items() if torch.equal(x[i], w.flip(-1) if k[2] else w)]
            assert len(hits) == 1
            seen.add(hits[0])
    assert len(seen) == 18


def test_larger_images_are_cropped_at_random_to_train() -> None:
    some = split(height=9, width=11, side=8)
    x, _ = some.batch(np.arange(40), 0)
    assert x.shape == (40, 3, 8, 8) and (x > 0).all()  # no padding asked for, so none is seen


def test_rand_augment_works_in_grey_and_does_something() -> None:
    some = split(channels=1, rand_augment=True)
    x, _ = some.batch(np.arange(40), 0)
    assert x.shape == (40, 1, 8, 8) and not torch.equal(x, some.batch(np.arange(40))[0])


def test_rand_augment_draws_from_nothing_that_others_draw_from() -> None:
    """A thread prepares batches while the main one builds networks; and magnitude 9 of 10 turns an image by 27
    degrees, not by 9."""
    some = split(channels=3, rand_augment=True)
    state = torch.get_rng_state()
    x = some.batch(np.arange(40), 0)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(some.batch(np.arange(40), 0)[0], x)


def test_rand_augment_has_the_operations_of_torchvision() -> None:
    """All that torchvision's makes of a picture by one operation at magnitude 27 of 30, and nothing else."""
    picture = v2.functional.to_pil_image(split(images=1, height=24, width=24, side=24).varied[0])
    theirs = v2.RandAugment(num_ops=1, magnitude=27)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = {np.asarray(theirs(picture)).tobytes() for _ in range(400)}
    ours = {np.asarray(operation(picture, m)).tobytes() for operation in OPERATIONS for m in (-0.9, 0.9)}
    assert len(ours) > 20 and ours == wanted
    twice = {
        np.asarray(second(first(picture, m), n)).tobytes()
        for first in OPERATIONS
        for second in OPERATIONS
        for m in (-0.9, 0.9)
        for n in (-0.9, 0.9)
    }
    found = {np.asarray(rand_augment(picture, seed)).tobytes() for seed in bits(0, "some", np.arange(40))}
    assert found <= twice and len(found) > 30


def test_grey_images_of_16_bits_keep_their_range(nowhere: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(nowhere / "deep.png")
    read = files.Files([str(nowhere / name) for name in ("deep.png", "float.tiff")], Preprocess(3))
    assert torch.equal(read[torch.tensor([0])][0][1], torch.from_numpy((deep >> 8).astype(np.uint8)))
    with read.opened(0) as image:
        assert (np.asarray(crop_of(image, 1, np.full(CROP_DRAWS, 0.5))) == 128).all()
    Image.fromarray(deep.astype(np.float32)).save(nowhere / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff: pixels of mode F have no range"):
        read[torch.tensor([1])]


# --- losses


def test_losses_against_their_formulas(digits: Classification) -> None:
    torch.manual_seed(0)
    output, target, teacher = (
        torch.randn(6, 10, requires_grad=True),
        torch.arange(6),
        torch.randn(6, 10, requires_grad=True),
    )
    log_q = output.log_softmax(-1)
    assert torch.allclose(digits.loss(output, target), -log_q[range(6), target].mean())
    smooth = 0.9 * F.one_hot(target, 10) + 0.01
    assert torch.allclose(digits.loss(output, target, 0.1), -(smooth * log_q).sum(-1).mean())
    signal = digits.signal(teacher)
    assert not signal.requires_grad and torch.allclose(signal.sum(-1), torch.ones(6))
    assert torch.allclose(digits.distill(output, signal), -(signal * log_q).sum(-1).mean())
    digits.distill(output, signal).backward()
    assert output.grad is not None and torch.allclose(
        output.grad, (output.softmax(-1) - signal).detach() / 6, atol=1e-6
    )


def test_losses_are_fp32_under_autocast(digits: Classification) -> None:
    output, target = torch.randn(4, 10).bfloat16(), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        made = digits.loss(output, target), digits.signal(output), digits.distill(output, digits.signal(output))
    assert all(t.dtype == torch.float32 for t in made)
    assert torch.equal(made[0], F.cross_entropy(output.float(), target))


def test_scores_add_up(digits: Classification) -> None:
    output, target = torch.randn(9, 10), torch.arange(9)
    parts = [digits.scores(output[a:b], target[a:b]) for a, b in ((0, 4), (4, 9))]
    whole = digits.summarise({k: parts[0][k] + parts[1][k] for k in parts[0]})
    assert whole == pytest.approx(digits.summarise(digits.scores(output, target)))
    assert whole["accuracy"] == pytest.approx(100 * (output.argmax(-1) == target).float().mean())
    assert whole["cross_entropy"] == pytest.approx(F.cross_entropy(output, target).item())
    assert set(whole) >= {digits.metric} and digits.metrics == {"accuracy": "higher", "cross_entropy": "lower"}


# --- data sets that are not there, or not right


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


# --- folders


def pictures(folder: Path, classes: dict[str, int], kind: str = "jpg") -> None:
    """Small images, odd in size and mode, brighter by class."""
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            mode = ("RGB", "L", "P" if kind == "png" else "CMYK")[i % 3]
            Image.new("L", (20 + 3 * i, 31 - i), 40 * (label + 1)).convert(mode).save(folder / name / f"{i}.{kind}")


def folder_settings(path: object, **changes: object) -> ClassificationOptions:
    return ClassificationOptions.model_validate(
        {"name": "folder", "path": str(path), "size": 14, "validation": 4} | changes
    )


@pytest.mark.parametrize(("kind", "test"), [("jpg", "val"), ("png", "test")])
def test_a_folder_of_images(nowhere: Path, kind: str, test: str) -> None:
    pictures(nowhere / "mine" / "train", {"ant": 6, "bee": 8, "cat": 6}, kind)
    pictures(nowhere / "mine" / test, {"ant": 2, "bee": 1}, kind)
    (nowhere / "mine" / "train" / ".hidden").mkdir()
    (nowhere / "mine" / "train" / "ant" / "notes.txt").write_text("not an image")
    task = Classification(folder_settings("mine"), 0)  # found under RAYNAS_DATA
    assert task.classes == ("ant", "bee", "cat") and task.input_shape == (3, 14, 14) and len(task.train.plain) == 20
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 3)
    for which in (task.train, task.validation, task.test):
        x, y = which.batch(np.arange(len(which)))
        assert x.shape[1:] == (3, 14, 14)
        assert torch.allclose(x.mean((1, 2, 3)) * 255, 40.0 * (y + 1), atol=3)
    assert torch.equal(task.test.y, torch.tensor([0, 0, 1]))


def test_what_is_kept_is_what_would_be_decoded(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 9), ("test", 3)):
        pictures(nowhere / "mine" / part, {"ant": count, "bee": count})
    settings = folder_settings("mine", shift=1, flip=True)
    here = Classification(settings, 0)
    monkeypatch.setattr(datasets, "MOST_BYTES", 3 * 16 * 16 * 2)  # for two squares
    there = Classification(settings, 0)
    assert here.network == there.network
    for epoch in (None, 3, 3):  # what was kept is given again
        pairs = zip(
            here.train.batch(np.array([5, 0, 7]), epoch), there.train.batch(np.array([5, 0, 7]), epoch), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    (nowhere / "mine" / "test" / "ant" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*ant/1\.jpg"):
        there.test.batch(np.arange(6))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 140), (30, 200), (200, 30)])
def test_crops_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    """In distribution, the middle included where ten draws have not fitted; and all lie within the picture."""
    ours = np.array([crop_place(height, width, draws) for draws in np.random.default_rng(0).random((4000, CROP_DRAWS))])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture, law = torch.empty(3, height, width), v2.RandomResizedCrop(8)
        drawn = [law.make_params([picture]) for _ in range(4000)]
    theirs = np.array([[place[key] for key in ("top", "left", "height", "width")] for place in drawn])
    assert (ours >= 0).all() and (ours[:, 2:] > 0).all() and (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    for quantile in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        apart = np.abs(np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0))
        assert (apart <= 0.05 * max(height, width)).all(), quantile


def test_a_crop_of_a_ramp_keeps_its_slope() -> None:
    ramp = torch.arange(0, 256, 2, dtype=torch.uint8)
    x = torch.stack((ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.zeros(128, 128, dtype=torch.uint8)))
    for draws in np.random.default_rng(0).random((50, CROP_DRAWS)):
        top, left, tall, wide = crop_place(128, 128, draws)
        crop = v2.functional.pil_to_tensor(resized_crop(x, 64, draws)).float() / 2
        for channel, (first, length) in enumerate(((left, wide), (top, tall))):
            line = crop[0, 32] if channel == 0 else crop[1, :, 32]
            wanted = first + (torch.arange(64) + 0.5) * length / 64 - 0.5
            assert (line - wanted)[4:-4].abs().max() < 1
    whole = resized_crop(x[None, 0], 128, np.array([*[0.9999999] * 10, *[0.5] * 10, 0, 0]))
    assert torch.equal(tensor_of([whole])[0], x[None, 0])


def jpeg(size: tuple[int, int], turned: int = 1) -> Image.Image:
    """A smooth picture as a file of it is opened, whose left is dark, and turned by EXIF."""
    across = np.linspace(0, 255, size[0])[None, :, None].repeat(size[1], 0).repeat(3, 2)
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(across.astype(np.uint8)).save(file, "JPEG", quality=95, exif=exif)
    file.seek(0)
    return Image.open(file)


@pytest.mark.parametrize(("share", "less"), [(0.9999999, 8), (0.4, 4), (0.05, 2), (0.0, 1)])
def test_a_jpeg_is_decoded_as_small_as_the_crop_allows(share: float, less: int) -> None:
    """Never smaller than what is asked for; and it shows what the crop of the whole one shows."""
    side = {0.9999999: 100, 0.4: 100, 0.05: 100, 0.0: 200}[share]
    draws = np.array([*[share] * 10, *[0.5] * 10, 0.5, 0.9])
    image = jpeg((1200, 900))
    found = tensor_of([crop_of(image, side, draws)])[0].float()
    assert image.size == (1200 // less, -(-900 // less))
    whole = tensor_of([resized_crop(v2.functional.pil_to_tensor(jpeg((1200, 900))), side, draws)])[0].float()
    assert found.shape == (3, side, side) and (found - whole).abs().max() < 4


def test_a_turned_jpeg_is_cropped_upright() -> None:
    draws = np.array([*[0.2] * 10, *[0.5] * 10, 0.9, 0.1])
    upright = Preprocess(3).levels(jpeg((640, 480), turned=6))[0]
    assert upright.shape == (3, 640, 480)
    found = crop_of(jpeg((640, 480), turned=6), 60, draws)
    one, other = tensor_of([found, resized_crop(upright, 60, draws)]).float()
    assert (one - other).abs().max() < 4


def test_crops_are_of_the_original_picture(nowhere: Path) -> None:
    """What lies outside the centre square is seen in training, in the detail that the file has."""
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (nowhere / "mine" / part / name).mkdir(parents=True)
            picture = np.full((40, 120, 3), 60, np.uint8)
            picture[:, :20] = 255  # far left of the centre square
            picture[::2, 100:] = 0  # stripes that a smaller picture would not have
            for i in range(2):
                Image.fromarray(picture).save(nowhere / "mine" / part / name / f"{i}.png")
    settings = folder_settings("mine", resized_crop=True, validation=2, size=40)
    task = Classification(settings, 0)
    assert task.validation.batch(np.array([0]))[0].max() < 0.5
    crops = torch.cat([task.train.batch(np.array([0]), epoch)[0] for epoch in range(40)])
    assert (crops.amax((1, 2, 3)) == 1).any() and (crops.amin((1, 2, 3)) < 0.05).any()


def test_a_rectangle_is_erased() -> None:
    x = torch.full((200, 1, 32, 32), 100, dtype=torch.uint8)
    before, out = x.clone(), erased(x, np.arange(200))
    assert torch.equal(x, before) and torch.equal(out, erased(x, np.arange(200)))
    changed = (out != 100)[:, 0]
    share = changed.float().mean((1, 2))
    assert 0.01 < share.min() < 0.05 and 0.25 < share.max() < 0.36
    for image, here in zip(out[:20, 0], changed[:20], strict=True):
        rows, columns = here.any(1).nonzero().flatten(), here.any(0).nonzero().flatten()
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box != 100).float().mean() > 0.9 and len(box.unique()) > len(box.flatten()) / 12, (
            "random pixels within, nothing outside"
        )


def test_erasing_and_cropping_go_by_the_settings() -> None:
    settings = ClassificationOptions(name="digits", validation=300, resized_crop=True, erase=0.5, flip=True)
    task = Classification(settings, 0)
    rows = np.arange(64)
    once, again, later = (task.train.batch(rows, epoch)[0] for epoch in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, later)
    assert torch.equal(once[5:9], task.train.batch(rows[5:9], 0)[0]), "whatever the batch"
    with pytest.raises(ValueError, match="two ways to crop"):
        ClassificationOptions(name="digits", validation=300, resized_crop=True, shift=1)


def test_broken_folders_are_told(nowhere: Path) -> None:
    with pytest.raises(DataMissing) as error:
        load_images(folder_settings("mine"))
    assert (
        "train/<class>" in str(error.value)
        and str(nowhere / "mine") in str(error.value)
        and "RAYNAS_DATA" in str(error.value)
    )
    base = nowhere / "mine"
    (base / "val").mkdir(parents=True)
    (base / "train").mkdir()
    with pytest.raises(ValueError, match="holds no folders"):
        load_images(folder_settings(base))
    pictures(base / "train" / "..", {"train/ant": 6, "train/bee": 6, "val/dog": 1})
    with pytest.raises(ValueError, match="val has classes that .*train has not: dog"):
        load_images(folder_settings(base))
    (base / "val" / "dog").rename(base / "val" / "bee")
    whole = (base / "train" / "bee" / "0.jpg").read_bytes()
    for bad in (b"", b"no image", whole[: len(whole) // 2]):
        (base / "train" / "bee" / "0.jpg").write_bytes(bad)
        with pytest.raises(ValueError, match=r"cannot read the image .*bee/0\.jpg"):
            load_images(folder_settings(base))
    (base / "train" / "bee" / "0.jpg").write_bytes(whole)
    with pytest.raises(ValueError, match="hold fewer out"):
        Classification(folder_settings(base, validation=12), 0)
    for file in (base / "train" / "bee").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no images in the classes bee"):
        load_images(folder_settings(base))


def test_a_folder_is_looked_at_once_a_run(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a folder gets or loses a file, or one of those that were looked at changes."""
    for part, count in (("train", 9), ("test", 3)):
        pictures(nowhere / "mine" / part, {"ant": count, "bee": count})
    (nowhere / "mine" / "train" / "bee" / "deep").mkdir()
    (nowhere / "mine" / "train" / "bee" / "8.jpg").rename(nowhere / "mine" / "train" / "bee" / "deep" / "z.jpg")
    look, looked, kept = datasets._look, [0], nowhere / "index.json"

    def counted(*given: Any) -> Any:
        looked[0] += 1
        return look(*given)

    monkeypatch.setattr(datasets, "_look", counted)

    def made(*changes: object) -> tuple[Classification, int]:
        index = Index(kept)
        with index.used():
            task = Classification(folder_settings("mine", resized_crop=True), 0)
        if index.news:
            kept.write_text(index.news)
        return task, looked[0]

    first, again, alone = made(), made(), Classification(folder_settings("mine", resized_crop=True), 0)
    assert (first[1], again[1], looked[0]) == (1, 1, 2), "who has no index looks"
    for task in (again[0], alone):
        assert task.network == first[0].network and task.train.plain.paths == first[0].train.plain.paths
        assert torch.equal(task.train.y, first[0].train.y) and task.test.y.tolist() == [0] * 3 + [1] * 3
    assert first[0].train.plain.paths[-1].endswith("train/bee/deep/z.jpg") and len(first[0].train.plain.paths) == 18
    (nowhere / "mine" / "train" / "ant" / "new.jpg").write_bytes((nowhere / "mine/train/ant/0.jpg").read_bytes())
    assert made()[1] == 3 and len(made()[0].train) == 19 - 4
    Image.new("L", (30, 30), 99).save(nowhere / "mine" / "test" / "bee" / "0.jpg")
    assert made()[1] == 4 and made()[1] == 4
    for damaged in ("[]", "{", '{"%s 14": {"parts": 3}}' % (nowhere / "mine")):
        kept.write_text(damaged)
        made()
    assert looked[0] == 7


def test_caltech() -> None:
    task = Classification(folder_settings(given("caltech101_16"), size=32, validation=160, flip=True), 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (640, 160, 320) and len(task.classes) == 16
    assert np.bincount(task.validation.batch(np.arange(160))[1]).tolist() == [10] * 16
    assert task.train.batch(permutation(len(task.train), 0, "order")[:8], 0)[0].shape == (8, 3, 32, 32)


def test_a_task_is_found_by_the_experiment() -> None:
    task = load_task(load_experiment("bignas-digits"))
    assert len(task.validation) == 300 and task.train.settings.shift == 1


def test_images_end_as_torchvision_says() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(places.IMAGES) == set(IMG_EXTENSIONS)
