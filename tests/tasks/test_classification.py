"""Classification: the three parts, augmentation, losses and scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2

import nas.tasks.files as files
import nas.tasks.places as places
from nas.config.experiment import load_experiment
from nas.draws import bits
from nas.preprocess import Preprocess
from nas.tasks.augment import (
    CROP_DRAWS,
    OPERATIONS,
    crop_of,
    rand_augment,
)
from nas.tasks.classification import Classification, Split
from nas.tasks.datasets import TEXTURES, load_images
from nas.tasks.options import ClassificationOptions
from nas.tasks.places import DataMissing
from tests.tasks.given import DIGITS


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
