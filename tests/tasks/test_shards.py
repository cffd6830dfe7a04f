"""Images in tars: the same as in folders, whoever wrote the tar, and read by place."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.tasks import datasets
from nas.tasks.classification import Classification
from nas.tasks.datasets import load_images
from nas.tasks.index import Index
from nas.tasks.options import ClassificationOptions
from nas.tasks.shards import Members


def settings(path: Path) -> ClassificationOptions:
    given = {"name": "folder", "path": str(path), "size": 16, "validation": 4, "resized_crop": True, "flip": True}
    return ClassificationOptions.model_validate(given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of six noisy pictures to train on, two to test on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "folder" / part / name / f"{number}.jpg")
    return tmp_path / "folder"


def packed(folder: Path, home: Path, shards: int = 1, keyed: bool = False) -> Path:
    """The folder as tars: image after image into each in turn. Keyed as WebDataset does, the class is a file."""
    for part in ("train", "val"):
        (home / part).mkdir(parents=True)
        files = list(enumerate(sorted((folder / part).rglob("*.jpg"))))
        for shard in range(shards):
            with tarfile.open(home / part / f"{shard:04}.tar", "w") as tar:
                for number, file in files[shard::shards]:
                    _add(tar, file, number if keyed else None)
    return home


def _add(tar: tarfile.TarFile, file: Path, key: int | None) -> None:
    tar.add(file, f"{file.parent.name}/{file.name}" if key is None else f"{key:05}.jpg")
    texts = {} if key is None else {"cls": str(("ant", "bee", "cat").index(file.parent.name)), "json": "{}"}
    for end, text in texts.items():
        info = tarfile.TarInfo(f"{key:05}.{end}")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))


def test_a_tar_is_its_folder_augmentation_included(folder: Path, tmp_path: Path) -> None:
    one, other = (Classification(settings(path), 3) for path in (folder, packed(folder, tmp_path / "tars")))
    assert one.network == other.network and one.classes == other.classes == ("ant", "bee", "cat")
    for part in ("train", "validation", "test"):
        rows = np.arange(len(getattr(one, part)))
        for epoch in (None, 0, 5):
            for mine, wanted in zip(
                getattr(other, part).batch(rows, epoch), getattr(one, part).batch(rows, epoch), strict=True
            ):
                assert torch.equal(mine, wanted), (part, epoch)


@pytest.mark.parametrize("keyed", [False, True])
def test_many_tars_hold_the_same_images(folder: Path, tmp_path: Path, keyed: bool) -> None:
    one, many = load_images(settings(folder)), load_images(settings(packed(folder, tmp_path / "tars", 4, keyed)))
    assert many.classes == (("0", "1", "2") if keyed else ("ant", "bee", "cat"))

    def sums(images: Any) -> list[tuple[int, int]]:
        pixels = images.train_x[torch.arange(len(images.train_y))]
        return sorted(zip((int(x.sum()) for x in pixels), images.train_y.tolist(), strict=True))

    assert sums(one) == sums(many) and len(one.train_y) == 18
    assert (one.mean, one.std) == (pytest.approx(many.mean), pytest.approx(many.std))


def test_ten_classes_by_number_are_in_the_order_of_numbers(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "tars" / part).mkdir(parents=True)
        with tarfile.open(tmp_path / "tars" / part / "0.tar", "w") as tar:
            for number in range(11):
                tar.add(folder / "train" / "ant" / f"{number % 6}.jpg", f"{number}/a.jpg")
    assert load_images(settings(tmp_path / "tars")).classes == tuple(map(str, range(11)))


def test_the_places_travel_to_loaders_as_arrays() -> None:
    """A million of them in less than 30 MB."""
    many = 1_000_000
    starts = np.arange(many, dtype=np.int64)
    places = Members(["a.tar", "b.tar"], [many // 2, many // 2], starts, starts + 1)
    sent = pickle.loads(pickle.dumps(places))  # noqa: S301
    assert len(pickle.dumps(places)) < 30e6 and len(sent) == many
    assert sent[many // 2] == ("b.tar", many // 2, many // 2 + 1) and sent[-1].tar == "b.tar"
    assert [place.start for place in sent[::400_000]] == [0, 400_000, 800_000]


def test_tars_are_looked_through_once_a_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, kept, looked = packed(folder, tmp_path / "tars", 2), tmp_path / "index.json", []
    look = datasets._look
    monkeypatch.setattr(datasets, "_look", lambda *given: looked.append(1) or look(*given))

    def opened() -> Classification:
        index = Index(kept)
        with index.used():
            task = Classification(settings(home), 0)
        if index.news:
            kept.write_text(index.news)
        return task

    first, again = opened(), opened()
    assert len(looked) == 1 and torch.equal(first.train.y, again.train.y)
    assert list(first.train.plain.paths) == list(again.train.plain.paths)  # type: ignore[union-attr]
    os.utime(home / "train" / "0001.tar", (1, 1))
    opened()
    assert len(looked) == 2
    shutil.copy(home / "train" / "0000.tar", home / "train" / "0002.tar")
    assert [len(opened().train.plain) for _ in range(2)] == [27, 27] and len(looked) == 3, "one has come"
    (home / "train" / "0001.tar").unlink()
    assert [len(opened().train.plain) for _ in range(2)] == [18, 18] and len(looked) == 4, "one has gone"


def test_what_an_older_version_knew_of_tars_is_still_read(folder: Path, tmp_path: Path) -> None:
    """It did not know their folder."""
    home, index = packed(folder, tmp_path / "tars", 2), Index(tmp_path / "index.json")
    with index.used():
        first = Classification(settings(home), 0)
    known = json.loads(str(index.news))
    for found in known.values():
        found["parts"] = [
            {path: kept for path, kept in part.items() if path.endswith(".tar")} for part in found["parts"]
        ]
    (tmp_path / "index.json").write_text(json.dumps(known))
    with Index(tmp_path / "index.json").used():
        again = Classification(settings(home), 0)
    assert first.network == again.network and torch.equal(first.train.y, again.train.y)
    assert list(first.train.plain.paths) == list(again.train.plain.paths)  # type: ignore[union-attr]


def test_what_is_hidden_is_no_shard_and_no_image(folder: Path, tmp_path: Path) -> None:
    """Names that begin with ``./``, as ``tar -c .`` writes them, are not hidden."""
    home = packed(folder, tmp_path / "tars")
    wanted = load_images(settings(home))
    for part in ("train", "val"):
        (home / part / "._0000.tar").write_bytes(b"no tar")
        with tarfile.open(home / part / "0000.tar", "w") as tar:
            for file in sorted((folder / part).rglob("*.jpg")):
                for name in (f"{file.parent.name}/._{file.name}", f".old/{file.name}", f"./.old/bee/{file.name}"):
                    tar.add(folder / "train" / "ant" / "0.jpg", name)
                tar.add(file, f"./{file.parent.name}/{file.name}")
    images = load_images(settings(home))
    assert (images.classes, images.mean, images.std) == (wanted.classes, wanted.mean, wanted.std)
    assert torch.equal(images.train_y, wanted.train_y) and torch.equal(images.test_y, wanted.test_y)


def test_what_is_wrong_is_told_with_the_tar(folder: Path, tmp_path: Path) -> None:
    home = packed(folder, tmp_path / "tars", 2)
    shard = home / "train" / "0001.tar"
    whole = shard.read_bytes()
    for size in (len(whole) // 2, len(whole) // 2 + 700, 100):  # 512 divides the first, which ends after an image
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"the shard .*0001\.tar is no whole tar"):
            load_images(settings(home))
    other = (home / "train" / "0000.tar").read_bytes()
    for more in (other, bytes(50_000)):  # two in one; what was made room for and never came
        shard.write_bytes(whole + more)
        with pytest.raises(ValueError, match=r"0001\.tar .* does not end where its last image does"):
            load_images(settings(home))
    for name, kind in (("ant/0.png", tarfile.REGTYPE), ("ant/link.jpg", tarfile.LNKTYPE)):
        shard.write_bytes(whole)
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "ant/2.jpg"
        with tarfile.open(shard, "a") as tar:
            tar.add(folder / "train" / "ant" / "0.jpg", "ant/0.jpg")
            tar.addfile(info)
        with pytest.raises(ValueError, match=r"two images ant/0|link\.jpg is a link"):
            load_images(settings(home))
    for name in ("lonely.jpg", "./lonely.jpg"):
        shard.write_bytes(whole)
        with tarfile.open(shard, "a") as tar:
            tar.add(folder / "train" / "ant" / "0.jpg", name)
        with pytest.raises(ValueError, match=r"lonely in .*0001\.tar has no class"):
            load_images(settings(home))
    shard.write_bytes(whole)
    with tarfile.open(home / "val" / "0000.tar", "a") as tar:
        tar.add(folder / "train" / "ant" / "0.jpg", "dog/0.jpg")
    with pytest.raises(ValueError, match=r"val has classes that .*train has not: dog"):
        load_images(settings(home))
    (home / "val" / "0000.tar").unlink()
    (home / "val" / "0001.tar").unlink()
    with pytest.raises(ValueError, match=r"no images in the tars of .*val"):
        load_images(settings(home))


def test_tars_beside_the_folders_that_they_were_unpacked_into_are_left_alone(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "train" / "ant.tar", "w") as tar:
        tar.add(folder / "train" / "ant" / "0.jpg", "0.jpg")
    assert load_images(settings(folder)).classes == ("ant", "bee", "cat")


def test_an_image_that_cannot_be_decoded_is_told_with_its_place(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "bee" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*0000\.tar, bytes \d+ to \d+"):
        load_images(settings(packed(folder, tmp_path / "tars")))
