"""Folders of images: decoded, cropped, erased, and told where they are broken."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import nas.tasks.datasets as datasets
import nas.tasks.places as places
from nas.build import load_task
from nas.config.experiment import load_experiment
from nas.draws import permutation
from nas.preprocess import Preprocess, opened
from nas.tasks.augment import (
    CROP_DRAWS,
    ORIENTATION,
    crop_of,
    crop_place,
    erased,
    resized_crop,
    tensor_of,
)
from nas.tasks.classification import Classification
from nas.tasks.datasets import load_images
from nas.tasks.files import Files
from nas.tasks.index import Index
from nas.tasks.options import ClassificationOptions
from nas.tasks.places import DataMissing
from tests.tasks.given import given


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


@pytest.mark.parametrize(
    "name", ["L.png", "RGB.png", "1.png", "P.png", "LA.png", "RGBA.png", "L.jpg", "RGB.jpg", "CMYK.jpg"]
)
def test_a_picture_is_cropped_in_the_colours_that_it_is_scored_in(name: str, nowhere: Path) -> None:
    """Not in its file's, where Pillow leaves out the filter or weighs colours by their alpha."""
    pixels, mode = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8), name.split(".")[0]
    Image.fromarray(pixels if mode in ("LA", "RGBA") else pixels[..., :3]).convert(mode).save(nowhere / name)
    for draws in np.random.default_rng(1).random((5, CROP_DRAWS)):
        with Image.open(nowhere / name) as image, Image.open(nowhere / name) as same:
            assert image.mode == mode
            found, wanted = crop_of(image, 50, draws), resized_crop(opened(same)[0], 50, draws)
        assert found.mode == "RGB" and np.array_equal(found, wanted.convert("RGB"))


@pytest.mark.parametrize("turned", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_turned_picture_is_cropped_as_it_is_scored(kind: str, turned: int, nowhere: Path) -> None:
    pixels, exif = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8), Image.Exif()
    exif[ORIENTATION] = turned
    Image.fromarray(pixels).save(file := nowhere / f"turned.{kind}", exif=exif)
    for draws in np.random.default_rng(1).random((5, CROP_DRAWS)):
        with Image.open(file) as image, Image.open(file) as same:
            assert np.array_equal(crop_of(image, 50, draws), resized_crop(opened(same)[0], 50, draws))


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


def test_a_class_whose_name_is_no_text_is_refused_before_anything_is_trained(nowhere: Path) -> None:
    for part in ("train", "test"):
        for name in (b"caf\xe9", b"tea"):
            folder = os.fsencode(nowhere / "mine" / part) + b"/" + name
            os.makedirs(folder)
            Image.new("RGB", (40, 40)).save(os.fsdecode(folder) + "/0.png")
    with pytest.raises(ValueError, match=r"not UTF-8: 'caf\\udce9': rename them"):
        load_images(folder_settings(nowhere / "mine"))


def test_what_is_hidden_is_no_image(nowhere: Path) -> None:
    """What macOS and Jupyter leave beside images, whatever the folder that holds all is called."""
    base = nowhere / ".mine"
    pictures(base, {f"{part}/{name}": 3 for part in ("train", "test") for name in ("ant", "bee")}, "png")
    pictures(base, {f"{part}/ant/{name}": 1 for part in ("train", "test") for name in (".checkpoints", ".a/deep")})
    for part in ("train", "test"):
        (base / part / "bee" / "._1.png").write_bytes(b"no image")
    found = load_images(folder_settings(base))
    assert isinstance(found.train_x, Files) and len(found.train_x) == len(found.train_y) == len(found.test_y) == 6
    assert [path.removeprefix(f"{base}/train/") for path in map(str, found.train_x.paths)] == [
        f"{name}/{number}.png" for name in ("ant", "bee") for number in range(3)
    ]
    assert len(list(places.images(base / "train"))) == 6


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
