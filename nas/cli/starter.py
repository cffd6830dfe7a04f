"""An experiment to begin with, for the images that lie in a folder. Imports no torch: it answers at once.

Which space suits which images says a table beside the presets; each of its rows names the preset whose learning rate,
batch and number of steps it has.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from nas.tasks.places import IMAGES, images, test_part

LOOKED_AT = 200  # images whose size is read
SHARE, MOST = 5, 5000  # of the training part one in so many is held out, at most so many
EPOCHS = (10, 200)  # at least, at most


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
        base: the folder.
        test: the name of its test part.
        classes: training images of each class; empty where images lie in no class folders.
        train, tests: how many images.
        side: the median of the short sides, pixels.
    """

    base: Path
    test: str
    classes: dict[str, int]
    train: int
    tests: int
    side: int

    def __str__(self) -> str:
        least, most = (min(self.classes.values()), max(self.classes.values())) if self.classes else (0, 0)
        within = f"{least} to {most}" if least < most else f"{least}"
        kinds = f"{len(self.classes)} classes of {within}, " if self.classes else ""
        return (
            f"{kinds}{self.train} pictures to train on, {self.tests} in {self.test}, {self.side} pixels the short side"
        )


def look(base: Path) -> Found:
    """What images a folder holds.

    Raises:
        ValueError: it is none of the two layouts, or a part of it is empty; the message says what is expected.
    """
    test = test_part(base)
    if not (base / "train").is_dir() or test is None:
        inside = sorted(path.name for path in base.iterdir() if path.is_dir())[:5] if base.is_dir() else []
        has = f"it has the folders {', '.join(inside)}" if inside else "it has no folders"
        raise ValueError(
            f"{base} is no folder of images to learn from ({has}): put images of each class into train/<class>/, and "
            "others, which nothing is learnt from, into test/<class>/; for super-resolution straight into train/ and "
            "test/"
        )
    folders = sorted(path for path in (base / "train").iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {folder.name: len(list(images(folder))) for folder in folders}
    train, tests = list(images(base / "train")), list(images(base / test))
    empty = [f"train/{name}" for name, count in classes.items() if not count]
    empty += [part for part, found in (("train", train), (test, tests)) if not found]
    if empty:
        raise ValueError(
            f"no images in {', '.join(empty)} of {base}; files are images when they end in {' '.join(IMAGES)}"
        )
    if len(classes) == 1:
        raise ValueError(
            f"{base} has the class {next(iter(classes))} alone; there is nothing to tell it from: add others"
        )
    if few := [name for name, count in classes.items() if count < 2]:
        raise ValueError(
            f"the class {few[0]} of {base} has one training image; it takes two, one of them to search with"
        )
    return Found(base, test, classes, len(train), len(tests), short_side(train))


def short_side(files: list[Path]) -> int:
    """The median over some of the images, pixels.

    Raises:
        ValueError: one cannot be read; it is named.
    """
    from PIL import Image

    sides = []
    for file in files[:: math.ceil(len(files) / LOOKED_AT)]:
        try:
            with Image.open(file) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read the image {file}: {error}; mend or remove it") from error
    return int(statistics.median(sides))


def write(found: Found, name: str, path: str) -> str:
    """The experiment file for these images.

    Args:
        name: of the experiment.
        path: as the file shall have it.
    """
    row, plain = chosen(found), yaml.safe_load(name) == name
    values = {
        **row,
        "name": name if plain else json.dumps(name),
        "found": found,
        "path": json.dumps(path),
        "test": found.test,
    }
    if found.classes:
        held = min(MOST, max(len(found.classes), found.train // SHARE))
        trained = found.train - held
        batch = min(row["batch"], trained // 2 * 2)  # two workers share it
        epochs = min(max(math.ceil(row["steps"] * batch / trained), EPOCHS[0]), EPOCHS[1])
        values |= {"validation": held, "batch": batch, "epochs": epochs, "warmup": max(1, epochs // 20)}
        values["calibration"] = min(1024, max(2, trained // 2))
    return Template((_presets() / f"{row['template']}.template").read_text()).substitute(values)


def chosen(found: Found) -> dict[str, Any]:
    """The row of the table for these images: the last one whose sides they reach."""
    kind = "folder" if found.classes else "sr-folder"
    rows = json.loads((_presets() / "starters.json").read_text())
    return [row for row in rows if row["template"] == kind and found.side >= row["least_side"]][-1]


def _presets() -> Any:
    return importlib.resources.files("searchspaces") / "presets"
